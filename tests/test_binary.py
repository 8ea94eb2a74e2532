"""The binary protocol's bytes are memcached's, and its rules are the ones that memcached keeps.

The frames are byte fixtures recorded from memcached 1.6.18; the rules are its answers to
malformed requests (0x04 where a rule is broken, 0x81 where it knows no such command).
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtunnel.wire.binary import (
    ANSWER_MAGIC,
    BODYLESS,
    GETS,
    HEADER_LENGTH,
    LOUD,
    QUIET,
    READS,
    REQUEST_MAGIC,
    RULES,
    STATUS_TEXT,
    Frame,
    Opcode,
    Status,
    answer,
    refusal,
    request,
    split,
    unpack_answer,
    unpack_request,
)

FLAGS = bytes.fromhex("deadbeef")
ONE = bytes.fromhex("00000001")
SET = bytes.fromhex(
    "80010001 08000000 0000000e 11223344 0000000000000000 deadbeef00000000 61 68656c6c6f"
)

#: What memcached sent, and how we would say the same.
ANSWERS = {
    "SET": (
        "81010000 00000000 00000000 11223344 000000000000000a",
        answer(Opcode.SET, bytes.fromhex("11223344"), cas=10),
    ),
    "GET hit": (
        "81000000 04000000 00000009 00000055 000000000000000a deadbeef 68656c6c6f",
        answer(Opcode.GET, b"\0\0\0\x55", extras=FLAGS, value=b"hello", cas=10),
    ),
    "GETK hit": (
        "810c0001 04000000 0000000a 00000055 000000000000000a deadbeef 61 68656c6c6f",
        answer(Opcode.GETK, b"\0\0\0\x55", extras=FLAGS, key=b"a", value=b"hello", cas=10),
    ),
    "GET miss": (
        "81000000 00000001 00000009 00000055 0000000000000000 4e6f7420666f756e64",
        refusal(Opcode.GET, b"\0\0\0\x55", Status.NOT_FOUND),
    ),
    "GETK miss": (
        "810c0002 00000001 00000002 00000055 0000000000000000 7a7a",
        answer(Opcode.GETK, b"\0\0\0\x55", Status.NOT_FOUND, key=b"zz"),
    ),
    "TOUCH hit": (
        "811c0000 04000000 00000004 00000001 0000000000000014 deadbeef",
        answer(Opcode.TOUCH, ONE, extras=FLAGS, cas=20),
    ),
    "APPEND miss": (
        "810e0000 00000005 0000000b 00000001 0000000000000000 4e6f742073746f7265642e",
        refusal(Opcode.APPEND, ONE, Status.NOT_STORED),
    ),
    "INCR created": (
        "81050000 00000000 00000008 00000001 0000000000000015 0000000000000005",
        answer(Opcode.INCR, ONE, value=bytes(7) + b"\x05", cas=21),
    ),
    "NOOP": (
        "810a0000 00000000 00000000 00000099 0000000000000000",
        answer(Opcode.NOOP, b"\0\0\0\x99"),
    ),
    "QUIT": (
        "81070000 00000000 00000000 00000077 0000000000000000",
        answer(Opcode.QUIT, b"\0\0\0\x77"),
    ),
    "SASL_AUTH failure": (
        "81210000 00000020 0000000d 00000007 0000000000000000 41757468206661696c7572652e",
        refusal(Opcode.SASL_AUTH, b"\0\0\0\x07", Status.AUTH_FAILED),
    ),
}

frames = st.builds(
    Frame,
    magic=st.sampled_from((REQUEST_MAGIC, ANSWER_MAGIC)),
    opcode=st.integers(0, 255),
    status=st.integers(0, 0xFFFF),
    opaque=st.binary(min_size=4, max_size=4),
    cas=st.integers(0, 2**64 - 1),
    extras=st.binary(max_size=20),
    key=st.binary(max_size=250),
    value=st.binary(max_size=600),
)


def encoded(frame: Frame) -> bytes:
    """The frame's bytes, written out by the table of the protocol and not by our builders."""
    body = frame.extras + frame.key + frame.value
    return b"".join(
        (
            bytes((frame.magic, frame.opcode)),
            len(frame.key).to_bytes(2, "big"),
            bytes((len(frame.extras), 0)),
            frame.status.to_bytes(2, "big"),
            len(body).to_bytes(4, "big"),
            frame.opaque,
            frame.cas.to_bytes(8, "big"),
            body,
        )
    )


# --- building


def test_a_set_is_the_bytes_that_clients_send() -> None:
    opaque = bytes.fromhex("11223344")
    extras = FLAGS + bytes(4)
    assert request(Opcode.SET, b"a", extras=extras, value=b"hello", opaque=opaque) == SET


