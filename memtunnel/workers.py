"""Several workers, each in a process of its own, that look like one to the service.

They accept from the same ports, which stay open here: while a worker that has ended is replaced,
the others take its clients, and nobody is turned away. What they count is added up; what a
worker had counted when it ended stays in the sums.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from random import SystemRandom
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol, connectionDone
from twisted.internet.ssl import Certificate
from twisted.internet.task import LoopingCall
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from memtunnel import program
from memtunnel.addresses import address_of
from memtunnel.channel import (
    Ask,
    Begin,
    Channel,
    Drain,
    Finish,
    Reading,
    Reload,
    Room,
    Said,
    Settings,
    Stop,
    attach,
)
from memtunnel.config import Config
from memtunnel.core.pacing import Pacing
from memtunnel.net.downstream import Refusing
from memtunnel.ops import totals
from memtunnel.ops.epoch import Epoch
from memtunnel.ops.metrics import Metrics, State
from memtunnel.ops.slowlog import SlowLog
from memtunnel.status import describe
from memtunnel.worker import new_metrics, tells_keys
from memtunnel.worker_process import CHANNEL

#: Seconds between two readings of all workers.
TICK: Final = 1.0
#: Seconds that a scrape waits for workers that are busy; then it gets what they said last.
PATIENCE: Final = 0.25
#: Seconds after which a worker that says nothing is no longer taken for responsive.
SILENCE: Final = 5.0
#: Seconds that workers have to end when told to end at once.
FAREWELL: Final = 1.0
#: Seconds that they have for it after a drain, beside those for a request: as long as answers
#: to large ones, and clients that are slow to leave, may take.
AFTERMATH: Final = 10.0
#: Seconds after which a worker is taken for one that works.
SETTLED: Final = 10.0
#: Variables that are for the tunnel itself: workers get the settings over their channel.
_OURS: Final = ("MEMTUNNEL_", "MEMCACHIER_", "MEMCACHE_", "NOTIFY_SOCKET")


class Workers:
    """`config` is that of the whole tunnel, with the servers and the login to use.

    `roots` are trusted (None: the system's). At most `max_clients` are served in all. `environ`
    is what the processes get.
    """

    def __init__(
        self,
        config: Config,
        reactor: Any,
        roots: list[Certificate] | None,
        max_clients: int,
        environ: Mapping[str, str],
    ) -> None:
        self._reactor = reactor
        self._set(config, roots, max_clients)
        self._reloaded = True
        others = {name: environ[name] for name in environ if not name.startswith(_OURS)}
        self._environ = program.environment(others)
        self._log = Logger(namespace="memtunnel")
        self._began = reactor.seconds()
        self._ports: list[Any] = []
        self.listeners: list[Refusing] = []
        self._workers: dict[int, WorkerProtocol] = {}
        """By number, those who have not ended, or not said all that they had to say."""
        self._pacing = Pacing(SystemRandom().uniform)
        self._own = new_metrics(reactor)
        """What is counted here."""
        self._kept = {n: new_metrics(reactor) for n in range(1, config.workers + 1)}
        """By number, what those had counted that have ended: so no order of sums changes."""
        self._epoch = Epoch(reactor.seconds)
        self.slow = SlowLog(tells_keys=tells_keys(config))
        """What all have noted."""
        self._draining: Deferred[None] | None = None
        self._stopping: Deferred[None] | None = None
        self._outlasting = False
        """While draining, whether somebody may still come with clients."""
        self._round = 0
        self._readers: list[Deferred[Metrics]] = []
        self._next_readers: list[Deferred[Metrics]] = []
        self._overdue: Any = None
        """The timer of the round that is not complete yet."""
        self._loop = LoopingCall(self._ask)
        self._loop.clock = reactor

    # As the service sees them

    def listener(self) -> Refusing:
        """The factory for a port that is about to be opened; then it is `serve`d."""
        return Refusing(self._reactor)

    def serve(self, listener: Refusing, port: Any) -> None:
        """Let the workers accept from this port, which is closed when they stop."""
        listener.address = address_of(port)
        listener.counts = self._own.listener(listener.address)
        port.stopReading()
        self._ports.append(port)
        self.listeners.append(listener)

    def start(self) -> None:
        """Start the processes, as soon as the reactor runs."""
        for number in range(1, self._config.workers + 1):
            self._reactor.callWhenRunning(self._spawn, number)
        self._loop.start(TICK, now=False)

    def read(self) -> Deferred[Metrics]:
        """What all have counted, and their state, once they have answered."""
        reader: Deferred[Metrics] = Deferred()
        if self._overdue is not None:
            # What this round brings may be from before.
            self._next_readers.append(reader)
        else:
            self._readers.append(reader)
            self._ask()
        return reader

    @property
    def responsive(self) -> bool:
        """Whether the loops of all turn."""
        return not self._silent

    @property
    def _silent(self) -> tuple[str, ...]:
        """The numbers of those that do not answer any more."""
        return tuple(
            str(number) for number, worker in sorted(self._workers.items()) if worker.hangs
        )

    @property
    def ready(self) -> bool:
        """Whether clients can be served."""
        return self._state().ready

    def reload(self, config: Config, roots: list[Certificate] | None, max_clients: int) -> None:
        """Let all follow other settings; what is served now goes on."""
        self._set(config, roots, max_clients)
        self._reloaded = True
        for worker in self._workers.values():
            worker.channel.tell(Reload(settings=self._settings(worker.number)))

    def not_reloaded(self) -> None:
        """Other settings cannot be read: those that are go on."""
        self._reloaded = False

    def _set(self, config: Config, roots: list[Certificate] | None, max_clients: int) -> None:
        self._config = config
        self._roots = None if roots is None else tuple(root.dumpPEM() for root in roots)
        self._max_clients = max_clients

    def drain(self, *, outlasting: bool = False) -> Deferred[None]:
        """Let each serve on until it has no client, or the time is up; see `Worker.drain`.

        Fires when all have ended.
        """
        drained = self._draining = Deferred()
        self._outlasting = outlasting
        for worker in self._workers.values():
            worker.channel.tell(Drain(outlasting=outlasting))
        time = self._config.drain_timeout
        self._reactor.callLater(time, self.finish)
        self._reactor.callLater(time + self._config.request_timeout + AFTERMATH, self._kill)
        self._tell_the_end()
        return drained

    def finish(self) -> None:
        """Those who were served are gone: drain no longer, close what is left of them."""
        self._outlasting = False
        for worker in self._workers.values():
            worker.channel.tell(Finish())
        # No worker accepts any more, and nobody should wait for one that does.
        self._close_ports()
        self._tell_the_end()

    def stop(self) -> Deferred[Any]:
        """End all now. Fires when they have ended."""
        self._stopping = Deferred()
        if self._loop.running:
            self._loop.stop()
        for worker in self._workers.values():
            worker.channel.tell(Stop())
        kill = self._reactor.callLater(FAREWELL, self._kill)
        self._stopping.addCallback(lambda _: kill.active() and kill.cancel())
        closing = [self._stopping, *self._close_ports()]
        self._tell_the_end()
        return DeferredList(closing)

    def _close_ports(self) -> list[Deferred[Any]]:
        ports, self._ports = self._ports, []
        return [maybeDeferred(port.stopListening) for port in ports]

    def _kill(self) -> None:
        for worker in self._workers.values():
            self._say("killed", worker.number, "does not end: it is killed")
            with suppress(ProcessExitedAlready):
                worker.transport.signalProcess("KILL")

    def _say(self, event: str, number: int, words: str) -> None:
        """Log what becomes of a worker."""
        self._log.warn("worker {worker} {_words}", event=event, worker=str(number), _words=words)

    # Reading them

    def _ask(self) -> None:
        """Begin a round: ask all for a reading, unless that is under way."""
        if self._overdue is not None:
            return
        self._round += 1
        description = tuple(describe(self._state()))
        for worker in self._workers.values():
            if worker.hangs and not worker.told_silent:
                worker.told_silent = True
                self._say("silent", worker.number, "does not answer")
            # One that hangs is asked no more until it has answered what it was asked.
            if not worker.silent:
                slow = self._slow_for(worker)
                worker.channel.tell(Ask(number=self._round, description=description, slow=slow))
        self._overdue = self._reactor.callLater(PATIENCE, self._end_round)
        self._look_at_round()

    def _slow_for(self, worker: WorkerProtocol) -> tuple[tuple[str, str], ...] | None:
        """What it says of all slow requests, if that has changed."""
        if worker.slow_told == self.slow.added:
            return None
        worker.slow_told = self.slow.added
        return self.slow.described(self._epoch())

    def _look_at_round(self) -> None:
        """End the round if all have answered."""
        if self._overdue is not None and all(
            worker.reading is not None and worker.reading.number == self._round
            for worker in self._workers.values()
        ):
            self._overdue.cancel()
            self._end_round()

    def _end_round(self) -> None:
        self._overdue = None
        readers, self._readers = self._readers, []
        if readers:
            metrics = self._sum()
            for reader in readers:
                reader.callback(metrics)
        if self._next_readers and self._overdue is None:
            self._readers, self._next_readers = self._next_readers, []
            self._ask()

    def _sum(self) -> Metrics:
        state = self._state()
        metrics = new_metrics(self._reactor)
        metrics.watch(lambda: state)
        totals.add(metrics, totals.counts(self._own))
        for number, kept in self._kept.items():
            part = new_metrics(self._reactor)
            totals.add(part, totals.counts(kept))
            worker = self._workers.get(number)
            if worker is not None and worker.reading is not None:
                totals.add(part, worker.reading.counts)
            totals.add(metrics, totals.counts(part))
        return metrics

    def _state(self) -> State:
        states = {
            str(number): worker.reading.state
            for number, worker in sorted(self._workers.items())
            if worker.reading is not None
        }
        together = totals.together(
            states, self._config.workers, draining=self._draining is not None
        )
        silent = self._silent
        return replace(
            together,
            ready=together.ready and not silent,
            silent=silent,
            config_last_reload_successful=together.config_last_reload_successful and self._reloaded,
            pid=os.getpid(),
            uptime=self._reactor.seconds() - self._began,
        )

    # What becomes of one

    @property
    def _ending(self) -> bool:
        """Whether those that end are not replaced."""
        return self._stopping is not None or (self._draining is not None and not self._outlasting)

    def _spawn(self, number: int) -> None:
        if self._ending:
            return
        worker = WorkerProtocol(self, number, self._reactor.seconds)
        try:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                attach(self._reactor, ours.fileno(), worker.channel)
                descriptors = [0, 1, 2, theirs.fileno(), *(port.fileno() for port in self._ports)]
                command = program.command("worker")
                self._reactor.spawnProcess(
                    worker,
                    command[0],
                    command,
                    env=self._environ,
                    childFDs=dict(enumerate(descriptors)),
                )
        except OSError as problem:
            self._say("not_started", number, f"cannot be started: {problem}")
            self._spawn_later(number)
            return
        self._workers[number] = worker
        worker.channel.tell(self._begin(number))
        if self._draining is not None:
            worker.channel.tell(Drain(outlasting=True))
        worker.channel.tell(Ask(number=self._round, description=(), slow=self._slow_for(worker)))

    def _spawn_later(self, number: int) -> None:
        now = self._reactor.seconds()
        self._pacing.failed(now)
        self._reactor.callLater(self._pacing.not_before - now, self._spawn, number)

    def _begin(self, number: int) -> Begin:
        """What a worker is told first."""
        families = [getattr(port, "addressFamily", socket.AF_UNIX) for port in self._ports]
        return Begin(
            settings=self._settings(number),
            salt=self.slow.salt,
            sockets=tuple(enumerate(families, CHANNEL + 1)),
        )

    def _settings(self, number: int) -> Settings:
        """A worker's part of what is divided."""
        count = self._config.workers
        # What does not divide evenly goes to the first ones.
        more = number <= self._max_clients % count
        return Settings(
            config=replace(
                self._config, max_buffer=self._config.max_buffer // count, metrics_token=None
            ),
            roots=self._roots,
            max_clients=self._max_clients // count + more,
        )

    def told(self, worker: WorkerProtocol, message: object) -> None:
        """A worker said something."""
        if worker.told_silent:
            worker.told_silent = False
            self._say("answers", worker.number, "answers again")
        if isinstance(message, Reading):
            # Once for each: those that work on say nothing of one that ends again and again.
            if not worker.settled and worker.heard - worker.began > SETTLED:
                worker.settled = True
                self._pacing.succeeded()
            self._note(worker, message)
            worker.reading = message
            self._look_at_round()
        elif isinstance(message, Room):
            worker.full = not message.left
            self._look_for_room()
        elif isinstance(message, Said):
            self._log.emit(
                LogLevel.lookupByName(message.level),
                "worker {worker}: " + message.format,
                worker=str(worker.number),
                **message.fields,
            )

    def _note(self, worker: WorkerProtocol, reading: Reading) -> None:
        before = 0 if worker.reading is None else worker.reading.slow_untold
        self.slow.untold += reading.slow_untold - before
        for entry in reading.slow:
            self.slow.add(entry._replace(worker=str(worker.number)))

    def ended(self, worker: WorkerProtocol, how: str) -> None:
        """A worker's process is gone: keep what it counted, put another in its place."""
        del self._workers[worker.number]
        if worker.reading is not None:
            kept = self._kept[worker.number]
            totals.add(kept, worker.reading.counts)
            for listener in kept.listeners.values():
                listener.connections = 0  # they went with it
        self._look_for_room()
        self._look_at_round()
        self._tell_the_end()
        if not self._ending:
            self._say("ended", worker.number, f"has ended: {how}; another takes its place")
            self._spawn_later(worker.number)

    def _look_for_room(self) -> None:
        """While all workers are full, clients are accepted here, and closed at once."""
        # While draining, those that have ended are not replaced: nobody waits for them.
        wanted = 1 if self._ending else self._config.workers
        full = len(self._workers) >= wanted and all(
            worker.full for worker in self._workers.values()
        )
        for port in self._ports:
            (port.startReading if full else port.stopReading)()

    def _tell_the_end(self) -> None:
        # Who drains, and is told to stop, is not told that it is time to stop.
        waiting = self._stopping or self._draining
        if not self._workers and self._ending and waiting is not None and not waiting.called:
            waiting.callback(None)


class WorkerProtocol(ProcessProtocol):
    """One worker's process, and what it said last."""

    transport: Any

    def __init__(self, workers: Workers, number: int, seconds: Callable[[], float]) -> None:
        self._workers = workers
        self._seconds = seconds
        self.number = number
        self.reading: Reading | None = None
        self.full = False
        self.slow_told = 0
        """How many slow requests there had been when it was told of them."""
        self.settled = False
        self.told_silent = False
        """Whether the log has it that it does not answer."""
        self.began = seconds()
        self.heard = self.began
        """When it said something last."""
        self.channel = Channel(self._told, self._channel_ended)
        self._how: str | None = None
        self._said_all = False

    @property
    def silent(self) -> bool:
        """Whether it has not answered for long."""
        return self._seconds() - self.heard >= SILENCE

    @property
    def hangs(self) -> bool:
        """Whether it answered once, and does not any more."""
        return self.reading is not None and self.silent

    def _told(self, message: object) -> None:
        self.heard = self._seconds()
        self._workers.told(self, message)

    def processEnded(self, reason: Failure = connectionDone) -> None:
        ended: Any = reason.value
        if reason.check(ProcessDone):
            self._how = "exit status 0"
        elif ended.signal is not None:
            self._how = f"signal {ended.signal}"
        else:
            self._how = f"exit status {ended.exitCode}"
        self._look_whether_ended()

    def _channel_ended(self) -> None:
        self._said_all = True
        self._look_whether_ended()

    def _look_whether_ended(self) -> None:
        """It has ended when all that it said is here."""
        if self._how is not None and self._said_all:
            self._workers.ended(self, self._how)
