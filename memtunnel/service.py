"""``twistd memtunnel``: the only place where the parts meet.

`Options` and `makeService` are what the plugin names; `TunnelService` builds the parts from a
`Config`, starts them, looks after them a few times a second, and stops them in order.
"""

from __future__ import annotations

import gc
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import SystemRandom
from typing import Any, Final

from cryptography.hazmat.backends.openssl.backend import backend
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python import usage

import twisted
from memtunnel import __version__
from memtunnel.config import (
    SETTINGS,
    Config,
    ConfigError,
    ServerConfig,
    Setting,
    Source,
    describe,
    load,
)
from memtunnel.core.budget import Budget
from memtunnel.core.routing import router
from memtunnel.core.server import Server
from memtunnel.core.tunnel import Policy, Tunnel
from memtunnel.net.downstream import LINGER, Listener
from memtunnel.net.pool import Pool
from memtunnel.net.tls import Expectation, load_roots, make_context
from memtunnel.net.transports import Resolver, SendAtOnceReactor, read_directly
from memtunnel.net.turn import Turn
from memtunnel.net.upstream import State as UpstreamState
from memtunnel.net.upstream import Target
from memtunnel.ops import admin
from memtunnel.ops.metrics import Metrics, ServerState, State
from memtunnel.wire.sasl import Credentials

#: Seconds between two looks at the deadlines while requests are in flight: an answer that
#: does not come is late by so much at most.
SWEEP: Final = 0.02
#: Seconds between two looks at the connections.
TICK: Final = 0.25
#: Seconds between two looks at the clients, and while draining at whether any are left.
CLIENT_TICK: Final = 1.0
DRAIN_TICK: Final = 0.05
#: File descriptors kept for connections to servers, scrapes and files.
RESERVED_FILES: Final = 64


class CannotStart(Exception):
    """Something that the tunnel needs cannot be had; the message says what to do about it."""


class Options(usage.Options):
    """All flags come from `config.SETTINGS`; their values are checked there, all at once."""

    synopsis = "memtunnel [options]"
    optFlags = [
        [setting.name, None, setting.help]
        for setting in SETTINGS
        if Source.FLAG in setting.sources and setting.switch
    ]
    optParameters = [
        [setting.name, None, None, setting.help]
        for setting in SETTINGS
        if Source.FLAG in setting.sources and not setting.switch and not setting.repeatable
    ]

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"memtunnel {__version__}")
        raise SystemExit(0)


def _collecting(setting: Setting) -> Callable[[Options, str], None]:
    """A method that takes a flag as often as it is given."""

    def option(self: Options, value: str) -> None:
        self.opts.setdefault(setting.name, []).append(value)

    option.__doc__ = setting.help
    return option


for _setting in SETTINGS:
    if Source.FLAG in _setting.sources and _setting.repeatable:
        setattr(Options, "opt_" + _setting.name.replace("-", "_"), _collecting(_setting))


def makeService(options: Options) -> Service:
    """The service for the flags in `options` and the process's environment.

    A configuration that is wrong, or only to be checked, ends the process here: nothing is
    opened.
    """
    from twisted.internet import reactor

    flags = {name: value for name, value in options.items() if value not in (None, [])}
    try:
        config = load(flags, os.environ)
    except ConfigError as mistakes:
        print(f"memtunnel: {mistakes}".replace("\n", "\nmemtunnel: "), file=sys.stderr)
        raise SystemExit(1) from None
    if config.check_config:
        print(describe(config))
        raise SystemExit(0)
    foreground = options.parent is None or bool(options.parent.get("nodaemon"))
    keep_monotonic_time(reactor)
    read_directly(reactor)
    return TunnelService(config, reactor, foreground=foreground)


def keep_monotonic_time(reactor: Any) -> None:
    """Put the reactor's timers on the monotonic clock.

    Twisted's are on the wall clock: a step of an hour would fire all deadlines at once, or none.
    """
    reactor.seconds = time.monotonic


