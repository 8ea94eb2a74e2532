"""``twistd memtunnel``: what one process of the tunnel has, however many serve.

`Options` and `makeService` are what the plugin names. `TunnelService` opens the ports and the
admin port, takes the signals, and lets one `Worker` serve, or several `Workers`.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TextIO, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.internet.ssl import Certificate
from twisted.logger import FileLogObserver, ILogObserver, Logger
from twisted.python import usage
from twisted.python.logfile import LogFile

from memtunnel import __version__
from memtunnel.addresses import address_of, host_port, reachable
from memtunnel.config import (
    SETTINGS,
    Config,
    ConfigError,
    ServerConfig,
    Setting,
    Source,
    describe,
    followed,
    load,
)
from memtunnel.core import mux
from memtunnel.net.loop import drive, keep_monotonic_time
from memtunnel.net.tls import load_roots, words_of
from memtunnel.net.transports import SendAtOnceReactor
from memtunnel.net.turn import Turn
from memtunnel.ops import admin
from memtunnel.ops.epoch import Epoch
from memtunnel.ops.logs import json_observer
from memtunnel.ops.overview import Overview
from memtunnel.ops.recorder import Recorder
from memtunnel.supervisor import READY, STOPPING, Manager, WatchedProcess, reloading
from memtunnel.worker import Worker
from memtunnel.workers import Workers

#: Seconds between two looks at whether the tunnel is ready, as long as it is not.
READY_TICK: Final = 0.1
#: File descriptors kept for scrapes, files and what is not counted, in each process.
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

    longdesc = (
        "Tools of their own: memtunnel check (try all servers), memtunnel start (in the background,"
        " until it is ready), memtunnel top (watch a running tunnel), memtunnel ca FILE."
    )

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """As Twisted does, but only whole names, with a suggestion where there is no such flag.

        By its first letters --password-file would take a password.
        """
        known = {option.rstrip("=") for option in self.longOpt}
        for option in options or ():
            name = option.removeprefix("--").partition("=")[0]
            if option.startswith("--") and name and name not in known:
                raise usage.UsageError(f"option --{name} not recognized{_instead_of(name)}")
        super().parseOptions(options)  # type: ignore[no-untyped-call]

    def parseArgs(self, *words: str) -> None:
        if words:
            raise usage.UsageError(
                f"{words[0]!r} is no option; a tool comes first: memtunnel check, memtunnel start,"
                " memtunnel top, memtunnel ca"
            )

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"memtunnel {__version__}")
        raise SystemExit(0)


def _instead_of(name: str) -> str:
    """What may have been meant by a flag that does not exist."""
    for setting in SETTINGS:
        if setting.name == name:
            return f": only the environment may hold it, as {setting.variable}"
    flags = [setting.name for setting in SETTINGS if Source.FLAG in setting.sources]
    near = get_close_matches(name, flags)
    return f": did you mean --{near[0]}?" if near else ""


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


def makeService(options: Options) -> Service:
    """The service for the flags in `options` and the process's environment.

    A configuration that is wrong, or only to be checked, ends the process here: nothing is
    opened.
    """
    from twisted.internet import reactor

    def settings() -> tuple[Config, list[Certificate] | None]:
        config = configuration(options, os.environ)
        return config, trusted_roots(config)

    try:
        config, roots = settings()
    except (ConfigError, CannotStart) as mistakes:
        print(f"memtunnel: {mistakes}".replace("\n", "\nmemtunnel: "), file=sys.stderr)
        raise SystemExit(1) from None
    if config.check_config:
        print(describe(config))
        raise SystemExit(0)
    foreground = options.parent is None or bool(options.parent.get("nodaemon"))
    keep_monotonic_time(reactor)
    service = TunnelService(
        config, reactor, roots, settings, foreground=foreground, terminal=_terminal()
    )
    twistd = options.parent
    # With a --logger of its own twistd asks for no other.
    if config.log_format == "json" and twistd is not None and not twistd.get("logger"):
        service.observer = json_observer(_log_file(twistd, reactor))
    return service


def _log_file(twistd: Mapping[str, Any], reactor: Any) -> TextIO:
    """Where twistd's own options say that the log goes."""
    name = twistd["logfile"]
    if twistd.get("syslog"):
        problem = "--log-format json: syslog takes text only"
    elif name == "-" and not twistd["nodaemon"]:
        problem = "--logfile -: a daemon cannot log to standard output"
    elif twistd["nodaemon"] and name in (None, "", "-"):
        return sys.stdout
    else:
        file = LogFile.fromFullPath(name or "twistd.log")
        if not signal.getsignal(signal.SIGUSR1):
            signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(file.rotate))
        return cast(TextIO, file)
    print(f"memtunnel: {problem}", file=sys.stderr)
    raise SystemExit(1)


