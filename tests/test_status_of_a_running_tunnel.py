"""``/status`` and ``STAT memtunnel slow`` of a tunnel that works, with one process and with two."""

import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import servers

from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode, Status

WORKERS = pytest.mark.parametrize("workers", ["1", "2"])
POOL = 2
#: Of four clients no worker has all; no request misses its deadline on a machine that is full.
SHARED = ("--max-clients=6", servers.PATIENT)


def status(tunnel: servers.Tunnel) -> Any:
    code, text = tunnel.get("/status")
    assert code == 200
    return json.loads(text)


def slow_by_binary(client: servers.Wire) -> list[str]:
    """The values of ``STAT memtunnel slow``, the newest first."""
    client.send(binary.request(Opcode.STAT, b"memtunnel slow"))
    values = []
    while (frame := client.read()[0]).key:
        values.append(frame.value.decode())
        assert frame.key == b"%d" % len(values)
    return values


def slow_by_text(tunnel: servers.Tunnel) -> list[str]:
    """The same, by the other protocol."""
    with socket.create_connection(("127.0.0.1", tunnel.port), servers.PATIENCE) as client:
        client.sendall(b"stats memtunnel slow\r\nquit\r\n")
        with client.makefile("rb") as stream:
            lines = stream.read().decode().splitlines()
    assert lines[-1] == "END"
    return [re.sub(r"^STAT \d+ ", "", line) for line in lines[:-1]]


@WORKERS
def test_it_tells_of_servers_connections_clients_and_times(
    make_memcached: Callable[..., servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
    workers: str,
) -> None:
    memcached = make_memcached()
    tunnel = make_tunnel(memcached, flags=(*SHARED, f"--workers={workers}"))
    clients = [connect(tunnel) for _ in range(4)]
    began = time.time()
    servers.wait_until(lambda: status(tunnel)["history"]["time"], "it has looked twice")
    for client in clients:
        assert client.set(b"k", b"v").status == Status.OK
        assert client.get(b"k").status == Status.OK
        assert client.get(b"absent").status == Status.NOT_FOUND

    def seen() -> Any:
        told = status(tunnel)
        rows = told["history"]
        # An interval is a little longer than it should be on a machine that is full.
        asked = sum(rate * rows["interval"] for rate in rows["requests"])
        return told if asked > 9 and told["servers"][0]["requests"] == 12 else None

    told = servers.wait_until(seen, "its history has all requests")
    assert (told["ready"], told["workers"]) == (True, int(workers))
    assert told["pid"] == (tunnel.process.pid if tunnel.process else None)
    assert told["clients"]["connected"] == 4
    (listener,) = told["clients"]["listeners"]
    assert (listener["address"], listener["connected"]) == (f"127.0.0.1:{tunnel.port}", 4)
    (server,) = told["servers"]
    assert (server["name"], server["address"]) == ("server0", f"127.0.0.1:{memcached.port}")
    assert (server["up"], server["requests"], server["in_flight"]) == (True, 12, 0)
    assert server["tls"].startswith("TLSv1.3 ")
    assert server["certificate_not_after"] > began
    connections = server["connections"]
    assert len(connections) == POOL * int(workers)
    worker_names = {"1", "2"} if workers == "2" else {""}
    assert {one["worker"] for one in connections} == worker_names
    assert {one["number"] for one in connections} == {1, 2}
    for one in connections:
        assert one["state"] == "warm"
        assert 0 < one["age"] < told["uptime"] + 1
        assert 0 < one["round_trip"] < 10
    history = told["history"]
    assert history["time"] == sorted(history["time"])
    assert began - 60 < history["time"][-1] <= told["now"]
    busy = [n for n, rate in enumerate(history["requests"]) if rate]
    assert all(0 < history["p50"][n] <= history["p99"][n] <= 2.5 for n in busy)
    assert all(0 <= history["hit_rate"][n] <= 1 for n in busy if history["hit_rate"][n] is not None)
    assert history["clients"][-1] == 4


@WORKERS
def test_what_failed_is_told_whoever_is_asked(
    make_memcached: Callable[..., servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
    workers: str,
) -> None:
    memcached = make_memcached()
    flags = (f"--workers={workers}", "--slow-sample=1", "--log-format=json")
    tunnel = make_tunnel(memcached, flags=(*SHARED, *flags))
    clients = [connect(tunnel) for _ in range(4)]
    for client in clients:
        assert client.get(b"canary").status == Status.NOT_FOUND
    memcached.stop()
    servers.wait_until(
        lambda: (
            status(tunnel)["servers"][0]["refusing"]
            and tunnel.metric("memtunnel_upstream_breaker_open") == int(workers)
        ),
        "the server is given up",
    )
    for client in clients:
        assert client.set(b"canary", b"canary-value").status == Status.NOT_STORED

    def all_told() -> Any:
        told = status(tunnel)["slow"]
        return told if len(told) == 8 else None

    told = servers.wait_until(all_told, "all are told of")
    assert [(one["why"], one["command"]) for one in told] == [("failed", "set")] * 4 + [
        ("sample", "get")
    ] * 4
    assert [one["status"] for one in told] == ["no_upstream"] * 4 + ["miss"] * 4
    assert {one["worker"] for one in told} == ({"1", "2"} if workers == "2" else {""})
    assert len({one["key"] for one in told}) == 1, "the same key has the same hash everywhere"
    for one in told[4:]:
        assert one["connection"] in (1, 2)
        assert one["total"] == pytest.approx(one["queue"] + one["wire"], abs=0.1)
        assert one["bytes"] == 24 + 6 + 24 + len(b"Not found")
    expected = [f"key={one['key']}" for one in told]
    for client in clients:
        servers.wait_until(lambda client=client: len(slow_by_binary(client)) == 8, "it knows all")
        values = slow_by_binary(client)
        assert [value.split()[-1] for value in values] == expected
        assert all(re.match(r"time=\d{4}-\d\d-\d\dT[0-9:.]+Z command=[sg]et ", v) for v in values)
        assert values == slow_by_text(tunnel)
    tunnel.stop()
    everything = tunnel.log()
    logged = [json.loads(line) for line in everything.splitlines()]
    requests = [line for line in logged if line.get("event") == "request"]
    assert {line["why"] for line in requests} == {"failed"}, "samples are not logged"
    assert {line["key"] for line in requests} == {told[0]["key"]}
    lost = [line for line in logged if line.get("event") in ("lost", "not_made")]
    assert {line["server"] for line in lost} == {"server0"}
    assert all(line["reason"] and line["connection"] for line in lost)
    assert "canary" not in everything + json.dumps(told)


def test_a_threshold_can_be_set_while_it_runs(
    make_memcached: Callable[..., servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
    tmp_path: Any,
) -> None:
    settings = tmp_path / "memtunnel.toml"
    settings.write_text("")
    tunnel = make_tunnel(make_memcached(), flags=(f"--config={settings}", servers.PATIENT))
    client = connect(tunnel)
    assert client.get(b"k").status == Status.NOT_FOUND
    told = status(tunnel)
    assert (told["slow_ms"], told["slow"]) == (None, [])
    settings.write_text("slow-ms = 0.001\n")
    tunnel.signal(servers.signal.SIGHUP)
    servers.wait_until(lambda: status(tunnel)["slow_ms"] == 0.001, "it has read them again")
    assert client.get(b"k").status == Status.NOT_FOUND
    (one,) = status(tunnel)["slow"]
    assert (one["why"], one["status"]) == ("slow", "miss")
