"""What a line of the text protocol can ask for, as values.

A line becomes one of the commands below: an error or another answer that needs no server (`Say`),
or what goes to servers as binary requests, together with the `Reply` that tells in text what came
of it. The verbs are in `wire.classic` and `wire.meta`.

Source: memcached 1.6.18's answers as measured, and its limits.
"""

from typing import Final

from memtunnel.wire.binary import Opcode, Status

#: What is told where there is no answer from a server, and a miss would be a lie.
UNAVAILABLE: Final = b"SERVER_ERROR temporarily unavailable\r\n"
ERROR: Final = b"ERROR\r\n"
#: What ends a list of values or statistics.
END: Final = b"END\r\n"
BAD_FORMAT: Final = b"CLIENT_ERROR bad command line format\r\n"
BAD_CHUNK: Final = b"CLIENT_ERROR bad data chunk\r\n"
TOO_LARGE: Final = b"SERVER_ERROR object too large for cache\r\n"
OUT_OF_MEMORY: Final = b"SERVER_ERROR out of memory storing object\r\n"
NON_NUMERIC: Final = b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"

#: The expiry time with which INCR and DECR do not create an item.
CREATE_NOTHING: Final = b"\xff\xff\xff\xff"
#: A CAS value that no item has: what is to fail for its CAS value fails with it.
NO_SUCH_CAS: Final = (1 << 64) - 1


class Reply:
    """How what came of a binary request is told in text."""

    __slots__ = ()

    def is_quiet(self) -> bool:
        """Whether some of its outcomes are not told."""
        return False

    def told(self, status: int, data: bytes | bytearray, start: int, stop: int) -> bytes:
        """The server's answer is the frame ``data[start:stop]``, or nothing but its status."""
        raise NotImplementedError

    def degraded(self, *, as_error: bool) -> bytes:
        """There is no answer from a server. `as_error` is ``--on-unavailable error``."""
        raise NotImplementedError


class Statistics(Reply):
    """To STAT: names and values, and `end` behind them.

    `raw` is for the one group whose only value is a text by itself.
    """

    __slots__ = ("end", "raw")

    def __init__(self, end: bytes, raw: bool = False) -> None:
        self.end = end
        self.raw = raw

    def listed(self, pairs: list[tuple[bytes, bytes]], *, whole: bool = True) -> bytes:
        """`whole` says that every server has answered; who did not list its own is left out."""
        if self.end != END and not whole:
            return UNAVAILABLE  # something was to be done, and is not done everywhere
        if self.raw:
            return pairs[0][1] if pairs else END
        lines = [
            b"STAT %b %b\r\n" % pair if pair[1] else b"STAT %b\r\n" % pair[0] for pair in pairs
        ]
        lines.append(self.end)
        return b"".join(lines)

    def told(self, status: int, data: bytes | bytearray, start: int, stop: int) -> bytes:
        return ERROR

    def degraded(self, *, as_error: bool) -> bytes:
        return self.listed([], whole=False)


class Command:
    """The base of all: what `wire.text.parse` returns."""

    __slots__ = ()


class Say(Command):
    """Nothing goes to a server: `text` is the answer, which may be empty.

    `opcode` and `status` are what it counts as.
    """

    __slots__ = ("opcode", "status", "text")

    def __init__(
        self, text: bytes, opcode: int = Opcode.NOOP, status: int = Status.INVALID
    ) -> None:
        self.text = text
        self.opcode = opcode
        self.status = status


class Skip(Command):
    """A block of `size` bytes cannot be used: it is read past, then `text` is the answer."""

    __slots__ = ("size", "text")

    def __init__(self, size: int, text: bytes) -> None:
        self.size = size
        self.text = text


class Get(Command):
    """A value for each of the keys: `opcode` is GET or GAT, `extras` what goes with it."""

    __slots__ = ("extras", "keys", "opcode", "with_cas")

    def __init__(self, opcode: int, extras: bytes, keys: list[bytes], with_cas: bool) -> None:
        self.opcode = opcode
        self.extras = extras
        self.keys = keys
        self.with_cas = with_cas


class Ask(Command):
    """One request for one key."""

    __slots__ = ("cas", "extras", "key", "opcode", "reply")

    def __init__(self, opcode: int, key: bytes, extras: bytes, cas: int, reply: Reply) -> None:
        self.opcode = opcode
        self.key = key
        self.extras = extras
        self.cas = cas
        self.reply = reply


class Store(Ask):
    """The same, with a block of `size` bytes that follows the line.

    `bad_chunk` is the answer where the block does not end with a line; `drops` says that an old
    value goes even where the new one is too large.
    """

    __slots__ = ("bad_chunk", "drops", "size")

    def __init__(
        self,
        opcode: int,
        key: bytes,
        extras: bytes,
        cas: int,
        reply: Reply,
        size: int,
        bad_chunk: bytes,
        drops: bool,
    ) -> None:
        super().__init__(opcode, key, extras, cas, reply)
        self.size = size
        self.bad_chunk = bad_chunk
        self.drops = drops


class Flush(Command):
    """FLUSH, on all servers; `extras` is the delay."""

    __slots__ = ("extras", "reply")

    def __init__(self, extras: bytes, reply: Reply) -> None:
        self.extras = extras
        self.reply = reply


class Stats(Command):
    """STAT for what `key` names, on all servers."""

    __slots__ = ("key", "reply")

    def __init__(self, key: bytes, reply: "Statistics") -> None:
        self.key = key
        self.reply = reply


class Version(Command):
    """What version the servers have."""

    __slots__ = ()


class Quit(Command):
    """The end: nothing is answered."""

    __slots__ = ()
