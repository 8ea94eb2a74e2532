"""A network in memory, for tests that decide when each byte moves and what time it is.

A `Transport` is one end of a connection, as a protocol sees it; a test plays the far end by
hand (`deliver`, `read`), or ties two ends together with `Network.link`. A `Network` is a
reactor of sorts: a clock, names, and dials that a test accepts or refuses. Nothing happens by
itself: calls that are due run when the clock is advanced, bytes move in `settle`.
"""

import socket
from collections.abc import Callable
from typing import Any

import authority
from twisted.internet.address import IPv4Address
from twisted.internet.error import (
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    UserError,
)
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from memtunnel.wire import binary

HERE = IPv4Address("TCP", "127.0.0.1", 11211)
THERE = IPv4Address("TCP", "127.0.0.1", 40000)
#: A clock that stood at 0 would hide the times that mean "never".
START = 1000.0


class Handle:
    """A socket that only remembers which options were set."""

    def __init__(self, family: int) -> None:
        self.family = family
        self.options: list[tuple[int, int, int]] = []

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.options.append((level, option, value))

    @property
    def acknowledged(self) -> int:
        """How often TCP_QUICKACK was set."""
        return self.options.count((socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1))


class Transport:
    """One end. `takes` is how many bytes the kernel has room for; None is no end of them.

    As with Twisted's own, `connectionLost` comes in a later turn, except after
    `loseConnection` on a side that is half closed already. `events` is what happened, in order;
    `writes` is every write as it was made.
    """

    disconnecting = False

    def __init__(
        self,
        clock: Clock,
        *,
        takes: int | None = None,
        high_water: int = 65536,
        family: int = socket.AF_INET,
    ) -> None:
        self.handle = Handle(family)
        self.takes = takes
        self.events: list[str] = []
        self.unseen: list[bytes] = []
        """What the kernel has received and the reactor has not seen yet."""
        self.writes: list[bytes] = []
        self.connected = False
        self.reading = True
        self.finished = False
        """Whether our side is closed: FIN was sent."""
        self.lost: Failure | None = None
        self._clock = clock
        self._high_water = high_water
        self._producer: Any = None
        self._producer_paused = False
        self._unsent = bytearray()
        self._taken = bytearray()
        self._inbox: list[bytes] = []
        self._far_finished = False
        self._told_finished = False
        self._half_closing = False

    def connect(self, protocol: Any) -> "Transport":
        self.protocol = protocol
        self.connected = True
        protocol.makeConnection(self)
        return self

    # What the protocol calls

    @property
    def unsent(self) -> int:
        return len(self._unsent)

    @property
    def arrived(self) -> int:
        return sum(map(len, self.unseen))

    def deliver_now(self) -> int:
        data = self.unseen.pop(0) if self.unseen else b""
        if data:
            self.protocol.dataReceived(data)
        return len(data)

    def write(self, data: bytes) -> None:
        self.send(data)

    def send(self, data: bytes) -> bool:
        if not self.connected or self.finished:
            return False
        self.writes.append(data)
        self._unsent += data
        self._take()
        if self._producer is not None and len(self._unsent) > self._high_water:
            self._producer_paused = True
            self._producer.pauseProducing()
        return not self._unsent

    def writeSequence(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        assert self._producer is None, "a producer is registered already"
        self._producer = producer

    def unregisterProducer(self) -> None:
        self._producer = None
        self._producer_paused = False
        self._go_on_ending()

    def pauseProducing(self) -> None:
        self.events.append("pause")
        self.reading = False

    def resumeProducing(self) -> None:
        if self.connected and not self.disconnecting:
            self.events.append("resume")
            self.reading = True
            self._clock.callLater(0, self._hand_over)

    def loseConnection(self) -> None:
        if not self.connected or self.disconnecting:
            return
        self.events.append("lose")
        self.disconnecting = True
        self.reading = False
        if self.finished:
            self._lose(ConnectionDone())
        else:
            self._go_on_ending()

    def loseWriteConnection(self) -> None:
        self.events.append("half-close")
        self._half_closing = True
        self._go_on_ending()

    def abortConnection(self) -> None:
        if self.connected:
            self.events.append("abort")
            self.reading = False
            self._unsent.clear()
            self._inbox.clear()
            self.disconnecting = True
            self._clock.callLater(0, self._lose, ConnectionAborted())

    def getHandle(self) -> Handle:
        return self.handle

    def getPeer(self) -> IPv4Address:
        return THERE

    def getHost(self) -> IPv4Address:
        return HERE

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.events.append("no-delay")

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.events.append("keep-alive")

    # What the far end does

    def read(self) -> bytes:
        """What the kernel took since the last read."""
        data = bytes(self._taken)
        self._taken.clear()
        return data

    def take(self, size: int | None = None) -> None:
        """The kernel takes `size` bytes more, or all from now on."""
        self.takes = size
        self._take()
        if not self._unsent and self._producer is not None and self._producer_paused:
            self._producer_paused = False
            self._producer.resumeProducing()

    def deliver(self, data: bytes, *, every: int = 0) -> None:
        """Bytes arrive, in pieces of `every` bytes where that is given."""
        step = every or len(data)
        for start in range(0, len(data), step or 1):
            self._inbox.append(data[start : start + step])
        self._hand_over()

    def finish(self) -> None:
        """The far end has sent all it will."""
        self._far_finished = True
        self._hand_over()

    def reset(self) -> None:
        """The connection is cut off."""
        self._inbox.clear()
        self._lose(ConnectionLost())

    # Inside

    def _take(self) -> None:
        size = len(self._unsent) if self.takes is None else min(self.takes, len(self._unsent))
        self._taken += self._unsent[:size]
        del self._unsent[:size]
        if self.takes is not None:
            self.takes -= size
        self._go_on_ending()

    def _hand_over(self) -> None:
        while self._inbox and self.reading and self.connected:
            self.protocol.dataReceived(self._inbox.pop(0))
        if self._far_finished and not self._inbox and self.reading and self.connected:
            self.reading = False
            if not IHalfCloseableProtocol.providedBy(self.protocol):
                self._lose(ConnectionDone())
            else:
                self.protocol.readConnectionLost()

    def _go_on_ending(self) -> None:
        # As with Twisted, a producer that was told to pause is waited for, another is not.
        if self._unsent or not self.connected or self._producer_paused:
            return
        if self.disconnecting:
            self._clock.callLater(0, self._lose, ConnectionDone())
        elif self._half_closing and not self.finished:
            self.finished = True
            self._clock.callLater(0, self._tell_half_closed)

    def _tell_half_closed(self) -> None:
        if self.connected:
            self.protocol.writeConnectionLost()

    def _lose(self, reason: Exception) -> None:
        if not self.connected:
            return
        self.connected = False
        self.finished = True
        self.reading = False
        self.lost = Failure(reason)
        self.events.append("lost")
        if self._producer is not None:
            producer, self._producer = self._producer, None
            producer.stopProducing()
        self.protocol.connectionLost(self.lost)


class Peer(Protocol):
    """The server's side, above TLS. `obliging`: says yes to all that it is asked."""

    far: Transport
    """Its own end, below TLS."""

    def __init__(self, *, obliging: bool = False) -> None:
        self.received = b""
        self.lost = False
        self._obliging = obliging
        self._left = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self._obliging:
            for frame in self.asked():
                self.says(binary.answer(frame.opcode, frame.opaque))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = True

    def asked(self) -> list[binary.Frame]:
        """The requests that came since the last look."""
        frames, self._left = binary.split(self._left + self.received)
        self.received = b""
        return frames

    def says(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)


class Dial:
    """An attempt to connect, which waits for the test's decision."""

    def __init__(self, network: "Network", host: str, port: int, factory: Any) -> None:
        self.host = host
        self.port = port
        self.at = network.seconds()
        self.open = True
        self.transport: Transport | None = None
        self._network = network
        self._factory = factory
        factory.doStart()
        factory.startedConnecting(self)

    def accept(self, transport: Transport | None = None) -> Transport:
        """Connect. Returns the dialler's end."""
        self._close()
        self.transport = transport or Transport(self._network)
        return self.transport.connect(self._factory.buildProtocol(self.getDestination()))

    def refuse(self, problem: Exception | None = None) -> None:
        self._close()
        self._factory.clientConnectionFailed(self, Failure(problem or ConnectionRefusedError()))

    def stopConnecting(self) -> None:
        self._close()
        self._factory.clientConnectionFailed(self, Failure(UserError()))

    def getDestination(self) -> IPv4Address:
        return IPv4Address("TCP", self.host, self.port)

    def _close(self) -> None:
        assert self.open, "decided already"
        self.open = False


class Names:
    """A resolver that knows what `addresses` says; None never answers."""

    took: dict[str, float] = {}

    def __init__(self) -> None:
        self.addresses: list[str] | None = ["127.0.0.1"]

    def resolveHostName(
        self, receiver: Any, hostName: str, portNumber: int = 0, *_: Any, **__: Any
    ) -> None:
        receiver.resolutionBegan(None)
        if self.addresses is not None:
            for address in self.addresses:
                receiver.addressResolved(IPv4Address("TCP", address, portNumber))
            receiver.resolutionComplete()


@implementer(IReactorTCP, IReactorTime, IReactorPluggableNameResolver)
class Network(Clock):
    """A clock, and connections in memory. `dials` is every attempt that was made."""

    def __init__(self) -> None:
        super().__init__()
        self.advance(START)
        self.nameResolver = Names()
        self.dials: list[Dial] = []
        self._links: list[tuple[Transport, Transport]] = []

    def connectTCP(self, host: str, port: int, factory: Any, *_: Any, **__: Any) -> Dial:
        dial = Dial(self, host, port, factory)
        self.dials.append(dial)
        return dial

    @property
    def waiting(self) -> list[Dial]:
        """The attempts that are not decided."""
        return [dial for dial in self.dials if dial.open]

    def link(self, one: Transport, other: Transport) -> None:
        """What one end sends reaches the other, and so does its end."""
        self._links.append((one, other))

    def serve(self, near: Transport, pair: authority.Pair, peer: Peer) -> None:
        """Put a TLS server with this certificate at the far end of a dialled connection."""
        options = CertificateOptions(privateKey=pair.key, certificate=pair.certificate)
        factory: Any = Factory.forProtocol(lambda: peer)  # type: ignore[arg-type]
        tls = TLSMemoryBIOFactory(options, False, factory, self)
        peer.far = Transport(self)
        self.link(near, peer.far.connect(tls.buildProtocol(None)))

    def settle(self) -> None:
        """Run what is due and move bytes, until nothing moves any more."""
        moved = True
        while moved:
            moved = False
            self.advance(0)
            for one, other in list(self._links):
                moved = self._move(one, other) or moved
                moved = self._move(other, one) or moved
                if not one.connected and not other.connected:
                    self._links.remove((one, other))

    def pass_time(self, seconds: float, step: float = 0.25, each: Callable[[], Any] = int) -> None:
        """Let time pass in steps; after each, settle and call `each`."""
        until = self.seconds() + seconds
        while self.seconds() < until - 1e-9:
            self.advance(min(step, until - self.seconds()))
            each()
            self.settle()

    @staticmethod
    def _move(one: Transport, other: Transport) -> bool:
        data = one.read()
        if data:
            other.deliver(data)
        aborted = one.lost is not None and one.lost.check(ConnectionAborted, ConnectionLost)
        if one.finished and not other._far_finished and other.connected:
            if aborted:
                other.reset()
            else:
                other.finish()
            return True
        return bool(data)
