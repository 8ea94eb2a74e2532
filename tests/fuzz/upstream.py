"""Whatever bytes a server sends, in answer to requests that an input names.

Two clients, one of each protocol, have asked for something on one connection. Nothing but
`Distrust` comes out of the multiplexer; each request has one outcome, in order, whatever the server
says; and however its bytes are cut, it is the same.
"""

from collections.abc import Sequence
from typing import NamedTuple

from core_harness import House, bare, concat, count, get, opaque_of, store, touch

from fuzz.choices import pieces, taken_off
from fuzz.client import LARGEST, LONG, check
from fuzz.houses import FIRST, give_back, taken
from fuzz.mutation import Language, change_frame, frames
from memtunnel.core.binary_session import BinarySession
from memtunnel.core.mux import MAX_BODY
from memtunnel.core.outcomes import Desync, Lost, passes
from memtunnel.core.text_session import TextSession
from memtunnel.wire.binary import (
    ANSWER_MAGIC,
    GETS,
    HEADER_LENGTH,
    LOUD,
    MAX_KEY_LENGTH,
    QUIET,
    READS,
    Frame,
    Opcode,
    Status,
    answer,
    split,
    unpack_answer,
)

# The choices, each a bit.
BINARY_LEAVES = 1
TEXT_LEAVES = 2
LATE = 4  # the requests have timed out before the server says anything
ANOTHER = 8  # there is another connection, which takes what may be sent again
ERRORS = 16
STRIPPED = 32

MOST_REQUESTS = 24
#: In an input a request is a byte: the number of one of these, and 128 more for those of text.
BINARY = (
    *(get(b"k", 0, opcode) for opcode in (Opcode.GET, Opcode.GETQ, Opcode.GETK, Opcode.GETKQ)),
    *(touch(b"k", 0, opcode) for opcode in (Opcode.TOUCH, Opcode.GAT, Opcode.GATQ, Opcode.GATK)),
    touch(b"k", 0, Opcode.GATKQ),
    *(
        store(b"k", b"v", 0, opcode)
        for opcode in (Opcode.SET, Opcode.SETQ, Opcode.ADD, Opcode.ADDQ, Opcode.REPLACE)
    ),
    *(concat(b"k", b"v", 0, opcode) for opcode in (Opcode.APPEND, Opcode.PREPENDQ)),
    *(count(b"k", 0, opcode) for opcode in (Opcode.INCR, Opcode.INCRQ, Opcode.DECR)),
    *(get(b"k", 0, opcode) for opcode in (Opcode.DELETE, Opcode.DELETEQ)),
    *(bare(opcode) for opcode in (Opcode.FLUSH, Opcode.FLUSHQ, Opcode.STAT, Opcode.NOOP)),
    store(b"k", bytes(LARGEST + 1), 0),
)
TEXT = (
    b"get k\r\n",
    b"gets k\r\n",
    b"get k l m\r\n",
    b"gat 1 k\r\n",
    b"set k 0 0 1\r\nv\r\n",
    b"set k 0 0 1 noreply\r\nv\r\n",
    b"add k 0 0 1\r\nv\r\n",
    b"append k 0 0 1\r\nv\r\n",
    b"cas k 0 0 1 7\r\nv\r\n",
    b"delete k\r\n",
    b"incr k 1\r\n",
    b"decr k 1 noreply\r\n",
    b"touch k 1\r\n",
    b"flush_all\r\n",
    b"stats\r\n",
    b"stats reset\r\n",
    b"stats detail dump\r\n",
    b"mg k v f c s k O1 q\r\n",
    b"mg k v T1\r\n",
    b"mg k s\r\n",
    b"ms k 1 c\r\nv\r\n",
    b"ms k 1 q MA\r\nv\r\n",
    b"md k q C7\r\n",
    b"ma k v c\r\n",
    b"ma k MD\r\n",
    b"mn\r\n",
)
#: By number, and then as above: the requests that bear it.
_NUMBERED = tuple(
    tuple(frame[:12] + opaque_of(number) + frame[16:] for frame in BINARY)
    for number in range(MOST_REQUESTS)
)
#: What is worth to be put into an input as a whole: answers to the first few requests.
TOKENS = tuple(
    answer(opcode, opaque_of((FIRST + number) & 0xFFFFFFFF), status)
    for opcode in sorted({LOUD[opcode] for opcode in Opcode})
    for number in (0, 1)
    for status in (Status.OK, Status.NOT_FOUND, Status.AUTH_FAILED)
)


Surprise = tuple[Lost, Desync | None]


class Told(NamedTuple):
    """What is the same for all ways to cut the server's bytes."""

    binary: bytes
    text: bytes
    distrust: Surprise | None
    degraded: list[tuple[int, str]]
    settled: list[tuple[int, str]]


def _head(rest: bytes) -> int:
    """How long the requests are, with their number before them."""
    return 1 + rest[0] % (MOST_REQUESTS + 1) if rest else 0


LANGUAGE = Language(frames, change_frame, _head)


def run(data: bytes) -> bool:
    flags, sizes, rest = taken_off(data)
    head = _head(rest)
    named, said = rest[1:head], rest[head:]
    binary = [byte % len(BINARY) for byte in named if byte < 128]
    asked = [_NUMBERED[number][byte] for number, byte in enumerate(binary)]
    lines = [TEXT[byte % 128 % len(TEXT)] for byte in named if byte >= 128]
    told = converse(asked, lines, said, flags, sizes)
    if not flags & BINARY_LEAVES:
        check_answers(asked, told.binary)
    if sizes:
        whole = converse(asked, lines, said, flags, [])
        assert _alike(told, whole), f"cut: {told}\nat once: {whole}"
    return bool(sizes)


