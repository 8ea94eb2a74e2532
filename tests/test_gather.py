"""Requests that take others to servers: STAT, FLUSH, and a SET too large."""

import pytest
from core_harness import Client, House, O, bare, get, opaque_of, store

from memtunnel.core.breaker import FAILED_DIALS
from memtunnel.core.gather import merge
from memtunnel.wire.binary import Status, answer, refusal


def opened(servers: int = 2, **options: object) -> tuple[House, Client]:
    house = House(servers, **options)  # type: ignore[arg-type]
    return house, house.client()


def statistics(client: Client, number: int = 0) -> dict[str, str]:
    """What one STAT was told; its terminator has come, and nothing else."""
    *told, last = client.frames
    assert (last.status, last.key, last.value) == (0, b"", b"")
    for frame in client.frames:
        assert (frame.opcode, frame.opaque, frame.status) == (O.STAT, opaque_of(number), 0)
    assert len({frame.key for frame in told}) == len(told)
    assert all(frame.key for frame in told)
    return {frame.key.decode(): frame.value.decode() for frame in told}


def down(house: House, index: int) -> None:
    """A server cannot be reached."""
    for link in [link for link in house.links if link.server.index == index]:
        link.lose()
    for _ in range(FAILED_DIALS):
        house.servers[index].dial_failed(house.now)


# STAT


def test_stat_of_one_server_is_what_it_says() -> None:
    house, client = opened(1)
    client.send(bare(O.STAT, 3))
    house.serve()
    assert statistics(client, 3) == {"pid": "7", "curr_items": "5", "version": "1"}


def test_stat_of_several_servers_sums_what_is_a_sum() -> None:
    house, client = opened(2)
    house.stores[0].statistics = {b"pid": b"7", b"curr_items": b"5", b"version": b"1.6.18"}
    house.stores[1].statistics = {b"pid": b"8", b"curr_items": b"6", b"version": b"1.6.19"}
    client.send(bare(O.STAT, 3))
    for link in reversed(house.links):
        assert client.received == b""
        link.deliver(link.execute())
    assert statistics(client, 3) == {
        "pid": "7",
        "curr_items": "11",
        "version": "1.6.18",
        "server0:pid": "7",
        "server0:curr_items": "5",
        "server0:version": "1.6.18",
        "server1:pid": "8",
        "server1:curr_items": "6",
        "server1:version": "1.6.19",
    }


@pytest.mark.parametrize("size", [1, 24, 31, 10000])
def test_a_sequence_may_come_in_any_pieces(size: int) -> None:
    house, client = opened(2)
    client.send(bare(O.STAT) + bare(O.NOOP, 9))
    for link in list(house.links):
        data = link.execute()
        link.deliver(*(data[start : start + size] for start in range(0, len(data), size)))
    assert client.told[-2:] == [(O.STAT, 0, 0), (O.NOOP, 9, 0)]
    assert house.budget.used == 0
    assert not any(link.mux.load for link in house.links)


def test_a_server_that_is_down_is_left_out_of_stat() -> None:
    house, client = opened(2)
    down(house, 0)
    client.send(bare(O.STAT))
    house.serve()
    assert statistics(client) == {
        "pid": "7",
        "curr_items": "5",
        "version": "1",
        "server1:pid": "7",
        "server1:curr_items": "5",
        "server1:version": "1",
    }
    assert house.degraded == [(O.STAT, "no_upstream")]


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("errors", [False, True])
def test_stat_without_any_server_is_its_terminator(servers: int, errors: bool) -> None:
    house, client = opened(servers, errors_on_unavailable=errors)
    for index in range(servers):
        down(house, index)
    client.send(bare(O.STAT, 5))
    assert client.received == answer(O.STAT, opaque_of(5))
    assert house.degraded == [(O.STAT, "no_upstream")]


def test_P3_a_stat_that_stops_half_way_ends_at_its_deadline() -> None:
    house, client = opened(2)
    client.send(bare(O.STAT, 5), bare(O.NOOP, 6))
    halves = [link.execute() for link in house.links]
    house.links[0].deliver(halves[0])
    house.links[1].deliver(halves[1][:60])
    house.pass_time(0.42)
    assert client.told[-1] == (O.NOOP, 6, 0)
    assert {frame.key for frame in client.frames if frame.opcode == O.STAT} == {
        b"pid",
        b"curr_items",
        b"version",
        b"server0:pid",
        b"server0:curr_items",
        b"server0:version",
        b"",
    }
    written = client.writes
    house.links[1].deliver(halves[1][60:])
    assert client.writes == written
    assert house.links[1].mux.load == 0
    assert house.links[1].distrust is None


