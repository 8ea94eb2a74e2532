"""The classic commands of the text protocol, from ``get`` to ``quit``, to and from binary requests.

Each verb has a function that makes a `Command` of the words of a line, the verb included. The
order in which a line is found wanting, and the words for it, are memcached's own.
"""

from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Final

from memtunnel.wire.binary import HEADER_LENGTH, MAX_KEY_LENGTH, STATUS_TEXT, Opcode, Status
from memtunnel.wire.command import (
    BAD_CHUNK,
    BAD_FORMAT,
    CREATE_NOTHING,
    END,
    ERROR,
    NO_SUCH_CAS,
    NON_NUMERIC,
    OUT_OF_MEMORY,
    TOO_LARGE,
    UNAVAILABLE,
    Ask,
    Command,
    Flush,
    Get,
    Quit,
    Reply,
    Say,
    Statistics,
    Stats,
    Store,
    Version,
)
from memtunnel.wire.numbers import block_size, expiry, signed, unsigned

NOREPLY: Final = b"noreply"
#: How lines begin that may be longer than others.
GETTING: Final = (b"get ", b"gets ", b"gat ", b"gats ")

_O = Opcode
_GET: Final = int(Opcode.GET)  # a plain number: a member of an enum is looked up
_STORED: Final = b"STORED\r\n"
_NOT_STORED: Final = b"NOT_STORED\r\n"
_NOT_FOUND: Final = b"NOT_FOUND\r\n"
_EXISTS: Final = b"EXISTS\r\n"
_OK: Final = b"OK\r\n"
_NO_EXPIRY: Final = b"CLIENT_ERROR invalid exptime argument\r\n"
_NO_DELTA: Final = b"CLIENT_ERROR invalid numeric delta argument\r\n"
_DELETE_USAGE: Final = b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"
_DETAIL_USAGE: Final = b"CLIENT_ERROR usage: stats detail on|off|dump\r\n"


#: The flags that begin at an offset.
_unpack_flags: Final[Callable[[bytes | bytearray, int], tuple[int]]] = Struct(">I").unpack_from


class Value(Reply):
    """To one key of a get. The one to the `last` key of its line has the line's end."""

    __slots__ = ("key", "last", "with_cas")

    def __init__(self, key: bytes, with_cas: bool, last: bool) -> None:
        self.key = key
        self.with_cas = with_cas
        self.last = last

    def told(self, status: int, data: bytes | bytearray, start: int, stop: int) -> bytes:
        end = END if self.last else b""
        if status:
            return end
        body = start + HEADER_LENGTH
        begin = body + data[start + 4]
        flags = _unpack_flags(data, body)[0] if begin - body == 4 else 0
        size = stop - begin
        cas = b" %d" % cas_of(data, start) if self.with_cas else b""
        value = bytes(data[begin:stop])
        # One formatting (0.3 µs); flags as bytes to be converted and a join take 0.55.
        return b"VALUE %b %d %d%b\r\n%b\r\n%b" % (self.key, flags, size, cas, value, end)

    def degraded(self, *, as_error: bool) -> bytes:
        return END if self.last else b""


class Words(Reply):
    """One of a few words, by status. `unavailable` is for want of a server's answer."""

    __slots__ = ("unavailable", "words")

    def __init__(self, words: dict[int, bytes], unavailable: bytes = UNAVAILABLE) -> None:
        self.words = words
        self.unavailable = unavailable

    def told(self, status: int, data: bytes | bytearray, start: int, stop: int) -> bytes:
        return self.words.get(status) or server_error(status)

    def degraded(self, *, as_error: bool) -> bytes:
        return UNAVAILABLE if as_error else self.unavailable


class Number(Words):
    """The new number, or a word."""

    __slots__ = ()

    def told(self, status: int, data: bytes | bytearray, start: int, stop: int) -> bytes:
        if status:
            return super().told(status, data, start, stop)
        return b"%d\r\n" % number_of(data, start, stop)


class Silent(Reply):
    """The client asked for no answer, not even to an error."""

    __slots__ = ()

    def is_quiet(self) -> bool:
        return True

    def told(self, status: int, data: bytes | bytearray, start: int, stop: int) -> bytes:
        return b""

    def degraded(self, *, as_error: bool) -> bytes:
        return b""


def cas_of(data: bytes | bytearray, start: int) -> int:
    """The CAS value of an answer."""
    return int.from_bytes(data[start + 16 : start + HEADER_LENGTH], "big")


