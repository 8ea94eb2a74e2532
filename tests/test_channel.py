"""The tunnel and its workers: messages over a socket pair, and ports that are shared."""

import contextlib
import pickle
import socket
import stat
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import servers
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from memtunnel.channel import (
    Ask,
    Begin,
    Channel,
    Drain,
    Finish,
    Reading,
    Reload,
    Room,
    Said,
    Settings,
    Stop,
    attach,
)
from memtunnel.config import load
from memtunnel.net.loop import drive
from memtunnel.net.transports import BACKLOG, SendAtOnceReactor
from memtunnel.net.turn import Turn
from memtunnel.ops import totals
from memtunnel.ops.metrics import ConnectionState, ServerState, State
from memtunnel.ops.slowlog import Entry
from memtunnel.worker import new_metrics

CONFIG = load(
    {"tls-name": ["a=b"], "ca-file": None},
    {"MEMTUNNEL_SERVER": "a,c:1=name", "MEMTUNNEL_USERNAME": "u", "MEMTUNNEL_PASSWORD": "p"},
)
STATE = State(
    ready=True,
    draining=False,
    client_paused=0,
    buffered_bytes=0,
    client_connections_max=3,
    config_last_reload_successful=True,
    servers={
        "name": ServerState(
            up=True,
            connections={"warm": 2},
            connections_target=2,
            in_flight=1,
            queued=0,
            tombstones=0,
            queue_oldest_seconds=0.5,
            breaker_open=False,
            verify="full",
            tls=("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
            certificate_not_after=2e9,
            pool=(
                ConnectionState(
                    number=1, state="warm", age=1.5, in_flight=2, round_trip=None, worker="1"
                ),
            ),
        )
    },
)
ENTRY = Entry(1.5, "get", "timeout", "failed", "name", 1, 0.4, 0.1, None, 34, "abcdef01")
MESSAGES = [
    Begin(
        settings=Settings(config=CONFIG, roots=(b"PEM",), max_clients=3),
        salt=b"salt",
        sockets=((4, socket.AF_INET),),
    ),
    Reload(settings=Settings(config=CONFIG, roots=None, max_clients=3)),
    Ask(number=1, description=(("pid", "1"),), slow=None),
    Reading(number=1, counts=totals.counts(new_metrics(None)), state=STATE, slow=(ENTRY,)),
    Room(left=False),
    Said(level="warn", format="{words}", fields={"words": "\N{PILE OF POO}"}),
    Drain(outlasting=True),
    Finish(),
    Stop(),
]


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_messages_arrive_whole_and_in_order(step: int) -> None:
    told: list[Any] = []
    sending: Any = Channel(told.append, lambda: None)
    receiving: Any = Channel(told.append, lambda: None)
    wire = StringTransport()
    sending.makeConnection(wire)
    receiving.makeConnection(StringTransport())
    for message in MESSAGES:
        sending.tell(message)
    sent = wire.value()
    for position in range(0, len(sent), step):
        receiving.dataReceived(sent[position : position + step])
    assert told == MESSAGES


def test_a_configuration_arrives_frozen() -> None:
    config = pickle.loads(pickle.dumps(CONFIG))
    assert config == CONFIG
    assert config.credentials == CONFIG.credentials
    with pytest.raises(FrozenInstanceError):
        config.workers = 2
    with pytest.raises(TypeError):
        config.tls_names["a"] = "c"


def test_what_is_told_to_one_that_is_gone_is_dropped() -> None:
    ends: list[None] = []
    channel: Any = Channel(ends.append, lambda: ends.append(None))
    channel.tell(Stop())  # not attached yet
    wire = StringTransport()
    channel.makeConnection(wire)
    channel.connectionLost(Failure(ConnectionDone()))
    channel.tell(Stop())
    assert (ends, wire.value()) == ([None], b"")


@pytest.fixture
def reactor() -> Iterator[EPollReactor]:
    """A reactor of this test's own, which it turns by hand."""
    reactor = EPollReactor()
    drive(reactor, Turn(reactor))
    yield reactor
    for reader in reactor.removeAll():
        reader.connectionLost(Failure(ConnectionDone()))
    reactor._poller.close()


def turn(reactor: EPollReactor) -> None:
    reactor.runUntilCurrent()
    reactor.doIteration(0.1)


def test_two_ends_of_a_socket_pair_hear_each_other_and_the_end(reactor: EPollReactor) -> None:
    told: list[Any] = []
    ends: list[str] = []
    one = Channel(told.append, lambda: ends.append("one"))
    other = Channel(told.append, lambda: ends.append("other"))
    for end, channel in zip(socket.socketpair(), (one, other), strict=True):
        with end:
            attach(reactor, end.fileno(), channel)
    one.tell(MESSAGES[0])
    one.close()
    for _ in range(20):
        if len(ends) < 2:
            turn(reactor)
    assert told == MESSAGES[:1]
    assert sorted(ends) == ["one", "other"]


class Clients(Factory):
    """Notes those that a port has taken."""

    noisy = False

    def __init__(self) -> None:
        self.made: list[Protocol] = []

    def buildProtocol(self, addr: Any) -> Protocol:
        self.made.append(Protocol())
        return self.made[-1]


@pytest.fixture(
    params=[socket.AF_INET, socket.AF_INET6, socket.AF_UNIX], ids=lambda family: family.name
)
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """A socket as the tunnel hands it to its workers."""
    family = request.param
    address: Any = str(tmp_path / "socket")
    if family != socket.AF_UNIX:
        address = ("127.0.0.1" if family == socket.AF_INET else "::1", 0)
    with socket.socket(family) as listening:
        try:
            listening.bind(address)
        except OSError as problem:
            pytest.skip(f"this machine has no {address}: {problem}")
        listening.listen(BACKLOG)
        # Or `accept` would wait where another one was faster.
        listening.setblocking(False)
        yield listening


def adopt(reactor: EPollReactor, listening: socket.socket) -> tuple[Any, list[Protocol]]:
    """A port of a worker that inherited this socket, and the clients that it has taken."""
    factory = Clients()
    eager: Any = SendAtOnceReactor(reactor)
    return eager.adoptStreamPort(listening.fileno(), listening.family, factory), factory.made


@contextlib.contextmanager
def connected(listening: socket.socket, number: int) -> Iterator[None]:
    """So many clients of it."""
    with contextlib.ExitStack() as stack:
        for _ in range(number):
            client = stack.enter_context(socket.socket(listening.family))
            client.settimeout(servers.PATIENCE)
            client.connect(listening.getsockname())
        yield


def test_a_shared_port_takes_one_client_in_a_turn(
    listening: socket.socket, reactor: EPollReactor
) -> None:
    port, made = adopt(reactor, listening)
    with connected(listening, 3):
        for number in range(1, 4):
            reactor.runUntilCurrent()
            port.doRead()
            assert len(made) == number
        port.doRead()
        assert len(made) == 3


def test_a_port_that_does_not_read_leaves_its_clients_to_the_others(
    listening: socket.socket, reactor: EPollReactor
) -> None:
    (full, none), (_, made) = adopt(reactor, listening), adopt(reactor, listening)
    full.stopReading()
    with connected(listening, 3):
        for _ in range(3):
            turn(reactor)
        assert (len(none), len(made)) == (0, 3)
        full.startReading()
    with connected(listening, 1):
        turn(reactor)
        assert len(none) + len(made) == 4


def test_who_closes_a_shared_port_closes_it_for_nobody_else(
    listening: socket.socket, reactor: EPollReactor
) -> None:
    (leaves, none), (_, made) = adopt(reactor, listening), adopt(reactor, listening)
    closed: list[object] = []
    leaves.stopListening().addBoth(closed.append)
    turn(reactor)
    assert closed == [None]
    with connected(listening, 1):
        turn(reactor)
        assert (len(none), len(made)) == (0, 1)


def test_a_unix_socket_stays_as_it_was_opened(reactor: EPollReactor, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(BACKLOG)
        listening.setblocking(False)
        adopt(reactor, listening)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_adopting_makes_no_queue_shorter(listening: socket.socket, reactor: EPollReactor) -> None:
    """Crowds come while all workers are busy; Twisted's own queue is for 50."""
    adopt(reactor, listening)
    with connected(listening, 100):
        pass  # a full queue lets nobody connect
