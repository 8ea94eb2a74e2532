"""Binary clients, servers and time in any order: the promises hold after each step.

The servers, the time and most promises are in `session_machine`; here is what a binary client may
ask for, and how it reads what it is told.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from core_harness import NEVER_CREATE, O, bare, concat, count, get, opaque_of, store, touch
from hypothesis import strategies as st
from hypothesis.stateful import rule
from session_machine import LARGEST, SELDOM, SIZES, Expected, Machine, Speaker, play

from memtunnel.core.binary_session import BinarySession
from memtunnel.wire.binary import GETS, LOUD, QUIET, Frame, Status, request, split

COMMANDS = sorted(set(O) - {O.SASL_AUTH, O.SASL_STEP, O.SASL_LIST, O.QUIT, O.QUITQ})
#: Without many of these there would be little to read.
USUAL = [O.SET, O.SETQ, O.GET, O.GETK, O.GETKQ, O.NOOP]
#: Frames of which a client hears something else than of others: unknown, invalid, too large.
ODD = ("unknown", "invalid", "invalid quiet get", "set too large", "add too large")
ENDS = ("quit", "garbage", "half-close")


@dataclass
class ExpectedFrame(Expected):
    opcode: int
    opaque: bytes
    key: bytes = b""
    value: bytes = b""
    status: int | None = None
    """The only status that it may be answered with."""
    silent: bool = False
    """Whether nothing may come of it."""

    @property
    def may_be_silent(self) -> bool:
        return self.status is None and (self.silent or self.opcode in QUIET)


class BinarySpeaker(Speaker):
    """A client of the binary protocol."""

    protocol = BinarySession

    def ask(self, opcode: int, key_number: int, length: int) -> None:
        number = self.machine.next_number()
        key = b"shared" if key_number == 3 else self.own(key_number % 2)
        loud = LOUD[opcode]
        value = b""
        if loud in (O.SET, O.ADD, O.REPLACE):
            value = self.value(key, number).ljust(length, b"\x81")
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
            self.machine.asked[loud, key, value] += 1
        self.promise(frame, ExpectedFrame(opcode, opaque_of(number), key, value))

    def ask_for_something_odd(self, odd: str) -> None:
        number = self.machine.next_number()
        opaque = opaque_of(number)
        key = self.own(0)
        if odd == "unknown":
            frame = request(0x1B, b"k", extras=bytes(4), value=b"\x80" * 30, opaque=opaque)
            expected = ExpectedFrame(0x1B, opaque, status=Status.UNKNOWN_COMMAND)
        elif odd == "invalid":
            frame = request(O.GET, b"k", value=b"\x80" * 30, opaque=opaque)
            expected = ExpectedFrame(O.GET, opaque, status=Status.INVALID)
        elif odd == "invalid quiet get":
            frame = request(O.GETKQ, b"k" * 251, opaque=opaque)
            expected = ExpectedFrame(O.GETKQ, opaque, silent=True)
        else:
            opcode = O.SETQ if odd == "set too large" else O.ADD
            frame = store(key, b"\x80" * (LARGEST + 1), number, opcode)
            expected = ExpectedFrame(opcode, opaque, key, status=Status.TOO_LARGE)
            if opcode == O.SETQ:
                self.machine.asked[O.DELETE, key, b""] += 1
        self.promise(frame, expected)

    def end(self, how: str) -> None:
        self.closing = True
        self.feed_all()
        if how == "quit":
            number = self.machine.next_number()
            self.promise(bare(O.QUIT, number), ExpectedFrame(O.QUIT, opaque_of(number), status=0))
            self.feed_all()
        elif how == "garbage":
            # After a whole frame: before one it would be text.
            self.promise(bare(O.NOOP), ExpectedFrame(O.NOOP, bytes(4), status=0))
            self.feed_all()
            self.client.send(b"\x81garbage" * 10)
        else:
            self.client.half_close()

    def hear(self) -> None:
        frames, rest = split(self.client.received[self.heard :])
        assert not rest, "a part of a frame"
        self.heard = len(self.client.received)
        for frame in frames:
            self._hear(frame)

    def hear_the_end(self) -> None:
        while self.owed:
            self._pass_over()

    def _hear(self, frame: Frame) -> None:
        while self.owed and self._first.opaque != frame.opaque:
            self._pass_over()
        assert self.owed, f"an answer that nobody asked for: {frame}"
        expected = self._first
        assert frame.opcode == expected.opcode
        if expected.opcode == O.STAT and frame.status == 0 and frame.key:
            return  # the sequence goes on
        self.owed.popleft()
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
                self.read(expected.key, frame.value)
            else:
                self.missed(expected.key)
        elif expected.status is None:
            unavailable = self.machine.errors and frame.status == Status.TEMPORARY_FAILURE
            assert frame.status <= 0x06 or unavailable
            assert not (quiet and frame.status == 0)
            assert frame.status == 0 or frame.value, "an error without a body"
        self._settle(expected, frame.status)

    @property
    def _first(self) -> ExpectedFrame:
        expected = self.owed[0]
        assert isinstance(expected, ExpectedFrame)
        return expected

    def _pass_over(self) -> None:
        expected = self._first
        assert expected.may_be_silent, f"no answer to {expected}"
        self.owed.popleft()
        if LOUD[expected.opcode] not in GETS:
            self._settle(expected, 0)
        elif not expected.silent:
            self.missed(expected.key)

    def _settle(self, expected: ExpectedFrame, status: int) -> None:
        loud = LOUD[expected.opcode]
        if loud in (O.SET, O.ADD, O.REPLACE, O.DELETE):
            after = None if loud == O.DELETE or status == Status.TOO_LARGE else expected.value
            self.changed(expected.key, after, surely=status == 0)
        if loud == O.FLUSH and status == 0:
            self.flushed()


class BinaryClients(Machine):
    """What binary clients do."""

    kinds = (BinarySpeaker,)

    @rule(
        pick=st.integers(0, 2),
        opcodes=st.lists(st.sampled_from(COMMANDS), max_size=12),
        key=st.integers(0, 3),
        cut=SIZES,
    )
    def binary_client_asks(self, pick: int, opcodes: list[int], key: int, cut: int) -> None:
        self._ask(pick, opcodes, key, 0, cut)

    @rule(
        pick=st.integers(0, 2),
        opcodes=st.lists(st.sampled_from(USUAL), max_size=12),
        key=st.integers(0, 3),
        length=st.sampled_from((0, 0, LARGEST - 40)),
        cut=SIZES,
    )
    def binary_client_stores_and_reads(
        self, pick: int, opcodes: list[int], key: int, length: int, cut: int
    ) -> None:
        self._ask(pick, opcodes, key, length, cut)

    def _ask(self, pick: int, opcodes: list[int], key: int, length: int, cut: int) -> None:
        speaker = self.present(BinarySpeaker, pick)
        if speaker is not None:
            for step, opcode in enumerate(opcodes):
                speaker.ask(opcode, (key + step // 2) % 4, length)
            speaker.feed(cut)

    @rule(pick=st.integers(0, 2), odd=st.sampled_from(ODD), cut=st.integers(0, 300))
    def binary_client_asks_for_something_odd(self, pick: int, odd: str, cut: int) -> None:
        speaker = self.present(BinarySpeaker, pick)
        if speaker is not None:
            speaker.ask_for_something_odd(odd)
            speaker.feed(cut)

    @rule(pick=st.integers(0, 2), how=st.sampled_from(ENDS), seldom=SELDOM)
    def binary_client_ends(self, pick: int, how: str, seldom: bool) -> None:
        speaker = self.present(BinarySpeaker, pick)
        if speaker is not None and seldom:
            speaker.end(how)


def test_P1_to_P6_hold_whatever_happens() -> None:
    play(BinaryClients, 200)


@pytest.mark.full
def test_P1_to_P6_hold_for_minutes() -> None:
    play(BinaryClients, 1500)
