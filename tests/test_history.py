"""What was counted, interval by interval: rows for the status page, a line a minute for the log."""

import json
from collections.abc import Iterator
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_totals import SERVER, STATE
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from memtunnel.core.outcomes import STATUS_WORDS
from memtunnel.ops.epoch import Epoch
from memtunnel.ops.history import INTERVAL, KEPT, History, Row, Totals, percentile
from memtunnel.ops.metrics import REQUEST_BOUNDS, Histogram, Metrics
from memtunnel.ops.overview import Overview
from memtunnel.ops.recorder import LINE, Recorder
from memtunnel.ops.slowlog import Entry, SlowLog
from memtunnel.wire.binary import Opcode
from memtunnel.worker import new_metrics

HIT = STATUS_WORDS.index("hit")
MISS = STATUS_WORDS.index("miss")
TIMEOUT = STATUS_WORDS.index("timeout")


@pytest.fixture
def metrics() -> Metrics:
    metrics = new_metrics(Clock())
    metrics.watch(lambda: STATE)
    return metrics


def answer(
    metrics: Metrics,
    number: int,
    *,
    opcode: Opcode = Opcode.GET,
    status: int = HIT,
    queue: float = 0.0002,
    wire: float = 0.0004,
    server: str = "one",
) -> None:
    """Requests are settled."""
    counts = metrics.server(server)
    counts.answered(opcode, status, 1.0, 1.0 + queue, 1.0 + queue + wire, 1.001, number)


# --- percentiles


@given(st.lists(st.integers(0, 1000), min_size=20, max_size=20), st.floats(0.01, 1.0))
def test_a_percentile_lies_in_the_bucket_that_has_it(counts: list[int], share: float) -> None:
    value = percentile(counts, share)
    if not sum(counts):
        assert value is None
        return
    assert value is not None
    rank = share * sum(counts)
    uppers, lowers = (*REQUEST_BOUNDS, inf), (0.0, *REQUEST_BOUNDS)
    below = sum(count for edge, count in zip(uppers, counts, strict=True) if edge < value)
    reached = sum(count for edge, count in zip(lowers, counts, strict=True) if edge < value)
    assert below <= rank + 1e-6
    assert reached >= rank - 1e-6 or value == REQUEST_BOUNDS[-1]


def test_percentiles_are_those_that_prometheus_would_tell() -> None:
    """`histogram_quantile` spreads a bucket evenly between its edges."""
    histogram = Histogram()
    for _ in range(100):
        histogram.observe(0.0007)  # from 0.5 to 0.75 ms
    assert percentile(histogram.counts, 0.5) == pytest.approx(0.000625)
    assert percentile(histogram.counts, 0.99) == pytest.approx(0.0007475)
    for _ in range(100):
        histogram.observe(9.0)
    assert percentile(histogram.counts, 0.99) == 2.5


# --- intervals


def test_a_row_has_what_was_counted_since_the_one_before(metrics: Metrics) -> None:
    history = History()
    answer(metrics, 1000)
    history.observe(metrics, 10.0)
    assert history.after(0) == (1, []), "nobody knows since when"
    answer(metrics, 30)
    answer(metrics, 10, status=MISS)
    answer(metrics, 20, opcode=Opcode.SET, status=MISS)
    answer(metrics, 500, server="local")
    metrics.degraded(Opcode.GET, "timeout")
    metrics.server("one").sent_bytes += 100
    metrics.listener("127.0.0.1:11211").opened += 6
    history.observe(metrics, 14.0)
    first, (row,) = history.after(0)
    assert first == 1
    assert row == Row(
        time=14.0,
        requests=15.0,
        degraded=0.25,
        hit_rate=0.75,
        p50=pytest.approx(0.000875),
        p99=pytest.approx(0.0009975),
        queue_p99=pytest.approx(0.0002485),
        wire_p50=pytest.approx(0.000375),
        wire_p99=pytest.approx(0.0004975),
        clients=STATE.clients,
        opened=1.5,
        sent_bytes=25.0,
        received_bytes=0.0,
    )


