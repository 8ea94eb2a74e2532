"""Sessions, servers and time in any order: the promises hold after each step.

Each client has keys of its own and says what it wrote in the value (``key|writer|number``), so
that a foreign or an old value shows by itself. What a server is asked is carried out, answered
and delivered when the machine says so, or the connection is cut before.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from core_harness import (
    NEVER_CREATE,
    Client,
    House,
    Link,
    O,
    bare,
    concat,
    count,
    get,
    opaque_of,
    store,
    touch,
)
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

from memtunnel.core.tunnel import Policy
from memtunnel.wire.binary import GETS, LOUD, QUIET, Frame, Status, answer, request, split

LARGEST = 200
TIMEOUT = Policy().request_timeout
#: What the sizes of these small frames add to a deadline, and then some.
SLACK = 0.005

WRITES = (O.SET, O.SETQ, O.ADD, O.ADDQ, O.REPLACE, O.REPLACEQ, O.DELETE, O.DELETEQ)
COMMANDS = sorted(set(O) - {O.SASL_AUTH, O.SASL_STEP, O.SASL_LIST, O.QUIT, O.QUITQ})
#: Without many of these there would be little to read.
COMMANDS += [O.SET, O.SETQ, O.GET, O.GETK] * 8
#: Frames of which a client hears something else than of others: unknown, invalid, too large.
ODD = ("unknown", "invalid", "invalid quiet get", "set too large", "add too large")
#: Bytes that arrive together: in most cases all there are.
SIZES = st.just(10**6) | st.integers(0, 100)
REFUSALS = (0x02, 0x05, 0x20, 0x82, 0x85)
LIES = ("opaque", "opcode", "magic", "length")
ENDS = ("quit", "garbage", "half-close")
#: For what would leave too little to go on with if it came as often as all else.
SELDOM = st.sampled_from((True, False, False, False))


@dataclass
class Expected:
    """One request of a client, and what may come of it."""

    opcode: int
    opaque: bytes
    key: bytes
    value: bytes
    status: int | None = None
    """The only status that it may be answered with."""
    silent: bool = False
    """Whether nothing may come of it."""
    arrived: float = 0.0


@dataclass
class Speaker:
    """A client that knows what it is owed."""

    client: Client
    writer: int
    unsent: bytes = b""
    coming: deque[tuple[int, Expected]] = field(default_factory=deque)
    """Frames not sent to their end: (where that is in its stream, what is expected)."""
    fed: int = 0
    promised: int = 0
    owed: deque[Expected] = field(default_factory=deque)
    heard: int = 0
    """Bytes of what it received that were looked at."""
    possible: dict[bytes, set[bytes | None]] = field(default_factory=dict)
    """By key of its own: what a server may have for it, None for nothing."""
    left: bool = False
    closing: bool = False
    """Whether it sent what makes the tunnel close."""

    def promise(self, frame: bytes, expected: Expected) -> None:
        self.unsent += frame
        self.promised += len(frame)
        self.coming.append((self.promised, expected))

    def feed(self, size: int) -> None:
        part, self.unsent = self.unsent[:size], self.unsent[size:]
        self.fed += len(part)
        while self.coming and self.coming[0][0] <= self.fed:
            expected = self.coming.popleft()[1]
            expected.arrived = self.client.house.now
            self.owed.append(expected)
        self.client.send(part)
        self.client.take_turn()


class Sessions(RuleBasedStateMachine):
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
        self.failover = False

    @initialize(
        servers=st.integers(1, 2), failover=st.booleans(), limit=st.sampled_from((3000, 10**6))
    )
    def build(self, servers: int, failover: bool, limit: int) -> None:
        self.failover = failover
        self.house = House(servers, 2, limit=limit, failover=failover, max_value_size=LARGEST)

    # Clients

    def present(self, pick: int) -> Speaker | None:
        here = [s for s in self.speakers if not s.left and not s.closing]
        return here[pick % len(here)] if here else None

    @precondition(lambda self: sum(not s.left and not s.closing for s in self.speakers) < 3)
    @rule()
    def client_comes(self) -> None:
        self.speakers.append(Speaker(self.house.client(), len(self.speakers)))

    @rule(
        pick=st.integers(0, 2),
        opcodes=st.lists(st.sampled_from(COMMANDS), max_size=12),
        key=st.integers(0, 3),
        length=st.sampled_from((0, 0, LARGEST - 40)),
        cut=SIZES,
    )
    def client_asks(self, pick: int, opcodes: list[int], key: int, length: int, cut: int) -> None:
        speaker = self.present(pick)
        if speaker is None:
            return
        for step, opcode in enumerate(opcodes):
            self.ask(speaker, opcode, (key + step // 2) % 4, length)
        speaker.feed(cut)

    @rule(pick=st.integers(0, 2), odd=st.sampled_from(ODD), cut=st.integers(0, 300))
    def client_asks_for_something_odd(self, pick: int, odd: str, cut: int) -> None:
        speaker = self.present(pick)
        if speaker is None:
            return
        self.number += 1
        opaque = opaque_of(self.number)
        key = b"%d-own0" % speaker.writer
        value = b"\x80" * (LARGEST + 1)
        if odd == "unknown":
            frame = request(0x1B, b"k", extras=bytes(4), value=b"\x80" * 30, opaque=opaque)
            expected = Expected(0x1B, opaque, b"", b"", Status.UNKNOWN_COMMAND)
        elif odd == "invalid":
            frame = request(O.GET, b"k", value=b"\x80" * 30, opaque=opaque)
            expected = Expected(O.GET, opaque, b"", b"", Status.INVALID)
        elif odd == "invalid quiet get":
            frame = request(O.GETKQ, b"k" * 251, opaque=opaque)
            expected = Expected(O.GETKQ, opaque, b"", b"", silent=True)
        else:
            opcode = O.SETQ if odd == "set too large" else O.ADD
            frame = store(key, value, self.number, opcode)
            expected = Expected(opcode, opaque, key, b"", Status.TOO_LARGE)
            if opcode == O.SETQ:
                self.asked[O.DELETE, key, b""] += 1
        speaker.promise(frame, expected)
        speaker.feed(cut)

    @rule(pick=st.integers(0, 2), how=st.sampled_from(ENDS), seldom=SELDOM)
    def client_ends(self, pick: int, how: str, seldom: bool) -> None:
        speaker = self.present(pick)
        if speaker is None or not seldom:
            return
        speaker.closing = True
        speaker.feed(10**6)
        if how == "quit":
            self.number += 1
            opaque = opaque_of(self.number)
            speaker.promise(bare(O.QUIT, self.number), Expected(O.QUIT, opaque, b"", b"", 0))
            speaker.feed(10**6)
        elif how == "garbage":
            # After a whole frame: before one it would be text.
            speaker.promise(bare(O.NOOP), Expected(O.NOOP, bytes(4), b"", b"", 0))
            speaker.feed(10**6)
            speaker.client.send(b"\x81garbage" * 10)
        else:
            speaker.client.half_close()

    @rule(pick=st.integers(0, 2), seldom=SELDOM)
    def client_leaves(self, pick: int, seldom: bool) -> None:
        here = [s for s in self.speakers if not s.left]
        if here and seldom:
            speaker = here[pick % len(here)]
            speaker.left = True
            self.house.clients.remove(speaker.client)
            speaker.client.leave()

    def ask(self, speaker: Speaker, opcode: int, key_number: int, length: int) -> None:
        self.number += 1
        number = self.number
        key = b"%d-own%d" % (speaker.writer, key_number % 2)
        if key_number == 3:
            key = b"shared"
        loud = LOUD[opcode]
        value = b""
        if loud in (O.SET, O.ADD, O.REPLACE):
            value = (b"%s|%d|%d|" % (key, speaker.writer, number)).ljust(length, b"\x81")
            frame = store(key, value, number, opcode)
        elif loud in (O.APPEND, O.PREPEND):
            key, value = b"log", b"<%d>" % number
            frame = concat(key, value, number, opcode)
        elif loud in (O.INCR, O.DECR):
            key = b"counter%d" % number
            frame = count(key, number, opcode, expires=NEVER_CREATE if number % 3 else 0)
        elif loud in (O.TOUCH, O.GAT, O.GATK):
            frame = touch(key, number, opcode)
        elif loud in (O.GET, O.GETK, O.DELETE):
            frame = get(key, number, opcode)
        else:
            if loud == O.FLUSH and number % 4:
                opcode = loud = O.NOOP  # not to lose everything all the time
            key = b""
            frame = bare(opcode, number)
        if loud not in (O.GET, O.GETK, O.NOOP, O.VERSION):
            self.asked[loud, key, value] += 1
        speaker.promise(frame, Expected(opcode, opaque_of(number), key, value))

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

    @rule(pick=st.integers(0, 3), status=st.sampled_from(REFUSALS), seldom=SELDOM)
    def server_refuses(self, pick: int, status: int, seldom: bool) -> None:
        link = self.link(pick)
        if link is not None and seldom:
            link.pull()
            if link.asked:
                asked = link.asked.popleft()
                said = answer(asked.opcode, asked.opaque, status, value=b"because")
                self.answers[link] = self.answers.get(link, b"") + said
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

    @rule(pick=st.integers(0, 3), wrong=st.sampled_from(LIES), seldom=SELDOM)
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
        # P3: whatever happens upstream, nothing loud is unanswered past its deadline.
        self.listen()
        for speaker in self.speakers:
            if not speaker.left:
                for expected in speaker.owed:
                    late = self.house.now - expected.arrived - TIMEOUT
                    assert late < SLACK or may_be_silent(expected), (expected, late)

    # Promises

    @invariant()
    def listen(self) -> None:
        """P1, P2 and P4, of all that was heard since the last time."""
        for speaker in self.speakers:
            frames, rest = split(speaker.client.received[speaker.heard :])
            assert not rest, "a part of a frame"
            speaker.heard = len(speaker.client.received)
            for frame in frames:
                self.hear(speaker, frame)
            if speaker.client.closed and not speaker.left:
                assert speaker.closing, "closed without a reason"
                while speaker.owed:
                    self.unheard(speaker, speaker.owed.popleft())

    def hear(self, speaker: Speaker, frame: Frame) -> None:
        while True:
            assert speaker.owed, f"an answer that nobody asked for: {frame}"
            expected = speaker.owed[0]
            if frame.opaque == expected.opaque:
                break
            self.unheard(speaker, speaker.owed.popleft())
        assert frame.opcode == expected.opcode
        if expected.opcode == O.STAT and frame.status == 0 and frame.key:
            return  # the sequence goes on
        speaker.owed.popleft()
        assert not expected.silent
        if expected.status is not None:
            assert frame.status == expected.status
        loud = LOUD[frame.opcode]
        quiet = frame.opcode in QUIET
        if loud in GETS and expected.status is None:
            assert frame.status in ((0,) if quiet else (0, 1))
            if frame.status == 0:
                if loud in (O.GETK, O.GATK):
                    assert frame.key == expected.key
                assert frame.value.startswith(expected.key + b"|"), "a value of another key"
                self.read(speaker, expected.key, frame.value)
        elif expected.status is None:
            assert frame.status <= 0x06
            assert not (quiet and frame.status == 0)
            assert frame.status == 0 or frame.value, "an error without a body"
        self.settle(speaker, expected, frame.status)

    def unheard(self, speaker: Speaker, expected: Expected) -> None:
        assert may_be_silent(expected), f"no answer to {expected}"
        if LOUD[expected.opcode] not in GETS:
            self.settle(speaker, expected, 0)

    def read(self, speaker: Speaker, key: bytes, value: bytes) -> None:
        """P2: what a client reads of its own keys is what it wrote last."""
        if key != b"shared":
            assert int(value.split(b"|")[1]) == speaker.writer
            if not self.failover:
                assert value in speaker.possible.get(key, {None})

    def settle(self, speaker: Speaker, expected: Expected, status: int) -> None:
        """What a server may have from now on."""
        loud = LOUD[expected.opcode]
        if loud in (O.SET, O.ADD, O.REPLACE, O.DELETE):
            after = None if loud == O.DELETE or status == Status.TOO_LARGE else expected.value
            possible = speaker.possible.setdefault(expected.key, {None})
            if status == 0:
                possible.clear()
                possible.add(after)
            else:
                # It may have been carried out all the same, and so may what it would replace.
                possible.add(after)
        if loud == O.FLUSH and status == 0:
            speaker.possible = {}

    @invariant()
    def nothing_is_executed_twice(self) -> None:
        """P5."""
        for kind in self.asked:
            done = sum(each.executed[kind] for each in self.house.stores)
            most = len(self.house.servers) if kind[0] in (O.FLUSH, O.STAT) else 1
            assert done <= self.asked[kind] * most, kind

    @invariant()
    def memory_is_bounded(self) -> None:
        """P6."""
        budget = self.house.budget
        # What is no value waits for its turn all the same: little, for at most 1024 requests.
        small = sum(400 * len(speaker.owed) for speaker in self.speakers if not speaker.left)
        assert 0 <= budget.used <= budget.limit + small

    def teardown(self) -> None:
        """Once all is settled, nothing is left."""
        for speaker in self.speakers:
            if not speaker.left and not speaker.closing:
                speaker.feed(10**6)
        self.time_passes(0.5)
        for link in list(self.house.links):
            self.deliver(link, self.answers.pop(link, b""))
        self.house.serve()
        self.listen()
        for speaker in self.speakers:
            if not speaker.left:
                assert not [each for each in speaker.owed if not may_be_silent(each)]
        assert not self.house.pass_time(0.5)
        assert self.house.budget.used == 0
        assert not any(server.queued for server in self.house.servers)
        assert not any(link.mux.load for link in self.house.links)


def may_be_silent(expected: Expected) -> bool:
    if expected.status is not None:
        return False
    return expected.silent or expected.opcode in QUIET


def play(examples: int) -> None:
    run_state_machine_as_test(
        Sessions,
        settings=settings(max_examples=examples, stateful_step_count=100, deadline=None),
    )


def test_P1_to_P6_hold_whatever_happens() -> None:
    play(200)


@pytest.mark.full
def test_P1_to_P6_hold_for_minutes() -> None:
    play(3000)
