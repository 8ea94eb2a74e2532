"""A connection to a server, from dialling to lost: real TLS over a network in memory.

The test is the server: it sees each frame that arrives and decides what is said, and when.
"""

import gc
import io
import itertools
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import authority
import pytest
from memory import Network, Peer, Transport
from twisted.internet.error import NoRouteError
from twisted.logger import Logger, globalLogPublisher, textFileLogObserver

from memtunnel.config import load
from memtunnel.core.breaker import PROBE_INTERVAL, TIMEOUTS_IN_A_ROW
from memtunnel.core.budget import Budget
from memtunnel.core.cluster import Cluster
from memtunnel.core.outcomes import Lost, Reason
from memtunnel.core.request import Request
from memtunnel.core.routing import router
from memtunnel.core.server import Server
from memtunnel.core.tunnel import FIRST_VERSION, Policy, Tunnel
from memtunnel.net.pool import Pool
from memtunnel.net.tls import Expectation, load_roots, make_context
from memtunnel.net.turn import Turn
from memtunnel.net.upstream import (
    FAREWELL,
    HEARTBEAT,
    PROBE_KEY,
    SILENCE,
    TRANSITIONS,
    State,
    Target,
    Upstream,
)
from memtunnel.ops.metrics import Metrics
from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode, Status
from memtunnel.wire.sasl import Credentials, Secret

PASSWORD = "canary-4711"
CREDENTIALS = Credentials(username="user1", password=Secret(PASSWORD))
MIB = 1024 * 1024
TIMEOUT = 5.0


class Keeper:
    """Remembers what it is told of a connection."""

    def __init__(self) -> None:
        self.warm: list[Upstream] = []
        self.lost: list[tuple[Lost, str, str]] = []

    def connection_warm(self, upstream: Upstream) -> None:
        self.warm.append(upstream)

    def connection_lost(self, upstream: Upstream, lost: Lost, words: str, kind: str) -> None:
        self.lost.append((lost, words, kind))


