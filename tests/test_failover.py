"""What clients get when servers are late, lost, stalled, or down."""

import pytest
from core_harness import (
    Client,
    House,
    Link,
    O,
    bare,
    concat,
    count,
    get,
    opaque_of,
    store,
    touch,
)

from memtunnel.core.breaker import FAILED_DIALS, PROBE_INTERVAL, TIMEOUTS_IN_A_ROW, State
from memtunnel.wire.binary import GETS, LOUD, Status, answer, refusal

MIB = 1024 * 1024
#: Just past the deadline of a small request.
LATE = 0.401


def opened(servers: int = 1, connections: int = 1, **options: object) -> tuple[House, Client]:
    house = House(servers, connections, **options)  # type: ignore[arg-type]
    return house, house.client()


def down(house: House, index: int = 0) -> None:
    """A server cannot be reached."""
    for link in [link for link in house.links if link.server.index == index]:
        link.lose()
    for _ in range(FAILED_DIALS):
        house.servers[index].dial_failed(house.now)


def stall(house: House, index: int = 0) -> Link:
    """A server answers nothing any more, though its connections live."""
    client = house.client()
    keys = (house.key_on(index, number) for number in range(TIMEOUTS_IN_A_ROW))
    client.send(*(get(key) for key in keys))
    (link,) = (link for link in house.links if link.server.index == index)
    link.pull()
    house.pass_time(LATE)
    assert house.servers[index].breaker.state is State.STALLED
    return link


def settled(house: House) -> None:
    assert house.budget.used == 0
    assert not any(server.queued for server in house.servers)


MISS = Status.NOT_FOUND
NOT_STORED = Status.NOT_STORED
#: Every command that goes to the server of its key, and its degraded reply (RELIABILITY.md, 2).
DEGRADED = [
    (get(b"k", 7), refusal(O.GET, opaque_of(7), MISS)),
    (get(b"k", 7, O.GETK), answer(O.GETK, opaque_of(7), MISS, key=b"k")),
    (touch(b"k", 7, O.GAT), refusal(O.GAT, opaque_of(7), MISS)),
    (touch(b"k", 7, O.GATK), answer(O.GATK, opaque_of(7), MISS, key=b"k")),
    (get(b"k", 7, O.GETQ), b""),
    (get(b"k", 7, O.GETKQ), b""),
    (touch(b"k", 7, O.GATQ), b""),
    (touch(b"k", 7, O.GATKQ), b""),
    (touch(b"k", 7), refusal(O.TOUCH, opaque_of(7), MISS)),
    *(
        (store(b"k", b"v", 7, code), refusal(code, opaque_of(7), NOT_STORED))
        for code in (O.SET, O.ADD, O.REPLACE, O.SETQ, O.ADDQ, O.REPLACEQ)
    ),
    *(
        (concat(b"k", b"v", 7, code), refusal(code, opaque_of(7), NOT_STORED))
        for code in (O.APPEND, O.PREPEND, O.APPENDQ, O.PREPENDQ)
    ),
    (get(b"k", 7, O.DELETE), refusal(O.DELETE, opaque_of(7), NOT_STORED)),
    (count(b"k", 7, O.INCR), refusal(O.INCR, opaque_of(7), NOT_STORED)),
    (count(b"k", 7, O.DECR), refusal(O.DECR, opaque_of(7), NOT_STORED)),
    (get(b"k", 7, O.DELETEQ), refusal(O.DELETEQ, opaque_of(7), MISS)),
    (count(b"k", 7, O.INCRQ), refusal(O.INCRQ, opaque_of(7), MISS)),
    (count(b"k", 7, O.DECRQ), refusal(O.DECRQ, opaque_of(7), MISS)),
    (bare(O.FLUSH, 7), refusal(O.FLUSH, opaque_of(7), NOT_STORED)),
    (bare(O.FLUSHQ, 7), refusal(O.FLUSHQ, opaque_of(7), MISS)),
    (bare(O.STAT, 7), answer(O.STAT, opaque_of(7))),
]
each_command = pytest.mark.parametrize(
    ("asked", "reply"), DEGRADED, ids=[O(asked[1]).name for asked, _ in DEGRADED]
)


