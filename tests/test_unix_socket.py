"""Listening on a unix socket: what a tunnel that was killed has left is in nobody's way."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
import servers
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.protocol import Factory

from memtunnel.net.transports import SendAtOnceReactor

Start = Callable[[], servers.Tunnel]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memcached.sock"


@pytest.fixture
def start(started: list[Any], path: Path) -> Start:
    """Starts a tunnel that listens on `path` as well."""

    def start() -> servers.Tunnel:
        tunnel = servers.Tunnel("--demo", f"--listen=unix:{path}")
        started.append(tunnel)
        return tunnel.start()

    return start


def is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(servers.PATIENCE)
        client.connect(str(path))
        client.sendall(b"get absent\r\n")
        return client.recv(100) == b"END\r\n"


@pytest.mark.parametrize("number", ["its own", "one that runs"])
def test_one_that_was_killed_is_followed_by_another(start: Start, path: Path, number: str) -> None:
    tunnel = start()
    assert is_served(path)
    tunnel.signal(signal.SIGKILL)
    tunnel.wait()
    assert path.exists()
    lock = path.with_name(path.name + ".lock")
    if number == "one that runs":
        # As in a container, where each has the number of the one before.
        lock.unlink()
        lock.symlink_to(str(os.getpid()))
    tunnel = start()
    assert is_served(path)
    tunnel.stop()
    assert not path.exists()
    assert not lock.is_symlink()


def fails(start: Start) -> str:
    with pytest.raises(pytest.fail.Exception) as failed:
        start()
    return str(failed.value)


def test_one_that_lives_is_left_alone(start: Start, path: Path) -> None:
    start()
    assert f"cannot listen on unix:{path}" in fails(start)
    assert is_served(path)


def test_what_is_no_socket_is_left_alone(start: Start, path: Path) -> None:
    path.write_text("precious")
    assert f"cannot listen on unix:{path}" in fails(start)
    assert path.read_text() == "precious"


def test_a_lock_whose_socket_is_gone_is_left_to_whom_it_names(start: Start, path: Path) -> None:
    start()
    path.unlink()
    assert f"cannot listen on unix:{path}" in fails(start)


@pytest_twisted.ensureDeferred
async def test_a_lock_with_ones_own_number_was_anothers(path: Path) -> None:
    lock = path.with_name(path.name + ".lock")
    lock.symlink_to(str(os.getpid()))  # as in a container
    from twisted.internet import reactor

    listening = UNIXServerEndpoint(SendAtOnceReactor(reactor), str(path), wantPID=True)
    port: Any = await listening.listen(Factory())
    assert path.exists()
    await port.stopListening()
    assert not lock.is_symlink()
