"""Counts of several workers are added up; of their states, what cannot be added is the worst."""

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import servers
from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric
from twisted.internet.task import Clock

from memtunnel.core.outcomes import Reason
from memtunnel.ops import totals
from memtunnel.ops.exposition import Exposition
from memtunnel.ops.metrics import (
    Command,
    ConnectionState,
    Histogram,
    ListenerMetrics,
    Metrics,
    ServerMetrics,
    ServerState,
    State,
)
from memtunnel.ops.processes import GarbageCollection, Processes
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


def slots(value: Any) -> list[str]:
    """The names of what is counted there; none where that is no object of ours."""
    if not isinstance(value, ServerMetrics | ListenerMetrics | Command | Histogram):
        return []
    # A compiled class has no __slots__.
    names = [name for name in dir(value) if not name.startswith("_") and name != "bounds"]
    return [name for name in names if not callable(getattr(value, name))]


def number_all(value: Any, number: Callable[[], int]) -> Any:
    """Put a number of its own in each place of `value` where something can be counted."""
    if names := slots(value):
        for name in names:
            setattr(value, name, number_all(getattr(value, name), number))
        return value
    if isinstance(value, dict):
        return {key: number_all(each, number) for key, each in value.items()} or {"x": number()}
    return [number() for _ in value] if isinstance(value, list) else number()


def numbers_in(value: Any) -> Any:
    """What `number_all` has put there."""
    if names := slots(value):
        return {name: numbers_in(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: numbers_in(each) for key, each in value.items()}
    return value


@pytest.mark.parametrize("kind", [ServerMetrics, ListenerMetrics])
def test_nothing_that_is_counted_is_forgotten(
    kind: type[ServerMetrics] | type[ListenerMetrics],
) -> None:
    ones, twos = count(1), count(2, step=2)
    one = number_all(kind(), lambda: next(ones))
    twice = number_all(kind(), lambda: next(twos))
    metrics, together = new_metrics(Clock()), new_metrics(Clock())
    for each in metrics, together:
        each.servers.clear()
    (metrics.servers if kind is ServerMetrics else metrics.listeners)["name"] = one
    for _ in range(2):
        totals.add(together, totals.counts(metrics))
    summed = together.servers if kind is ServerMetrics else together.listeners
    assert numbers_in(summed["name"]) == numbers_in(twice)


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
        ({"last_lost": "reset", "last_lost_age": 3.0}, "last_lost", "reset"),
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


@pytest.mark.parametrize("order", [1, -1])
def test_of_what_was_lost_the_last_is_told(order: int) -> None:
    before = replace(SERVER, last_lost="reset", last_lost_age=3.0)
    after = replace(SERVER, last_lost="closed", last_lost_age=2.0)
    states = [replace(STATE, servers={"one": server}) for server in (before, after)]
    workers = dict(zip("12", states[::order], strict=True))
    server = totals.together(workers, 2, draining=False).servers["one"]
    assert (server.last_lost, server.last_lost_age) == ("closed", 2.0)


def test_connections_are_told_with_their_workers() -> None:
    one = ConnectionState(number=1, state="warm", age=1.0, in_flight=2, round_trip=0.1)
    state = replace(STATE, servers={"one": replace(SERVER, pool=(one,))})
    server = totals.together({"1": state, "2": state}, 2, draining=False).servers["one"]
    assert server.pool == (replace(one, worker="1"), replace(one, worker="2"))


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


# What the processes use


@contextmanager
def process() -> Iterator[int]:
    """Another process; it has ended, and somebody has looked after it, when this is left."""
    child = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=-1)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"done\n"
        yield child.pid
    finally:
        child.communicate(timeout=servers.PATIENCE)


#: Uses a moment of the processor, and then nothing more as long as it runs.
BUSY = """
import time
while time.process_time() < 0.2: pass
print("done", flush=True)
input()
"""


def used(pids: dict[str, int]) -> dict[str, float]:
    """``process_*`` of a tunnel that has these workers; by the names of the samples."""
    metrics = new_metrics(Clock())
    workers = {number: replace(STATE, pid=pid) for number, pid in pids.items()}
    metrics.watch(lambda: replace(STATE, workers=workers))
    return samples(Processes(metrics).collect())


def used_by(pid: str) -> dict[str, float]:
    """What the client's own collector says of one process."""
    collector: Any = ProcessCollector
    return samples(collector(registry=None, pid=lambda: pid).collect())


def samples(metrics: Iterable[Metric]) -> dict[str, float]:
    return {sample.name: sample.value for metric in metrics for sample in metric.samples}


def test_what_a_worker_uses_is_added() -> None:
    with process() as pid:
        alone, worker, together = used_by("self"), used_by(str(pid)), used({"1": pid})
        assert together.keys() == alone.keys()
        sums = ("process_resident_memory_bytes", "process_virtual_memory_bytes")
        for name in sums:
            assert together[name] == pytest.approx(alone[name] + worker[name], rel=0.05)
        opened = alone["process_open_fds"] + worker["process_open_fds"]
        assert together["process_open_fds"] == opened
        used_here = alone["process_cpu_seconds_total"]
        assert together["process_cpu_seconds_total"] >= used_here + 0.19


def test_what_cannot_be_added_is_that_of_the_tunnel() -> None:
    with process() as pid:
        alone, together = used_by("self"), used({"1": pid})
        # It began when its first process did; each may open so many files.
        for name in ("process_start_time_seconds", "process_max_fds"):
            assert together[name] == alone[name]


def test_a_worker_that_has_just_ended_is_left_out() -> None:
    with process() as pid:
        pass
    alone, together = used_by("self"), used({"1": pid})
    assert together.keys() == alone.keys()
    assert together["process_open_fds"] == alone["process_open_fds"]


@pytest.mark.parametrize("left", [{"2": os.getpid()}, {}], ids=["others", "none"])
def test_time_that_was_used_stays_in_the_sum(left: dict[str, int]) -> None:
    with process() as pid:
        before = used({"1": pid, **left})
    # All workers may be gone for a moment.
    assert used(left)["process_cpu_seconds_total"] >= before["process_cpu_seconds_total"]


def test_garbage_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    own = dict.fromkeys(totals.garbage(), 3)
    monkeypatch.setattr("memtunnel.ops.processes.garbage", lambda: own)
    one, together = new_metrics(Clock()), new_metrics(Clock())
    one.garbage = dict.fromkeys(own, 100)
    for _ in range(2):
        totals.add(together, totals.counts(one))
    assert collections(together) == {"0": 203, "1": 203, "2": 203}


def test_garbage_of_one_process_is_its_own() -> None:
    now = {str(each): numbers["collections"] for each, numbers in enumerate(gc.get_stats())}
    told = collections(new_metrics(Clock()))
    assert told.keys() == now.keys()
    assert told["2"] >= now["2"] > 0


def collections(metrics: Metrics) -> dict[str, float]:
    """How often which generation was collected, as it is told."""
    return {
        sample.labels["generation"]: sample.value
        for metric in GarbageCollection(metrics).collect()
        for sample in metric.samples
        if sample.name == "python_gc_collections_total"
    }
