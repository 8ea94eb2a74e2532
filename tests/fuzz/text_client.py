"""Whatever bytes a text client sends."""

import re

from fuzz.choices import taken_off
from fuzz.client import barely_swallowed, compare
from fuzz.mutation import Language, change_line, lines
from memtunnel.core.text_session import LONGEST_LINE, TextSession
from memtunnel.wire.numbers import signed
from memtunnel.wire.text import _VERBS

_NUMBER = re.compile(rb"[0-9]{8,}")
#: What is worth to be put into an input as a whole.
TOKENS = (
    *(verb + b" " for verb in _VERBS),
    *(b" " + flag for flag in (b"v", b"k", b"s", b"f", b"c", b"q", b"b", b"O1", b"T0", b"N0")),
    *(b" " + flag for flag in (b"C1", b"F1", b"ME", b"MA", b"MP", b"MR", b"MD", b"J1", b"D1")),
    b"key",
    b" noreply\r\n",
    b" 0 0 3\r\nabc\r\n",
    b" 3\r\nabc\r\n",
    b"set user1 x 0 6\r\nsecret\r\n",
    b"set k 0 0 12\r\nuser1 secret\r\n",
    b" HTTP/1.1\r\n",
    b"\r\n",
)
LANGUAGE = Language(lines, change_line)


def run(data: bytes) -> bool:
    choices = taken_off(data)
    told, compared = compare(TextSession, choices, comparable=not _has_brink(choices.rest))
    assert not told.received or told.received.endswith(b"\r\n")
    return compared


def _has_brink(data: bytes) -> bool:
    """Whether the cuts matter: that a line is too long shows only when its end is not there."""
    if len(data) >= LONGEST_LINE and max(map(len, data.split(b"\n"))) >= LONGEST_LINE:
        return True
    numbers = _NUMBER.findall(data)
    return any(barely_swallowed(signed(number) or 0, len(data)) for number in numbers)
