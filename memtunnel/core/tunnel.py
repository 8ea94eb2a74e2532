"""What all sessions share: the servers, the policy, the bounds, and who has something to write."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from memtunnel.core.budget import Budget
from memtunnel.core.deadlines import Deadlines
from memtunnel.core.request import Request
from memtunnel.core.routing import Router
from memtunnel.core.server import Server, ServerCounts
from memtunnel.wire.binary import BODYLESS, Opcode
from memtunnel.wire.sasl import Credentials

if TYPE_CHECKING:
    from memtunnel.core.answers import Answers

#: What VERSION says before a server has said its own.
FIRST_VERSION: Final = b"1.6.0"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The settings that decide what clients are told; `config.Config` says what each means."""

    credentials: Credentials | None = None
    login_required: bool = False
    errors_on_unavailable: bool = False
    failover: bool = True
    max_value_size: int = 1024 * 1024
    strip_touch_extras: bool = False
    request_timeout: float = 0.4


class TunnelCounts(Protocol):
    """What is counted for the tunnel as a whole; `ops.metrics` has the real one."""

    @property
    def local(self) -> ServerCounts:
        """For requests that the tunnel answers itself."""

    def degraded(self, command: int, reason: str) -> None:
        """A degraded reply to a command, by its loud opcode."""


class Tunnel:
    """Built once, handed to every session.

    `wake` is called when `sweep` has something to watch and had nothing before. `describe`
    returns the names and values of ``STAT memtunnel``.
    """

    __slots__ = (
        "bodyless",
        "budget",
        "counts",
        "deadlines",
        "describe",
        "policy",
        "ready",
        "router",
        "servers",
        "version",
    )

    def __init__(
        self,
        policy: Policy,
        servers: list[Server],
        router: Router,
        budget: Budget,
        counts: TunnelCounts,
        wake: Callable[[], None],
        describe: Callable[[], Iterable[tuple[str, str]]] = tuple,
    ) -> None:
        self.policy = policy
        self.servers = servers
        self.router = router
        self.budget = budget
        self.counts = counts
        self.describe = describe
        self.deadlines = Deadlines(policy.request_timeout, self._expire, wake)
        self.version = FIRST_VERSION
        self.ready: list[Answers] = []
        """Those who have something to write, or to close, at the end of this event."""
        self.bodyless = BODYLESS | {Opcode.TOUCH} if policy.strip_touch_extras else BODYLESS
        """Loud opcodes whose success is passed on without a body."""

    def flush(self) -> None:
        """Let all clients write what they got: one write each. Ends every event."""
        while self.ready:
            ready, self.ready = self.ready, []
            for session in ready:
                session.flush()

    def sweep(self, now: float) -> bool:
        """Settle what is past its deadline. Returns whether there is more to watch."""
        self.deadlines.sweep(now)
        self.flush()
        return bool(self.deadlines)

    def _expire(self, request: Request, now: float) -> None:
        lane = request.lane
        assert lane is not None
        lane.server.expire(request, now)