def test_P5_a_stat_that_was_cut_off_is_not_asked_again() -> None:
    house, client = opened(1)
    client.send(bare(O.STAT, 5))
    link = house.links[0]
    link.deliver(link.execute()[:60])
    link.lose()
    house.connect()
    house.serve()
    assert client.received == answer(O.STAT, opaque_of(5))
    assert house.stores[0].executed == {(O.STAT, b"", b""): 1}


@pytest.mark.parametrize("servers", [1, 2])
def test_an_unknown_statistic_is_one_miss_without_a_terminator(servers: int) -> None:
    house, client = opened(servers)
    client.send(bare(O.STAT, 5, b"bogus"), bare(O.NOOP, 6))
    house.serve()
    assert client.received == refusal(O.STAT, opaque_of(5), Status.NOT_FOUND) + answer(
        O.NOOP, opaque_of(6)
    )
    assert house.degraded == []


@pytest.mark.parametrize("key", [b"settings", b"reset"])
def test_the_key_of_a_stat_goes_to_every_server(key: bytes) -> None:
    house, client = opened(2)
    client.send(bare(O.STAT, 5, key))
    house.serve()
    assert bool(statistics(client, 5)) == (key == b"settings")
    assert [set(store.executed) for store in house.stores] == [{(O.STAT, key, b"")}] * 2


@pytest.mark.parametrize("status", [0x82, 0x85, 0x20])
def test_a_server_that_fails_is_left_out_of_stat(status: int) -> None:
    house, client = opened(2)
    client.send(bare(O.STAT))
    house.links[0].deliver(house.links[0].refuse(status))
    house.serve()
    assert "server1:pid" in statistics(client)
    assert "server0:pid" not in statistics(client)
    assert house.degraded == [(O.STAT, "refused" if status == 0x20 else "error")]


def test_stat_memtunnel_is_the_tunnels_own() -> None:
    house, client = opened(2, statistics=[("clients", "3"), ("version", "0.1")])
    client.send(get(house.key_on(0), 1) + bare(O.STAT, 5, b"memtunnel"))
    assert client.received == b""
    house.links[0].deliver(house.links[0].execute())
    assert client.received == (
        refusal(O.GET, opaque_of(1), Status.NOT_FOUND)
        + answer(O.STAT, opaque_of(5), key=b"clients", value=b"3")
        + answer(O.STAT, opaque_of(5), key=b"version", value=b"0.1")
        + answer(O.STAT, opaque_of(5))
    )
    assert house.links[1].opcodes == []


def test_P6_of_a_servers_statistics_only_so_much_is_kept() -> None:
    house, client = opened(1)
    house.stores[0].statistics = {b"key%d" % n: b"v" * 100_000 for n in range(50)}
    client.send(bare(O.STAT))
    house.serve()
    assert 10 <= len(statistics(client)) <= 12
    assert house.budget.used == 0


# FLUSH


@pytest.mark.parametrize("opcode", [O.FLUSH, O.FLUSHQ])
def test_flush_is_done_when_every_server_has_done_it(opcode: int) -> None:
    house, client = opened(3)
    client.send(bare(opcode, 5) + bare(O.NOOP, 6))
    for link in reversed(house.links):
        assert client.received == b""
        link.deliver(link.execute())
    flushed = answer(O.FLUSH, opaque_of(5)) if opcode == O.FLUSH else b""
    assert client.received == flushed + answer(O.NOOP, opaque_of(6))
    assert [store.executed[O.FLUSH, b"", b""] for store in house.stores] == [1, 1, 1]


