"""Text clients, servers and time in any order, and text and binary clients together.

The servers, the time and most promises are in `session_machine`, what a text client says and how it
reads what it is told in `text_speaker`; here is what it may do, and when.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule
from session_machine import LARGEST, SELDOM, SIZES, Machine, play
from test_session_machine import BinaryClients, BinarySpeaker
from text_speaker import NONSENSE, TextSpeaker

#: A verb and what follows the key. ``O`` is an opaque, ``C`` a CAS value that was read.
CLASSIC = (
    *("get", "gets", "gat", "gats", "set", "add", "replace", "append", "prepend", "cas"),
    *("set noreply", "add noreply", "replace noreply", "append noreply", "cas noreply"),
    *("delete", "delete noreply", "incr", "decr", "incr noreply", "touch", "touch noreply"),
    *("flush_all", "flush_all noreply", "stats", "stats settings", "stats reset"),
    *("version", "verbosity", "verbosity noreply"),
)
META = (
    *("mg O", "mg v O", "mg O v k c f s", "mg q v O", "mg k q O", "mg v T0 O", "mg O q v T0 c"),
    *("ms O", "ms k O c", "ms O T0 q", "ms ME O", "ms MR q O k", "ms C O c", "ms C MR q O"),
    *("ms MA O", "ms MP q O", "md O", "md q k O", "md C O", "md q C O"),
    *("ma O v", "ma q O", "ma MD v k c O", "ma N0 O v", "ma N0 q O", "mn"),
)
#: Without many of these there would be little to read.
USUAL = (
    *("get", "gets", "gat", "set", "set noreply", "cas", "delete"),
    *("mg v O", "mg c q v O", "ms O", "ms O T0 q", "ms C O", "mn"),
)

#: Commands whose block does not end where it should, or is too large.
ODD_BLOCKS = (
    *("set 0 0 %d", "set 0 0 %d noreply", "add 0 0 %d", "append 0 0 %d", "cas 0 0 %d 1"),
    *("ms %d", "ms %d q", "ms %d ME"),
)
#: How a client ends; the last ones with half a command.
ENDS = ("quit", "half-close", "browser", "endless line",
        "get k", "set k 0 0 9\r\nhalf", "ms k 3\r\nabc\r", "mg k v O1")  # fmt: skip

#: Commands, each with the numbers of its keys, of which most take only the first.
Commands = list[tuple[str, list[int]]]


def some_of(commands: Sequence[str]) -> st.SearchStrategy[Commands]:
    keys = st.lists(st.integers(0, 7), min_size=1, max_size=6)
    return st.lists(st.tuples(st.sampled_from(commands), keys), max_size=12)


class TextClients(Machine):
    """What text clients do."""

    kinds = (TextSpeaker,)

    @rule(pick=st.integers(0, 2), commands=some_of(CLASSIC), cut=SIZES)
    def text_client_asks(self, pick: int, commands: Commands, cut: int) -> None:
        self._ask_in_text(pick, commands, 0, cut)

    @rule(pick=st.integers(0, 2), commands=some_of(META), cut=SIZES)
    def text_client_asks_in_meta(self, pick: int, commands: Commands, cut: int) -> None:
        self._ask_in_text(pick, commands, 0, cut)

    @rule(
        pick=st.integers(0, 2),
        commands=some_of(USUAL),
        length=st.sampled_from((0, 0, LARGEST - 40)),
        cut=SIZES,
        served=st.booleans(),
    )
    def text_client_stores_and_reads(
        self, pick: int, commands: Commands, length: int, cut: int, served: bool
    ) -> None:
        self._ask_in_text(pick, commands, length, cut)
        if served:
            self.everything_is_served()

    @rule(
        pick=st.integers(0, 2),
        before=some_of(USUAL),
        odd=st.sampled_from(ODD_BLOCKS) | st.sampled_from(sorted(NONSENSE)),
        size=st.sampled_from((3, LARGEST + 1)),
        cut=SIZES,
    )
    def text_client_asks_for_something_odd(
        self, pick: int, before: Commands, odd: bytes | str, size: int, cut: int
    ) -> None:
        speaker = self.present(TextSpeaker, pick)
        if speaker is not None:
            for command, keys in before:
                speaker.ask(command, keys, 0)
            if isinstance(odd, bytes):
                speaker.ask_for_nonsense(odd)
            else:
                speaker.ask_with_odd_block(odd, size)
            speaker.feed(cut)

    def _ask_in_text(self, pick: int, commands: Commands, length: int, cut: int) -> None:
        speaker = self.present(TextSpeaker, pick)
        if speaker is not None:
            for command, keys in commands:
                speaker.ask(command, keys, length)
            speaker.feed(cut)

    @rule(
        pick=st.integers(0, 2),
        verb=st.sampled_from(("get", "gets", "gat", "gats")),
        number=st.integers(65, 400),
        cut=SIZES,
        seldom=SELDOM,
    )
    def text_client_asks_for_many_values(
        self, pick: int, verb: str, number: int, cut: int, seldom: bool
    ) -> None:
        """More than are taken in one turn, and more than memory may be asked for."""
        speaker = self.present(TextSpeaker, pick)
        if speaker is not None and seldom:
            speaker.ask_for_values(verb, [speaker.own(key % 4) for key in range(number)])
            speaker.feed(cut)

    @rule(pick=st.integers(0, 2), how=st.sampled_from(ENDS), seldom=SELDOM)
    def text_client_ends(self, pick: int, how: str, seldom: bool) -> None:
        speaker = self.present(TextSpeaker, pick)
        if speaker is not None and seldom:
            speaker.end(how)


class BothClients(TextClients, BinaryClients):
    """Text and binary clients of the same tunnel."""

    kinds = (TextSpeaker, BinarySpeaker)


def test_P1_to_P6_hold_for_text_whatever_happens() -> None:
    play(TextClients, 200)


def test_P1_to_P6_hold_for_text_and_binary_clients_together() -> None:
    play(BothClients, 100)


@pytest.mark.full
@pytest.mark.parametrize("machine", [TextClients, BothClients])
def test_P1_to_P6_hold_for_text_for_minutes(machine: type[Machine]) -> None:
    play(machine, 600)
