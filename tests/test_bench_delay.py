"""The server that is far away: the bytes come as they were sent, and not before their time."""

import contextlib
import hashlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import servers

from benchmarks import delay

#: Milliseconds.
ROUND_TRIP = 40.0
PATIENCE = 20
BIG = bytes(range(256)) * (1 << 15)

Dial = Callable[[], tuple[socket.socket, socket.socket]]


@contextlib.contextmanager
def line(port: int) -> Iterator[int]:
    """The port of a line to this one."""
    command = [sys.executable, delay.__file__, str(port), str(ROUND_TRIP)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture
def dial() -> Iterator[Dial]:
    """Connects through a line; both ends of it, the client's first."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listening.settimeout(PATIENCE)
        port = stack.enter_context(line(listening.getsockname()[1]))

        def connect() -> tuple[socket.socket, socket.socket]:
            near = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            far = stack.enter_context(listening.accept()[0])
            far.settimeout(PATIENCE)
            return near, far

        yield connect


def read(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := end.recv(1 << 16)):
        data += more
    return data


def test_a_round_trip_takes_its_time(dial: Dial) -> None:
    near, far = dial()
    began = time.monotonic()
    near.sendall(b"first")
    assert read(far, 5) == b"first"
    far.sendall(b"answer")
    assert read(near, 6) == b"answer"
    # The first bytes wait for a handshake, too.
    assert time.monotonic() - began >= 1.9 * ROUND_TRIP / 1000
    began = time.monotonic()
    near.sendall(b"again")
    assert read(far, 5) == b"again"
    assert time.monotonic() - began >= 0.5 * ROUND_TRIP / 1000
    far.sendall(b"answer")
    assert read(near, 6) == b"answer"
    assert time.monotonic() - began >= ROUND_TRIP / 1000


def test_bytes_keep_their_order(dial: Dial) -> None:
    near, far = dial()
    sent = b""
    for number in range(500):
        portion = b"%d " % number
        near.sendall(portion)
        sent += portion
    assert read(far, len(sent)) == sent


def test_connections_do_not_mix(dial: Dial) -> None:
    pairs = [dial() for _ in range(10)]
    for number, (near, far) in enumerate(pairs):
        near.sendall(b"%d" % number)
        far.sendall(b"%d" % (9 - number))
    for number, (near, far) in enumerate(pairs):
        assert read(far, 1) == b"%d" % number
        assert read(near, 1) == b"%d" % (9 - number)


def test_one_direction_ends_without_the_other(dial: Dial) -> None:
    near, far = dial()
    near.sendall(b"last")
    near.shutdown(socket.SHUT_WR)
    assert read(far, 5) == b"last"  # and the end
    far.sendall(b"answer")
    assert read(near, 6) == b"answer"
    far.close()
    assert near.recv(1) == b""


def test_a_client_that_goes_takes_its_connection_along(dial: Dial) -> None:
    near, far = dial()
    near.close()
    assert far.recv(1) == b""


def test_much_comes_whole_to_one_who_is_slow_to_read(dial: Dial) -> None:
    near, far = dial()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    sending = threading.Thread(target=far.sendall, args=(BIG,))
    sending.start()
    time.sleep(0.2)  # so that the line runs out of room
    assert hashlib.sha256(read(near, len(BIG))).digest() == hashlib.sha256(BIG).digest()
    sending.join()


def test_where_nobody_listens_a_client_is_closed() -> None:
    with line(servers.free_port()) as port:
        client = socket.create_connection(("127.0.0.1", port), PATIENCE)
        with contextlib.closing(client):
            assert client.recv(1) == b""
