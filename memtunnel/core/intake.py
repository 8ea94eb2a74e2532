"""The bytes of one client that do not make a whole frame yet.

The head of a frame is kept until the rest has come, or, where the frame cannot be used, its
rest is read past without being kept. What a frame means is its session's business.
"""

from collections.abc import Callable
from typing import Final

from memtunnel.core.budget import Budget

#: Bytes of a frame that is kept without asking whether there is memory for it.
SMALL_FRAME: Final = 1024
#: The same of a line.
SMALL_LINE: Final = 2048


class Intake:
    """`since` is when the first byte of the unfinished frame came, 0 where there is none.

    `began` is that of the frame whose bytes `feed` returned last. While both are 0, bytes need not
    go through `feed`: that is so for nearly all reads.
    """

    __slots__ = (
        "_budget",
        "_buffer",
        "_line",
        "_needed",
        "_reserved",
        "_skip",
        "_then",
        "began",
        "since",
    )

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._buffer = bytearray()
        self._line = False
        """Whether the end of a line is waited for, and not just a number of bytes."""
        self._needed = 0
        self._reserved = 0
        self._skip = 0
        self._then: Callable[[float], None] | None = None
        self.began = 0.0
        self.since = 0.0

    def feed(self, data: bytes, now: float) -> bytes:
        """Take bytes; return those that can be looked at, none while more are needed."""
        self.began = self.since
        if self._skip:
            if self._line:
                skipped = data.find(b"\n") + 1
                self._skip = 0 if skipped else 1
            else:
                skipped = min(self._skip, len(data))
                self._skip -= skipped
            if self._skip:
                return b""
            then, self._then = self._then, None
            self.clear()
            self.began = 0.0
            assert then is not None
            then(now)
            return data[skipped:]
        if not self._buffer:
            return data
        self._buffer += data
        if len(self._buffer) < self._needed and not (self._line and b"\n" in data):
            return b""
        data = bytes(self._buffer)
        self.clear()
        return data

    def keep(self, data: bytes, position: int, needed: int, now: float) -> bool:
        """Keep the frame that begins at `position` until `needed` bytes of it are there.

        False, and nothing is kept, where there is no memory for so many.
        """
        if needed > SMALL_FRAME and not self._reserve(needed):
            return False
        self._keep(data, position, needed, now)
        return True

    def keep_line(self, data: bytes, position: int, longest: int, now: float) -> bool:
        """The same for a line, until its end or `longest` bytes of it are there."""
        if longest > SMALL_LINE and not self._reserve(longest):
            return False
        self._line = True
        self._keep(data, position, longest, now)
        return True

    def skip(self, size: int, position: int, now: float, then: Callable[[float], None]) -> None:
        """Read past `size` bytes, the rest of the frame at `position`; then call `then`."""
        self._skip = size
        self._then = then
        self._unfinished(position, now)

    def skip_line(self, position: int, now: float, then: Callable[[float], None]) -> None:
        """Read past the line at `position`, whose end is not there yet; then call `then`."""
        self._line = True
        self.skip(1, position, now, then)

    def clear(self) -> None:
        """Forget the unfinished frame."""
        self._budget.release(self._reserved)
        self._reserved = 0
        self._skip = 0
        self._line = False
        self._buffer.clear()
        self.since = 0.0

    def _reserve(self, size: int) -> bool:
        if not self._budget.reserve(size):
            return False
        self._reserved = size
        return True

    def _keep(self, data: bytes, position: int, needed: int, now: float) -> None:
        self._needed = needed
        self._buffer += data[position:]
        self._unfinished(position, now)

    def _unfinished(self, position: int, now: float) -> None:
        # A frame at the front may have begun with an earlier read.
        self.since = self.began if position == 0 and self.began else now
