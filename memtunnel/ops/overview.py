"""What the status page and `memtunnel top` show, as one JSON document: ``/status``.

It is rendered in pieces, each a fraction of a millisecond, so that nobody's requests wait for those
who look on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

from memtunnel import __version__
from memtunnel.ops.history import INTERVAL, History, Row
from memtunnel.ops.metrics import Metrics, ServerState, State
from memtunnel.ops.slowlog import Entry, SlowLog


class Overview:
    """`seconds` is the monotonic clock, `epoch` makes seconds since the epoch of its own.

    `slow_ms` and `slow_sample` are the settings of these names.
    """

    def __init__(
        self,
        history: History,
        slow: SlowLog,
        seconds: Callable[[], float],
        epoch: Callable[[], float],
    ) -> None:
        self._history = history
        self._slow = slow
        self._seconds = seconds
        self._epoch = epoch
        self.slow_ms: float | None = None
        self.slow_sample: int | None = None

    def render(self, metrics: Metrics, state: State, after: int = 0) -> Iterator[bytes]:
        """The document, with those rows of the history whose number is higher than `after`."""
        epoch = self._epoch()
        yield b"{" + _json(self._head(metrics, state, self._seconds() + epoch))[1:-1]
        yield b',"servers":['
        yield from _listed(_server(name, one, metrics) for name, one in state.servers.items())
        yield b'],"history":{'
        yield from self._columns(epoch, after)
        yield b'},"slow":['
        yield from _listed(_entry(entry, epoch) for entry in self._slow)
        yield b"]}\n"

    def _head(self, metrics: Metrics, state: State, now: float) -> dict[str, Any]:
        return {
            "version": __version__,
            "now": now,
            "uptime": state.uptime,
            "pid": state.pid,
            "ready": state.ready,
            "draining": state.draining,
            "workers": max(1, len(state.workers)),
            "silent": list(state.silent),
            "reloaded": state.config_last_reload_successful,
            "slow_ms": self.slow_ms,
            "slow_sample": self.slow_sample,
            "slow_untold": self._slow.untold,
            "clients": {
                "connected": state.clients,
                "max": state.client_connections_max,
                "paused": state.client_paused,
                "buffered_bytes": state.buffered_bytes,
                "listeners": [
                    {
                        "address": address,
                        "connected": listener.connections,
                        "opened": listener.opened,
                        "rejected": sum(listener.rejected.values()),
                        "protocol_errors": sum(listener.protocol_errors.values()),
                        "received_bytes": listener.received_bytes,
                        "sent_bytes": listener.sent_bytes,
                    }
                    for address, listener in metrics.listeners.items()
                ],
            },
        }

    def _columns(self, epoch: float, after: int) -> Iterator[bytes]:
        first, rows = self._history.after(after)
        yield _json({"interval": INTERVAL, "first": first})[1:-1]
        for place, name in enumerate(Row._fields):
            since = epoch if name == "time" else 0.0
            values = [row[place] for row in rows]
            column = [None if value is None else value + since for value in values]
            yield b',"%b":%b' % (name.encode(), _json(column))


def _server(name: str, state: ServerState, metrics: Metrics) -> dict[str, Any]:
    counted = metrics.servers.get(name)
    commands = counted.commands.values() if counted is not None else ()
    return {
        "name": name,
        "address": state.address,
        "up": state.up,
        "refusing": state.breaker_open,
        "in_flight": state.in_flight,
        "queued": state.queued,
        "tombstones": state.tombstones,
        "queue_oldest": state.queue_oldest_seconds,
        "connections_target": state.connections_target,
        "requests": sum(sum(command.statuses) for command in commands),
        "verify": state.verify,
        "tls": None if state.tls is None else " ".join(state.tls),
        "certificate_not_after": state.certificate_not_after,
        "last_lost": state.last_lost,
        "last_lost_age": state.last_lost_age,
        "connections": [asdict(connection) for connection in state.pool],
    }


def _entry(entry: Entry, epoch: float) -> dict[str, Any]:
    told = {"time": entry.settled + epoch, **entry._asdict()}
    del told["settled"], told["number"]
    return told


def _listed(values: Iterable[Any]) -> Iterator[bytes]:
    for place, value in enumerate(values):
        yield (b"," if place else b"") + _json(value)


def _json(value: Any) -> bytes:
    return json.dumps(_short(value), separators=(",", ":")).encode()


def _short(value: Any) -> Any:
    """The same, but no number finer than a microsecond, which nobody could read."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return value
