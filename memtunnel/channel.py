"""What the tunnel and a worker process tell each other, and how: messages over a socket pair.

The tunnel begins with `Begin`, and says `Reload` when settings have changed. It asks for a
`Reading` once a second and before each scrape, and in the end says `Drain`, `Finish` if there is
no reason to wait for clients any more, and `Stop` if it should not take its time at all. A worker
says what is to be logged (`Said`), and when it has room for clients and when not (`Room`). When
the other side is gone, so is the channel.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable
from copyreg import pickle as pickles
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

from memtunnel.config import Config
from memtunnel.ops.metrics import ConnectionState, ServerState, State
from memtunnel.ops.slowlog import Entry


def _frozen(mapping: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(mapping)


# A configuration is frozen all the way down, by what pickle does not know.
pickles(MappingProxyType, lambda mapping: (_frozen, (dict(mapping),)))


def _whole(kind: Any, parts: dict[str, Any]) -> Any:
    return kind(**parts)


def _in_parts(value: Any) -> Any:
    return _whole, (type(value), {each.name: getattr(value, each.name) for each in fields(value)})


# Nor does it know frozen classes that are compiled: it would set their attributes one by one.
pickles(State, _in_parts)
pickles(ServerState, _in_parts)
pickles(ConnectionState, _in_parts)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a worker is to do: its own part of what is divided among all."""

    config: Config
    roots: tuple[bytes, ...] | None
    """The roots to trust, in PEM; None for the system's."""
    max_clients: int


@dataclass(frozen=True, kw_only=True)
class Begin:
    """Serve. The sockets to accept clients from are open already."""

    settings: Settings
    salt: bytes
    """For the hashes of keys, which are the same in all workers."""
    sockets: tuple[tuple[int, int], ...]
    """Descriptors of the listening sockets, and their address families."""


@dataclass(frozen=True, kw_only=True)
class Reload:
    """Follow other settings from now on."""

    settings: Settings


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Send a `Reading` with this number."""

    number: int
    description: tuple[tuple[str, str], ...]
    """What ``STAT memtunnel`` says of all workers together."""
    slow: tuple[tuple[str, str], ...] | None
    """The same of ``STAT memtunnel slow``; None where that is as it was."""


@dataclass(frozen=True, kw_only=True)
class Drain:
    """Serve on until no client is left or the time is up, then end."""

    outlasting: bool = False
    """Having no client is no reason to end yet."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    """Drain no longer: close the clients that are left, then end."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """End now."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The answer to `Ask`."""

    number: int
    counts: Any
    """As `ops.totals.counts` gives them."""
    state: State
    slow: tuple[Entry, ...] = ()
    """Requests that were noted since the last one."""
    slow_untold: int = 0
    """How many were not, so far."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Whether there is room for a client more."""

    left: bool


@dataclass(frozen=True, kw_only=True)
class Said:
    """A line for the log."""

    level: str
    format: str
    fields: dict[str, Any]
    """What the format is filled with."""


class Channel(Int32StringReceiver):
    """One end. `told` gets each message, `ended` is called when the other end is gone."""

    #: More than the counts of hundreds of servers.
    MAX_LENGTH = 64 << 20

    transport: Any

    def __init__(self, told: Callable[[Any], None], ended: Callable[[], None]) -> None:
        self._told = told
        self._ended = ended

    def tell(self, message: Any) -> None:
        if self.connected:
            self.sendString(pickle.dumps(message))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close it once all is sent that was told; `ended` says when."""
        self.transport.loseConnection()

    def stringReceived(self, string: bytes) -> None:
        # Only this program's own processes hold an end of it.
        self._told(pickle.loads(string))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.connected = 0  # as Twisted does not
        self._ended()


def attach(reactor: Any, descriptor: int, channel: Channel) -> None:
    """Let `channel` speak over one end of a socket pair, which the caller still has to close."""
    factory = Factory.forProtocol(lambda: channel)
    factory.noisy = False
    reactor.adoptStreamConnection(descriptor, socket.AF_UNIX, factory)
