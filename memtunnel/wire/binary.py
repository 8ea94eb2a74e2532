"""The memcache binary protocol as memcached 1.6 speaks it.

A frame is a 24-byte header and a body of extras, key and value::

    magic  opcode  key length   extras length  data type  vbucket / status  body length  opaque  cas
    1      1       2            1              1          2                 4            4       8

This module names the opcodes and statuses, says which requests are well formed (`RULES`),
maps quiet opcodes to their loud twins (`LOUD`), and builds frames. Those who read a stream
unpack headers themselves with `unpack_request` and `unpack_answer`: a call of ours per frame
would cost as much as the unpacking.

Source: memcached 1.6.18's `protocol_binary.h` and its answers as measured.
"""

from collections.abc import Callable, Iterator
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

HEADER_LENGTH: Final = 24
REQUEST_MAGIC: Final = 0x80
ANSWER_MAGIC: Final = 0x81
MAX_KEY_LENGTH: Final = 250

#: (magic, opcode, key length, extras length, body length) of the request at an offset.
unpack_request: Final[Callable[[bytes, int], tuple[int, int, int, int, int]]] = Struct(
    ">BBHB3xI"
).unpack_from
#: (magic, opcode, key length, extras length, status, body length, opaque) of the answer there.
unpack_answer: Final[Callable[[bytes, int], tuple[int, int, int, int, int, int, int]]] = Struct(
    ">BBHBxHII"
).unpack_from
#: (body length,) of the frame at an offset, and that alone.
unpack_length: Final[Callable[[bytes | bytearray, int], tuple[int]]] = Struct(">8xI").unpack_from
#: Write an opaque into the header there, at offset 12: as a number, or as its four bytes.
put_number: Final[Callable[[bytearray, int, int], None]] = Struct(">I").pack_into
put_opaque: Final[Callable[[bytearray, int, bytes], None]] = Struct("4s").pack_into

_HEADER: Final = Struct(">BBHBBHI4sQ")


class Opcode(IntEnum):
    """Every opcode of memcached 1.6, under the names of its source."""

    GET = 0x00
    SET = 0x01
    ADD = 0x02
    REPLACE = 0x03
    DELETE = 0x04
    INCR = 0x05
    DECR = 0x06
    QUIT = 0x07
    FLUSH = 0x08
    GETQ = 0x09
    NOOP = 0x0A
    VERSION = 0x0B
    GETK = 0x0C
    GETKQ = 0x0D
    APPEND = 0x0E
    PREPEND = 0x0F
    STAT = 0x10
    SETQ = 0x11
    ADDQ = 0x12
    REPLACEQ = 0x13
    DELETEQ = 0x14
    INCRQ = 0x15
    DECRQ = 0x16
    QUITQ = 0x17
    FLUSHQ = 0x18
    APPENDQ = 0x19
    PREPENDQ = 0x1A
    TOUCH = 0x1C
    GAT = 0x1D
    GATQ = 0x1E
    SASL_LIST = 0x20
    SASL_AUTH = 0x21
    SASL_STEP = 0x22
    GATK = 0x23
    GATKQ = 0x24


class Status(IntEnum):
    """The statuses of answers."""

    OK = 0x00
    NOT_FOUND = 0x01
    EXISTS = 0x02
    TOO_LARGE = 0x03
    INVALID = 0x04
    NOT_STORED = 0x05
    NON_NUMERIC = 0x06
    AUTH_FAILED = 0x20
    AUTH_CONTINUE = 0x21
    UNKNOWN_COMMAND = 0x81
    OUT_OF_MEMORY = 0x82
    NOT_SUPPORTED = 0x83
    INTERNAL_ERROR = 0x84
    BUSY = 0x85
    TEMPORARY_FAILURE = 0x86


#: The body that goes with an error, in memcached's words.
STATUS_TEXT: Final[dict[int, bytes]] = {
    Status.NOT_FOUND: b"Not found",
    Status.EXISTS: b"Data exists for key.",
    Status.TOO_LARGE: b"Too large.",
    Status.INVALID: b"Invalid arguments",
    Status.NOT_STORED: b"Not stored.",
    Status.NON_NUMERIC: b"Non-numeric server-side value for incr or decr",
    Status.AUTH_FAILED: b"Auth failure.",
    Status.UNKNOWN_COMMAND: b"Unknown command",
    Status.OUT_OF_MEMORY: b"Out of memory",
    Status.TEMPORARY_FAILURE: b"Temporary failure",
}


