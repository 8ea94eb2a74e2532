"""A client that sends whatever it likes: what the targets of both clients' parsers share.

No bytes raise an exception or leave anything behind; what waits is counted and bounded at every
moment; and however the bytes are cut, the client hears the same and servers are asked the same.
"""

from collections import Counter
from typing import NamedTuple

from core_harness import Client, House

from fuzz.choices import Choices, pieces
from memtunnel.core.answers import FULL_REQUESTS
from memtunnel.core.gather import Gather
from memtunnel.core.intake import SMALL_LINE
from memtunnel.core.session import MAX_SWALLOW, REQUESTS_A_TURN, Session
from memtunnel.wire.binary import Frame
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
    asked: list[list[Frame]]
    """By server."""
    noticed: list[str]
    errors: dict[str, int]
    logins: dict[str, int]
    settled: list[Counter[tuple[int, str]]]
    """By server, and what the tunnel answered itself: empty where none answers, as the reason
    depends on the time."""


class Conversation:
    """One client and its tunnel, from its first byte to its last."""

    def __init__(self, protocol: type[Session], flags: int) -> None:
        self.flags = flags
        servers = 3 if flags & SEVERAL_SERVERS else 1
        known = flags & (LOGIN_REQUIRED | KNOWN_LOGIN)
        self.house = House(
            servers,
            0 if flags & OUTAGE else 1,
            limit=LITTLE if flags & TIGHT else 256 * 1024 * 1024,
            statistics=(("uptime", "1"),),
            max_value_size=LARGEST,
            credentials=CREDENTIALS if known else None,
            login_required=bool(flags & LOGIN_REQUIRED),
            errors_on_unavailable=bool(flags & ERRORS),
        )
        self.client = self.house.client(protocol)
        self.asked: list[list[Frame]] = [[] for _ in range(servers)]

    def send(self, piece: bytes) -> None:
        self.client.send(piece)
        check(self.house, self.client)
        session = self.client.session
        while session.held and not session.full:
            self.client.take_turn()
            check(self.house, self.client)
        if session.full or self.flags & SERVED_AT_ONCE:
            self.serve()

    def serve(self) -> None:
        """Until nothing moves."""
        session = self.client.session
        while True:
            self.client.take_turn()
            moved = bool(session.held)
            if self.house.links:
                for link, asked in zip(self.house.links, self.asked, strict=True):
                    link.pull()
                    moved |= bool(link.asked)
                    asked.extend(frame._replace(opaque=b"") for frame in link.asked)
                    link.deliver(link.execute())
                    assert link.distrust is None
            else:
                moved |= bool(session._owed) or self.house.servers[0].queued > 0
                self.house.pass_time(LONG)
            check(self.house, self.client)
            if not moved:
                return

    def end(self) -> bool:
        """Returns whether the tunnel has closed before the client did."""
        closed = self.client.closed
        if self.flags & LEAVES:
            self.client.leave()
            check(self.house, self.client)
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
    def settled(self) -> list[Counter[tuple[int, str]]]:
        if self.flags & OUTAGE:
            return []
        counts = [*self.house.server_counts, self.house.counts.local]
        return [Counter(each.settled) for each in counts]


def check(house: House, *clients: Client) -> None:
    """What waits is bounded, and all of it is counted; these are all clients that there are."""
    waiting = [
        request for server in house.servers for lane in server.queue for request in lane.waiting
    ]
    in_flight = [request for link in house.links for request in link.mux._entries.values()]
    unsent = [request for link in house.links for request in link.mux._unsent]
    gathers = {
        request.owner
        for request in (*waiting, *in_flight, *unsent)
        if isinstance(request.owner, Gather)
    }
    counted = sum(request.size for request in waiting)
    counted += sum(gather._reserved for gather in gathers)
    for client in clients:
        session = client.session
        intake = session.intake
        owed = session._owed
        stored = sum(len(request.answer) for request in owed if request.answer)
        assert len(owed) < FULL_REQUESTS + 2 * REQUESTS_A_TURN
        assert len(intake._buffer) <= max(intake._reserved, SMALL_LINE)
        assert session._stored == stored
        assert session.gone or session.owed_bytes == sum(request.size for request in owed)
        assert not session.out
        counted += len(session.held) + intake._reserved + stored
    assert house.budget.used == counted


def converse(protocol: type[Session], data: bytes, flags: int, sizes: list[int]) -> Told:
    """What comes of a client that sends these bytes so."""
    talk = Conversation(protocol, flags)
    for piece in pieces(data, sizes):
        if talk.client.closed:
            break
        talk.send(piece)
    closed = talk.end()
    talk.check_that_nothing_is_left()
    listener = talk.house.listener
    return Told(
        talk.client.received,
        closed,
        talk.asked,
        talk.client.noticed,
        listener.protocol_errors,
        listener.logins,
        talk.settled,
    )


def compare(protocol: type[Session], choices: Choices, *, comparable: bool) -> Told:
    """Send an input in pieces, and at once; where little memory is left, the cuts matter."""
    flags, sizes, rest = choices
    told = converse(protocol, rest, flags, list(sizes))
    if comparable and sizes and not flags & (TIGHT | LEAVES):
        whole = converse(protocol, rest, flags, [])
        for one, other in zip(told, whole, strict=True):
            assert one == other, (one, other)
    return told


def barely_swallowed(size: int, length: int) -> bool:
    """Whether a frame that is announced with `size` bytes is read past only if enough of it came
    with its header: what a client of so many bytes is told depends on the cuts then.
    """
    return MAX_SWALLOW - 64 <= size <= MAX_SWALLOW + length + 64
