"""Clients that ask for much and read late, or send much: all is answered, and memory is bounded."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import servers

from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode, Status

KIB = 1 << 10
MIB = 1 << 20
#: A client's input is paused at 4 MiB unread; what was under way then still comes, and past 16 MiB
#: hits become misses. One more is for what is in the middle of being written.
BOUND = (4 + 16 + 1) * MIB


class SlowWire(servers.Wire):
    """A client whose kernel takes little that it does not read."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.socket.close()
        self.socket = socket.socket()
        self.socket.settimeout(servers.PATIENCE)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
        self.socket.connect(("127.0.0.1", port))


@pytest.fixture
def tunnel(make_memcached: Callable[..., Any], make_tunnel: Callable[..., Any]) -> servers.Tunnel:
    started: servers.Tunnel = make_tunnel(make_memcached(), flags=(servers.PATIENT,))
    return started


@pytest.fixture
def slow(tunnel: servers.Tunnel, started: list[Any]) -> SlowWire:
    client = SlowWire(tunnel.port)
    started.append(client)
    return client


@pytest.fixture
def sending() -> Iterator[Callable[..., None]]:
    """Sends frames from a thread: the tunnel may stop reading, so that `send` waits."""
    threads = []

    def send(client: servers.Wire, frames: list[bytes]) -> None:
        thread = threading.Thread(target=client.send, args=frames, daemon=True)
        threads.append(thread)
        thread.start()

    yield send
    for thread in threads:
        thread.join(servers.PATIENCE)
        assert not thread.is_alive()


def numbered(opcode: int, key: bytes, count: int, **parts: Any) -> list[bytes]:
    """The same request so many times, its opaque counting."""
    return [
        binary.request(opcode, key, opaque=number.to_bytes(4), **parts) for number in range(count)
    ]


def assert_in_order(answers: list[binary.Frame], count: int) -> None:
    assert [int.from_bytes(frame.opaque) for frame in answers] == list(range(count))


def buffered(tunnel: servers.Tunnel) -> int:
    size = int(tunnel.metric("memtunnel_buffered_bytes"))
    assert size <= BOUND
    return size


def paused(tunnel: servers.Tunnel) -> bool:
    buffered(tunnel)
    return tunnel.metric("memtunnel_client_paused") > 0


def test_twenty_thousand_gets_of_a_client_that_reads_late(
    tunnel: servers.Tunnel, slow: SlowWire, sending: Callable[..., None]
) -> None:
    count = 20_000
    value = b"0123456789abcdef" * 64
    assert slow.set(b"k", value).status == Status.OK
    sending(slow, numbered(Opcode.GET, b"k", count))
    servers.wait_until(lambda: paused(tunnel), "the client is not read from")
    answers = slow.read(count)
    assert_in_order(answers, count)
    assert {(frame.status, frame.value) for frame in answers} == {(Status.OK, value)}
    servers.wait_until(lambda: buffered(tunnel) == 0, "all is given back")
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0
    assert not paused(tunnel)


def test_a_hundred_sets_of_a_megabyte(
    tunnel: servers.Tunnel, connect: Callable[..., servers.Wire], sending: Callable[..., None]
) -> None:
    count = 100
    value = b"0123456789abcdef" * (1_000_000 // 16)
    client = connect(tunnel)
    sending(client, numbered(Opcode.SET, b"k", count, extras=bytes(8), value=value))
    answers = []
    while len(answers) < count:
        answers += client.read()
        if len(answers) % 10 == 0:
            buffered(tunnel)
    assert_in_order(answers, count)
    assert {frame.status for frame in answers} == {Status.OK}
    assert client.get(b"k").value == value
    assert buffered(tunnel) == 0
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0


def test_a_client_that_does_not_read_costs_a_bounded_amount_and_no_other_client(
    tunnel: servers.Tunnel,
    slow: SlowWire,
    connect: Callable[..., servers.Wire],
    sending: Callable[..., None],
) -> None:
    count = 200
    value = b"0123456789abcdef" * (1_000_000 // 16)
    other = connect(tunnel)
    assert other.set(b"large", value).status == Status.OK
    assert other.set(b"small", b"v").status == Status.OK
    sending(slow, numbered(Opcode.GET, b"large", count))
    servers.wait_until(lambda: paused(tunnel) and buffered(tunnel) > 3 * MIB, "it is not read from")
    for _ in range(50):
        assert other.get(b"small").value == b"v"
        buffered(tunnel)
    answers = []
    while len(answers) < count:
        answers += slow.read()
        buffered(tunnel)
    assert_in_order(answers, count)
    hits = [frame for frame in answers if frame.status == Status.OK]
    assert {frame.value for frame in hits} == {value}
    assert {frame.status for frame in answers} <= {Status.OK, Status.NOT_FOUND}
    assert slow.get(b"large").value == value
    servers.wait_until(lambda: buffered(tunnel) == 0, "all is given back")


def test_thousands_of_quiet_sets_are_carried_out_without_a_word(
    tunnel: servers.Tunnel, connect: Callable[..., servers.Wire]
) -> None:
    count = 5000
    client = connect(tunnel)
    client.send(*numbered(Opcode.SETQ, b"k", count, extras=bytes(8), value=b"v"))
    client.send(binary.request(Opcode.SETQ, b"last", extras=bytes(8), value=b"v"))
    client.socket.shutdown(socket.SHUT_WR)
    assert client.at_end()
    assert connect(tunnel).get(b"last").status == Status.OK
    assert tunnel.metric("memtunnel_commands_total", command="set", status="hit") == count + 1


def test_five_hundred_clients_that_connect_at_once(
    tunnel: servers.Tunnel, started: list[Any]
) -> None:
    count = 500
    where = ("127.0.0.1", tunnel.port)
    clients = [servers.Wire.__new__(servers.Wire) for _ in range(count)]
    for client in clients:
        client.socket, client._left = socket.socket(), b""
        client.socket.setblocking(False)
        client.socket.connect_ex(where)
        started.append(client)
    for number, client in enumerate(clients):
        client.socket.settimeout(servers.PATIENCE)
        key = b"k%d" % number
        stored = binary.request(Opcode.SET, key, extras=bytes(8), value=key)
        client.send(stored, binary.request(Opcode.GETK, key))
    for number, client in enumerate(clients):
        stored, found = client.read(2)
        assert (stored.opcode, stored.status) == (Opcode.SET, Status.OK)
        assert (found.key, found.value) == (b"k%d" % number, b"k%d" % number)
    assert tunnel.metric("memtunnel_client_connections") == count
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0