def in_error_mode(asked: bytes, reply: bytes) -> bytes:
    if LOUD[asked[1]] in GETS or asked[1] == O.STAT:
        return reply
    return refusal(asked[1], opaque_of(7), Status.TEMPORARY_FAILURE)


# Deadlines


@each_command
@pytest.mark.parametrize("connections", [0, 1], ids=["waiting", "in flight"])
@pytest.mark.parametrize("errors", [False, True], ids=["miss", "error"])
def test_P3_a_request_is_answered_once_at_its_deadline(
    asked: bytes, reply: bytes, connections: int, errors: bool
) -> None:
    house, client = opened(connections=connections, errors_on_unavailable=errors)
    client.send(asked + bare(O.NOOP, 8))
    for link in house.links:
        link.pull()
    house.pass_time(0.399)
    assert client.received == b""
    house.pass_time(0.002)
    expected = in_error_mode(asked, reply) if errors else reply
    assert client.received == expected + answer(O.NOOP, opaque_of(8))
    assert house.degraded == [(LOUD[asked[1]], "timeout")]
    assert not house.pass_time(10)
    house.serve()
    assert client.received == expected + answer(O.NOOP, opaque_of(8))
    settled(house)


@each_command
def test_a_late_answer_is_dropped_and_the_connection_lives(asked: bytes, reply: bytes) -> None:
    house, client = opened()
    house.stores[0].items[b"k"] = (bytes(4), b"5", 1)
    client.send(asked)
    link = house.links[0]
    late = link.execute()
    house.pass_time(LATE)
    link.deliver(late[:10], late[10:])
    assert link.distrust is None
    client.send(bare(O.NOOP, 8), store(b"l", b"v", 9))
    house.serve()
    assert client.received == reply + answer(O.NOOP, opaque_of(8)) + answer(
        O.SET, opaque_of(9), cas=house.stores[0].items[b"l"][2]
    )
    assert link.mux.load == 0


def test_P3_an_answer_in_the_last_moment_is_delivered_and_the_deadline_forgotten() -> None:
    house, client = opened()
    client.send(store(b"k", b"v", 1))
    said = house.links[0].execute()
    house.now += 0.4
    house.links[0].deliver(said)
    assert not house.pass_time(1)
    assert client.told == [(O.SET, 1, 0)]


def test_P3_a_deadline_grows_with_the_request() -> None:
    house, client = opened(max_value_size=8 * MIB)
    client.send(store(b"k", b"v" * MIB, 1), store(b"k", b"v" * 7 * MIB, 2), get(b"k", 3))
    house.links[0].pull()
    house.pass_time(0.45)
    assert client.told == []
    house.pass_time(1.0)
    assert client.told == [(O.SET, 1, NOT_STORED)]
    house.pass_time(3.9)
    assert len(client.told) == 1
    house.pass_time(0.1)  # 5 seconds are the most it grows by
    assert [opaque for _, opaque, _ in client.told] == [1, 2, 3]


def test_P3_a_deadline_grows_with_the_answer_that_is_coming() -> None:
    house, client = opened()
    house.stores[0].items[b"k"] = (bytes(4), b"v" * MIB, 1)
    client.send(get(b"k", 1))
    said = house.links[0].execute()
    house.now += 0.2
    house.links[0].deliver(said[:1000])
    house.pass_time(1.1)
    assert client.told == []
    house.links[0].deliver(said[1000:])
    assert client.told == [(O.GET, 1, 0)]
    settled(house)


def test_P3_an_answer_that_began_to_come_has_its_end() -> None:
    house, client = opened()
    house.stores[0].items[b"k"] = (bytes(4), b"v" * MIB, 1)
    client.send(get(b"k", 1))
    said = house.links[0].execute()
    house.links[0].deliver(said[:1000])
    house.pass_time(1.5)
    assert client.told == [(O.GET, 1, MISS)]
    house.links[0].deliver(said[1000:])
    assert len(client.told) == 1
    assert house.links[0].distrust is None


def test_P3_a_noop_is_answered_with_the_upstream_down() -> None:
    house, client = opened(connections=0)
    client.send(bare(O.NOOP, 1) + get(b"k", 2, O.GETKQ) + bare(O.NOOP, 3))
    assert client.told == [(O.NOOP, 1, 0)]
    house.pass_time(LATE)
    assert client.told == [(O.NOOP, 1, 0), (O.NOOP, 3, 0)]


