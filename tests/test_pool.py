"""The connections to one server: how many, when they are dialled, and what is said about it.

Real TLS over a network in memory, a clock that the test moves, and chance that the test decides.
"""

from dataclasses import replace
from random import Random
from typing import Any

import authority
import pytest
from memory import Dial, Network, Peer, Transport
from twisted.logger import LogEvent, Logger, formatEvent

from memtunnel.core.budget import Budget
from memtunnel.core.cluster import Cluster
from memtunnel.core.outcomes import Lost
from memtunnel.core.request import Request
from memtunnel.core.routing import router
from memtunnel.core.server import Server
from memtunnel.core.tunnel import Policy, Tunnel
from memtunnel.net.pool import AGE, FLAPPING, LOOK, REMINDER, Pool
from memtunnel.net.tls import Expectation, load_roots, make_context
from memtunnel.net.turn import Turn
from memtunnel.net.upstream import FAREWELL, State, Target, Upstream
from memtunnel.ops.metrics import Metrics
from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode, Status
from memtunnel.wire.sasl import Credentials, Secret

CREDENTIALS = Credentials(username="user1", password=Secret("canary-4711"))
#: What a dial that fails takes: the endpoint waits so long for a further address.
FAILING = 0.1


class Chance(Random):
    """Draws the same place of every range, and remembers the ranges."""

    def __init__(self, place: float) -> None:
        super().__init__(1)
        self.place = place
        self.ranges: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.ranges.append((a, b))
        return a + (b - a) * self.place


class Refusing(Peer):
    """A server that knows no login."""

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        for frame in self.asked():
            self.says(binary.refusal(frame.opcode, frame.opaque, Status.AUTH_FAILED))


class Bench:
    """A pool and the server that it dials, which is `up`, `down`, `silent` or `refusing`."""

    def __init__(
        self, root: authority.Pair, pair: authority.Pair, *, size: int = 2, place: float = 0.5
    ) -> None:
        self.network = Network()
        self.chance = Chance(place)
        self.lines: list[str] = []
        self.peers: list[Peer] = []
        self.how = "up"
        self._pair = pair
        metrics = Metrics(version="1", python="3", twisted="26", openssl="3", reactor="none")
        self.counts = metrics.server("mc")
        budget = Budget(1 << 28)
        self.server = Server("mc", self.counts, budget)
        policy = Policy()
        self.tunnel = Tunnel(
            policy, Cluster([self.server], router("modula", ["mc"])), budget, metrics, lambda: None
        )
        target = Target(
            host="localhost",
            port=11219,
            expectation=Expectation(make_context(load_roots(root.pem)), "localhost"),
            credentials=CREDENTIALS,
            connect_timeout=5.0,
            max_value_size=1 << 20,
            address="localhost:11219",
        )
        self.pool = Pool(
            target,
            self.server,
            self.tunnel.cluster,
            self.tunnel,
            self.counts,
            size,
            self.network,
            Turn(self.network),
            self.chance,
            Logger(namespace="memtunnel", observer=self._hear),
        )

    def _hear(self, event: LogEvent) -> None:
        self.lines.append(formatEvent(event))

    # The server

    def decide(self, dial: Dial) -> None:
        if self.how == "down":
            dial.refuse()
        elif self.how != "silent":
            peer = Peer(obliging=True) if self.how == "up" else Refusing()
            self.peers.append(peer)
            self.network.serve(dial.accept(Transport(self.network)), self._pair, peer)

    def decide_all(self) -> None:
        """The server does what it does, to each dial at most once."""
        for dial in self.network.waiting:
            self.decide(dial)
        self.network.settle()

    def cut_off(self) -> None:
        """All connections are reset."""
        for upstream in list(self.pool.upstreams):
            if upstream.state is not State.DIALLING:
                below(upstream).reset()
        self.network.settle()

    # Time

    def pass_time(self, seconds: float, step: float = 0.25) -> None:
        """Let seconds pass, with the look at connections that the service takes."""

        def tick() -> None:
            self.pool.tick(self.network.seconds())
            self.decide_all()

        self.network.pass_time(seconds, step, tick)

    def start(self) -> "Bench":
        self.pool.fill()
        self.decide_all()
        self.pass_time(1)
        assert self.warm == self.pool.size
        return self

    # What is looked at

    @property
    def warm(self) -> int:
        return self.pool.count(State.WARM)

    @property
    def dialled_at(self) -> list[float]:
        return [dial.at for dial in self.network.dials]

    def dials_since(self, when: float) -> int:
        return sum(1 for at in self.dialled_at if at >= when)


