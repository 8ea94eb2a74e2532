"""``twistd memtunnel``: the only place where the parts meet.

`Options` and `makeService` are what the plugin names; `TunnelService` builds the parts from a
`Config`, starts them, looks after them a few times a second, and stops them in order.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from random import SystemRandom
from typing import Any, Final

from cryptography.hazmat.backends.openssl.backend import backend
from OpenSSL import SSL
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.ssl import Certificate
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python import usage

import twisted
from memtunnel import __version__
from memtunnel.addresses import host_port
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
from memtunnel.core import mux
from memtunnel.core.budget import Budget
from memtunnel.core.deadlines import LONGEST
from memtunnel.core.routing import router
from memtunnel.core.server import Server
from memtunnel.core.tunnel import Policy, Tunnel
from memtunnel.net.downstream import LINGER, Listener
from memtunnel.net.loop import drive
from memtunnel.net.pool import Pool
from memtunnel.net.tls import Expectation, load_roots, make_context, words_of
from memtunnel.net.transports import Resolver, SendAtOnceReactor
from memtunnel.net.turn import Turn
from memtunnel.net.upstream import Target
from memtunnel.ops import admin
from memtunnel.ops.metrics import Metrics
from memtunnel.status import Status
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

    longdesc = "Tools of their own: memtunnel check (try all servers), memtunnel ca FILE."

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """As Twisted does, with a suggestion for a flag that does not exist."""
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            wrong = re.match("option --([^ ]+) not recognized", str(error))
            near = get_close_matches(wrong[1], [each.name for each in SETTINGS]) if wrong else []
            hint = f": did you mean --{near[0]}?" if near else ""
            raise usage.UsageError(f"{error}{hint}") from None

    def parseArgs(self, *words: str) -> None:
        if words:
            raise usage.UsageError(
                f"{words[0]!r} is no option; a tool comes first: memtunnel check, memtunnel ca"
            )

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


def configuration(options: usage.Options, environ: Mapping[str, str]) -> Config:
    """What the flags in `options` and the variables of `environ` say. Raises `ConfigError`."""
    # Twisted counts a switch as 0 or 1.
    flags = {
        name: bool(value) if isinstance(value, int) else value for name, value in options.items()
    }
    return load(flags, environ)


def trusted_roots(config: Config) -> list[Certificate] | None:
    """The roots of ``--ca-file``; None for the system's. Raises `CannotStart`."""
    if config.ca_file is None:
        return None
    try:
        return load_roots(Path(config.ca_file).read_bytes())
    except (OSError, ValueError) as problem:
        words = words_of(problem)
        raise CannotStart(f"--ca-file {config.ca_file} cannot be used: {words}") from None


def expectation(config: Config, server: ServerConfig, context: SSL.Context) -> Expectation:
    """What the certificate of `server` has to show under these settings."""
    return Expectation(
        context,
        config.tls_names.get(server.host, server.host),
        check_name=config.verify == "full",
        pins=config.tls_pins.get(server.host, ()),
    )


def makeService(options: Options) -> Service:
    """The service for the flags in `options` and the process's environment.

    A configuration that is wrong, or only to be checked, ends the process here: nothing is
    opened.
    """
    from twisted.internet import reactor

    try:
        config = configuration(options, os.environ)
        roots = trusted_roots(config)
    except (ConfigError, CannotStart) as mistakes:
        print(f"memtunnel: {mistakes}".replace("\n", "\nmemtunnel: "), file=sys.stderr)
        raise SystemExit(1) from None
    if config.check_config:
        print(describe(config))
        raise SystemExit(0)
    foreground = options.parent is None or bool(options.parent.get("nodaemon"))
    keep_monotonic_time(reactor)
    turn = Turn(reactor)
    drive(reactor, turn)
    return TunnelService(config, reactor, roots, turn, foreground=foreground, terminal=_terminal())


def _terminal() -> int | None:
    """A descriptor for standard error as it is now: twistd takes that over before we start."""
    try:
        return os.dup(2)
    except OSError:
        return None


