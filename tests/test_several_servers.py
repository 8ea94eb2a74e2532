"""Three servers: where keys are, what goes to all, and one that is down."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import servers

from memtunnel.core.routing import router
from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode, Status

NAMES = ["server0", "server1", "server2"]
KEYS = [b"key-%d" % number for number in range(300)]
DOWN = 1


@pytest.fixture
def memcacheds(make_memcached: Callable[..., servers.Memcached]) -> list[servers.Memcached]:
    return [make_memcached() for _ in NAMES]


@pytest.fixture
def directly(started: list[Any], ca_file: Path) -> Callable[..., list[servers.Direct]]:
    """Connects to each memcached itself."""

    def make(memcacheds: list[servers.Memcached]) -> list[servers.Direct]:
        clients = [servers.Direct(memcached, ca_file) for memcached in memcacheds]
        started.extend(clients)
        return clients

    return make


def set_all(client: servers.Wire, keys: list[bytes] = KEYS) -> list[int]:
    """Set each key to itself; returns the statuses."""
    sets = [
        binary.request(Opcode.SET, key, extras=bytes(8), value=key, opaque=number.to_bytes(4))
        for number, key in enumerate(keys)
    ]
    client.send(*sets)
    answers = client.read(len(keys))
    assert [int.from_bytes(frame.opaque) for frame in answers] == list(range(len(keys)))
    return [frame.status for frame in answers]


def found(client: servers.Wire) -> list[bytes]:
    """Those of the keys that are there, with the right value."""
    client.send(*(binary.request(Opcode.GETK, key) for key in KEYS))
    answers = client.read(len(KEYS))
    assert [frame.key for frame in answers] == KEYS
    hits = [frame for frame in answers if frame.status == Status.OK]
    assert all(frame.value == frame.key for frame in hits)
    return [frame.key for frame in hits]


def statistics(client: servers.Wire, key: bytes = b"") -> list[tuple[str, str]]:
    """The names and values of a STAT, which ends in exactly one terminator."""
    client.send(binary.request(Opcode.STAT, key), binary.request(Opcode.NOOP))
    said = []
    while True:
        (frame,) = client.read()
        assert (frame.opcode, frame.status) == (Opcode.STAT, Status.OK)
        if not frame.key:
            break
        said.append((frame.key.decode(), frame.value.decode()))
    (frame,) = client.read()
    assert frame.opcode == Opcode.NOOP
    return said


@pytest.mark.parametrize("hashing", ["ketama", "ketama-weighted", "modula"])
def test_keys_are_where_the_router_says(
    hashing: str,
    memcacheds: list[servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
    directly: Callable[..., list[servers.Direct]],
) -> None:
    client = connect(make_tunnel(*memcacheds, flags=(f"--hashing={hashing}", servers.PATIENT)))
    assert set(set_all(client)) == {Status.OK}
    server_of = router(hashing, NAMES).server_of
    for index, direct in enumerate(directly(memcacheds)):
        assert found(direct) == [key for key in KEYS if server_of(key) == index]
    assert found(client) == KEYS


def test_flush_and_stat_go_to_all(
    memcacheds: list[servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
    directly: Callable[..., list[servers.Direct]],
) -> None:
    client = connect(make_tunnel(*memcacheds, flags=(servers.PATIENT,)))
    set_all(client)
    said = statistics(client)
    names = [name for name, _ in said]
    assert len(names) == len(set(names))
    values = dict(said)
    own = [dict(statistics(direct)) for direct in directly(memcacheds)]
    assert int(values["curr_items"]) == len(KEYS)
    addresses = [f"127.0.0.1:{memcached.port}" for memcached in memcacheds]
    for name, statistic in zip(addresses, own, strict=True):
        for each in ("pid", "curr_items", "version", "limit_maxbytes"):
            assert values[f"{name}:{each}"] == statistic[each]
    assert values["version"] == own[0]["version"]
    assert values["pid"] == own[0]["pid"]
    assert int(values["limit_maxbytes"]) == sum(int(each["limit_maxbytes"]) for each in own)
    assert client.ask(Opcode.STAT, b"bogus").status == Status.NOT_FOUND
    assert client.ask(Opcode.FLUSH).status == Status.OK
    assert [found(direct) for direct in directly(memcacheds)] == [[], [], []]


def test_stat_memtunnel_says_how_each_server_is(
    memcacheds: list[servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
) -> None:
    values = dict(
        statistics(connect(make_tunnel(*memcacheds, flags=(servers.PATIENT,))), b"memtunnel")
    )
    assert values["ready"] == "1"
    assert values["clients"] == "1"
    assert [values[f"{name}:up"] for name in NAMES] == ["1", "1", "1"]


def stop_one(memcacheds: list[servers.Memcached], tunnel: servers.Tunnel) -> None:
    """Stop one memcached, and wait until the tunnel has given it up."""
    memcacheds[DOWN].stop()
    servers.wait_until(
        lambda: tunnel.metric("memtunnel_upstream_breaker_open", server=NAMES[DOWN]) == 1,
        "the server is given up",
    )


def test_with_failover_the_next_server_has_the_keys(
    memcacheds: list[servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
    directly: Callable[..., list[servers.Direct]],
) -> None:
    tunnel = make_tunnel(*memcacheds, flags=(servers.PATIENT,))
    client = connect(tunnel)
    stop_one(memcacheds, tunnel)
    assert tunnel.get("/readyz")[0] == 200
    assert set(set_all(client)) == {Status.OK}
    assert found(client) == KEYS
    order_of = router("ketama", NAMES).order_of
    up = [index for index in range(len(NAMES)) if index != DOWN]
    serves = {key: next(index for index in order_of(key) if index in up) for key in KEYS}
    for index, direct in zip(up, directly([memcacheds[index] for index in up]), strict=True):
        assert found(direct) == [key for key in KEYS if serves[key] == index]
    assert tunnel.metric("memtunnel_failovers_total", server=NAMES[DOWN]) > 0
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0


def test_without_failover_only_its_keys_are_missed(
    memcacheds: list[servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
) -> None:
    tunnel = make_tunnel(*memcacheds, flags=("--failover=off", servers.PATIENT))
    client = connect(tunnel)
    set_all(client)
    stop_one(memcacheds, tunnel)
    assert tunnel.get("/readyz")[0] == 503
    server_of = router("ketama", NAMES).server_of
    theirs = [key for key in KEYS if server_of(key) != DOWN]
    assert found(client) == theirs
    statuses = dict(zip(KEYS, set_all(client), strict=True))
    assert {statuses[key] for key in theirs} == {Status.OK}
    assert {statuses[key] for key in KEYS if key not in theirs} == {Status.NOT_STORED}
    memcacheds[DOWN].start()
    tunnel.wait_ready()
    assert found(client) == theirs
    assert set(set_all(client)) == {Status.OK}
    assert found(client) == KEYS


def test_stat_leaves_out_who_is_down_and_flush_says_that_it_failed(
    memcacheds: list[servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
    directly: Callable[..., list[servers.Direct]],
) -> None:
    tunnel = make_tunnel(*memcacheds, flags=(servers.PATIENT,))
    client = connect(tunnel)
    set_all(client)
    stop_one(memcacheds, tunnel)
    said = dict(statistics(client))
    mentioned = {name.rpartition(":")[0] for name in said if name.startswith("127.0.0.1:")}
    up = [memcached for index, memcached in enumerate(memcacheds) if index != DOWN]
    assert mentioned == {f"127.0.0.1:{memcached.port}" for memcached in up}
    assert client.ask(Opcode.FLUSH).status == Status.NOT_STORED
    left = [memcached for index, memcached in enumerate(memcacheds) if index != DOWN]
    assert [found(direct) for direct in directly(left)] == [[], []]
    for index, memcached in enumerate(memcacheds):
        if index != DOWN:
            memcached.stop()
    tunnel.wait_ready(ready=False)
    assert statistics(client) == []
