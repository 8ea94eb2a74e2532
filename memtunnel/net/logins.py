"""Which logins there are upstream, and the pools of each.

Usually there is one login, the configured one. Where clients' own logins are used upstream there
is one more for each of those, made when a client comes with it and retired when none has had it
for a while.

Whoever guesses passwords is to harm nobody. A refused login is remembered for a moment, so that a
client that tries again and again does not make the tunnel dial each time; after a few refusals only
one new login a second is tried, and the others wait. What has no verdict yet takes no place from a
login that was accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

from memtunnel.core.cluster import Cluster, Verdict
from memtunnel.core.routing import Router
from memtunnel.core.session import Session
from memtunnel.net.pool import Pool
from memtunnel.net.upstream import Target
from memtunnel.wire.sasl import Credentials

#: Seconds that an accepted login is kept which no client has, and any other one.
IDLE: Final = 60.0
REMEMBERED: Final = 5.0
#: Seconds between the logins that are tried once so many were refused lately. That is forgotten at
#: the same pace: of the refused ones, one in each interval.
TRY_INTERVAL: Final = 1.0
QUICK_TRIES: Final = 8
#: How many logins may wait to be tried.
WAITING: Final = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is dialled, whoever logs in."""

    targets: Mapping[str, Target]
    """By the server's name in the ring, in the order of `router`. Each login puts its own
    credentials in; `only_trust` is for where it has none."""
    router: Router
    pool_size: int


#: Makes the pool of a server: its name, where to dial, for whom, how many connections, and the
#: pools whose connections have to be gone before.
MakePool = Callable[[str, Target, Cluster, int, Sequence[Pool]], Pool]


class Login:
    """One login's cluster, with a pool for each of its servers."""

    def __init__(
        self,
        credentials: Credentials | None,
        cluster: Cluster,
        plan: Plan,
        make_pool: MakePool,
        *,
        waits: bool = False,
    ) -> None:
        self._make_pool = make_pool
        self.cluster = cluster
        self.pools: list[Pool] = []
        self.used = 0.0
        """When a client came with it, or had it, last."""
        self.waits = waits
        """Whether it is yet to be tried: it dials nothing until then."""
        self.configure(credentials, plan, (), (), 0.0)

    def configure(
        self,
        credentials: Credentials | None,
        plan: Plan,
        sessions: Iterable[Session],
        retiring: Sequence[Pool],
        now: float,
    ) -> list[Pool]:
        """Have a pool for each server of the plan; `sessions` are those with this login.

        One of `retiring` may be that of a server which is back: what that has in flight is not to
        be overtaken. Returns the pools of servers that are gone.
        """
        self.credentials = credentials
        self.cluster.want(credentials)
        known = {pool.server.name: pool for pool in self.pools}
        pools = []
        for name, target in plan.targets.items():
            only_trust = target.only_trust and credentials is None
            mine = replace(target, credentials=credentials, only_trust=only_trust)
            pool = known.pop(name, None)
            if pool is None:
                former = [one for one in retiring if one.serves(mine, self.cluster)]
                pool = self._make_pool(name, mine, self.cluster, plan.pool_size, former)
            else:
                pool.configure(mine, plan.pool_size)
            pools.append(pool)
        self.pools = pools
        self.cluster.reshape([pool.server for pool in pools], plan.router, sessions, now)
        for pool in known.values():
            pool.retire()
        return list(known.values())

    def fill(self) -> None:
        """Dial what is missing, unless it waits."""
        if not self.waits:
            for pool in self.pools:
                pool.fill()

    def begin(self) -> None:
        """Wait no longer."""
        self.waits = False
        self.fill()

    @property
    def retired(self) -> bool:
        """Whether it has no pools any more."""
        return not self.pools

    def retire(self) -> list[Pool]:
        """Dial no more. Returns its pools, which may have something in flight yet."""
        pools, self.pools = self.pools, []
        for pool in pools:
            pool.retire()
        return pools


