"""A client's connection: when it is read from, what is written, and how it ends.

The session and the tunnel are real, the transport and the clock are not; the test plays the
server at the far side of a multiplexer.
"""

import socket
from collections.abc import Callable
from typing import Any

import pytest
from memory import Network, Transport
from twisted.logger import capturedLogs, formatEvent

from memtunnel.core.answers import CHOKED_BYTES, FULL_BYTES, FULL_REQUESTS
from memtunnel.core.budget import Budget
from memtunnel.core.cluster import Cluster
from memtunnel.core.mux import Multiplexer
from memtunnel.core.routing import router
from memtunnel.core.server import Server
from memtunnel.core.tunnel import Policy, Tunnel
from memtunnel.net.downstream import (
    LINGER,
    PARTIAL_TIMEOUT,
    UNREAD_TIMEOUT,
    Downstream,
    Listener,
)
from memtunnel.net.turn import Turn
from memtunnel.ops.logs import fields
from memtunnel.ops.metrics import Metrics
from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode, Status

MIB = 1024 * 1024


def make_metrics() -> Metrics:
    return Metrics(version="1", python="3", twisted="26", openssl="3", reactor="none")


class Bench:
    """A listener with one server behind it."""

    def __init__(self, *, max_buffer: int = 256 * MIB) -> None:
        self.network = Network()
        self.turn = Turn(self.network)
        self.metrics = make_metrics()
        self.budget = Budget(max_buffer)
        self.server = Server("mc", self.metrics.server("mc"), self.budget)
        self.mux = Multiplexer(0, lambda: None, MIB)
        self.server.add(self.mux, self.network.seconds())
        self.tunnel = Tunnel(
            Policy(),
            Cluster([self.server], router("modula", ["mc"])),
            self.budget,
            self.metrics,
            lambda: None,
        )
        self.room = True
        self.listener = Listener(self.tunnel, self.turn, self.network, lambda: self.room)
        self.listener.counts = self.metrics.listener("127.0.0.1:11211")

    @property
    def counts(self) -> Any:
        return self.listener.counts

    def client(self, **options: Any) -> Transport:
        transport = Transport(self.network, **options)
        return transport.connect(self.listener.buildProtocol(None))

    def settle(self) -> None:
        self.network.settle()

    def pass_time(self, seconds: float, each: Callable[[], Any] = int) -> None:
        """Let seconds pass, with the look at the clients that the service takes each second."""

        def tick() -> None:
            each()
            self.listener.tick(self.network.seconds())
            self.tunnel.flush()

        self.network.pass_time(seconds, 1.0, tick)

    def asked(self) -> list[binary.Frame]:
        """What was sent to the server since the last look."""
        return binary.split(self.mux.take(self.network.seconds()))[0]

    def answers(self, *frames: bytes) -> None:
        """The server's answers come in one read."""
        self.mux.receive(b"".join(frames), self.network.seconds())
        self.tunnel.flush()

    def hits(self, value: bytes = b"value") -> int:
        """The server answers all it was asked: gets hit, the rest succeeds."""
        asked = self.asked()
        if asked:
            self.answers(*[hit(frame, value) for frame in asked])
        return len(asked)

    def misses(self) -> int:
        asked = self.asked()
        if asked:
            self.answers(
                *[binary.refusal(one.opcode, one.opaque, Status.NOT_FOUND) for one in asked]
            )
        return len(asked)


def hit(frame: binary.Frame, value: bytes = b"value") -> bytes:
    if frame.opcode in binary.GETS:
        return binary.answer(frame.opcode, frame.opaque, extras=bytes(4), value=value)
    return binary.answer(frame.opcode, frame.opaque)


def get(number: int = 0, opcode: int = Opcode.GET) -> bytes:
    return binary.request(opcode, b"key%d" % number, opaque=number.to_bytes(4, "big"))


def set_(number: int = 0, size: int = 5, opcode: int = Opcode.SET) -> bytes:
    opaque = number.to_bytes(4, "big")
    return binary.request(
        opcode, b"key%d" % number, extras=bytes(8), value=bytes(size), opaque=opaque
    )


def noop(number: int = 0) -> bytes:
    return binary.request(Opcode.NOOP, opaque=number.to_bytes(4, "big"))


def numbers(data: bytes) -> list[int]:
    """The opaques of whole answers, as numbers."""
    frames, rest = binary.split(data)
    assert not rest
    return [int.from_bytes(frame.opaque, "big") for frame in frames]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# Reading and writing


