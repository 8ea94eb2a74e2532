"""A server's connections come and go; its requests are moved, read again, or fail, each once.

P5: what was never written moves to another connection, in order; GET and GETK are sent once
more unless a later write of the same lane was in flight too; a write that was written never.
The breaker decides when requests are not kept waiting any more, and what ends that.
"""

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recording import UNSERVED, Counts, Peer, Recorder, ask, bare

from memtunnel.core.breaker import (
    FAILED_DIALS,
    PROBE_INTERVAL,
    TIMEOUTS_IN_A_ROW,
    Breaker,
    State,
)
from memtunnel.core.budget import Budget
from memtunnel.core.lane import Lane
from memtunnel.core.mux import MAX_UNSENT
from memtunnel.core.outcomes import Reason
from memtunnel.core.request import Request
from memtunnel.core.server import Server
from memtunnel.wire.binary import LOUD, QUIET, READS, Opcode

FORWARDED = [
    opcode
    for opcode in Opcode
    if opcode not in (Opcode.QUIT, Opcode.QUITQ, Opcode.NOOP, Opcode.VERSION)
    and not opcode.name.startswith("SASL")
]
WRITES = [opcode for opcode in FORWARDED if LOUD[opcode] not in READS]
REREAD = [opcode for opcode in FORWARDED if LOUD[opcode] in READS]


class Bench:
    """A server with connections and somebody who asks it."""

    def __init__(self, connections: int = 2) -> None:
        self.budget = Budget(1 << 20)
        self.counts = Counts()
        self.server = Server("server", self.counts, self.budget)
        self.peers: list[Peer] = []
        for _ in range(connections):
            self.connect()
        self.owner = Recorder()
        self.lane = Lane(self.server)

    def connect(self, now: float = 1.0) -> Peer:
        peer = Peer(first_opaque=len(self.peers) << 16)
        self.peers.append(peer)
        self.server.add(peer.mux, now)
        return peer

    def send(self, opcode: int, key: bytes, lane: Lane | None = None) -> Request:
        lane = lane or self.lane
        request = ask(self.owner, opcode, key, lane=lane)
        lane.send(request, 1.0)
        return request

    def stall(self, requests: int = TIMEOUTS_IN_A_ROW, now: float = 2.0) -> None:
        """So many data requests in a row are not answered in time."""
        lane = Lane(self.server)
        given_up = [self.send(Opcode.GET, b"late", lane) for _ in range(requests)]
        for peer in self.peers:
            peer.read(1.0)
        for request in given_up:
            self.server.expire(request, now)

    def lose(self, peer: Peer, now: float = 2.0) -> None:
        self.server.lose(peer.mux, now)

    @property
    def waits_nothing(self) -> bool:
        return (self.server.queued, self.budget.used, self.server.queue) == (0, 0, {})


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- choosing


def test_the_connection_with_the_least_load_is_chosen(bench: Bench) -> None:
    first, second = bench.peers
    first.mux.send(ask(bench.owner, Opcode.NOOP))
    assert bench.server.choose() is second.mux
    for _ in range(2):
        second.mux.send(ask(bench.owner, Opcode.NOOP))
    assert bench.server.choose() is first.mux


def test_a_draining_connection_is_not_chosen(bench: Bench) -> None:
    first, second = bench.peers
    bench.server.drain(first.mux)
    assert bench.server.choose() is second.mux
    bench.server.drain(second.mux)
    assert bench.server.choose() is None


def test_a_draining_connection_ends_what_it_carries(bench: Bench) -> None:
    request = bench.send(Opcode.GET, b"get1")
    first, _ = bench.peers
    first.read()
    bench.server.drain(first.mux)
    first.reply(b"get1")
    assert isinstance(bench.owner.outcome(request), bytes)


# --- losing a connection


def test_p5_what_was_never_written_moves_in_order(bench: Bench) -> None:
    first, second = bench.peers
    keys = [b"%04d" % n for n in range(len(FORWARDED))]
    for opcode, key in zip(FORWARDED, keys, strict=True):
        bench.send(opcode, key)
    bench.lose(first)
    second.read()
    assert [(frame.opcode, frame.key) for frame in second.asked] == [
        (LOUD[opcode], b"" if LOUD[opcode] == Opcode.FLUSH else key)
        for opcode, key in zip(FORWARDED, keys, strict=True)
    ]
    assert bench.counts.retries == {"never_sent": len(FORWARDED)}
    assert bench.owner.outcomes == []
    assert bench.waits_nothing