def test_the_sweep_is_woken_when_there_is_something_to_watch() -> None:
    house, client = opened()
    assert house.wakes == 0
    client.send(get(b"k"), get(b"k"))
    assert house.wakes == 1
    house.serve()
    assert not house.pass_time(1)
    client.send(get(b"k"))
    assert house.wakes == 2
    assert house.pass_time(0.1)


def test_requests_wait_for_a_connection_within_their_deadline() -> None:
    house, client = opened(connections=0)
    client.send(store(b"k", b"v", 1) + get(b"k", 2))
    house.pass_time(0.3)
    house.connect()
    house.serve()
    assert client.told == [(O.SET, 1, 0), (O.GET, 2, 0)]
    assert not house.pass_time(1)
    settled(house)


# A connection lost


@each_command
def test_P5_what_was_written_is_read_once_more_or_given_up(asked: bytes, reply: bytes) -> None:
    house, client = opened()
    house.stores[0].items[b"k"] = (bytes(4), b"5", 1)
    client.send(asked + bare(O.NOOP, 8))
    house.links[0].execute()
    house.links[0].lose()
    house.connect()
    house.serve()
    assert client.told[-1] == (O.NOOP, 8, 0)
    executed = sum(house.stores[0].executed.values())
    if LOUD[asked[1]] in (O.GET, O.GETK):
        assert client.told[0] == (asked[1], 7, 0)
        assert executed == 2
        assert house.server_counts[0].retries == {"upstream_lost": 1}
    else:
        assert client.received == reply + answer(O.NOOP, opaque_of(8))
        assert executed == 1
        assert house.degraded == [(LOUD[asked[1]], "upstream_lost")]
    settled(house)


@each_command
def test_P5_what_was_never_written_is_moved(asked: bytes, reply: bytes) -> None:
    house, client = opened()
    house.stores[0].items[b"k"] = (bytes(4), b"5", 1)
    client.send(asked)
    house.links[0].lose()
    house.connect()
    house.serve()
    assert sum(house.stores[0].executed.values()) == 1
    assert house.server_counts[0].retries == {"never_sent": 1}
    assert house.degraded == []


def test_P5_a_read_is_read_once_more_and_no_more() -> None:
    house, client = opened()
    client.send(get(b"k", 1, O.GETK))
    for _ in range(2):
        house.links[0].pull()
        house.links[0].lose()
        house.connect()
    house.serve()
    assert client.received == answer(O.GETK, opaque_of(1), MISS, key=b"k")
    assert house.degraded == [(O.GETK, "upstream_lost")]


def test_P2_a_read_before_a_write_that_was_lost_is_not_read_again() -> None:
    house, client = opened()
    house.stores[0].items[b"k"] = (bytes(4), b"old", 1)
    client.send(get(b"k", 1) + store(b"k", b"new", 2) + get(b"k", 3))
    house.links[0].execute()
    house.links[0].lose()
    house.connect()
    house.serve()
    assert client.told == [(O.GET, 1, MISS), (O.SET, 2, NOT_STORED), (O.GET, 3, 0)]
    assert client.frames[2].value == b"new"


def test_P2_order_is_kept_when_a_connection_is_lost() -> None:
    house, client = opened()
    client.send(*(get(b"k", n) if n % 3 else store(b"k", b"v", n) for n in range(9)))
    house.links[0].pull()
    client.send(*(store(b"k", b"w%d" % n, n) + get(b"k", n) for n in range(10, 13)))
    house.links[0].lose()
    client.send(get(b"k", 20))
    house.connect()
    house.serve()
    assert [opaque for _, opaque, _ in client.told] == [*range(9), 10, 10, 11, 11, 12, 12, 20]
    assert [frame.value for frame in client.frames[-7:]] == [
        b"",
        b"w10",
        b"",
        b"w11",
        b"",
        b"w12",
        b"w12",
    ]


def test_P3_a_retried_read_keeps_its_deadline() -> None:
    house, client = opened(connections=2)
    client.send(get(b"k", 1))
    house.links[0].pull()
    house.pass_time(0.3)
    house.links[0].lose()
    house.links[0].pull()
    house.pass_time(0.101)
    assert client.told == [(O.GET, 1, MISS)]


