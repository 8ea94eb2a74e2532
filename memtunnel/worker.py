"""What serves: the parts of the tunnel, put together from a `Config`.

A `Worker` has its own servers, pools, sessions, bounds and counts. Usually there is one, in the
process that `twistd` runs; with ``--workers`` there are several, each in a process of its own
(`worker_process`). Left to others: opening ports, signals, the admin port (`service`).
"""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Iterable, Sequence
from math import inf
from random import SystemRandom
from typing import Any, Final

from cryptography.hazmat.backends.openssl.backend import backend
from OpenSSL import SSL
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.ssl import Certificate
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

import twisted
from memtunnel import __version__
from memtunnel.addresses import address_of, host_port
from memtunnel.config import Config, ServerConfig
from memtunnel.core.budget import Budget
from memtunnel.core.cluster import Cluster
from memtunnel.core.deadlines import LONGEST
from memtunnel.core.routing import router
from memtunnel.core.server import Server
from memtunnel.core.tunnel import Policy, Tunnel
from memtunnel.net.downstream import LINGER, Listener
from memtunnel.net.logins import Logins, Plan
from memtunnel.net.pool import Pool
from memtunnel.net.tls import Expectation, make_context
from memtunnel.net.transports import Resolver, SendAtOnceReactor
from memtunnel.net.turn import Turn
from memtunnel.net.upstream import Target
from memtunnel.ops.epoch import Epoch
from memtunnel.ops.metrics import Metrics
from memtunnel.ops.slowlog import Entry, SlowLog
from memtunnel.status import Status, describe

#: Seconds between two looks at the deadlines while requests are in flight: an answer that
#: does not come is late by so much at most.
SWEEP: Final = 0.02
#: Seconds between two looks at the connections.
TICK: Final = 0.25
#: Seconds between two looks at the clients, and while draining at whether any are left.
CLIENT_TICK: Final = 1.0
DRAIN_TICK: Final = 0.05


def expectation(config: Config, server: ServerConfig, context: SSL.Context) -> Expectation:
    """What the certificate of `server` has to show under these settings."""
    return Expectation(
        context,
        config.tls_names.get(server.host, server.host),
        check_name=config.verify == "full",
        pins=config.tls_pins.get(server.host, ()),
    )


def policy(config: Config) -> Policy:
    """What clients are told under these settings."""
    passthrough = config.client_auth == "passthrough"
    return Policy(
        # Beyond this machine nobody is taken for the configured login who did not say so.
        login_required=config.client_auth == "required"
        or (passthrough and (config.credentials is None or config.allow_remote)),
        passthrough=passthrough,
        errors_on_unavailable=config.on_unavailable == "error",
        failover=config.failover,
        max_value_size=config.max_value_size,
        strip_touch_extras=config.strip_touch_extras,
        request_timeout=config.request_timeout,
        slow=inf if config.slow_ms is None else config.slow_ms / 1000,
        sample=config.slow_sample or 0,
    )


def tells_keys(config: Config) -> bool:
    """Whether a client may see by their hashes for which keys others ask."""
    return config.client_auth != "passthrough"


def new_metrics(reactor: Any) -> Metrics:
    """Counts that begin now, of what this process is made of."""
    return Metrics(
        version=__version__,
        python=platform.python_version(),
        twisted=twisted.__version__,
        openssl=backend.openssl_version_text(),
        reactor=type(reactor).__name__,
    )


