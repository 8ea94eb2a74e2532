"""A worker in a process of its own, started by `workers`; not for people to call.

It accepts from sockets that it inherited, answers what it is asked over its channel, and sends
what it has to log. It leaves SIGTERM to its parent, which says over the channel what is to be
done: platforms send the signal to all processes. When its parent is gone it serves its clients
on for the time of a drain, and accepts nobody: a new tunnel may want the ports.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Final, cast

from twisted.internet.ssl import Certificate
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogBeginner

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
from memtunnel.net.loop import drive, keep_monotonic_time
from memtunnel.net.transports import SendAtOnceReactor
from memtunnel.net.turn import Turn
from memtunnel.ops.totals import counts, garbage
from memtunnel.worker import Worker

#: The descriptor of the channel, the first behind the standard ones.
CHANNEL: Final = 3


def main(arguments: list[str]) -> int:
    """Serve until told to end."""
    from twisted.internet import reactor as installed

    reactor: Any = installed
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keep_monotonic_time(reactor)
    process = WorkerProcess(reactor)
    globalLogBeginner.beginLoggingTo([cast(Any, process.log)], redirectStandardIO=False)
    try:
        attach(reactor, CHANNEL, process.channel)
    except OSError:
        print("memtunnel worker: only the tunnel itself starts workers", file=sys.stderr)
        return 1
    os.close(CHANNEL)
    reactor.run(installSignalHandlers=False)
    return 0


def _roots(settings: Settings) -> list[Certificate] | None:
    if settings.roots is None:
        return None
    return [Certificate.loadPEM(root) for root in settings.roots]


def _as_format(words: str) -> str:
    return words.replace("{", "{{").replace("}", "}}")


class WorkerProcess:
    """The worker and its channel."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._worker: Worker | None = None
        self._ports: list[Any] = []
        self._has_room = True
        self._description: tuple[tuple[str, str], ...] = ()
        self._slow: tuple[tuple[str, str], ...] = ()
        self._slow_told = 0
        """The number of the slow request that was told of last."""
        self._round = 0
        self.channel = Channel(self._told, self._orphaned)

    def log(self, event: LogEvent) -> None:
        """Send what is to be logged."""
        if event["log_namespace"] != "memtunnel" and event["log_level"] < LogLevel.warn:
            return  # Twisted tells of each port, which the parent has told of already
        said = {name: value for name, value in event.items() if not name.startswith("log_")}
        words = event.get("log_format")
        if words is None or event["log_namespace"] != "memtunnel":
            # What others put into theirs may not be such as can be sent.
            words, said = _as_format(formatEvent(event)), {}
        if "log_failure" in event:
            words += "\n" + _as_format(event["log_failure"].getTraceback())
        self.channel.tell(Said(level=event["log_level"].name, format=words, fields=said))

    def _say_error(self, event: str, words: str) -> None:
        fields = {"event": event}
        self.channel.tell(Said(level="error", format=_as_format(words), fields=fields))

    def _told(self, message: Any) -> None:
        worker = self._worker
        if isinstance(message, Begin):
            try:
                self._begin(message)
            except Exception as problem:
                # Told in words, or else the channel would be gone before the log's line.
                self._say_error("not_started", f"it cannot begin: {problem!r}")
                self._end()
        elif isinstance(message, Ask) and worker is not None:
            self._description = message.description
            if message.slow is not None:
                self._slow = message.slow
            self._round = message.number
            self._send_reading(worker)
        elif isinstance(message, Drain) and worker is not None:
            worker.drain(outlasting=message.outlasting).addCallback(self._end)
        elif isinstance(message, Finish) and worker is not None:
            worker.finish()
        elif isinstance(message, Reload) and worker is not None:
            self._reload(worker, message.settings)
        elif isinstance(message, Drain | Stop):
            self._end()

    def _begin(self, begin: Begin) -> None:
        settings = begin.settings
        turn = Turn(self._reactor)
        drive(self._reactor, turn)
        worker = self._worker = Worker(
            settings.config, self._reactor, _roots(settings), turn, settings.max_clients
        )
        worker.slow.salt = begin.salt
        own = worker.descriptions[b"memtunnel"]
        worker.descriptions[b"memtunnel"] = lambda: self._description or own()
        worker.descriptions[b"memtunnel slow"] = lambda: self._slow
        eager = SendAtOnceReactor(self._reactor)
        for descriptor, family in begin.sockets:
            listener = worker.listener()
            listener.changed = self._look_for_room
            port = eager.adoptStreamPort(descriptor, family, listener)
            os.close(descriptor)  # the port has one of its own
            worker.serve(listener, port)
            self._ports.append(port)
        worker.start()

    def _reload(self, worker: Worker, settings: Settings) -> None:
        try:
            worker.reload(settings.config, _roots(settings), settings.max_clients)
        except Exception as problem:
            # What it serves goes on, which it would not if the channel were gone.
            worker.not_reloaded()
            self._say_error("not_reloaded", f"settings not reloaded: {problem!r}")
        self._look_for_room()

    def _send_reading(self, worker: Worker) -> None:
        worker.metrics.garbage = garbage()
        slow = tuple(worker.slow.after(self._slow_told))
        self._slow_told = worker.slow.added
        self.channel.tell(
            Reading(
                number=self._round,
                counts=counts(worker.metrics),
                state=worker.status.state(),
                slow=slow,
                slow_untold=worker.slow.untold,
            )
        )

    def _look_for_room(self) -> None:
        """Leave those to come to the other workers while there is no room here."""
        if self._worker is None:
            return  # it ends: clients that are still there are closed
        status = self._worker.status
        left = status.clients < status.max_clients
        if left != self._has_room:
            self._has_room = left
            for port in self._ports:
                if port.connected:
                    (port.startReading if left else port.stopReading)()
            self.channel.tell(Room(left=left))

    def _orphaned(self) -> None:
        worker = self._worker
        if worker is None:
            self._end()
        else:
            for port in self._ports:
                port.stopListening()
            if not worker.status.draining:
                worker.drain().addCallback(self._end)

    def _end(self, _: object = None) -> None:
        """Close everything, the channel last: what was said there has to arrive."""
        if self._worker is not None:
            worker, self._worker = self._worker, None
            self._send_reading(worker)
            worker.stop()
        if self.channel.connected:
            self.channel.close()
        elif self._reactor.running:
            self._reactor.stop()
