"""What the parts of a worker are doing, read off them when somebody asks.

One reading, a `State`, serves the gauges, `/readyz`, and ``STAT memtunnel``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from memtunnel import __version__
from memtunnel.core.budget import Budget
from memtunnel.net.downstream import Listener
from memtunnel.net.logins import Logins
from memtunnel.net.pool import Pool
from memtunnel.net.upstream import State as UpstreamState
from memtunnel.net.upstream import Upstream
from memtunnel.ops.metrics import ConnectionState, ServerState, State
from memtunnel.ops.totals import server_together

#: Connections of one pool that are told of one by one.
TOLD: Final = 64
_SHOWN = tuple(state for state in UpstreamState if state is not UpstreamState.LOST)


class Status:
    """`logins` and `listeners` are the worker's own; `seconds` is its clock.

    `failover` says whether one warm server is enough to serve all keys, `verify` what is
    checked of certificates, `max_clients` how many are served at one time.
    """

    def __init__(
        self,
        logins: Logins,
        listeners: list[Listener],
        budget: Budget,
        seconds: Callable[[], float],
        *,
        failover: bool,
        verify: str,
        max_clients: int,
    ) -> None:
        self._logins = logins
        self._listeners = listeners
        self._budget = budget
        self._seconds = seconds
        self.failover = failover
        self.verify = verify
        self._began = seconds()
        self.max_clients = max_clients
        self.draining = False
        self.reloaded = True
        """Whether the settings are those that were read last."""

    @property
    def ready(self) -> bool:
        """Whether clients can be served."""
        warm = [pool.is_warm for pool in self._logins.default.pools]
        return (any(warm) if self.failover else all(warm)) and not self.draining

    @property
    def clients(self) -> int:
        """How many clients are connected."""
        return sum(len(listener.clients) for listener in self._listeners)

    def state(self) -> State:
        """Everything that is measured when it is asked for."""
        servers: dict[str, list[ServerState]] = {}
        for login in self._logins:
            for pool in login.pools:
                servers.setdefault(pool.server.name, []).append(self._server(pool))
        return State(
            ready=self.ready,
            draining=self.draining,
            client_paused=sum(listener.paused for listener in self._listeners),
            buffered_bytes=self._budget.used,
            client_connections_max=self.max_clients,
            config_last_reload_successful=self.reloaded
            and not any(pool.renewing for login in self._logins for pool in login.pools),
            servers={name: server_together(states, best=True) for name, states in servers.items()},
            clients=self.clients,
            uptime=self._seconds() - self._began,
            pid=os.getpid(),
        )

    def _server(self, pool: Pool) -> ServerState:
        now = self._seconds()
        server = pool.server
        muxes = [upstream.mux for upstream in pool.upstreams]
        oldest = server.oldest()
        warm = next((one for one in pool.upstreams if one.state is UpstreamState.WARM), None)
        certificate = warm.certificate if warm is not None else None
        return ServerState(
            up=pool.is_warm,
            connections={str(state): pool.count(state) for state in _SHOWN},
            connections_target=pool.size,
            in_flight=sum(mux.in_flight for mux in muxes),
            queued=server.queued,
            tombstones=sum(mux.tombstones for mux in muxes),
            queue_oldest_seconds=0.0 if oldest is None else now - oldest,
            breaker_open=server.refusing,
            verify=self.verify,
            tls=None if warm is None else (warm.tls_version, warm.tls_cipher),
            certificate_not_after=(
                None if certificate is None else certificate.not_valid_after_utc.timestamp()
            ),
            last_lost=pool.last_lost,
            last_lost_age=now - pool.last_lost_at if pool.last_lost else None,
            address=server.address,
            pool=tuple(_connection(one, now) for one in islice(pool.upstreams, TOLD)),
        )


def _connection(upstream: Upstream, now: float) -> ConnectionState:
    mux = upstream.mux
    return ConnectionState(
        number=mux.number,
        state=str(upstream.state),
        age=now - upstream.began,
        in_flight=mux.in_flight,
        round_trip=mux.round_trip or None,
    )


def describe(state: State) -> Iterator[tuple[str, str]]:
    """The names and values of ``STAT memtunnel``."""
    yield "version", __version__
    yield "pid", str(state.pid)
    yield "uptime", str(int(state.uptime))
    yield "ready", str(int(state.ready))
    yield "draining", str(int(state.draining))
    yield "workers", str(max(1, len(state.workers)))
    yield "clients", str(state.clients)
    yield "clients_max", str(state.client_connections_max)
    yield "clients_paused", str(state.client_paused)
    yield "buffered_bytes", str(state.buffered_bytes)
    for name, server in state.servers.items():
        yield f"{name}:up", str(int(server.up))
        for word, number in server.connections.items():
            yield f"{name}:connections_{word}", str(number)
        yield f"{name}:in_flight", str(server.in_flight)
        yield f"{name}:queued", str(server.queued)
        yield f"{name}:tombstones", str(server.tombstones)
        yield f"{name}:breaker_open", str(int(server.breaker_open))
        yield f"{name}:last_lost", server.last_lost