def number_of(data: bytes | bytearray, start: int, stop: int) -> int:
    """The number that is the value of an answer."""
    return int.from_bytes(data[max(start + HEADER_LENGTH, stop - 8) : stop], "big")


def server_error(status: int) -> bytes:
    """What is told of a status for which the command has no word."""
    return b"SERVER_ERROR %b\r\n" % STATUS_TEXT.get(status, b"Unknown status")


SILENT: Final = Silent()
#: What no store is spared.
_REFUSED: Final[dict[int, bytes]] = {
    Status.TOO_LARGE: TOO_LARGE,
    Status.INVALID: BAD_FORMAT,
    Status.NOT_STORED: _NOT_STORED,
    Status.OUT_OF_MEMORY: OUT_OF_MEMORY,
}
_STORE: Final = Words(
    _REFUSED | {Status.OK: _STORED, Status.NOT_FOUND: _NOT_STORED, Status.EXISTS: _NOT_STORED},
    _NOT_STORED,
)
_CAS: Final = Words(
    _REFUSED | {Status.OK: _STORED, Status.NOT_FOUND: _NOT_FOUND, Status.EXISTS: _EXISTS},
    _NOT_STORED,
)
_DELETE: Final = Words({Status.OK: b"DELETED\r\n", Status.NOT_FOUND: _NOT_FOUND})
_TOUCH: Final = Words({Status.OK: b"TOUCHED\r\n", Status.NOT_FOUND: _NOT_FOUND})
_COUNT: Final = Number(
    {
        Status.NOT_FOUND: _NOT_FOUND,
        Status.NON_NUMERIC: NON_NUMERIC,
        Status.OUT_OF_MEMORY: b"SERVER_ERROR out of memory\r\n",
    }
)
_FLUSH: Final = Words({Status.OK: _OK})


def error(opcode: int = 0xFF) -> Say:
    """No such command, or not with so many words."""
    return Say(ERROR, opcode, Status.UNKNOWN_COMMAND)


def _unless(quiet: bool, text: bytes, opcode: int) -> Say:
    return Say(b"" if quiet else text, opcode)


def _get(with_cas: bool, words: list[bytes]) -> Command:
    if len(words) == 2 and len(words[1]) <= MAX_KEY_LENGTH:  # written out: nearly all are that
        return Get(_GET, b"", words[1:], with_cas)
    if len(words) < 2:
        return error(_O.GET)
    if len(max(words, key=len)) > MAX_KEY_LENGTH:
        return Say(BAD_FORMAT, _O.GET)
    return Get(_GET, b"", words[1:], with_cas)


def _gat(with_cas: bool, words: list[bytes]) -> Command:
    if len(words) < 2:
        return error(_O.GAT)
    extras = expiry(words[1])
    if extras is None:
        return Say(_NO_EXPIRY, _O.GAT)
    del words[:2]
    if max(map(len, words), default=0) > MAX_KEY_LENGTH:
        return Say(BAD_FORMAT, _O.GAT)
    return Get(_O.GAT, extras, words, with_cas)


def _store(opcode: int, with_cas: bool, words: list[bytes]) -> Command:
    """``cas`` is a REPLACE: a SET whose value is too large loses the old one, whoever stored it."""
    number = len(words)
    least = 6 if with_cas else 5
    if not least <= number <= least + 1:
        return error(opcode)
    quiet = words[-1] == NOREPLY
    key = words[1]
    flags = unsigned(words[2])
    expires = expiry(words[3])
    size = block_size(words[4])
    cas = unsigned(words[5]) if with_cas else 0
    if len(key) > MAX_KEY_LENGTH or flags is None or expires is None or size is None or cas is None:
        return _unless(quiet, BAD_FORMAT, opcode)
    extras = b""
    if opcode not in (_O.APPEND, _O.PREPEND):
        extras = (flags & 0xFFFFFFFF).to_bytes(4, "big") + expires
    reply = _CAS if with_cas else _STORE
    return Store(
        opcode,
        key,
        extras,
        (cas or NO_SUCH_CAS) if with_cas else 0,
        SILENT if quiet else reply,
        size,
        b"" if quiet else BAD_CHUNK,
        opcode == _O.SET,
    )


