"""What is counted, and how it reads: names, types, labels, formats, sums."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable

import pytest
from prometheus_client import parser
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser

from memtunnel.core.outcomes import STATUS_WORDS
from memtunnel.ops.exposition import PIECE, Exposition
from memtunnel.ops.metrics import COMMANDS, PHASES, Histogram, Metrics, ServerState, State
from memtunnel.wire.binary import Opcode

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5"
HIT = STATUS_WORDS.index("hit")
MISS = STATUS_WORDS.index("miss")

#: The public table: name, type, labels.
TABLE = """
memtunnel_commands_total counter server command status
memtunnel_request_duration_seconds histogram server command
memtunnel_upstream_duration_seconds histogram server
memtunnel_queue_duration_seconds histogram server
memtunnel_queue_oldest_seconds gauge server
memtunnel_upstream_up gauge server
memtunnel_upstream_connections gauge server state
memtunnel_upstream_connections_target gauge server
memtunnel_upstream_requests_in_flight gauge server
memtunnel_upstream_requests_queued gauge server
memtunnel_upstream_requests_tombstones gauge server
memtunnel_upstream_connects_total counter server result
memtunnel_upstream_connect_duration_seconds histogram server phase
memtunnel_upstream_disconnects_total counter server reason
memtunnel_upstream_desync_total counter server kind
memtunnel_upstream_retries_total counter server reason
memtunnel_degraded_replies_total counter command reason
memtunnel_upstream_breaker_open gauge server
memtunnel_tls_verify_info gauge server mode
memtunnel_upstream_flaps_total counter server
memtunnel_failovers_total counter server
memtunnel_client_logins_total counter listener result
memtunnel_client_connections_max gauge
memtunnel_config_last_reload_successful gauge
memtunnel_upstream_sent_bytes_total counter server
memtunnel_upstream_received_bytes_total counter server
memtunnel_tls_info gauge server version cipher
memtunnel_tls_certificate_not_after_timestamp_seconds gauge server
memtunnel_client_connections gauge listener
memtunnel_client_connections_opened_total counter listener
memtunnel_client_connections_rejected_total counter listener reason
memtunnel_client_received_bytes_total counter listener
memtunnel_client_sent_bytes_total counter listener
memtunnel_client_protocol_errors_total counter listener reason
memtunnel_client_paused gauge
memtunnel_buffered_bytes gauge
memtunnel_event_loop_lag_seconds histogram
memtunnel_ready gauge
memtunnel_draining gauge
memtunnel_build_info gauge version python twisted openssl reactor
"""


def make_metrics() -> Metrics:
    return Metrics(version="1", python="3", twisted="26", openssl="3.5", reactor="EPollReactor")


def make_state() -> State:
    server = ServerState(
        up=True,
        connections={"warm": 2, "draining": 0},
        connections_target=2,
        in_flight=3,
        queued=4,
        tombstones=5,
        queue_oldest_seconds=0.25,
        breaker_open=False,
        verify="full",
        tls=("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
        certificate_not_after=2e9,
    )
    return State(
        ready=True,
        draining=False,
        client_paused=1,
        buffered_bytes=4096,
        client_connections_max=10000,
        config_last_reload_successful=True,
        servers={"mc1": server},
    )


def use_everything(metrics: Metrics) -> None:
    """Count each thing once."""
    server = metrics.server("mc1")
    server.answered(Opcode.GET, HIT, 10.0, 10.1, 10.2, 10.3)
    for counts in (server.connects, server.disconnects, server.desync, server.retries):
        counts["word"] = 1
    server.flaps = server.failovers = server.sent_bytes = server.received_bytes = 1
    for phase in PHASES:
        server.phase(phase, 0.002)
    listener = metrics.listener("127.0.0.1:11211")
    listener.opened = listener.connections = listener.received_bytes = listener.sent_bytes = 1
    for counts in (listener.rejected, listener.protocol_errors, listener.logins):
        counts["word"] = 1
    metrics.degraded(Opcode.SET, "timeout")
    metrics.event_loop_lag.observe(0.0)
    metrics.watch(make_state)


def text_of(metrics: Metrics, accept: str = "") -> str:
    return b"".join(Exposition(metrics).render(accept)[1]).decode()


def families_of(metrics: Metrics) -> dict[str, Metric]:
    return {each.name: each for each in parser.text_string_to_metric_families(text_of(metrics))}


def value_of(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The value of a sample, None where there is none; more than one is an error."""
    found = [
        sample.value
        for family in families_of(metrics).values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.fixture
def used() -> Metrics:
    metrics = make_metrics()
    use_everything(metrics)
    return metrics


def test_every_metric_of_the_table_is_there_with_its_type_and_labels(used: Metrics) -> None:
    found = {}
    for family in families_of(used).values():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        found[name] = (family.type, labels)
    rows = (line.split() for line in TABLE.split("\n") if line)
    expected = {name: (type_, {frozenset(labels)}) for name, type_, *labels in rows}
    ours = {name: each for name, each in found.items() if name.startswith("memtunnel_")}
    assert ours == expected
    assert "process_cpu_seconds_total" in found
    assert "python_gc_collections_total" in found


@pytest.mark.parametrize(
    ("accept", "parse"),
    [
        ("", parser.text_string_to_metric_families),
        (OPENMETRICS, openmetrics_parser.text_string_to_metric_families),
    ],
)
def test_both_formats_say_the_same_as_the_whole_registry(
    used: Metrics, accept: str, parse: Callable[[str], object]
) -> None:
    for number in range(40):  # families larger than one piece
        used.server(f"s{number}").answered(Opcode.SET, MISS, 1.0, 1.1, 1.2, 1.3)
    whole = parser.text_string_to_metric_families(
        generate_latest(Exposition(used).registry).decode()
    )
    expected = {family.name: family.samples for family in whole if family.name[:3] == "mem"}
    text = text_of(used, accept)
    found = {family.name: family.samples for family in parse(text) if family.name[:3] == "mem"}
    # One parser puts counts before buckets, and each has its own name for a line's end.
    assert found.keys() == expected.keys()
    for name, samples in expected.items():
        assert len(samples) == len(found[name])
        plain = [(each.name, each.labels, each.value) for each in samples]
        assert all((s.name, s.labels, s.value) in plain for s in found[name])
    assert text.count("# TYPE memtunnel_request_duration_seconds ") == 1
    assert text.count("# EOF\n") == (1 if accept else 0)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        ("application/openmetrics-text; version=0.0.1", False),
        ("application/openmetrics-text; version=2.0.0", False),
        ("application/openmetrics-text", True),
        (OPENMETRICS, True),
    ],
)
def test_openmetrics_goes_to_those_who_ask_for_it(accept: str, openmetrics: bool) -> None:
    content_type, pieces = Exposition(make_metrics()).render(accept)
    if openmetrics:
        assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    else:
        assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b"".join(pieces).endswith(b"# EOF\n") is openmetrics


