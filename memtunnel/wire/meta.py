"""The meta commands of the text protocol, ``mg`` to ``mn``, to and from binary requests.

A meta command is a verb, a key and flags of one letter, some with a token behind them. Most flags
ask for a part of the answer. What a binary request cannot carry (how long an item will live, when
it was read last, stale items) is refused as `UNSUPPORTED`: no answer is better than a wrong one.
"""

from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Mapping
from typing import Final

from memtunnel.wire.binary import HEADER_LENGTH, MAX_KEY_LENGTH, Opcode, Status
from memtunnel.wire.classic import cas_of, error, number_of, server_error
from memtunnel.wire.command import (
    BAD_CHUNK,
    BAD_FORMAT,
    CREATE_NOTHING,
    NO_SUCH_CAS,
    NON_NUMERIC,
    OUT_OF_MEMORY,
    TOO_LARGE,
    UNAVAILABLE,
    Ask,
    Command,
    Reply,
    Say,
    Skip,
    Store,
)
from memtunnel.wire.numbers import block_size, expiry, unsigned

#: What is said to a flag, or a whole command, that has no counterpart in the binary protocol.
UNSUPPORTED: Final = b"CLIENT_ERROR unsupported flag\r\n"
UNSUPPORTED_COMMAND: Final = b"CLIENT_ERROR unsupported command\r\n"
#: By verb, the flags that are refused so. All others are carried, or have no meaning there.
REFUSED: Final[Mapping[bytes, bytes]] = {b"mg": b"hltNR", b"ms": b"I", b"md": b"I", b"ma": b"tT"}
#: Words of a line, the verb and its key included.
_MOST_WORDS: Final = 19
_LONGEST_OPAQUE: Final = 32

_O = Opcode
_EN: Final = b"EN"
_HD: Final = b"HD"
_NF: Final = b"NF"
_NS: Final = b"NS"
_EX: Final = b"EX"
_BAD_TOKEN: Final = b"CLIENT_ERROR bad token in command line format\r\n"
_BAD_FLAG: Final = b"CLIENT_ERROR invalid or duplicate flag\r\n"
_LONG_OPAQUE: Final = b"CLIENT_ERROR opaque token too long\r\n"
_TOO_MANY: Final = b"CLIENT_ERROR options flags too long\r\n"
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_NOT_BASE64: Final = bytes(set(range(256)) - set(_BASE64))
_KNOWN: Final = frozenset(b"bNTRlOPLkstcfvhuqFCMJDI")
# The letters of flags, as they are found in a line.
_b, _c, _f, _k, _q, _s, _v = b"bcfkqsv"
_C, _D, _F, _J, _M, _N, _O_, _T = b"CDFJMNOT"