def _alike(one: Told, other: Told) -> bool:
    """But for the data type in a header, which is reserved: whether what a server puts there is
    passed on depends on the way that its answer takes.
    """
    return one == other or (one[1:] == other[1:] and split(one.binary) == split(other.binary))


def _build(flags: int) -> House:
    return House(
        connections=0,
        max_value_size=LARGEST,
        errors_on_unavailable=bool(flags & ERRORS),
        strip_touch_extras=bool(flags & STRIPPED),
    )


def converse(
    asked: Sequence[bytes], lines: Sequence[bytes], said: bytes, flags: int, sizes: Sequence[int]
) -> Told:
    """What clients of both protocols that ask this hear where a server says that."""
    kind = "upstream", flags & (ERRORS | STRIPPED)
    house = taken(kind, lambda: _build(flags))
    (link,) = house.links
    if asked:
        house.client().send(b"".join(asked))
    if lines:
        house.client(TextSession).send(*lines)
    link.pull()
    expected = distrust_of(list(link.asked), said)
    if flags & LATE:
        house.pass_time(LONG)
    for client in house.clients:
        if flags & (TEXT_LEAVES if isinstance(client.session, TextSession) else BINARY_LEAVES):
            client.leave()
    if flags & ANOTHER:
        house.connect()
    for piece in pieces(said, sizes):
        link.deliver(piece)
        check(house)
        assert len(link.mux._buffer) <= HEADER_LENGTH + MAX_BODY
        assert link.mux.load == link.mux.in_flight
        if link.distrust is not None:
            assert not link.mux.load
            break
    assert (link.distrust and (link.distrust.lost, link.distrust.kind)) == expected
    # An exception knows all frames below which it was caught: kept in one of them, it is a cycle.
    link.distrust = None
    if flags & ANOTHER:
        other = house.links[-1]
        assert other is not link
        assert READS.issuperset(other.opcodes), "a write is sent again"
        other.deliver(other.execute())
    house.pass_time(LONG)
    check(house)
    for client in house.clients:
        if not client.session.gone:
            client.half_close()
            assert client.closed, "an answer is missing"
    if link in house.links:
        link.lose()
    _check_that_nothing_is_left(house)
    heard = {type(client.session): client.received for client in house.clients}
    told = Told(
        heard.get(BinarySession, b""),
        heard.get(TextSession, b""),
        expected,
        sorted(house.degraded),
        sorted(house.server_counts[0].settled + house.counts.local.settled),
    )
    give_back(kind, house)
    return told


def distrust_of(asked: Sequence[Frame], said: bytes) -> Surprise | None:
    """Why a connection on which this was asked is not to be trusted any more, if it is so."""
    expected = {int.from_bytes(frame.opaque, "big"): frame.opcode for frame in asked}
    position = 0
    while len(said) - position >= HEADER_LENGTH:
        magic, opcode, keys, extras, status, body, opaque = unpack_answer(said, position)
        if magic != ANSWER_MAGIC:
            return Lost.DESYNC, Desync.MAGIC
        if keys + extras > body or body > MAX_BODY or keys > MAX_KEY_LENGTH:
            return Lost.DESYNC, Desync.LENGTH
        if opaque not in expected:
            return Lost.DESYNC, Desync.OPAQUE
        if opcode != expected[opaque]:
            return Lost.DESYNC, Desync.OPCODE
        if status == Status.AUTH_FAILED and (opcode in GETS or opcode == Opcode.NOOP):
            return Lost.LOGIN_LOST, None
        if opcode != Opcode.STAT or status or not body:
            del expected[opaque]
        position += HEADER_LENGTH + body
    if position < len(said) and said[position] != ANSWER_MAGIC:
        return Lost.DESYNC, Desync.MAGIC
    return None


def _check_that_nothing_is_left(house: House) -> None:
    # What was never sent goes to another connection: there it is answered as well.
    for link in list(house.links):
        link.deliver(link.execute())
        assert not link.mux.load
    (server,) = house.servers
    house.pass_time(LONG)
    assert not house.pass_time(LONG), "a deadline of nothing"
    assert not server.queued
    assert not server.queue
    assert house.budget.used == 0
    for client in house.clients:
        session = client.session
        assert session.gone or not session.owed_bytes
        assert not session.out


def check_answers(asked: Sequence[bytes], received: bytes) -> None:
    """Each request had one outcome, in order, of which no client falls ill."""
    waiting, left = split(received)
    assert not left, "a part of a frame"
    for number, request in enumerate(asked):
        answers: list[Frame] = []
        while waiting and waiting[0].opaque == opaque_of(number):
            answers.append(waiting.pop(0))
        opcode = request[1]
        loud = LOUD[opcode]
        assert all(frame.opcode == opcode for frame in answers)
        if loud == Opcode.STAT and answers:
            last = answers.pop()
            assert last.status or not last.key + last.value
            assert not any(frame.status for frame in answers)
            assert not (answers and last.status)
            answers = [last]
        assert len(answers) <= 1, "two outcomes"
        assert answers or opcode in QUIET, "no outcome"
        for frame in answers:
            allowed = passes(loud, frame.status) or frame.status == Status.TEMPORARY_FAILURE
            assert allowed, "a status that no client survives"
            assert loud not in GETS or frame.status in (Status.OK, Status.NOT_FOUND)
            assert not frame.status or frame.extras + frame.key + frame.value, (
                "an error without a body"
            )
    assert not waiting, "an answer to nothing"