def _terminal() -> int | None:
    """A descriptor for standard error as it is now: twistd takes that over before we start."""
    try:
        return os.dup(2)
    except OSError:
        return None


class TunnelService(Service):
    """The running tunnel, which trusts `roots`, or the system's.

    `settings` reads both again, and raises `ConfigError` or `CannotStart`. `terminal` is a file
    descriptor for words on a failure to start, closed once that is over; `foreground` says whether
    the process may then simply exit.
    """

    name = "memtunnel"
    observer: FileLogObserver | None = None
    """Who writes the log in place of twistd's own."""

    def __init__(
        self,
        config: Config,
        reactor: Any,
        roots: list[Certificate] | None,
        settings: Callable[[], tuple[Config, list[Certificate] | None]],
        *,
        foreground: bool = True,
        terminal: int | None = None,
    ) -> None:
        self._config = config
        self._roots = roots
        self._settings = settings
        self._manager = Manager(os.environ)
        self._watched: WatchedProcess | None = None
        self._log = Logger(namespace="memtunnel")
        self._foreground = foreground
        self._reactor = reactor
        self._terminal = terminal
        self._demo: Any = None
        """The embedded server, with --demo."""
        self._serving: Worker | Workers | None = None
        self._admin_port: Any = None
        self._recorder: Recorder | None = None
        self._overview: Overview | None = None
        self._draining = False
        self._announced = False
        """Whether the service manager was told that clients can come."""

    # Start

    def setServiceParent(self, parent: Any) -> None:
        if self.observer is not None:
            # twistd asks its application for an observer before it makes one.
            parent.setComponent(ILogObserver, self.observer)
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]

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
        # Once more, and first: the reactor takes them for itself when it starts to run.
        self._reactor.callWhenRunning(self._take_signals)
        assert self._serving is not None
        self._serving.start()
        if self._recorder is not None:
            self._recorder.start()
        if self._manager.listens:
            until = self._reactor.seconds() + self._config.connect_timeout
            self._reactor.callWhenRunning(self._announce, until)
            serving = self._serving
            self._manager.reassure(self._reactor, lambda: serving.responsive)

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
        if self._config.demo:
            self._start_demo()
        config = self._config
        if config.exit_with_pid is not None:
            self._watch(config.exit_with_pid)
        max_clients = self._raise_file_limit()
        serving: Worker | Workers
        if config.workers == 1:
            turn = Turn(self._reactor)
            drive(self._reactor, turn)
            serving = Worker(config, self._reactor, self._roots, turn, max_clients)
        else:
            serving = Workers(config, self._reactor, self._roots, max_clients, os.environ)
        self._serving = serving
        eager = SendAtOnceReactor(self._reactor)
        for description in config.listen:
            listener: Any = serving.listener()
            serving.serve(listener, self._open(eager, description, listener, "--listen"))
        self._recorder = Recorder(
            serving.read,
            self._reactor,
            os.environ.get("DYNO") or socket.gethostname(),
            figures=config.log_metrics,
        )
        seconds = self._reactor.seconds
        self._overview = Overview(self._recorder.history, serving.slow, seconds, Epoch(seconds))
        self._show_settings(config)
        site = admin.site(
            serving.read,
            lambda: serving.responsive,
            overview=self._overview,
            token=config.metrics_token,
            reactor=self._reactor,
        )
        self._admin_port = self._open(self._reactor, config.metrics, site, "--metrics")
        self._log.info(
            "memtunnel {version}{_compiled}: {where} to {servers}; metrics on {metrics}",
            event="started",
            version=__version__,
            _compiled="" if mux.__file__.endswith(".py") else ", compiled",
            where=", ".join(listener.address for listener in serving.listeners),
            servers=", ".join(host_port(each.host, each.port) for each in config.servers),
            metrics=address_of(self._admin_port),
        )
        self._warn_of_chain()
        self._warn_of_missing_token()
        # Past Twisted's log, which has taken sys.stdout: this is for a person at a terminal.
        if self._demo is not None and config.log_format == "text" and sys.__stdout__ is not None:
            sys.__stdout__.write(self._what_to_try(serving.listeners[0].address))
            sys.__stdout__.flush()

    def _start_demo(self) -> None:
        """Start the embedded server, and make it the one to tunnel to."""
        from memtunnel.demo import DemoServer

        demo = self._demo = DemoServer()
        demo.start(self._reactor)
        self._config = replace(
            self._config,
            servers=(ServerConfig(host="127.0.0.1", port=demo.port, name="demo"),),
            credentials=demo.credentials,
        )
        self._roots = load_roots(demo.ca_pem)

    def _watch(self, pid: int) -> None:
        try:
            self._watched = WatchedProcess(self._reactor, pid, self._watched_ended)
        except (OSError, AttributeError) as problem:
            words = getattr(problem, "strerror", None) or "this system cannot watch processes"
            raise CannotStart(f"--exit-with-pid {pid}: {words}") from None

    def _warn_of_chain(self) -> None:
        if self._config.verify == "chain":
            self._log.warn(
                "--verify chain: the names of certificates are not checked; any server with a "
                "certificate of the same authority can pass for yours",
                event="names_not_checked",
            )

    def _warn_of_missing_token(self) -> None:
        if self._config.metrics_token is None and not admin.is_loopback(self._admin_port.getHost()):
            self._log.warn(
                "--metrics {metrics}: beyond loopback only health is told without "
                "MEMTUNNEL_METRICS_TOKEN",
                event="no_metrics_token",
                metrics=address_of(self._admin_port),
            )

    def _announce(self, until: float) -> None:
        """Tell the service manager once clients can be served, or need not wait for that longer."""
        assert self._serving is not None
        if self._serving.ready or self._reactor.seconds() >= until:
            self._announced = True
            self._manager.tell(READY)
        elif not self._draining:
            self._reactor.callLater(READY_TICK, self._announce, until)

    def _open(self, reactor: Any, description: str, factory: Any, flag: str) -> Any:
        opened: list[Any] = []
        failed: list[Any] = []
        try:
            endpoint = serverFromString(reactor, description)
        except LookupError:
            words = "the service manager has handed over no such socket"
            raise CannotStart(f"cannot listen on {description}: {words}") from None
        endpoint.listen(factory).addCallbacks(opened.append, failed.append)
        if failed:
            problem = failed[0].value
            if isinstance(problem, CannotListenError):
                # Twisted's own words where another process holds the lock of a unix socket.
                words = getattr(problem.socketError, "strerror", problem.socketError)
                raise CannotStart(
                    f"cannot listen on {description}: {words}; "
                    f"is something else there? {flag} takes another address"
                )
            raise CannotStart(f"cannot listen on {description}: {problem}")
        return opened[0]

    def _raise_file_limit(self) -> int:
        """Let this process, and its workers, have all files that it may have.

        Returns how many clients can then be served.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        config = self._config
        wanted = config.max_clients
        room = max(hard // 2, hard - reserved_files(config)) * config.workers
        if hard == resource.RLIM_INFINITY or wanted <= room:
            return wanted
        words = "--max-clients lowered to {room}: the system allows {hard} open files"
        self._log.warn(words, event="max_clients_lowered", room=room, hard=hard)
        return room

    def _what_to_try(self, address: str) -> str:
        address, scrape = reachable(address), reachable(address_of(self._admin_port))
        if address.startswith("unix:"):
            where = f"-U {address.removeprefix('unix:')}"
        else:
            host, _, port = address.rpartition(":")
            where = f"{host.strip('[]')} {port}"
        return (
            "An embedded server is running behind the tunnel. Try:\n"
            f"  printf 'set a 0 0 5\\r\\nhello\\r\\nget a\\r\\nquit\\r\\n' | nc {where}\n"
            f"  curl http://{scrape}/readyz\n"
            f"  curl http://{scrape}/metrics\n"
            f"  http://{scrape}/ in a browser\n"
        )

    # Other settings

    def reload(self) -> None:
        """Read the settings again, and follow those that can be followed."""
        if self._draining or self._serving is None:
            return
        if self._announced:
            self._manager.tell(reloading())
        try:
            config, roots = self._settings()
        except (ConfigError, CannotStart) as mistakes:
            self._serving.not_reloaded()
            words = in_words(mistakes)
            self._log.error(
                "settings not reloaded, the former ones go on: {_words}",
                event="not_reloaded",
                _words=words,
            )
        else:
            self._follow(config, self._roots if self._config.demo else roots)
        finally:
            if self._announced:
                self._manager.tell(READY)

    def _follow(self, config: Config, roots: list[Certificate] | None) -> None:
        assert self._serving is not None
        before = self._config
        self._config, fixed = followed(before, config)
        self._roots = roots
        self._serving.reload(self._config, roots, self._raise_file_limit())
        self._show_settings(self._config)
        if before.verify != self._config.verify:
            self._warn_of_chain()
        if fixed:
            names = ", ".join(fixed)
            self._log.warn("not before a restart: {names}", event="needs_restart", names=names)
        # Last: with it all is said.
        servers = ", ".join(host_port(each.host, each.port) for each in self._config.servers)
        self._log.info("settings reloaded: to {servers}", event="reloaded", servers=servers)

    def _show_settings(self, config: Config) -> None:
        """Let what is shown, and logged, be as is set."""
        if self._overview is not None and self._recorder is not None:
            self._overview.slow_ms = config.slow_ms
            self._overview.slow_sample = config.slow_sample
            self._recorder.figures = config.log_metrics

    # Signals, and the end

    def _take_signals(self) -> None:
        """From here on these signals are ours: Twisted's own end with another exit status."""
        for number, call in (
            (signal.SIGTERM, self.drain),
            (signal.SIGINT, self.drain),
            (signal.SIGHUP, self.reload),
        ):
            signal.signal(number, lambda *_, call=call: self._reactor.callFromThread(call))

    def drain(self) -> None:
        """Stop in order; asked a second time, stop now."""
        if self._draining or self._serving is None:
            self._end()
            return
        self._draining = True
        self._manager.tell(STOPPING)
        outlasting = self._watched is not None and self._watched.lives
        self._serving.drain(outlasting=outlasting).addCallback(self._end)

    def _end(self, _: object = None) -> None:
        with suppress(ReactorNotRunning):  # asked once more, at the very end
            self._reactor.stop()

    def _watched_ended(self) -> None:
        """Whom the tunnel was there for is gone."""
        if not self._draining:
            self.drain()
        if self._serving is not None:
            self._serving.finish()

    def stopService(self) -> Deferred[Any]:
        """Close everything that is still open."""
        if self._watched is not None:
            self._watched.forget()
        if self._recorder is not None:
            self._recorder.stop()
        super().stopService()  # type: ignore[no-untyped-call]
        things = [self._serving, self._demo]
        closing = [maybeDeferred(thing.stop) for thing in things if thing is not None]
        if self._admin_port is not None:
            closing.append(maybeDeferred(self._admin_port.stopListening))
        return DeferredList(closing)


def reserved_files(config: Config) -> int:
    """How many file descriptors of a process are not for clients."""
    logins = 1 + (config.max_logins if config.client_auth == "passthrough" else 0)
    # One more for each pool: what is replaced stays until another is warm.
    return RESERVED_FILES + logins * len(config.servers) * (config.pool_size + 1)


def in_words(problem: Exception) -> str:
    """A problem as one line; of several mistakes, each with a semicolon before the next one."""
    return "; ".join(" ".join(line.split()) for line in str(problem).splitlines())