def _delete(words: list[bytes]) -> Command:
    number = len(words)
    if not 2 <= number <= 4:
        return error(_O.DELETE)
    quiet = number > 2 and words[-1] == NOREPLY
    if number > 2:
        # A time may stand there from of old, but only 0.
        timed = words[2] == b"0"
        if not ((number == 3 and (timed or quiet)) or (number == 4 and timed and quiet)):
            return _unless(quiet, _DELETE_USAGE, _O.DELETE)
    if len(words[1]) > MAX_KEY_LENGTH:
        return _unless(quiet, BAD_FORMAT, _O.DELETE)
    return Ask(_O.DELETE, words[1], b"", 0, SILENT if quiet else _DELETE)


def _count(opcode: int, words: list[bytes]) -> Command:
    if not 3 <= len(words) <= 4:
        return error(opcode)
    quiet = words[-1] == NOREPLY
    if len(words[1]) > MAX_KEY_LENGTH:
        return _unless(quiet, BAD_FORMAT, opcode)
    delta = unsigned(words[2])
    if delta is None:
        return _unless(quiet, _NO_DELTA, opcode)
    extras = delta.to_bytes(8, "big") + bytes(8) + CREATE_NOTHING
    return Ask(opcode, words[1], extras, 0, SILENT if quiet else _COUNT)


def _touch(words: list[bytes]) -> Command:
    if not 3 <= len(words) <= 4:
        return error(_O.TOUCH)
    quiet = words[-1] == NOREPLY
    if len(words[1]) > MAX_KEY_LENGTH:
        return _unless(quiet, BAD_FORMAT, _O.TOUCH)
    extras = expiry(words[2])
    if extras is None:
        return _unless(quiet, _NO_EXPIRY, _O.TOUCH)
    return Ask(_O.TOUCH, words[1], extras, 0, SILENT if quiet else _TOUCH)


def _flush_all(words: list[bytes]) -> Command:
    number = len(words)
    if number > 3:
        return error(_O.FLUSH)
    quiet = words[-1] == NOREPLY
    delay = 0
    if number != (2 if quiet else 1):
        seconds = signed(words[1])
        if seconds is None:
            return _unless(quiet, _NO_EXPIRY, _O.FLUSH)
        delay = seconds
    extras = delay.to_bytes(4, "big") if delay > 0 else b""
    return Flush(extras, SILENT if quiet else _FLUSH)


def _stats(words: list[bytes]) -> Command:
    group = words[1] if len(words) > 1 else b""
    if group == b"reset":
        return Stats(group, Statistics(b"RESET\r\n"))
    if group == b"detail":
        what = words[2] if len(words) > 2 else b""
        if what in (b"on", b"off"):
            return Stats(b"detail " + what, Statistics(_OK))
        if what == b"dump":
            return Stats(b"detail dump", Statistics(b"", raw=True))
        return Say(_DETAIL_USAGE, _O.STAT)
    if group == b"cachedump":
        return Say(b"CLIENT_ERROR stats cachedump not allowed\r\n", _O.STAT)
    if group == b"memtunnel" and len(words) > 2:
        group += b" " + words[2]
    if len(group) > MAX_KEY_LENGTH:
        return error(_O.STAT)
    return Stats(group, Statistics(END))


def _verbosity(words: list[bytes]) -> Command:
    if not 2 <= len(words) <= 3:
        return error()
    quiet = words[-1] == NOREPLY
    if unsigned(words[1]) is None:
        return _unless(quiet, BAD_FORMAT, 0xFF)
    # How much the servers log is not for one of their clients to say.
    return Say(b"" if quiet else _OK, 0xFF, Status.OK)


def _shutdown(words: list[bytes]) -> Command:
    return Say(b"ERROR: shutdown not enabled\r\n", 0xFF, Status.UNKNOWN_COMMAND)


VERBS: Final[dict[bytes, Callable[[list[bytes]], Command]]] = {
    b"get": partial(_get, False),
    b"bget": partial(_get, False),
    b"gets": partial(_get, True),
    b"gat": partial(_gat, False),
    b"gats": partial(_gat, True),
    b"set": partial(_store, _O.SET, False),
    b"add": partial(_store, _O.ADD, False),
    b"replace": partial(_store, _O.REPLACE, False),
    b"append": partial(_store, _O.APPEND, False),
    b"prepend": partial(_store, _O.PREPEND, False),
    b"cas": partial(_store, _O.REPLACE, True),
    b"delete": _delete,
    b"incr": partial(_count, _O.INCR),
    b"decr": partial(_count, _O.DECR),
    b"touch": _touch,
    b"flush_all": _flush_all,
    b"stats": _stats,
    b"verbosity": _verbosity,
    b"version": lambda words: Version(),
    b"quit": lambda words: Quit(),
    b"shutdown": _shutdown,
}
