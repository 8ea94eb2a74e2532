"""Requests that failed or were slow are noted one by one, and one in so many of the others.

What is kept says where the time went and which connection it was; of the key there is a salted
hash, of the value its length. When too many come at once most of them are only counted.
"""

from collections.abc import Iterator
from itertools import count
from math import inf

import pytest
from core_harness import Client, House, O, bare, get, store

from memtunnel.core.binary_session import BinarySession
from memtunnel.core.outcomes import Notable
from memtunnel.core.session import Session
from memtunnel.core.text_session import TextSession
from memtunnel.ops.slowlog import A_SECOND, KEPT, KEPT_SAMPLES, LINES, Entry, SlowLog
from memtunnel.wire.binary import Status, request
from memtunnel.wire.sasl import Credentials, Secret

PROTOCOLS = pytest.mark.parametrize("speaks", [BinarySession, TextSession])


class Observed:
    """A house whose requests are noted in a log."""

    def __init__(self, servers: int = 1, connections: int = 1, **policy: object) -> None:
        self.said: list[tuple[Entry, int]] = []
        self.log = SlowLog(lambda entry, unsaid: self.said.append((entry, unsaid)))
        self.house = House(servers, connections, **policy)
        self.house.tunnel.note = self.log.note

    @property
    def entries(self) -> list[Entry]:
        return list(self.log)


def asks(client: Client, keys: Iterator[bytes] | list[bytes]) -> None:
    """Ask for these keys together, in the client's protocol."""
    if isinstance(client.session, BinarySession):
        client.send(b"".join(get(key, number) for number, key in enumerate(keys)))
    else:
        client.send(b"".join(b"get %b\r\n" % key for key in keys))


def stores(client: Client, key: bytes, value: bytes) -> None:
    if isinstance(client.session, BinarySession):
        client.send(store(key, value))
    else:
        client.send(b"set %b 0 0 %d\r\n%b\r\n" % (key, len(value), value))


# --- what is noted


@PROTOCOLS
def test_nothing_is_noted_of_what_goes_well_in_time(speaks: type[Session]) -> None:
    seen = Observed(slow=0.05)
    client = seen.house.client(speaks)
    stores(client, b"a", b"x")
    asks(client, [b"a", b"b"])
    seen.house.now += 0.049
    seen.house.serve()
    assert seen.entries == []


@PROTOCOLS
@pytest.mark.parametrize("number", [1, 3])
def test_each_slow_request_is_noted(speaks: type[Session], number: int) -> None:
    seen = Observed(slow=0.05)
    client = seen.house.client(speaks)
    stores(client, b"a", b"x" * 10)
    seen.house.serve()
    asks(client, [b"a"] * number)
    seen.house.links[0].pull()
    seen.house.now += 0.06
    seen.house.serve()
    assert len(seen.entries) == number
    for entry in seen.entries:
        assert (entry.why, entry.command, entry.status) == ("slow", "get", "hit")
        assert (entry.server, entry.connection) == ("server0", 1)
        assert entry.total == pytest.approx(0.06)
        assert entry.wire == pytest.approx(0.06)
        assert entry.queue == pytest.approx(0.0)
    if speaks is BinarySession:
        assert client.told == [(O.SET, 0, 0), *((O.GET, each, 0) for each in range(number))]
    else:
        said = b"VALUE a 0 10\r\n" + b"x" * 10 + b"\r\nEND\r\n"
        assert client.received == b"STORED\r\n" + said * number


@PROTOCOLS
def test_a_slow_write_that_was_long_is_noted_with_its_key_and_size(speaks: type[Session]) -> None:
    seen = Observed(slow=0.05)
    client = seen.house.client(speaks)
    stores(client, b"a", b"x" * 5000)
    seen.house.links[0].pull()
    seen.house.now += 0.1
    seen.house.serve()
    asks(client, [b"a"])
    seen.house.now += 0.1
    seen.house.serve()
    got, stored = seen.entries
    assert (stored.command, got.command) == ("set", "get")
    assert stored.key == got.key != ""
    assert 5000 < stored.bytes < 5100
    assert 5000 < got.bytes < 5100