def test_a_login_is_the_bytes_that_clients_send() -> None:
    frame = request(Opcode.SASL_AUTH, b"PLAIN", value=b"\0user1\0secret", opaque=b"\0\0\0\x07")
    assert frame == bytes.fromhex("80210005 00000000 00000012 00000007 0000000000000000") + (
        b"PLAIN\0user1\0secret"
    )


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_the_bytes_that_memcached_sends(name: str) -> None:
    recorded, built = ANSWERS[name]
    assert built == bytes.fromhex(recorded)


@pytest.mark.parametrize("status", STATUS_TEXT, ids=lambda status: Status(status).name)
def test_a_refusal_never_has_an_empty_body(status: int) -> None:
    frame = refusal(Opcode.SETQ, b"abcd", status)
    ((_, opcode, said, opaque, cas, extras, key, value),), rest = split(frame)
    assert (opcode, said, opaque, cas, extras, key, rest) == (
        Opcode.SETQ,
        status,
        b"abcd",
        0,
        b"",
        b"",
        b"",
    )
    assert value


@given(frames)
def test_headers_unpack_to_what_was_sent(frame: Frame) -> None:
    data = encoded(frame)
    body = len(data) - HEADER_LENGTH
    lengths = len(frame.key), len(frame.extras)
    magic, opcode, keys, extras, size = unpack_request(data, 0)
    assert (magic, opcode, keys, extras, size) == (frame.magic, frame.opcode, *lengths, body)
    magic, opcode, keys, extras, status, size, opaque = unpack_answer(data, 0)
    assert (magic, opcode, keys, extras) == (frame.magic, frame.opcode, *lengths)
    assert (status, size, opaque.to_bytes(4, "big")) == (frame.status, body, frame.opaque)


@given(frames)
def test_what_is_built_is_what_the_table_of_the_protocol_says(frame: Frame) -> None:
    body: dict[str, Any] = {
        "extras": frame.extras,
        "key": frame.key,
        "value": frame.value,
        "cas": frame.cas,
    }
    if frame.magic == REQUEST_MAGIC:
        built = request(frame.opcode, opaque=frame.opaque, **body)
        assert built == encoded(frame._replace(status=0))
    else:
        assert answer(frame.opcode, frame.opaque, frame.status, **body) == encoded(frame)


# --- splitting


@given(st.lists(frames, max_size=4))
def test_split_takes_a_stream_fed_whole(sent: list[Frame]) -> None:
    assert split(b"".join(map(encoded, sent))) == (sent, b"")


@given(st.lists(frames, max_size=2))
def test_split_takes_a_stream_fed_byte_by_byte(sent: list[Frame]) -> None:
    taken: list[Frame] = []
    left = b""
    for byte in b"".join(map(encoded, sent)):
        more, left = split(left + bytes((byte,)))
        taken += more
    assert (taken, left) == (sent, b"")


@given(st.lists(frames, max_size=4), frames, st.data())
def test_split_leaves_a_tail_as_it_is(sent: list[Frame], last: Frame, data: st.DataObject) -> None:
    whole = encoded(last)
    tail = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert split(b"".join(map(encoded, sent)) + tail) == (sent, tail)


@pytest.mark.parametrize("body", [0, 4])
def test_split_refuses_key_and_extras_longer_than_the_body(body: int) -> None:
    lost = bytes.fromhex("80000003 02000000") + body.to_bytes(4, "big") + bytes(12)
    with pytest.raises(ValueError, match="5 bytes in a body of"):
        split(SET + lost)


# --- rules

BARE = ("QUIT", "QUITQ", "NOOP", "VERSION", "SASL_LIST")
KEYED = ("GET", "GETQ", "GETK", "GETKQ", "DELETE", "DELETEQ")
STORES = ("SET", "SETQ", "ADD", "ADDQ", "REPLACE", "REPLACEQ")
CONCATS = ("APPEND", "APPENDQ", "PREPEND", "PREPENDQ")
ARITHMETIC = ("INCR", "INCRQ", "DECR", "DECRQ")
TOUCHES = ("TOUCH", "GAT", "GATQ", "GATK", "GATKQ")
FLUSHES = ("FLUSH", "FLUSHQ")
LOGINS = ("SASL_AUTH", "SASL_STEP")
#: By opcode: the extras it may have, its shortest and longest key, whether it may have a value.
TABLE = {
    **dict.fromkeys(BARE, ({0}, 0, 0, False)),
    **dict.fromkeys(KEYED, ({0}, 1, 250, False)),
    **dict.fromkeys(STORES, ({8}, 1, 250, True)),
    **dict.fromkeys(CONCATS, ({0}, 1, 250, True)),
    **dict.fromkeys(ARITHMETIC, ({20}, 1, 250, False)),
    **dict.fromkeys(TOUCHES, ({4}, 1, 250, False)),
    **dict.fromkeys(FLUSHES, ({0, 4}, 0, 0, False)),
    "STAT": ({0}, 0, 250, False),
    **dict.fromkeys(LOGINS, ({0}, 1, 32, True)),
}


