"""The simulation finds nothing in the tunnel, and finds what is put into it.

Many more seeds are run by ``python -m simulation`` in this folder.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from simulation.__main__ import run, story

from memtunnel.core import lane, mux, server
from memtunnel.core.binary_session import BinarySession
from memtunnel.core.intake import Intake
from memtunnel.core.request import Request
from memtunnel.core.session import Session
from memtunnel.net.logins import Logins
from memtunnel.net.turn import Turn
from memtunnel.net.upstream import State, Target, Upstream
from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode
from memtunnel.wire.sasl import Credentials
from memtunnel.worker import Worker

SEEDS = range(30)
#: Seeds in which a bug has to show.
PATIENCE = range(1000, 1150)

plain_core = pytest.mark.skipif(
    not mux.__file__.endswith(".py"), reason="what is compiled cannot be changed"
)


def test_nothing_is_found() -> None:
    results = [run(seed) for seed in SEEDS]
    assert not [result for result in results if result.wrong]
    assert sum(result.checked for result in results) > 10_000


@pytest.mark.parametrize("seed", [1, 17])
def test_a_seed_is_always_the_same_story(seed: int) -> None:
    first = story(seed)
    assert len(first) > 100
    assert story(seed) == first


def retries_writes(patch: pytest.MonkeyPatch) -> None:
    changes = {Opcode.SET, Opcode.INCR, Opcode.APPEND, Opcode.DELETE}
    patch.setattr(server, "READS", binary.READS | changes)


def accepts_a_wrong_opaque(patch: pytest.MonkeyPatch) -> None:
    receive = mux.Multiplexer.receive

    def trusting(self: mux.Multiplexer, data: bytes, now: float) -> int:
        opaque = int.from_bytes(data[12:16], "big")
        if not self._buffer and self._entries and opaque not in self._entries:
            data = data[:12] + next(iter(self._entries)).to_bytes(4, "big") + data[16:]
        return receive(self, data, now)

    patch.setattr(mux.Multiplexer, "receive", trusting)


def accepts_a_wrong_opcode(patch: pytest.MonkeyPatch) -> None:
    receive = mux.Multiplexer.receive

    def trusting(self: mux.Multiplexer, data: bytes, now: float) -> int:
        request = self._entries.get(int.from_bytes(data[12:16], "big"))
        if not self._buffer and request is not None and data[0] == binary.ANSWER_MAGIC:
            data = data[:1] + bytes((binary.LOUD[request.opcode],)) + data[2:]
        return receive(self, data, now)

    patch.setattr(mux.Multiplexer, "receive", trusting)


def forgets_what_timed_out(patch: pytest.MonkeyPatch) -> None:
    abandon = mux.Multiplexer.abandon

    def forgetful(self: mux.Multiplexer, request: Request, now: float) -> None:
        abandon(self, request, now)
        for opaque, one in list(self._entries.items()):
            if one is request:
                del self._entries[opaque]
                self.load -= 1

    patch.setattr(mux.Multiplexer, "abandon", forgetful)


def delivers_late_answers(patch: pytest.MonkeyPatch) -> None:
    abandon = mux.Multiplexer.abandon

    def generous(self: mux.Multiplexer, request: Request, now: float) -> None:
        owner = request.owner
        abandon(self, request, now)
        request.owner = owner

    patch.setattr(mux.Multiplexer, "abandon", generous)


def lets_later_writes_overtake(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mux, "READS", frozenset(range(256)))


def watches_no_deadline(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(server.Server, "expire", lambda self, request, now: None)


def answers_noop_early(patch: pytest.MonkeyPatch) -> None:
    local = BinarySession._local

    def early(self: Any, opcode: int, opaque: bytes, frame: bytes, now: float) -> None:
        if opcode == Opcode.NOOP:
            self.out.append(binary.answer(opcode, opaque))
            self.tunnel.ready.append(self)
        else:
            local(self, opcode, opaque, frame, now)

    patch.setattr(BinarySession, "_local", early)


def says_quiet_success(patch: pytest.MonkeyPatch) -> None:
    settle = BinarySession._settle

    def loudly(self: Any, request: Request, frame: bytes, status: int, now: float) -> None:
        if not frame and request.opcode == Opcode.SETQ:
            frame = binary.answer(request.opcode, request.opaque)
        settle(self, request, frame, status, now)

    patch.setattr(BinarySession, "_settle", loudly)


def uses_a_connection_before_its_noop(patch: pytest.MonkeyPatch) -> None:
    def hasty(self: Any) -> None:
        self._move(State.PROBE)
        self._move(State.WARM)
        self.was_warm = True
        self.warm_since = self._seconds()
        self._stop_clock()
        self._keeper.connection_warm(self)

    patch.setattr(Upstream, "_probe", hasty)


def writes_before_the_handshake(patch: pytest.MonkeyPatch) -> None:
    made = Upstream.connectionMade

    def hasty(self: Upstream) -> None:
        made(self)
        self.transport.write(b"early")

    patch.setattr(Upstream, "connectionMade", hasty)


def keeps_what_it_reserved(patch: pytest.MonkeyPatch) -> None:
    clear = Intake.clear

    def greedy(self: Intake) -> None:
        self._reserved = 0
        clear(self)

    patch.setattr(Intake, "clear", greedy)


def moves_on_while_something_is_in_flight(patch: pytest.MonkeyPatch) -> None:
    send = lane.Lane.send

    def restless(self: lane.Lane, request: Request, now: float) -> None:
        mux = self.server.choose()
        if mux is not None and not self.waiting:
            self.mux = mux
        send(self, request, now)

    patch.setattr(lane.Lane, "send", restless)


def moves_back_to_a_server_that_has_returned(patch: pytest.MonkeyPatch) -> None:
    def anywhere(self: Session, request: Request, now: float) -> bool:
        lane, frame = request.lane, request.frame
        assert lane is not None
        assert frame is not None
        servers = self.cluster.servers
        for index in self.cluster.router.order_of(binary.key_of(frame)):
            if self.tunnel.policy.failover and not servers[index].refusing:
                lane.server.counts.failovers += 1
                request.lane = self._open_lane(index)
                request.lane.send(request, now)
                return True
        return False

    patch.setattr(Session, "fail_over", anywhere)


def sends_keys_to_any_server(patch: pytest.MonkeyPatch) -> None:
    def any_lane(self: Session, key: bytes) -> lane.Lane:
        return self._open_lane(len(key) % len(self._lanes))

    patch.setattr(Session, "_lane_of", any_lane)


def forgets_what_is_compared(patch: pytest.MonkeyPatch) -> None:
    send_all = mux.Multiplexer.send_all

    def careless(self: mux.Multiplexer, requests: list[Request], size: int) -> None:
        for request in requests:
            assert request.frame is not None
            request.frame = request.frame[:16] + bytes(8) + request.frame[24:]
        send_all(self, requests, size)

    patch.setattr(mux.Multiplexer, "send_all", careless)


def takes_any_login(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Credentials, "verify", lambda self, message: True)


def shares_connections_among_logins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Logins, "log_in", lambda self, credentials: self.default.cluster)


def closes_what_need_not_change(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Target, "__eq__", lambda self, other: self is other)


def closes_clients_when_settings_change(patch: pytest.MonkeyPatch) -> None:
    reload = Worker.reload

    def rude(self: Worker, *settings: Any) -> None:
        reload(self, *settings)
        for listener in self.listeners:
            for client in listener.clients:
                client.finish()

    patch.setattr(Worker, "reload", rude)


def asks_for_the_time_of_day(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Turn, "now", property(lambda self: time.time()))


BUGS = [
    retries_writes,
    accepts_a_wrong_opaque,
    accepts_a_wrong_opcode,
    forgets_what_timed_out,
    delivers_late_answers,
    lets_later_writes_overtake,
    watches_no_deadline,
    answers_noop_early,
    says_quiet_success,
    uses_a_connection_before_its_noop,
    writes_before_the_handshake,
    keeps_what_it_reserved,
    moves_on_while_something_is_in_flight,
    moves_back_to_a_server_that_has_returned,
    sends_keys_to_any_server,
    forgets_what_is_compared,
    takes_any_login,
    shares_connections_among_logins,
    closes_what_need_not_change,
    closes_clients_when_settings_change,
    asks_for_the_time_of_day,
]


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@plain_core
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_is_found(bug: Callable[[pytest.MonkeyPatch], None], patch: Any) -> None:
    bug(patch)
    assert any(run(seed).wrong for seed in PATIENCE)
