"""The requests that were slow or failed last, and samples of all others, one by one.

What is kept of a request says where its time went, and to which key it belongs only by a short
salted hash: equal for equal keys as long as the tunnel runs, and of no use to anybody after that.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from operator import attrgetter
from typing import Final, NamedTuple

from memtunnel.core.outcomes import STATUS_WORDS, Notable
from memtunnel.core.request import Request
from memtunnel.ops.epoch import timestamp
from memtunnel.ops.metrics import COMMANDS, LOCAL
from memtunnel.wire.binary import GETS, LOUD, key_of

#: Slow and failed requests that are kept, and samples.
KEPT: Final = 100
KEPT_SAMPLES: Final = 50
#: Requests that are noted a second: in an outage all fail, and the last moment of it is no more
#: worth to be seen than its beginning.
A_SECOND: Final = 50
#: Lines that may be logged within so many seconds.
LINES: Final = 10
LINES_SECONDS: Final = 60.0
SALT_LENGTH: Final = 16


class Entry(NamedTuple):
    """One request. Times are seconds; `settled` is one of the monotonic clock."""

    settled: float
    command: str
    status: str
    why: str
    """A word of `Notable`."""
    server: str
    connection: int | None
    """The number of the connection that it was sent on; None for none."""
    total: float
    queue: float
    """Waiting in the tunnel until it was written, or to the end."""
    wire: float | None
    """From written to its answer parsed; None if it never was written."""
    bytes: int
    """Of request and answer together."""
    key: str
    """The hash of its key; empty where it has none."""
    worker: str = ""
    number: int = 0
    """Counts the entries that a log ever kept."""

    def described(self, epoch: float, *, with_key: bool) -> str:
        """In one line, for programs: words with ``=``; what there is not is left out."""
        told = {
            "time": timestamp(self.settled + epoch),
            "command": self.command,
            "status": self.status,
            "why": self.why,
            "server": self.server,
            "connection": self.connection,
            "worker": self.worker,
            "total_ms": f"{self.total * 1000:.3f}",
            "queue_ms": f"{self.queue * 1000:.3f}",
            "wire_ms": None if self.wire is None else f"{self.wire * 1000:.3f}",
            "bytes": self.bytes,
            "key": self.key if with_key else "",
        }
        return " ".join(
            f"{name}={value}" for name, value in told.items() if value not in (None, "")
        )

    def __str__(self) -> str:
        """In one line, for people."""
        wire = "not sent" if self.wire is None else f"wire {self.wire * 1000:.1f} ms"
        parts = [
            f"queue {self.queue * 1000:.1f} ms",
            wire,
            f"{self.bytes} bytes",
            *([] if self.connection is None else [f"connection {self.connection}"]),
            *([f"key {self.key}"] if self.key else []),
        ]
        took = f"{self.total * 1000:.1f} ms"
        return f"{self.command} {self.status} after {took} ({', '.join(parts)})"


def _newest_first(entries: Iterable[Entry]) -> list[Entry]:
    # Those of several workers come as they tell of them, not in the order of time.
    return sorted(entries, key=attrgetter("settled", "number"), reverse=True)


class SlowLog:
    """`say` is told what is worth a line in the log, and how many were not since the last one.

    `tells_keys` is whether clients are told the hashes of keys: not where they must not know of
    others'.
    """

    def __init__(
        self,
        say: Callable[[Entry, int], None] = lambda entry, unsaid: None,
        *,
        tells_keys: bool = True,
    ) -> None:
        self._say = say
        self._tells_keys = tells_keys
        self._unsaid = 0
        self._lines = Allowance(LINES, LINES_SECONDS)
        self.salt = os.urandom(SALT_LENGTH)
        self.noted: deque[Entry] = deque(maxlen=KEPT)
        self.samples: deque[Entry] = deque(maxlen=KEPT_SAMPLES)
        self._described: tuple[tuple[str, str], ...] = ()
        self._described_at = 0, 0.0
        self.added = 0
        """How many were ever kept."""
        self.untold = 0
        """How many were not noted, because they came too fast."""
        self._allowance = Allowance(A_SECOND, 1.0)
        self._samples_allowance = Allowance(A_SECOND, 1.0)

    def note(
        self, request: Request, why: Notable, status: int, received: float, now: float, size: int
    ) -> None:
        """Keep what there is to say of a settled request, unless there are too many."""
        sample = why is Notable.SAMPLE
        if not (self._samples_allowance if sample else self._allowance).take(now):
            self.untold += 1
            self._unsaid += not sample
            return
        entry = self._entry(request, why, status, received, now, size)
        self.add(entry)
        if sample:
            return
        if self._lines.take(now):
            unsaid, self._unsaid = self._unsaid, 0
            self._say(entry, unsaid)
        else:
            self._unsaid += 1

    def add(self, entry: Entry) -> None:
        """Keep an entry."""
        self.added += 1
        kept = self.samples if entry.why == Notable.SAMPLE else self.noted
        kept.append(entry._replace(number=self.added))

    def __iter__(self) -> Iterator[Entry]:
        """All entries, the newest first."""
        return iter(_newest_first((*self.noted, *self.samples)))

    def after(self, number: int) -> list[Entry]:
        """The entries with higher numbers, the oldest first."""
        both = (*self.noted, *self.samples)
        return sorted((one for one in both if one.number > number), key=attrgetter("number"))

    def described(self, epoch: float) -> tuple[tuple[str, str], ...]:
        """The names and values of ``STAT memtunnel slow``: the newest is 1, samples come last.

        `epoch` is what makes seconds since the epoch of the monotonic clock's.
        """
        if self._described_at != (self.added, epoch):
            # Any client may ask, as often as it likes.
            self._described_at = self.added, epoch
            listed = (*_newest_first(self.noted), *_newest_first(self.samples))
            self._described = tuple(
                (str(place), entry.described(epoch, with_key=self._tells_keys))
                for place, entry in enumerate(listed, 1)
            )
        return self._described

    def _entry(
        self, request: Request, why: Notable, status: int, received: float, now: float, size: int
    ) -> Entry:
        lane = request.lane
        frame = request.frame
        sent = request.sent
        # Of a get there is the whole frame, and its size may have the answer in it already.
        asked = len(frame) if frame and LOUD[request.opcode] in GETS else request.size
        key = key_of(frame) if frame else b""
        return Entry(
            settled=now,
            command=COMMANDS[request.opcode],
            status=STATUS_WORDS[status],
            why=str(why),
            server=LOCAL if lane is None else lane.server.name,
            connection=request.connection if sent else None,
            total=round(now - request.arrived, 6),
            queue=round((sent or now) - request.arrived, 6),
            wire=round(received - sent, 6) if sent else None,
            bytes=asked + size,
            key=blake2b(key, digest_size=4, key=self.salt).hexdigest() if key else "",
        )


class Allowance:
    """So many in so many seconds, evenly given back, and never saved up beyond that."""

    __slots__ = ("_left", "_most", "_pace", "_since")

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._pace = most / seconds
        self._left = float(most)
        self._since = float("-inf")

    def take(self, now: float) -> bool:
        """Whether there is one left at this time; then it is taken."""
        if now > self._since:
            self._left = min(self._most, self._left + (now - self._since) * self._pace)
            self._since = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