class Flags:
    """The flags of a line. `problem` is the error in memcached's words, empty where all is well."""

    __slots__ = ("cas", "client", "delta", "expires", "initial", "key", "mode", "problem",
                 "quiet", "shown", "tokens", "value", "vivify")  # fmt: skip

    def __init__(self, key: bytes, tokens: list[bytes]) -> None:
        self.key = key
        """As it goes to the server."""
        self.shown = b" k" + key
        """As it is shown to the client, for the flag ``k``."""
        self.tokens: list[bytes] = []
        """The flags that ask to hear something, an opaque as a whole."""
        self.quiet = False
        self.value = False
        self.expires = b""
        """Four bytes, empty where no time of expiry is given."""
        self.vivify = b""
        """The same, for an item that is to be created where there is none."""
        self.cas: int | None = None
        self.client = 0
        self.mode = b""
        self.initial = 0
        self.delta = 1
        self.problem = self._take(tokens)

    def _take(self, tokens: list[bytes]) -> bytes:
        seen: set[int] = set()
        problem = b""
        for token in tokens:
            flag = token[0]
            if flag >= 127 or flag in seen:
                return b"CLIENT_ERROR duplicate flag\r\n"
            seen.add(flag)
            if flag not in _KNOWN:
                return b"CLIENT_ERROR invalid flag\r\n"
            # What is kept as long as the request is not answered has to be short.
            self.tokens.append(token[: _LONGEST_OPAQUE + 1] if flag == _O_ else token[:1])
            problem = self._one(flag, token[1:], problem) or problem
        return problem

    def _one(self, flag: int, token: bytes, problem: bytes) -> bytes:
        """Take one flag; returns what is wrong with it."""
        if flag == _q:
            self.quiet = True
        elif flag == _v:
            self.value = True
        elif flag == _b:
            key = base64_key(self.key)
            if not key:
                return b"CLIENT_ERROR error decoding key\r\n"
            self.key = key
            self.shown = b" k" + b2a_base64(key, newline=False) + b" b"
        elif flag in b"TNR":
            seconds = expiry(token)
            if seconds is None:
                return _BAD_TOKEN
            if flag == _T:
                self.expires = seconds
            elif flag == _N:
                self.vivify = seconds
        elif flag == _F:
            number = unsigned(token)
            if number is None:
                return problem or BAD_FORMAT
            self.client = number & 0xFFFFFFFF
        elif flag == _C:
            self.cas = unsigned(token)
            return _BAD_TOKEN if self.cas is None else b""
        elif flag == _M:
            if len(token) != 1:
                return b"CLIENT_ERROR incorrect length for M token\r\n"
            self.mode = token
        elif flag == _J:
            number = unsigned(token)
            if number is None:
                return b"CLIENT_ERROR invalid numeric initial value\r\n"
            self.initial = number
        elif flag == _D:
            number = unsigned(token)
            if number is None:
                return b"CLIENT_ERROR invalid numeric delta value\r\n"
            self.delta = number
        return b""

    def refused(self, verb: bytes) -> bytes:
        """The error that a flag of this verb is answered with, if there is one."""
        if any(token[0] in REFUSED[verb] for token in self.tokens):
            return UNSUPPORTED
        if any(token[0] == _O_ and len(token) > _LONGEST_OPAQUE for token in self.tokens):
            return _LONG_OPAQUE
        return b""