@pytest.mark.parametrize(
    ("opcode", "errors", "status"),
    [
        (O.FLUSH, False, Status.NOT_STORED),
        (O.FLUSHQ, False, Status.NOT_FOUND),
        (O.FLUSH, True, Status.TEMPORARY_FAILURE),
        (O.FLUSHQ, True, Status.TEMPORARY_FAILURE),
    ],
)
def test_flush_with_a_server_down_is_not_done(opcode: int, errors: bool, status: int) -> None:
    house, client = opened(2, errors_on_unavailable=errors)
    down(house, 1)
    client.send(bare(opcode, 5))
    house.serve()
    assert client.received == refusal(opcode, opaque_of(5), status)
    assert house.stores[0].executed[O.FLUSH, b"", b""] == 1
    assert house.degraded == [(O.FLUSH, "no_upstream")]


def test_flush_that_a_login_may_not_do_is_not_done_and_the_connection_stays() -> None:
    house, client = opened(1)
    client.send(bare(O.FLUSH, 5))
    link = house.links[0]
    link.deliver(link.refuse(Status.AUTH_FAILED, b"Auth failure."))
    assert client.received == refusal(O.FLUSH, opaque_of(5), Status.NOT_STORED)
    assert link.distrust is None
    assert house.degraded == [(O.FLUSH, "refused")]


def test_what_is_too_long_for_a_number_is_no_number() -> None:
    long = b"9" * 5000
    pairs = dict(merge([("a", {b"x": long}), ("b", {b"x": long})]))
    assert pairs == {b"x": long, b"a:x": long, b"b:x": long}


def test_a_servers_verdict_on_flush_passes() -> None:
    house, client = opened(1)
    client.send(bare(O.FLUSHQ, 5))
    house.links[0].deliver(house.links[0].refuse(Status.INVALID))
    assert client.told == [(O.FLUSHQ, 5, Status.INVALID)]


def test_of_several_servers_one_verdict_is_a_failure() -> None:
    house, client = opened(2)
    client.send(bare(O.FLUSH, 5))
    house.links[0].deliver(house.links[0].refuse(Status.INVALID))
    house.serve()
    assert client.told == [(O.FLUSH, 5, Status.NOT_STORED)]


def test_P3_flush_is_answered_at_its_deadline_and_late_answers_are_dropped() -> None:
    house, client = opened(2)
    client.send(bare(O.FLUSH, 5))
    late = house.links[1].execute()
    house.links[0].deliver(house.links[0].execute())
    house.pass_time(0.41)
    assert client.told == [(O.FLUSH, 5, Status.NOT_STORED)]
    house.links[1].deliver(late)
    assert len(client.told) == 1
    assert not any(link.mux.load for link in house.links)


def test_P5_flush_is_never_sent_again() -> None:
    house, client = opened(2)
    client.send(bare(O.FLUSH, 5))
    link = house.links[1]
    link.execute()
    link.lose()
    house.connect(1)
    house.serve()
    assert client.told == [(O.FLUSH, 5, Status.NOT_STORED)]
    assert [store.executed[O.FLUSH, b"", b""] for store in house.stores] == [1, 1]


def test_P2_flush_keeps_its_place_at_each_server() -> None:
    house, client = opened(2)
    for index in (0, 1):
        client.send(store(house.key_on(index), b"v"))
    client.send(bare(O.FLUSH), *(get(house.key_on(index)) for index in (0, 1)))
    house.serve()
    assert [status for _, _, status in client.told] == [0, 0, 0, 1, 1]


# A SET too large


def test_the_old_value_is_deleted_where_the_key_is_served_now() -> None:
    house, client = opened(2, max_value_size=10)
    down(house, 0)
    key = house.key_on(0)
    client.send(store(key, b"old", 1), store(key, b"too large a value", 2), get(key, 3))
    house.serve()
    assert client.told == [(O.SET, 1, 0), (O.SET, 2, Status.TOO_LARGE), (O.GET, 3, 1)]


def test_a_client_that_leaves_does_not_stop_what_it_began() -> None:
    house, client = opened(2, max_value_size=10)
    key = house.key_on(1)
    house.stores[1].items[key] = (bytes(4), b"old", 1)
    client.send(store(key, b"too large a value"), bare(O.FLUSHQ), bare(O.STAT))
    client.leave()
    house.serve()
    assert house.stores[1].executed[O.DELETE, key, b""] == 1
    assert [store.executed[O.FLUSH, b"", b""] for store in house.stores] == [1, 1]
    assert client.received == b""
    assert house.budget.used == 0
