"""Whatever is sent, given up, answered late, in any order and in any pieces: a multiplexer and a
model of it agree.

The model is a server that keeps what it was asked, answers in any order into a stream of bytes,
and now and then lies. After each step: each request was settled at most once and with its own
answer (P1), and load, tombstones and what each lane has in flight are the model's.
"""

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from recording import Counts, Recorder, ask, bare

from memtunnel.core.budget import Budget
from memtunnel.core.lane import Lane
from memtunnel.core.mux import MAX_BODY, Multiplexer
from memtunnel.core.outcomes import Desync, Distrust, Lost, Reason
from memtunnel.core.request import Request
from memtunnel.core.server import Server
from memtunnel.wire.binary import (
    GETS,
    HEADER_LENGTH,
    LOUD,
    MAX_KEY_LENGTH,
    Opcode,
    Status,
    answer,
    split,
)

MAX_VALUE = 40
LANES = 3
OPCODES = (
    Opcode.GET,
    Opcode.GETKQ,
    Opcode.GAT,
    Opcode.SET,
    Opcode.SETQ,
    Opcode.DELETE,
    Opcode.INCR,
    Opcode.TOUCH,
    Opcode.FLUSH,
    Opcode.STAT,
)
STATUSES = (Status.OK, Status.NOT_FOUND, Status.EXISTS, Status.NOT_STORED, Status.BUSY)


@dataclass(eq=False)
class Asked:
    """A request that was written, as the server knows it."""

    request: Request
    opaque: bytes
    replied: bool = False
    """Whether its last frame is in the stream."""
    parted: bool = False
    """Whether frames of a STAT's sequence are."""


@dataclass(eq=False)
class Said:
    """A frame in the server's stream."""

    asked: Asked
    frame: bytes
    last: bool
    oversize: bool
    seen: int = 0
    """Bytes of it that were delivered."""
    announced: bool = False
    judged: bool = False