@pytest.mark.parametrize("every", [0, 1, 7, 24])
def test_any_split_gives_the_same_requests(bench: Bench, every: int) -> None:
    client = bench.client()
    client.deliver(get(1) + set_(2, 100) + get(3), every=every)
    assert [frame.opcode for frame in bench.asked()] == [Opcode.GET, Opcode.SET, Opcode.GET]


def test_one_write_for_all_answers_of_a_read(bench: Bench) -> None:
    clients = [bench.client(), bench.client()]
    for client in clients:
        client.deliver(b"".join(get(number) for number in range(10)))
    assert bench.hits() == 20
    for client in clients:
        assert len(client.writes) == 1
        assert numbers(client.read()) == list(range(10))


def test_what_the_tunnel_answers_itself_is_one_write_too(bench: Bench) -> None:
    client = bench.client()
    client.deliver(noop(1) + binary.request(Opcode.VERSION) + noop(2))
    assert len(client.writes) == 1
    assert len(binary.split(client.read())[0]) == 3


def test_frames_beyond_sixty_four_wait_for_the_next_turn(bench: Bench) -> None:
    client = bench.client()
    client.deliver(b"".join(get(number) for number in range(200)))
    assert len(bench.asked()) == 64
    assert not client.reading
    bench.settle()
    assert len(bench.asked()) == 136
    assert client.reading
    assert bench.listener.paused == 0


def test_bytes_are_counted_both_ways(bench: Bench) -> None:
    client = bench.client()
    client.deliver(get(1), every=3)
    bench.hits()
    assert bench.counts.received_bytes == len(get(1))
    assert bench.counts.sent_bytes == len(client.read())


# Back-pressure


def test_pauses_at_so_many_requests_owed_and_resumes(bench: Bench) -> None:
    client = bench.client()
    client.deliver(b"".join(get(number) for number in range(FULL_REQUESTS)))
    bench.settle()
    assert not client.reading
    assert bench.listener.paused == 1
    client.deliver(get(5000))
    assert bench.hits() == FULL_REQUESTS
    bench.settle()
    assert client.reading
    assert bench.listener.paused == 0
    assert bench.hits() == 1
    assert len(numbers(client.read())) == FULL_REQUESTS + 1


@pytest.mark.parametrize("opcode", [Opcode.SETQ, Opcode.GETKQ])
def test_a_long_silent_batch_goes_on(bench: Bench, opcode: int) -> None:
    """Answers that the client asked not to hear make room as well as those that are written."""
    client = bench.client()
    make = set_ if opcode == Opcode.SETQ else get
    count = 3 * FULL_REQUESTS
    client.deliver(b"".join(make(n, opcode=opcode) for n in range(count)) + noop(7), every=65536)
    served = 0
    for _ in range(100):
        bench.settle()
        served += bench.hits() if opcode == Opcode.SETQ else bench.misses()
    assert served == count
    assert numbers(client.read()) == [7]
    assert client.reading


def test_a_silent_batch_that_times_out_goes_on(bench: Bench) -> None:
    client = bench.client()
    count = FULL_REQUESTS + 10
    client.deliver(b"".join(get(n, Opcode.GETQ) for n in range(count)) + noop(7))
    bench.settle()
    for _ in range(4):
        bench.network.advance(1)
        bench.tunnel.sweep(bench.network.seconds())
        bench.settle()
    assert numbers(client.read()) == [7]
    assert client.reading


def test_pauses_at_four_mebibytes_unread_and_resumes(bench: Bench) -> None:
    client = bench.client(takes=0)
    client.deliver(b"".join(get(number) for number in range(5)))
    bench.hits(bytes(MIB - 1024))
    assert client.unsent > FULL_BYTES
    assert not client.reading
    assert bench.listener.paused == 1
    assert bench.budget.used == client.unsent
    client.take()
    bench.settle()
    assert client.reading
    assert bench.listener.paused == 0
    assert bench.budget.used == 0
    assert numbers(client.read()) == [0, 1, 2, 3, 4]


def test_a_little_unread_does_not_pause(bench: Bench) -> None:
    client = bench.client(takes=100)
    client.deliver(get(1) + get(2))
    bench.hits(bytes(MIB))
    assert client.unsent > MIB
    assert client.reading


