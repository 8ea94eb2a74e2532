"""Time, a poller and sockets, in memory: what is below Twisted's own transports.

The tunnel's connections are the real ones (`memtunnel.net.transports`, on Twisted's), on sockets
that are only a model: how much a `send` takes, when bytes arrive and in which pieces, and when a
call fails is drawn from one random source. The far end of a `Socket` is a `Peer`, which is no
Twisted protocol and costs little.

Times are put on a grid, so that what happens at about the same time shares a turn.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from errno import EAGAIN, ECONNREFUSED, EHOSTUNREACH, EINPROGRESS
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import (
    IReactorFDSet,
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
)
from twisted.internet.posixbase import _DisconnectSelectableMixin
from twisted.python import log
from zope.interface import implementer

from memtunnel.net import transports
from memtunnel.net.turn import Turn

#: Seconds between two moments at which something can happen.
GRID = 0.0001
START = 1000.0


class Call:
    """A delayed call of the reactor's."""

    __slots__ = ("args", "call", "state", "time")

    def __init__(self, time: float, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.time = time
        self.call = call
        self.args = args
        self.state = 0

    def active(self) -> bool:
        return not self.state

    def getTime(self) -> float:
        return self.time

    def cancel(self) -> None:
        if self.state:
            raise AlreadyCalled if self.state == 1 else AlreadyCancelled
        self.state = 2


class Faults:
    """How bad the sockets are. All are probabilities of one call, but for `latency` (seconds)."""

    def __init__(self, random: Random) -> None:
        draw = random.random
        bad = draw() < 0.6
        self.short_send = draw() * 0.2 if bad else 0.0
        self.no_send = draw() * 0.1 if bad else 0.0
        self.broken_send = draw() * 0.0003 if bad else 0.0
        self.short_read = draw() * 0.2 if bad else 0.0
        self.split = draw() * 0.3 if bad else 0.0
        self.spike = draw() * 0.003 if bad else 0.0
        self.latency = random.choice((0.0001, 0.0005, 0.002, 0.01))

    def heal(self) -> None:
        self.short_send = self.no_send = self.broken_send = self.spike = 0.0


@implementer(IReactorTime, IReactorTCP, IReactorFDSet, IReactorPluggableNameResolver)
class Reactor(_DisconnectSelectableMixin):
    """Runs what is due, then reads and writes what is ready, as a poller's loop does."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now = START
        self.faults = Faults(random)
        self.nameResolver = self
        self.took: dict[str, float] = {}
        self.turn: Turn
        self.dialled: Callable[[Socket, str, int], None]
        """Called with each connection attempt: it answers by `Socket.established`."""
        self.resolve_name: Callable[[str], str | None]
        self.sockets: dict[Socket, None] = {}
        """Those of the tunnel that are open."""
        self.turns = 0
        self._heap: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self._count = count()
        self._hot: dict[Socket, None] = {}

    # What Twisted asks for

    def seconds(self) -> float:
        return self.now

    def callLater(self, delay: float, call: Callable[..., Any], *args: Any, **named: Any) -> Call:
        later = Call(self.now + delay, partial(call, **named) if named else call, args)
        heappush(self._heap, (later.time, next(self._count), later, ()))
        return later

    def addReader(self, selectable: Any) -> None:
        sock = selectable.socket
        sock.owner = selectable
        sock.reading = True
        if sock.readable:
            self._hot[sock] = None

    def addWriter(self, selectable: Any) -> None:
        sock = selectable.socket
        sock.owner = selectable
        sock.writing = True
        self._hot[sock] = None

    def removeReader(self, selectable: Any) -> None:
        if hasattr(selectable, "socket"):
            selectable.socket.reading = False

    def removeWriter(self, selectable: Any) -> None:
        if hasattr(selectable, "socket"):
            selectable.socket.writing = False

    def connectTCP(
        self, host: str, port: int, factory: Any, timeout: float = 30, bindAddress: Any = None
    ) -> Any:
        connector = Connector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    def resolveHostName(self, receiver: Any, hostName: str, portNumber: int = 0, *_: Any) -> None:
        receiver.resolutionBegan(None)
        address = self.resolve_name(hostName)
        if address is not None:
            receiver.addressResolved(IPv4Address("TCP", address, portNumber))
        receiver.resolutionComplete()

    # What the world asks for

    def at(self, delay: float, call: Callable[..., Any], *args: Any) -> None:
        """Call later, on the grid, what cannot be called off."""
        time = (int((self.now + delay) / GRID) + 1) * GRID
        heappush(self._heap, (time, next(self._count), call, args))

    def wake(self, sock: Socket) -> None:
        self._hot[sock] = None

    def run(self, until: float) -> None:
        """Let time pass."""
        heap = self._heap
        turn = self.turn
        while True:
            if self._hot or turn.calls:
                self.now += GRID / 10
            elif heap and heap[0][0] <= until:
                self.now = max(self.now, heap[0][0])
            else:
                break
            now = self.now
            while heap and heap[0][0] <= now:
                _, _, call, args = heappop(heap)
                if call.__class__ is Call:
                    if not call.state:
                        call.state = 1
                        call.call(*call.args)
                else:
                    call(*args)
            if self._hot:
                self._poll()
            if turn.driven and turn.calls:
                turn.run()
            self.turns += 1
        self.now = max(self.now, until)

    @property
    def pending(self) -> list[Call]:
        """The delayed calls that are not called off."""
        return [call for _, _, call, _ in self._heap if isinstance(call, Call) and not call.state]

    def _poll(self) -> None:
        hot, self._hot = self._hot, {}
        ready = list(hot)
        if len(ready) > 1 and self.random.random() < 0.3:
            self.random.shuffle(ready)
        if self.turn.driven:
            self.turn.began = self.now
        for sock in ready:
            owner = sock.owner
            if owner is None:
                continue
            why: Any = None
            reads = sock.reading and sock.readable
            try:
                if reads:
                    why = owner.doRead()
                if not why and sock.writing and sock.writable:
                    reads = False
                    why = owner.doWrite()
            except Exception as problem:
                log.err()
                why = problem
            if why:
                self._disconnectSelectable(owner, why, reads)
            elif (sock.reading and sock.readable) or (sock.writing and sock.writable):
                self._hot[sock] = None
        self.turn.began = 0.0


class Peer:
    """The far end of a socket."""

    sock: Socket
    patient = False
    """It does not read for now."""

    def received(self, data: bytes) -> None:
        """Bytes have arrived."""

    def ended(self, reset: bool) -> None:
        """The tunnel has closed or cut the connection."""


class Socket:
    """The tunnel's end of a connection. `peer` is at the other one."""

    family = socket.AF_INET

    def __init__(self, reactor: Reactor) -> None:
        self.peer: Peer | None = None
        self.owner: Any = None
        self.reading = self.writing = False
        self.readable = False
        self.writable = True
        self.closed = False
        self.read_total = 0
        self.reads: deque[tuple[int, float]] = deque()
        """How much was read in all, and when."""
        self.broken = False
        self.capacity = reactor.random.choice((4096, 65536, 1 << 20))
        self.slowness = 1.0
        self._reactor = reactor
        self._inbox = bytearray()
        self._eof = False
        self._error = 0
        self._connecting = 0
        self._held = 0
        """Bytes that were taken and that the peer has not read."""
        self._backlog: list[bytes] = []
        self._sent_at = self._come_at = 0.0
        self._linger = False
        self._finished = False
        self._cut = False
        """Nothing reaches the other end any more."""
        reactor.sockets[self] = None

    # What the tunnel's transports call

    @property
    def arrived(self) -> int:
        return len(self._inbox)

    def recv(self, size: int) -> bytes:
        if self._error:
            raise ConnectionResetError(self._error, "reset")
        inbox = self._inbox
        if not inbox:
            if self._eof:
                return b""
            raise BlockingIOError(EAGAIN, "later")
        random = self._reactor.random
        if random.random() < self._reactor.faults.short_read:
            size = min(size, random.randint(1, 40))
        if size >= len(inbox):
            data = bytes(inbox)
            inbox.clear()
            self.readable = self._eof
        else:
            data = bytes(inbox[:size])
            del inbox[:size]
        self.read_total += len(data)
        self.reads.append((self.read_total, self._reactor.now))
        return data

    def send(self, data: bytes) -> int:
        if self._error:
            raise ConnectionResetError(self._error, "reset")
        if self._finished:
            raise BrokenPipeError(32, "shut down")
        room = self.capacity - self._held
        size = min(len(data), room)
        reactor = self._reactor
        faults = reactor.faults
        draw = reactor.random.random()
        if draw < faults.short_send:
            size = min(size, reactor.random.randint(1, 60))
        elif draw < faults.short_send + faults.no_send:
            self.writable = False
            reactor.at(0.001 * reactor.random.random(), self._room)
            raise BlockingIOError(EAGAIN, "later")
        elif draw > 1.0 - faults.broken_send:
            self.break_off("a write failed")
            raise ConnectionResetError(104, "reset")
        if size <= 0:
            self.writable = False
            raise BlockingIOError(EAGAIN, "later")
        self._held += size
        if self._held >= self.capacity:
            self.writable = False
        piece = bytes(data[:size])
        if size > 1 and reactor.random.random() < faults.split:
            cut = reactor.random.randrange(1, size)
            self._carry(piece[:cut])
            piece = piece[cut:]
        self._carry(piece)
        return size

    def connect_ex(self, address: tuple[str, int]) -> int:
        if not self._connecting:
            self._connecting = EINPROGRESS
            self.writable = False
            self._reactor.dialled(self, *address)
            return EINPROGRESS
        return 0 if self._connecting < 0 else self._connecting

    def getsockopt(self, level: int, option: int) -> int:
        return max(0, self._connecting) if self._connecting != EINPROGRESS else 0

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if option == socket.SO_LINGER:
            self._linger = True

    def shutdown(self, how: int) -> None:
        if not self._finished:
            self._finished = True
            if not (how == 2 and self._inbox):
                self._later(self._tell_end, False)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._reactor.sockets.pop(self)
        if self._linger or self._inbox:
            # A close with unread input resets, and may overtake what was sent.
            self._cut = self._reactor.random.random() < 0.5
            self._later(self._tell_end, True)
        elif not self._finished:
            self._later(self._tell_end, False)
        self._inbox.clear()

    def fileno(self) -> int:
        return -1 if self.closed else 7

    def setblocking(self, flag: Any) -> None: ...

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 40000

    getsockname = getpeername

    # What the far end does

    def established(self, problem: int = 0) -> None:
        """An attempt to connect has ended."""
        if not self.closed:
            self._connecting = problem or -1
            self.readable = False
            self.writable = True
            self._reactor.wake(self)

    def put(self, data: bytes) -> None:
        """The far end sends; it arrives later, maybe in pieces."""
        reactor = self._reactor
        random = reactor.random
        if len(data) > 1 and random.random() < reactor.faults.split:
            cut = random.randrange(1, len(data))
            self._come(self._arrive, data[:cut])
            data = data[cut:]
        self._come(self._arrive, data)

    def pause(self, seconds: float) -> None:
        """What the far end sends next, it sends later."""
        self._come_at = max(self._come_at, self._reactor.now) + seconds

    def put_end(self) -> None:
        """The far end has sent all it will."""
        self._come(self._arrive_end)

    def break_off(self, why: str = "") -> None:
        """The connection is reset now; both ends find out."""
        if self._error or self.closed:
            return
        self._error = 104
        self.broken = True
        self._inbox.clear()
        self.readable = self.writable = True
        self._reactor.wake(self)
        self._cut = self._reactor.random.random() < 0.5
        self._later(self._tell_end, True)

    def drain(self) -> None:
        """The far end reads again."""
        backlog, self._backlog = self._backlog, []
        for data in backlog:
            self._take(data)

    # Inside

    def _delay(self) -> float:
        faults = self._reactor.faults
        draw = self._reactor.random.random()
        if draw < faults.spike:
            return 0.3 * self._reactor.random.random()
        return faults.latency * draw * self.slowness

    def _carry(self, data: bytes) -> None:
        self._later(self._take, data)

    def _later(self, call: Callable[..., Any], *args: Any) -> None:
        self._sent_at = max(self._sent_at, self._reactor.now + self._delay())
        self._reactor.at(self._sent_at - self._reactor.now, call, *args)

    def _come(self, call: Callable[..., Any], *args: Any) -> None:
        self._come_at = max(self._come_at, self._reactor.now + self._delay())
        self._reactor.at(self._come_at - self._reactor.now, call, *args)

    def _take(self, data: bytes) -> None:
        peer = self.peer
        if peer is None or self._cut:
            return
        if peer.patient:
            self._backlog.append(data)
            return
        self._held -= len(data)
        if not self.writable:
            self._room()
        peer.received(data)

    def _room(self) -> None:
        if self._held < self.capacity and not self.closed:
            self.writable = True
            if self.writing:
                self._reactor.wake(self)

    def _tell_end(self, reset: bool) -> None:
        if self._backlog and not reset:
            self._reactor.at(0.05, self._tell_end, reset)
            return
        if self.peer is not None:
            self.peer.ended(reset)

    def _arrive(self, data: bytes) -> None:
        if not self.closed and not self._error:
            self._inbox += data
            self.readable = True
            self._reactor.wake(self)

    def _arrive_end(self) -> None:
        if not self.closed and not self._error:
            self._eof = self.readable = True
            self._reactor.wake(self)


class Server(transports.Server):
    """An accepted connection, which notes when it was asked to write."""

    def __init__(self, sock: Socket, protocol: Any, reactor: Reactor) -> None:
        super().__init__(sock, protocol, ("127.0.0.1", 40000), _PORT, 0, reactor)  # type: ignore[arg-type]
        self._total = 0
        self.writes: deque[tuple[int, float]] = deque()

    @property
    def arrived(self) -> int:
        return self.socket.arrived

    def send(self, data: bytes | bytearray) -> bool:
        self._total += len(data)
        self.writes.append((self._total, self.reactor.now))
        return super().send(data)


class Client(transports.Client):
    def createInternetSocket(self) -> Any:
        reactor = self.connector.reactor
        # What it holds before it tells that it has too much: the less, the more is not written yet
        # when something happens.
        self.bufferSize = reactor.random.choice((1000, 1 << 16))
        return Socket(reactor)


class Connector(transports.Connector):
    def _makeTransport(self) -> Client:
        return Client(self.host, self.port, self.bindAddress, self, self.reactor)  # type: ignore[no-untyped-call]


class Port:
    """Where clients come in."""

    _realPortNumber = 11211

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 11211)

    def stopListening(self) -> None: ...


_PORT = Port()
REFUSED, UNREACHABLE = ECONNREFUSED, EHOSTUNREACH