class MuxMachine(RuleBasedStateMachine):
    """`lane_load` is the model of what each lane has in flight, `unsent` of what waits."""

    @initialize(first=st.sampled_from((0, 7, 0xFFFFFFF8, 0xFFFFFFFF)))
    def connect(self, first: int) -> None:
        self.now = 1.0
        self.wakes = 0
        self.owner = Recorder()
        self.expected: list[tuple[Request, bytes | Reason]] = []
        self.statistics: list[tuple[Request, bytes]] = []
        self.growth: list[tuple[Request, int]] = []
        self.given_up: set[Request] = set()
        self.server = Server("server", Counts(), Budget(1 << 20))
        self.lanes = [Lane(self.server) for _ in range(LANES)]
        self._dial(first)

    def _dial(self, first: int) -> None:
        self.mux = Multiplexer(first, self._wake, MAX_VALUE)
        self.server.connections = [self.mux]
        self.woken = False
        self.unsent: list[Request] = []
        self.flying: list[Asked] = []
        self.stream: list[Said] = []
        self.lane_load = dict.fromkeys(self.lanes, 0)
        for lane in self.lanes:
            lane.mux = None

    def _wake(self) -> None:
        assert not self.woken, "woken twice for one write"
        self.woken = True

    # The client's side

    @rule(
        lane=st.integers(0, LANES - 1),
        opcode=st.sampled_from(OPCODES),
        size=st.integers(0, 60),
    )
    def send(self, lane: int, opcode: Opcode, size: int) -> None:
        value = bytes(size) if LOUD[opcode] == Opcode.SET else b""
        request = ask(self.owner, opcode, lane=self.lanes[lane], value=value, arrived=self.now)
        self.lanes[lane].send(request, self.now)
        self.unsent.append(request)
        self.lane_load[self.lanes[lane]] += 1

    @rule()
    def beat(self) -> None:
        """A NOOP of the connection's own belongs to no lane."""
        request = ask(self.owner, Opcode.NOOP, arrived=self.now)
        self.mux.send(request)
        self.unsent.append(request)

    @rule()
    def take(self) -> None:
        self.now += 1
        taken = self.mux.take(self.now)
        frames, rest = split(taken)
        assert rest == b""
        written = [request for request in self.unsent if request not in self.given_up]
        assert [frame.opcode for frame in frames] == [LOUD[each.opcode] for each in written]
        flying = {asked.opaque for asked in self.flying}
        for frame, request in zip(frames, written, strict=True):
            assert frame.opaque not in flying, "an opaque in flight was given again"
            flying.add(frame.opaque)
            assert request.sent == self.now
            self.flying.append(Asked(request, frame.opaque))
        self.unsent.clear()
        self.woken = False

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), back=st.integers(0, 3))
    def wrap(self, data: Any, back: int) -> None:
        """2 ** 32 requests have passed, and the next opaque is one in flight or just before it."""
        asked = data.draw(st.sampled_from(self.flying))
        self.mux._next = (int.from_bytes(asked.opaque, "big") - back) & 0xFFFFFFFF

    @precondition(lambda self: self._alive())
    @rule(data=st.data())
    def abandon(self, data: Any) -> None:
        """A deadline has passed, or a client has left."""
        request = data.draw(st.sampled_from(self._alive()))
        lane = request.lane
        if not request.sent or LOUD[request.opcode] in (Opcode.GET, Opcode.GETK):
            self.lane_load[lane] -= 1
        self.given_up.add(request)
        self.mux.abandon(request, self.now)
        assert request.answer is None
        request.answer = b""

    @precondition(lambda self: self._orphans())
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        """A client has left a whole write: it is still to be sent."""
        data.draw(st.sampled_from(self._orphans())).owner = None

    def _alive(self) -> list[Request]:
        """What may be given up: owned, neither settled nor given up, and not the connection's."""
        carried = self.unsent + [asked.request for asked in self.flying]
        return [
            request
            for request in carried
            if request.lane and request.owner is not None and request not in self.given_up
        ]

    def _orphans(self) -> list[Request]:
        return [
            request
            for request in self._alive()
            if not request.sent and LOUD[request.opcode] not in (Opcode.GET, Opcode.GETK)
        ]

    # The server's side

    def _unreplied(self) -> list[Asked]:
        return [asked for asked in self.flying if not asked.replied]

    @precondition(lambda self: self._unreplied())
    @rule(data=st.data(), status=st.sampled_from(STATUSES), size=st.integers(0, MAX_VALUE + 20))
    def reply(self, data: Any, status: Status, size: int) -> None:
        asked = data.draw(st.sampled_from(self._unreplied()))
        asked.replied = True
        loud = LOUD[asked.request.opcode]
        if loud == Opcode.STAT and (asked.parted or not status):
            status, size = Status.OK, 0
        frame = answer(loud, asked.opaque, status, value=bytes(size), cas=len(self.stream))
        oversize = size > MAX_VALUE and loud in GETS
        self.stream.append(Said(asked, frame, last=True, oversize=oversize))

    @precondition(
        lambda self: any(each.request.opcode == Opcode.STAT for each in self._unreplied())
    )
    @rule(data=st.data(), size=st.integers(0, MAX_VALUE + 1))
    def part(self, data: Any, size: int) -> None:
        """One more statistic of a sequence."""
        stats = [each for each in self._unreplied() if each.request.opcode == Opcode.STAT]
        asked = data.draw(st.sampled_from(stats))
        asked.parted = True
        frame = answer(Opcode.STAT, asked.opaque, key=b"name", value=bytes(size))
        self.stream.append(Said(asked, frame, last=False, oversize=False))

    @precondition(lambda self: self.stream)
    @rule(data=st.data(), whole=st.booleans())
    def deliver(self, data: Any, whole: bool) -> None:
        """Some bytes of the stream arrive: frames merged, or cut anywhere."""
        left = b"".join(said.frame[said.seen :] for said in self.stream)
        chunk = left if whole else left[: data.draw(st.integers(1, len(left)))]
        self.now += 1
        answered = self._judge(len(chunk))
        assert self.mux.receive(chunk, self.now) == answered

    def _judge(self, size: int) -> int:
        """What follows from `size` more bytes of the stream; how many clients get an answer."""
        answered = 0
        while self.stream and size:
            said = self.stream[0]
            step = min(size, len(said.frame) - said.seen)
            said.seen += step
            size -= step
            whole = said.seen == len(said.frame)
            if not said.judged:
                if whole or (said.oversize and said.seen >= HEADER_LENGTH):
                    said.judged = True
                    answered += self._arrived(said)
                elif said.seen >= HEADER_LENGTH and not said.announced:
                    said.announced = True
                    if self._wanted(said.asked.request):
                        body = len(said.frame) - HEADER_LENGTH
                        self.growth.append((said.asked.request, body))
            if whole:
                self.stream.pop(0)
        return answered

    def _wanted(self, request: Request) -> bool:
        """Whether anybody waits for the outcome, before this step's bytes were received."""
        told = any(settled is request for settled, _ in self.expected)
        return request.owner is not None and not told and request not in self.given_up

    def _arrived(self, said: Said) -> int:
        request = said.asked.request
        wanted = self._wanted(request)
        lane = request.lane
        if wanted and said.oversize:
            self.expected.append((request, Reason.TOO_LARGE))
        elif wanted and said.last:
            self.expected.append((request, bare(said.frame)))
        elif wanted:
            self.statistics.append((request, said.frame))
        if not said.last:
            return 0
        self.flying.remove(said.asked)
        if lane is None:
            return 0
        reads = LOUD[request.opcode] in (Opcode.GET, Opcode.GETK)
        if not (reads and request in self.given_up):
            self.lane_load[lane] -= 1
        status = int.from_bytes(said.frame[6:8], "big")
        data = LOUD[request.opcode] != Opcode.STAT
        return int(wanted and data and status < Status.AUTH_FAILED)

    # The end

    @rule(data=st.data(), kind=st.sampled_from((*Desync, Lost.LOGIN_LOST)), first=st.integers(0, 9))
    def lie(self, data: Any, kind: Desync | Lost, first: int) -> None:
        """After all that is true something wrong, and after that the truth again."""
        lie = self._lie(data, kind)
        if lie is None:
            return
        truth = b"".join(said.frame[said.seen :] for said in self.stream)
        later = b"".join(
            answer(LOUD[asked.request.opcode], asked.opaque) for asked in self._unreplied()
        )
        cut = len(truth) + data.draw(st.integers(0, len(lie) - 1))
        self.now += 1
        self._judge(len(truth))
        distrust = None
        for chunk in (
            (truth + lie + later,)
            if data.draw(st.booleans())
            else (
                (truth + lie)[:cut],
                (truth + lie)[cut:] + later,
            )
        ):
            try:
                self.mux.receive(chunk, self.now)
            except Distrust as caught:
                distrust = caught
                break
        assert distrust is not None, "a lie was believed"
        if kind == Lost.LOGIN_LOST:
            assert (distrust.lost, distrust.kind) == (Lost.LOGIN_LOST, None)
        else:
            assert (distrust.lost, distrust.kind) == (Lost.DESYNC, kind)
        self.agree_on_outcomes()
        self.lose(first)

    def _lie(self, data: Any, kind: Desync | Lost) -> bytes | None:
        """A frame that is wrong in one way once the stream is delivered; None if none can be."""
        unreplied = self._unreplied()
        flying = {asked.opaque for asked in unreplied}
        if kind == Desync.MAGIC:
            magic = data.draw(st.integers(0, 255).filter(lambda byte: byte != 0x81))
            return bytes((magic,)) + bytes(data.draw(st.integers(0, 40)))
        if kind == Desync.OPAQUE:
            # Near those in flight, so among them duplicates and what was not written yet.
            base = data.draw(st.sampled_from([asked.opaque for asked in self.flying] or [bytes(4)]))
            number = int.from_bytes(base, "big") + data.draw(st.integers(-3, 3))
            opaque = (number & 0xFFFFFFFF).to_bytes(4, "big")
            opcode = data.draw(st.sampled_from([LOUD[opcode] for opcode in OPCODES]))
            return None if opaque in flying else answer(opcode, opaque)
        if not unreplied:
            return None
        asked = data.draw(st.sampled_from(unreplied))
        loud = LOUD[asked.request.opcode]
        if kind == Desync.OPCODE:
            opcode = data.draw(st.integers(0, 255).filter(lambda opcode: opcode != loud))
            return answer(opcode, asked.opaque)
        if kind == Desync.LENGTH:
            frame = bytearray(answer(loud, asked.opaque, key=b"key"))
            if data.draw(st.booleans()):
                return answer(loud, asked.opaque, key=bytes(MAX_KEY_LENGTH + 1))
            bodies = (0, 2, MAX_BODY + 1, 0xFFFFFFFF)
            frame[8:12] = data.draw(st.sampled_from(bodies)).to_bytes(4, "big")
            return bytes(frame[:HEADER_LENGTH])
        if loud in GETS or loud == Opcode.NOOP:
            return answer(loud, asked.opaque, Status.AUTH_FAILED, value=b"Auth failure.")
        return None

    @rule(first=st.sampled_from((0, 0xFFFFFFFE)))
    def lose(self, first: int) -> None:
        """The connection is lost, and all it carried comes back once; another is made."""
        written, unsent = self.mux.lose()
        assert written == [asked.request for asked in self.flying]
        assert unsent == [request for request in self.unsent if request not in self.given_up]
        assert (self.mux.load, self.mux.unsent_bytes) == (0, 0)
        for request in written + unsent:
            assert request.mux is None
            if request.owner is not None:
                request.owner.failed(request, Reason.UPSTREAM_LOST, self.now)
                self.expected.append((request, Reason.UPSTREAM_LOST))
        for lane in self.lanes:
            lane.take_back([])
        self._dial(first)

    # Always

    @invariant()
    def agree_on_outcomes(self) -> None:
        assert self.owner.outcomes == self.expected
        assert self.owner.statistics == self.statistics
        assert self.owner.growth == self.growth

    @invariant()
    def settled_at_most_once(self) -> None:
        settled = [request for request, _ in self.owner.outcomes]
        assert len(settled) == len(set(settled))
        assert not self.given_up & set(settled)

    @invariant()
    def agree_on_what_is_carried(self) -> None:
        tombstones = [asked for asked in self.flying if asked.request.owner is None]
        assert self.mux.in_flight == len(self.flying)
        assert self.mux.tombstones == len(tombstones)
        unsent = [request for request in self.unsent if request not in self.given_up]
        assert self.mux.load == len(self.flying) + len(unsent)
        assert self.mux.unsent_bytes == sum(request.size for request in unsent)
        assert self.woken == bool(self.unsent)

    @invariant()
    def agree_on_lanes(self) -> None:
        for lane in self.lanes:
            assert lane.in_flight == self.lane_load[lane]
            assert not lane.waiting


MuxMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestMultiplexer = MuxMachine.TestCase