def test_promtool_finds_nothing(used: Metrics) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is missing; Debian's package is prometheus")
        pytest.skip("promtool is missing (Debian: apt-get install prometheus)")
    result = subprocess.run(
        [promtool, "check", "metrics"],
        input=text_of(used),
        text=True,
        capture_output=True,
        timeout=30,
    )
    # What is not ours cannot be renamed here.
    ours = [line for line in result.stderr.splitlines() if "memtunnel_" in line]
    assert ours == []
    assert "error while linting" not in result.stderr


def test_an_observation_on_an_edge_belongs_to_that_edge() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == 14.0


def test_buckets_are_cumulative_and_end_with_infinity() -> None:
    metrics = make_metrics()
    for value in (0.001, 0.004, 0.004, 60.0):
        metrics.server("mc1").phase("tls", value)
    name = "memtunnel_upstream_connect_duration_seconds"
    labels = {"server": "mc1", "phase": "tls"}
    buckets = {
        sample.labels["le"]: sample.value
        for sample in families_of(metrics)[name].samples
        if sample.name == name + "_bucket"
    }
    assert list(buckets)[-1] == "+Inf"
    assert (buckets["0.001"], buckets["0.0025"], buckets["0.005"]) == (1, 1, 3)
    assert (buckets["10.0"], buckets["+Inf"]) == (3, 4)
    assert value_of(metrics, name + "_count", **labels) == 4
    assert value_of(metrics, name + "_sum", **labels) == pytest.approx(60.009)


def test_the_times_of_a_request_are_told_apart() -> None:
    metrics = make_metrics()
    metrics.server("mc1").answered(Opcode.GET, HIT, 100.0, 101.0, 104.0, 104.5)
    names = ("request", "upstream", "queue")
    sums = [
        value_of(
            metrics,
            f"memtunnel_{name}_duration_seconds_sum",
            server="mc1",
            **({"command": "get"} if name == "request" else {}),
        )
        for name in names
    ]
    assert sums == [4.5, 3.0, 1.0]


def test_a_request_that_was_never_written_has_no_time_upstream() -> None:
    metrics = make_metrics()
    metrics.local.answered(Opcode.NOOP, HIT, 100.0, 0.0, 0.0, 100.5)
    families = families_of(metrics)
    assert families["memtunnel_upstream_duration_seconds"].samples == []
    assert families["memtunnel_queue_duration_seconds"].samples == []
    labels = {"server": "local", "command": "noop"}
    assert value_of(metrics, "memtunnel_commands_total", status="hit", **labels) == 1