class TunnelService(Service):
    """The running tunnel.

    `foreground` says whether a failure to start can be told on the terminal by ourselves.
    """

    name = "memtunnel"

    def __init__(self, config: Config, reactor: Any, *, foreground: bool = True) -> None:
        self.config = config
        self.draining = False
        self._log = Logger(namespace="memtunnel")
        self._foreground = foreground
        self._reactor = reactor
        self._began = reactor.seconds()
        self._demo: Any = None
        """The embedded server, with --demo."""
        self._terminal: int | None = None
        self._ports: list[Any] = []
        self._admin_port: Any = None
        self._loops: list[LoopingCall] = []
        self._swept_late = False
        self._max_clients = config.max_clients
        self.metrics = Metrics(
            version=__version__,
            python=platform.python_version(),
            twisted=twisted.__version__,
            openssl=backend.openssl_version_text(),
            reactor=type(reactor).__name__,
        )
        self.listeners: list[Listener] = []
        self.pools: list[Pool] = []

    # Start

    def privilegedStartService(self) -> None:
        """Open what has to be opened before anything else: a busy port is told at once."""
        try:
            self._prepare()
        except (CannotStart, CannotListenError, OSError, ValueError) as problem:
            words = in_words(problem)
            if self._foreground:
                print(f"memtunnel: {words}", file=sys.stderr)
                raise SystemExit(1) from None
            raise CannotStart(words) from None

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        # What was made so far lives for ever, and requests live for milliseconds: collecting
        # garbage at the default pace takes 3% of the time with 200 clients.
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        for pool in self.pools:
            pool.fill()
        self._loop(self._tick, TICK)
        self._loop(self._tick_clients, CLIENT_TICK)
        self._reactor.callWhenRunning(self._take_signals)

    def _prepare(self) -> None:
        config = self.config
        servers = config.servers
        credentials = config.credentials
        roots = None
        if config.demo:
            from memtunnel.demo import DemoServer

            self._demo = DemoServer()
            self._demo.start(self._reactor)
            servers = (ServerConfig(host="127.0.0.1", port=self._demo.port, name="demo"),)
            credentials = self._demo.credentials
            roots = load_roots(self._demo.ca_pem)
        elif config.ca_file is not None:
            roots = load_roots(Path(config.ca_file).read_bytes())
        self._raise_file_limit()
        self._build(servers, credentials, roots)
        for description in config.listen:
            self._listen(description)
        site = admin.site(
            self.metrics, self.state, token=config.metrics_token, reactor=self._reactor
        )
        self._admin_port = self._open(self._reactor, config.metrics, site, "--metrics")
        where = ", ".join(listener.address for listener in self.listeners)
        self._log.info(
            "memtunnel {version}: {where} to {servers}; metrics on {metrics}",
            version=__version__,
            where=where,
            servers=", ".join(f"{server.host}:{server.port}" for server in servers),
            metrics=address_of(self._admin_port),
        )
        if self._demo is not None:
            print(self._what_to_try(), flush=True)

    def _build(
        self,
        servers: tuple[ServerConfig, ...],
        credentials: Credentials | None,
        roots: list[Any] | None,
    ) -> None:
        config = self.config
        self._turn = Turn(self._reactor)
        resolver = Resolver(self._reactor)
        self._eager = SendAtOnceReactor(self._reactor, resolver)
        self.budget = Budget(config.max_buffer)
        counts = [self.metrics.server(server.name) for server in servers]
        cores = [
            Server(server.name, index, counts[index], self.budget)
            for index, server in enumerate(servers)
        ]
        policy = Policy(
            credentials=credentials,
            login_required=config.client_auth == "required",
            errors_on_unavailable=config.on_unavailable == "error",
            failover=config.failover,
            max_value_size=config.max_value_size,
            strip_touch_extras=config.strip_touch_extras,
            request_timeout=config.request_timeout,
        )
        self.tunnel = Tunnel(
            policy,
            cores,
            router(config.hashing, [server.name for server in servers]),
            self.budget,
            self.metrics,
            self._sweep_later,
            self.describe,
        )
        context = make_context(roots)
        random = SystemRandom()
        for server, core in zip(servers, cores, strict=True):
            expectation = Expectation(
                context,
                config.tls_names.get(server.host, server.host),
                check_name=config.verify == "full",
                pins=config.tls_pins.get(server.host, ()),
            )
            target = Target(
                host=server.host,
                port=server.port,
                expectation=expectation,
                credentials=credentials,
                connect_timeout=config.connect_timeout,
                max_value_size=config.max_value_size,
            )
            self.pools.append(
                Pool(
                    target,
                    core,
                    self.tunnel,
                    counts[core.index],
                    config.pool_size,
                    self._eager,
                    self._turn,
                    random,
                    self._log,
                )
            )
        if config.verify == "chain":
            self._log.warn(
                "--verify chain: the names of certificates are not checked; any server with a "
                "certificate of the same authority can pass for yours"
            )

    def _listen(self, description: str) -> None:
        def room() -> bool:
            return sum(len(each.clients) for each in self.listeners) < self._max_clients

        listener = Listener(self.tunnel, self._turn, self._reactor, room, self._warn)
        port = self._open(self._eager, description, listener, "--listen")
        listener.address = address_of(port)
        listener.counts = self.metrics.listener(listener.address)
        self._ports.append(port)
        self.listeners.append(listener)

    def _open(self, reactor: Any, description: str, factory: Any, flag: str) -> Any:
        opened: list[Any] = []
        failed: list[Any] = []
        endpoint = serverFromString(reactor, description)
        endpoint.listen(factory).addCallbacks(opened.append, failed.append)
        if failed:
            problem = failed[0].value
            if isinstance(problem, CannotListenError):
                raise CannotStart(
                    f"cannot listen on {description}: {problem.socketError.strerror}; "
                    f"is something else there? {flag} takes another address"
                )
            raise CannotStart(f"cannot listen on {description}: {problem}")
        return opened[0]

    def _raise_file_limit(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        room = hard - RESERVED_FILES
        if hard != resource.RLIM_INFINITY and room < self._max_clients:
            self._max_clients = max(1, room)
            self._warn(
                f"--max-clients lowered to {self._max_clients}: the system allows {hard} open files"
            )

    def _what_to_try(self) -> str:
        client = self.listeners[0].address
        scrape = address_of(self._admin_port)
        return (
            "An embedded server is running behind the tunnel. Try:\n"
            f"  memcping --binary --servers={client}    # or any client of the binary protocol\n"
            f"  curl http://{scrape}/readyz\n"
            f"  curl http://{scrape}/metrics"
        )

    # While it runs

    def _loop(self, call: Callable[[], object], interval: float) -> None:
        loop = LoopingCall(call)
        loop.clock = self._reactor
        loop.start(interval, now=False)
        self._loops.append(loop)

    def _sweep_later(self) -> None:
        self._reactor.callLater(SWEEP, self._sweep)

    def _sweep(self) -> None:
        if self.tunnel.sweep(self._reactor.seconds()):
            self._sweep_later()

    def _tick(self) -> None:
        now = self._reactor.seconds()
        self.metrics.event_loop_lag.observe(max(0.0, now - self._tick_due))
        self._tick_due = now + TICK
        for pool in self.pools:
            pool.tick(now)
        self.tunnel.flush()

    _tick_due = float("inf")

    def _tick_clients(self) -> None:
        now = self._reactor.seconds()
        for listener in self.listeners:
            listener.tick(now)
        self.tunnel.flush()

    def _warn(self, words: str) -> None:
        self._log.warn("{words}", words=words)

    # What operators see

    @property
    def ready(self) -> bool:
        """Whether clients can be served: with failover, one server is enough."""
        warm = [pool.is_warm for pool in self.pools]
        enough = any(warm) if self.config.failover else all(warm)
        return enough and not self.draining

    def state(self) -> State:
        """Everything that is measured when it is asked for."""
        return State(
            ready=self.ready,
            draining=self.draining,
            client_paused=sum(listener.paused for listener in self.listeners),
            buffered_bytes=self.budget.used,
            client_connections_max=self._max_clients,
            config_last_reload_successful=True,
            servers={pool.server.name: self._server_state(pool) for pool in self.pools},
        )

    def _server_state(self, pool: Pool) -> ServerState:
        server = pool.server
        muxes = [upstream.mux for upstream in pool.upstreams]
        oldest = server.oldest()
        warm = next((one for one in pool.upstreams if one.state is UpstreamState.WARM), None)
        certificate = warm.certificate if warm is not None else None
        return ServerState(
            up=pool.is_warm,
            connections={
                str(state): pool.count(state)
                for state in UpstreamState
                if state is not UpstreamState.LOST
            },
            connections_target=pool.size,
            in_flight=sum(mux.in_flight for mux in muxes),
            queued=server.queued,
            tombstones=sum(mux.tombstones for mux in muxes),
            queue_oldest_seconds=0.0 if oldest is None else self._reactor.seconds() - oldest,
            breaker_open=server.refusing,
            verify=self.config.verify,
            tls=None if warm is None else (warm.tls_version, warm.tls_cipher),
            certificate_not_after=(
                None if certificate is None else certificate.not_valid_after_utc.timestamp()
            ),
            last_lost=pool.last_lost,
        )

    def describe(self) -> Iterator[tuple[str, str]]:
        """The names and values of ``STAT memtunnel``."""
        state = self.state()
        yield "version", __version__
        yield "pid", str(os.getpid())
        yield "uptime", str(int(self._reactor.seconds() - self._began))
        yield "ready", str(int(state.ready))
        yield "draining", str(int(state.draining))
        yield "clients", str(sum(len(listener.clients) for listener in self.listeners))
        yield "clients_max", str(state.client_connections_max)
        yield "clients_paused", str(state.client_paused)
        yield "buffered_bytes", str(state.buffered_bytes)
        for pool in self.pools:
            name = pool.server.name
            server = state.servers[name]
            yield f"{name}:up", str(int(server.up))
            for word, number in server.connections.items():
                yield f"{name}:connections_{word}", str(number)
            yield f"{name}:in_flight", str(server.in_flight)
            yield f"{name}:queued", str(server.queued)
            yield f"{name}:tombstones", str(server.tombstones)
            yield f"{name}:breaker_open", str(int(server.breaker_open))
            yield f"{name}:last_lost", server.last_lost

    # Stop

    def _take_signals(self) -> None:
        """From here on SIGTERM and SIGINT are ours: Twisted's own end with another exit status."""

        def note(number: int, frame: object) -> None:
            self._reactor.callFromThread(self.drain)

        signal.signal(signal.SIGTERM, note)
        signal.signal(signal.SIGINT, note)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def drain(self) -> None:
        """Stop in order; asked a second time, stop now."""
        if self.draining:
            self._reactor.stop()
            return
        self.draining = True
        self._log.info("draining: {clients} clients left", clients=self._clients_left())
        until = self._reactor.seconds() + self.config.drain_timeout
        self._drain_step(until, closing=False)

    def _drain_step(self, until: float, *, closing: bool) -> None:
        """Serve on until no client is left or the time is up, then close what is left."""
        now = self._reactor.seconds()
        if not self._reactor.running:
            return
        if not self._clients_left():
            self._reactor.stop()
            return
        if now >= until:
            if closing:
                self._reactor.stop()
                return
            closing = True
            # Time for the answers to what was read, and for the clients to take them.
            until = now + self.tunnel.policy.request_timeout + LINGER + 2 * SWEEP
            for port in self._ports:
                port.stopListening()
            self._ports.clear()
            for listener in self.listeners:
                for client in list(listener.clients):
                    client.finish()
            self.tunnel.flush()
        self._reactor.callLater(DRAIN_TICK, self._drain_step, until, closing=closing)

    def _clients_left(self) -> int:
        return sum(len(listener.clients) for listener in self.listeners)

    def stopService(self) -> Deferred[Any]:
        """Close everything that is still open."""
        super().stopService()  # type: ignore[no-untyped-call]
        self.draining = True
        for loop in self._loops:
            if loop.running:
                loop.stop()
        for pool in self.pools:
            pool.stop()
        for listener in self.listeners:
            for client in list(listener.clients):
                client.transport.abortConnection()
        ports = [*self._ports, self._admin_port]
        closing = [maybeDeferred(port.stopListening) for port in ports if port is not None]
        if self._demo is not None:
            closing.append(maybeDeferred(self._demo.stop))
        return DeferredList(closing)


def address_of(port: Any) -> str:
    """Where a port listens, as people write it."""
    host = port.getHost()
    if hasattr(host, "port"):
        name = f"[{host.host}]" if ":" in host.host else host.host
        return f"{name}:{host.port}"
    return f"unix:{os.fsdecode(host.name)}"


def in_words(problem: Exception) -> str:
    """A problem as one line."""
    return " ".join(str(problem).split())
