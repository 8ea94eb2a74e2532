"""One server: its warm connections, who waits for one, and whether it takes requests at all.

Connections are made elsewhere; here they are multiplexers that come (`add`), take no more
(`drain`) and go (`lose`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from memtunnel.core.breaker import Breaker
from memtunnel.core.budget import Budget
from memtunnel.core.lane import Lane
from memtunnel.core.mux import MAX_ENTRIES, MAX_UNSENT, Multiplexer
from memtunnel.core.outcomes import Reason
from memtunnel.core.request import Request
from memtunnel.core.routing import Router
from memtunnel.wire.binary import LOUD, READS, Opcode, key_of

if TYPE_CHECKING:
    from memtunnel.core.cluster import Cluster


class ServerCounts(Protocol):
    """What a server's requests are counted with; `ops.metrics` has the real one."""

    failovers: int
    retries: dict[str, int]

    def answered(
        self,
        command: int,
        status: int,
        arrived: float,
        sent: float,
        received: float,
        now: float,
        number: int = 1,
    ) -> None:
        """Requests were settled: loud opcode, index in `STATUS_WORDS`, times, how many."""


class Server:
    """`name` is its name in the ring."""

    __slots__ = (
        "_budget",
        "address",
        "breaker",
        "cluster",
        "connections",
        "counts",
        "index",
        "name",
        "queue",
        "queued",
        "refusing",
    )

    def __init__(self, name: str, counts: ServerCounts, budget: Budget) -> None:
        self.name = name
        self.address = name
        """Where it is dialled, as ``HOST:PORT``; set by who dials."""
        self.cluster: Cluster | None = None
        """The one that it serves in; what was asked in it goes to no other one's servers."""
        self.index = 0
        """Its place there."""
        self.counts = counts
        self._budget = budget
        self.breaker = Breaker()
        self.connections: list[Multiplexer] = []
        """Those that take requests."""
        self.queue: dict[Lane, None] = {}
        """The lanes in which something waits, in the order in which they began to."""
        self.queued = 0
        self.refusing = False
        """Whether the breaker is open: kept here as a plain slot for the path of each request."""

    def choose(self) -> Multiplexer | None:
        """The connection with the least load, or None where there is none."""
        connections = self.connections
        if not connections:
            return None
        best = connections[0]
        if len(connections) > 1:
            least = best.load
            for mux in connections:
                load = mux.load
                if load < least:
                    best, least = mux, load
        if best.load >= MAX_ENTRIES or best.unsent_bytes >= MAX_UNSENT:  # written out: each asks
            return next((mux for mux in connections if not mux.full), best)
        return best

    def add(self, mux: Multiplexer, now: float) -> None:
        """A connection has become warm."""
        self.connections.append(mux)
        self.breaker.connected()
        self.refusing = self.breaker.is_open
        for lane in list(self.queue):
            lane.resume(now)

    def drain(self, mux: Multiplexer) -> None:
        """Send nothing more on this connection."""
        mux.draining = True
        if mux in self.connections:
            self.connections.remove(mux)

    def fix_strays(self, router: Router) -> None:
        """Let what waits here move no more if its key's own server is another by `router`.

        It came from one that was down, or stayed here when the servers changed before: that other
        one may have been given what was asked later.
        """
        for lane in self.queue:
            for request in lane.waiting:
                assert request.frame is not None
                if router.server_of(key_of(request.frame)) != self.index:
                    request.fixed = True

    def withdraw(self, now: float) -> None:
        """Take no requests any more: it is none of its cluster's servers now."""
        self.breaker.withdraw()
        self._open(now)

    def lose(self, mux: Multiplexer, now: float) -> None:
        """A connection is gone: move what was never written, read once more what only reads.

        Not where the server takes no requests: what was asked later has gone to others already,
        and must not be overtaken.
        """
        self.drain(mux)
        written, unsent = mux.lose()
        lanes: dict[Lane, list[Request]] = {}
        failed: list[Request] = []
        wrote: set[Lane] = set()
        for request in reversed(written):
            lane = request.lane
            if lane is None:
                if request.owner is not None:
                    failed.append(request)
                continue
            reads = LOUD[request.opcode] in READS
            if reads and request.owner is None:
                continue  # it left its lane when it was given up
            back = lanes.setdefault(lane, [])
            again = reads and not (request.retried or lane in wrote or self.refusing)
            if request.owner is None:
                request.end_unowned()
            elif again:
                request.retried = True
                grown = request.size - len(request.frame or b"")
                if grown:
                    # What had come of its answer does not count: it comes anew.
                    request.owner.growing(request, -grown)
                back.append(request)
                self._count_retry("upstream_lost")
            else:
                failed.append(request)
            if not reads:
                # A write that may have been executed: what came before it must not be read now.
                wrote.add(lane)
        for back in lanes.values():
            back.reverse()
        for request in unsent:
            if request.lane is None:
                failed.append(request)
                continue
            back = lanes.setdefault(request.lane, [])
            if not self.refusing:
                back.append(request)
                self._count_retry("never_sent")
            elif request.owner is not None:
                failed.append(request)
            else:
                request.end_unowned()
        for lane, back in lanes.items():
            lane.take_back(back)
        for request in reversed(failed):
            if request.owner is not None:
                request.owner.failed(request, Reason.UPSTREAM_LOST, now)
        for lane in lanes:
            lane.resume(now)

    def expire(self, request: Request, now: float) -> None:
        """The deadline of an unsettled request has passed."""
        owner = request.owner
        lane = request.lane
        if request.mux is not None:
            # Only what the server had a fair share of the time for says something about it.
            fair = request.sent and now - request.sent >= (now - request.arrived) / 2
            request.mux.abandon(request, now)
            if fair and LOUD[request.opcode] != Opcode.STAT and self.breaker.timed_out(now):
                self._open(now)
        elif lane is not None:
            starved = not self.connections and not lane.in_flight
            lane.give_up(request)
            if starved and self.breaker.waited_out():
                self._open(now)
        if owner is not None:
            owner.failed(request, Reason.TIMEOUT, now)
        else:
            request.end_unowned()

    def dial_failed(self, now: float) -> None:
        """A connection could not be made."""
        if not self.connections and self.breaker.dial_failed():
            self._open(now)

    def answered(self) -> None:
        """A data request was answered in time."""
        if self.breaker.answered():
            self.refusing = False

    def waits(self, request: Request) -> bool:
        """Count a request that waits; False where no more may."""
        self.queued += 1
        self._budget.used += request.size
        return not self._budget.exhausted

    def waits_no_more(self, request: Request) -> None:
        """Count a request that waited off again."""
        self.queued -= 1
        self._budget.used -= request.size

    def oldest(self) -> float | None:
        """When the request that waits longest arrived."""
        return min((lane.waiting[0].arrived for lane in self.queue if lane.waiting), default=None)

    def _open(self, now: float) -> None:
        self.refusing = True
        for lane in list(self.queue):
            lane.divert(now)

    def _count_retry(self, reason: str) -> None:
        self.counts.retries[reason] = self.counts.retries.get(reason, 0) + 1