def test_a_partial_answer_of_a_lost_connection_is_never_delivered() -> None:
    house, client = opened()
    house.stores[0].items[b"k"] = (bytes(4), b"v" * 1000, 1)
    client.send(get(b"k", 1) + store(b"l", b"v", 2))
    said = house.links[0].execute()
    house.links[0].deliver(said[:500])
    house.links[0].lose()
    assert client.received == refusal(O.GET, opaque_of(1), MISS) + refusal(
        O.SET, opaque_of(2), NOT_STORED
    )
    assert not house.pass_time(LATE)
    settled(house)


def test_what_a_client_that_left_had_in_flight_is_not_moved() -> None:
    house, client = opened()
    client.send(store(b"k", b"v", 1), get(b"k", 2))
    house.links[0].pull()
    client.leave()
    house.links[0].lose()
    assert house.connect().opcodes == []
    assert house.server_counts[0].retries == {}
    house.pass_time(LATE)
    settled(house)


# Draining


def test_P2_new_requests_wait_until_a_draining_connection_has_answered() -> None:
    house, client = opened(connections=2)
    client.send(store(b"k", b"v", 1))
    old, new = house.links
    old.pull()
    house.servers[0].drain(old.mux)
    client.send(get(b"k", 2), store(b"k", b"w", 3), get(b"k", 4))
    assert new.opcodes == []
    old.deliver(old.execute())
    assert old.opcodes == []
    assert new.opcodes == [O.GET, O.SET, O.GET]
    house.serve()
    assert [frame.value for frame in client.frames] == [b"", b"v", b"", b"w"]


# Failover


def test_another_server_serves_the_keys_of_one_that_is_down() -> None:
    house, client = opened(2)
    down(house, 0)
    key = house.key_on(0)
    client.send(store(key, b"v", 1), get(key, 2))
    house.serve()
    assert client.told == [(O.SET, 1, 0), (O.GET, 2, 0)]
    assert house.stores[1].items[key][1] == b"v"
    assert house.server_counts[0].failovers == 2
    assert house.degraded == []


def test_the_next_server_in_the_ring_is_the_one() -> None:
    house, client = opened(3)
    key = house.key_on(1)
    down(house, 1)
    client.send(store(key, b"v"))
    house.serve()
    assert key in house.stores[2].items
    down(house, 2)
    client.send(store(key, b"v"))
    house.serve()
    assert key in house.stores[0].items


@each_command
def test_without_failover_there_is_a_degraded_reply_at_once(asked: bytes, reply: bytes) -> None:
    house, client = opened(2, failover=False)
    down(house, 0)
    down(house, 1)
    client.send(asked)
    assert client.received == reply
    assert house.degraded == [(LOUD[asked[1]], "no_upstream")]
    assert not house.pass_time(1)
    settled(house)


@pytest.mark.parametrize("then_down", [(1,), (1, 2)], ids=["one", "all others"])
def test_P2_what_has_moved_does_not_come_back_behind_what_was_asked_later(
    then_down: tuple[int, ...],
) -> None:
    house, client = opened(3, connections=0)
    key = house.key_on(0)
    down(house, 0)
    client.send(store(key, b"first", 1))
    house.connect(0)
    client.send(store(key, b"second", 2))
    for index in reversed(then_down):
        down(house, index)
    house.connect(2)
    house.serve()
    stores = [store.items[key][1] if key in store.items else None for store in house.stores]
    assert stores == [b"second", None, b"first" if then_down == (1,) else None]
    status = 0 if then_down == (1,) else NOT_STORED
    assert client.told == [(O.SET, 1, status), (O.SET, 2, 0)]


def test_without_failover_other_servers_are_unaffected() -> None:
    house, client = opened(2, failover=False)
    down(house, 0)
    client.send(store(house.key_on(0), b"v", 1), store(house.key_on(1), b"v", 2))
    house.serve()
    assert client.told == [(O.SET, 1, NOT_STORED), (O.SET, 2, 0)]


