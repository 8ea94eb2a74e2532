"""One request of a client that takes other requests to servers: STAT, FLUSH, and a SET too large.

The client's request holds its place in the order; a `Gather` owns those that go upstream, and
settles it once the last of them is settled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from memtunnel.core.outcomes import REASON_STATUS, Reason, passes, refusal_reason, status_index
from memtunnel.core.request import Request, one_by_one
from memtunnel.wire.binary import Frame, Opcode, Status, split

if TYPE_CHECKING:
    from memtunnel.core.session import Session

#: Bytes of statistics that are kept of one server.
MAX_STATISTICS: Final = 1024 * 1024
#: Digits of a number of 64 bits.
_LONGEST_NUMBER: Final = 20
#: Numbers that make no sense as a sum over servers.
_NO_SUM: Final = frozenset((b"pid", b"uptime", b"time", b"pointer_size"))


class Gather:
    """Collects the outcomes of one request to several servers.

    `slot` is the client's request, `names` those of the servers, by the index in `send`.
    """

    __slots__ = (
        "_kept",
        "_left",
        "_names",
        "_places",
        "_reserved",
        "_session",
        "_slot",
        "answers",
        "reason",
    )

    def __init__(self, session: Session, slot: Request, names: list[str]) -> None:
        self._session = session
        self._slot = slot
        self._names = names
        self._left = len(names)
        self._places: dict[Request, int] = {}
        self._reserved = 0
        self._kept = [0] * len(names)
        """Bytes of each server's answer so far."""
        self.answers: list[list[bytes]] = [[] for _ in names]
        self.reason: Reason | None = None
        """Why one of the servers did not answer."""

    def expect(self, request: Request, place: int) -> None:
        """`request` goes to the server at `place`."""
        self._places[request] = place

    def answered(
        self, request: Request, status: int, data: bytes, start: int, stop: int, now: float
    ) -> None:
        place = self._places[request]
        self._kept[place] += stop - start
        if self._kept[place] <= MAX_STATISTICS:
            self.answers[place].append(data[start:stop])
            self._reserved += stop - start
            self._session.tunnel.budget.used += stop - start
        if request.opcode == Opcode.STAT and status == Status.OK and stop - start > 24:
            return
        if not passes(request.opcode, status):
            self.failed(request, refusal_reason(status), now)
        else:
            self._settled(request, status_index(status), now)

    def all_answered(
        self, requests: list[Request], data: bytearray, start: int, stop: int, now: float
    ) -> None:
        one_by_one(self.answered, requests, data, start, now)

    def failed(self, request: Request, reason: Reason, now: float) -> None:
        self.answers[self._places[request]].clear()
        self.reason = reason
        self._settled(request, REASON_STATUS[reason], now)

    def unserved(self, request: Request, now: float) -> None:
        self.failed(request, Reason.NO_UPSTREAM, now)

    def growing(self, request: Request, size: int) -> None:
        request.size += size

    def outcome(self) -> tuple[int | None, list[tuple[bytes, bytes]]]:
        """The status of the whole, None for want of an answer; names and values of statistics."""
        raise NotImplementedError

    def _settled(self, request: Request, status: int, now: float) -> None:
        request.answer = b""
        size = self._kept[self._places[request]]
        self._session.tunnel.settled(request, status, now, now, size)
        self._left -= 1
        if not self._left:
            self._session.tunnel.budget.release(self._reserved)
            whole, statistics = self.outcome()
            self._session.conclude(self._slot, whole, statistics, self.reason, now)

    def frames(self, place: int) -> list[Frame]:
        """The frames of one server's answer."""
        return split(b"".join(self.answers[place]))[0]


class FlushGather(Gather):
    """FLUSH: done only if all configured servers say so."""

    __slots__ = ()

    def outcome(self) -> tuple[int | None, list[tuple[bytes, bytes]]]:
        places = range(len(self.answers))
        worst = max((one.status for place in places for one in self.frames(place)), default=0)
        missing = self.reason is not None or (worst and len(self.answers) > 1)
        return (None if missing else worst), []


class TooLargeGather(Gather):
    """A SET whose value is too large: the old value is deleted, as memcached does."""

    __slots__ = ()

    def unserved(self, request: Request, now: float) -> None:
        if not self._session.fail_over(request, now):
            super().unserved(request, now)

    def outcome(self) -> tuple[int | None, list[tuple[bytes, bytes]]]:
        return Status.TOO_LARGE, []


class StatGather(Gather):
    """STAT: one sequence, whatever the servers say.

    Of several servers the numbers are summed, other values are the first server's, and each
    follows again as ``NAME:statistic``. Servers that do not answer are left out.
    """

    __slots__ = ()

    def outcome(self) -> tuple[int | None, list[tuple[bytes, bytes]]]:
        said = [
            (name, frames)
            for place, name in enumerate(self._names)
            if (frames := self.frames(place))
        ]
        if not said:
            return None, []
        known = [(name, frames) for name, frames in said if not frames[0].status]
        if not known:
            # An unknown statistic: one frame, and no terminator after it.
            return said[0][1][0].status, []
        statistics = [
            (name, {frame.key: frame.value for frame in frames if frame.key})
            for name, frames in known
        ]
        if len(self._names) == 1:
            return Status.OK, [pair for _, one in statistics for pair in one.items()]
        return Status.OK, merge(statistics)


def _is_number(value: bytes) -> bool:
    return value.isdigit() and len(value) <= _LONGEST_NUMBER


def merge(statistics: list[tuple[str, dict[bytes, bytes]]]) -> list[tuple[bytes, bytes]]:
    """The statistics of several servers as one list: together first, then each by name."""
    together: dict[bytes, bytes] = {}
    for _, values in statistics:
        for name, value in values.items():
            known = together.get(name)
            if known is None:
                together[name] = value
            elif name not in _NO_SUM and _is_number(known) and _is_number(value):
                together[name] = b"%d" % (int(known) + int(value))
    apart = [
        (f"{server}:".encode() + name, value)
        for server, values in statistics
        for name, value in values.items()
    ]
    return [*together.items(), *apart]
