"""A whole tunnel without a reactor: real servers, multiplexers, sessions; all else is told here.

A `House` is a `Tunnel` with its servers, `Link`s are connections to them, at whose other end a
`Store` does what memcached does, and a `Client` is what a program on this machine sees. Time
stands still until a test moves it.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, NamedTuple

from memtunnel.core.binary_session import BinarySession
from memtunnel.core.budget import Budget
from memtunnel.core.cluster import Cluster
from memtunnel.core.mux import Multiplexer
from memtunnel.core.outcomes import STATUS_WORDS, Distrust, Notable
from memtunnel.core.request import Request
from memtunnel.core.routing import router
from memtunnel.core.server import Server
from memtunnel.core.session import Session
from memtunnel.core.tunnel import Policy, Tunnel
from memtunnel.wire.binary import (
    GETS,
    LOUD,
    QUIET,
    Frame,
    Opcode,
    Status,
    answer,
    refusal,
    request,
    split,
)
from memtunnel.wire.sasl import Credentials

O = Opcode  # noqa: E741
_ARITHMETIC = Struct(">QQI")
NEVER_CREATE = 0xFFFFFFFF


# What a client may say


def opaque_of(number: int) -> bytes:
    return number.to_bytes(4, "big")


def get(key: bytes, number: int = 0, opcode: int = O.GET) -> bytes:
    """GET, GETK, DELETE and their quiet forms: a key and nothing else."""
    return request(opcode, key, opaque=opaque_of(number))


def store(
    key: bytes, value: bytes, number: int = 0, opcode: int = O.SET, *, flags: int = 0, cas: int = 0
) -> bytes:
    """SET, ADD, REPLACE and their quiet forms."""
    extras = flags.to_bytes(4, "big") + bytes(4)
    return request(opcode, key, extras=extras, value=value, opaque=opaque_of(number), cas=cas)


def concat(key: bytes, value: bytes, number: int = 0, opcode: int = O.APPEND) -> bytes:
    return request(opcode, key, value=value, opaque=opaque_of(number))


def count(
    key: bytes,
    number: int = 0,
    opcode: int = O.INCR,
    *,
    delta: int = 1,
    initial: int = 0,
    expires: int = 0,
) -> bytes:
    """INCR and DECR; with ``expires=NEVER_CREATE`` a missing counter stays missing."""
    extras = _ARITHMETIC.pack(delta, initial, expires)
    return request(opcode, key, extras=extras, opaque=opaque_of(number))


def touch(key: bytes, number: int = 0, opcode: int = O.TOUCH) -> bytes:
    return request(opcode, key, extras=bytes(4), opaque=opaque_of(number))


def bare(opcode: int, number: int = 0, key: bytes = b"") -> bytes:
    """NOOP, VERSION, QUIT, FLUSH without extras, STAT (which may have a key)."""
    return request(opcode, key, opaque=opaque_of(number))


def login(message: bytes, number: int = 0, mechanism: bytes = b"PLAIN") -> bytes:
    return request(O.SASL_AUTH, mechanism, value=message, opaque=opaque_of(number))


# What a server does


class Store:
    """A model of memcached: one item is (flags, value, cas)."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.items: dict[bytes, tuple[bytes, bytes, int]] = {}
        self.executed: Counter[tuple[int, bytes, bytes]] = Counter()
        """How often each (loud opcode, key, value) was carried out."""
        self.statistics: dict[bytes, bytes] = {b"pid": b"7", b"curr_items": b"5", b"version": b"1"}
        self._cas = 0

    def speak(self, frame: Frame) -> bytes:
        """What memcached says to a client itself: nothing where a quiet request went well."""
        loud = LOUD[frame.opcode]
        said = self.execute(frame._replace(opcode=loud))
        if frame.opcode == loud:
            return said
        status = int.from_bytes(said[6:8], "big")
        dropped = Status.NOT_FOUND if loud in GETS else Status.OK
        return b"" if status == dropped else said[:1] + bytes((frame.opcode,)) + said[2:]

    def execute(self, frame: Frame) -> bytes:
        """Carry out a loud request; what came of it."""
        opcode, key, opaque = frame.opcode, frame.key, frame.opaque
        self.executed[opcode, key, frame.value] += 1
        item = self.items.get(key)
        if opcode == O.NOOP:
            return answer(opcode, opaque)
        if opcode == O.STAT:
            return self._stat(frame)
        if opcode == O.FLUSH:
            self.items.clear()
            return answer(opcode, opaque)
        if opcode in GETS or opcode == O.TOUCH:
            named = key if opcode in (O.GETK, O.GATK) else b""
            if item is None:
                if named:
                    return answer(opcode, opaque, Status.NOT_FOUND, key=key)
                return refusal(opcode, opaque, Status.NOT_FOUND)
            flags, value, cas = item
            value = b"" if opcode == O.TOUCH else value
            return answer(opcode, opaque, extras=flags, key=named, value=value, cas=cas)
        if frame.cas and (item is None or item[2] != frame.cas):
            status = Status.NOT_FOUND if item is None else Status.EXISTS
            return refusal(opcode, opaque, status)
        return self._change(frame, item)

    def _change(self, frame: Frame, item: tuple[bytes, bytes, int] | None) -> bytes:
        opcode, key, opaque = frame.opcode, frame.key, frame.opaque
        if opcode == O.DELETE:
            if self.items.pop(key, None) is None:
                return refusal(opcode, opaque, Status.NOT_FOUND)
            return answer(opcode, opaque)
        if opcode in (O.APPEND, O.PREPEND):
            if item is None:
                return refusal(opcode, opaque, Status.NOT_STORED)
            parts = (item[1], frame.value) if opcode == O.APPEND else (frame.value, item[1])
            return self._keep(frame, item[0], b"".join(parts))
        if opcode in (O.INCR, O.DECR):
            delta, initial, expires = _ARITHMETIC.unpack(frame.extras)
            if item is None and expires == NEVER_CREATE:
                return refusal(opcode, opaque, Status.NOT_FOUND)
            if item is not None and not item[1].isdigit():
                return refusal(opcode, opaque, Status.NON_NUMERIC)
            number = initial
            if item is not None:
                number = int(item[1]) + (delta if opcode == O.INCR else -delta)
                number = max(number, 0) & 0xFFFFFFFFFFFFFFFF
            said = self._keep(frame, bytes(4), b"%d" % number)
            cas = int.from_bytes(said[16:24], "big")
            return answer(opcode, opaque, value=number.to_bytes(8, "big"), cas=cas)
        assert opcode in (O.SET, O.ADD, O.REPLACE), opcode
        if opcode == O.ADD and item is not None:
            return refusal(opcode, opaque, Status.EXISTS)
        if opcode == O.REPLACE and item is None:
            return refusal(opcode, opaque, Status.NOT_FOUND)
        return self._keep(frame, frame.extras[:4], frame.value)

    def _keep(self, frame: Frame, flags: bytes, value: bytes) -> bytes:
        self._cas += 1
        self.items[frame.key] = flags, value, self._cas
        return answer(frame.opcode, frame.opaque, cas=self._cas)

    def _stat(self, frame: Frame) -> bytes:
        if frame.key not in (b"", b"settings", b"reset"):
            return refusal(O.STAT, frame.opaque, Status.NOT_FOUND)
        told = {} if frame.key == b"reset" else self.statistics
        frames = [answer(O.STAT, frame.opaque, key=k, value=v) for k, v in told.items()]
        return b"".join([*frames, answer(O.STAT, frame.opaque)])


