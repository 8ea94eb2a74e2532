"""A lane keeps one session's requests to one server in order (P2), whatever connection they use.

While something is in flight it keeps to that connection; where it must not, what is new waits
until nothing is in flight, and moves together. What waits is counted against the budget.
"""

import pytest
from recording import UNSERVED, Counts, Peer, Recorder, ask

from memtunnel.core.budget import Budget
from memtunnel.core.lane import Lane
from memtunnel.core.mux import MAX_ENTRIES
from memtunnel.core.outcomes import Reason
from memtunnel.core.server import Server
from memtunnel.wire.binary import Opcode


class Bench:
    """A server with connections, a lane of a client, and somebody who asks."""

    def __init__(self, connections: int = 2, limit: int = 1 << 20) -> None:
        self.budget = Budget(limit)
        self.server = Server("server", Counts(), self.budget)
        self.peers = [Peer() for _ in range(connections)]
        for peer in self.peers:
            self.server.add(peer.mux, 1.0)
        self.owner = Recorder()
        self.lane = Lane(self.server)

    def send(self, opcode: int, *keys: bytes, lane: Lane | None = None) -> None:
        lane = lane or self.lane
        for key in keys:
            lane.send(ask(self.owner, opcode, key, lane=lane), 1.0)

    def burden(self, peer: Peer, requests: int) -> None:
        """Requests of others on a connection."""
        for _ in range(requests):
            peer.mux.send(ask(self.owner, Opcode.NOOP))
        peer.read()

    def read(self) -> list[list[bytes]]:
        """What each connection writes now, without the burden."""
        return [peer.read() for peer in self.peers]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- keeping to a connection


def test_p2_requests_keep_to_one_connection_while_something_is_in_flight(bench: Bench) -> None:
    bench.send(Opcode.SET, b"set1")
    bench.send(Opcode.GET, b"get1")
    assert bench.read() == [[b"set1", b"get1"], []]
    bench.burden(bench.peers[0], 5)
    bench.peers[0].reply(b"set1")
    bench.send(Opcode.GET, b"get2")
    assert bench.read() == [[b"get2"], []]


def test_with_nothing_in_flight_it_takes_the_connection_with_the_least_load(bench: Bench) -> None:
    bench.send(Opcode.GET, b"get1")
    bench.read()
    bench.peers[0].reply(b"get1")
    bench.burden(bench.peers[0], 1)
    bench.send(Opcode.GET, b"get2")
    assert bench.read() == [[], [b"get2"]]


def test_p2_a_write_that_was_given_up_keeps_the_lane_where_it_is(bench: Bench) -> None:
    bench.send(Opcode.SET, b"set1")
    bench.read()
    (write,) = bench.peers[0].mux._entries.values()
    bench.server.expire(write, 2.0)
    bench.burden(bench.peers[0], 5)
    bench.send(Opcode.GET, b"get1")
    assert bench.read() == [[b"get1"], []], "it could overtake the write"
    bench.peers[0].reply(b"set1", b"get1")
    bench.send(Opcode.GET, b"get2")
    assert bench.read() == [[], [b"get2"]]


def test_a_read_that_was_given_up_does_not_keep_the_lane(bench: Bench) -> None:
    bench.send(Opcode.GET, b"get1")
    bench.read()
    (read,) = bench.peers[0].mux._entries.values()
    bench.server.expire(read, 2.0)
    bench.burden(bench.peers[0], 5)
    bench.send(Opcode.GET, b"get2")
    assert bench.read() == [[], [b"get2"]]
    bench.peers[0].reply(b"get1")
    assert bench.lane.in_flight == 1, "the late answer is not one of the lane's"


# --- waiting


def test_p2_on_a_draining_connection_new_requests_wait_and_move_together(bench: Bench) -> None:
    bench.send(Opcode.SET, b"set1", b"set2")
    bench.read()
    bench.server.drain(bench.peers[0].mux)
    bench.send(Opcode.SET, b"set3")
    bench.send(Opcode.GET, b"get1")
    assert bench.server.queued == 2
    assert bench.read() == [[], []]
    bench.peers[0].reply(b"set1")
    assert bench.read() == [[], []], "one is still in flight"
    bench.peers[0].reply(b"set2")
    assert bench.read() == [[], [b"set3", b"get1"]]
    assert (bench.server.queued, bench.budget.used, bench.server.queue) == (0, 0, {})


def test_p2_a_tombstone_of_a_write_keeps_what_follows_waiting(bench: Bench) -> None:
    bench.send(Opcode.SET, b"set1")
    bench.read()
    bench.server.drain(bench.peers[0].mux)
    bench.send(Opcode.GET, b"get1")
    (write,) = bench.peers[0].mux._entries.values()
    bench.server.expire(write, 2.0)
    assert bench.read() == [[], []]
    bench.peers[0].reply(b"set1")
    assert bench.read() == [[], [b"get1"]]


def test_what_waits_for_a_read_goes_on_when_the_read_is_given_up(bench: Bench) -> None:
    bench.send(Opcode.GET, b"get1")
    bench.read()
    bench.server.drain(bench.peers[0].mux)
    bench.send(Opcode.SET, b"set1")
    (read,) = bench.peers[0].mux._entries.values()
    bench.server.expire(read, 2.0)
    assert bench.read() == [[], [b"set1"]]