@pytest.mark.parametrize("opcode", WRITES, ids=lambda opcode: opcode.name)
def test_p5_a_write_that_was_written_is_never_sent_again(bench: Bench, opcode: Opcode) -> None:
    first, second = bench.peers
    bench.send(opcode, b"aaaa")
    first.read()
    bench.lose(first)
    assert second.read() == []
    assert bench.owner.failures() == [(b"aaaa", Reason.UPSTREAM_LOST)]
    assert (bench.lane.in_flight, bench.counts.retries) == (0, {})


@pytest.mark.parametrize("opcode", REREAD, ids=lambda opcode: opcode.name)
def test_p5_a_read_is_sent_once_more_and_no_more(opcode: Opcode) -> None:
    bench = Bench(connections=3)
    first, second, third = bench.peers
    request = bench.send(opcode, b"aaaa")
    first.read()
    bench.lose(first)
    assert second.read() == [b"aaaa"]
    assert bench.counts.retries == {"upstream_lost": 1}
    assert bench.owner.outcomes == []
    bench.lose(second)
    assert third.read() == []
    assert bench.owner.outcomes == [(request, Reason.UPSTREAM_LOST)]


def test_p5_a_read_is_answered_by_the_connection_that_has_it_now(bench: Bench) -> None:
    first, second = bench.peers
    request = bench.send(Opcode.GET, b"get1")
    first.read()
    bench.lose(first)
    second.read()
    second.reply(b"get1")
    assert bench.owner.outcome(request) == bare(second.answer(b"get1"))
    assert bench.lane.in_flight == 0


def test_p2_a_read_is_not_sent_again_where_a_later_write_was_in_flight(bench: Bench) -> None:
    first, second = bench.peers
    for opcode, key in ((Opcode.GET, b"old1"), (Opcode.SET, b"set1"), (Opcode.GET, b"new1")):
        bench.send(opcode, key)
    first.read()
    bench.lose(first)
    assert second.read() == [b"new1"]
    assert bench.owner.failures() == [
        (b"old1", Reason.UPSTREAM_LOST),
        (b"set1", Reason.UPSTREAM_LOST),
    ]


def test_p2_a_later_write_that_was_given_up_counts_too(bench: Bench) -> None:
    first, second = bench.peers
    bench.send(Opcode.GET, b"old1")
    write = bench.send(Opcode.SET, b"set1")
    first.read()
    bench.server.expire(write, 2.0)
    bench.lose(first)
    assert second.read() == []
    assert bench.owner.failures() == [(b"set1", Reason.TIMEOUT), (b"old1", Reason.UPSTREAM_LOST)]


def test_a_later_write_of_another_client_is_no_reason_not_to_read_again(bench: Bench) -> None:
    first, second = bench.peers
    bench.server.drain(second.mux)
    bench.send(Opcode.GET, b"get1")
    bench.send(Opcode.SET, b"set1", Lane(bench.server))
    first.read()
    third = bench.connect()
    bench.lose(first)
    assert third.read() == [b"get1"]


def test_a_later_write_that_was_never_written_is_no_reason_either(bench: Bench) -> None:
    first, second = bench.peers
    bench.send(Opcode.GET, b"get1")
    first.read()
    bench.send(Opcode.SET, b"set1")
    bench.lose(first)
    assert second.read() == [b"get1", b"set1"]


def test_p2_reads_again_what_moves_and_what_waited_keep_their_order(bench: Bench) -> None:
    first, second = bench.peers
    bench.send(Opcode.GET, b"get1")
    bench.send(Opcode.GET, b"get2")
    first.read()
    bench.send(Opcode.SET, b"set1")
    bench.send(Opcode.GET, b"get3")
    bench.server.drain(first.mux)
    bench.send(Opcode.SET, b"set2")
    bench.send(Opcode.GET, b"get4")
    bench.lose(first)
    assert second.read() == [b"get1", b"get2", b"set1", b"get3", b"set2", b"get4"]
    assert bench.lane.in_flight == 6
    assert bench.waits_nothing


def test_what_moves_waits_where_there_is_no_other_connection() -> None:
    bench = Bench(connections=1)
    bench.send(Opcode.GET, b"get1")
    bench.peers[0].read()
    bench.send(Opcode.SET, b"set1")
    bench.lose(bench.peers[0])
    assert (bench.server.queued, bench.lane.in_flight) == (2, 0)
    assert bench.budget.used == sum(request.size for request in bench.lane.waiting)
    assert bench.connect().read() == [b"get1", b"set1"]
    assert bench.waits_nothing


