"""A client that sends whatever it likes: what the targets of both clients' parsers share.

No bytes raise an exception or leave anything behind; what waits is counted and bounded at every
moment; and however the bytes are cut, the client hears the same and servers are asked the same.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from core_harness import House

from fuzz.choices import Choices, pieces
from fuzz.houses import give_back, taken
from memtunnel.core.answers import FULL_REQUESTS
from memtunnel.core.gather import Gather
from memtunnel.core.intake import SMALL_LINE
from memtunnel.core.session import MAX_SWALLOW, REQUESTS_A_TURN, Session
from memtunnel.wire.sasl import Credentials, Secret

# The choices, each a bit.
SEVERAL_SERVERS = 1
LOGIN_REQUIRED = 2
SERVED_AT_ONCE = 4  # each piece is answered before the next one comes
TIGHT = 8  # hardly any memory
LEAVES = 16  # the client leaves, instead of waiting for its answers
ERRORS = 32  # `--on-unavailable error`
OUTAGE = 64  # no server answers
KNOWN_LOGIN = 128

#: Small, so that short inputs go beyond them: bytes of a value, and of memory in all.
LARGEST = 1200
LITTLE = 3000
#: More seconds than any deadline has.
LONG = 6.0
CREDENTIALS = Credentials(username="user1", password=Secret("secret"))


class Told(NamedTuple):
    """What is the same for all ways to cut an input."""

    received: bytes
    closed: bool
    """Whether the tunnel was the first to close."""
    asked: list[list[tuple[Any, ...]]]
    """By server: frames without the opaque."""
    noticed: list[str]
    errors: dict[str, int]
    logins: dict[str, int]
    settled: list[list[tuple[int, str]]]
    """By server, and what the tunnel answered itself, in no order: empty where none answers, as the
    reason depends on the time."""


def _build(flags: int) -> House:
    known = flags & (LOGIN_REQUIRED | KNOWN_LOGIN)
    return House(
        3 if flags & SEVERAL_SERVERS else 1,
        connections=0,
        limit=LITTLE if flags & TIGHT else 256 * 1024 * 1024,
        statistics=(("uptime", "1"),),
        max_value_size=LARGEST,
        credentials=CREDENTIALS if known else None,
        login_required=bool(flags & LOGIN_REQUIRED),
        errors_on_unavailable=bool(flags & ERRORS),
    )


class Conversation:
    """One client and its tunnel, from its first byte to its last."""

    def __init__(self, house: House, protocol: type[Session], flags: int) -> None:
        self.house = house
        self.client = house.client(protocol)
        self.flags = flags
        self.asked: list[list[tuple[Any, ...]]] = [[] for _ in house.servers]

    def send(self, piece: bytes) -> None:
        client = self.client
        client.send(piece)
        check(self.house)
        session = client.session
        while session.held and not session.full:
            client.take_turn()
            check(self.house)
        if self.flags & SERVED_AT_ONCE or session.full:
            self.serve()

    def serve(self) -> None:
        """Until nothing moves."""
        house, client = self.house, self.client
        while True:
            client.take_turn()
            moved = bool(client.session.held)
            if self.flags & OUTAGE:
                moved |= bool(client.session._owed) or house.servers[0].queued > 0
                house.pass_time(LONG)
            for link, asked in zip(house.links, self.asked, strict=False):
                if link.mux.unsent_bytes:
                    moved = True
                    link.pull()
                    asked += [frame[:3] + frame[4:] for frame in link.asked]
                    link.deliver(link.execute())
                    assert link.distrust is None
            if not moved:
                return
            check(house)

    def end(self) -> bool:
        """Returns whether the tunnel has closed before the client did."""
        closed = self.client.closed
        if self.flags & LEAVES:
            self.client.leave()
            check(self.house)
        elif not closed:
            self.client.half_close()
        self.serve()
        return closed

    def check_that_nothing_is_left(self) -> None:
        house, session = self.house, self.client.session
        assert session.finished
        assert self.client.closed or self.flags & LEAVES
        assert house.budget.used == 0
        assert session.owed_bytes == 0 or session.gone
        assert not session.held
        assert not session.out
        assert not house.tunnel.ready
        for link in house.links:
            assert not link.mux.load
            assert not link.mux.unsent_bytes
        for server in house.servers:
            assert not server.queued
            assert not server.queue
        house.pass_time(LONG)
        assert not house.pass_time(LONG), "a deadline of nothing"

    @property
    def settled(self) -> list[list[tuple[int, str]]]:
        if self.flags & OUTAGE:
            return []
        counts = (*self.house.server_counts, self.house.counts.local)
        return [sorted(each.settled) for each in counts]


def check(house: House) -> None:
    """What waits is bounded, and all of it is counted."""
    # Written out in loops, since it is called after each piece, and most find nothing.
    counted = 0
    gathers: set[Gather] = set()
    for server in house.servers:
        for lane in server.queue:
            for request in lane.waiting:
                counted += request.size
                if isinstance(request.owner, Gather):
                    gathers.add(request.owner)
    for link in house.links:
        mux = link.mux
        if mux.load:
            for request in (*mux._entries.values(), *mux._unsent):
                if isinstance(request.owner, Gather):
                    gathers.add(request.owner)
    for gather in gathers:
        counted += gather._reserved
    for client in house.clients:
        session = client.session
        intake = session.intake
        owed = session._owed
        size = stored = 0
        if owed:
            assert len(owed) < FULL_REQUESTS + 2 * REQUESTS_A_TURN
            for request in owed:
                size += request.size
                if request.answer:
                    stored += len(request.answer)
        reserved = intake._reserved
        kept = len(intake._buffer)
        assert kept <= reserved or kept <= SMALL_LINE
        assert session._stored == stored
        assert session.owed_bytes == size or session.gone
        assert not session.out
        counted += len(session.held) + reserved + stored
    assert house.budget.used == counted


def converse(protocol: type[Session], data: bytes, flags: int, sizes: Sequence[int]) -> Told:
    """What comes of a client that sends these bytes so."""
    kind = flags & ~(SERVED_AT_ONCE | LEAVES)
    house = taken(kind, lambda: _build(flags), 0 if flags & OUTAGE else 1)
    talk = Conversation(house, protocol, flags)
    client = talk.client
    for piece in pieces(data, sizes):
        if client.closed:
            break
        talk.send(piece)
    closed = talk.end()
    talk.check_that_nothing_is_left()
    heard = house.listener
    told = Told(
        client.received,
        closed,
        talk.asked,
        client.noticed,
        heard.protocol_errors,
        heard.logins,
        talk.settled,
    )
    give_back(kind, house)
    return told


def compare(protocol: type[Session], choices: Choices, *, comparable: bool) -> tuple[Told, bool]:
    """Send an input in pieces and, where the cuts must not matter, at once.

    They do where little memory is left, and where the client leaves after some of its answers: the
    server answers in between, or it has room for no more requests.
    """
    flags, sizes, rest = choices
    told = converse(protocol, rest, flags, sizes)
    answered = flags & SERVED_AT_ONCE or len(rest) > FULL_REQUESTS
    if not sizes or not comparable or flags & TIGHT or (flags & LEAVES and answered):
        return told, False
    whole = converse(protocol, rest, flags, ())
    assert told == whole, f"cut: {told}\nat once: {whole}"
    return told, True


def barely_swallowed(size: int, length: int) -> bool:
    """Whether a frame that is announced with `size` bytes is read past only if enough of it came
    with its header: what a client of so many bytes is told depends on the cuts then.
    """
    return MAX_SWALLOW - 64 <= size <= MAX_SWALLOW + length + 64
