"""The exposition of a tunnel that works: its form, its names, and whether it counts right."""

import subprocess
import threading
from collections.abc import Callable
from typing import Any

import servers
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode, Status

POOL_SIZE = 3
#: Those that are there from the start.
ALWAYS = {
    "memtunnel_build_info",
    "memtunnel_buffered_bytes",
    "memtunnel_client_connections",
    "memtunnel_client_connections_max",
    "memtunnel_client_paused",
    "memtunnel_config_last_reload_successful",
    "memtunnel_draining",
    "memtunnel_event_loop_lag_seconds",
    "memtunnel_queue_oldest_seconds",
    "memtunnel_ready",
    "memtunnel_tls_certificate_not_after_timestamp_seconds",
    "memtunnel_tls_info",
    "memtunnel_tls_verify_info",
    "memtunnel_upstream_breaker_open",
    "memtunnel_upstream_connect_duration_seconds",
    "memtunnel_upstream_connections",
    "memtunnel_upstream_connections_target",
    "memtunnel_upstream_connects_total",
    "memtunnel_upstream_received_bytes_total",
    "memtunnel_upstream_requests_in_flight",
    "memtunnel_upstream_requests_queued",
    "memtunnel_upstream_requests_tombstones",
    "memtunnel_upstream_sent_bytes_total",
    "memtunnel_upstream_up",
}
#: Those that need clients, and trouble.
USED = {
    "memtunnel_client_connections_opened_total",
    "memtunnel_client_connections_rejected_total",
    "memtunnel_client_logins_total",
    "memtunnel_client_protocol_errors_total",
    "memtunnel_client_received_bytes_total",
    "memtunnel_client_sent_bytes_total",
    "memtunnel_commands_total",
    "memtunnel_degraded_replies_total",
    "memtunnel_failovers_total",
    "memtunnel_queue_duration_seconds",
    "memtunnel_request_duration_seconds",
    "memtunnel_upstream_disconnects_total",
    "memtunnel_upstream_duration_seconds",
    "memtunnel_upstream_flaps_total",
}
#: Those that no healthy memcached makes count.
RARE = {"memtunnel_upstream_desync_total", "memtunnel_upstream_retries_total"}