def base64_key(encoded: bytes) -> bytes:
    """A key in base64, as memcached decodes it: what is not of its alphabet is passed over.

    Empty where it cannot be decoded.
    """
    encoded = encoded.translate(None, _NOT_BASE64)
    if len(encoded) % 4:
        return b""
    padding = encoded.find(b"=")
    if padding < 0:
        return a2b_base64(encoded)
    # The block with the first padding is the last one, wherever in it the padding stands.
    encoded = encoded[: padding // 4 * 4 + 4]
    missing = encoded.count(b"=")
    return a2b_base64(encoded.replace(b"=", b"A"))[:-missing] if missing <= 2 else b""


class MetaReply(Reply):
    """To any meta command: a word by status, or a whole line, and what the flags ask to hear.

    `silent` is the status that is not told in quiet mode; `unavailable` is the word for want of a
    server's answer, empty where that is an error.
    """

    __slots__ = ("_flags", "_silent", "_unavailable", "_words")

    def __init__(
        self, flags: Flags, words: dict[int, bytes], silent: int, unavailable: bytes = b""
    ) -> None:
        self._flags = flags
        self._words = words
        self._silent = silent
        self._unavailable = unavailable

    def is_quiet(self) -> bool:
        return self._flags.quiet

    def told(self, status: int, data: bytes | bytearray, start: int, stop: int) -> bytes:
        if self._flags.quiet and status == self._silent:
            return b""
        word = self._words.get(status)
        if word is None:
            return server_error(status)
        return word if len(word) > 2 else self._line(word, status, data, start, stop)

    def degraded(self, *, as_error: bool) -> bytes:
        word = self._unavailable
        if not word or (as_error and word != _EN):
            return UNAVAILABLE
        if self._flags.quiet and self._silent == Status.NOT_FOUND:
            return b""
        return self._line(word, Status.NOT_FOUND, b"", 0, 0)

    def _line(
        self, word: bytes, status: int, data: bytes | bytearray, start: int, stop: int
    ) -> bytes:
        parts = [word]
        for token in self._flags.tokens:
            if token[0] == _k:
                parts.append(self._flags.shown)
            elif token[0] == _O_:
                parts.append(b" " + token)
            else:
                parts.append(self._shown(token[0], status, data, start, stop))
        parts.append(b"\r\n")
        return b"".join(parts)

    def _shown(
        self, flag: int, status: int, data: bytes | bytearray, start: int, stop: int
    ) -> bytes:
        """What a flag asks to hear, if it asks for anything."""
        return b""


class GetReply(MetaReply):
    """To ``mg``."""

    __slots__ = ()

    def told(self, status: int, data: bytes | bytearray, start: int, stop: int) -> bytes:
        if status or not self._flags.value:
            return super().told(status, data, start, stop)
        value = data[start + HEADER_LENGTH + data[start + 4] : stop]
        return b"".join((self._line(b"VA %d" % len(value), 0, data, start, stop), value, b"\r\n"))

    def _shown(
        self, flag: int, status: int, data: bytes | bytearray, start: int, stop: int
    ) -> bytes:
        if status:
            return b""
        body = start + HEADER_LENGTH
        if flag == _f:
            return b" f%d" % int.from_bytes(data[body : body + data[start + 4]], "big")
        if flag == _s:
            return b" s%d" % (stop - body - data[start + 4])
        return b" c%d" % cas_of(data, start) if flag == _c else b""


class StoreReply(MetaReply):
    """To ``ms``, which shows a CAS value in any case: 0 where nothing was stored."""

    __slots__ = ()

    def _shown(
        self, flag: int, status: int, data: bytes | bytearray, start: int, stop: int
    ) -> bytes:
        if flag != _c:
            return b""
        return b" c0" if status else b" c%d" % cas_of(data, start)


class CountReply(MetaReply):
    """To ``ma``."""

    __slots__ = ()

    def told(self, status: int, data: bytes | bytearray, start: int, stop: int) -> bytes:
        if status or self._flags.quiet or not self._flags.value:
            return super().told(status, data, start, stop)
        value = b"%d" % number_of(data, start, stop)
        return b"".join((self._line(b"VA %d" % len(value), 0, data, start, stop), value, b"\r\n"))

    def _shown(
        self, flag: int, status: int, data: bytes | bytearray, start: int, stop: int
    ) -> bytes:
        return b" c%d" % cas_of(data, start) if flag == _c and not status else b""


_GET: Final[dict[int, bytes]] = {Status.OK: _HD, Status.NOT_FOUND: _EN}
_STORED: Final[dict[int, bytes]] = {
    Status.OK: _HD,
    Status.NOT_FOUND: _NS,
    Status.EXISTS: _NS,
    Status.NOT_STORED: _NS,
    Status.TOO_LARGE: TOO_LARGE,
    Status.INVALID: BAD_FORMAT,
    Status.OUT_OF_MEMORY: OUT_OF_MEMORY,
}
_COMPARED: Final = _STORED | {Status.NOT_FOUND: _NF, Status.EXISTS: _EX}
_JOINED: Final = _STORED | {Status.EXISTS: _EX}
_DELETED: Final[dict[int, bytes]] = {Status.OK: _HD, Status.NOT_FOUND: _NF, Status.EXISTS: _EX}
_COUNTED: Final = _DELETED | {
    Status.NON_NUMERIC: NON_NUMERIC,
    Status.OUT_OF_MEMORY: b"SERVER_ERROR out of memory\r\n",
}
_MODES: Final = {
    b"": _O.SET,
    b"S": _O.SET,
    b"E": _O.ADD,
    b"A": _O.APPEND,
    b"P": _O.PREPEND,
    b"R": _O.REPLACE,
}
_COUNTS: Final = {b"": _O.INCR, b"I": _O.INCR, b"+": _O.INCR, b"D": _O.DECR, b"-": _O.DECR}


def _unfit(words: list[bytes], opcode: int, too_many: bytes = _TOO_MANY) -> Say | None:
    """What is wrong with a line before its flags are looked at."""
    if len(words) < 2:
        return error(opcode)
    if len(words[1]) > MAX_KEY_LENGTH:
        return Say(BAD_FORMAT, opcode)
    return Say(too_many, opcode) if len(words) > _MOST_WORDS else None


def _get(words: list[bytes]) -> Command:
    unfit = _unfit(words, _O.GET, b"CLIENT_ERROR options flags are too long\r\n")
    if unfit is not None:
        return unfit
    flags = Flags(words[1], words[2:])
    problem = flags.problem or flags.refused(b"mg")
    if problem:
        return Say(problem, _O.GET)
    opcode = _O.GAT if flags.expires else _O.GET
    return Ask(opcode, flags.key, flags.expires, 0, GetReply(flags, _GET, Status.NOT_FOUND, _EN))


def _set(words: list[bytes]) -> Command:
    if len(words) == 2:
        return Say(BAD_FORMAT, _O.SET)
    unfit = _unfit(words, _O.SET)
    if unfit is not None:
        return unfit
    size = block_size(words[2])
    if size is None:
        return Say(BAD_FORMAT, _O.SET)
    flags = Flags(words[1], words[3:])
    opcode = _MODES.get(flags.mode)
    problem = flags.problem
    if not problem and opcode is None:
        problem = b"CLIENT_ERROR invalid mode for ms M token\r\n"
    problem = problem or flags.refused(b"ms")
    if problem or opcode is None:
        return Skip(size, problem)
    cas = flags.cas or 0
    outcomes = _STORED
    if opcode in (_O.APPEND, _O.PREPEND):
        outcomes = _JOINED
    elif opcode == _O.ADD:
        cas = 0
    elif flags.cas is not None:
        # With a CAS value to compare, both set and replace are what ``cas`` is.
        opcode, cas, outcomes = _O.SET, cas or NO_SUCH_CAS, _COMPARED
    extras = b""
    if outcomes is not _JOINED:
        extras = flags.client.to_bytes(4, "big") + (flags.expires or bytes(4))
    reply = StoreReply(flags, outcomes, Status.OK, _NS)
    return Store(opcode, flags.key, extras, cas, reply, size, BAD_CHUNK, drops=True)


def _delete(words: list[bytes]) -> Command:
    unfit = _unfit(words, _O.DELETE)
    if unfit is not None:
        return unfit
    flags = Flags(words[1], words[2:])
    problem = (_BAD_FLAG if flags.problem else b"") or flags.refused(b"md")
    if problem:
        return Say(problem, _O.DELETE)
    cas = 0 if flags.cas is None else flags.cas or NO_SUCH_CAS
    return Ask(_O.DELETE, flags.key, b"", cas, MetaReply(flags, _DELETED, Status.OK))


def _count(words: list[bytes]) -> Command:
    unfit = _unfit(words, _O.INCR)
    if unfit is not None:
        return unfit
    flags = Flags(words[1], words[2:])
    opcode = _COUNTS.get(flags.mode)
    problem = _BAD_FLAG if flags.problem else b""
    if not problem and opcode is None:
        problem = b"CLIENT_ERROR invalid mode for ma M token\r\n"
    problem = problem or flags.refused(b"ma")
    if problem or opcode is None:
        return Say(problem, _O.INCR)
    numbers = flags.delta.to_bytes(8, "big") + flags.initial.to_bytes(8, "big")
    extras = numbers + (flags.vivify or CREATE_NOTHING)
    return Ask(opcode, flags.key, extras, flags.cas or 0, CountReply(flags, _COUNTED, Status.OK))


def _debug(words: list[bytes]) -> Command:
    return Say(UNSUPPORTED_COMMAND, _O.GET)


def _no_op(words: list[bytes]) -> Command:
    return Say(b"MN\r\n", _O.NOOP, Status.OK)


VERBS: Final[dict[bytes, Callable[[list[bytes]], Command]]] = {
    b"mg": _get,
    b"ms": _set,
    b"md": _delete,
    b"ma": _count,
    b"me": _debug,
    b"mn": _no_op,
}
