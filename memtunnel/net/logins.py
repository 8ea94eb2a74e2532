"""Which logins there are upstream, and the pools of each.

Usually there is one login, the configured one. Where clients' own logins are used upstream there
is one more for each of those, made when a client comes with it and retired when none has had it
for a while. A refused login is remembered for a moment, so that a client that tries again and
again does not make the tunnel dial each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from memtunnel.core.cluster import Cluster, Verdict
from memtunnel.core.routing import Router
from memtunnel.core.session import Session
from memtunnel.net.pool import Pool
from memtunnel.net.upstream import Target
from memtunnel.wire.sasl import Credentials

#: Seconds that a login is kept which no client has, and that a refused one is remembered.
IDLE: Final = 60.0
REMEMBERED: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is dialled, whoever logs in."""

    targets: Mapping[str, Target]
    """By the server's name in the ring, in the order of `router`. Each login puts its own
    credentials in; `only_trust` is for where it has none."""
    router: Router
    pool_size: int


#: Makes the pool of a server: its name, where to dial, for whom, and how many connections.
MakePool = Callable[[str, Target, Cluster, int], Pool]


class Login:
    """One login's cluster, with a pool for each of its servers."""

    def __init__(
        self, credentials: Credentials | None, cluster: Cluster, plan: Plan, make_pool: MakePool
    ) -> None:
        self._make_pool = make_pool
        self.cluster = cluster
        self.pools: list[Pool] = []
        self.used = 0.0
        """When a client came with it, or had it, last."""
        self.configure(credentials, plan, (), 0.0)

    def configure(
        self, credentials: Credentials | None, plan: Plan, sessions: Iterable[Session], now: float
    ) -> list[Pool]:
        """Have a pool for each server of the plan; `sessions` are those with this login.

        Returns the pools of servers that are gone.
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
                pool = self._make_pool(name, mine, self.cluster, plan.pool_size)
            else:
                pool.configure(mine, plan.pool_size)
            pools.append(pool)
        self.pools = pools
        self.cluster.reshape([pool.server for pool in pools], plan.router, sessions, now)
        for pool in known.values():
            pool.retire()
        return list(known.values())

    def fill(self) -> None:
        """Dial what is missing."""
        for pool in self.pools:
            pool.fill()

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
        self.most = most
        self.default = Login(credentials, cluster, plan, make_pool)

    def __iter__(self) -> Iterator[Login]:
        yield self.default
        yield from self._others.values()

    @property
    def pools(self) -> list[Pool]:
        """All that have connections to be looked after."""
        return [pool for login in self for pool in login.pools] + self._retiring

    def log_in(self, credentials: Credentials) -> Cluster | None:
        """The cluster of a client that comes with this login; None if there are too many."""
        now = self._seconds()
        login = self._others.get(credentials)
        if login is None:
            if len(self._others) >= self.most and not self._make_room(now):
                return None
            cluster = Cluster((), self._plan.router, credentials)
            login = Login(credentials, cluster, self._plan, self._make_pool)
            self._others[credentials] = login
            login.fill()
        if not login.retired:
            login.used = now
        return login.cluster

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
            gone = login.configure(own, plan, having.get(login.cluster, ()), now)
            self._retiring += gone
            login.fill()

    def tidy(self, now: float) -> None:
        """Retire the logins that no client has had for a while."""
        self._retiring = [pool for pool in self._retiring if pool.upstreams]
        for login in list(self._others.values()):
            refused = login.cluster.verdict is Verdict.REFUSED
            # Clients of a retired one are about to be told that it was refused.
            if login.cluster.clients and not login.retired:
                login.used = now
            elif now - login.used >= (REMEMBERED if refused else IDLE):
                self._forget(login)
            elif refused:
                self._retiring += login.retire()

    def stop(self) -> None:
        """Close all connections."""
        for pool in self.pools:
            pool.stop()

    def _make_room(self, now: float) -> bool:
        """Retire a login that no client has; False where there is none.

        A refused one goes first, then the one that was used least recently. One that is being
        tried stays for a moment: nobody makes the tunnel dial who comes and goes.
        """
        idle = [
            (login.cluster.verdict is not Verdict.REFUSED, login.used, login)
            for login in self._others.values()
            if not login.cluster.clients
            and (login.cluster.verdict is not Verdict.NONE or now - login.used >= REMEMBERED)
        ]
        if not idle:
            return False
        self._forget(min(idle, key=lambda each: each[:2])[2])
        return True

    def _forget(self, login: Login) -> None:
        assert login.credentials is not None
        del self._others[login.credentials]
        self._retiring += login.retire()