def test_where_nothing_was_asked_there_is_no_time_and_no_rate(metrics: Metrics) -> None:
    history = History()
    history.observe(metrics, 10.0)
    history.observe(metrics, 12.0)
    _, (row,) = history.after(0)
    assert (row.requests, row.degraded) == (0.0, 0.0)
    assert {row.hit_rate, row.p50, row.p99, row.queue_p99, row.wire_p50, row.wire_p99} == {None}


def test_the_last_rows_are_kept_and_given_from_a_number_on(metrics: Metrics) -> None:
    history = History()
    for number in range(KEPT + 11):
        history.observe(metrics, 2.0 * number)
    first, rows = history.after(0)
    assert (first, len(rows)) == (11, KEPT)
    assert all(later.time - sooner.time == 2.0 for sooner, later in pairwise(rows))
    assert history.after(KEPT + 8) == (KEPT + 9, rows[-2:])
    assert history.after(KEPT + 10) == (KEPT + 11, [])
    # Of another tunnel, which ran before: all there is.
    assert history.after(KEPT + 11) == (11, rows)
    assert history.after(5) == (11, rows)


def test_totals_are_of_all_servers_but_what_the_tunnel_says_itself(metrics: Metrics) -> None:
    answer(metrics, 3)
    answer(metrics, 4, server="two", status=TIMEOUT)
    answer(metrics, 5, server="local")
    totals = Totals.of(metrics)
    assert (totals.requests, totals.hits, totals.misses) == (7, 3, 0)
    assert sum(totals.duration) == sum(totals.wire) == sum(totals.queue) == 7
    nothing = totals.since(totals)
    assert nothing.requests == nothing.sent_bytes == sum(nothing.duration) == 0


# --- the recorder


@pytest.fixture
def lines() -> Iterator[list[str]]:
    said: list[str] = []

    def note(event: LogEvent) -> None:
        if event["log_namespace"] == "memtunnel":
            said.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    yield said
    globalLogPublisher.removeObserver(note)


def test_it_looks_at_each_interval_until_it_is_stopped(metrics: Metrics) -> None:
    clock = Clock()
    recorder = Recorder(lambda: succeed(metrics), clock, "here", figures=False)
    recorder.start()
    clock.pump([INTERVAL] * 3)
    assert [row.time for row in recorder.history.after(0)[1]] == [2.0, 4.0, 6.0]
    recorder.stop()
    assert not clock.getDelayedCalls()


def test_a_reading_that_hangs_or_fails_ends_nothing(metrics: Metrics, lines: list[str]) -> None:
    clock = Clock()
    readings: Iterator[Deferred[Metrics] | None] = iter(
        [succeed(metrics), Deferred(), fail(OSError("broken")), None, succeed(metrics)]
    )

    def read() -> Deferred[Metrics]:
        reading = next(readings)
        if reading is None:
            raise OSError("broken at once")
        return reading

    recorder = Recorder(read, clock, "here", figures=False)
    recorder.start()
    clock.pump([INTERVAL] * 4)
    assert len(recorder.history.after(0)[1]) == 1
    assert lines == ["figures could not be read"] * 2


def test_each_minute_has_a_line_of_figures(metrics: Metrics, lines: list[str]) -> None:
    clock = Clock()
    recorder = Recorder(lambda: succeed(metrics), clock, "web.1", figures=True)
    answer(metrics, 100)
    recorder.start()
    for _ in range(LINE):
        answer(metrics, 2, queue=0.0018, wire=0.0027)
        clock.advance(INTERVAL)
    assert clock.seconds() == 60.0
    clock.pump([INTERVAL] * LINE)
    assert lines == [
        "source=web.1 count#memtunnel.requests=60 count#memtunnel.hits=60"
        " count#memtunnel.misses=0 count#memtunnel.degraded=0"
        " count#memtunnel.clients.opened=0 sample#memtunnel.p50=0.875ms"
        " sample#memtunnel.p99=0.998ms sample#memtunnel.queue.p99=1.995ms"
        f" sample#memtunnel.wire.p99=2.990ms sample#memtunnel.clients={STATE.clients}"
        " sample#memtunnel.servers.up=1 sample#memtunnel.servers.down=0",
        "source=web.1 count#memtunnel.requests=0 count#memtunnel.hits=0"
        " count#memtunnel.misses=0 count#memtunnel.degraded=0"
        f" count#memtunnel.clients.opened=0 sample#memtunnel.clients={STATE.clients}"
        " sample#memtunnel.servers.up=1 sample#memtunnel.servers.down=0",
    ]