class Worker:
    """`config` has the servers and the login to use, `roots` are trusted (None: the system's).

    At most `max_clients` are served. `reactor` is the real one; `turn` is its end of turn.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        roots: list[Certificate] | None,
        turn: Turn,
        max_clients: int,
    ) -> None:
        self._config = config
        self._log = Logger(namespace="memtunnel")
        self._reactor = reactor
        self._turn = turn
        self._random = SystemRandom()
        self._eager = SendAtOnceReactor(reactor, Resolver(reactor))
        self._ports: list[Any] = []
        self._loops: list[LoopingCall] = []
        self._tick_due = float("inf")
        self._drained: Deferred[None] | None = None
        self._outlasting = False
        """While draining, whether to serve on though there is no client."""
        self._closing = False
        self._close_at = 0.0
        """When clients are closed, or given up if they are being closed."""
        self.metrics = new_metrics(reactor)
        self.slow = SlowLog(self._say_slow, tells_keys=tells_keys(config))
        self.budget = Budget(config.max_buffer)
        self.listeners: list[Listener] = []
        self._roots: list[bytes] | None = None
        self._context: SSL.Context | None = None
        self._order: tuple[str, tuple[str, ...]] | None = None
        """What the router was made of."""
        plan = self._plan(config, roots)
        cluster = Cluster((), plan.router, config.credentials)
        self.tunnel = Tunnel(
            policy(config),
            cluster,
            self.budget,
            self.metrics,
            self._sweep_later,
            self._own_statistics,
            lambda login: self.logins.log_in(login),
            self.slow.note,
        )
        self.logins = Logins(
            config.credentials, cluster, plan, self._pool, config.max_logins, reactor.seconds
        )
        self.status = Status(
            self.logins,
            self.listeners,
            self.budget,
            reactor.seconds,
            failover=config.failover,
            verify=config.verify,
            max_clients=max_clients,
        )
        self.metrics.watch(self.status.state)
        epoch = Epoch(reactor.seconds)
        self.descriptions: dict[bytes, Callable[[], Iterable[tuple[str, str]]]] = {
            b"memtunnel": lambda: describe(self.status.state()),
            b"memtunnel slow": lambda: self.slow.described(epoch()),
        }
        """What STAT answers by itself, by its key."""

    def _plan(self, config: Config, roots: list[Certificate] | None) -> Plan:
        """What to dial under these settings."""
        trusted = None if roots is None else [root.dumpPEM() for root in roots]
        if self._context is None or trusted != self._roots:
            # Else the one that there is: connections that were made with it will do.
            self._roots, self._context = trusted, make_context(roots)
        context = self._context
        order = config.hashing, tuple(server.name for server in config.servers)
        if order != self._order:
            self._order, self._router = order, router(*order)
        return Plan(
            targets={
                server.name: Target(
                    host=server.host,
                    port=server.port,
                    expectation=expectation(config, server, context),
                    credentials=None,
                    connect_timeout=config.connect_timeout,
                    max_value_size=config.max_value_size,
                    address=host_port(server.host, server.port),
                    only_trust=config.client_auth == "passthrough",
                )
                for server in config.servers
            },
            router=self._router,
            pool_size=config.pool_size,
        )

    def _pool(
        self, name: str, target: Target, cluster: Cluster, size: int, former: Sequence[Pool]
    ) -> Pool:
        counts = self.metrics.server(name)
        return Pool(
            target,
            Server(name, counts, self.budget),
            cluster,
            self.tunnel,
            counts,
            size,
            self._eager,
            self._turn,
            self._random,
            self._log,
            former,
        )

    def listener(self) -> Listener:
        """The factory for a port that is about to be opened; then it is `serve`d."""
        return Listener(self.tunnel, self._turn, self._reactor, self._has_room)

    def serve(self, listener: Listener, port: Any) -> None:
        """Clients come to `listener` by this open port, which is closed when the worker stops."""
        listener.address = address_of(port)
        listener.counts = self.metrics.listener(listener.address)
        self._ports.append(port)
        self.listeners.append(listener)

    def start(self) -> None:
        """Dial the servers, and look after everything from now on."""
        # What was made so far lives for ever, and requests live for milliseconds: with Python's
        # own pace of collecting garbage a request costs 13.2 µs in place of 12.6 (200 clients).
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        self.logins.default.fill()
        self._loop(self._tick, TICK)
        self._loop(self._tick_clients, CLIENT_TICK)

    def read(self) -> Deferred[Metrics]:
        """What it has counted, and its state."""
        return succeed(self.metrics)

    @property
    def ready(self) -> bool:
        """Whether clients can be served."""
        return self.status.ready

    @property
    def responsive(self) -> bool:
        """It runs in the process that asks."""
        return True

    def _has_room(self) -> bool:
        return self.status.clients < self.status.max_clients

    # While it runs

    def _loop(self, call: Callable[[], object], interval: float) -> None:
        loop = LoopingCall(call)
        loop.clock = self._reactor
        loop.start(interval, now=False)
        self._loops.append(loop)

    def _sweep_later(self) -> None:
        self._reactor.callLater(SWEEP, self._sweep)

    def _sweep(self) -> None:
        more = True
        try:
            more = self.tunnel.sweep(self._reactor.seconds())
        finally:
            if more:
                self._sweep_later()

    def _tick(self) -> None:
        now = self._reactor.seconds()
        self.metrics.event_loop_lag.observe(max(0.0, now - self._tick_due))
        self._tick_due = now + TICK
        for pool in self.logins.pools:
            self._guard(pool.tick, now)
        self._guard(self.logins.tidy, now)
        self.tunnel.flush()

    def _tick_clients(self) -> None:
        now = self._reactor.seconds()
        for listener in self.listeners:
            self._guard(listener.tick, now)
        self.tunnel.flush()

    def _guard(self, look: Callable[..., None], *now: float) -> None:
        """What one of many meets must not end the looking after all."""
        try:
            look(*now)
        except Exception:
            self._log.failure("while looking after connections")

    def _own_statistics(self, key: bytes) -> Iterable[tuple[str, str]] | None:
        """The tunnel's own statistics, if that is what STAT asks for."""
        own = self.descriptions.get(key)
        return None if own is None else own()

    def _say_slow(self, entry: Entry, unsaid: int) -> None:
        more = f"; {unsaid} more were not logged" if unsaid else ""
        fields = entry._asdict()
        del fields["settled"], fields["number"], fields["worker"]
        self._log.warn(
            "{server}: {_words}{_more}",
            event="request",
            unsaid=unsaid,
            _words=str(entry),
            _more=more,
            **fields,
        )

    def reload(self, config: Config, roots: list[Certificate] | None, max_clients: int) -> None:
        """Follow other settings; what is served now goes on.

        Of `config` this is for servers, trust, login, pools, deadlines and bounds: what it says of
        listeners and of who may be a client does not change while clients are there.
        """
        plan = self._plan(config, roots)  # before anything changes: it may fail
        self._config = config
        self.status.reloaded = True
        self.tunnel.set_policy(policy(config))
        self.budget.limit = config.max_buffer
        self.status.failover = config.failover
        self.status.verify = config.verify
        self.status.max_clients = max_clients
        self.logins.most = config.max_logins
        sessions = [client.session for one in self.listeners for client in one.clients]
        self.logins.configure(config.credentials, plan, sessions)
        self.tunnel.flush()

    def not_reloaded(self) -> None:
        """Other settings cannot be read: those that are go on."""
        self.status.reloaded = False

    # Stop

    def drain(self, *, outlasting: bool = False) -> Deferred[None]:
        """Serve on until no client is left or ``--drain-timeout`` is over, then close the rest.

        What was read is answered. Fires when there is nothing left to do but `stop`. Where it is
        `outlasting` somebody who may still come with clients, having none is no reason to end.
        """
        self.status.draining = True
        self._log.info(
            "draining; clients left: {clients}", event="draining", clients=self.status.clients
        )
        drained = self._drained = Deferred()
        self._outlasting = outlasting
        self._close_at = self._reactor.seconds() + self._config.drain_timeout
        self._drain_step()
        return drained

    def finish(self) -> None:
        """Those who were served are gone: drain no longer, close what is left of them."""
        self._outlasting = False
        if not self._closing:
            self._close_at = self._reactor.seconds()

    def _drain_step(self) -> None:
        now = self._reactor.seconds()
        drained = self._drained
        if drained is None:
            return
        late = now >= self._close_at
        if (not self.status.clients and not self._outlasting) or (self._closing and late):
            self._drained = None
            drained.callback(None)
            return
        if late:
            self._closing = True
            self._outlasting = False
            self._log.info(
                "closing clients that are left: {clients}",
                event="closing",
                clients=self.status.clients,
            )
            # Time for the answers to what was read, and for the clients to take them.
            self._close_at = now + self.tunnel.policy.request_timeout + LONGEST + LINGER + 2 * SWEEP
            for port in self._ports:
                port.stopListening()
            self._ports.clear()
            for listener in self.listeners:
                for client in list(listener.clients):
                    self._guard(client.finish)
            self.tunnel.flush()
        self._reactor.callLater(DRAIN_TICK, self._drain_step)

    def stop(self) -> Deferred[Any]:
        """Close everything that is still open. Fires when the ports are closed."""
        self._drained = None
        self.status.draining = True
        for loop in self._loops:
            if loop.running:
                loop.stop()
        self.logins.stop()
        for listener in self.listeners:
            for client in list(listener.clients):
                client.transport.abortConnection()
        return DeferredList([maybeDeferred(port.stopListening) for port in self._ports])