class Rule(NamedTuple):
    """What a well-formed request of one opcode has."""

    extras: tuple[int, ...]
    """Lengths that its extras may have, in bytes."""
    shortest_key: int
    longest_key: int
    value: bool
    """Whether a value may follow the key."""

    def allows(self, key_length: int, extras_length: int, body_length: int) -> bool:
        """Whether a header of these lengths is well formed; a framing error is not its business."""
        return (
            extras_length in self.extras
            and self.shortest_key <= key_length <= self.longest_key
            and (self.value or body_length == key_length + extras_length)
        )


_KEYED = Rule((0,), 1, MAX_KEY_LENGTH, value=False)
_STORE = Rule((8,), 1, MAX_KEY_LENGTH, value=True)
_CONCAT = Rule((0,), 1, MAX_KEY_LENGTH, value=True)
_ARITHMETIC = Rule((20,), 1, MAX_KEY_LENGTH, value=False)
_TOUCH = Rule((4,), 1, MAX_KEY_LENGTH, value=False)
_FLUSH = Rule((0, 4), 0, 0, value=False)
_BARE = Rule((0,), 0, 0, value=False)
_STAT = Rule((0,), 0, MAX_KEY_LENGTH, value=False)
_SASL = Rule((0,), 1, 32, value=True)

_O = Opcode
_RULES: dict[int, Rule] = {
    **dict.fromkeys((_O.GET, _O.GETQ, _O.GETK, _O.GETKQ, _O.DELETE, _O.DELETEQ), _KEYED),
    **dict.fromkeys((_O.SET, _O.SETQ, _O.ADD, _O.ADDQ, _O.REPLACE, _O.REPLACEQ), _STORE),
    **dict.fromkeys((_O.APPEND, _O.APPENDQ, _O.PREPEND, _O.PREPENDQ), _CONCAT),
    **dict.fromkeys((_O.INCR, _O.INCRQ, _O.DECR, _O.DECRQ), _ARITHMETIC),
    **dict.fromkeys((_O.TOUCH, _O.GAT, _O.GATQ, _O.GATK, _O.GATKQ), _TOUCH),
    **dict.fromkeys((_O.FLUSH, _O.FLUSHQ), _FLUSH),
    **dict.fromkeys((_O.QUIT, _O.QUITQ, _O.NOOP, _O.VERSION, _O.SASL_LIST), _BARE),
    _O.STAT: _STAT,
    **dict.fromkeys((_O.SASL_AUTH, _O.SASL_STEP), _SASL),
}
#: By opcode, 0 to 255: the rule of a request, or None where memcached knows no such command.
RULES: Final[tuple[Rule | None, ...]] = tuple(_RULES.get(opcode) for opcode in range(256))

#: By opcode, 0 to 255: its byte.
OPCODE_BYTE: Final = tuple(bytes((opcode,)) for opcode in range(256))

_TWINS: dict[int, int] = {
    _O.GETQ: _O.GET,
    _O.GETKQ: _O.GETK,
    _O.GATQ: _O.GAT,
    _O.GATKQ: _O.GATK,
    _O.SETQ: _O.SET,
    _O.ADDQ: _O.ADD,
    _O.REPLACEQ: _O.REPLACE,
    _O.DELETEQ: _O.DELETE,
    _O.INCRQ: _O.INCR,
    _O.DECRQ: _O.DECR,
    _O.FLUSHQ: _O.FLUSH,
    _O.APPENDQ: _O.APPEND,
    _O.PREPENDQ: _O.PREPEND,
    _O.QUITQ: _O.QUIT,
}
#: By opcode, 0 to 255: its loud twin; a loud opcode is its own.
LOUD: Final[tuple[int, ...]] = tuple(_TWINS.get(opcode, opcode) for opcode in range(256))
QUIET: Final = frozenset(_TWINS)

