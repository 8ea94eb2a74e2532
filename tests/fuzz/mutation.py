"""New inputs, made of those that are kept.

A stream is taken for *units*: frames, or lines. Units are left out, repeated, exchanged, cut short
and taken from other inputs; what is in a unit is changed by what it means (a field of a frame, a
word of a line) or byte by byte. Most streams are short, since nearly all that can go wrong shows in
a few units. How a stream is cut (`fuzz.choices`) is drawn anew for each.
"""

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from fuzz.choices import put_before, taken_off
from memtunnel.core.mux import MAX_BODY
from memtunnel.core.session import MAX_SWALLOW
from memtunnel.wire.binary import HEADER_LENGTH, Opcode, Status

#: Bytes that a stream is begun with.
SHORT = 120
#: One in so many is begun with more, up to `LONGEST`: enough for a line that is too long.
LONG_ONE_IN = 40
LONGEST = 2500

_OPCODES = tuple(Opcode)
_STATUSES = tuple(Status)
_LENGTHS = (0, 1, 4, 8, 20, 24, 250, 251, 1024, 1025, 1200, 1201, 4096, 4097, 65535)
_BODIES = (*_LENGTHS, MAX_SWALLOW, MAX_SWALLOW + 1, MAX_BODY, MAX_BODY + 1, 0xFFFFFFFF)
_BYTES = b"\0\1\4\10\24\40\x80\x81\xff\r\n\t 09-kb"
_WORDS = (
    *b"-1 0 1 2 3 5 10 1200 1201 4097 65536 33554432 2147483648 4294967296 1.5 +1 01 x".split(),
    *b"18446744073709551615 18446744073709551616 99999999999999999999999".split(),
    *b"k key user1 secret noreply settings reset detail on dump memtunnel cachedump".split(),
    *b"v k s f t h l c q b I MS ME MA C1 F1 T0 N0 J1 D1 O12 YQ== Y=Q=YWJj".split(),
    *(b"k" * 250, b"k" * 251, b"O" + b"1" * 40, b"", b"\0"),
)


class Language(NamedTuple):
    """What a stream is made of."""

    units: Callable[[bytes], list[bytes]]
    """Cut a stream between its units."""
    change: Callable[[bytes, Random], bytes]
    """Change what a unit means."""
    head: Callable[[bytes], int] = lambda stream: 0
    """How long is what comes before the first unit: a number, and so many requests, each a byte."""


def frames(stream: bytes) -> list[bytes]:
    """Cut between frames; one that is not all there is the last."""
    found: list[bytes] = []
    position = 0
    while position < len(stream):
        body = int.from_bytes(stream[position + 8 : position + 12], "big")
        stop = position + HEADER_LENGTH + body
        found.append(stream[position:stop])
        position = stop
    return found


def change_frame(frame: bytes, random: Random) -> bytes:
    """Change a field of the header, or how long a part of the body is, with all that tells it."""
    if len(frame) < HEADER_LENGTH:
        return change_bytes(frame, random)
    changed = bytearray(frame)
    way = random.randrange(11)
    if way == 0:
        changed[1] = random.choice(_OPCODES)
    elif way == 1:
        changed[6:8] = random.choice(_STATUSES).to_bytes(2, "big")
    elif way == 2:
        changed[2:4] = random.choice(_LENGTHS).to_bytes(2, "big")
    elif way == 3:
        changed[4] = random.choice(_LENGTHS) & 0xFF
    elif way == 4:
        changed[8:12] = random.choice(_BODIES).to_bytes(4, "big")
    elif way == 5:
        changed[11] = changed[11] + random.randrange(-4, 5) & 0xFF
    elif way == 6:
        changed[15] = changed[15] + random.randrange(-4, 5) & 0xFF
    elif way == 7:
        changed[16:24] = random.randrange(4).to_bytes(8, "big")
    else:
        begin = HEADER_LENGTH
        extras = begin + changed[4]
        key = extras + int.from_bytes(changed[2:4], "big")
        if way == 8:
            stop = extras
            put = bytes(random.choice((0, 4, 8, 20)))
            changed[4] = len(put)
        elif way == 9:
            begin, stop = extras, key
            put = b"k" * random.choice((0, 1, 1, 2, 250, 251))
            changed[2:4] = len(put).to_bytes(2, "big")
        else:
            begin = stop = key
            del changed[key:]
            put = random.randbytes(random.choice((0, 1, 2, 8, 24, 1200, 1201)))
        changed[begin:stop] = put
        changed[8:12] = (len(changed) - HEADER_LENGTH).to_bytes(4, "big")
    return bytes(changed)


_LINES = re.compile(rb"[^\n]*\n|[^\n]+\Z")


def lines(stream: bytes) -> list[bytes]:
    """Cut behind each end of a line."""
    return _LINES.findall(stream)