def test_a_hit_past_the_bound_is_a_miss(bench: Bench) -> None:
    client = bench.client(takes=0)
    client.deliver(b"".join(get(number) for number in range(40)))
    asked = bench.asked()
    for frame in asked:
        bench.answers(hit(frame, bytes(MIB - 1024)))
    assert CHOKED_BYTES < client.unsent < CHOKED_BYTES + 2 * MIB
    client.take()
    answers, _ = binary.split(client.read())
    assert [int.from_bytes(one.opaque, "big") for one in answers] == list(range(40))
    statuses = [one.status for one in answers]
    first_miss = statuses.index(Status.NOT_FOUND)
    assert 16 <= first_miss <= 18
    assert set(statuses[first_miss:]) == {Status.NOT_FOUND}
    assert bench.metrics.degraded_replies == {("get", "overloaded"): 40 - first_miss}


def test_when_all_clients_together_hold_too_much_a_hit_is_a_miss() -> None:
    bench = Bench(max_buffer=2 * MIB)
    slow = [bench.client(takes=0) for _ in range(3)]
    for client in slow:
        client.deliver(get(1) + get(2))
    for frame in bench.asked():
        bench.answers(hit(frame, bytes(MIB)))
    assert bench.budget.used < 5 * MIB
    assert bench.metrics.degraded_replies[("get", "overloaded")] > 0
    for client in slow:
        client.take()
        assert numbers(client.read()) == [1, 2]


def test_a_client_that_reads_is_not_choked_by_those_that_do_not() -> None:
    bench = Bench(max_buffer=MIB)
    bench.client(takes=0).deliver(get(1) + get(2))
    bench.hits(bytes(MIB))
    assert bench.budget.exhausted
    reader = bench.client()
    reader.deliver(get(3))
    bench.hits(b"value")
    (answer,) = binary.split(reader.read())[0]
    assert answer.status == Status.OK


def test_a_client_that_reads_nothing_is_aborted(bench: Bench) -> None:
    client = bench.client(takes=0)
    client.deliver(get(1))
    bench.hits()
    bench.pass_time(UNREAD_TIMEOUT - 1)
    assert client.connected
    bench.pass_time(3)
    assert client.events[-2:] == ["abort", "lost"]
    assert bench.counts.protocol_errors == {"unread": 1}
    assert bench.budget.used == 0


def test_a_client_that_reads_slowly_is_kept(bench: Bench) -> None:
    client = bench.client(takes=0)
    client.deliver(get(1))
    bench.hits(bytes(1000))
    bench.pass_time(3 * UNREAD_TIMEOUT, lambda: client.take(10))
    assert client.unsent
    assert client.connected


def test_a_client_that_has_read_all_may_be_idle_for_ever(bench: Bench) -> None:
    client = bench.client(takes=0)
    client.deliver(get(1))
    bench.hits()
    bench.pass_time(20)
    client.take()
    bench.pass_time(10 * UNREAD_TIMEOUT)
    assert client.connected


# The partial-frame timer


@pytest.mark.parametrize("size", [1, 23, 24, 27])
def test_half_a_frame_is_given_ten_seconds(bench: Bench, size: int) -> None:
    client = bench.client()
    client.deliver(get(1)[:size])
    bench.pass_time(PARTIAL_TIMEOUT)
    assert client.connected
    bench.pass_time(2)
    assert client.events[-2:] == ["abort", "lost"]
    assert bench.counts.protocol_errors == {"partial_frame": 1}
    assert not bench.asked()


def test_a_trickle_does_not_stop_the_partial_frame_timer(bench: Bench) -> None:
    client = bench.client()
    frame = list(set_(1, 1000))
    bench.pass_time(PARTIAL_TIMEOUT + 3, lambda: client.deliver(bytes([frame.pop(0)])))
    assert not client.connected


def test_each_frame_has_its_own_ten_seconds(bench: Bench) -> None:
    client = bench.client()
    client.deliver(get(1)[:10])
    bench.pass_time(8)
    client.deliver(get(1)[10:] + get(2)[:10])
    bench.pass_time(8)
    assert client.connected
    bench.pass_time(4)
    assert not client.connected


def test_the_partial_frame_timer_stands_still_while_we_do_not_read(bench: Bench) -> None:
    client = bench.client(takes=0)
    gets = b"".join(get(number) for number in range(5))
    client.deliver(gets + set_(9)[:30])
    bench.hits(bytes(MIB - 1024))
    assert not client.reading
    bench.pass_time(PARTIAL_TIMEOUT + 5)
    assert client.connected
    client.take()
    bench.settle()
    assert client.reading
    bench.pass_time(5)
    assert client.connected, "the time in which it was not read counted"
    client.deliver(set_(9)[30:])
    assert bench.hits() == 1
    assert numbers(client.read())[-1] == 9


# The end


