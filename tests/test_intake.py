"""The bytes of a frame that is not whole yet are kept, or read past, and never both.

Large frames are kept only as far as the budget goes (P6), and all that was reserved is given back.
`since` is the time of the unfinished frame's first byte, whatever came before or after it.
"""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtunnel.core.budget import Budget
from memtunnel.core.intake import SMALL_FRAME, Intake

LIMIT = 10_000


class Reader:
    """Reads frames of two bytes of length and a body, as a session reads its own."""

    def __init__(self, longest: int = 3000) -> None:
        self.budget = Budget(LIMIT)
        self.intake = Intake(self.budget)
        self.longest = longest
        self.frames: list[bytes | str] = []

    def receive(self, data: bytes, now: float) -> None:
        data = self.intake.feed(data, now)
        position = 0
        while position < len(data):
            left = len(data) - position
            size = 2 + int.from_bytes(data[position : position + 2], "big") if left >= 2 else 2
            if size - 2 > self.longest:
                if left < size:
                    self.intake.skip(size - left, position, now, self._skipped)
                    return
                self._skipped(now)
            elif left < size or left < 2:
                assert self.intake.keep(data, position, size, now)
                return
            else:
                self.frames.append(data[position + 2 : position + size])
            position += size

    def _skipped(self, now: float) -> None:
        self.frames.append(f"skipped at {now}")


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(2, "big") + body


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_without_an_unfinished_frame_bytes_pass_through(reader: Reader) -> None:
    assert reader.intake.feed(b"data", 1.0) == b"data"
    assert reader.intake.since == 0


def test_a_frame_that_was_begun_is_returned_when_enough_of_it_is_there(reader: Reader) -> None:
    assert reader.intake.keep(b"xxab", 2, 5, 1.0)
    assert reader.intake.feed(b"cd", 2.0) == b""
    assert reader.intake.feed(b"efg", 3.0) == b"abcdefg"
    assert reader.intake.feed(b"h", 4.0) == b"h"


def test_what_is_read_past_is_not_seen_and_then_its_turn_comes(reader: Reader) -> None:
    done: list[float] = []
    reader.intake.skip(5, 0, 1.0, done.append)
    assert reader.intake.feed(b"abc", 2.0) == b""
    assert done == []
    assert reader.intake.feed(b"defgh", 3.0) == b"fgh"
    assert done == [3.0]
    assert reader.intake.feed(b"i", 4.0) == b"i"
    assert done == [3.0]


def test_a_frame_read_past_to_its_last_byte_leaves_nothing(reader: Reader) -> None:
    done: list[float] = []
    reader.intake.skip(3, 0, 1.0, done.append)
    assert reader.intake.feed(b"abc", 2.0) == b""
    assert (done, reader.intake.since) == ([2.0], 0)


# --- since when


def test_since_is_the_first_byte_of_the_frame_however_it_comes(reader: Reader) -> None:
    for now, byte in enumerate(framed(b"abc")[:-1], start=1):
        reader.receive(bytes((byte,)), float(now))
        assert reader.intake.since == 1.0
    reader.receive(b"c", 9.0)
    assert (reader.frames, reader.intake.since) == ([b"abc"], 0)


def test_since_is_that_of_the_next_frame_once_one_is_whole(reader: Reader) -> None:
    frame = framed(b"abc")
    reader.receive(frame[:4], 1.0)
    reader.receive(frame[4:] + frame[:4], 5.0)
    assert reader.intake.since == 5.0


def test_since_counts_while_a_frame_is_read_past(reader: Reader) -> None:
    frame = framed(bytes(4000))
    reader.receive(frame[:1], 1.0)
    reader.receive(frame[1:100], 2.0)
    reader.receive(frame[100:200], 3.0)
    assert reader.intake.since == 1.0
    reader.receive(frame[200:], 4.0)
    assert (reader.frames, reader.intake.since) == (["skipped at 4.0"], 0)


def test_since_is_that_of_the_next_frame_once_one_is_read_past(reader: Reader) -> None:
    frame = framed(bytes(4000))
    reader.receive(frame[:100], 1.0)
    reader.receive(frame[100:] + b"\0", 8.0)
    assert reader.intake.since == 8.0, "its client has not been slow with it yet"


# --- memory


def test_p6_a_small_frame_needs_no_leave(reader: Reader) -> None:
    reader.budget.used = LIMIT
    assert reader.intake.keep(b"ab", 0, SMALL_FRAME, 1.0)
    assert reader.budget.used == LIMIT


def test_p6_a_large_frame_is_reserved_whole_and_given_back(reader: Reader) -> None:
    assert reader.intake.keep(b"ab", 0, 5000, 1.0)
    assert reader.budget.used == 5000
    reader.intake.feed(bytes(4998), 2.0)
    assert reader.budget.used == 0


def test_p6_where_there_is_no_memory_nothing_is_kept(reader: Reader) -> None:
    reader.budget.used = LIMIT - 4999
    assert not reader.intake.keep(b"ab", 0, 5000, 1.0)
    assert reader.budget.used == LIMIT - 4999
    assert reader.intake.feed(b"cd", 2.0) == b"cd"


@pytest.mark.parametrize("kept", [True, False])
def test_p6_a_client_that_leaves_in_the_middle_gives_all_back(reader: Reader, kept: bool) -> None:
    done: list[float] = []
    if kept:
        reader.intake.keep(b"ab", 0, 5000, 1.0)
    else:
        reader.intake.skip(5000, 0, 1.0, done.append)
    reader.intake.clear()
    reader.intake.clear()
    assert (reader.budget.used, reader.intake.since) == (0, 0)
    assert reader.intake.feed(b"cd", 2.0) == b"cd"
    assert done == []


# --- any chunking


bodies = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.integers(0, 4000).map(bytes),
    ),
    max_size=5,
)


@given(bodies, st.data())
def test_any_chunking_gives_the_same_frames_and_times(
    sent: list[bytes], data: st.DataObject
) -> None:
    reader = Reader()
    stream = b"".join(map(framed, sent))
    edges = st.lists(st.integers(0, len(stream)), max_size=6)
    cuts = sorted({0, len(stream), *data.draw(edges)})
    begins = [sum(len(body) + 2 for body in sent[:n]) for n in range(len(sent) + 1)]
    arrival: dict[int, float] = {}
    for now, (start, stop) in enumerate(pairwise(cuts), start=1):
        arrival.update(dict.fromkeys(range(start, stop), float(now)))
        reader.receive(stream[start:stop], float(now))
        begun = max(begin for begin in begins if begin <= stop)
        assert reader.intake.since == (arrival[begun] if begun < stop else 0)
        assert reader.budget.used <= 4002
    expected = [
        f"skipped at {arrival[end - 1]}" if len(body) > reader.longest else body
        for body, end in zip(sent, begins[1:], strict=True)
    ]
    assert reader.frames == expected
    assert reader.budget.used == 0