def change_line(line: bytes, random: Random) -> bytes:
    """Change a word, leave it out, repeat it, or put another one before it."""
    end = line[len(line.rstrip(b"\r\n")) :]
    words = line[: len(line) - len(end)].split(b" ")
    place = random.randrange(len(words))
    way = random.randrange(4)
    if way == 0:
        words[place] = random.choice(_WORDS)
    elif way == 1:
        del words[place]
    elif way == 2:
        words.insert(place, words[place])
    else:
        words.insert(place, random.choice(_WORDS))
    return b" ".join(words) + end


def change_bytes(unit: bytes, random: Random) -> bytes:
    """Change a byte, put one in, or leave out or repeat a few."""
    changed = bytearray(unit)
    place = random.randrange(len(unit))
    stop = place + 1 + random.randrange(8)
    way = random.randrange(6)
    if way == 0:
        changed[place] = random.getrandbits(8)
    elif way == 1:
        changed[place] = random.choice(_BYTES)
    elif way == 2:
        changed[place] ^= 1 << random.randrange(8)
    elif way == 3:
        changed.insert(place, random.choice(_BYTES))
    elif way == 4:
        del changed[place:stop]
    else:
        changed[place:place] = changed[place:stop]
    return bytes(changed)


class Parts(NamedTuple):
    """An input taken apart."""

    flags: int
    head: bytes
    units: list[bytes]


class Mutator:
    """Makes inputs, the same ones for a seed. `tokens` are worth to be put in as a whole."""

    def __init__(
        self, language: Language, inputs: Sequence[bytes], tokens: Sequence[bytes], seed: int
    ) -> None:
        self._language = language
        self._tokens = tokens
        self._random = Random(seed)
        self._kept: list[Parts] = []
        for data in inputs:
            flags, _, rest = taken_off(data)
            head = language.head(rest)
            self._kept.append(Parts(flags, rest[:head], language.units(rest[head:])))
        self._long = [parts for parts in self._kept if sum(map(len, parts.units)) > SHORT]

    def draw(self) -> bytes:
        """The next input."""
        random = self._random
        long = random.randrange(LONG_ONE_IN) == 0
        flags, head, units = random.choice(self._long if long else self._kept)
        units = self._some(units, LONGEST if long else SHORT)
        while True:
            self._change(units)
            if random.getrandbits(1):
                break
        if head and not random.getrandbits(2):
            head = self._change_head(head)
        stream = b"".join(units)[:LONGEST]
        if random.getrandbits(1):
            # Each with one in eight: together they hide each other.
            flags = random.getrandbits(8) & random.getrandbits(8) & random.getrandbits(8)
        return put_before(head + stream, flags=flags, sizes=self._sizes(len(stream)))

    def _some(self, units: list[bytes], longest: int) -> list[bytes]:
        """Units that follow each other, of about so many bytes; none that is longer by itself."""
        start = self._random.randrange(len(units)) if units and self._random.getrandbits(1) else 0
        some: list[bytes] = []
        size = 0
        for unit in units[start:]:
            if size >= longest:
                break
            if len(unit) <= longest:
                some.append(unit)
                size += len(unit)
        return some

    def _change(self, units: list[bytes]) -> None:
        random = self._random
        way = random.randrange(16)
        place = random.randrange(len(units)) if units else 0
        if not units or way == 0:
            others = random.choice(self._kept).units
            start = random.randrange(len(others) + 1)
            units[place:place] = others[start : start + random.randrange(1, 4)]
        elif way == 1:
            del units[place]
        elif way == 2:
            units.insert(random.randrange(len(units) + 1), units[place])
        elif way == 3:
            other = random.randrange(len(units))
            units[place], units[other] = units[other], units[place]
        elif way == 4:
            units.insert(place, random.choice(self._tokens))
        elif unit := units[place]:
            at = random.randrange(len(unit))
            if way == 5:
                units[place] = unit[:at]
            elif way == 6:
                units[place] = unit[:at] + random.choice(self._tokens) + unit[at:]
            elif way < 11:
                units[place] = change_bytes(unit, random)
            else:
                units[place] = self._language.change(unit, random)

    def _change_head(self, head: bytes) -> bytes:
        """Put a request in, or in the place of another, or leave one out."""
        random = self._random
        place = random.randrange(1, len(head) + 1)
        put = random.randbytes(random.getrandbits(1))
        requests = head[1:place] + put + head[place + random.getrandbits(1) :]
        return bytes((len(requests) & 0xFF,)) + requests

    def _sizes(self, length: int) -> list[int]:
        """Lengths of pieces: up to all of it as a rule, now and then a few bytes."""
        random = self._random
        longest = max(1, min(length, 255 if random.getrandbits(3) else 8))
        return [random.randint(1, longest) for _ in range(random.randint(1, 3))]