class Owner:
    """Remembers how its requests ended."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []

    def answered(self, request: Request, status: int, *_: Any) -> None:
        self.outcomes.append(status)

    def all_answered(self, requests: list[Request], *_: Any) -> None:
        self.outcomes += [Status.OK] * len(requests)

    def failed(self, request: Request, reason: Reason, now: float) -> None:
        self.outcomes.append(reason)

    def unserved(self, request: Request, now: float) -> None:
        self.outcomes.append("unserved")

    def growing(self, request: Request, size: int) -> None:
        """Not looked at here."""


class Bench:
    """One connection, and all that is around it."""

    def __init__(
        self,
        root: authority.Pair,
        pair: authority.Pair,
        *,
        credentials: Credentials | None = CREDENTIALS,
    ) -> None:
        self.network = Network()
        self.turn = Turn(self.network)
        self.metrics = Metrics(version="1", python="3", twisted="26", openssl="3", reactor="none")
        self.counts = self.metrics.server("mc")
        budget = Budget(256 * MIB)
        self.server = Server("mc", self.counts, budget)
        self.policy = Policy()
        self.tunnel = Tunnel(
            self.policy,
            Cluster([self.server], router("modula", ["mc"])),
            budget,
            self.metrics,
            lambda: None,
        )
        self.keeper = Keeper()
        self.target = Target(
            host="localhost",
            port=11219,
            expectation=Expectation(make_context(load_roots(root.pem)), "localhost"),
            credentials=credentials,
            connect_timeout=TIMEOUT,
            max_value_size=MIB,
            address="localhost:11219",
        )
        self.upstream = Upstream(
            self.target,
            self.server,
            self.tunnel,
            self.keeper,
            self.counts,
            self.network,
            self.turn,
            77,
        )
        self.pair = pair
        self.owner = Owner()

    # Steps of a connection's life

    def dial(self) -> None:
        self.upstream.dial()

    def accept(self) -> None:
        """TCP is there; the TLS of the server has not moved."""
        self.transport = Transport(self.network)
        self.network.waiting[0].accept(self.transport)

    def shake_hands(self) -> None:
        self.peer = Peer()
        self.network.serve(self.transport, self.pair, self.peer)
        self.network.settle()

    def log_in(self) -> None:
        (login,) = self.peer.asked()
        assert login.opcode == Opcode.SASL_AUTH
        self.says(binary.answer(login.opcode, login.opaque))

    def probe(self) -> None:
        version, noop = self.peer.asked()
        assert (version.opcode, noop.opcode) == (Opcode.VERSION, Opcode.NOOP)
        self.says(
            binary.answer(version.opcode, version.opaque, value=b"1.6.18"),
            binary.answer(noop.opcode, noop.opaque),
        )

    def make_warm(self) -> "Bench":
        self.dial()
        self.accept()
        self.shake_hands()
        self.log_in()
        self.probe()
        assert self.state is State.WARM
        self.transport.events.clear()
        return self

    # What happens

    def says(self, *frames: bytes) -> None:
        self.peer.says(b"".join(frames))
        self.network.settle()

    def ask(self, opcode: int = Opcode.GET, size: int = 0) -> Request:
        extras = bytes(8) if opcode == Opcode.SET else b""
        frame = binary.request(opcode, b"key", extras=extras, value=bytes(size))
        request = Request(
            self.owner, None, opcode, bytes(4), frame, len(frame), self.network.seconds()
        )
        self.upstream.mux.send(request)
        self.network.settle()
        return request

    def pass_time(self, seconds: float, each: Callable[[], Any] = int) -> None:
        """Let seconds pass, with the look at connections that the service takes."""

        def tick() -> None:
            each()
            self.upstream.tick(self.network.seconds())

        self.network.pass_time(seconds, 0.25, tick)

    @property
    def state(self) -> State:
        return self.upstream.state

    @property
    def lost(self) -> list[Lost]:
        return [lost for lost, _, _ in self.keeper.lost]


@pytest.fixture
def bench(root: authority.Pair, good_pair: authority.Pair) -> Bench:
    return Bench(root, good_pair)


# The table of states


@pytest.mark.parametrize(("state", "after"), list(itertools.product(State, State)))
def test_every_move_is_in_the_table_or_refused(bench: Bench, state: State, after: State) -> None:
    bench.upstream.state = state
    if after in TRANSITIONS[state]:
        bench.upstream._move(after)
        assert bench.state is after
    else:
        with pytest.raises(AssertionError, match=f"{state} -> {after}"):
            bench.upstream._move(after)
        assert bench.state is state


def test_the_table_goes_forward_only() -> None:
    order = list(State)
    assert set(TRANSITIONS) == set(order)
    for state, following in TRANSITIONS.items():
        assert all(order.index(after) > order.index(state) for after in following)
        assert (State.LOST in following) is (state is not State.LOST)
    assert [state for state in State if State.WARM in TRANSITIONS[state]] == [State.PROBE]
    assert [state for state in State if State.PROBE in TRANSITIONS[state]] == [
        State.HANDSHAKE,
        State.LOGIN,
    ]


# From dialling to warm


def test_p8_is_warm_only_after_login_and_noop(bench: Bench) -> None:
    def not_warm(state: State) -> None:
        assert bench.state is state
        assert not bench.keeper.warm
        assert not bench.server.connections

    bench.dial()
    not_warm(State.DIALLING)
    bench.accept()
    not_warm(State.HANDSHAKE)
    bench.shake_hands()
    not_warm(State.LOGIN)
    bench.log_in()
    not_warm(State.PROBE)
    version, noop = bench.peer.asked()
    bench.says(binary.answer(Opcode.VERSION, version.opaque, value=b"1.6.18"))
    not_warm(State.PROBE)
    bench.says(binary.answer(Opcode.NOOP, noop.opaque))
    assert bench.state is State.WARM
    assert bench.keeper.warm == [bench.upstream]
    assert not bench.network.getDelayedCalls()
    phases = {name: one.counts for name, one in bench.counts.connect_duration.items()}
    assert {name: sum(counts) for name, counts in phases.items()} == dict.fromkeys(phases, 1)


def test_sends_the_login_and_nothing_else(bench: Bench) -> None:
    bench.dial()
    bench.accept()
    bench.shake_hands()
    (login,) = bench.peer.asked()
    assert (login.opcode, login.key) == (Opcode.SASL_AUTH, b"PLAIN")
    assert login.value == b"\0user1\0" + PASSWORD.encode()


def test_without_a_login_the_probe_comes_first(
    root: authority.Pair, good_pair: authority.Pair
) -> None:
    bench = Bench(root, good_pair, credentials=None)
    bench.dial()
    bench.accept()
    bench.shake_hands()
    assert bench.state is State.PROBE
    bench.probe()
    assert bench.state is State.WARM


def test_p8_writes_nothing_when_tcp_is_there(bench: Bench) -> None:
    transport = Transport(bench.network)
    transport.transport = transport  # type: ignore[attr-defined]
    transport.connect(bench.upstream)
    bench.network.settle()
    bench.upstream.tick(bench.network.seconds() + 1)
    bench.network.settle()
    assert transport.writes == []
    assert "no-delay" in transport.events


def test_no_application_byte_while_the_handshake_runs(bench: Bench) -> None:
    bench.dial()
    bench.accept()
    bench.pass_time(TIMEOUT - 1)
    assert bench.transport.writes
    assert all(data[0] == 0x16 for data in bench.transport.writes), "not only handshake records"


def test_a_check_that_fails_unexpectedly_refuses(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(connection: Any) -> None:
        raise KeyError("what nobody thought of")

    monkeypatch.setattr(bench.upstream._handshake, "verify", broken)
    bench.dial()
    bench.accept()
    bench.shake_hands()
    assert bench.lost == [Lost.CERTIFICATE_CHAIN]
    assert "nobody thought of" in bench.keeper.lost[0][1]
    assert bench.peer.received == b""
    assert "abort" in bench.transport.events


def test_the_name_is_checked_again_after_openssl(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(bench.upstream._handshake), "_opinion", lambda *_: True, raising=True)
    bench.upstream._handshake._expectation = replace(
        bench.target.expectation, name="mc1.example.com"
    )
    bench.dial()
    bench.accept()
    bench.shake_hands()
    assert bench.lost == [Lost.CERTIFICATE_NAME]
    assert bench.peer.received == b""


def test_a_wrong_login_is_refused(bench: Bench) -> None:
    bench.dial()
    bench.accept()
    bench.shake_hands()
    (login,) = bench.peer.asked()
    bench.says(binary.refusal(login.opcode, login.opaque, Status.AUTH_FAILED))
    assert bench.lost == [Lost.LOGIN_REFUSED]
    assert "abort" in bench.transport.events
    assert not bench.keeper.warm
    assert not bench.network.getDelayedCalls()


@pytest.mark.parametrize("status", [Status.AUTH_FAILED, Status.TEMPORARY_FAILURE])
def test_p8_a_noop_that_fails_makes_nothing_warm(bench: Bench, status: Status) -> None:
    bench.dial()
    bench.accept()
    bench.shake_hands()
    bench.log_in()
    _, noop = bench.peer.asked()
    # VERSION's answer is owed, too; what counts is the NOOP's.
    bench.says(binary.refusal(noop.opcode, noop.opaque, status))
    assert bench.lost == [Lost.LOGIN_LOST]
    assert not bench.keeper.warm


STAGES = ["names", "tcp", "tls", "login", "probe"]


@pytest.mark.parametrize("stage", STAGES)
def test_one_deadline_covers_the_whole_set_up(bench: Bench, stage: str) -> None:
    if stage == "names":
        bench.network.nameResolver.addresses = None
    steps = [bench.dial, bench.accept, bench.shake_hands, bench.log_in]
    for step in steps[: max(1, STAGES.index(stage))]:
        step()
        bench.pass_time(0.5)
    bench.pass_time(TIMEOUT - 0.25 - (bench.network.seconds() - bench.upstream.began))
    assert bench.lost == []
    bench.pass_time(0.5)
    assert bench.lost == [Lost.SETUP_TIMEOUT]
    assert not bench.network.getDelayedCalls()
    assert not bench.network.waiting
    if stage in STAGES[2:]:
        assert "abort" in bench.transport.events


def test_a_warm_connection_has_no_deadline(bench: Bench) -> None:
    bench.make_warm()
    bench.pass_time(TIMEOUT + 1)
    assert bench.state is State.WARM


def test_a_name_that_is_not_found(bench: Bench) -> None:
    bench.network.nameResolver.addresses = []
    bench.dial()
    assert bench.lost == [Lost.DNS]
    assert not bench.network.getDelayedCalls()


@pytest.mark.parametrize(
    ("problem", "lost"), [(None, Lost.CONNECT_REFUSED), (NoRouteError(), Lost.UNREACHABLE)]
)
def test_a_dial_that_fails(bench: Bench, problem: Exception | None, lost: Lost) -> None:
    bench.dial()
    bench.network.waiting[0].refuse(problem)
    bench.pass_time(1)
    assert bench.lost == [lost]
    assert not bench.network.getDelayedCalls()


def test_of_two_addresses_the_first_to_answer_is_taken(bench: Bench) -> None:
    bench.network.nameResolver.addresses = ["127.0.0.1", "127.0.0.2"]
    bench.dial()
    bench.pass_time(0.25)
    first, second = bench.network.dials
    second.accept()
    assert bench.state is State.HANDSHAKE
    assert not first.open


@pytest.mark.parametrize("where", [State.HANDSHAKE, State.LOGIN, State.PROBE, State.WARM])
@pytest.mark.parametrize("how", ["finish", "reset"])
def test_a_connection_that_the_server_ends(bench: Bench, where: State, how: str) -> None:
    steps = [bench.dial, bench.accept, bench.shake_hands, bench.log_in, bench.probe]
    for step in steps[: 2 + [State.HANDSHAKE, State.LOGIN, State.PROBE, State.WARM].index(where)]:
        step()
    assert bench.state is where
    getattr(bench.transport, how)()
    bench.network.settle()
    # Without TLS's own goodbye the end of the stream may be anybody's doing.
    assert bench.lost == [Lost.RESET]
    assert not bench.network.getDelayedCalls()
    assert not bench.server.connections


@pytest.mark.parametrize("how", ["reset", "finish", "distrust", "no trust"])
def test_p6_openssl_keeps_nothing_of_a_lost_connection_until_python_collects_garbage(
    bench: Bench, root: authority.Pair, how: str
) -> None:
    gc.collect()
    gc.disable()
    try:
        bench.dial()
        bench.accept()
        connection = weakref.ref(bench.upstream.transport._tlsConnection)
        if how == "no trust":
            bench.pair = authority.issue("elsewhere.example", issuer=root)
        bench.shake_hands()
        if how == "distrust":
            bench.log_in()
            bench.probe()
            bench.says(b"no answer at all" * 2)
        elif how != "no trust":
            getattr(bench.transport, how)()
        bench.pass_time(3)
        assert len(bench.lost) == 1
        assert connection() is None
    finally:
        gc.enable()


def test_a_server_that_says_goodbye(bench: Bench) -> None:
    bench.make_warm()
    bench.peer.transport.loseConnection()
    bench.network.settle()
    assert bench.lost == [Lost.CLOSED]


# The version


@pytest.mark.parametrize("version", [b"1.6.18", b"1.4.5_4_gaa7839e", b"3.0.0", b"1.6.18-beta"])
def test_a_version_is_learnt(bench: Bench, version: bytes) -> None:
    say_version(bench, binary.answer(Opcode.VERSION, bytes(4), value=version))
    assert bench.tunnel.version == version


@pytest.mark.parametrize(
    "reply",
    [
        binary.answer(Opcode.VERSION, bytes(4), value=value)
        for value in (
            b"0.1.0",
            b"256.1.2",
            b"2024.1.2",
            b"",
            b"1.6",
            b"v1.6.18",
            b"1.6.18 x",
            b"1.6.18\n",
            b"1.6.18" + b"0" * 26,
        )
    ]
    + [binary.answer(Opcode.VERSION, bytes(4), Status.UNKNOWN_COMMAND, value=b"1.6.18")],
)
def test_a_strange_version_is_not(bench: Bench, reply: bytes) -> None:
    say_version(bench, reply)
    assert bench.tunnel.version == FIRST_VERSION


def say_version(bench: Bench, reply: bytes) -> None:
    """The server answers the probe, VERSION with this."""
    bench.dial()
    bench.accept()
    bench.shake_hands()
    bench.log_in()
    version, noop = bench.peer.asked()
    bench.says(reply[:12] + version.opaque + reply[16:], binary.answer(noop.opcode, noop.opaque))
    assert bench.state is State.WARM


# Heartbeat and silence


def test_a_noop_after_ten_seconds_without_traffic(bench: Bench) -> None:
    bench.make_warm()
    bench.pass_time(HEARTBEAT)
    assert bench.peer.asked() == []
    bench.pass_time(0.5)
    (noop,) = bench.peer.asked()
    assert noop.opcode == Opcode.NOOP
    bench.says(binary.answer(noop.opcode, noop.opaque))
    bench.pass_time(HEARTBEAT - 1)
    assert bench.peer.asked() == []
    assert bench.state is State.WARM


def test_traffic_is_a_heartbeat_too(bench: Bench) -> None:
    bench.make_warm()
    for _ in range(10):
        bench.pass_time(HEARTBEAT / 2)
        bench.ask()
        (frame,) = bench.peer.asked()
        assert frame.opcode == Opcode.GET
        bench.says(binary.answer(frame.opcode, frame.opaque, extras=bytes(4)))


def test_a_heartbeat_that_is_not_answered_is_silence(bench: Bench) -> None:
    bench.make_warm()
    bench.pass_time(HEARTBEAT + SILENCE)
    assert bench.lost == []
    bench.pass_time(1)
    assert bench.lost == [Lost.SILENT]


def test_a_second_of_silence_with_answers_owed_aborts(bench: Bench) -> None:
    bench.make_warm()
    bench.ask()
    bench.pass_time(SILENCE)
    assert bench.lost == []
    bench.pass_time(0.5)
    assert bench.lost == [Lost.SILENT]
    assert bench.owner.outcomes == [Reason.UPSTREAM_LOST]
    assert "abort" in bench.transport.events
    assert not bench.server.connections


def test_silence_after_idleness_counts_from_the_request(bench: Bench) -> None:
    bench.make_warm()
    bench.pass_time(HEARTBEAT - 1)
    bench.ask()
    bench.pass_time(SILENCE)
    assert bench.lost == []


def test_requests_that_keep_coming_do_not_hide_silence(bench: Bench) -> None:
    bench.make_warm()
    bench.pass_time(2 * SILENCE, bench.ask)
    assert bench.lost == [Lost.SILENT]


def test_one_answer_of_many_is_no_silence(bench: Bench) -> None:
    bench.make_warm()
    for _ in range(20):
        bench.ask()
    owed = bench.peer.asked()

    def one() -> None:
        frame = owed.pop()
        bench.peer.says(binary.answer(frame.opcode, frame.opaque, extras=bytes(4)))

    bench.pass_time(4.5, one)
    assert bench.lost == []
    bench.pass_time(1.5)
    assert bench.lost == [Lost.SILENT]


def test_a_slow_upload_is_no_silence(bench: Bench) -> None:
    bench.make_warm()
    bench.transport.takes = 0
    bench.ask(Opcode.SET, 500_000)
    bench.pass_time(20, lambda: bench.transport.take(5_000))
    assert bench.transport.unsent > 50_000
    assert bench.lost == []
    bench.transport.take(0)
    bench.pass_time(2)
    assert bench.lost == [Lost.SILENT]


def test_an_upload_that_the_kernel_holds_has_time_to_arrive(bench: Bench) -> None:
    bench.make_warm()
    bench.ask(Opcode.SET, MIB)
    bench.pass_time(SILENCE + 0.75)
    assert bench.lost == []
    bench.pass_time(0.75)
    assert bench.lost == [Lost.SILENT]


# Distrust


@pytest.mark.parametrize("kind", ["magic", "length", "opaque", "opcode"])
def test_a_wrong_answer_aborts(bench: Bench, kind: str) -> None:
    bench.make_warm()
    bench.ask()
    bench.ask()
    first, second = bench.peer.asked()
    good = binary.answer(first.opcode, first.opaque, extras=bytes(4))
    bad = binary.answer(second.opcode, second.opaque, extras=bytes(4))
    bad = {
        "magic": b"\x80" + bad[1:],
        "length": bad[:8] + b"\xff" * 4 + bad[12:],
        "opaque": bad[:12] + b"\xde\xad\xbe\xef" + bad[16:],
        "opcode": bad[:1] + bytes([Opcode.DELETE]) + bad[2:],
    }[kind]
    bench.says(good + bad + binary.answer(second.opcode, second.opaque, extras=bytes(4)))
    assert bench.keeper.lost == [(Lost.DESYNC, "", kind)]
    assert bench.owner.outcomes == [Status.OK, Reason.UPSTREAM_LOST]
    assert "abort" in bench.transport.events
    assert bench.upstream.mux.load == 0


def test_nothing_is_taken_from_a_lost_connection(bench: Bench) -> None:
    bench.make_warm()
    bench.ask()
    (frame,) = bench.peer.asked()
    bench.upstream.close()
    bench.upstream.dataReceived(binary.answer(frame.opcode, frame.opaque))
    assert bench.owner.outcomes == [Reason.UPSTREAM_LOST]


# Back-pressure


def test_a_stalled_server_is_asked_by_the_tunnel_itself(bench: Bench) -> None:
    bench.make_warm()
    breaker = bench.server.breaker
    for _ in range(TIMEOUTS_IN_A_ROW):
        breaker.timed_out(bench.network.seconds())
    bench.server.refusing = True
    bench.peer.asked()
    bench.pass_time(PROBE_INTERVAL + 0.5)
    (probe,) = bench.peer.asked()
    assert (probe.opcode, probe.key) == (Opcode.GET, PROBE_KEY)
    assert bench.server.refusing
    bench.peer.says(binary.refusal(Opcode.GET, probe.opaque, Status.NOT_FOUND))
    bench.network.settle()
    assert not bench.server.refusing


def test_nothing_is_written_while_the_transport_has_enough(bench: Bench) -> None:
    bench.make_warm()
    bench.transport.takes = 0
    bench.ask(Opcode.SET, 200_000)
    written = len(bench.transport.writes)
    assert bench.transport.unsent > 200_000
    bench.ask()
    bench.ask()
    assert len(bench.transport.writes) == written
    assert bench.upstream.mux.load == 3
    assert bench.upstream.mux.in_flight == 1
    bench.transport.take()
    bench.network.settle()
    assert [frame.opcode for frame in bench.peer.asked()] == [Opcode.SET, Opcode.GET, Opcode.GET]


def test_a_turn_is_one_write(bench: Bench) -> None:
    bench.make_warm()
    written = len(bench.transport.writes)
    for _ in range(20):
        frame = binary.request(Opcode.GET, b"key")
        bench.upstream.mux.send(
            Request(bench.owner, None, Opcode.GET, bytes(4), frame, len(frame), 0.0)
        )
    bench.network.settle()
    assert len(bench.transport.writes) == written + 1
    assert len(bench.peer.asked()) == 20


# The end


def test_drains_until_nothing_is_in_flight(bench: Bench) -> None:
    bench.make_warm()
    bench.ask()
    bench.upstream.drain()
    assert bench.state is State.DRAINING
    bench.pass_time(0.5)
    assert bench.lost == []
    (frame,) = bench.peer.asked()
    bench.says(binary.answer(frame.opcode, frame.opaque, extras=bytes(4)))
    assert bench.owner.outcomes == [Status.OK]
    bench.pass_time(0.25)
    assert bench.lost == [Lost.RETIRED]
    bench.network.settle()
    assert bench.peer.lost
    assert "abort" not in bench.transport.events
    assert not bench.network.getDelayedCalls()


def test_a_server_that_does_not_answer_goodbye_is_left(bench: Bench) -> None:
    bench.make_warm()
    bench.peer.far.reading = False
    bench.upstream.close()
    assert bench.lost == [Lost.SHUTDOWN]
    bench.network.pass_time(FAREWELL / 2)
    assert bench.transport.connected
    bench.network.pass_time(FAREWELL)
    assert bench.transport.events[-2:] == ["abort", "lost"]
    assert not bench.network.getDelayedCalls()


@pytest.mark.parametrize("steps", range(1, 6))
def test_stopping_leaves_nothing_behind_at_any_time(bench: Bench, steps: int) -> None:
    for step in [bench.dial, bench.accept, bench.shake_hands, bench.log_in, bench.probe][:steps]:
        step()
    bench.upstream.close()
    bench.pass_time(2 * FAREWELL)
    assert bench.lost == [Lost.SHUTDOWN]
    assert not bench.network.getDelayedCalls()
    assert not bench.network.waiting


# Secrets


def test_p7_the_password_is_shown_nowhere(bench: Bench) -> None:
    heard = io.StringIO()
    observer = textFileLogObserver(heard)
    globalLogPublisher.addObserver(observer)
    try:
        pool = Pool(
            bench.target,
            bench.server,
            bench.tunnel.cluster,
            bench.tunnel,
            bench.counts,
            2,
            bench.network,
            bench.turn,
            Random(1),
            Logger(namespace="memtunnel"),
        )
        bench.make_warm()
        config = load(
            {"server": ["localhost:11219"]},
            {"MEMTUNNEL_USERNAME": "user1", "MEMTUNNEL_PASSWORD": PASSWORD},
        )
        assert config.credentials == CREDENTIALS
        things = [
            config,
            bench.upstream,
            bench.target,
            bench.policy,
            bench.tunnel,
            pool,
            CREDENTIALS,
            CREDENTIALS.password,
            bench.upstream._handshake,
            bench.target.expectation,
        ]
        for thing in things:
            Logger().warn("{thing} {thing!r}", thing=thing)
            logging.getLogger().warning("%s %r", thing, thing)
            print(repr(thing), str(thing), f"{thing}", file=heard)
    finally:
        globalLogPublisher.removeObserver(observer)
    text = heard.getvalue()
    assert "***" in text
    assert "canary" not in text