def test_requests_given_up_are_not_told_of_the_loss(bench: Bench) -> None:
    first, second = bench.peers
    written = [bench.send(opcode, b"aaaa") for opcode in (Opcode.GET, Opcode.SET, Opcode.STAT)]
    first.read()
    unsent = [bench.send(opcode, b"bbbb") for opcode in (Opcode.GET, Opcode.SET)]
    for request in written + unsent:
        bench.server.expire(request, 2.0)
    told = list(bench.owner.outcomes)
    bench.lose(first, 3.0)
    assert bench.owner.outcomes == told
    assert [reason for _, reason in told] == [Reason.TIMEOUT] * 5
    assert second.read() == []
    assert (bench.lane.in_flight, bench.waits_nothing) == (0, True)


def test_a_lane_that_left_a_tombstone_behind_is_not_moved_when_that_is_lost(bench: Bench) -> None:
    first, second = bench.peers
    read = bench.send(Opcode.GET, b"get1")
    first.read()
    bench.server.expire(read, 2.0)
    first.mux.send(ask(bench.owner, Opcode.NOOP))
    write = bench.send(Opcode.SET, b"set1")
    assert second.read() == [b"set1"]
    bench.lose(first)
    assert (bench.lane.in_flight, bench.lane.mux) == (1, second.mux)
    second.reply(b"set1")
    assert bench.owner.outcome(write) == bare(second.answer(b"set1"))


def test_a_write_of_a_client_that_has_left_still_moves_when_it_was_never_written(
    bench: Bench,
) -> None:
    first, second = bench.peers
    bench.send(Opcode.SET, b"set1").owner = None
    bench.lose(first)
    assert second.read() == [b"set1"]
    second.reply(b"set1")
    assert (bench.lane.in_flight, bench.owner.outcomes) == (0, [])


def test_a_write_of_a_client_that_has_left_is_settled_when_it_is_lost(bench: Bench) -> None:
    first, second = bench.peers
    write = bench.send(Opcode.SET, b"set1")
    write.owner = None
    first.read()
    bench.lose(first)
    assert write.answer is not None
    assert second.read() == []


def test_the_connections_own_requests_end_with_it(bench: Bench) -> None:
    first, second = bench.peers
    beats = [ask(bench.owner, Opcode.NOOP) for _ in range(2)]
    first.mux.send(beats[0])
    first.read()
    first.mux.send(beats[1])
    bench.lose(first)
    assert {request for request, _ in bench.owner.outcomes} == set(beats)
    assert second.read() == []


def test_failures_are_told_in_the_order_of_writing(bench: Bench) -> None:
    first, _ = bench.peers
    bench.server.drain(bench.peers[1].mux)
    lanes = [Lane(bench.server) for _ in range(3)]
    keys = [b"%04d" % n for n in range(9)]
    for n, key in enumerate(keys):
        bench.send(Opcode.SET, key, lanes[n % 3])
    first.read()
    bench.lose(first)
    assert [key for key, _ in bench.owner.failures()] == keys


steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from((Opcode.GET, Opcode.GETKQ, Opcode.GAT, Opcode.SETQ, Opcode.DELETE)),
        st.sampled_from(("send", "send", "read", "give up", "drain", "lose", "connect")),
    ),
    max_size=60,
)


@given(steps)
def test_p3_p5_whatever_happens_each_request_has_one_outcome_and_no_write_is_written_twice(
    taken: list[tuple[int, Opcode, str]],
) -> None:
    bench = Bench(connections=1)
    lanes = [Lane(bench.server) for _ in range(3)]
    live = [bench.peers[0]]
    sent: list[Request] = []
    for number, (choice, opcode, step) in enumerate(taken):
        peer = live[choice % len(live)] if live else None
        if step == "send":
            if bench.server.refusing:
                continue  # its session would not ask it
            sent.append(bench.send(opcode, b"%04d" % number, lanes[choice]))
        elif step == "connect":
            live.append(bench.connect())
        elif step == "give up":
            unsettled = [request for request in sent if request.answer is None]
            if unsettled:
                bench.server.expire(unsettled[choice % len(unsettled)], 2.0)
        elif peer is not None:
            if step == "read":
                peer.read()
            elif step == "drain":
                bench.server.drain(peer.mux)
            else:
                live.remove(peer)
                bench.lose(peer)
    live.append(bench.connect())
    while any(peer.mux.load for peer in live):
        for peer in live:
            peer.read()
            _answer_all(peer)
    assert all(request.answer is not None for request in sent)
    assert {request for request, _ in bench.owner.outcomes} == set(sent)
    assert len(bench.owner.outcomes) == len(sent)
    assert bench.waits_nothing
    assert all(not lane.in_flight and not lane.waiting for lane in lanes)
    written = [frame for peer in bench.peers for frame in peer.asked]
    for request in sent:
        times = sum(frame.key == request.opaque for frame in written)
        assert times <= (2 if LOUD[request.opcode] in READS else 1)
    for lane in lanes:
        for peer in bench.peers:
            # On each connection a lane's writes are in the order in which they were asked.
            keys = [request.opaque for request in sent if request.lane is lane]
            mine = [frame.key for frame in peer.asked if frame.key in keys]
            assert mine == sorted(mine)


