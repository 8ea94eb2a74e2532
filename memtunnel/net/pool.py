"""The connections to one server with one login: how many there are, and when to dial.

A pool keeps `size` of them warm from the start, replaces those that are lost and, make before
break, those that have reached their age, or that were made for another target. Which one a request
takes is decided in `core.server`.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, Final, Protocol

from twisted.logger import Logger

from memtunnel.core.breaker import State as BreakerState
from memtunnel.core.cluster import Cluster
from memtunnel.core.outcomes import HINTS, Lost
from memtunnel.core.pacing import Pacing
from memtunnel.core.server import Server
from memtunnel.core.tunnel import Tunnel
from memtunnel.net.turn import Turn
from memtunnel.net.upstream import Observer, State, Target, Upstream

#: Seconds after which a connection is replaced, give or take a tenth.
AGE: Final = 3600.0
#: A connection that is lost within so many seconds of being warm is flapping.
FLAPPING: Final = 10.0
#: Seconds between two looks at a server's certificate, where there is no login.
LOOK: Final = 30.0
#: An outage that goes on is said again after so many seconds.
REMINDER: Final = 60.0


class PoolCounts(Observer, Protocol):
    """What is counted for a pool; `ops.metrics` has the real one."""

    dialled: int
    connects: dict[str, int]
    disconnects: dict[str, int]
    desync: dict[str, int]
    flaps: int
    connect_duration: dict[str, Any]


class Pool:
    """`random` draws opaques, ages and waits. `cluster` hears what becomes of the login.

    It dials only when the connections of `former` pools of the same server are gone: else what is
    asked now could overtake what is in flight there.
    """

    def __init__(
        self,
        target: Target,
        server: Server,
        cluster: Cluster,
        tunnel: Tunnel,
        counts: PoolCounts,
        size: int,
        reactor: Any,
        turn: Turn,
        random: Random,
        log: Logger,
        former: Sequence[Pool] = (),
    ) -> None:
        self.target = target
        self.server = server
        server.address = target.address
        self._cluster = cluster
        self._tunnel = tunnel
        self._counts = counts
        self.size = size
        self._reactor = reactor
        self._turn = turn
        self._random = random
        self._log = log
        self._former = former
        self._next: Pool | None = None
        """The one that dials when the connections here are gone."""
        for pool in former:
            pool._next = self
        self._pacing = Pacing(random.uniform)
        self._redial: Any = None
        self._stopped = False
        self._trusted = False
        """Where there is no login: whether the certificate was trusted when it was seen last."""
        self._flapped = float("-inf")
        """When a connection was lost last that had just become warm."""
        self._stalled = False
        self._said: tuple[Lost, float] | None = None
        """The outage that was logged last, and when."""
        self.upstreams: dict[Upstream, None] = {}
        """All connections that are not lost, the oldest first."""
        self.last_lost = ""
        """Why the last connection was lost or not made, for the status."""
        self.last_lost_at = 0.0

    def count(self, *states: State) -> int:
        """How many connections are in one of these states."""
        return sum(1 for upstream in self.upstreams if upstream.state in states)

    @property
    def is_warm(self) -> bool:
        """Whether it can serve; without a login, whether that is all that is missing."""
        return bool(self.server.connections) or self._trusted

    @property
    def renewing(self) -> bool:
        """Whether it is still served by connections that were made for another target."""
        return self.count(State.WARM) > len(self._fitting())

    def configure(self, target: Target, size: int) -> None:
        """Keep `size` connections to `target` from the next `fill` on.

        If those that are there will not do, they serve until one that does is warm.
        """
        former, self.target = self.target, target
        self.server.address = target.address
        self.size = size
        if former != target:
            self._pacing = Pacing(self._random.uniform)
            self._said = None
            self._trusted = False
            self._give_up_dials()
        self._drain_surplus()

    def serves(self, target: Target, cluster: Cluster) -> bool:
        """Whether this is a pool of that server, whatever its name, with that login."""
        return self.target.address == target.address and self._cluster is cluster

    def retire(self) -> None:
        """Dial no more, and close the connections as soon as nothing is in flight on them."""
        self._stop_dialling()
        self._give_up_dials()
        for upstream in list(self.upstreams):
            upstream.drain()

    def fill(self) -> None:
        """Dial what is missing, as far as the pacing allows."""
        self._former = [pool for pool in self._former if pool.upstreams]
        if self._stopped or self._former:
            return
        now = self._reactor.seconds()
        fitting = self._fitting()
        warm = len(fitting)
        ageing = any(now >= upstream.retires for upstream in fitting)
        under_way = self.count(State.DIALLING, State.HANDSHAKE, State.LOGIN, State.PROBE)
        missing = self.size + ageing - warm - under_way
        while missing > 0 and under_way < self._pacing.at_once:
            wait = self._pacing.not_before - now
            if wait > 0:
                self._fill_later(wait)
                return
            missing -= 1
            under_way += 1
            self._dial()

    def tick(self, now: float) -> None:
        """Look after the connections, a few times a second."""
        for upstream in list(self.upstreams):
            upstream.tick(now)
        self.fill()
        self._say_stalled()

    def stop(self) -> None:
        """Close all connections, and dial no more."""
        self._stop_dialling()
        for upstream in list(self.upstreams):
            upstream.close()

    def _stop_dialling(self) -> None:
        self._stopped = True
        if self._redial is not None and self._redial.active():
            self._redial.cancel()

    def _give_up_dials(self) -> None:
        """Close what is not warm yet."""
        for upstream in list(self.upstreams):
            if upstream.state not in (State.WARM, State.DRAINING):
                upstream.close()

    def connection_warm(self, upstream: Upstream) -> None:
        now = self._reactor.seconds()
        if now - self._flapped >= FLAPPING:
            # Else it has yet to show that it stays: the waits go on growing.
            self._pacing.succeeded()
        self._count(self._counts.connects, "ok")
        upstream.retires = now + AGE * self._random.uniform(0.9, 1.1)
        if not self.is_warm:
            self._said = None
            self._log.info(
                "{server}: warm",
                server=self.server.name,
                event="warm",
                connection=upstream.mux.number,
            )
        self.server.add(upstream.mux, now)
        self._drain_surplus()
        self._cluster.accepted(now)
        self.fill()

    def _drain_surplus(self) -> None:
        """Made before broken: those go that are not for this target, if one is, and the oldest."""
        fitting = self._fitting()
        surplus = sorted(fitting, key=lambda one: one.retires)[: max(0, len(fitting) - self.size)]
        for one in list(self.upstreams):
            if one in surplus or (fitting and one.target != self.target):
                one.drain()

    def _fitting(self) -> list[Upstream]:
        """The warm connections that were made for this target."""
        return [
            one for one in self.upstreams if one.state is State.WARM and one.target == self.target
        ]

    def connection_lost(self, upstream: Upstream, lost: Lost, words: str, kind: str) -> None:
        now = self._reactor.seconds()
        del self.upstreams[upstream]
        self._trusted = upstream.target.only_trust and lost is Lost.RETIRED
        if self._trusted:
            self._said = None
            self._pacing.not_before = now + LOOK
        if self._next is not None:
            self._next.fill()
        if lost in (Lost.RETIRED, Lost.SHUTDOWN):
            self._count(self._counts.disconnects, lost)
            return
        self.last_lost = str(lost)
        self.last_lost_at = now
        if kind:
            self._count(self._counts.desync, kind)
        if upstream.was_warm:
            self._count(self._counts.disconnects, lost)
            if now - upstream.warm_since < FLAPPING:
                self._counts.flaps += 1
                self._flapped = now
                self._pacing.failed(now)
        else:
            self._count(self._counts.connects, lost)
            self._pacing.failed(now, login_refused=lost is Lost.LOGIN_REFUSED)
            self.server.dial_failed(now)
        self._say(upstream, lost, words or kind or HINTS.get(lost, ""), now)
        if lost is Lost.LOGIN_REFUSED:
            self._cluster.refused(now)
        self.fill()

    def _dial(self) -> None:
        self._counts.dialled += 1
        upstream = Upstream(
            self.target,
            self.server,
            self._tunnel,
            self,
            self._counts,
            self._reactor,
            self._turn,
            self._random.getrandbits(32),
            self._counts.dialled,
        )
        self.upstreams[upstream] = None
        upstream.dial()

    def _fill_later(self, wait: float) -> None:
        if self._redial is None or not self._redial.active():
            self._redial = self._reactor.callLater(wait, self.fill)

    def _say(self, upstream: Upstream, lost: Lost, words: str, now: float) -> None:
        """One line for each change of state; an outage that goes on is repeated rarely.

        What a client's own login meets that was never accepted is told by the client's listener:
        there can be ever new ones.
        """
        if not self._cluster.proven and self._cluster is not self._tunnel.cluster:
            return
        if not upstream.was_warm and self._said is not None:
            said, when = self._said
            if said is lost and now - when < REMINDER:
                return
        self._log.warn(
            "{server}: {_what}: {reason}{_words} ({warm} of {size} warm)",
            server=self.server.name,
            connection=upstream.mux.number,
            event="lost" if upstream.was_warm else "not_made",
            _what="connection lost" if upstream.was_warm else "no connection",
            reason=str(lost),
            _words=f" ({words})" if words else "",
            warm=self.count(State.WARM),
            size=self.size,
        )
        if not upstream.was_warm:
            self._said = (lost, now)

    def _say_stalled(self) -> None:
        """A stalled server may keep its connections: nothing else would tell of it."""
        stalled = self.server.breaker.state is BreakerState.STALLED
        if stalled != self._stalled and not self._stopped:
            self._stalled = stalled
            self._log.warn(
                "{server}: {_words}",
                server=self.server.name,
                event="stalled" if stalled else "answers",
                _words="stalled: its requests time out" if stalled else "answers again",
            )

    @staticmethod
    def _count(counts: dict[str, int], word: str) -> None:
        counts[str(word)] = counts.get(str(word), 0) + 1