@each_command
def test_with_all_servers_down_there_is_a_degraded_reply_at_once(
    asked: bytes, reply: bytes
) -> None:
    house, client = opened(2)
    down(house, 0)
    down(house, 1)
    client.send(asked)
    assert client.received == reply
    settled(house)


def test_requests_that_wait_move_when_their_server_is_given_up() -> None:
    house, client = opened(2)
    (link,) = (link for link in house.links if link.server.index == 0)
    link.lose()
    keys = [house.key_on(0, number) for number in range(3)]
    client.send(*(store(key, b"v", number) for number, key in enumerate(keys)))
    for _ in range(FAILED_DIALS):
        house.servers[0].dial_failed(house.now)
    house.tunnel.flush()
    house.serve()
    assert [status for _, _, status in client.told] == [0, 0, 0]
    assert set(house.stores[1].items) == set(keys)


def test_P5_reads_of_a_lost_server_are_read_from_the_next_and_writes_are_not_written() -> None:
    house, client = opened(2)
    (link,) = (link for link in house.links if link.server.index == 0)
    key = house.key_on(0)
    house.stores[1].items[key] = (bytes(4), b"there", 1)
    client.send(store(key, b"v", 1) + get(key, 2))
    link.pull()
    down(house, 0)
    house.serve()
    assert client.told == [(O.SET, 1, NOT_STORED), (O.GET, 2, 0)]
    assert client.frames[1].value == b"there"


def test_a_server_that_comes_back_serves_its_keys_again() -> None:
    house, client = opened(2)
    down(house, 0)
    house.connect(0)
    key = house.key_on(0)
    client.send(store(key, b"v"))
    house.serve()
    assert key in house.stores[0].items


def test_the_first_request_that_waits_its_deadline_out_spares_the_others_the_wait() -> None:
    house, client = opened(connections=0)
    client.send(get(b"k", 1))
    house.pass_time(0.2)
    other = house.client()
    other.send(get(b"k", 2))
    house.pass_time(0.201)
    assert client.told == [(O.GET, 1, MISS)]
    assert other.told == [(O.GET, 2, MISS)]
    other.send(store(b"k", b"v", 3))
    assert other.told[1:] == [(O.SET, 3, NOT_STORED)]
    assert [reason for _, reason in house.degraded] == ["no_upstream", "timeout", "no_upstream"]


# A server that is stalled


def test_of_a_stalled_server_one_get_a_second_is_let_through() -> None:
    house, _ = opened()
    link = stall(house)
    client = house.client()
    client.send(get(b"k", 1))
    assert client.told == [(O.GET, 1, MISS)]
    for _ in range(3):
        house.pass_time(PROBE_INTERVAL)
        link.pull()
        link.asked.clear()
        client.send(store(b"k", b"v", 2), get(b"k", 3), get(b"k", 4), touch(b"k", 5))
        assert link.opcodes == [O.GET]
        house.pass_time(LATE)
    assert len(client.told) == 13


def test_a_stalled_server_is_back_when_a_data_request_succeeds() -> None:
    house, _ = opened()
    link = stall(house)
    house.pass_time(PROBE_INTERVAL)
    client = house.client()
    client.send(get(b"k", 1))
    house.connect()
    assert house.servers[0].refusing
    link.deliver(link.execute())
    client.send(store(b"k", b"v", 2))
    house.serve()
    assert client.told == [(O.GET, 1, MISS), (O.SET, 2, 0)]
    assert not house.servers[0].refusing


def test_a_stalled_server_fails_over_too() -> None:
    house, _ = opened(2)
    stall(house)
    client = house.client()
    client.send(store(house.key_on(0), b"v", 1))
    house.serve()
    assert client.told == [(O.SET, 1, 0)]
    assert house.key_on(0) in house.stores[1].items


def test_a_late_answer_does_not_close_the_breaker() -> None:
    house, _ = opened()
    link = stall(house)
    link.deliver(link.execute())
    assert house.servers[0].refusing


def test_timeouts_open_the_breaker_only_in_a_row() -> None:
    house, client = opened()
    for number in range(TIMEOUTS_IN_A_ROW + 5):
        client.send(get(b"k", number, O.GETQ))
        house.links[0].pull()
        if number == 10:
            house.serve()
        else:
            house.pass_time(LATE)
    assert not house.servers[0].refusing
