"""Which logins there are upstream: made when they are needed, bounded, retired, remembered."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import authority
import pytest
from memory import Network, Peer, Transport
from twisted.logger import Logger

from memtunnel.core.budget import Budget
from memtunnel.core.cluster import Cluster, Verdict
from memtunnel.core.request import Request
from memtunnel.core.routing import router
from memtunnel.core.server import Server
from memtunnel.core.tunnel import Policy, Tunnel
from memtunnel.net.logins import IDLE, QUICK_TRIES, REMEMBERED, TRY_INTERVAL, Login, Logins, Plan
from memtunnel.net.pool import Pool
from memtunnel.net.tls import Expectation, load_roots, make_context
from memtunnel.net.turn import Turn
from memtunnel.net.upstream import SILENCE, State, Target
from memtunnel.ops.metrics import Metrics
from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode, Status
from memtunnel.wire.sasl import Credentials, Secret

OWN = Credentials(username="own", password=Secret("pass"))
RIGHT = [Credentials(username=f"user{n}", password=Secret("pass")) for n in range(9)]
WRONG = Credentials(username="user0", password=Secret("wrong"))


class Doorkeeper(Peer):
    """A server that knows passwords."""

    def __init__(self, wrong: set[Credentials]) -> None:
        super().__init__()
        self.wrong = wrong
        self.login: Credentials | None = None
        self.silent = False

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        for frame in () if self.silent else self.asked():
            status = Status.OK
            if frame.opcode == Opcode.SASL_AUTH:
                self.login = Credentials.of_message(frame.value)
                if self.login in self.wrong:
                    status = Status.AUTH_FAILED
            self.says(binary.answer(frame.opcode, frame.opaque, status))


class Bench:
    """Logins on servers ``mc0`` and so on, which `names` has the plan for."""

    def __init__(
        self, root: authority.Pair, pair: authority.Pair, *, servers: int = 1, most: int = 3
    ) -> None:
        self.network = Network()
        self.peers: list[Doorkeeper] = []
        self.wrong = {WRONG}
        self.up = True
        self.logged: list[Any] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self._pair = pair
        self._expectation = Expectation(make_context(load_roots(root.pem)), "localhost")
        self.metrics = Metrics(version="1", python="3", twisted="26", openssl="3", reactor="none")
        self.budget = Budget(1 << 28)
        plan = self.plan(*(f"mc{n}" for n in range(servers)))
        cluster = Cluster((), plan.router)
        self.tunnel = Tunnel(Policy(), cluster, self.budget, self.metrics, lambda: None)
        self.logins = Logins(OWN, cluster, plan, self._pool, most, self.network.seconds)
        self.logins.default.fill()
        self.pass_time(1)

    def plan(self, *names: str, size: int = 1) -> Plan:
        target = Target(
            host="localhost",
            port=11219,
            expectation=self._expectation,
            credentials=None,
            connect_timeout=5.0,
            max_value_size=1 << 20,
            address="localhost:11219",
        )
        return Plan(
            targets=dict.fromkeys(names, target), router=router("modula", names), pool_size=size
        )

    def _pool(
        self, name: str, target: Target, cluster: Cluster, size: int, former: Sequence[Pool]
    ) -> Pool:
        counts = self.metrics.server(name)
        return Pool(
            target,
            Server(name, counts, self.budget),
            cluster,
            self.tunnel,
            counts,
            size,
            self.network,
            Turn(self.network),
            Random(1),
            Logger(namespace="memtunnel", observer=self.logged.append),
            former,
        )

    def pass_time(self, seconds: float) -> None:
        def tick() -> None:
            now = self.network.seconds()
            for pool in self.logins.pools:
                pool.tick(now)
            self.logins.tidy(now)
            self.meanwhile()
            for dial in self.network.waiting:
                if self.up:
                    peer = Doorkeeper(self.wrong)
                    self.peers.append(peer)
                    self.network.serve(dial.accept(Transport(self.network)), self._pair, peer)
                else:
                    dial.refuse()
            self.network.settle()

        self.network.pass_time(seconds, 0.25, tick)

    def log_in(self, credentials: Credentials) -> Cluster:
        """A client comes with this login, and stays."""
        cluster = self.logins.log_in(credentials)
        assert cluster is not None
        cluster.clients += 1
        return cluster

    @property
    def connected(self) -> list[Credentials | None]:
        """The logins that the servers see now."""
        return [peer.login for peer in self.peers if not peer.lost]

    @property
    def all(self) -> list[Credentials | None]:
        return [login.credentials for login in self.logins]


@pytest.fixture
def make_bench(root: authority.Pair, good_pair: authority.Pair) -> Any:
    def make(**options: Any) -> Bench:
        return Bench(root, good_pair, **options)

    return make


def states(login: Login) -> list[State]:
    return [upstream.state for pool in login.pools for upstream in pool.upstreams]


def test_P9_each_login_has_connections_of_its_own_to_each_server(make_bench: Any) -> None:
    bench = make_bench(servers=2)
    one, other = bench.log_in(RIGHT[0]), bench.log_in(RIGHT[1])
    bench.pass_time(1)
    assert sorted(bench.connected, key=repr) == sorted([OWN, *RIGHT[:2]] * 2, key=repr)
    assert one.verdict is other.verdict is Verdict.ACCEPTED
    assert not {*one.servers} & {*other.servers}
    assert bench.logins.log_in(RIGHT[0]) is one


def test_P9_the_configured_login_is_a_clients_own_too_if_it_comes_with_it(make_bench: Any) -> None:
    bench = make_bench()
    cluster = bench.log_in(OWN)
    bench.pass_time(1)
    assert cluster is not bench.tunnel.cluster
    assert bench.connected == [OWN, OWN]
    bench.logins.configure(RIGHT[5], bench.plan("mc0"), [])
    bench.pass_time(2)
    assert sorted(bench.connected, key=repr) == [OWN, RIGHT[5]]
    assert bench.logins.log_in(OWN) is cluster


def test_the_same_name_with_another_password_is_another_login(make_bench: Any) -> None:
    bench = make_bench()
    right, wrong = bench.log_in(RIGHT[0]), bench.log_in(WRONG)
    bench.pass_time(1)
    assert right is not wrong
    assert (right.verdict, wrong.verdict) == (Verdict.ACCEPTED, Verdict.REFUSED)


def test_a_login_that_no_client_has_is_retired_after_a_while(make_bench: Any) -> None:
    bench = make_bench()
    cluster = bench.log_in(RIGHT[0])
    bench.pass_time(3 * IDLE)
    assert bench.all == [OWN, RIGHT[0]]
    cluster.clients -= 1
    bench.pass_time(IDLE - 1)
    cluster.clients += 1  # somebody comes back
    bench.pass_time(IDLE)
    cluster.clients -= 1
    bench.pass_time(IDLE - 1)
    assert bench.connected == [OWN, RIGHT[0]]
    bench.pass_time(3)
    assert bench.all == [OWN]
    assert bench.connected == [OWN]
    assert len(bench.logins.pools) == 1
    assert bench.log_in(RIGHT[0]) is not cluster


def test_a_refused_login_is_remembered_for_a_moment_and_not_dialled(make_bench: Any) -> None:
    bench = make_bench()
    cluster = bench.log_in(WRONG)
    bench.pass_time(1)
    assert cluster.verdict is Verdict.REFUSED
    cluster.clients -= 1
    dials = len(bench.network.dials)
    for _ in range(8):
        # One that tries again and again is no reason to dial, nor to remember it for longer.
        assert bench.log_in(WRONG) is cluster
        cluster.clients -= 1
        bench.pass_time(0.5)
    bench.pass_time(REMEMBERED)
    assert len(bench.network.dials) == dials
    assert bench.all == [OWN]
    bench.wrong.clear()
    again = bench.log_in(WRONG)
    bench.pass_time(1)
    assert again.verdict is Verdict.ACCEPTED


def test_a_login_that_is_refused_later_goes_on_trying_for_those_who_have_it(
    make_bench: Any,
) -> None:
    bench = make_bench()
    cluster = bench.log_in(RIGHT[0])
    bench.pass_time(30)
    bench.wrong.add(RIGHT[0])
    (pool,) = (pool for login in bench.logins for pool in login.pools if login.cluster is cluster)
    for upstream in list(pool.upstreams):
        upstream.transport.transport.reset()
    bench.pass_time(30)
    assert cluster.verdict is Verdict.REFUSED
    assert bench.all == [OWN, RIGHT[0]]
    bench.wrong.clear()
    bench.pass_time(90)
    assert cluster.verdict is Verdict.ACCEPTED


def test_an_unreachable_server_is_no_verdict(make_bench: Any) -> None:
    bench = make_bench()
    bench.up = False
    cluster = bench.log_in(RIGHT[0])
    bench.pass_time(10)
    assert cluster.verdict is Verdict.NONE
    bench.up = True
    bench.pass_time(5)
    assert cluster.verdict is Verdict.ACCEPTED


def test_there_are_at_most_so_many_and_those_without_clients_go_first(make_bench: Any) -> None:
    bench = make_bench(most=3)
    clusters = [bench.log_in(credentials) for credentials in RIGHT[:3]]
    bench.pass_time(1)
    assert bench.logins.log_in(RIGHT[3]) is None
    clusters[2].clients -= 1
    bench.pass_time(1)
    clusters[1].clients -= 1
    bench.pass_time(1)
    bench.log_in(RIGHT[3])
    bench.pass_time(1)
    assert bench.all == [OWN, RIGHT[0], RIGHT[1], RIGHT[3]]
    assert bench.connected == [OWN, RIGHT[0], RIGHT[1], RIGHT[3]]


def test_one_that_is_tried_takes_no_place_from_one_that_was_accepted(make_bench: Any) -> None:
    bench = make_bench(most=2)
    bench.log_in(RIGHT[0]).clients -= 1
    bench.pass_time(1)
    bench.up = False
    for credentials in RIGHT[1:3]:
        bench.log_in(credentials).clients -= 1
    assert bench.logins.log_in(RIGHT[3]) is None
    assert bench.all == [OWN, *RIGHT[:3]]
    bench.pass_time(REMEMBERED)
    assert bench.all == [OWN, RIGHT[0]]
    assert bench.logins.log_in(RIGHT[3]) is not None


def guess(number: int) -> Credentials:
    return Credentials(username="user0", password=Secret(f"guess{number}"))


@contextmanager
def guessing(bench: Bench, clients: int) -> Iterator[list[Cluster]]:
    """So many clients try passwords; `judged` goes on with the next where one was refused."""
    clusters: list[Cluster] = []
    number = 0

    def go_on() -> None:
        nonlocal number
        for cluster in list(clusters):
            if cluster.verdict is not Verdict.NONE:
                cluster.clients -= 1
                clusters.remove(cluster)
        while len(clusters) < clients:
            bench.wrong.add(guess(number))
            cluster = bench.logins.log_in(guess(number))
            number += 1
            if cluster is None:
                break
            cluster.clients += 1
            clusters.append(cluster)

    bench.meanwhile = go_on
    go_on()
    yield clusters
    bench.meanwhile = lambda: None


def test_whoever_guesses_passwords_makes_the_tunnel_dial_once_a_second(make_bench: Any) -> None:
    bench = make_bench(most=4)
    before = len(bench.network.dials)
    with guessing(bench, clients=10):
        bench.pass_time(60)
    assert 60 <= len(bench.network.dials) - before <= 60 + QUICK_TRIES + 10
    assert len(bench.logins.pools) < 60


def test_guesses_write_no_line_for_each(make_bench: Any) -> None:
    bench = make_bench(most=4)
    bench.logged.clear()
    with guessing(bench, clients=3):
        bench.pass_time(30)
    assert bench.logged == []


def test_a_login_that_was_accepted_is_kept_whoever_guesses(make_bench: Any) -> None:
    bench = make_bench(most=2)
    cluster = bench.log_in(RIGHT[0])
    bench.pass_time(1)
    cluster.clients -= 1
    with guessing(bench, clients=20):
        bench.pass_time(IDLE / 2)
        assert bench.logins.log_in(RIGHT[0]) is cluster
        assert len(cluster.servers[0].connections) == 1


def test_a_new_login_gets_its_turn_among_guesses(make_bench: Any) -> None:
    bench = make_bench(most=2)
    with guessing(bench, clients=20) as guesses:
        bench.pass_time(30)
        assert len(guesses) == 20
        cluster = bench.log_in(RIGHT[0])
        bench.pass_time(21)
        assert cluster.verdict is Verdict.ACCEPTED


def test_a_guess_whose_client_stays_is_dialled_no_more(make_bench: Any) -> None:
    bench = make_bench(most=4)
    clusters = []
    for number in range(20):
        bench.wrong.add(guess(number))
        clusters.append(bench.log_in(guess(number)))
        bench.pass_time(0.25)
    bench.pass_time(60)
    assert {cluster.verdict for cluster in clusters} == {Verdict.REFUSED}
    dials = len(bench.network.dials)
    bench.pass_time(120)
    assert len(bench.network.dials) == dials
    assert bench.all == [OWN]


def test_a_login_whose_clients_come_and_go_keeps_its_turn_among_guesses(make_bench: Any) -> None:
    bench = make_bench(most=4)
    with guessing(bench, clients=20):
        bench.pass_time(10)
        for _ in range(40):
            cluster = bench.log_in(RIGHT[0])
            bench.pass_time(0.75)
            cluster.clients -= 1
            bench.pass_time(0.25)
            if cluster.proven:
                break
        assert cluster.proven


def test_no_more_are_in_use_than_there_may_be_whatever_was_refused(make_bench: Any) -> None:
    bench = make_bench(most=2)
    for number in range(12):
        bench.wrong.add(guess(number))
        if cluster := bench.logins.log_in(guess(number)):
            cluster.clients += 1
            bench.pass_time(0.25)
            cluster.clients -= 1
    for credentials in RIGHT:
        if cluster := bench.logins.log_in(credentials):
            cluster.clients += 1
    bench.pass_time(30)
    assert sum(login.cluster.proven for login in bench.logins) - 1 <= 2
    assert len(bench.connected) <= 3


def test_many_right_logins_at_once_are_tried_at_once(make_bench: Any) -> None:
    bench = make_bench(most=9)
    clusters = [bench.log_in(credentials) for credentials in RIGHT]
    bench.pass_time(0.5)
    assert {cluster.verdict for cluster in clusters} == {Verdict.ACCEPTED}


def test_guesses_of_clients_that_come_and_go_let_nobody_wait_for_long(make_bench: Any) -> None:
    bench = make_bench(most=4)
    with guessing(bench, clients=20):
        bench.pass_time(5)
    for number in range(1000, 3000):
        cluster = bench.logins.log_in(guess(number))
        if cluster is None:
            bench.pass_time(0.25)
    right = None
    while right is None:
        bench.pass_time(0.25)
        right = bench.logins.log_in(RIGHT[0])
    right.clients += 1
    bench.pass_time(30)
    assert right.verdict is Verdict.ACCEPTED


def test_guesses_that_wait_and_whose_clients_left_are_soon_forgotten(make_bench: Any) -> None:
    bench = make_bench(most=4)
    with guessing(bench, clients=20) as guesses:
        bench.pass_time(10)
        dials = len(bench.network.dials)
    for cluster in guesses:
        cluster.clients -= 1
    bench.pass_time(60)
    assert bench.all == [OWN]
    assert len(bench.network.dials) - dials <= REMEMBERED / TRY_INTERVAL + 1


def test_P2_a_server_that_is_back_is_dialled_when_its_former_connections_are_gone(
    make_bench: Any,
) -> None:
    bench = make_bench(servers=2)
    former = bench.tunnel.cluster.servers[1]
    (mux,) = former.connections
    frame = binary.request(Opcode.SET, b"k", extras=bytes(8))
    mux.send(Request(None, None, Opcode.SET, bytes(4), frame, len(frame), 0.0))
    bench.peers[1].silent = True
    bench.logins.configure(OWN, bench.plan("mc0"), [])
    bench.logins.configure(OWN, bench.plan("mc0", "mc1"), [])
    server = bench.tunnel.cluster.servers[1]
    dials = len(bench.network.dials)
    assert server is not former
    bench.pass_time(0.5)
    assert (len(bench.network.dials), server.connections) == (dials, [])
    assert mux.load == 1
    bench.pass_time(2 * SILENCE)
    assert mux.load == 0
    assert len(server.connections) == 1


def test_a_login_that_is_used_is_kept_however_short_its_clients_stay(make_bench: Any) -> None:
    bench = make_bench()
    cluster = bench.logins.log_in(RIGHT[0])
    for _ in range(int(IDLE)):
        bench.pass_time(2)
        assert bench.logins.log_in(RIGHT[0]) is cluster
    assert len(bench.network.dials) == 2


def test_P9_a_login_counts_as_in_use_from_when_a_server_has_taken_it(make_bench: Any) -> None:
    bench = make_bench()
    cluster = bench.tunnel.cluster
    bench.logins.configure(WRONG, bench.plan("mc0"), [])
    bench.pass_time(5)
    assert cluster.credentials == OWN
    assert bench.connected == [OWN]
    bench.wrong.clear()
    bench.pass_time(60)
    assert cluster.credentials == WRONG
    assert bench.connected == [WRONG]


def test_a_login_is_in_use_at_once_where_none_was(make_bench: Any) -> None:
    bench = make_bench()
    bench.up = False
    for upstream in list(bench.logins.default.pools[0].upstreams):
        upstream.transport.transport.reset()
    bench.pass_time(1)
    bench.logins.configure(RIGHT[0], bench.plan("mc0"), [])
    assert bench.tunnel.cluster.credentials == RIGHT[0]


def test_other_settings_make_nobody_dial_for_a_login_that_was_refused(make_bench: Any) -> None:
    bench = make_bench()
    bench.log_in(WRONG).clients -= 1
    bench.pass_time(1)
    dials = len(bench.network.dials)
    bench.logins.configure(OWN, bench.plan("mc0", "mc1"), [])
    bench.pass_time(60)
    assert bench.all == [OWN]
    assert len(bench.network.dials) == dials + 1


def test_statistics_name_a_server_by_where_it_is_now(make_bench: Any) -> None:
    bench = make_bench()
    (server,) = bench.tunnel.cluster.servers
    assert server.address == "localhost:11219"
    plan = bench.plan("mc0")
    moved = {
        name: replace(target, port=4711, address="localhost:4711")
        for name, target in plan.targets.items()
    }
    bench.logins.configure(OWN, replace(plan, targets=moved), [])
    assert server.address == "localhost:4711"


def test_other_servers_are_followed_by_all_logins(make_bench: Any) -> None:
    bench = make_bench(servers=2)
    cluster = bench.log_in(RIGHT[0])
    bench.pass_time(1)
    stays, goes = cluster.servers
    kept = list(stays.connections)
    bench.logins.configure(OWN, bench.plan("mc2", "mc0"), [])
    bench.pass_time(2)
    assert [server.name for server in cluster.servers] == ["mc2", "mc0"]
    assert [server.index for server in cluster.servers] == [0, 1]
    assert cluster.servers[1] is stays
    assert stays.connections == kept
    assert (goes.refusing, goes.connections) == (True, [])
    assert sorted(bench.connected, key=repr) == sorted([OWN, RIGHT[0]] * 2, key=repr)
    assert len(bench.network.dials) == 6
    assert len(bench.logins.pools) == 4


def test_another_configured_login_leaves_clients_own_alone(make_bench: Any) -> None:
    bench = make_bench()
    bench.log_in(RIGHT[0])
    bench.pass_time(1)
    bench.logins.configure(RIGHT[5], bench.plan("mc0"), [])
    bench.pass_time(2)
    assert bench.connected == [RIGHT[0], RIGHT[5]]
    assert len(bench.network.dials) == 3


def test_the_end_closes_all(make_bench: Any) -> None:
    bench = make_bench(servers=2)
    bench.log_in(RIGHT[0])
    bench.pass_time(1)
    bench.logins.configure(OWN, bench.plan("mc0"), [])
    bench.logins.stop()
    bench.pass_time(3)
    assert bench.connected == []
    assert not any(states(login) for login in bench.logins)