class Logins:
    """`default` is for clients without a login of their own; `most` bounds the others.

    It has `credentials`, and `cluster` gets its servers.
    """

    def __init__(
        self,
        credentials: Credentials | None,
        cluster: Cluster,
        plan: Plan,
        make_pool: MakePool,
        most: int,
        seconds: Callable[[], float],
    ) -> None:
        self._plan = plan
        self._make_pool = make_pool
        self._seconds = seconds
        self._others: dict[Credentials, Login] = {}
        self._retiring: list[Pool] = []
        """Those that are not dialled for any more, as long as they have connections."""
        self._forgiven = 0.0
        """When the last refused login will be forgotten."""
        self._next_try = 0.0
        """When the next of those that wait may be tried."""
        self.most = most
        self.default = Login(credentials, cluster, plan, make_pool)

    def __iter__(self) -> Iterator[Login]:
        yield self.default
        yield from self._others.values()

    @property
    def pools(self) -> list[Pool]:
        """All that have connections to be looked after."""
        tried = [login for login in self if not login.waits]
        return [pool for login in tried for pool in login.pools] + self._retiring

    def log_in(self, credentials: Credentials) -> Cluster | None:
        """The cluster of a client that comes with this login; None if there are too many."""
        now = self._seconds()
        login = self._others.get(credentials)
        if login is None:
            refused = self._refused_lately(now)
            if not self._may_wait(refused):
                return None
            cluster = Cluster((), self._plan.router, credentials)
            cluster.waiting[self] = None
            waits = refused >= QUICK_TRIES or self._full
            login = Login(credentials, cluster, self._plan, self._make_pool, waits=waits)
            self._others[credentials] = login
            login.fill()
            self._try_next(now)
        if not login.retired:
            login.used = now
        return login.cluster

    def judged(self, right: bool, now: float) -> None:
        """There is a first verdict on a login."""
        if right:
            self._make_room()
        else:
            self._forgiven = now + (self._refused_lately(now) + 1) * TRY_INTERVAL

    def configure(
        self, credentials: Credentials | None, plan: Plan, sessions: Iterable[Session]
    ) -> None:
        """Follow another plan, with other credentials for clients without a login of their own."""
        self._plan = plan
        for login in list(self._others.values()):
            if login.retired:
                self._forget(login)
        having: dict[Cluster, list[Session]] = {}
        for session in sessions:
            having.setdefault(session.cluster, []).append(session)
        now = self._seconds()
        for login in self:
            own = credentials if login is self.default else login.credentials
            its = having.get(login.cluster, ())
            self._retiring += login.configure(own, plan, its, self._retiring, now)
            login.fill()

    def tidy(self, now: float) -> None:
        """Retire the logins that no client has had for a while."""
        self._retiring = [pool for pool in self._retiring if pool.upstreams]
        for login in list(self._others.values()):
            cluster = login.cluster
            refused = cluster.verdict is Verdict.REFUSED
            # One that was accepted once may be so again. Else its clients are about to be told.
            if cluster.clients and (cluster.proven or not refused):
                login.used = now
                continue
            kept = IDLE if cluster.verdict is Verdict.ACCEPTED else REMEMBERED
            if now - login.used >= kept:
                self._forget(login)
            elif refused:
                self._retiring += login.retire()
        self._try_next(now)

    def stop(self) -> None:
        """Close all connections."""
        for pool in self.pools:
            pool.stop()

    def _may_wait(self, refused: int) -> bool:
        """Whether one more login may come, where so many were refused lately.

        As many of those that are there without a verdict may be wrong as well, and are to turn
        away no right one.
        """
        wrong = refused if refused < QUICK_TRIES else WAITING
        used = self._used
        return used < self.most and used + len(self._unjudged) < self.most + wrong

    @property
    def _full(self) -> bool:
        """Whether those in use, and those that are being tried, are as many as there may be."""
        tried = sum(1 for login in self._unjudged if not login.waits)
        return self._used + tried >= self.most

    @property
    def _used(self) -> int:
        """How many logins that were accepted have clients."""
        clusters = [login.cluster for login in self._others.values()]
        return sum(1 for cluster in clusters if cluster.proven and cluster.clients)

    @property
    def _unjudged(self) -> list[Login]:
        return [one for one in self._others.values() if one.cluster.verdict is Verdict.NONE]

    def _make_room(self) -> None:
        """Of accepted logins that no client has, retire those that are too many by now."""
        proven = [one for one in self._others.values() if one.cluster.proven]
        idle = [one for one in proven if not one.cluster.clients]
        idle.sort(key=lambda one: one.used)
        for one in idle[: max(0, len(proven) - self.most)]:
            self._forget(one)

    def _try_next(self, now: float) -> None:
        """Try the login that has waited longest, if it is time and there is room."""
        waiting = next((login for login in self._others.values() if login.waits), None)
        if waiting is not None and now >= self._next_try and not self._full:
            self._next_try = now + TRY_INTERVAL
            waiting.begin()

    def _refused_lately(self, now: float) -> int:
        return max(0, ceil((self._forgiven - now) / TRY_INTERVAL))

    def _forget(self, login: Login) -> None:
        assert login.credentials is not None
        del self._others[login.credentials]
        self._retiring += login.retire()