#: Loud opcodes whose success carries no body: a client that gets one may crash on it.
BODYLESS: Final = frozenset(
    (_O.SET, _O.ADD, _O.REPLACE, _O.APPEND, _O.PREPEND, _O.DELETE, _O.FLUSH, _O.NOOP, _O.QUIT)
)
#: Loud opcodes that return a value, and answer a miss with 0x01.
GETS: Final = frozenset((_O.GET, _O.GETK, _O.GAT, _O.GATK))
#: Loud opcodes that only read: executed twice, they do no harm.
READS: Final = frozenset((_O.GET, _O.GETK))


def request(
    opcode: int,
    key: bytes = b"",
    *,
    extras: bytes = b"",
    value: bytes = b"",
    opaque: bytes = b"\0\0\0\0",
    cas: int = 0,
) -> bytes:
    """A request frame; `opaque` is its four bytes."""
    body = len(extras) + len(key) + len(value)
    header = _HEADER.pack(REQUEST_MAGIC, opcode, len(key), len(extras), 0, 0, body, opaque, cas)
    return b"".join((header, extras, key, value))


#: By length of the key: the header of a GET, which many are made of.
GET_HEADERS: Final = tuple(
    request(Opcode.GET, bytes(length))[:HEADER_LENGTH] for length in range(MAX_KEY_LENGTH + 1)
)


def answer(
    opcode: int,
    opaque: bytes,
    status: int = Status.OK,
    *,
    extras: bytes = b"",
    key: bytes = b"",
    value: bytes = b"",
    cas: int = 0,
) -> bytes:
    """An answer frame; `opaque` is the four bytes of its request."""
    body = len(extras) + len(key) + len(value)
    header = _HEADER.pack(ANSWER_MAGIC, opcode, len(key), len(extras), 0, status, body, opaque, cas)
    return b"".join((header, extras, key, value))


def refusal(opcode: int, opaque: bytes, status: int) -> bytes:
    """An error frame with memcached's words for `status` as its body, never an empty one."""
    return answer(opcode, opaque, status, value=STATUS_TEXT[status])


def statistics_answers(opaque: bytes, pairs: list[tuple[bytes, bytes]]) -> bytes:
    """The answers to a STAT: a frame for each name and value, and the terminator."""
    frames = [answer(Opcode.STAT, opaque, key=name, value=value) for name, value in pairs]
    frames.append(answer(Opcode.STAT, opaque))
    return b"".join(frames)


def key_of(frame: bytes) -> bytes:
    """The key of one whole frame, request or answer."""
    start = HEADER_LENGTH + frame[4]
    return frame[start : start + int.from_bytes(frame[2:4], "big")]


def pieces(frames: bytes, longest: int) -> Iterator[bytes]:
    """Cut a run of whole requests between them, into pieces of at most `longest` bytes.

    A request that is longer than that is a piece by itself.
    """
    begin = end = 0
    while end < len(frames):
        *_, body = unpack_request(frames, end)
        stop = end + HEADER_LENGTH + body
        if stop - begin > longest and end > begin:
            yield frames[begin:end]
            begin = end
        end = stop
    yield frames[begin:]


class Frame(NamedTuple):
    """One whole frame taken apart, for those who are not in a hurry."""

    magic: int
    opcode: int
    status: int
    """Status of an answer, vbucket of a request."""
    opaque: bytes
    cas: int
    extras: bytes
    key: bytes
    value: bytes


def split(data: bytes) -> tuple[list[Frame], bytes]:
    """Take all whole frames off the front of `data`.

    Returns the frames and the bytes that are left. Raises `ValueError` where key and
    extras are longer than the body.
    """
    frames: list[Frame] = []
    position = 0
    while len(data) - position >= HEADER_LENGTH:
        magic, opcode, keys, extras, _, status, body, opaque, cas = _HEADER.unpack_from(
            data, position
        )
        if keys + extras > body:
            raise ValueError(f"key and extras of {keys + extras} bytes in a body of {body}")
        start = position + HEADER_LENGTH
        stop = start + body
        if stop > len(data):
            break
        key = start + extras
        frames.append(
            Frame(
                magic,
                opcode,
                status,
                opaque,
                cas,
                data[start:key],
                data[key : key + keys],
                data[key + keys : stop],
            )
        )
        position = stop
    return frames, data[position:]
