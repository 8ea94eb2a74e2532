"""Looks at what was counted, again and again: for the status page's history, and for the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from memtunnel.ops.history import INTERVAL, History, Totals, percentile
from memtunnel.ops.metrics import Metrics

#: Intervals between two lines of figures: a minute.
LINE: Final = 30


class Recorder:
    """`read` gives the metrics as they are now. `source` names this tunnel among others.

    `figures` says whether a line of them is logged each minute.
    """

    def __init__(
        self, read: Callable[[], Deferred[Metrics]], reactor: Any, source: str, *, figures: bool
    ) -> None:
        self._log = Logger(namespace="memtunnel")
        self.history = History()
        self.figures = figures
        self._read = read
        self._seconds: Callable[[], float] = reactor.seconds
        self._source = source
        self._until_line = LINE
        self._line_began: Totals | None = None
        self._loop = LoopingCall(self._look)
        self._loop.clock = reactor

    def start(self) -> None:
        """Look now, and from now on."""
        self._loop.start(INTERVAL)

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def _look(self) -> None:
        # Not waited for: those who hang are no reason to look less often.
        maybeDeferred(self._read).addCallback(self._observe).addErrback(
            lambda failure: self._log.failure("figures could not be read", failure)
        )

    def _observe(self, metrics: Metrics) -> None:
        totals = self.history.observe(metrics, self._seconds())
        if self._line_began is None:
            self._line_began = totals
            return
        self._until_line -= 1
        if not self._until_line:
            if self.figures:
                counted = totals.since(self._line_began)
                line = l2met(self._source, counted, metrics)
                self._log.info("{_line}", event="figures", _line=line)
            self._line_began = totals
            self._until_line = LINE


def l2met(source: str, counted: Totals, metrics: Metrics) -> str:
    """What was counted within a time, in the form that log drains take for figures."""
    state = metrics.state()
    figures = [
        f"source={source}",
        f"count#memtunnel.requests={counted.requests}",
        f"count#memtunnel.hits={counted.hits}",
        f"count#memtunnel.misses={counted.misses}",
        f"count#memtunnel.degraded={counted.degraded}",
        f"count#memtunnel.clients.opened={counted.opened}",
    ]
    for name, counts, share in (
        ("p50", counted.duration, 0.5),
        ("p99", counted.duration, 0.99),
        ("queue.p99", counted.queue, 0.99),
        ("wire.p99", counted.wire, 0.99),
    ):
        seconds = percentile(counts, share)
        if seconds is not None:
            figures.append(f"sample#memtunnel.{name}={seconds * 1000:.3f}ms")
    if state is not None:
        up = sum(server.up for server in state.servers.values())
        figures += [
            f"sample#memtunnel.clients={state.clients}",
            f"sample#memtunnel.servers.up={up}",
            f"sample#memtunnel.servers.down={len(state.servers) - up}",
        ]
    return " ".join(figures)
