"""Transports that send at once, over real sockets of this machine."""

import errno
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import error, task
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from memtunnel.net import transports
from memtunnel.net.loop import drive
from memtunnel.net.transports import (
    BACKLOG,
    Client,
    Resolver,
    SendAtOnceReactor,
    UnixServer,
    addresses_of,
)
from memtunnel.net.transports import Server as TCPServer
from memtunnel.net.turn import Turn

PATIENCE = 10.0
LARGE = 8 * 1024 * 1024


@implementer(IHalfCloseableProtocol)
class Recording(Protocol):
    """Remembers what happens to it."""

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self.ended = False
        self.lost: Failure | None = None
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.factory.made.callback(self)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def readConnectionLost(self) -> None:
        self.ended = True

    def writeConnectionLost(self) -> None:
        """Not looked at here."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason
        self.gone.callback(None)


class Once(Factory):
    """Fires `made` with the protocol of the one connection that it has."""

    protocol = Recording
    noisy = False

    def __init__(self) -> None:
        self.made: Deferred[Any] = Deferred()


class Watched:
    """A socket whose sends are noted, and fail where `problem` says so."""

    def __init__(self, real: socket.socket) -> None:
        self._real = real
        self.sends = 0
        self.problem: OSError | None = None

    def send(self, data: Any) -> int:
        self.sends += 1
        if self.problem is not None:
            raise self.problem
        return self._real.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.fixture
def eager() -> SendAtOnceReactor:
    from twisted.internet import reactor

    return SendAtOnceReactor(reactor, Resolver(reactor))


@pytest_twisted.async_yield_fixture
async def accepted(eager: SendAtOnceReactor) -> AsyncIterator[tuple[Recording, socket.socket]]:
    """A connection that was accepted, and the far end as a blocking socket."""
    factory = Once()
    port = eager.listenTCP(0, factory, interface="127.0.0.1")
    far = socket.create_connection(("127.0.0.1", port.getHost().port), PATIENCE)
    near = await factory.made
    yield near, far
    far.close()
    if near.lost is None:
        near.transport.abortConnection()
        await near.gone
    await port.stopListening()


async def next_turn() -> None:
    from twisted.internet import reactor

    await task.deferLater(reactor, 0)


def read_all(far: socket.socket) -> bytes:
    data = bytearray()
    while chunk := far.recv(1 << 20):
        data += chunk
    return bytes(data)


def read_exactly(far: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (chunk := far.recv(1 << 20)):
        data += chunk
    return bytes(data)


def pattern(size: int) -> bytes:
    """Bytes that show where they belong."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4))


# Sending


@pytest_twisted.ensureDeferred
async def test_a_write_is_sent_before_it_returns(accepted: Any) -> None:
    near, far = accepted
    near.transport.write(b"hello")
    assert far.recv(100) == b"hello"
    assert near.transport.unsent == 0