def test_the_size_of_an_answer_that_came_in_pieces_is_counted_once() -> None:
    seen = Observed(slow=0.05)
    client = seen.house.client()
    stores(client, b"a", b"x" * 5000)
    seen.house.serve()
    asks(client, [b"a"])
    link = seen.house.links[0]
    answer = link.execute()
    link.deliver(answer[:100])
    seen.house.now += 0.1
    link.deliver(answer[100:])
    (entry,) = seen.entries
    assert entry.bytes == 25 + len(answer)


@PROTOCOLS
def test_time_in_the_tunnel_and_on_the_wire_are_told_apart(speaks: type[Session]) -> None:
    seen = Observed(slow=0.05)
    link = seen.house.links[0]
    client = seen.house.client(speaks)
    asks(client, [b"a"])
    seen.house.now += 0.02
    link.pull()
    seen.house.now += 0.1
    seen.house.serve()
    (entry,) = seen.entries
    assert entry.queue == pytest.approx(0.02)
    assert entry.wire == pytest.approx(0.1)
    assert entry.total == pytest.approx(0.12)


@PROTOCOLS
@pytest.mark.parametrize("slow", [inf, 10.0])
def test_a_request_that_times_out_is_noted_with_its_connection(
    speaks: type[Session], slow: float
) -> None:
    seen = Observed(connections=2, slow=slow)
    client = seen.house.client(speaks)
    asks(client, [b"a"])
    for link in seen.house.links:
        link.pull()
    seen.house.pass_time(0.5)
    (entry,) = seen.entries
    carried = next(link for link in seen.house.links if link.asked)
    assert (entry.why, entry.status, entry.command) == ("failed", "timeout", "get")
    assert entry.connection == carried.mux.number
    assert entry.key


def test_so_is_one_whose_connection_is_lost() -> None:
    seen = Observed()
    client = seen.house.client()
    stores(client, b"a", b"x")
    link = seen.house.links[0]
    link.pull()
    link.lose()
    (entry,) = seen.entries
    assert (entry.status, entry.connection) == ("upstream_lost", 1)


def test_one_that_was_never_sent_has_no_connection_and_no_time_on_the_wire() -> None:
    seen = Observed(connections=0)
    client = seen.house.client()
    asks(client, [b"a"])
    seen.house.pass_time(0.5)
    (entry,) = seen.entries
    assert (entry.connection, entry.wire) == (None, None)
    assert entry.queue == entry.total == pytest.approx(0.5)


def test_one_that_there_was_no_memory_for_is_noted_without_a_server() -> None:
    seen = Observed(limit=100)
    client = seen.house.client()
    frame = store(b"a", b"x" * 1000)
    client.send(frame[:500], frame[500:])
    (entry,) = seen.entries
    assert (entry.server, entry.status, entry.why) == ("local", "overloaded", "failed")
    assert entry.key


@PROTOCOLS
def test_a_verdict_is_no_failure(speaks: type[Session]) -> None:
    """Though it bears the same word: the value or the login is wrong, and nothing was lost."""
    seen = Observed(max_value_size=100, credentials=Credentials(username="u", password=Secret("p")))
    client = seen.house.client(speaks)
    stores(client, b"u", b"wrong")  # a login, in text
    if speaks is BinarySession:
        message = request(O.SASL_AUTH, b"PLAIN", value=b"\0u\0wrong")
        client.send(message, store(b"a", b"x" * 101, opcode=O.ADD))
        stores(client, b"a", b"x" * 50)
        link = seen.house.links[0]
        link.deliver(link.refuse(Status.TOO_LARGE))
    seen.house.serve()
    assert seen.entries == []
    assert client.received