def test_half_close_gets_all_answers_and_then_fin(bench: Bench) -> None:
    client = bench.client()
    client.deliver(get(1) + get(2))
    client.finish()
    bench.settle()
    assert "half-close" not in client.events
    bench.hits()
    assert numbers(client.read()) == [1, 2]
    bench.settle()
    assert client.events[-3:] == ["half-close", "lose", "lost"]
    assert not bench.listener.clients
    assert not bench.network.getDelayedCalls()


def test_half_close_with_nothing_owed_is_answered_at_once(bench: Bench) -> None:
    client = bench.client()
    client.finish()
    bench.settle()
    assert client.events[-3:] == ["half-close", "lose", "lost"]


def test_half_close_after_frames_that_still_wait(bench: Bench) -> None:
    client = bench.client()
    client.deliver(b"".join(get(number) for number in range(200)))
    client.finish()
    for _ in range(5):
        bench.settle()
        bench.hits()
    bench.settle()
    assert numbers(client.read()) == list(range(200))
    assert client.events[-1] == "lost"
    assert "abort" not in client.events


def test_half_close_waits_for_a_slow_reader(bench: Bench) -> None:
    client = bench.client(takes=0)
    client.deliver(get(1))
    client.finish()
    bench.hits(bytes(100_000))
    bench.pass_time(2 * LINGER)
    assert client.connected
    client.take()
    bench.settle()
    assert numbers(client.read()) == [1]
    assert client.events[-1] == "lost"


def test_quit_lingers_and_discards_what_still_comes(bench: Bench) -> None:
    client = bench.client()
    client.deliver(get(1) + binary.request(Opcode.QUIT, opaque=b"\0\0\0\2") + get(3))
    bench.hits()
    bench.settle()
    assert numbers(client.read()) == [1, 2]
    assert client.finished
    assert client.connected
    client.deliver(get(4))
    bench.network.pass_time(LINGER / 2)
    assert not bench.asked()
    assert not client.read()
    assert client.connected
    bench.network.pass_time(LINGER)
    assert client.events[-2:] == ["lose", "lost"]


def test_a_client_that_closes_after_us_is_not_waited_for(bench: Bench) -> None:
    client = bench.client()
    client.deliver(binary.request(Opcode.QUITQ))
    bench.settle()
    assert client.finished
    client.finish()
    bench.settle()
    assert not client.connected
    assert not bench.network.getDelayedCalls()


@pytest.mark.parametrize("tail", [get(2)[:30], b"\x00" * 24])
def test_lost_framing_is_answered_up_to_there_and_closed(bench: Bench, tail: bytes) -> None:
    client = bench.client()
    client.deliver(get(1) + b"\x42" + tail)
    bench.hits()
    bench.settle()
    assert numbers(client.read()) == [1]
    assert client.finished
    assert bench.counts.protocol_errors == {"magic": 1}


def test_the_first_byte_tells_the_protocol(bench: Bench) -> None:
    text, binary_client = bench.client(), bench.client()
    text.deliver(b"g")
    binary_client.deliver(get(1))
    text.deliver(b"et key\r\n")
    bench.hits()
    bench.settle()
    assert text.read() == b"VALUE key 0 5\r\nvalue\r\nEND\r\n"
    assert numbers(binary_client.read()) == [1]
    text.deliver(get(1) + b"\n")
    bench.settle()
    assert text.read() == b"ERROR\r\n"
    assert not text.finished


def test_the_tunnel_stops_after_what_was_read(bench: Bench) -> None:
    client = bench.client()
    client.deliver(get(1) + get(2)[:10])
    (downstream,) = bench.listener.clients
    downstream.finish()
    client.deliver(get(2)[10:] + get(3))
    assert bench.hits() == 1
    bench.settle()
    assert numbers(client.read()) == [1]
    assert client.finished


def test_a_stop_waits_for_the_frames_that_are_held_back(bench: Bench) -> None:
    client = bench.client()
    client.deliver(b"".join(get(number) for number in range(200)))
    (downstream,) = bench.listener.clients
    downstream.finish()
    client.deliver(get(999))
    while bench.hits():
        bench.settle()
    assert numbers(client.read()) == list(range(200))
    assert client.finished


@pytest.mark.parametrize("waiting", [0, FULL_REQUESTS, 3 * FULL_REQUESTS])
def test_what_had_arrived_at_a_stop_is_answered_and_what_comes_later_is_not(
    bench: Bench, waiting: int
) -> None:
    client = bench.client()
    client.deliver(b"".join(get(number) for number in range(waiting)))
    rest = range(waiting, waiting + 500)
    client.unseen = [get(number) for number in rest]
    (downstream,) = bench.listener.clients
    bench.settle()
    assert downstream.session.paused == (waiting > 0)
    downstream.finish()
    client.unseen.append(get(99_999))
    while bench.hits():
        bench.settle()
    bench.settle()
    assert numbers(client.read()) == list(range(rest.stop))
    assert client.finished
    assert client.unseen == [get(99_999)]