def test_opcodes_of_one_word_are_one_series() -> None:
    metrics = make_metrics()
    for opcode in (Opcode.GET, Opcode.GETK, Opcode.GETK):
        metrics.server("mc1").answered(opcode, MISS, 1.0, 0.0, 1.5, 1.5)
    labels = {"server": "mc1", "command": "get"}
    assert value_of(metrics, "memtunnel_commands_total", status="miss", **labels) == 3
    assert value_of(metrics, "memtunnel_request_duration_seconds_count", **labels) == 3


def test_every_opcode_and_status_has_a_word_of_the_closed_sets() -> None:
    words = {
        *("get", "gat", "set", "add", "replace", "append", "prepend", "delete", "incr", "decr"),
        *("touch", "flush", "stat", "noop", "version", "sasl", "quit", "unknown"),
    }
    metrics = make_metrics()
    for opcode in range(256):
        for status in range(len(STATUS_WORDS)):
            metrics.server("mc1").answered(opcode, status, 1.0, 1.0, 1.0, 1.0)
        metrics.degraded(opcode, "timeout")
    families = families_of(metrics)
    samples = families["memtunnel_commands"].samples
    assert {sample.labels["command"] for sample in samples} == words
    assert {sample.labels["status"] for sample in samples} == set(STATUS_WORDS)
    assert len(samples) == len(words) * len(STATUS_WORDS)
    assert sum(sample.value for sample in samples) == 256 * len(STATUS_WORDS)
    degraded = families["memtunnel_degraded_replies"].samples
    assert {sample.labels["command"] for sample in degraded} == words
    known = {Opcode(o).name for o in range(256) if o in set(Opcode) and COMMANDS[o] == "unknown"}
    assert known == set()


def test_what_was_never_used_has_no_series_but_gauges_do() -> None:
    metrics = make_metrics()
    metrics.server("mc1")
    metrics.listener("127.0.0.1:11211")
    metrics.watch(make_state)
    families = families_of(metrics)
    ours = {name: each for name, each in families.items() if name.startswith("memtunnel_")}
    empty = {name for name, family in ours.items() if not family.samples}
    counted = {
        name
        for name, family in ours.items()
        if family.type in ("counter", "histogram") and name != "memtunnel_event_loop_lag_seconds"
    }
    assert empty == counted


def test_what_is_not_known_yet_has_no_series() -> None:
    metrics = make_metrics()
    families = families_of(metrics)  # nobody to ask for the state
    assert families["memtunnel_ready"].samples == []
    assert families["memtunnel_upstream_up"].samples == []


def test_counts_go_on_under_the_same_name() -> None:
    metrics = make_metrics()
    assert metrics.server("mc1") is metrics.server("mc1")
    assert metrics.listener("a") is metrics.listener("a")
    assert metrics.server("mc1") is not metrics.server("mc2")
    assert metrics.server("local") is metrics.local


def test_a_scrape_that_takes_several_turns_bears_new_series(used: Metrics) -> None:
    server = used.server("mc1")
    for number in range(100):
        server.retries[f"reason{number}"] = 1
    pieces = []
    for number, piece in enumerate(Exposition(used).render("")[1]):
        pieces.append(piece)
        used.server(f"later{number}").connects["ok"] = 1
        server.retries[f"later{number}"] = 1
        server.answered(Opcode.GET, HIT, 1.0, 1.1, 1.2, 1.3)
        used.degraded(Opcode.GET, f"later{number}")
    families = list(parser.text_string_to_metric_families(b"".join(pieces).decode()))
    for family in families:
        for sample in family.samples:
            if sample.name.endswith("_count"):
                infinite = {**sample.labels, "le": "+Inf"}
                [bucket] = [s.value for s in family.samples if s.labels == infinite]
                assert bucket == sample.value


def test_a_piece_is_small() -> None:
    metrics = make_metrics()
    for number in range(20):
        for opcode in (Opcode.GET, Opcode.SET, Opcode.DELETE):
            metrics.server(f"s{number}").answered(opcode, HIT, 1.0, 1.1, 1.2, 1.3)
    pieces = list(Exposition(metrics).render("")[1])
    longest = max(len(re.findall(rb"^[^#]", piece, re.MULTILINE)) for piece in pieces)
    assert longest == PIECE


def test_label_values_are_escaped() -> None:
    metrics = make_metrics()
    name = 'a"b\\c\nd'
    metrics.server(name).flaps = 7
    assert value_of(metrics, "memtunnel_upstream_flaps_total", server=name) == 7
