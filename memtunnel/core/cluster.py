"""The servers as one login sees them, and what they said of that login.

All sessions with the same login share a cluster, and no session has two at a time: what one login
stores, another never sees. Usually there is one, of the login that the tunnel was given; where
clients' own logins are used upstream, there is one for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Protocol

from memtunnel.core.routing import Router
from memtunnel.core.server import Server
from memtunnel.wire.sasl import Credentials


class Verdict(Enum):
    NONE = "none"
    """No server has been reached yet."""
    ACCEPTED = "accepted"
    REFUSED = "refused"


class Waiting(Protocol):
    """Who waits for what the servers say of a login."""

    def judged(self, right: bool, now: float) -> None:
        """The first verdict is known."""


class Member(Protocol):
    """A session whose client has this login."""

    def follow(self) -> None:
        """The servers have changed."""


class Cluster:
    """`router` says which of `servers` has a key, by their places; each server knows its own."""

    __slots__ = (
        "_wanted",
        "clients",
        "credentials",
        "proven",
        "router",
        "servers",
        "verdict",
        "waiting",
    )

    def __init__(
        self, servers: Sequence[Server], router: Router, credentials: Credentials | None = None
    ) -> None:
        self.servers: list[Server] = []
        self.router = router  # before there are servers for it: `reshape` asks the former one
        self.credentials = self._wanted = credentials
        """The login that is in use."""
        self.reshape(servers, router, (), 0.0)
        self.verdict = Verdict.NONE
        self.proven = False
        """Whether a server has ever taken a login here."""
        self.waiting: dict[Waiting, None] = {}
        """Who is told once the first verdict is known."""
        self.clients = 0
        """How many clients came with this login; not counted where none is needed."""

    def reshape(
        self, servers: Sequence[Server], router: Router, members: Iterable[Member], now: float
    ) -> None:
        """Have these servers from now on; `members` are all sessions with this login."""
        gone = [server for server in self.servers if server not in servers]
        if router is not self.router or list(servers) != self.servers:
            for server in self.servers:
                server.fix_strays(self.router)
        for index, server in enumerate(servers):
            server.index = index
            server.cluster = self
        self.servers = list(servers)
        self.router = router
        for member in members:
            member.follow()
        # What waits for one that is gone now finds the others.
        for server in gone:
            server.withdraw(now)

    def want(self, credentials: Credentials | None) -> None:
        """Use another login, from when a server has taken it; at once where none has taken one."""
        self._wanted = credentials
        if not self._serving:
            self.credentials = credentials

    def accepted(self, now: float) -> None:
        """A server has taken the login that is wanted."""
        self.credentials = self._wanted
        self.proven = True
        self._judge(Verdict.ACCEPTED, now)

    def refused(self, now: float) -> None:
        """A server has refused the login; that counts unless another one takes it now."""
        if not self._serving:
            self._judge(Verdict.REFUSED, now)

    @property
    def _serving(self) -> bool:
        return any(server.connections for server in self.servers)

    def _judge(self, verdict: Verdict, now: float) -> None:
        self.verdict = verdict
        waiting, self.waiting = self.waiting, {}
        for one in waiting:
            one.judged(verdict is Verdict.ACCEPTED, now)
