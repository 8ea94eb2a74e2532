"""How things went lately: what was counted, interval by interval.

Prometheus has the whole story; this is the last of it, for those who look at the tunnel itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, islice
from typing import Any, Final, NamedTuple

from memtunnel.core.outcomes import STATUS_WORDS
from memtunnel.ops.metrics import LOCAL, REQUEST_BOUNDS, Histogram, Metrics

#: Seconds of an interval, and how many are kept: the last ten minutes.
INTERVAL: Final = 2.0
KEPT: Final = 300

_HIT: Final = STATUS_WORDS.index("hit")
_MISS: Final = STATUS_WORDS.index("miss")
#: Commands that find a value or do not.
_LOOKUPS: Final = ("get", "gat")


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What was counted so far, or within a time, of requests to all servers together."""

    requests: int
    hits: int
    misses: int
    degraded: int
    opened: int
    """Clients that connected."""
    sent_bytes: int
    """To servers."""
    received_bytes: int
    duration: Sequence[int]
    """Requests by upper edge of `REQUEST_BOUNDS`: whole, waiting in the tunnel, on the wire."""
    queue: Sequence[int]
    wire: Sequence[int]

    @classmethod
    def of(cls, metrics: Metrics) -> Totals:
        """Of all that was counted so far."""
        servers = [server for name, server in metrics.servers.items() if name != LOCAL]
        commands = [command for server in servers for command in server.commands.values()]
        lookups = [server.commands[word] for server in servers for word in _LOOKUPS]
        duration = _sum([command.duration for command in commands])
        return cls(
            requests=sum(duration),
            hits=sum(command.statuses[_HIT] for command in lookups),
            misses=sum(command.statuses[_MISS] for command in lookups),
            degraded=sum(metrics.degraded_replies.values()),
            opened=sum(listener.opened for listener in metrics.listeners.values()),
            sent_bytes=sum(server.sent_bytes for server in servers),
            received_bytes=sum(server.received_bytes for server in servers),
            duration=duration,
            queue=_sum([server.queue_duration for server in servers]),
            wire=_sum([server.upstream_duration for server in servers]),
        )

    def since(self, before: Totals) -> Totals:
        """What was counted between the two."""
        names = [each.name for each in fields(self)]
        return Totals(**{n: _difference(getattr(self, n), getattr(before, n)) for n in names})

    @property
    def hit_rate(self) -> float | None:
        """From 0 to 1; None where nothing was looked for."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else None


def _sum(histograms: Sequence[Histogram]) -> list[int]:
    # Most commands of most servers were never used.
    counts = [each.counts for each in histograms if each.sum]
    return [sum(column) for column in zip(*counts, strict=True)] or [0] * (len(REQUEST_BOUNDS) + 1)


def _difference(after: Any, before: Any) -> Any:
    if isinstance(after, int):
        return after - before
    return [one - other for one, other in zip(after, before, strict=True)]


def percentile(counts: Sequence[int], share: float) -> float | None:
    """Seconds within which this share of what is counted was done; None where there is nothing.

    `counts` are those of a `Histogram`. Within a bucket it is taken to be spread evenly, as
    Prometheus does; of what lies past the last edge nothing but that edge is known.
    """
    total = sum(counts)
    if not total:
        return None
    rank = share * total
    for place, reached in enumerate(accumulate(counts)):
        if reached >= rank and counts[place]:
            if place == len(REQUEST_BOUNDS):
                break
            lower = REQUEST_BOUNDS[place - 1] if place else 0.0
            upper = REQUEST_BOUNDS[place]
            return upper - (upper - lower) * (reached - rank) / counts[place]
    return REQUEST_BOUNDS[-1]


class Row(NamedTuple):
    """An interval. Rates are per second, times are seconds."""

    time: float
    """When it ended, by the monotonic clock."""
    requests: float
    degraded: float
    hit_rate: float | None
    p50: float | None
    p99: float | None
    queue_p99: float | None
    wire_p50: float | None
    wire_p99: float | None
    clients: int
    """Connected when it ended."""
    opened: float
    """Clients that connected."""
    sent_bytes: float
    received_bytes: float


class History:
    """The rows of the last minutes. They are numbered from 1 on."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque(maxlen=KEPT)
        self._number = 0
        """Of the row that came last."""
        self._last: tuple[float, Totals] | None = None

    def after(self, number: int) -> tuple[int, list[Row]]:
        """The number of the first row behind this one that is kept, and all from there on.

        For a number that there was not yet, those are all rows.
        """
        oldest = self._number - len(self._rows) + 1
        first = number + 1 if oldest <= number + 1 <= self._number + 1 else oldest
        return first, list(islice(self._rows, first - oldest, None))

    def observe(self, metrics: Metrics, now: float) -> Totals:
        """An interval ends: add its row. Returns what was counted so far."""
        totals = Totals.of(metrics)
        if self._last is not None:
            then, before = self._last
            self._rows.append(_row(totals.since(before), now, max(now - then, 1e-3), metrics))
            self._number += 1
        self._last = now, totals
        return totals


def _row(counted: Totals, now: float, seconds: float, metrics: Metrics) -> Row:
    state = metrics.state()
    return Row(
        time=now,
        requests=counted.requests / seconds,
        degraded=counted.degraded / seconds,
        hit_rate=counted.hit_rate,
        p50=percentile(counted.duration, 0.5),
        p99=percentile(counted.duration, 0.99),
        queue_p99=percentile(counted.queue, 0.99),
        wire_p50=percentile(counted.wire, 0.5),
        wire_p99=percentile(counted.wire, 0.99),
        clients=0 if state is None else state.clients,
        opened=counted.opened / seconds,
        sent_bytes=counted.sent_bytes / seconds,
        received_bytes=counted.received_bytes / seconds,
    )
