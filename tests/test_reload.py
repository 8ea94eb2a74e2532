"""Clients while the servers change: what is on its way, what waits, and what comes after."""

from collections.abc import Sequence

import pytest
from core_harness import Counts, House, Link, O, Store, bare, get, store

from memtunnel.core.breaker import FAILED_DIALS, PROBE_INTERVAL, TIMEOUTS_IN_A_ROW
from memtunnel.core.routing import router
from memtunnel.core.server import Server
from memtunnel.core.session import Session
from memtunnel.core.text_session import TextSession
from memtunnel.core.tunnel import Policy
from memtunnel.wire.binary import Status


def change(house: House, servers: Sequence[Server]) -> None:
    """Let the house have these servers from now on."""
    house.router = router("modula", [server.name for server in servers])
    sessions = [client.session for client in house.clients]
    house.tunnel.cluster.reshape(servers, house.router, sessions, house.now)
    house.servers = list(servers)
    house.tunnel.flush()


def newcomer(house: House, name: str, *, connected: bool = True) -> Server:
    server = Server(name, Counts(), house.budget)
    house.stores.append(Store(name))
    if connected:
        house.links.append(Link(house, server, house.stores[-1], 0x7F000000))
    return server


def settled(house: House) -> None:
    assert house.budget.used == 0
    assert not any(link.mux.load for link in house.links)
    assert not any(client.session._owed for client in house.clients)


def test_what_is_on_its_way_is_answered_by_the_server_that_has_it() -> None:
    house = House(2)
    client = house.client()
    keys = [house.key_on(0), house.key_on(1)]
    client.send(*(store(key, b"v", number) for number, key in enumerate(keys)))
    change(house, house.servers[:1])
    house.serve()
    assert client.told == [(O.SET, 0, 0), (O.SET, 1, 0)]
    assert list(house.stores[1].items) == keys[1:]
    settled(house)


def test_what_comes_after_goes_where_the_key_is_now() -> None:
    house = House(2)
    client = house.client()
    key = house.key_on(1)
    client.send(get(key, 1))
    house.serve()
    change(house, house.servers[:1])
    client.send(store(key, b"v", 2), get(key, 3))
    house.serve()
    assert client.told == [(O.GET, 1, 1), (O.SET, 2, 0), (O.GET, 3, 0)]
    assert list(house.stores[0].items) == [key]


@pytest.mark.parametrize("failover", [True, False])
def test_P2_what_waits_for_a_server_that_goes_is_sent_to_the_keys_new_one_in_order(
    failover: bool,
) -> None:
    house = House(2, connections=0, failover=failover)
    house.connect(0)
    client = house.client()
    key = house.key_on(1)
    client.send(store(key, b"first", 1) + get(key, 2))
    change(house, house.servers[:1])
    client.send(store(key, b"second", 3) + get(key, 4))
    house.serve()
    assert client.told == [(O.SET, 1, 0), (O.GET, 2, 0), (O.SET, 3, 0), (O.GET, 4, 0)]
    assert [frame.value for frame in client.frames] == [b"", b"first", b"", b"second"]
    settled(house)


def test_where_no_server_is_up_what_waited_gets_its_degraded_reply() -> None:
    house = House(2, connections=0)
    client = house.client()
    client.send(store(house.key_on(1), b"v", 1))
    for _ in range(FAILED_DIALS):
        house.servers[0].dial_failed(house.now)
    change(house, house.servers[:1])
    assert client.told == [(O.SET, 1, Status.NOT_STORED)]
    settled(house)


@pytest.mark.parametrize("protocol", ["binary", "text"])
def test_from_one_server_to_several_and_back(protocol: str) -> None:
    kind: type[Session] | None = TextSession if protocol == "text" else None
    house = House(1)
    client = house.client(kind) if kind is not None else house.client()
    keys = [b"key%d" % number for number in range(20)]

    def store_all(value: bytes) -> None:
        for key in keys:
            text = b"set %b 0 0 1\r\n%b\r\n" % (key, value)
            client.send(text if kind is not None else store(key, value))
        house.serve()

    store_all(b"1")
    change(house, [*house.servers, newcomer(house, "server1")])
    store_all(b"2")
    change(house, house.servers[:1])
    store_all(b"3")
    moved = [key for key, item in house.stores[1].items.items() if item[1] == b"2"]
    assert 0 < len(moved) < len(keys)
    assert [item[1] for item in house.stores[0].items.values()] == [b"3"] * len(keys)
    assert len(client.received) > 0
    stored = client.received.count(b"STORED") if kind else len(client.frames)
    assert stored == 3 * len(keys)
    settled(house)