def below(upstream: Upstream) -> Transport:
    transport: Transport = upstream.transport.transport
    return transport


@pytest.fixture
def make_bench(root: authority.Pair, good_pair: authority.Pair) -> Any:
    def make(**options: Any) -> Bench:
        return Bench(root, good_pair, **options)

    return make


# Filling


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_so_many_are_warm_from_the_start(make_bench: Any, size: int) -> None:
    bench = make_bench(size=size)
    bench.start()
    assert len(bench.network.dials) == size
    assert len(bench.server.connections) == size
    assert bench.counts.connects == {"ok": size}
    assert bench.lines == ["mc: warm"]
    bench.pass_time(60)
    assert len(bench.network.dials) == size


def test_one_dial_at_a_time_until_one_has_succeeded_then_four(make_bench: Any) -> None:
    bench = make_bench(size=9)
    bench.how = "silent"
    bench.pool.fill()
    bench.pass_time(4)
    assert len(bench.network.dials) == 1
    bench.how = "up"
    bench.decide(bench.network.dials[0])
    bench.network.settle()
    assert bench.warm == 1
    assert len(bench.network.waiting) == 4
    for dial in bench.network.waiting[:2]:
        bench.decide(dial)
    bench.network.settle()
    assert bench.warm == 3
    assert len(bench.network.waiting) == 4


@pytest.mark.parametrize("how", ["down", "refusing", "silent"])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [1, 6])
def test_failing_dials_are_few(make_bench: Any, how: str, place: float, size: int) -> None:
    bench = make_bench(size=size, place=place)
    bench.how = how
    start = bench.network.seconds()
    bench.pool.fill()
    bench.decide_all()
    bench.pass_time(60, 0.05)
    times = [at - start for at in bench.dialled_at]
    assert sum(1 for at in times if at < 1.0) <= 3
    for second in range(1, 60):
        assert sum(1 for at in times if second <= at < second + 1) <= 1
    assert len(times) >= {"down": 18, "refusing": 3, "silent": 8}[how]
    assert not bench.pool.is_warm


def test_after_a_failure_there_is_one_dial_at_a_time_again(make_bench: Any) -> None:
    bench = make_bench(size=6).start()
    bench.how = "down"
    bench.cut_off()
    bench.pass_time(5)
    bench.how = "silent"
    bench.pass_time(2.5)
    assert len(bench.network.waiting) == 1


def test_waits_are_drawn_from_growing_ranges(make_bench: Any) -> None:
    bench = make_bench(place=0.0)
    bench.how = "down"
    bench.pool.fill()
    bench.pass_time(10)
    assert bench.chance.ranges[:7] == [
        (0.0, 0.2),
        (0.0, 0.4),
        (0.0, 0.8),
        (0.0, 1.6),
        (0.0, 2.0),
        (0.0, 2.0),
        (0.0, 2.0),
    ]


def test_after_a_success_the_waits_are_short_again(make_bench: Any) -> None:
    bench = make_bench(place=0.0)
    bench.how = "down"
    bench.pool.fill()
    bench.pass_time(5)
    bench.how = "up"
    bench.pass_time(5)
    assert bench.warm == 2
    bench.pass_time(FLAPPING)
    bench.how = "down"
    bench.chance.ranges.clear()
    bench.cut_off()
    bench.pass_time(0.5, 0.05)
    assert bench.chance.ranges[0] == (0.0, 0.2)


def test_a_refused_login_waits_five_to_sixty_seconds(make_bench: Any) -> None:
    bench = make_bench(place=0.0)
    bench.how = "refusing"
    bench.pool.fill()
    bench.pass_time(60)
    assert bench.chance.ranges[:6] == [
        (5.0, 10.0),
        (5.0, 20.0),
        (5.0, 40.0),
        (5.0, 60.0),
        (5.0, 60.0),
        (5.0, 60.0),
    ]
    gaps = [b - a for a, b in zip(bench.dialled_at, bench.dialled_at[1:], strict=False)]
    assert min(gaps) >= 5.0
    assert bench.counts.connects.keys() == {Lost.LOGIN_REFUSED}
    assert bench.pool.last_lost == "login_refused"


# Losing and replacing