@pytest_twisted.ensureDeferred
async def test_a_dialled_connection_sends_at_once_too(eager: SendAtOnceReactor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        where = f"tcp:127.0.0.1:{listening.getsockname()[1]}"
        near: Any = await clientFromString(eager, where).connect(Once())
        far, _ = listening.accept()
        far.settimeout(PATIENCE)
        with far:
            assert type(near.transport) is Client
            near.transport.write(b"hello")
            assert far.recv(100) == b"hello"
            near.transport.loseConnection()
            await near.gone


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest_twisted.ensureDeferred
async def test_what_the_kernel_does_not_take_follows_in_order(accepted: Any, kind: Any) -> None:
    near, far = accepted
    data = pattern(LARGE)
    near.transport.write(kind(data))
    assert 0 < near.transport.unsent < len(data)
    near.transport.write(kind(b"the tail"))
    near.transport.loseConnection()
    assert await deferToThread(read_all, far) == data + b"the tail"
    await near.gone
    assert near.lost.check(error.ConnectionDone)


@pytest_twisted.ensureDeferred
async def test_after_the_rest_has_gone_writes_are_sent_at_once_again(accepted: Any) -> None:
    near, far = accepted
    near.transport.write(bytes(LARGE))
    assert near.transport.unsent
    assert await deferToThread(read_exactly, far, LARGE) == bytes(LARGE)
    await next_turn()
    assert near.transport.unsent == 0
    near.transport.write(b"at once")
    assert far.recv(100) == b"at once"


@pytest_twisted.ensureDeferred
async def test_nothing_overtakes_what_is_buffered(accepted: Any) -> None:
    near, _ = accepted
    near.transport.write(bytes(LARGE))
    watched = near.transport.socket = Watched(near.transport.socket)
    unsent = near.transport.unsent
    near.transport.write(b"later")
    assert watched.sends == 0
    assert near.transport.unsent == unsent + len(b"later")


@pytest.mark.parametrize("end", ["loseConnection", "loseWriteConnection"])
@pytest_twisted.ensureDeferred
async def test_nothing_is_sent_at_once_while_it_ends(accepted: Any, end: str) -> None:
    near, far = accepted
    watched = near.transport.socket = Watched(near.transport.socket)
    near.transport.write(b"before, ")
    getattr(near.transport, end)()
    near.transport.write(b"after")
    assert watched.sends == 1
    assert await deferToThread(read_all, far) == b"before, after"


@pytest_twisted.ensureDeferred
async def test_nothing_is_sent_after_the_end(accepted: Any) -> None:
    near, _ = accepted
    watched = near.transport.socket = Watched(near.transport.socket)
    near.transport.abortConnection()
    await near.gone
    near.transport.write(b"too late")
    assert watched.sends == 0
    assert near.transport.unsent == 0


@pytest_twisted.ensureDeferred
async def test_an_empty_write_is_no_send(accepted: Any) -> None:
    near, _ = accepted
    watched = near.transport.socket = Watched(near.transport.socket)
    near.transport.write(b"")
    assert watched.sends == 0


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ECONNRESET])
@pytest_twisted.ensureDeferred
async def test_an_error_is_told_in_a_later_turn(accepted: Any, number: int) -> None:
    near, _ = accepted
    watched = near.transport.socket = Watched(near.transport.socket)
    watched.problem = OSError(number, os.strerror(number))
    near.transport.write(b"one")
    near.transport.write(b"two")
    assert near.lost is None, "connectionLost ran inside write"
    await near.gone
    assert near.lost.check(error.ConnectionLost)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS, errno.EINTR])
@pytest_twisted.ensureDeferred
async def test_a_kernel_that_takes_nothing_now_gets_it_later(accepted: Any, number: int) -> None:
    near, far = accepted
    watched = near.transport.socket = Watched(near.transport.socket)
    watched.problem = OSError(number, os.strerror(number))
    near.transport.write(b"patience")
    assert near.transport.unsent == len(b"patience")
    watched.problem = None
    assert await deferToThread(far.recv, 100) == b"patience"
    assert near.lost is None


@pytest_twisted.ensureDeferred
async def test_a_producer_is_paused_and_resumed(accepted: Any) -> None:
    near, far = accepted
    resumed: Deferred[None] = Deferred()

    class Producer:
        paused = 0

        def pauseProducing(self) -> None:
            self.paused += 1

        def resumeProducing(self) -> None:
            resumed.callback(None)

        def stopProducing(self) -> None:
            """Not looked at here."""

    producer = Producer()
    near.transport.registerProducer(producer, True)
    near.transport.write(b"small")
    assert producer.paused == 0
    near.transport.write(bytes(LARGE))
    assert producer.paused == 1
    await deferToThread(read_exactly, far, LARGE + 5)
    await resumed
    near.transport.unregisterProducer()


# Listening