def test_a_client_that_leaves_is_forgotten(bench: Bench) -> None:
    client = bench.client(takes=0)
    client.deliver(set_(1) + get(2) + get(3)[:10])
    asked = bench.asked()
    client.reset()
    assert not bench.listener.clients
    assert bench.counts.connections == 0
    assert bench.counts.opened == 1
    assert bench.mux.tombstones == 2
    bench.answers(*map(hit, asked))
    assert bench.mux.load == 0
    assert bench.budget.used == 0
    assert not client.writes
    bench.settle()
    assert not bench.network.getDelayedCalls()


def test_a_client_that_leaves_while_paused(bench: Bench) -> None:
    client = bench.client(takes=0)
    client.deliver(b"".join(get(number) for number in range(5)))
    bench.hits(bytes(MIB))
    assert bench.listener.paused == 1
    client.reset()
    bench.settle()
    assert bench.listener.paused == 0
    assert bench.budget.used == 0


def test_a_client_that_leaves_while_frames_are_held(bench: Bench) -> None:
    client = bench.client()
    client.deliver(b"".join(set_(number) for number in range(100)))
    client.reset()
    bench.settle()
    assert bench.listener.paused == 0
    assert len(bench.asked()) == 64, "whole writes that were taken are still sent"


def test_a_client_over_the_limit_is_refused_and_said_once(bench: Bench) -> None:
    first = bench.client()
    bench.room = False
    with capturedLogs() as said:
        assert bench.listener.buildProtocol(None) is None
        assert bench.listener.buildProtocol(None) is None
    assert bench.counts.rejected == {"max_clients": 2}
    (line,) = said
    assert fields(line) == {"event": "refused", "listener": "", "reason": "max_clients"}
    assert formatEvent(line) == ": a client was refused: --max-clients is reached"
    first.deliver(get(1))
    assert bench.hits() == 1


# Acknowledgements


def acknowledged_by(bench: Bench, data: bytes) -> int:
    client = bench.client()
    before = client.handle.acknowledged
    client.deliver(data)
    bench.hits()
    return client.handle.acknowledged - before


@pytest.mark.parametrize(
    "data",
    [get(1, Opcode.GETQ), get(1, Opcode.GETKQ), set_(1, opcode=Opcode.SETQ), get(1) + get(2)[:9]],
    ids=["GETQ", "GETKQ", "SETQ", "half a frame"],
)
def test_acknowledges_at_once_where_the_client_will_send_more(bench: Bench, data: bytes) -> None:
    assert acknowledged_by(bench, data) == 1


@pytest.mark.parametrize(
    "data",
    [
        get(1),
        set_(1),
        noop(1),
        get(1, Opcode.GETQ) + get(2),
        get(1, Opcode.GETQ) + noop(2),
        b"".join(get(number) for number in range(65)),
    ],
    ids=["GET", "SET", "NOOP", "GETQ GET", "GETQ NOOP", "65 GETs"],
)
def test_spends_no_call_where_it_waits_for_an_answer(bench: Bench, data: bytes) -> None:
    assert acknowledged_by(bench, data) == 0


def test_a_noop_after_quiet_requests_is_the_end_of_it(bench: Bench) -> None:
    client = bench.client()
    client.deliver(get(1, Opcode.GETQ))
    before = client.handle.acknowledged
    client.deliver(noop(2))
    assert client.handle.acknowledged == before


def test_a_new_client_is_acknowledged_and_not_delayed(bench: Bench) -> None:
    client = bench.client()
    assert client.handle.acknowledged == 1
    assert "no-delay" in client.events


def test_a_unix_socket_has_no_such_options(bench: Bench) -> None:
    client = bench.client(family=socket.AF_UNIX)
    client.deliver(get(1, Opcode.GETQ))
    assert not client.handle.options
    assert "no-delay" not in client.events


def test_a_socket_that_is_going_takes_no_options(bench: Bench) -> None:
    client = bench.client()

    def broken(*_: int) -> None:
        raise OSError(22, "gone")

    client.protocol._quick = broken
    client.deliver(get(1, Opcode.GETQ) + get(2))
    assert bench.hits() == 2


def test_the_protocol_is_a_downstream(bench: Bench) -> None:
    assert isinstance(bench.client().protocol, Downstream)