def test_the_table_has_every_opcode() -> None:
    assert set(TABLE) == {opcode.name for opcode in Opcode}


@pytest.mark.parametrize("opcode", Opcode, ids=lambda opcode: opcode.name)
def test_a_rule_allows_what_memcached_takes_and_nothing_else(opcode: Opcode) -> None:
    rule = RULES[opcode]
    assert rule is not None
    extras_allowed, shortest, longest, value_allowed = TABLE[opcode.name]
    for extras in (0, 1, 4, 8, 20, 24):
        for key in (0, 1, 32, 33, 250, 251, 65535):
            for value in (0, 1, 10):
                good = (
                    extras in extras_allowed
                    and shortest <= key <= longest
                    and (value_allowed or not value)
                )
                assert rule.allows(key, extras, extras + key + value) == good, (extras, key, value)


@pytest.mark.parametrize(
    ("opcode", "key", "extras", "value"),
    [
        *((opcode, 0, 0, 0) for opcode in (Opcode.GET, Opcode.GETQ, Opcode.GETK, Opcode.DELETE)),
        *((opcode, 0, 8, 1) for opcode in (Opcode.SET, Opcode.SETQ)),
        (Opcode.TOUCH, 0, 4, 0),
        (Opcode.INCR, 0, 20, 0),
        (Opcode.APPEND, 0, 0, 1),
        (Opcode.GET, 251, 0, 0),
        (Opcode.NOOP, 251, 0, 0),
        (Opcode.STAT, 251, 0, 0),
        (Opcode.GET, 1, 4, 0),
        *((opcode, 1, extras, 1) for opcode in (Opcode.SET, Opcode.SETQ) for extras in (0, 4)),
        (Opcode.INCR, 1, 8, 0),
        (Opcode.TOUCH, 1, 0, 0),
        (Opcode.GAT, 1, 8, 0),
        (Opcode.APPEND, 1, 8, 1),
        (Opcode.DELETE, 1, 4, 0),
        (Opcode.FLUSH, 0, 8, 0),
        (Opcode.STAT, 0, 4, 0),
        (Opcode.GET, 1, 0, 1),
        (Opcode.VERSION, 1, 0, 0),
        (Opcode.QUIT, 1, 0, 0),
        (Opcode.VERSION, 0, 0, 1),
        (Opcode.NOOP, 0, 0, 1),
        (Opcode.STAT, 1, 0, 1),
        (Opcode.SASL_AUTH, 0, 0, 1),
        (Opcode.SASL_AUTH, 33, 0, 1),
        (Opcode.SASL_LIST, 1, 0, 0),
    ],
)
def test_what_memcached_answers_with_invalid_arguments_breaks_its_rule(
    opcode: Opcode, key: int, extras: int, value: int
) -> None:
    rule = RULES[opcode]
    assert rule is not None
    assert not rule.allows(key, extras, key + extras + value)


@pytest.mark.parametrize("opcode", [0x1B, 0x1F, 0x25, 0x30, 0x3D, 0x40, 0x99, 0xFF])
def test_what_memcached_does_not_know_has_no_rule(opcode: int) -> None:
    assert RULES[opcode] is None


def test_there_is_a_rule_for_each_opcode_and_for_nothing_else() -> None:
    assert len(RULES) == 256
    assert {opcode for opcode, rule in enumerate(RULES) if rule} == set(Opcode)


# --- quiet and loud


def test_every_quiet_opcode_has_the_twin_of_its_name_and_its_rule() -> None:
    named = {opcode for opcode in Opcode if opcode.name.endswith("Q")}
    assert named == QUIET
    for quiet in named:
        assert LOUD[quiet] == Opcode[quiet.name.removesuffix("Q")]
        assert RULES[quiet] == RULES[LOUD[quiet]]


def test_every_other_opcode_is_its_own_loud_twin() -> None:
    assert len(LOUD) == 256
    assert all(LOUD[opcode] == opcode for opcode in range(256) if opcode not in QUIET)


def test_only_gets_return_values_and_only_those_that_change_nothing_are_reads() -> None:
    assert {Opcode.GET, Opcode.GETK, Opcode.GAT, Opcode.GATK} == GETS
    assert {Opcode.GET, Opcode.GETK} == READS
    assert not BODYLESS & (GETS | {Opcode.TOUCH, Opcode.INCR, Opcode.DECR, Opcode.STAT})
