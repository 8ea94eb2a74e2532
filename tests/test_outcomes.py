"""What a client is told when there is no answer from a server, byte for byte, for every opcode;
which statuses of a server a client may see; and the words for how things end.

A status that is not in this table makes real clients cross their values, or stop.
"""

import re

import pytest

from memtunnel.core.outcomes import (
    DEGRADED,
    REASON_STATUS,
    STATUS_WORDS,
    Desync,
    Distrust,
    Lost,
    Reason,
    degraded,
    passes,
    status_index,
)
from memtunnel.wire.binary import GETS, LOUD, QUIET, Opcode, Status, split

OPAQUE = bytes.fromhex("01020304")
NOT_FOUND = ("0001", b"Not found")
NOT_STORED = ("0005", b"Not stored.")
TEMPORARY = ("0086", b"Temporary failure")

#: By opcode: the reply in `miss` mode; None is silence.
MISS = {
    Opcode.GET: NOT_FOUND,
    Opcode.GAT: NOT_FOUND,
    Opcode.GETQ: None,
    Opcode.GETKQ: None,
    Opcode.GATQ: None,
    Opcode.GATKQ: None,
    Opcode.TOUCH: NOT_FOUND,
    Opcode.SET: NOT_STORED,
    Opcode.ADD: NOT_STORED,
    Opcode.REPLACE: NOT_STORED,
    Opcode.APPEND: NOT_STORED,
    Opcode.PREPEND: NOT_STORED,
    Opcode.SETQ: NOT_STORED,
    Opcode.ADDQ: NOT_STORED,
    Opcode.REPLACEQ: NOT_STORED,
    Opcode.APPENDQ: NOT_STORED,
    Opcode.PREPENDQ: NOT_STORED,
    Opcode.DELETE: NOT_STORED,
    Opcode.INCR: NOT_STORED,
    Opcode.DECR: NOT_STORED,
    Opcode.FLUSH: NOT_STORED,
    Opcode.DELETEQ: NOT_FOUND,
    Opcode.INCRQ: NOT_FOUND,
    Opcode.DECRQ: NOT_FOUND,
    Opcode.FLUSHQ: NOT_FOUND,
}
#: Answered with their key.
KEYED = (Opcode.GETK, Opcode.GATK)
#: Never degraded: answered by the tunnel itself, or, STAT, by its terminator.
APART = (
    Opcode.QUIT,
    Opcode.QUITQ,
    Opcode.NOOP,
    Opcode.VERSION,
    Opcode.STAT,
    Opcode.SASL_LIST,
    Opcode.SASL_AUTH,
    Opcode.SASL_STEP,
)


def reply(opcode: Opcode, status: str, text: bytes) -> bytes:
    return (
        bytes.fromhex(f"81 {opcode:02x} 0000 00 00 {status} {len(text):08x}")
        + OPAQUE
        + bytes(8)
        + text
    )


def test_the_table_has_every_opcode_that_goes_to_a_server() -> None:
    assert {*MISS, *KEYED, *APART} == set(Opcode)
    assert len(MISS) + len(KEYED) + len(APART) == len(Opcode)


@pytest.mark.parametrize("opcode", MISS, ids=lambda opcode: opcode.name)
def test_a_degraded_reply_is_that_of_the_table(opcode: Opcode) -> None:
    told = MISS[opcode]
    expected = b"" if told is None else reply(opcode, *told)
    assert degraded(opcode, OPAQUE, b"key", as_error=False) == expected
    assert degraded(opcode, OPAQUE, b"", as_error=False) == expected


@pytest.mark.parametrize("opcode", MISS, ids=lambda opcode: opcode.name)
def test_as_an_error_it_is_a_temporary_failure_for_mutations_and_touch_only(
    opcode: Opcode,
) -> None:
    gets = LOUD[opcode] in (Opcode.GET, Opcode.GETK, Opcode.GAT, Opcode.GATK)
    told = MISS[opcode] if gets else TEMPORARY
    expected = b"" if told is None else reply(opcode, *told)
    assert degraded(opcode, OPAQUE, b"key", as_error=True) == expected


@pytest.mark.parametrize("opcode", KEYED, ids=lambda opcode: opcode.name)
@pytest.mark.parametrize("as_error", [False, True])
def test_getk_and_gatk_are_told_their_key(opcode: Opcode, as_error: bool) -> None:
    expected = bytes.fromhex(f"81 {opcode:02x} 0003 00 00 0001 00000003") + OPAQUE + bytes(8)
    assert degraded(opcode, OPAQUE, b"key", as_error=as_error) == expected + b"key"


@pytest.mark.parametrize("opcode", sorted({*MISS, *KEYED}), ids=lambda opcode: Opcode(opcode).name)
@pytest.mark.parametrize("as_error", [False, True])
@pytest.mark.parametrize("key", [b"", b"key"])
def test_no_degraded_reply_has_an_empty_body(opcode: Opcode, as_error: bool, key: bytes) -> None:
    frames, rest = split(degraded(opcode, OPAQUE, key, as_error=as_error))
    assert rest == b""
    assert len(frames) == (0 if opcode in QUIET and LOUD[opcode] in GETS else 1)
    for frame in frames:
        assert (frame.opcode, frame.opaque, frame.cas) == (opcode, OPAQUE, 0)
        assert frame.key + frame.value


# --- the sieve


@pytest.mark.parametrize("opcode", Opcode, ids=lambda opcode: opcode.name)
def test_clients_see_only_the_statuses_that_they_survive(opcode: Opcode) -> None:
    loud = LOUD[opcode]
    passed = {status for status in range(0x200) if passes(loud, status)}
    if opcode.name.removesuffix("Q") in ("GET", "GETK", "GAT", "GATK"):
        assert passed == {0x00, 0x01}
    else:
        assert passed == {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06}


# --- words


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (0x00, "hit"),
        (0x01, "miss"),
        (0x02, "badval"),
        (0x03, "too_large"),
        (0x04, "invalid"),
        (0x05, "not_stored"),
        (0x06, "non_numeric"),
        (0x20, "refused"),
        (0x81, "unknown_command"),
        *((status, "error") for status in (0x07, 0x21, 0x82, 0x83, 0x84, 0x85, 0x86, 0xFFFF)),
    ],
)
def test_every_status_has_a_word(status: int, word: str) -> None:
    assert STATUS_WORDS[status_index(status)] == word


def test_every_reason_is_one_of_the_words() -> None:
    assert {reason: STATUS_WORDS[REASON_STATUS[reason] - DEGRADED] for reason in Reason} == {
        reason: reason.value for reason in Reason
    }


def test_the_words_are_distinct_and_fit_for_a_label() -> None:
    for words in (STATUS_WORDS, tuple(Reason), tuple(Lost), tuple(Desync)):
        assert len(set(words)) == len(words)
        assert all(re.fullmatch("[a-z]+(_[a-z]+)*", word) for word in words)


def test_distrust_says_what_was_lost_and_why() -> None:
    assert str(Distrust(Lost.DESYNC, Desync.OPAQUE)) == "desync: opaque"
    assert str(Distrust(Lost.LOGIN_LOST)) == "login_lost"


def test_every_known_status_but_ok_is_a_word_of_its_own_or_an_error() -> None:
    words = {status: STATUS_WORDS[status_index(status)] for status in Status}
    own = [word for word in words.values() if word != "error"]
    assert len(own) == len(set(own)) == 9