def test_the_line_is_said_only_where_it_is_wanted(metrics: Metrics, lines: list[str]) -> None:
    clock = Clock()
    recorder = Recorder(lambda: succeed(metrics), clock, "web.1", figures=False)
    recorder.start()
    clock.pump([INTERVAL] * LINE)
    assert lines == []
    recorder.figures = True
    clock.pump([INTERVAL] * LINE)
    assert len(lines) == 1


# --- the document


def test_what_has_happened_happened_at_the_same_time_unless_the_clock_is_set() -> None:
    clock = Clock()
    wall = [5000.0]
    epoch = Epoch(clock.seconds, lambda: wall[0])
    clock.advance(100.0)
    wall[0] = 5100.01
    assert epoch() == 5000.0
    wall[0] = 8700.0
    assert epoch() == 8600.0


def told(overview: Overview, metrics: Metrics, after: int = 0) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(b"".join(overview.render(metrics, STATE, after)))
    return document


def test_the_document_has_all_that_is_known(metrics: Metrics) -> None:
    clock = Clock()
    clock.advance(1000.0)
    history, slow = History(), SlowLog()
    overview = Overview(history, slow, clock.seconds, lambda: 4000.0)
    overview.slow_ms, overview.slow_sample = 50.0, 1000
    answer(metrics, 7)
    listener = metrics.listener("127.0.0.1:11211")
    listener.connections, listener.opened, listener.rejected = 2, 9, {"max_clients": 3}
    history.observe(metrics, 996.0)
    history.observe(metrics, 998.0)
    slow.add(Entry(990.0, "get", "hit", "slow", "one", 4, 0.1, 0.01, 0.09, 50, "abcdef01", "2"))
    document = told(overview, metrics)
    assert document["now"] == 5000.0
    assert (document["slow_ms"], document["slow_sample"]) == (50.0, 1000)
    assert document["clients"]["connected"] == STATE.clients
    assert document["clients"]["listeners"] == [
        {
            "address": "127.0.0.1:11211",
            "connected": 2,
            "opened": 9,
            "rejected": 3,
            "protocol_errors": 0,
            "received_bytes": 0,
            "sent_bytes": 0,
        }
    ]
    (server,) = document["servers"]
    assert (server["name"], server["requests"], server["up"]) == ("one", 7, SERVER.up)
    columns = {name: document["history"][name] for name in Row._fields}
    assert columns["time"] == [4998.0]
    assert all(len(column) == 1 for column in columns.values())
    assert document["slow"] == [
        {
            "time": 4990.0,
            "command": "get",
            "status": "hit",
            "why": "slow",
            "server": "one",
            "connection": 4,
            "total": 0.1,
            "queue": 0.01,
            "wire": 0.09,
            "bytes": 50,
            "key": "abcdef01",
            "worker": "2",
        }
    ]


def test_it_has_only_the_rows_that_are_asked_for(metrics: Metrics) -> None:
    history = History()
    overview = Overview(history, SlowLog(), lambda: 0.0, lambda: 0.0)
    for number in range(5):
        history.observe(metrics, 2.0 * number)
    assert told(overview, metrics, 3)["history"]["first"] == 4
    assert told(overview, metrics, 3)["history"]["time"] == [8.0]
    assert told(overview, metrics, 4)["history"]["time"] == []
