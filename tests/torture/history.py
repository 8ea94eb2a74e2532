"""What is known to be stored: by key, the writes that were asked, acknowledged and refused.

Each key has one writer, which numbers its writes; a value says who it is::

    key | writer | number | length of the whole | crc32 of the rest and the padding | padding

A write that was answered as failed may still have taken effect, and may take it later than one that
came after it (the excuse of promise P2): its number stays possible for good. What was acknowledged
is lost where the server that has it is restarted, which is counted as its next *life*.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from zlib import crc32

LARGEST = 600_000
_PADDING = Random(0).randbytes(LARGEST)


def value_of(key: bytes, writer: int, number: int, length: int) -> bytes:
    """A value of about `length` bytes: at least what it takes to say who it is."""
    padding = _PADDING[: max(0, length - len(key) - 30)]
    head = b"%s|%d|%d|" % (key, writer, number)
    # The length is written with six digits, so that it counts itself.
    head += b"%06d|" % (len(head) + 7 + 9 + len(padding))
    return b"%s%08x|%s" % (head, crc32(padding, crc32(head)), padding)


def parse(value: bytes) -> tuple[bytes, int, int]:
    """Key, writer and number of a value. Raises ValueError where nobody wrote this."""
    key, writer, number, length, crc, padding = value.split(b"|", 5)
    head = value[: len(value) - len(padding) - 9]
    if int(length) != len(value) or int(crc, 16) != crc32(padding, crc32(head)):
        raise ValueError("its length or checksum is wrong")
    return key, int(writer), int(number)


class Server:
    """What the clients know of one server."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.life = 0
        """How often it has lost all that it had."""
        self.listening_since: float | None = None
        """Set by who restarts it, until the first good reply has come."""
        self.recoveries: list[float] = []
        """Seconds from listening again to the first good reply."""

    def said_well(self, now: float) -> None:
        """A reply came that only the server itself can have made."""
        if self.listening_since is not None:
            self.recoveries.append(now - self.listening_since)
            self.listening_since = None


class Key:
    """One key and its writer's deeds."""

    __slots__ = ("acknowledged", "asked", "gone", "life", "name", "possible", "server", "writer")
    __slots__ += ("deleted", "doubtful")

    def __init__(self, name: bytes, writer: int, server: Server) -> None:
        self.name = name
        self.writer = writer
        self.server = server
        self.asked = 0
        """The number of the last write; a delete is one."""
        self.acknowledged = 0
        """The number of the last write that was acknowledged."""
        self.gone = True
        """Whether that was a delete (or nothing yet)."""
        self.life = -1
        """The life of the server in which that was."""
        self.possible: set[int] = set()
        """Writes that failed, or whose outcome nobody told."""
        self.deleted = 0
        """The number of the last delete that was asked."""
        self.doubtful = False
        """Whether a delete failed, so that one may still come."""

    def ask(self, *, delete: bool = False) -> int:
        """The number of a write that is asked now."""
        self.asked += 1
        if delete:
            self.deleted = self.asked
        return self.asked

    def succeeded(self, number: int, life: int, *, delete: bool = False) -> None:
        """A write was acknowledged that was asked in this life of the server."""
        self.acknowledged = number
        self.gone = delete
        self.life = life if life == self.server.life else -1
        self.possible.discard(number)

    def failed(self, number: int, *, delete: bool = False) -> None:
        """A write was refused, or nobody will tell what came of it."""
        if delete:
            self.doubtful = True
        else:
            self.possible.add(number)

    def judge(self, value: bytes, floor: int, ceiling: int) -> str:
        """What is wrong with a value that was read: nothing, "excused", or the fault in words.

        `floor` was acknowledged before it was asked for, `ceiling` is the last that was asked.
        """
        try:
            name, writer, number = parse(value)
        except ValueError as problem:
            return f"wrong: a value that nobody wrote under {self.name!r}: {problem}"
        if name != self.name or writer != self.writer:
            return f"crossed: the value of {name!r} under {self.name!r}"
        if number > ceiling:
            return f"wrong: write {number} of {self.name!r}, {ceiling} was the last"
        if number < floor and number in self.possible:
            return "excused"
        if number < floor:
            return f"stale: write {number} of {self.name!r}, {floor} was acknowledged"
        return ""


def audit(keys: Iterable[tuple[Key, int, int, bool]], stored: dict[bytes, bytes]) -> list[str]:
    """What is wrong with what a server holds.

    Each key comes with the life, the number and the kind (gone or not) of its last acknowledged
    write, as they were noted before `stored` was read.
    """
    wrong = []
    for key, life, floor, gone in keys:
        value = stored.get(key.name)
        if value is not None:
            verdict = key.judge(value, floor, key.asked)
            if verdict and verdict != "excused":
                wrong.append(verdict)
        elif life == key.server.life and not (gone or key.doubtful or key.deleted > floor):
            wrong.append(f"lost: write {floor} of {key.name!r} was acknowledged")
    return wrong