def test_a_server_that_stays_keeps_its_lane_whatever_its_place() -> None:
    house = House(2)
    client = house.client()
    key = house.key_on(0)
    client.send(store(key, b"v", 1))
    stays = house.servers[0]
    lane = client.session._lanes[0]
    assert lane is not None
    change(house, [newcomer(house, "server9"), stays])
    assert client.session._lanes == [None, lane]
    assert (lane.server, lane.in_flight, stays.index) == (stays, 1, 1)
    house.serve()
    assert client.told == [(O.SET, 1, 0)]
    settled(house)


def test_statistics_and_flushes_go_to_the_servers_that_are_now() -> None:
    house = House(2)
    client = house.client()
    client.send(bare(O.FLUSH, 1))
    change(house, [house.servers[1], newcomer(house, "server9")])
    client.send(bare(O.FLUSH, 2) + bare(O.NOOP, 3))
    house.serve()
    assert client.told == [(O.FLUSH, 1, 0), (O.FLUSH, 2, 0), (O.NOOP, 3, 0)]
    flushes = [item.executed[O.FLUSH, b"", b""] for item in house.stores]
    assert flushes == [1, 2, 1]


def test_a_write_in_flight_on_a_server_that_goes_is_told_once_when_that_is_lost() -> None:
    house = House(2)
    client = house.client()
    key = house.key_on(1)
    client.send(store(key, b"v", 1) + get(key, 2))
    link = next(link for link in house.links if link.server.index == 1)
    link.pull()
    change(house, house.servers[:1])
    link.lose()
    house.serve()
    assert client.told == [(O.SET, 1, Status.NOT_STORED), (O.GET, 2, Status.NOT_FOUND)]
    settled(house)


@pytest.mark.parametrize("written", [False, True])
def test_P2_what_a_server_that_goes_hands_back_comes_not_behind_what_was_asked_later(
    written: bool,
) -> None:
    house = House(2)
    client = house.client()
    key = house.key_on(1)
    client.send(get(key, 1) if written else store(key, b"first", 1))
    link = next(link for link in house.links if link.server.index == 1)
    if written:
        link.pull()
    change(house, house.servers[:1])
    client.send(store(key, b"second", 2))
    link.lose()
    house.serve()
    status = Status.NOT_FOUND if written else Status.NOT_STORED
    assert client.told == [(O.GET if written else O.SET, 1, status), (O.SET, 2, 0)]
    assert house.stores[0].items[key][1] == b"second"
    settled(house)


def test_P2_what_had_failed_over_does_not_move_behind_what_was_asked_later() -> None:
    house = House(3, connections=0)
    own, other, third = house.servers
    client = house.client()
    key = house.key_on(0)
    for _ in range(FAILED_DIALS):
        own.dial_failed(house.now)
    client.send(store(key, b"first", 1))  # waits at the second
    house.connect(0)
    client.send(store(key, b"second", 2))
    house.serve()
    change(house, [own, third])
    house.serve()
    assert client.told == [(O.SET, 1, Status.NOT_STORED), (O.SET, 2, 0)]
    assert house.stores[0].items[key][1] == b"second"
    assert other.refusing
    settled(house)


def test_P2_a_read_that_was_to_find_out_about_a_stalled_server_moves_to_no_other() -> None:
    house = House(2)
    client = house.client()
    gone = house.servers[1]
    key = house.key_on(1)
    client.send(*(get(house.key_on(1, number)) for number in range(TIMEOUTS_IN_A_ROW)))
    link = next(link for link in house.links if link.server is gone)
    link.pull()
    house.pass_time(0.41)
    link.lose()
    house.now += PROBE_INTERVAL
    client.send(get(key, 1))  # waits for a connection
    client.send(store(key, b"later", 2))
    house.serve()
    change(house, house.servers[:1])
    house.serve()
    assert client.told[-2:] == [(O.GET, 1, Status.NOT_FOUND), (O.SET, 2, 0)]
    settled(house)


def test_P2_what_was_asked_before_a_change_of_servers_fails_over_no_more() -> None:
    house = House(2, connections=0)
    own, other = house.servers
    client = house.client()
    key = house.key_on(0)
    for _ in range(FAILED_DIALS):
        own.dial_failed(house.now)
    house.connect(1)
    client.send(get(key, 1))
    house.links[0].pull()
    house.connect(0)
    client.send(store(key, b"later", 2))
    house.links[1].deliver(house.links[1].execute())
    change(house, [other, own])
    house.links[0].lose()  # the read waits for a connection, at what is its key's own server now
    for _ in range(FAILED_DIALS):
        other.dial_failed(house.now)
    house.tunnel.flush()
    assert house.router.server_of(key) == other.index
    assert client.told == [(O.GET, 1, Status.NOT_FOUND), (O.SET, 2, 0)]
    settled(house)


