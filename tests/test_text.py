"""Lines of the text protocol: their words, their numbers, their keys in base64.

What memcached makes of a number comes from C's strtoul and strtol, whose every habit is seen by a
client that sends the wrong thing.
"""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtunnel.wire import meta
from memtunnel.wire.command import Ask, Get, Quit, Say, Skip, Store
from memtunnel.wire.numbers import block_size, expiry, signed, unsigned
from memtunnel.wire.text import parse, words_of


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"get a", [b"get", b"a"]),
        (b"  get   a  ", [b"get", b"a"]),
        (b"", []),
        (b"   ", []),
        (b"get a\0b c", [b"get", b"a"]),
        (b"\0get", []),
        (b"get\ta b\r", [b"get\ta", b"b\r"]),
    ],
)
def test_only_blanks_part_words_and_a_nul_ends_them(line: bytes, words: list[bytes]) -> None:
    assert words_of(line) == words


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (b"0", 0),
        (b"+5", 5),
        (b" 5", 5),
        (b"\t\r\n5\tx", 5),
        (b"007", 7),
        (b"0" * 40 + b"7", 7),
        (b"18446744073709551615", 2**64 - 1),
        (b"18446744073709551616", None),
        (b"9" * 5000, None),
        (b"-0", 0),
        (b"-1", None),
        (b"-9223372036854775808", None),
        (b"-9223372036854775809", 2**63 - 1),
        (b"-18446744073709551615", 1),
        (b"-18446744073709551616", None),
        (b"", None),
        (b"-", None),
        (b"5x", None),
        (b"x5", None),
        (b"0x10", None),
        (b"1.5", None),
        (b"++5", None),
        (b"\xb2", None),
    ],
)
def test_unsigned_numbers(word: bytes, value: int | None) -> None:
    assert unsigned(word) == value


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (b"0", 0),
        (b"-1", -1),
        (b"2147483647", 2**31 - 1),
        (b"2147483648", -(2**31)),
        (b"4294967297", 1),
        (b"-4294967297", -1),
        (b"9223372036854775807", -1),
        (b"9223372036854775808", None),
        (b"-9223372036854775808", 0),
        (b"-9223372036854775809", None),
        (b"+7\t", 7),
        (b"7 ", 7),
        (b"7.", None),
        (b"noreply", None),
    ],
)
def test_signed_numbers_keep_their_last_32_bits(word: bytes, value: int | None) -> None:
    assert signed(word) == value


@given(st.binary(max_size=30))
def test_no_word_breaks_a_number(word: bytes) -> None:
    for value in (unsigned(word), signed(word), block_size(word)):
        assert value is None or abs(value) < 2**64
    seconds = expiry(word)
    assert seconds is None or len(seconds) == 4


@pytest.mark.parametrize(
    ("word", "seconds"),
    [(b"0", 0), (b"30", 30), (b"2592000", 2592000), (b"-1", 2592001), (b"-2147483648", 2592001)],
)
def test_a_time_of_expiry_that_is_negative_has_passed(word: bytes, seconds: int) -> None:
    # As a number of 32 bits it would be one of the far future.
    assert expiry(word) == seconds.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("word", "size"),
    [(b"0", 0), (b"2147483645", 2**31 - 3), (b"2147483646", None), (b"-1", None), (b"x", None)],
)
def test_the_length_of_a_block(word: bytes, size: int | None) -> None:
    assert block_size(word) == size


@given(st.binary(min_size=1, max_size=180))
def test_a_key_in_base64_is_what_it_was(key: bytes) -> None:
    assert meta.base64_key(base64.b64encode(key)) == key


@pytest.mark.parametrize(
    ("encoded", "key"),
    [
        (b"Zm9v", b"foo"),
        (b"Zm-9v!", b"foo"),
        (b"Zm9vYg==", b"foob"),
        (b"Zm9vYg==Zm9v", b"foob"),
        (b"Zm9vYmE=", b"fooba"),
        (b"Zm9", b""),
        (b"", b""),
        (b"!!!!", b""),
        (b"Z===", b""),
        (b"====", b""),
    ],
)
def test_base64_that_is_not_quite(encoded: bytes, key: bytes) -> None:
    assert meta.base64_key(encoded) == key


@given(st.binary(max_size=300) | st.from_regex(rb"(m[gsdaen]|set|gat|touch) [ -~]{0,200}"))
def test_any_line_asks_for_something(line: bytes) -> None:
    command = parse(line)
    for key in (
        *getattr(command, "keys", ()),
        *([command.key] if isinstance(command, Ask) else ()),
    ):
        assert 0 < len(key) <= 250


def test_what_lines_ask_for() -> None:
    assert isinstance(parse(b"get a b"), Get)
    assert isinstance(parse(b"set a 0 0 5"), Store)
    assert isinstance(parse(b"mg a v"), Ask)
    assert isinstance(parse(b"ms a 5 Z"), Skip)
    assert isinstance(parse(b"GET / HTTP/1.1"), Quit)
    assert isinstance(parse(b"H"), Say)


def test_a_cas_value_of_0_is_one_that_no_item_has() -> None:
    # In binary 0 means that there is nothing to compare.
    for line in (b"cas k 0 0 1 0", b"ms k 1 C0", b"ms k 1 C0 MR", b"md k C0"):
        command = parse(line)
        assert isinstance(command, Ask)
        assert command.cas == 2**64 - 1
    for line in (b"set k 0 0 1", b"ms k 1", b"ms k 1 C0 MA", b"ms k 1 C5 ME", b"ma k C0"):
        command = parse(line)
        assert isinstance(command, Ask)
        assert command.cas == 0