def sampled(tunnel: servers.Tunnel) -> tuple[set[str], set[str]]:
    """All families of the exposition, and those that have samples; counters with their suffix."""
    everything, used = set(), set()
    for family in parser.text_string_to_metric_families(tunnel.get("/metrics")[1]):
        if family.name.startswith("memtunnel_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            everything.add(name)
            if family.samples:
                used.add(name)
    return everything, used


def test_every_name_is_there_once_it_is_used(
    make_memcached: Callable[..., servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
) -> None:
    memcacheds = [make_memcached(), make_memcached()]
    tunnel = make_tunnel(*memcacheds, flags=("--max-clients=2", servers.PATIENT))
    servers.wait_until(lambda: sampled(tunnel)[1] >= ALWAYS, "the tunnel is at work")
    # A counter that no child has counted for has no family in the text format.
    client, broken = connect(tunnel), connect(tunnel)
    for number in range(20):
        assert client.get(b"k%d" % number).status == Status.NOT_FOUND
    assert connect(tunnel).at_end()  # one too many
    message = f"\0{servers.USERNAME}\0{servers.PASSWORD}".encode()
    assert client.ask(Opcode.SASL_AUTH, b"PLAIN", value=message).status == Status.OK
    broken.send(b"\x80" + bytes(23) + b"\x42" * 24)
    assert broken.read(2)[0].status == Status.INVALID
    memcacheds[0].stop()
    servers.wait_until(
        lambda: tunnel.metric("memtunnel_upstream_breaker_open", server="server0") == 1,
        "the server is given up",
    )
    for number in range(20):
        assert client.get(b"k%d" % number).status == Status.NOT_FOUND
    memcacheds[1].stop()
    servers.wait_until(
        lambda: client.set(b"k", b"v").status == Status.NOT_STORED, "no server is left"
    )
    families, names = sampled(tunnel)
    assert ALWAYS - names <= {
        "memtunnel_tls_certificate_not_after_timestamp_seconds",
        "memtunnel_tls_info",
    }
    assert USED - names == set()
    assert families == ALWAYS | USED | RARE


def test_the_exposition_is_well_formed(
    make_memcached: Callable[..., servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
) -> None:
    tunnel = make_tunnel(make_memcached())
    client = connect(tunnel)
    client.set(b"k", b"v")
    client.get(b"k")
    text = tunnel.get("/metrics")[1]
    assert any(
        sample.value == 1
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "memtunnel_commands_total"
    )
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    assert list(openmetrics.text_string_to_metric_families(tunnel.get("/metrics", accept)[1]))
    check = [servers.need("promtool"), "check", "metrics"]
    done = subprocess.run(check, input=text, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_commands_are_counted_by_what_became_of_them(
    make_memcached: Callable[..., servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
) -> None:
    tunnel = make_tunnel(make_memcached(), flags=(servers.PATIENT,))
    client = connect(tunnel)
    frames = [binary.request(Opcode.SET, b"k", extras=bytes(8), value=b"v")] * 100
    frames += [binary.request(Opcode.SETQ, b"k", extras=bytes(8), value=b"v")] * 50
    frames += [binary.request(Opcode.GET, b"k")] * 80
    frames += [binary.request(Opcode.GETKQ, b"k")] * 20
    frames += [binary.request(Opcode.GETQ, b"absent")] * 30
    frames += [binary.request(Opcode.GET, b"absent")] * 7
    frames += [binary.request(Opcode.ADD, b"k", extras=bytes(8), value=b"v")] * 6
    frames += [binary.request(Opcode.DELETE, b"absent")] * 5
    frames += [binary.request(Opcode.INCR, b"k", extras=bytes(20))] * 4
    frames += [binary.request(Opcode.VERSION)] * 3
    frames += [binary.request(Opcode.NOOP)]
    client.send(*frames)
    assert len(client.read(100 + 80 + 20 + 7 + 6 + 5 + 4 + 3 + 1)) == 226
    counted = {
        (sample.labels["server"], sample.labels["command"], sample.labels["status"]): sample.value
        for family in parser.text_string_to_metric_families(tunnel.get("/metrics")[1])
        for sample in family.samples
        if sample.name == "memtunnel_commands_total"
    }
    assert counted == {
        ("server0", "set", "hit"): 150,
        ("server0", "get", "hit"): 100,
        ("server0", "get", "miss"): 37,
        ("server0", "add", "badval"): 6,
        ("server0", "delete", "miss"): 5,
        ("server0", "incr", "non_numeric"): 4,
        ("local", "version", "hit"): 3,
        ("local", "noop", "hit"): 1,
    }
    assert tunnel.metric("memtunnel_request_duration_seconds_count", server="server0") == 302
    assert tunnel.metric("memtunnel_upstream_duration_seconds_count", server="server0") == 302
    assert tunnel.metric("memtunnel_queue_duration_seconds_count", server="server0") == 302


class Load(threading.Thread):
    """A client that reads preloaded keys, a few at a time."""

    def __init__(self, client: servers.Wire, count: int) -> None:
        super().__init__()
        self._client = client
        self._count = count
        self.hits = 0

    def run(self) -> None:
        frames = [binary.request(Opcode.GETK, b"k%d" % number) for number in range(10)]
        for _ in range(self._count):
            self._client.send(*frames)
            for number, frame in enumerate(self._client.read(len(frames))):
                self.hits += (frame.key, frame.status) == (b"k%d" % number, Status.OK)


def test_the_server_sees_exactly_the_pool_before_and_under_load(
    make_memcached: Callable[..., Any],
    make_tunnel: Callable[..., Any],
    connect: Callable[..., servers.Wire],
) -> None:
    memcached = make_memcached()
    tunnel = make_tunnel(memcached, flags=(f"--pool-size={POOL_SIZE}", servers.PATIENT))
    servers.wait_until(lambda: memcached.established() == POOL_SIZE, "the pool is warm")
    client = connect(tunnel)
    for number in range(10):
        assert client.set(b"k%d" % number, b"v" * 100).status == Status.OK
    loads = [Load(connect(tunnel), 40) for _ in range(50)]
    for load in loads:
        load.start()
    seen = set()
    while any(load.is_alive() for load in loads):
        seen.add(memcached.established())
    for load in loads:
        load.join()
    assert seen == {POOL_SIZE}
    assert [load.hits for load in loads] == [400] * len(loads)
    assert tunnel.metric("memtunnel_upstream_connections", state="warm") == POOL_SIZE
    assert tunnel.metric("memtunnel_upstream_connects_total") == POOL_SIZE
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0