# What counts


@dataclass
class Counts:
    """Of a server, or of what the tunnel answers itself."""

    failovers: int = 0
    retries: dict[str, int] = field(default_factory=dict)
    settled: list[tuple[int, str]] = field(default_factory=list)

    def answered(
        self,
        command: int,
        status: int,
        arrived: float,
        sent: float,
        received: float,
        now: float,
        number: int = 1,
    ) -> None:
        assert number > 0
        assert arrived <= received <= now
        assert not sent or arrived <= sent <= received
        self.settled += [(command, STATUS_WORDS[status])] * number


@dataclass
class AllCounts:
    """Of the tunnel as a whole."""

    local: Counts = field(default_factory=Counts)
    told: list[tuple[int, str]] = field(default_factory=list)

    def degraded(self, command: int, reason: str) -> None:
        self.told.append((command, str(reason)))


@dataclass
class ListenerCounts:
    received_bytes: int = 0
    sent_bytes: int = 0
    logins: dict[str, int] = field(default_factory=dict)
    protocol_errors: dict[str, int] = field(default_factory=dict)


class Noted(NamedTuple):
    """What `Tunnel` tells of a request that is worth to be seen."""

    request: Request
    why: Notable
    status: int
    received: float
    now: float
    size: int


# Who takes part


class Client:
    """A client and its connection to the tunnel."""

    def __init__(self, house: "House", protocol: type[Session] = BinarySession) -> None:
        self.house = house
        self.session = protocol(house.tunnel, house.listener, self)
        self.received = b""
        self.writes = 0
        """How often something was written to it."""
        self.noticed: list[str] = []
        """What its owner should hear of."""
        self.closed = False
        """Whether the tunnel has closed the connection."""
        self.ended = False
        """Whether it has closed its own side."""

    def write(self, data: bytes) -> bool:
        assert data
        assert not self.closed, "an answer after the close"
        self.received += data
        self.writes += 1
        return True

    def look(self) -> None:
        if self.session.finished:
            self.closed = True

    def notice(self, what: str) -> None:
        self.noticed.append(what)

    def send(self, *parts: bytes) -> None:
        """Send each part by itself."""
        for part in parts:
            if part and not self.closed:
                self.session.receive(part, self.house.now)
                self.house.tunnel.flush()

    def take_turn(self) -> None:
        """Take frames that were held back, if there is room, as the connection does."""
        if self.session.held and not self.session.full:
            self.session.go_on(self.house.now)
            if self.ended:
                self.session.finish()
            self.house.tunnel.flush()

    def half_close(self) -> None:
        """Send nothing more, but go on reading."""
        self.ended = True
        self.session.finish()
        self.house.tunnel.flush()

    def leave(self) -> None:
        self.session.lose(self.house.now)
        self.house.tunnel.flush()

    @property
    def frames(self) -> list[Frame]:
        """What it received."""
        frames, rest = split(self.received)
        assert not rest, "a part of a frame"
        return frames

    @property
    def told(self) -> list[tuple[int, int, int]]:
        """What it received, in short: (opcode, opaque, status)."""
        return [
            (frame.opcode, int.from_bytes(frame.opaque, "big"), frame.status)
            for frame in self.frames
        ]


