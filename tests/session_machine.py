"""Clients, servers and time in any order: what the machines for all kinds of clients share.

A `Speaker` is a client that knows what it is owed, and reads strictly. Each has keys of its own and
says what it wrote in the value (``key|writer|number``), so that a foreign or an old value shows by
itself. What a server is asked is carried out, answered and delivered when the machine says so, or
the connection is cut before. The promises P1 to P6 are looked at after each step.

What clients say, and how they read what they are told, is in the rules of each kind of client.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

from core_harness import House, Link, O
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from memtunnel.core.session import REQUESTS_A_TURN, Session
from memtunnel.core.tunnel import Policy
from memtunnel.wire.binary import Status, answer

LARGEST = 200
TIMEOUT = Policy().request_timeout
#: What the sizes of these small requests add to a deadline, and then some.
SLACK = 0.005

#: Bytes that arrive together: in most cases all there are.
SIZES = st.just(10**6) | st.integers(0, 100)
#: For what would leave too little to go on with if it came as often as all else.
SELDOM = st.sampled_from((True, False, False, False))

_REFUSALS = (0x02, 0x05, 0x20, 0x82, 0x85)
_LIES = ("opaque", "opcode", "magic", "length")


@dataclass(kw_only=True)
class Expected:
    """One request of a client, and what may come of it."""

    arrived: float = field(default=0.0, init=False)

    @property
    def requests(self) -> int:
        """How many requests to servers it takes."""
        return 1

    @property
    def may_be_silent(self) -> bool:
        raise NotImplementedError


class Speaker:
    """A client that knows what it is owed."""

    protocol: ClassVar[type[Session]]

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.client = machine.house.client(self.protocol)
        self.writer = len(machine.speakers)
        self.unsent = b""
        self.coming: deque[tuple[int, Expected]] = deque()
        """Requests not sent to their end: (where that is in its stream, what is expected)."""
        self.fed = 0
        self.promised = 0
        self.owed: deque[Expected] = deque()
        self.heard = 0
        """Bytes of what it received that were looked at."""
        self.possible: dict[bytes, set[bytes | None]] = {}
        """By key of its own: what a server may have for it, None for nothing."""
        self.left = False
        self.closing = False
        """Whether it sent what makes the tunnel close."""

    # Asking

    def own(self, number: int) -> bytes:
        return b"%d-own%d" % (self.writer, number)

    def value(self, key: bytes, number: int) -> bytes:
        return b"%s|%d|%d|" % (key, self.writer, number)

    def promise(self, request: bytes, expected: Expected) -> None:
        self.unsent += request
        self.promised += len(request)
        self.coming.append((self.promised, expected))

    def feed(self, size: int) -> None:
        part, self.unsent = self.unsent[:size], self.unsent[size:]
        self.fed += len(part)
        while self.coming and self.coming[0][0] <= self.fed:
            expected = self.coming.popleft()[1]
            expected.arrived = self.machine.house.now
            self.owed.append(expected)
        self.client.send(part)
        self.machine.take_turns()

    def feed_all(self) -> None:
        self.feed(10**6)

    # Hearing

    def hear(self) -> None:
        """Read what came since the last time: all of it is owed, in this order, and whole."""
        raise NotImplementedError

    def hear_the_end(self) -> None:
        """The tunnel has closed: nothing more will come of what is owed."""
        raise NotImplementedError

    # What follows from what was heard

    def changed(self, key: bytes, value: bytes | None, *, surely: bool) -> None:
        """A server has this value now, or it may: what was refused may be carried out late."""
        possible = self.possible.setdefault(key, {None})
        if surely:
            possible.clear()
        possible.add(value)

    def flushed(self) -> None:
        self.possible.clear()

    def read(self, key: bytes, value: bytes) -> None:
        """P1 and P2: what is read was written, and of its own keys it is what it wrote last."""
        assert self.machine.was_written(key, value), f"{value!r} is not a value of {key!r}"
        if self._is_own(key) and not self.machine.strayed:
            possible = self.possible.get(key, {None})
            assert value in possible, f"{value!r} is none of {possible}"

    def missed(self, key: bytes) -> None:
        """P2: where nothing went wrong, nothing that is there is missed."""
        if self._is_own(key) and self.machine.calm:
            possible = self.possible.get(key, {None})
            assert None in possible, f"{key!r} was missed, it is one of {possible}"

    def _is_own(self, key: bytes) -> bool:
        return key.startswith(b"%d-" % self.writer)


AnySpeaker = TypeVar("AnySpeaker", bound=Speaker)


class Machine(RuleBasedStateMachine):
    """The servers, the time, the promises. Each kind of client adds rules of its own.

    In an example Hypothesis leaves out about half of the rules. So there are clients of all `kinds`
    from the beginning, and several rules by which they ask for something.
    """

    kinds: ClassVar[tuple[type[Speaker], ...]]

    def __init__(self) -> None:
        super().__init__()
        self.house = House()
        self.speakers: list[Speaker] = []
        self.number = 0
        self.asked: Counter[tuple[int, bytes, bytes]] = Counter()
        """How often clients asked for what changes something."""
        self.answers: dict[Link, bytes] = {}
        self.unwelcome: set[Link] = set()
        """Those that said that the tunnel is not logged in."""
        self.errors = False
        """Whether clients are told of it where there is no answer from a server."""
        self.refused = False
        """Whether a server has refused anything."""

    @initialize(
        servers=st.integers(1, 2),
        failover=st.booleans(),
        errors=st.booleans(),
        limit=st.sampled_from((3000, 10**6)),
    )
    def build(self, servers: int, failover: bool, errors: bool, limit: int) -> None:
        self.errors = errors
        self.house = House(
            servers,
            2,
            limit=limit,
            failover=failover,
            errors_on_unavailable=errors,
            max_value_size=LARGEST,
        )
        for kind in self.kinds:
            self.speakers.append(kind(self))

    # Clients

    @precondition(lambda self: sum(not s.left and not s.closing for s in self.speakers) < 3)
    @rule(kind=st.integers(0, 1))
    def client_comes(self, kind: int) -> None:
        self.speakers.append(self.kinds[kind % len(self.kinds)](self))

    def present(self, kind: type[AnySpeaker], pick: int) -> AnySpeaker | None:
        here = [s for s in self.speakers if isinstance(s, kind) and not s.left and not s.closing]
        return here[pick % len(here)] if here else None

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def was_written(self, key: bytes, value: bytes) -> bool:
        """Whether anybody asked for this value to be stored."""
        return any(self.asked[loud, key, value] for loud in (O.SET, O.ADD, O.REPLACE))

    @property
    def strayed(self) -> bool:
        """Whether a server has served another's key: then older values may show."""
        return any(counts.failovers for counts in self.house.server_counts)

    @property
    def calm(self) -> bool:
        """Whether nothing has happened yet for which a value might be missed."""
        return not (
            self.refused or self.house.degraded or self.strayed or self.asked[O.FLUSH, b"", b""]
        )

    @rule(pick=st.integers(0, 2), seldom=SELDOM)
    def client_leaves(self, pick: int, seldom: bool) -> None:
        here = [s for s in self.speakers if not s.left]
        if here and seldom:
            speaker = here[pick % len(here)]
            speaker.left = True
            self.house.clients.remove(speaker.client)
            speaker.client.leave()

    # Servers

    def link(self, pick: int) -> Link | None:
        links = self.house.links
        return links[pick % len(links)] if links else None

    @precondition(lambda self: len(self.house.links) < 4)
    @rule(pick=st.integers(0, 1))
    def connection_becomes_warm(self, pick: int) -> None:
        self.house.connect(pick % len(self.house.servers))

    @precondition(lambda self: not all(server.connections for server in self.house.servers))
    @rule(pick=st.integers(0, 1))
    def dial_fails(self, pick: int) -> None:
        servers = self.house.servers
        servers[pick % len(servers)].dial_failed(self.house.now)
        self.house.tunnel.flush()

    @rule(pick=st.integers(0, 3), most=st.integers(0, 8), size=SIZES)
    def server_works(self, pick: int, most: int, size: int) -> None:
        """What was sent reaches a server, some is carried out, some of the answers arrive."""
        link = self.link(pick)
        if link is not None:
            said = self.answers.get(link, b"") + link.execute(most)
            self.answers[link] = said[size:]
            self.deliver(link, said[:size])

    def deliver(self, link: Link, data: bytes) -> None:
        """What a server says rightly, be it late, never costs its connection."""
        link.deliver(data)
        assert link.distrust is None or link in self.unwelcome

    @rule(pick=st.integers(0, 3), status=st.sampled_from(_REFUSALS), seldom=SELDOM)
    def server_refuses(self, pick: int, status: int, seldom: bool) -> None:
        link = self.link(pick)
        if link is not None and seldom:
            link.pull()
            if link.asked:
                asked = link.asked.popleft()
                said = answer(asked.opcode, asked.opaque, status, value=b"because")
                self.answers[link] = self.answers.get(link, b"") + said
                self.refused = True
                if status == Status.AUTH_FAILED:
                    self.unwelcome.add(link)

    @rule()
    def everything_is_served(self) -> None:
        for link in list(self.house.links):
            self.deliver(link, self.answers.pop(link, b""))
        self.house.serve()

    @rule(pick=st.integers(0, 3), works=st.integers(0, 5), seldom=SELDOM)
    def connection_is_lost(self, pick: int, works: int, seldom: bool) -> None:
        link = self.link(pick)
        if link is not None and seldom:
            link.execute(works)  # what was written last may be carried out all the same
            link.lose()

    @rule(pick=st.integers(0, 3), wrong=st.sampled_from(_LIES), seldom=SELDOM)
    def server_lies(self, pick: int, wrong: str, seldom: bool) -> None:
        link = self.link(pick)
        if link is None or not seldom or self.answers.get(link):
            return
        said = bytearray(link.execute(1))
        if not said:
            return
        if wrong == "opaque":
            said[12:16] = bytes(byte ^ 0x55 for byte in said[12:16])
        elif wrong == "opcode":
            said[1] ^= 0x40
        elif wrong == "magic":
            said[0] = 0x80
        else:
            said[2:4] = b"\xff\xff"
        link.deliver(bytes(said))
        assert link.distrust is not None

    @rule(pick=st.integers(0, 3), seldom=SELDOM)
    def connection_drains(self, pick: int, seldom: bool) -> None:
        link = self.link(pick)
        if link is not None and seldom:
            link.server.drain(link.mux)

    @rule(seconds=st.sampled_from((0.001, 0.05, 0.2, 0.39, 0.41, 1.1)))
    def time_passes(self, seconds: float) -> None:
        self.house.pass_time(seconds)
        while self.take_turns():
            self.house.pass_time(0)
        # P3: whatever happens upstream, nothing loud is unanswered past its deadline.
        self.listen()
        for speaker in self.speakers:
            if not speaker.left:
                for expected in speaker.owed:
                    late = self.house.now - expected.arrived - TIMEOUT
                    assert late < SLACK or expected.may_be_silent, (expected, late)

    def take_turns(self) -> bool:
        """Requests that were held back are taken, as far as there is room; whether any were."""
        taken = False
        for speaker in self.speakers:
            session = speaker.client.session
            if speaker.left or not session.held:
                continue
            if any(expected.requests > REQUESTS_A_TURN for expected in speaker.owed):
                # The keys of a long line count from their turn on, and so does what is behind them.
                for expected in speaker.owed:
                    expected.arrived = self.house.now
            while session.held and not session.full:
                speaker.client.take_turn()
                taken = True
        return taken

    # Promises

    @invariant()
    def listen(self) -> None:
        """P1, P2 and P4, of all that was heard since the last time."""
        self.take_turns()
        for speaker in self.speakers:
            if speaker.left:
                continue
            speaker.hear()
            if speaker.client.closed:
                assert speaker.closing, "closed without a reason"
                speaker.hear_the_end()
                assert not speaker.owed, f"no answer to {speaker.owed[0]}"

    @invariant()
    def nothing_is_executed_twice(self) -> None:
        """P5; and nothing that nobody asked for."""
        executed: Counter[tuple[int, bytes, bytes]] = Counter()
        for store in self.house.stores:
            executed.update(store.executed)
        for kind, done in executed.items():
            if kind[0] not in (O.GET, O.GETK):
                most = len(self.house.servers) if kind[0] in (O.FLUSH, O.STAT) else 1
                assert done <= self.asked[kind] * most, kind

    @invariant()
    def memory_is_bounded(self) -> None:
        """P6."""
        budget = self.house.budget
        # What is no value waits for its turn all the same: little, for at most 1024 requests.
        here = [speaker for speaker in self.speakers if not speaker.left]
        small = sum(400 * expected.requests for speaker in here for expected in speaker.owed)
        assert 0 <= budget.used <= budget.limit + small

    def teardown(self) -> None:
        """Once all is settled, nothing is left."""
        for speaker in self.speakers:
            if not speaker.left and not speaker.closing:
                speaker.feed_all()
        self.time_passes(0.5)
        for link in list(self.house.links):
            self.deliver(link, self.answers.pop(link, b""))
        self.house.serve()
        self.listen()
        for speaker in self.speakers:
            if not speaker.left:
                assert not [each for each in speaker.owed if not each.may_be_silent]
        assert not self.house.pass_time(0.5)
        assert self.house.budget.used == 0
        assert not any(server.queued for server in self.house.servers)
        assert not any(link.mux.load for link in self.house.links)


def play(machine: type[Machine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=examples, stateful_step_count=100, deadline=None),
    )
