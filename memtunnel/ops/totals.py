"""What several workers counted, and the state that each is in, as those of one tunnel.

Counts travel between processes as plain lists, dicts and numbers (`counts`), and are added up
(`add`). A sum says nothing of some states: those are kept by worker, too (`together`).
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from memtunnel.ops.metrics import (
    Command,
    Histogram,
    ListenerMetrics,
    Metrics,
    ServerMetrics,
    ServerState,
    State,
)

#: By type, the attributes that are counts, or have counts in them.
_COUNTED: Final[dict[type, tuple[str, ...]]] = {
    Metrics: ("servers", "listeners", "degraded_replies", "event_loop_lag", "garbage"),
    ServerMetrics: (
        "commands", "upstream_duration", "queue_duration", "connect_duration", "dialled",
        "connects", "disconnects", "desync", "retries", "flaps", "failovers", "sent_bytes",
        "received_bytes",
    ),
    ListenerMetrics: (
        "connections", "opened", "received_bytes", "sent_bytes", "rejected", "protocol_errors",
        "logins",
    ),
    Command: ("statuses", "duration"),
    Histogram: ("counts", "sum"),
}  # fmt: skip


def counts(metrics: Metrics) -> Any:
    """All that was counted so far, in a form that can be sent to another process."""
    return _plain(metrics)


def add(metrics: Metrics, sent: Any) -> None:
    """Add what `counts` gave, perhaps in another process, to `metrics`."""
    servers, listeners, *_ = sent
    for name in servers:
        metrics.server(name)
    for name in listeners:
        metrics.listener(name)
    _add(metrics, sent)


def garbage() -> dict[str, int]:
    """What this process's garbage collector did, by generation and what it counts."""
    return {
        f"{generation}:{what}": number
        for generation, numbers in enumerate(gc.get_stats())
        for what, number in numbers.items()
    }


def _plain(value: Any) -> Any:
    names = _COUNTED.get(type(value))
    if names is not None:
        return [_plain(getattr(value, name)) for name in names]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return list(value) if isinstance(value, list) else value


def _add(value: Any, plain: Any) -> Any:
    """The sum; of anything but numbers, `value` itself, which has become it."""
    names = _COUNTED.get(type(value))
    if names is not None:
        for name, part in zip(names, plain, strict=True):
            setattr(value, name, _add(getattr(value, name), part))
    elif isinstance(value, dict):
        for key, part in plain.items():
            value[key] = _add(value.get(key, 0), part)
    elif isinstance(value, list):
        for place, part in enumerate(plain):
            value[place] += part
    else:
        return value + plain
    return value


def together(workers: Mapping[str, State], wanted: int, *, draining: bool) -> State:
    """The state of a tunnel that wants so many workers and has these, by number.

    It is ready when all are. Of what cannot be added up, this has the worst.
    """
    states = list(workers.values())
    names = dict.fromkeys(name for state in states for name in state.servers)
    return State(
        ready=len(states) == wanted and all(state.ready for state in states) and not draining,
        draining=draining,
        client_paused=sum(state.client_paused for state in states),
        buffered_bytes=sum(state.buffered_bytes for state in states),
        client_connections_max=sum(state.client_connections_max for state in states),
        config_last_reload_successful=all(state.config_last_reload_successful for state in states),
        servers={
            # While settings change, some may have a server already that others do not have.
            name: server_together(
                [
                    _of_worker(number, state.servers[name])
                    for number, state in workers.items()
                    if name in state.servers
                ]
            )
            for name in names
        },
        clients=sum(state.clients for state in states),
        workers=workers,
    )


def _of_worker(number: str, state: ServerState) -> ServerState:
    return replace(state, pool=tuple(replace(one, worker=number) for one in state.pool))


def server_together(states: Sequence[ServerState], *, best: bool = False) -> ServerState:
    """The state of a server that several have to do with; the worst of it, or the `best`."""
    connections: Counter[str] = Counter()
    for state in states:
        connections.update(state.connections)
    lost = min(
        (state for state in states if state.last_lost_age is not None),
        key=lambda state: state.last_lost_age or 0.0,
        default=states[0],
    )
    dates = [date for state in states if (date := state.certificate_not_after) is not None]
    return ServerState(
        up=(any if best else all)(state.up for state in states),
        connections=dict(connections),
        connections_target=sum(state.connections_target for state in states),
        in_flight=sum(state.in_flight for state in states),
        queued=sum(state.queued for state in states),
        tombstones=sum(state.tombstones for state in states),
        queue_oldest_seconds=max(state.queue_oldest_seconds for state in states),
        breaker_open=(all if best else any)(state.breaker_open for state in states),
        verify=states[0].verify,
        tls=next((state.tls for state in states if state.tls is not None), None),
        certificate_not_after=min(dates, default=None),
        last_lost=lost.last_lost,
        last_lost_age=lost.last_lost_age,
        address=states[0].address,
        pool=tuple(one for state in states for one in state.pool),
    )