def test_a_lost_connection_is_replaced(make_bench: Any) -> None:
    bench = make_bench(size=3).start()
    bench.pass_time(2 * FLAPPING)
    first = next(iter(bench.pool.upstreams))
    below(first).reset()
    bench.pass_time(1)
    assert bench.warm == 3
    assert first not in bench.pool.upstreams
    assert first.mux not in bench.server.connections
    assert bench.counts.disconnects == {"reset": 1}
    assert bench.counts.flaps == 0


def test_a_connection_that_is_lost_soon_is_flapping(make_bench: Any) -> None:
    bench = make_bench().start()
    below(next(iter(bench.pool.upstreams))).reset()
    bench.pass_time(2)
    assert bench.counts.flaps == 1
    assert bench.warm == 2


def test_a_desync_is_counted_by_kind(make_bench: Any) -> None:
    bench = make_bench().start()
    bench.peers[0].says(b"\x42" * 24)
    bench.pass_time(2)
    assert bench.counts.desync == {"magic": 1}
    assert bench.counts.disconnects == {"desync": 1}
    assert bench.warm == 2


def test_is_warm_again_soon_after_an_outage(make_bench: Any) -> None:
    bench = make_bench(place=1.0).start()
    bench.how = "down"
    bench.cut_off()
    bench.pass_time(60)
    assert bench.warm == 0
    bench.how = "up"
    bench.pass_time(2.5)
    assert bench.warm == 2


def test_three_failed_dials_open_the_breaker_and_a_warm_one_closes_it(make_bench: Any) -> None:
    bench = make_bench(place=0.0)
    bench.how = "down"
    bench.pool.fill()
    bench.pass_time(FAILING * 2, FAILING)
    assert not bench.server.refusing
    bench.pass_time(2)
    assert bench.server.refusing
    bench.how = "up"
    bench.pass_time(3)
    assert bench.pool.is_warm
    assert not bench.server.refusing


# Retirement


@pytest.mark.parametrize(("place", "age"), [(0.0, 0.9 * AGE), (0.5, AGE), (1.0, 1.1 * AGE)])
def test_ages_are_spread_by_a_tenth(make_bench: Any, place: float, age: float) -> None:
    bench = make_bench(place=place).start()
    for upstream in bench.pool.upstreams:
        assert upstream.retires - upstream.warm_since == pytest.approx(age)


def test_an_aged_connection_is_replaced_before_it_goes(make_bench: Any) -> None:
    bench = make_bench().start()
    first, second = bench.pool.upstreams
    second.retires += 100
    bench.pass_time(AGE - 10, 1.0)
    assert len(bench.network.dials) == 2
    bench.how = "silent"
    bench.pass_time(12)
    assert bench.warm == 2, "nothing goes before its replacement is there"
    assert len(bench.network.waiting) == 1
    bench.how = "up"
    bench.decide_all()
    assert bench.warm == 2
    assert first.state is State.DRAINING
    assert second.state is State.WARM
    bench.pass_time(1)
    assert first.state is State.LOST
    assert len(bench.pool.upstreams) == 2
    assert bench.counts.disconnects == {"retired": 1}
    assert not [line for line in bench.lines if "lost" in line]


def test_all_age_at_once_and_are_replaced_one_by_one(make_bench: Any) -> None:
    bench = make_bench(size=4).start()
    old = set(bench.pool.upstreams)
    for upstream in old:
        upstream.retires = bench.network.seconds()
    bench.pool.fill()
    while bench.network.waiting:
        assert len(bench.network.waiting) == 1
        assert bench.warm == 4
        bench.decide_all()
    bench.pass_time(1)
    assert bench.warm == 4
    assert not old & set(bench.pool.upstreams)


def test_one_that_drains_already_does_not_stand_for_the_next(make_bench: Any) -> None:
    bench = make_bench().start()
    first, second = bench.pool.upstreams
    bench.peers[0]._obliging = False  # its answer is owed for the rest of this test
    frame = binary.request(Opcode.GET, b"key")
    first.mux.send(Request(None, None, Opcode.GET, bytes(4), frame, len(frame), 0.0))
    bench.network.settle()
    for upstream in (first, second):
        upstream.retires = bench.network.seconds()
        bench.pool.fill()
        bench.decide_all()
        assert upstream.state is not State.WARM
    assert first.state is State.DRAINING
    assert bench.warm == 2


