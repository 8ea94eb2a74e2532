"""The text protocol: from a line to what it asks for.

A line is words with blanks between them, the first of which is a verb. `wire.classic` and
`wire.meta` know the verbs, `wire.command` what they can ask for.
"""

import re
from typing import Final

from memtunnel.wire import classic, meta
from memtunnel.wire.binary import MAX_KEY_LENGTH
from memtunnel.wire.classic import GETTING, error
from memtunnel.wire.command import BAD_FORMAT, Command, Get, Quit, Say

#: As many words of a line are looked at, where it asks for no values.
MOST_WORDS: Final = 23

_BLANKS: Final = re.compile(rb" +")
_LONG_KEY: Final = re.compile(rb"[^ ]{%d}" % (MAX_KEY_LENGTH + 1))
_VERBS: Final = classic.VERBS | meta.VERBS


def words_of(line: bytes) -> list[bytes]:
    """The words of a line; it ends at a NUL, if there is one."""
    if b"\0" in line:
        line = line[: line.index(b"\0")]
    words = line.split(b" ")
    return [word for word in words if word] if b"" in words else words


def parse(line: bytes) -> Command:
    """What a line, without its end, asks for."""
    words = line.split(b" ")
    if b"" in words or b"\0" in line:  # not so for nearly all
        words = words_of(line)
    take = _VERBS.get(words[0]) if words else None
    if take is not None:
        return take(words)
    if words and len(words[0]) > 1 and words[:MOST_WORDS][-1].startswith(b"HTTP/"):
        # A browser was made to send this; what follows is not meant for a cache.
        return Quit()
    return error()


def parse_long(line: bytes) -> tuple[Command, bytes]:
    """The same for a long line: of a get, what it asks for first, and the keys that are left."""
    line = _BLANKS.sub(b" ", line.partition(b"\0")[0]).strip(b" ")
    if not line.startswith(GETTING) or line.count(b" ") < 3:
        return parse(line), b""
    # A verb, a time of expiry or a key, and another key; to part all the others takes long.
    *first, rest = line.split(b" ", 3)
    command = parse(b" ".join(first))
    if not isinstance(command, Get):
        return command, b""
    return (Say(BAD_FORMAT, command.opcode), b"") if _LONG_KEY.search(rest) else (command, rest)
