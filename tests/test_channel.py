"""The tunnel and its workers: messages over a socket pair, and ports that are shared."""

import pickle
import socket
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from memtunnel.channel import Ask, Begin, Channel, Drain, Said, Stop, attach
from memtunnel.config import load
from memtunnel.net.loop import drive
from memtunnel.net.transports import SendAtOnceReactor
from memtunnel.net.turn import Turn

CONFIG = load(
    {"tls-name": ["a=b"], "ca-file": None},
    {"MEMTUNNEL_SERVER": "a,c:1=name", "MEMTUNNEL_USERNAME": "u", "MEMTUNNEL_PASSWORD": "p"},
)
MESSAGES = [
    Begin(config=CONFIG, roots=(b"PEM",), max_clients=3, sockets=((4, socket.AF_INET),)),
    Ask(number=1, description=(("pid", "1"),)),
    Said(level="warn", words="words\N{PILE OF POO}"),
    Drain(),
    Stop(),
]


@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_messages_arrive_whole_and_in_order(step: int) -> None:
    told: list[Any] = []
    sending, receiving = (Channel(told.append, lambda: None) for _ in range(2))
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
    channel = Channel(ends.append, lambda: ends.append(None))
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
        turn(reactor)
    assert told == MESSAGES[:1]
    assert sorted(ends) == ["one", "other"]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_shared_port_takes_one_client_in_a_turn(
    family: socket.AddressFamily, reactor: EPollReactor, tmp_path: Path
) -> None:
    class Noting(Protocol):
        def connectionMade(self) -> None:
            made.append(self)

    made: list[Protocol] = []
    address: Any = ("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket")
    with socket.socket(family) as listening:
        listening.bind(address)
        listening.listen(8)
        listening.setblocking(False)  # as those are that Twisted has opened
        eager: Any = SendAtOnceReactor(reactor)
        factory = Factory.forProtocol(Noting)
        factory.noisy = False
        port = eager.adoptStreamPort(listening.fileno(), family, factory)
        clients = [socket.socket(family) for _ in range(3)]
        for client in clients:
            client.connect(listening.getsockname())
        for number in range(1, 4):
            reactor.runUntilCurrent()
            port.doRead()
            assert len(made) == number
        port.doRead()
        assert len(made) == 3
    for client in clients:
        client.close()