def test_what_only_waited_for_others_is_not_slow_itself() -> None:
    seen = Observed(slow=0.05)
    client = seen.house.client()
    client.send(get(b"a", 1) + bare(O.NOOP, 2))
    seen.house.now += 0.1
    seen.house.serve()
    assert [entry.command for entry in seen.entries] == ["get"]
    assert len(client.told) == 2


def test_each_server_that_statistics_are_asked_of_is_noted() -> None:
    seen = Observed(servers=2, slow=0.05)
    client = seen.house.client()
    client.send(bare(O.STAT, 1))
    seen.house.now += 0.1
    seen.house.serve()
    assert sorted((entry.command, entry.server) for entry in seen.entries) == [
        ("stat", "server0"),
        ("stat", "server1"),
    ]


@PROTOCOLS
@pytest.mark.parametrize("together", [1, 4, 7, 30])
def test_one_in_so_many_is_a_sample(speaks: type[Session], together: int) -> None:
    """Of those that go to servers, exactly, however they come."""
    house = House(2, sample=10)
    client = house.client(speaks)
    stores(client, b"hit", b"x")
    numbers = count()
    for _ in range(840 // together):
        keys = [(b"hit", b"miss")[next(numbers) % 2] for _ in range(together)]
        asks(client, keys)
        house.serve()
    asked = 1 + next(numbers)
    assert len(house.noted) == asked // 10
    assert {noted.why for noted in house.noted} == {Notable.SAMPLE}


@PROTOCOLS
def test_one_that_is_answered_out_of_order_is_noted_like_any_other(speaks: type[Session]) -> None:
    """And counts for the samples only once."""
    house = House(2, slow=0.05, sample=10)
    client = house.client(speaks)
    first, second = house.key_on(0), house.key_on(1)
    for key in (first, second):
        stores(client, key, b"x")
    house.serve()
    house.noted.clear()
    for _ in range(40):
        asks(client, [first, second])
        for link in house.links:
            link.pull()
        house.links[1].deliver(house.links[1].execute())
        house.serve()
    assert [noted.why for noted in house.noted] == [Notable.SAMPLE] * 8
    asks(client, [first])
    house.now += 0.03
    asks(client, [first, second])
    house.now += 0.03
    house.noted.clear()
    house.serve()
    assert [noted.why for noted in house.noted] == [Notable.SLOW]


def test_a_slow_request_is_slow_though_it_were_a_sample_too() -> None:
    house = House(slow=0.05, sample=1)
    client = house.client()
    asks(client, [b"a"])
    house.now += 0.1
    house.serve()
    asks(client, [b"a"])
    house.serve()
    assert [noted.why for noted in house.noted] == [Notable.SLOW, Notable.SAMPLE]


def test_other_settings_count_from_then_on() -> None:
    house = House()
    client = house.client()
    house.tunnel.set_policy(type(house.policy)(slow=0.05))
    asks(client, [b"a"])
    house.now += 0.1
    house.serve()
    assert [noted.why for noted in house.noted] == [Notable.SLOW]


# --- what is kept


def test_equal_keys_have_equal_hashes_in_one_log_and_others_in_another() -> None:
    hashes = []
    for _ in range(2):
        seen = Observed(sample=1)
        client = seen.house.client()
        asks(client, [b"secret", b"other", b"secret"])
        seen.house.serve()
        first, second, third = (entry.key for entry in seen.entries)
        assert first == third != second
        hashes.append(first)
    assert hashes[0] != hashes[1]


def test_neither_keys_nor_values_are_in_what_is_kept_and_said() -> None:
    seen = Observed(slow=0.05)
    client = seen.house.client()
    stores(client, b"canary-key", b"canary-value")
    seen.house.now += 0.1
    seen.house.serve()
    ((entry, _),) = seen.said
    assert "canary" not in repr(entry)
    assert "canary" not in str(entry)
    assert str(entry).startswith("set hit after 100.0 ms (queue 100.0 ms, wire 0.0 ms, ")


def test_in_a_flood_most_are_only_counted() -> None:
    seen = Observed(connections=0)
    flood = 3 * A_SECOND
    for number in range(flood):
        client = seen.house.client()
        asks(client, [b"key%d" % number])
    seen.house.pass_time(0.5)
    assert len(seen.entries) == A_SECOND
    assert seen.log.untold == flood - A_SECOND
    assert len(seen.said) == LINES
    seen.house.now += 60.0
    asks(seen.house.client(), [b"later"])
    seen.house.pass_time(0.5)
    assert len(seen.entries) == A_SECOND + 1
    entry, unsaid = seen.said[-1]
    assert entry.key == seen.entries[0].key
    assert unsaid == flood - LINES


def test_samples_do_not_count_among_the_others_that_come_at_once() -> None:
    seen = Observed(sample=1)
    client = seen.house.client()
    for number in range(2 * A_SECOND):
        asks(client, [b"%d" % number])
        seen.house.serve()
    seen.house.links[0].lose()
    asks(client, [b"lost"])
    seen.house.pass_time(0.5)
    assert seen.entries[0].why == "failed"


def test_what_was_told_before_is_not_told_again_whenever_it_was_settled() -> None:
    log = SlowLog()
    one = Entry(2.0, "get", "hit", "slow", "s", 1, 0.1, 0.0, 0.1, 50, "")
    log.add(one)
    assert [entry.settled for entry in log.after(0)] == [2.0]
    log.add(one._replace(settled=1.0))
    log.add(one._replace(settled=1.0, why="sample"))
    assert [entry.why for entry in log.after(1)] == ["slow", "sample"]
    assert log.after(3) == []


def test_what_several_tell_of_one_after_the_other_is_in_the_order_of_time() -> None:
    log = SlowLog()
    one = Entry(1.0, "get", "hit", "slow", "s", 1, 0.1, 0.0, 0.1, 50, "")
    for worker, times in (("1", (1.0, 3.0)), ("2", (2.0, 4.0))):
        for settled in times:
            log.add(one._replace(settled=settled, worker=worker))
    assert [entry.settled for entry in log] == [4.0, 3.0, 2.0, 1.0]
    assert [entry.settled for entry in log.after(1)] == [3.0, 2.0, 4.0], "as they came"


def test_clients_are_told_of_samples_last() -> None:
    log = SlowLog()
    one = Entry(1.0, "get", "hit", "slow", "s", 1, 0.1, 0.0, 0.1, 50, "")
    for settled, why in enumerate(("slow", "sample", "failed", "sample")):
        log.add(one._replace(settled=float(settled), why=why))
    told = [line.split()[3] for _, line in log.described(0.0)]
    assert told == ["why=failed", "why=slow", "why=sample", "why=sample"]


def test_clients_that_must_not_know_of_others_are_told_no_keys() -> None:
    seen = Observed(sample=1)
    asks(seen.house.client(), [b"a"])
    seen.house.serve()
    ((name, value),) = seen.log.described(0.0)
    assert (name, value.split()[0]) == ("1", "time=1970-01-01T00:16:40.000Z")
    assert " key=" in value
    hidden = SlowLog(tells_keys=False)
    hidden.add(seen.entries[0])
    ((_, value),) = hidden.described(0.0)
    assert " key=" not in value
    hidden.add(seen.entries[0])
    assert len(hidden.described(0.0)) == 2, "it is made anew when there is more to tell"


def test_the_newest_are_kept_and_samples_take_no_place_of_others() -> None:
    log = SlowLog()
    one = Entry(0.0, "get", "hit", "slow", "s", 1, 0.1, 0.0, 0.1, 50, "")
    for number in range(2 * KEPT):
        log.add(one._replace(settled=float(number), why="slow" if number % 2 else "sample"))
    kept = list(log)
    assert [entry.settled for entry in kept] == sorted((e.settled for e in kept), reverse=True)
    assert sum(entry.why == "slow" for entry in kept) == KEPT
    assert sum(entry.why == "sample" for entry in kept) == KEPT_SAMPLES