class Link:
    """A warm connection to a server."""

    def __init__(self, house: "House", server: Server, store: Store, first_opaque: int) -> None:
        self.house = house
        self.server = server
        self.store = store
        number = len(house.links) + 1
        self.mux = Multiplexer(first_opaque, lambda: None, house.policy.max_value_size, number)
        self.asked: deque[Frame] = deque()
        """Requests that reached the server, which it has not carried out."""
        self.distrust: Distrust | None = None
        server.add(self.mux, house.now)

    @property
    def opcodes(self) -> list[int]:
        """What reached the server and was not carried out, by opcode."""
        self.pull()
        return [frame.opcode for frame in self.asked]

    def pull(self) -> None:
        """Let what was sent reach the server."""
        frames, rest = split(self.mux.take(self.house.now))
        assert not rest, "a part of a request was sent"
        for frame in frames:
            assert frame.opcode not in QUIET, "a quiet request was sent"
        self.asked += frames

    def execute(self, most: int | None = None) -> bytes:
        """Let the server carry out its first requests; its answers, not delivered yet."""
        self.pull()
        number = len(self.asked) if most is None else min(most, len(self.asked))
        return b"".join(self.store.execute(self.asked.popleft()) for _ in range(number))

    def refuse(self, status: int, body: bytes = b"because") -> bytes:
        """The server's answers where it says this to each request."""
        self.pull()
        said = [answer(f.opcode, f.opaque, status, value=body) for f in self.asked]
        self.asked.clear()
        return b"".join(said)

    def deliver(self, *parts: bytes) -> None:
        """Let the tunnel read each part by itself."""
        for part in parts:
            if part and self.distrust is None:
                try:
                    if self.mux.receive(part, self.house.now):
                        self.server.answered()
                except Distrust as distrust:
                    self.distrust = distrust
                    self.lose()
                self.house.tunnel.flush()

    def lose(self) -> None:
        """The connection is gone."""
        self.house.links.remove(self)
        self.server.lose(self.mux, self.house.now)
        self.house.tunnel.flush()