def test_an_aged_connection_stays_while_nothing_replaces_it(make_bench: Any) -> None:
    bench = make_bench().start()
    bench.how = "down"
    for upstream in bench.pool.upstreams:
        upstream.retires = bench.network.seconds()
    bench.pass_time(120)
    assert bench.warm == 2
    assert len(bench.server.connections) == 2


# What is said


def test_one_line_for_each_change_of_state(make_bench: Any) -> None:
    bench = make_bench().start()
    bench.pass_time(2 * FLAPPING)
    bench.how = "down"
    bench.cut_off()
    bench.pass_time(10)
    bench.how = "up"
    bench.pass_time(5)
    assert bench.lines == [
        "mc: warm",
        "mc: connection lost: reset (1 of 2 warm)",
        "mc: connection lost: reset (0 of 2 warm)",
        "mc: no connection: connect_refused (nothing listens there) (0 of 2 warm)",
        "mc: warm",
    ]


def test_a_long_outage_is_no_flood(make_bench: Any) -> None:
    bench = make_bench(size=8)
    bench.how = "down"
    bench.pool.fill()
    bench.pass_time(10 * REMINDER)
    assert len(bench.network.dials) > 250
    assert 9 <= len(bench.lines) <= 11
    assert set(bench.lines) == {
        "mc: no connection: connect_refused (nothing listens there) (0 of 8 warm)"
    }


def test_another_reason_is_said(make_bench: Any) -> None:
    bench = make_bench()
    bench.how = "down"
    bench.pool.fill()
    bench.pass_time(10)
    bench.how = "refusing"
    bench.pass_time(10)
    assert bench.lines == [
        "mc: no connection: connect_refused (nothing listens there) (0 of 2 warm)",
        "mc: no connection: login_refused (it does not take this user name and password)"
        " (0 of 2 warm)",
    ]


def test_a_server_that_throws_everybody_out_is_dialled_once_a_second(make_bench: Any) -> None:
    bench = make_bench(size=1, place=0.0)
    bench.pool.fill()
    start = bench.network.seconds()
    for _ in range(240):
        bench.pass_time(0.25)
        bench.cut_off()
    assert bench.counts.flaps > 50
    assert bench.dials_since(start + 1) <= 60
    assert bench.dials_since(start) - bench.dials_since(start + 1) <= 4
    bench.pass_time(3)
    assert bench.warm == 1


# Stopping


@pytest.mark.parametrize("how", ["up", "down", "silent", "refusing"])
def test_stopping_leaves_no_delayed_call(make_bench: Any, how: str) -> None:
    bench = make_bench(size=4)
    bench.how = how
    bench.pool.fill()
    bench.decide_all()
    bench.pass_time(1.5)
    dials = len(bench.network.dials)
    bench.pool.stop()
    assert not bench.pool.upstreams
    assert not bench.network.waiting
    bench.pass_time(FAREWELL + 0.25)
    assert not bench.network.getDelayedCalls()
    assert len(bench.network.dials) == dials
    assert all(peer.lost for peer in bench.peers)


def test_stopping_is_told_to_nobody(make_bench: Any) -> None:
    bench = make_bench().start()
    bench.pool.stop()
    assert bench.lines == ["mc: warm"]
    assert bench.counts.disconnects == {"shutdown": 2}
    assert not bench.server.connections


def test_the_pool_shows_no_password(make_bench: Any) -> None:
    bench = make_bench()
    bench.how = "refusing"
    bench.pool.fill()
    bench.pass_time(10)
    assert bench.lines
    shown = f"{bench.pool!r} {bench.pool} {bench.pool.target!r} {bench.lines}"
    assert "canary" not in shown


# Other settings


def other(bench: Bench, **changes: Any) -> Target:
    return replace(bench.pool.target, **changes)


ANOTHER = Credentials(username="user2", password=Secret("canary-4712"))


def test_another_size_is_followed_without_a_needless_dial(make_bench: Any) -> None:
    bench = make_bench(size=2).start()
    bench.pool.configure(bench.pool.target, 4)
    bench.pass_time(1)
    assert (bench.warm, len(bench.network.dials)) == (4, 4)
    bench.pool.configure(bench.pool.target, 1)
    bench.pass_time(2)
    assert (bench.warm, len(bench.pool.upstreams), len(bench.network.dials)) == (1, 1, 4)
    assert bench.counts.disconnects == {"retired": 3}