def _answer_all(peer: Peer) -> None:
    owed = list(peer.mux._entries)
    for frame in peer.asked:
        if int.from_bytes(frame.opaque, "big") in owed:
            peer.reply(frame.key)


# --- the breaker


def test_the_third_failed_dial_opens_it_and_diverts_what_waits() -> None:
    bench = Bench(connections=0)
    for key in (b"aaaa", b"bbbb"):
        bench.send(Opcode.SET, key)
    for _ in range(FAILED_DIALS - 1):
        bench.server.dial_failed(2.0)
    assert not bench.server.refusing
    assert bench.owner.outcomes == []
    bench.server.dial_failed(2.0)
    assert bench.server.refusing
    assert bench.owner.failures() == [(b"aaaa", UNSERVED), (b"bbbb", UNSERVED)]
    assert bench.waits_nothing


def test_failed_dials_do_not_open_it_while_a_connection_is_warm(bench: Bench) -> None:
    for _ in range(FAILED_DIALS * 2):
        bench.server.dial_failed(2.0)
    assert not bench.server.refusing


def test_a_request_that_waited_its_whole_deadline_opens_it_and_diverts_the_others() -> None:
    bench = Bench(connections=0)
    late = bench.send(Opcode.SET, b"late")
    bench.send(Opcode.SET, b"next")
    bench.server.expire(late, 2.0)
    assert bench.server.refusing
    assert dict(bench.owner.failures()) == {b"late": Reason.TIMEOUT, b"next": UNSERVED}
    assert bench.waits_nothing


def test_one_that_waited_for_its_turn_and_not_for_a_connection_does_not(bench: Bench) -> None:
    bench.send(Opcode.SET, b"set1")
    bench.peers[0].read()
    bench.server.drain(bench.peers[0].mux)
    waiting = bench.send(Opcode.SET, b"set2")
    bench.server.drain(bench.peers[1].mux)
    bench.server.expire(waiting, 2.0)
    assert not bench.server.refusing
    assert bench.owner.failures() == [(b"set2", Reason.TIMEOUT)]
    assert bench.waits_nothing


def test_an_unreachable_server_is_back_with_a_warm_connection() -> None:
    bench = Bench(connections=0)
    for _ in range(FAILED_DIALS):
        bench.server.dial_failed(2.0)
    assert bench.server.breaker.state is State.UNREACHABLE
    bench.connect()
    assert not bench.server.refusing
    bench.lose(bench.peers[0])
    bench.server.dial_failed(3.0)
    assert not bench.server.refusing, "failures are counted from the last success"


def test_a_connection_full_of_bytes_is_not_chosen_while_another_has_room(bench: Bench) -> None:
    first, second = bench.peers
    bench.send(Opcode.GET, b"get1", Lane(bench.server))
    bench.send(Opcode.GET, b"get2", Lane(bench.server))
    bench.send(Opcode.GET, b"get3", Lane(bench.server))
    light = min(first.mux, second.mux, key=lambda mux: mux.load)
    light.unsent_bytes = MAX_UNSENT
    chosen = bench.server.choose()
    assert chosen is not None
    assert chosen is not light


def test_stalled_stays_stalled_whatever_dials_do(bench: Bench) -> None:
    bench.stall()
    for _ in range(FAILED_DIALS):
        bench.server.breaker.dial_failed()
    bench.server.breaker.waited_out()
    assert bench.server.breaker.state is State.STALLED
    bench.connect(3.0)
    assert bench.server.refusing


def test_twenty_timeouts_in_a_row_open_it(bench: Bench) -> None:
    bench.stall(TIMEOUTS_IN_A_ROW - 1)
    assert not bench.server.refusing
    bench.stall(1)
    assert bench.server.refusing
    assert bench.server.breaker.state is State.STALLED


