"""Counts of several workers are added up; of their states, what cannot be added is the worst."""

import pickle
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.task import Clock

from memtunnel.core.outcomes import Reason
from memtunnel.ops import totals
from memtunnel.ops.exposition import Exposition
from memtunnel.ops.metrics import Metrics, ServerState, State
from memtunnel.wire.binary import Opcode
from memtunnel.worker import new_metrics

SERVER = ServerState(
    up=True,
    connections={"warm": 2, "dialling": 0},
    connections_target=2,
    in_flight=3,
    queued=4,
    tombstones=5,
    queue_oldest_seconds=0.5,
    breaker_open=False,
    verify="full",
    tls=("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
    certificate_not_after=2e9,
    last_lost="",
)
STATE = State(
    ready=True,
    draining=False,
    client_paused=1,
    buffered_bytes=10,
    client_connections_max=100,
    config_last_reload_successful=True,
    servers={"one": SERVER},
    clients=7,
    uptime=1.0,
    pid=1,
)


def worked(times: int) -> Metrics:
    """The metrics of a worker that has had so many of each thing."""
    metrics = new_metrics(Clock())
    server = metrics.server("one")
    listener = metrics.listener("127.0.0.1:11211")
    for number in range(1, times + 1):
        server.answered(Opcode.GET, 0, 1.0, 1.001, 1.003, 1.003)
        server.phase("tls", 0.01)
        server.connects["ok"] = number
        listener.opened = number
        listener.received_bytes = 100 * number
        listener.rejected["max_clients"] = number
        metrics.degraded(Opcode.GET, Reason.TIMEOUT)
        metrics.event_loop_lag.observe(0.002)
    metrics.garbage = dict.fromkeys(totals.garbage(), times)
    return metrics


def exposed(metrics: Metrics) -> list[str]:
    """The samples of the tunnel's own families."""
    pieces = Exposition(metrics).render("")[1]
    text = b"".join(pieces).decode()
    return [line for line in text.splitlines() if line.startswith("memtunnel_")]


def test_what_workers_have_counted_is_what_one_would_have() -> None:
    together = new_metrics(Clock())
    for times in (2, 0, 5):
        # Between processes it is pickled.
        totals.add(together, pickle.loads(pickle.dumps(totals.counts(worked(times)))))
    assert together.garbage == dict.fromkeys(totals.garbage(), 7)
    alone = worked(7)
    different = [
        (one, other)
        for one, other in zip(exposed(together), exposed(alone), strict=True)
        # Sums of fractions depend on their order.
        if one != other and float(one.split()[-1]) != pytest.approx(float(other.split()[-1]))
    ]
    assert different == []
    assert "memtunnel_client_connections_opened_total" in "".join(exposed(together))


def test_what_is_added_is_left_as_it_was() -> None:
    metrics = worked(1)
    sent = totals.counts(metrics)
    before = pickle.dumps(sent)
    together = new_metrics(Clock())
    totals.add(together, sent)
    totals.add(together, sent)
    assert pickle.dumps(sent) == before
    assert exposed(metrics) == exposed(worked(1))


def test_states_are_added_up() -> None:
    state = totals.together({"1": STATE, "2": STATE}, 2, draining=False)
    assert (state.ready, state.clients, state.client_connections_max) == (True, 14, 200)
    assert (state.client_paused, state.buffered_bytes) == (2, 20)
    server = state.servers["one"]
    assert server.connections == {"warm": 4, "dialling": 0}
    assert (server.connections_target, server.in_flight) == (4, 6)
    assert (server.queued, server.tombstones) == (8, 10)
    assert state.workers == {"1": STATE, "2": STATE}


@pytest.mark.parametrize(
    ("worse", "attribute", "told"),
    [
        ({"up": False}, "up", False),
        ({"breaker_open": True}, "breaker_open", True),
        ({"queue_oldest_seconds": 2.0}, "queue_oldest_seconds", 2.0),
        ({"certificate_not_after": 1e9}, "certificate_not_after", 1e9),
        ({"last_lost": "reset"}, "last_lost", "reset"),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_of_servers_the_worst_is_told(
    worse: dict[str, Any], attribute: str, told: Any, order: int
) -> None:
    other = replace(STATE, servers={"one": replace(SERVER, **worse)})
    workers = dict(zip("12", (STATE, other)[::order], strict=True))
    state = totals.together(workers, 2, draining=False)
    assert getattr(state.servers["one"], attribute) == told


def test_what_one_does_not_know_the_others_tell() -> None:
    new = replace(SERVER, up=False, tls=None, certificate_not_after=None)
    workers = {"1": replace(STATE, servers={"one": new}), "2": STATE}
    server = totals.together(workers, 2, draining=False).servers["one"]
    assert (server.tls, server.certificate_not_after) == (SERVER.tls, 2e9)


@pytest.mark.parametrize(
    ("workers", "draining"),
    [
        ({}, False),
        ({"1": STATE}, False),
        ({"1": STATE, "2": replace(STATE, ready=False)}, False),
        ({"1": STATE, "2": STATE}, True),
    ],
)
def test_it_is_ready_only_when_all_are(workers: dict[str, State], draining: bool) -> None:
    assert not totals.together(workers, 2, draining=draining).ready


def test_a_gauge_that_cannot_be_added_up_is_told_of_each_worker() -> None:
    down = replace(STATE, servers={"one": replace(SERVER, up=False)})
    metrics = new_metrics(Clock())
    metrics.server("one")
    metrics.watch(lambda: totals.together({"1": STATE, "2": down}, 2, draining=False))
    lines = exposed(metrics)
    up = [line for line in lines if line.startswith("memtunnel_upstream_up{")]
    assert up == [
        'memtunnel_upstream_up{server="one",worker="1"} 1.0',
        'memtunnel_upstream_up{server="one",worker="2"} 0.0',
    ]
    assert 'memtunnel_upstream_requests_in_flight{server="one"} 6.0' in lines