def test_what_changes_no_connection_closes_none(make_bench: Any) -> None:
    bench = make_bench(size=2).start()
    bench.pool.configure(other(bench, connect_timeout=1.0), 2)
    bench.pass_time(60)
    assert (bench.warm, len(bench.network.dials)) == (2, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"credentials": ANOTHER},
        {"credentials": None},
        {"port": 11220},
        {"max_value_size": 1 << 10},
        {"expectation": Expectation(make_context(None), "localhost", check_name=False)},
    ],
    ids=["login", "no login", "port", "size", "trust"],
)
def test_another_target_is_proven_before_the_former_connections_go(
    make_bench: Any, changes: dict[str, Any]
) -> None:
    bench = make_bench(size=2).start()
    before = list(bench.server.connections)
    bench.how = "silent"
    bench.pool.configure(other(bench, **changes), 2)
    bench.pass_time(3)
    assert bench.server.connections == before
    assert bench.pool.renewing
    if "expectation" in changes:
        return  # the system's roots do not trust the test's server
    bench.how = "up"
    bench.pass_time(10)
    assert not bench.pool.renewing
    assert bench.warm == len(bench.pool.upstreams) == 2
    assert not set(before) & set(bench.server.connections)
    assert bench.counts.disconnects == {"retired": 2}


def test_a_request_in_flight_ends_on_the_former_connection(make_bench: Any) -> None:
    bench = make_bench(size=1).start()
    (former,) = bench.pool.upstreams
    ask = Request(former, None, Opcode.GET, bytes(4), binary.request(Opcode.GET, b"k"), 25, 0.0)
    bench.peers[0]._obliging = False
    former.mux.send(ask)
    former.flush()
    bench.pool.configure(other(bench, credentials=ANOTHER), 1)
    bench.pass_time(0.5)
    assert bench.warm == 1
    assert former.state is State.DRAINING
    (frame,) = (one for one in bench.peers[0].asked() if one.opcode == Opcode.GET)
    bench.peers[0].says(binary.refusal(Opcode.GET, frame.opaque, Status.NOT_FOUND))
    bench.pass_time(0.5)
    assert former.state is State.LOST
    assert bench.counts.disconnects == {"retired": 1}


def test_while_another_login_is_refused_the_former_connections_serve(make_bench: Any) -> None:
    bench = make_bench(size=2, place=0.0).start()
    before = list(bench.server.connections)
    good = bench.pool.target
    bench.how = "refusing"
    bench.pool.configure(other(bench, credentials=ANOTHER), 2)
    bench.pass_time(30)
    assert bench.server.connections == before
    assert bench.pool.renewing
    assert not bench.server.refusing
    assert bench.lines[-1].startswith("mc: no connection: login_refused")
    dials = len(bench.network.dials)
    bench.pool.configure(good, 2)
    bench.pass_time(30)
    assert bench.server.connections == before
    assert not bench.pool.renewing
    assert len(bench.network.dials) == dials


def test_another_target_is_not_kept_waiting_by_what_befell_the_former(make_bench: Any) -> None:
    bench = make_bench(place=1.0)
    bench.how = "refusing"
    bench.pool.fill()
    bench.pass_time(30)
    assert bench.warm == 0
    bench.how = "up"
    bench.pool.configure(other(bench, credentials=ANOTHER), 2)
    bench.pass_time(0.5)
    assert bench.warm == 2


def test_a_retired_pool_dials_no_more_and_closes_what_is_idle(make_bench: Any) -> None:
    bench = make_bench(size=2).start()
    bench.pool.retire()
    bench.pass_time(60)
    assert not bench.pool.upstreams
    assert len(bench.network.dials) == 2
    assert bench.counts.disconnects == {"retired": 2}


# Without a login


def test_without_a_login_only_the_certificate_is_looked_at(make_bench: Any) -> None:
    bench = make_bench(size=1)
    bench.pool.configure(other(bench, credentials=None, only_trust=True), 1)
    bench.decide_all()
    bench.pass_time(1)
    assert bench.pool.is_warm
    assert not bench.server.connections
    assert [peer.received for peer in bench.peers] == [b""]
    bench.pass_time(4 * LOOK)
    assert len(bench.network.dials) == 5
    bench.how = "down"
    bench.pass_time(LOOK)
    assert not bench.pool.is_warm
    bench.how = "up"
    bench.pass_time(LOOK)
    assert bench.pool.is_warm