def test_a_lane_leaves_a_connection_with_twice_anothers_load(bench: Bench) -> None:
    bench.send(Opcode.SET, b"set1")
    bench.read()
    bench.burden(bench.peers[0], 200)
    bench.lane.rebalance()
    bench.send(Opcode.GET, b"get1", b"get2")
    assert bench.read() == [[], []]
    bench.peers[0].reply(b"set1")
    assert bench.read() == [[], [b"get1", b"get2"]]


def test_a_few_requests_more_are_no_reason_to_leave(bench: Bench) -> None:
    bench.send(Opcode.SET, b"set1")
    bench.read()
    bench.burden(bench.peers[0], 40)
    bench.lane.rebalance()
    bench.send(Opcode.GET, b"get1")
    assert bench.read() == [[b"get1"], []]


def test_p2_what_waits_is_not_overtaken_when_the_load_evens_out(bench: Bench) -> None:
    bench.send(Opcode.SET, b"set1")
    bench.read()
    bench.burden(bench.peers[0], 200)
    bench.lane.rebalance()
    bench.send(Opcode.SET, b"set2")
    bench.burden(bench.peers[1], 200)
    bench.lane.rebalance()
    bench.send(Opcode.SET, b"set3")
    bench.peers[0].reply(b"set1")
    assert [key for keys in bench.read() for key in keys] == [b"set2", b"set3"]


def test_without_a_connection_requests_wait_for_one() -> None:
    bench = Bench(connections=0)
    bench.send(Opcode.SET, b"set1", b"set2")
    assert (bench.server.queued, bench.server.oldest()) == (2, 1.0)
    assert bench.budget.used > 0
    peer = Peer()
    bench.server.add(peer.mux, 2.0)
    assert peer.read() == [b"set1", b"set2"]
    assert (bench.server.queued, bench.budget.used, bench.server.oldest()) == (0, 0, None)


def test_lanes_go_on_in_the_order_in_which_they_began_to_wait() -> None:
    bench = Bench(connections=0)
    first, second = Lane(bench.server), Lane(bench.server)
    bench.send(Opcode.SET, b"one1", lane=first)
    bench.send(Opcode.SET, b"two1", lane=second)
    bench.send(Opcode.SET, b"one2", lane=first)
    peer = Peer()
    bench.server.add(peer.mux, 2.0)
    assert peer.read() == [b"one1", b"one2", b"two1"]


def test_what_is_given_up_while_it_waits_is_not_sent() -> None:
    bench = Bench(connections=0)
    bench.send(Opcode.SET, b"set1", b"set2", b"set3")
    bench.lane.give_up(bench.lane.waiting[1])
    assert bench.server.queued == 2
    peer = Peer()
    bench.server.add(peer.mux, 2.0)
    assert peer.read() == [b"set1", b"set3"]
    assert bench.budget.used == 0


def test_a_lane_whose_last_request_is_given_up_waits_no_more() -> None:
    bench = Bench(connections=0)
    bench.send(Opcode.SET, b"set1")
    bench.lane.give_up(bench.lane.waiting[0])
    assert (bench.server.queue, bench.server.queued, bench.budget.used) == ({}, 0, 0)


# --- bounds


def test_p6_what_may_not_wait_is_overloaded() -> None:
    bench = Bench(connections=0, limit=60)
    bench.send(Opcode.GET, b"get1", b"get2", b"get3")
    assert bench.owner.failures() == [(b"get3", Reason.OVERLOADED)]
    assert (bench.server.queued, bench.budget.used) == (2, 56)


def test_p6_on_a_full_connection_a_request_is_overloaded_at_once() -> None:
    bench = Bench(connections=1)
    bench.burden(bench.peers[0], MAX_ENTRIES - 2)
    bench.send(Opcode.GET, b"get1", b"get2", b"get3")
    assert bench.owner.failures() == [(b"get3", Reason.OVERLOADED)]
    assert bench.lane.in_flight == 2


def test_p6_what_waited_for_a_connection_that_fills_up_is_overloaded() -> None:
    bench = Bench(connections=0)
    bench.send(Opcode.GET, b"get1", b"get2", b"get3", b"get4")
    peer = Peer()
    bench.burden(peer, MAX_ENTRIES - 2)
    bench.server.add(peer.mux, 2.0)
    assert peer.read() == [b"get1", b"get2"]
    assert bench.owner.failures() == [(b"get3", Reason.OVERLOADED), (b"get4", Reason.OVERLOADED)]
    assert (bench.server.queued, bench.budget.used, bench.lane.in_flight) == (0, 0, 2)


# --- a server that takes no requests


def test_what_waits_is_handed_back_in_order_when_the_server_refuses() -> None:
    bench = Bench(connections=0)
    bench.send(Opcode.SET, b"set1")
    bench.send(Opcode.GET, b"get1")
    bench.lane.divert(2.0)
    assert bench.owner.failures() == [(b"set1", UNSERVED), (b"get1", UNSERVED)]
    assert (bench.server.queue, bench.server.queued, bench.budget.used) == ({}, 0, 0)


@pytest.mark.parametrize("end", ["diverted", "refused"])
def test_a_write_without_a_client_that_cannot_be_sent_is_settled(end: str) -> None:
    """Its deadline must not look for it in the lane any more."""
    bench = Bench(connections=0)
    write = ask(bench.owner, Opcode.SET, lane=bench.lane)
    bench.lane.send(write, 1.0)
    write.owner = None
    if end == "diverted":
        bench.lane.divert(2.0)
    else:
        full = Peer()
        bench.burden(full, MAX_ENTRIES)
        bench.server.add(full.mux, 2.0)
    assert write.answer is not None
    assert (bench.server.queued, bench.budget.used, bench.owner.outcomes) == (0, 0, [])