def keep_monotonic_time(reactor: Any) -> None:
    """Put the reactor's timers on the monotonic clock.

    Twisted's are on the wall clock: a step of an hour would fire all deadlines at once, or none.
    """
    reactor.seconds = time.monotonic


class TunnelService(Service):
    """The running tunnel, which trusts `roots`, or the system's.

    `terminal` is a file descriptor for words on a failure to start, closed once that is over;
    `foreground` says whether the process may then simply exit.
    """

    name = "memtunnel"

    def __init__(
        self,
        config: Config,
        reactor: Any,
        roots: list[Certificate] | None = None,
        turn: Turn | None = None,
        *,
        foreground: bool = True,
        terminal: int | None = None,
    ) -> None:
        self.config = config
        self._roots = roots
        self._log = Logger(namespace="memtunnel")
        self._foreground = foreground
        self._reactor = reactor
        self._turn = Turn(reactor) if turn is None else turn
        self._demo: Any = None
        """The embedded server, with --demo."""
        self._terminal = terminal
        self._ports: list[Any] = []
        self._admin_port: Any = None
        self._loops: list[LoopingCall] = []
        self.metrics = Metrics(
            version=__version__,
            python=platform.python_version(),
            twisted=twisted.__version__,
            openssl=backend.openssl_version_text(),
            reactor=type(reactor).__name__,
        )
        self.budget = Budget(config.max_buffer)
        self.listeners: list[Listener] = []
        self.pools: list[Pool] = []
        self.status = Status(
            self.pools,
            self.listeners,
            self.budget,
            reactor.seconds,
            failover=config.failover,
            verify=config.verify,
        )

    # Start

    def privilegedStartService(self) -> None:
        """Open what has to be opened before anything else: a busy port is told at once."""
        # Before anybody can see that a port is open, and ask for the end.
        self._take_signals()
        try:
            self._prepare()
        except (CannotStart, CannotListenError, OSError, ValueError) as problem:
            words = in_words(problem)
            self._tell(words)
            if self._foreground:
                raise SystemExit(1) from None
            raise CannotStart(words) from None
        self._leave_terminal()

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        # What was made so far lives for ever, and requests live for milliseconds: with Python's
        # own pace of collecting garbage a request costs 13.2 µs in place of 12.6 (200 clients).
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        for pool in self.pools:
            pool.fill()
        self._loop(self._tick, TICK)
        self._loop(self._tick_clients, CLIENT_TICK)
        # Once more: the reactor takes them for itself when it starts to run.
        self._reactor.callWhenRunning(self._take_signals)

    def _tell(self, words: str) -> None:
        """Say on the terminal why there is no start."""
        if self._terminal is not None:
            os.write(self._terminal, f"memtunnel: {words}\n".encode())
            self._leave_terminal()

    def _leave_terminal(self) -> None:
        terminal, self._terminal = self._terminal, None
        if terminal is not None:
            os.close(terminal)

    def _prepare(self) -> None:
        config = self.config
        servers = config.servers
        credentials = config.credentials
        roots = self._roots
        if config.demo:
            from memtunnel.demo import DemoServer

            self._demo = DemoServer()
            self._demo.start(self._reactor)
            servers = (ServerConfig(host="127.0.0.1", port=self._demo.port, name="demo"),)
            credentials = self._demo.credentials
            roots = load_roots(self._demo.ca_pem)
        self._raise_file_limit()
        self._build(servers, credentials, roots)
        for description in config.listen:
            self._listen(description)
        site = admin.site(
            self.metrics, self.status.state, token=config.metrics_token, reactor=self._reactor
        )
        self._admin_port = self._open(self._reactor, config.metrics, site, "--metrics")
        where = ", ".join(listener.address for listener in self.listeners)
        self._log.info(
            "memtunnel {version}{compiled}: {where} to {servers}; metrics on {metrics}",
            version=__version__,
            compiled="" if mux.__file__.endswith(".py") else ", compiled",
            where=where,
            servers=", ".join(server.address for server in self.tunnel.servers),
            metrics=address_of(self._admin_port),
        )
        if self._demo is not None:
            # Past Twisted's log, which has taken sys.stdout: this is for a person at a terminal.
            terminal = sys.__stdout__
            if terminal is not None:
                terminal.write(self._what_to_try())
                terminal.flush()

    def _build(
        self,
        servers: tuple[ServerConfig, ...],
        credentials: Credentials | None,
        roots: list[Any] | None,
    ) -> None:
        config = self.config
        resolver = Resolver(self._reactor)
        self._eager = SendAtOnceReactor(self._reactor, resolver)
        counts = [self.metrics.server(server.name) for server in servers]
        cores = [
            Server(
                server.name,
                index,
                counts[index],
                self.budget,
                host_port(server.host, server.port),
            )
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
            self.status.describe,
        )
        context = make_context(roots)
        random = SystemRandom()
        for server, core in zip(servers, cores, strict=True):
            target = Target(
                host=server.host,
                port=server.port,
                expectation=expectation(config, server, context),
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
            return self.status.clients < self.status.max_clients

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
        wanted, room = self.config.max_clients, max(1, hard - RESERVED_FILES)
        enough = hard == resource.RLIM_INFINITY or wanted <= room
        self.status.max_clients = wanted if enough else room
        if not enough:
            self._warn(f"--max-clients lowered to {room}: the system allows {hard} open files")

    def _what_to_try(self) -> str:
        client = self.listeners[0].address.removeprefix("unix:")
        scrape = address_of(self._admin_port)
        python = sys.executable
        use = f'c = bmemcached.Client("{client}"); c.set("a", "1"); print(c.get("a"))'
        return (
            "An embedded server is running behind the tunnel. Try:\n"
            f"  {python} -m pip install -q python-binary-memcached && "
            f"{python} -c 'import bmemcached; {use}'\n"
            f"  curl http://{scrape}/readyz\n"
            f"  curl http://{scrape}/metrics\n"
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
        for pool in self.pools:
            self._guard(pool.tick, now)
        self.tunnel.flush()

    _tick_due = float("inf")

    def _tick_clients(self) -> None:
        now = self._reactor.seconds()
        for listener in self.listeners:
            self._guard(listener.tick, now)
        self.tunnel.flush()

    def _guard(self, look: Callable[[float], None], now: float) -> None:
        """What one of many meets must not end the looking after all."""
        try:
            look(now)
        except Exception:
            self._log.failure("while looking after connections")

    def _warn(self, words: str) -> None:
        self._log.warn("{words}", words=words)

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
        if self.status.draining:
            self._reactor.stop()
            return
        self.status.draining = True
        self._log.info("draining: {clients} clients left", clients=self.status.clients)
        until = self._reactor.seconds() + self.config.drain_timeout
        self._drain_step(until, closing=False)

    def _drain_step(self, until: float, *, closing: bool) -> None:
        """Serve on until no client is left or the time is up, then close what is left."""
        now = self._reactor.seconds()
        if not self._reactor.running:
            return
        if not self.status.clients:
            self._reactor.stop()
            return
        if now >= until:
            if closing:
                self._reactor.stop()
                return
            closing = True
            self._log.info("closing {clients} clients", clients=self.status.clients)
            # Time for the answers to what was read, and for the clients to take them.
            until = now + self.tunnel.policy.request_timeout + LONGEST + LINGER + 2 * SWEEP
            for port in self._ports:
                port.stopListening()
            self._ports.clear()
            for listener in self.listeners:
                for client in list(listener.clients):
                    client.finish()
            self.tunnel.flush()
        self._reactor.callLater(DRAIN_TICK, self._drain_step, until, closing=closing)

    def stopService(self) -> Deferred[Any]:
        """Close everything that is still open."""
        super().stopService()  # type: ignore[no-untyped-call]
        self.status.draining = True
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
