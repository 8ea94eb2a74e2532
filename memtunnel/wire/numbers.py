"""Numbers in the text protocol, read as memcached reads them: with C's strtoul and its like.

They take a sign and blanks before the digits and anything behind a blank, and keep 32 bits of what
has 64. A client that sends the wrong thing sees every one of these habits.
"""

import re
from struct import Struct
from typing import Final

#: Bytes that a block may be announced with, the line's end after it left out.
LONGEST_BLOCK: Final = (1 << 31) - 3

#: A time of expiry that has always passed. Negative ones mean that; in binary they would not.
_LONG_AGO: Final = 30 * 24 * 3600 + 1
_BITS_64: Final = (1 << 64) - 1
_HALF_64: Final = 1 << 63
_EXPIRY: Final = Struct(">I")
_NUMBER: Final = re.compile(rb"[\t-\r ]*([+-]?)([0-9]+)(?:[\t-\r ]|\Z)")
#: What is at least meant as a number.
_BEGIN: Final = re.compile(rb"[\t-\r ]*[+-]?[0-9]")


def is_meant_as_number(word: bytes) -> bool:
    """Whether a word begins as numbers do, be it one or not."""
    return _BEGIN.match(word) is not None


def unsigned(word: bytes) -> int | None:
    """A number of 64 bits as memcached reads it, which takes some negative ones; None if none."""
    if len(word) < 20 and word.isdigit():
        return int(word)
    value = _signed(word)
    if value is None or abs(value) > _BITS_64:
        return None
    value &= _BITS_64
    return None if value >= _HALF_64 and b"-" in word else value


def signed(word: bytes) -> int | None:
    """A number of 64 bits of which 32 are kept, as memcached does; None where it is none."""
    if len(word) < 10 and word.isdigit():
        return int(word)
    value = _signed(word)
    if value is None or not -_HALF_64 <= value < _HALF_64:
        return None
    return ((value + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def _signed(word: bytes) -> int | None:
    found = _NUMBER.match(word)
    if found is None:
        return None
    sign, digits = found.groups()
    digits = digits.lstrip(b"0")
    if len(digits) > 20:
        return _BITS_64 + 1
    value = int(digits or b"0")
    return -value if sign == b"-" else value


def expiry(word: bytes) -> bytes | None:
    """The four bytes of a time of expiry; None where it is no number."""
    if word == b"0":
        return b"\0\0\0\0"
    seconds = signed(word)
    if seconds is None:
        return None
    return _EXPIRY.pack(seconds if seconds >= 0 else _LONG_AGO)


def block_size(word: bytes) -> int | None:
    """The length of a block, in bytes; None where it is no length."""
    size = signed(word)
    return size if size is not None and 0 <= size <= LONGEST_BLOCK else None