def test_an_answer_between_them_starts_the_count_again(bench: Bench) -> None:
    bench.stall(TIMEOUTS_IN_A_ROW - 1)
    bench.server.answered()
    bench.stall(TIMEOUTS_IN_A_ROW - 1)
    assert not bench.server.refusing


def test_what_had_waited_most_of_its_time_is_no_sign_of_a_stall(bench: Bench) -> None:
    requests = [bench.send(Opcode.SET, b"set1") for _ in range(TIMEOUTS_IN_A_ROW)]
    bench.peers[0].read(1.9)
    for request in requests:
        bench.server.expire(request, 2.0)
    assert not bench.server.refusing


def test_timeouts_of_stats_and_of_what_was_not_written_are_no_sign_of_a_stall(
    bench: Bench,
) -> None:
    stats = [bench.send(Opcode.STAT, b"stat") for _ in range(TIMEOUTS_IN_A_ROW)]
    bench.peers[0].read()
    unsent = [bench.send(Opcode.GET, b"get1") for _ in range(TIMEOUTS_IN_A_ROW)]
    for request in stats + unsent:
        bench.server.expire(request, 2.0)
    assert not bench.server.refusing


def test_a_stalled_server_is_not_back_with_a_warm_connection(bench: Bench) -> None:
    bench.stall()
    bench.connect(3.0)
    assert bench.server.refusing
    bench.server.answered()
    assert not bench.server.refusing


def test_P2_what_a_refusing_server_loses_is_given_up_for_later_requests_went_elsewhere(
    bench: Bench,
) -> None:
    first, second = bench.peers
    bench.server.drain(second.mux)
    bench.send(Opcode.GET, b"get1")
    late = [bench.send(Opcode.GET, b"late", Lane(bench.server)) for _ in range(TIMEOUTS_IN_A_ROW)]
    first.read(1.0)
    bench.send(Opcode.SET, b"set1")
    for request in late:
        bench.server.expire(request, 2.0)
    assert bench.server.refusing
    bench.connect(3.0)
    bench.lose(first, 3.0)
    lost = Reason.UPSTREAM_LOST
    assert sorted(bench.owner.failures()[-2:]) == [(b"get1", lost), (b"set1", lost)]
    assert bench.counts.retries == {}
    assert bench.waits_nothing


def test_a_stalled_server_is_probed_once_an_interval() -> None:
    breaker = Breaker()
    assert not breaker.admits_probe(100.0), "it is closed"
    for _ in range(TIMEOUTS_IN_A_ROW):
        breaker.timed_out(10.0)
    assert not breaker.admits_probe(10.0 + PROBE_INTERVAL / 2)
    probes = [n / 10 for n in range(100, 151) if breaker.admits_probe(n / 10)]
    assert probes == [11.0, 12.0, 13.0, 14.0, 15.0]
    assert breaker.answered()
    assert not breaker.admits_probe(100.0)


def test_an_unreachable_server_is_not_probed_with_requests() -> None:
    breaker = Breaker()
    assert breaker.waited_out()
    assert not breaker.admits_probe(100.0)
    assert not breaker.answered(), "a late answer says nothing about reaching it"
    assert breaker.is_open
    assert breaker.connected()


@given(st.lists(st.sampled_from(("dial", "wait", "late", "warm", "answer")), max_size=80))
def test_each_step_says_whether_the_breaker_opened_or_closed(steps: list[str]) -> None:
    breaker = Breaker()
    for now, step in enumerate(steps):
        was_open = breaker.is_open
        steps_of: dict[str, Callable[[], bool]] = {
            "dial": breaker.dial_failed,
            "wait": breaker.waited_out,
            "late": partial(breaker.timed_out, float(now)),
            "warm": breaker.connected,
            "answer": breaker.answered,
        }
        turned = steps_of[step]()
        assert turned == (breaker.is_open != was_open)
        if turned:
            assert breaker.is_open == (step in ("dial", "wait", "late"))


def test_every_quiet_request_moves_as_its_loud_twin(bench: Bench) -> None:
    first, second = bench.peers
    quiet = sorted(QUIET - {Opcode.QUITQ})
    for opcode in quiet:
        bench.send(opcode, b"aaaa")
    bench.lose(first)
    second.read()
    assert [frame.opcode for frame in second.asked] == [LOUD[opcode] for opcode in quiet]