def test_where_no_server_changes_what_was_asked_before_fails_over_as_ever() -> None:
    house = House(2, connections=0)
    house.connect(0)
    client = house.client()
    key = house.key_on(1)
    client.send(store(key, b"v", 1))
    sessions = [client.session]
    house.tunnel.cluster.reshape(house.servers, house.router, sessions, house.now)
    for _ in range(FAILED_DIALS):
        house.servers[1].dial_failed(house.now)
    house.serve()
    assert client.told == [(O.SET, 1, 0)]
    settled(house)


@pytest.mark.parametrize("reload", [True, False])
def test_P2_nor_does_one_that_waits_behind_a_write_whatever_becomes_of_the_server(
    reload: bool,
) -> None:
    house = House(2, connections=2)
    client = house.client()
    stalled = house.servers[1]
    key = house.key_on(1)
    others = (get(house.key_on(1, number)) for number in range(TIMEOUTS_IN_A_ROW))
    client.send(store(key, b"old", 0), *others)
    for link in house.links:
        link.pull()
    house.pass_time(0.41)
    assert stalled.refusing
    lane = client.session._lanes[1]
    assert lane is not None
    assert lane.mux is not None
    assert lane.in_flight == 1  # the write, whose answer is still to come
    stalled.drain(lane.mux)
    house.now += PROBE_INTERVAL
    client.send(get(key, 1), store(key, b"later", 2))
    for link in house.links:
        if link.server is not stalled:
            link.deliver(link.execute())
    stalled.answered()
    if reload:
        change(house, house.servers[:1])
    else:
        for mux in list(stalled.connections):
            stalled.drain(mux)
        for _ in range(FAILED_DIALS):
            stalled.dial_failed(house.now)
    house.tunnel.flush()
    for link in house.links:
        if link.server is not stalled:
            link.deliver(link.execute())
    assert client.told[-2:] == [(O.GET, 1, Status.NOT_FOUND), (O.SET, 2, 0)]


def test_without_failover_what_waited_goes_to_its_keys_server_or_to_none() -> None:
    house = House(3, connections=0, failover=False)
    house.connect(2)
    client = house.client()
    client.send(*(store(house.key_on(0, number), b"v", number) for number in range(9)))
    for _ in range(FAILED_DIALS):
        house.servers[1].dial_failed(house.now)
    servers = house.servers[1:]
    owner = router("modula", [server.name for server in servers]).server_of
    expected = [
        (O.SET, number, 0 if owner(house.key_on(0, number)) == 1 else Status.NOT_STORED)
        for number in range(9)
    ]
    assert len({status for *_, status in expected}) == 2
    change(house, servers)
    house.serve()
    assert client.told == expected
    settled(house)


def test_a_stalled_server_that_goes_stays_closed_whatever_it_says_later() -> None:
    house = House(2)
    client = house.client()
    gone = house.servers[1]
    keys = [house.key_on(1, number) for number in range(TIMEOUTS_IN_A_ROW)]
    client.send(*(get(key) for key in keys))
    link = next(link for link in house.links if link.server is gone)
    late = link.execute()
    house.pass_time(0.41)
    assert gone.refusing
    change(house, house.servers[:1])
    link.deliver(late)
    gone.answered()
    assert gone.refusing


def test_who_has_left_is_owed_nothing_by_a_server_that_goes() -> None:
    house = House(2, connections=0)
    client = house.client()
    client.send(store(house.key_on(1), b"v", 1))
    client.leave()
    change(house, house.servers[:1])
    house.connect(0)
    house.serve()
    assert not house.pass_time(10)
    settled(house)


def test_other_deadlines_hold_for_what_is_on_its_way_too() -> None:
    house = House(1)
    client = house.client()
    client.send(get(b"k", 1))
    house.links[0].pull()
    house.tunnel.set_policy(Policy(request_timeout=1.0))
    house.pass_time(0.9)
    assert client.received == b""
    house.pass_time(0.11)
    assert client.told == [(O.GET, 1, 1)]
    house.tunnel.set_policy(Policy(request_timeout=0.1))
    client.send(get(b"k", 2))
    house.pass_time(0.11)
    assert client.told == [(O.GET, 1, 1), (O.GET, 2, 1)]


def test_other_bounds_hold_for_what_comes_from_now_on() -> None:
    house = House(1)
    client = house.client()
    house.tunnel.set_policy(Policy(max_value_size=3))
    client.send(store(b"k", b"1234", 1), store(b"k", b"123", 2))
    house.serve()
    assert client.told == [(O.SET, 1, Status.TOO_LARGE), (O.SET, 2, 0)]