class House:
    """A tunnel, its servers, and the time."""

    def __init__(
        self,
        servers: int = 1,
        connections: int = 1,
        *,
        limit: int = 256 * 1024 * 1024,
        statistics: Iterable[tuple[str, str]] = (),
        credentials: Credentials | None = None,
        **policy: Any,
    ) -> None:
        self.now = 1000.0
        self.policy = Policy(**policy)
        self.budget = Budget(limit)
        self.counts = AllCounts()
        self.listener = ListenerCounts()
        self.noted: list[Noted] = []
        self.wakes = 0
        names = [f"server{index}" for index in range(servers)]
        self.router = router("modula", names)
        self.server_counts = [Counts() for _ in names]
        self.servers = [
            Server(name, self.server_counts[index], self.budget) for index, name in enumerate(names)
        ]
        self.stores = [Store(name) for name in names]
        self.tunnel = Tunnel(
            self.policy,
            Cluster(self.servers, self.router, credentials),
            self.budget,
            self.counts,
            self._wake,
            lambda key: statistics if key == b"memtunnel" else None,
            note=lambda *what: self.noted.append(Noted(*what)),
        )
        self.links: list[Link] = []
        self._next_opaque = 0xFFFFFFF0
        for _ in range(connections):
            for index in range(servers):
                self.connect(index)
        self.clients: list[Client] = []

    def _wake(self) -> None:
        self.wakes += 1

    def connect(self, index: int = 0) -> Link:
        """A connection becomes warm."""
        link = Link(self, self.servers[index], self.stores[index], self._next_opaque)
        # Far from each other, so that no answer matches on the wrong connection by chance.
        self._next_opaque += 0x01000000
        self.links.append(link)
        self.tunnel.flush()
        return link

    def client(self, protocol: type[Session] = BinarySession) -> Client:
        client = Client(self, protocol)
        self.clients.append(client)
        return client

    def key_on(self, index: int, number: int = 0) -> bytes:
        """The key with this number among those of a server."""
        found = -1
        candidate = 0
        while True:
            key = b"key%d" % candidate
            found += self.router.server_of(key) == index
            if found == number:
                return key
            candidate += 1

    def serve(self) -> None:
        """Let everything run until nothing moves."""
        moved = True
        while moved:
            moved = False
            for client in self.clients:
                moved |= bool(client.session.held and not client.session.full)
                client.take_turn()
            for link in list(self.links):
                answers = link.execute()
                moved |= bool(answers)
                link.deliver(answers)

    def pass_time(self, seconds: float) -> bool:
        """Let time pass, and sweep. Returns whether there is more to watch."""
        self.now += seconds
        return self.tunnel.sweep(self.now)

    @property
    def degraded(self) -> list[tuple[int, str]]:
        return self.counts.told