@pytest_twisted.ensureDeferred
async def test_listeners_of_endpoints_send_at_once(
    eager: SendAtOnceReactor, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    for where, kind in (("tcp:0:interface=127.0.0.1", TCPServer), (f"unix:{path}", UnixServer)):
        factory = Once()
        port: Any = await serverFromString(eager, where).listen(factory)
        assert port.backlog >= 1024
        family = socket.AF_UNIX if kind is UnixServer else socket.AF_INET
        with socket.socket(family) as far:
            far.settimeout(PATIENCE)
            far.connect(path if kind is UnixServer else ("127.0.0.1", port.getHost().port))
            near = await factory.made
            assert type(near.transport) is kind
            near.transport.write(b"hello")
            assert far.recv(100) == b"hello"
            far.sendall(b"back")
            far.shutdown(socket.SHUT_WR)
            await deferToThread(lambda: None)
            near.transport.write(b"more")
            assert far.recv(100) == b"more"
            near.transport.abortConnection()
            await near.gone
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_is_for_its_owner_and_group(
    eager: SendAtOnceReactor, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    before = os.umask(0o022)
    try:
        port = eager.listenUNIX(str(path), Once())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert port.backlog >= BACKLOG
    await port.stopListening()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
@pytest_twisted.ensureDeferred
async def test_an_adopted_listener_sends_at_once(
    eager: SendAtOnceReactor, family: int, tmp_path: Path
) -> None:
    factory = Once()
    with socket.socket(family) as listening:
        listening.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(tmp_path / "socket"))
        listening.listen()
        listening.setblocking(False)
        port = eager.adoptStreamPort(listening.fileno(), family, factory)
        with socket.socket(family) as far:
            far.settimeout(PATIENCE)
            far.connect(listening.getsockname())
            near = await factory.made
            assert type(near.transport) in (TCPServer, UnixServer)
            near.transport.write(b"hello")
            assert far.recv(100) == b"hello"
            near.transport.abortConnection()
            await near.gone
        await port.stopListening()


@pytest.mark.parametrize(("asked", "given"), [(50, BACKLOG), (5000, 5000)])
@pytest_twisted.ensureDeferred
async def test_a_crowd_may_wait_to_be_accepted(
    eager: SendAtOnceReactor, asked: int, given: int
) -> None:
    port = eager.listenTCP(0, Once(), backlog=asked, interface="127.0.0.1")
    assert BACKLOG >= 1024
    assert port.backlog == given
    await port.stopListening()


# Names


class Receiver:
    """Collects the addresses of one lookup."""

    def __init__(self) -> None:
        self.addresses: list[Any] = []
        self.complete: Deferred[list[Any]] = Deferred()

    def resolutionBegan(self, resolution: Any) -> None:
        self.resolution = resolution

    def addressResolved(self, address: Any) -> None:
        self.addresses.append(address)

    def resolutionComplete(self) -> None:
        self.complete.callback(self.addresses)


def look_up(resolver: Resolver, name: str, port: int = 11219) -> Deferred[list[Any]]:
    receiver = Receiver()
    resolver.resolveHostName(receiver, name, port)
    return receiver.complete


@pytest_twisted.ensureDeferred
async def test_the_last_good_addresses_are_remembered(
    eager: SendAtOnceReactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: dict[str, list[Any]] = {}
    monkeypatch.setattr(transports, "addresses_of", lambda host, port: answers.get(host, []))
    resolver: Resolver = eager.nameResolver
    one, two = IPv4Address("TCP", "10.0.0.1", 1), IPv4Address("TCP", "10.0.0.2", 1)
    assert await look_up(resolver, "mc1") == []
    answers["mc1"] = [one]
    assert await look_up(resolver, "mc1") == [one]
    answers["mc1"] = []
    assert await look_up(resolver, "mc1") == [one]
    assert await look_up(resolver, "mc2") == []
    assert await look_up(resolver, "mc1", 1) == [], "another port has addresses of its own"
    answers["mc1"] = [two]
    assert await look_up(resolver, "mc1") == [two]
    answers["mc1"] = []
    assert await look_up(resolver, "mc1") == [two]
    assert all(seconds >= 0 for seconds in resolver.took.values())


@pytest.mark.parametrize("trouble", ["hangs", "no thread"])
def test_in_trouble_the_last_good_addresses_serve(
    monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    class Direct(Clock):
        def callFromThread(self, call: Any, *arguments: Any) -> None:
            call(*arguments)

    class AtOnce:
        trouble = ""

        def __init__(self, target: Any, **options: Any) -> None:
            self.start = target if not self.trouble else getattr(self, f"_{self.trouble[:2]}")

        def _ha(self) -> None:
            """Nothing ever comes."""

        def _no(self) -> None:
            raise RuntimeError("can't start new thread")

    one = IPv4Address("TCP", "10.0.0.1", 1)
    monkeypatch.setattr(transports, "addresses_of", lambda host, port: [one])
    monkeypatch.setattr(transports.threading, "Thread", AtOnce)
    clock = Direct()
    resolver = Resolver(clock)
    found: list[Any] = []
    look_up(resolver, "mc1").addCallback(found.append)
    AtOnce.trouble = trouble
    look_up(resolver, "mc1").addCallback(found.append)
    clock.advance(transports.PATIENCE)
    assert found == [[one], [one]]
    assert not clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_a_lookup_that_hangs_keeps_nobody_waiting(
    eager: SendAtOnceReactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    go_on = threading.Event()
    found = [IPv4Address("TCP", "10.0.0.1", 1)]

    def slow(host: str, port: int) -> list[Any]:
        threads.append(threading.current_thread())
        if host == "slow":
            go_on.wait(PATIENCE)
        return found

    monkeypatch.setattr(transports, "addresses_of", slow)
    hanging = look_up(eager.nameResolver, "slow")
    assert await look_up(eager.nameResolver, "quick") == found
    assert not hanging.called
    assert all(thread.daemon for thread in threads), "the process would wait for them at its end"
    go_on.set()
    assert await hanging == found


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", [IPv4Address("TCP", "127.0.0.1", 11219)]),
        ("::1", [IPv6Address("TCP", "::1", 11219)]),
        ("a" * 64 + ".example.com", []),
        ("a..b", []),
        ("mc1.example.com\0", []),
    ],
)
def test_addresses_of_literals_and_impossible_names(host: str, expected: list[Any]) -> None:
    assert addresses_of(host, 11219) == expected


@pytest_twisted.ensureDeferred
async def test_an_endpoint_uses_the_resolver(
    eager: SendAtOnceReactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "addresses_of", lambda *_: [])
    with pytest.raises(error.DNSLookupError):
        await clientFromString(eager, "tcp:mc1.example.com:1").connect(Once())


# Reading without a log context


@pytest.fixture
def epoll() -> Iterator[EPollReactor]:
    """A reactor of this test's own, which it turns by hand."""
    reactor = EPollReactor()
    drive(reactor, Turn(reactor))
    yield reactor
    for reader in reactor.removeAll():
        reader.connectionLost(Failure(error.ConnectionDone()))
    reactor._poller.close()


def turn_until(reactor: EPollReactor, condition: Callable[[], Any]) -> None:
    for _ in range(1000):
        if condition():
            return
        reactor.runUntilCurrent()
        reactor.doIteration(0.01)
    pytest.fail("it never happened")


class Raising(Recording):
    def connectionMade(self) -> None:
        """Nobody waits for it."""

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        if data == b"raise":
            raise RuntimeError("a mistake of this protocol")


class Many(Factory):
    protocol = Raising
    noisy = False

    def __init__(self) -> None:
        self.all: list[Any] = []

    def buildProtocol(self, addr: Any) -> Protocol | None:
        made = super().buildProtocol(addr)
        self.all.append(made)
        return made


def connect_two(reactor: EPollReactor) -> tuple[Many, socket.socket, socket.socket]:
    factory = Many()
    port = SendAtOnceReactor(reactor, object()).listenTCP(0, factory, interface="127.0.0.1")
    first, second = (
        socket.create_connection(("127.0.0.1", port.getHost().port), PATIENCE) for _ in range(2)
    )
    turn_until(reactor, lambda: len(factory.all) == 2)
    if factory.all[0].transport.getPeer().port != first.getsockname()[1]:
        factory.all.reverse()
    return factory, first, second


def test_a_protocol_that_raises_ends_its_own_connection_only(epoll: EPollReactor) -> None:
    factory, first, second = connect_two(epoll)
    one, other = factory.all
    heard: list[LogEvent] = []
    globalLogPublisher.addObserver(heard.append)
    try:
        with first, second:
            first.sendall(b"raise")
            turn_until(epoll, lambda: one.lost)
            second.sendall(b"hello")
            turn_until(epoll, lambda: other.received == b"hello")
    finally:
        globalLogPublisher.removeObserver(heard.append)
    assert other.lost is None
    failures = [event["failure"].getErrorMessage() for event in heard if event.get("failure")]
    assert failures == ["a mistake of this protocol"]


def test_an_end_is_told_as_ever(epoll: EPollReactor) -> None:
    factory, first, second = connect_two(epoll)
    one, other = factory.all
    with first, second:
        first.shutdown(socket.SHUT_WR)
        turn_until(epoll, lambda: one.ended)
        assert one.lost is None
        second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        second.close()
        turn_until(epoll, lambda: other.lost)
        assert other.lost.check(error.ConnectionLost)


def test_one_that_goes_in_the_same_turn_is_passed_over(epoll: EPollReactor) -> None:
    factory, first, second = connect_two(epoll)

    def abort_both(data: bytes) -> None:
        for each in factory.all:
            each.received += data
            each.transport.abortConnection()

    for each in factory.all:
        each.dataReceived = abort_both
    with first, second:
        first.sendall(b"x")
        second.sendall(b"y")
        turn_until(epoll, lambda: all(each.lost for each in factory.all))
    assert len(factory.all[0].received) == 1, "an aborted connection was read from"


def test_other_reactors_stay_as_they_are() -> None:
    reactor = SelectReactor()
    before = reactor.doIteration
    drive(reactor, Turn(reactor))
    assert reactor.doIteration == before
    reactor.removeAll()
