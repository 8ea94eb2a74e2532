"""What the first bytes of an input decide."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import NamedTuple

#: An input may name as many lengths of pieces, each one byte.
MOST_SIZES = 7
#: So many pieces show what cuts do; more would only take time.
MOST_PIECES = 64


class Choices(NamedTuple):
    """`flags` are eight yes or no; `sizes` the lengths of pieces, over and over."""

    flags: int
    sizes: Sequence[int]
    rest: bytes


def taken_off(data: bytes) -> Choices:
    """The choices at the front of an input, and what is left of it."""
    flags = data[0] if data else 0
    number = data[1] % (MOST_SIZES + 1) if len(data) > 1 else 0
    sizes = [size or 256 for size in data[2 : 2 + number]]
    return Choices(flags, sizes, data[2 + number :])


def put_before(rest: bytes, *, flags: int = 0, sizes: Sequence[int] = ()) -> bytes:
    """The input that makes these choices."""
    return bytes((flags, len(sizes), *sizes)) + rest


def pieces(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """Of these lengths, over and over; at last, or where there are none, all the rest at once."""
    at = 0
    if sizes:
        for size in islice(cycle(sizes), MOST_PIECES):
            yield data[at : at + size]
            at += size
            if at >= len(data):
                return
    if at < len(data):
        yield data[at:]
