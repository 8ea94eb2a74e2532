"""``--workers``: several processes that look like one tunnel."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import servers

from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode, Status

#: Two workers, with room for two clients each: with four clients both are at work.
TWO = ("--workers=2", "--max-clients=4", servers.PATIENT)


@pytest.fixture
def tunnel(
    make_memcached: Callable[..., Any], make_tunnel: Callable[..., servers.Tunnel]
) -> servers.Tunnel:
    return make_tunnel(make_memcached(), flags=TWO)


@pytest.fixture
def clients(tunnel: servers.Tunnel, connect: Callable[..., servers.Wire]) -> list[servers.Wire]:
    """As many as there is room for; each has had an answer."""
    clients = [connect(tunnel) for _ in range(4)]
    assert [client.get(b"absent").status for client in clients] == [Status.NOT_FOUND] * 4
    return clients


def is_closed(client: servers.Wire) -> bool:
    """Whether the tunnel has closed it. It must not have anything to read."""
    client.socket.settimeout(0.01)
    try:
        return client.socket.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    finally:
        client.socket.settimeout(servers.PATIENCE)


def statistics(client: servers.Wire) -> dict[str, str]:
    """What ``STAT memtunnel`` says."""
    client.send(binary.request(Opcode.STAT, b"memtunnel"))
    said = {}
    while (frame := client.read()[0]).key:
        said[frame.key.decode()] = frame.value.decode()
    return said


def commands(tunnel: servers.Tunnel) -> float:
    return tunnel.metric("memtunnel_commands_total")


# Counted together


def test_what_all_have_counted_is_added_up(
    tunnel: servers.Tunnel, clients: list[servers.Wire]
) -> None:
    # Whoever looked whether it listens was a client as well.
    opened = tunnel.metric("memtunnel_client_connections_opened_total")
    assert opened >= 4
    for number, client in enumerate(clients):
        for _ in range(number):
            assert client.set(b"k", b"v").status == Status.OK
    text = tunnel.get("/metrics")[1]
    got = {
        "get": tunnel.metric("memtunnel_commands_total", command="get", status="miss"),
        "set": tunnel.metric("memtunnel_commands_total", command="set", status="hit"),
    }
    assert got == {"get": 4, "set": 0 + 1 + 2 + 3}
    assert tunnel.metric("memtunnel_request_duration_seconds_count") == 10
    assert tunnel.metric("memtunnel_request_duration_seconds_bucket", le="+Inf") == 10
    assert tunnel.metric("memtunnel_client_connections") == 4
    assert tunnel.metric("memtunnel_client_connections_opened_total") == opened
    assert tunnel.metric("memtunnel_client_connections_max") == 4
    assert tunnel.metric("memtunnel_client_received_bytes_total") == 4 * 30 + 6 * 34
    assert tunnel.metric("memtunnel_upstream_connections", state="warm") == 4
    assert tunnel.metric("memtunnel_upstream_connections_target") == 4
    for worker in ("1", "2"):
        assert tunnel.metric("memtunnel_upstream_up", worker=worker) == 1
        assert tunnel.metric("memtunnel_tls_info", worker=worker) == 1
    check = [servers.need("promtool"), "check", "metrics"]
    done = subprocess.run(check, input=text, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_what_the_processes_use_is_added_up(tunnel: servers.Tunnel) -> None:
    assert tunnel.process is not None
    pids = [tunnel.process.pid, *tunnel.workers]
    assert len(pids) == 3
    files = [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids]
    # The scrape itself has a connection, and /proc was read from without.
    assert sum(files) <= tunnel.metric("process_open_fds") <= sum(files) + 4
    assert tunnel.metric("python_gc_collections_total", generation="0") > 0


def test_stat_memtunnel_tells_of_all(tunnel: servers.Tunnel, clients: list[servers.Wire]) -> None:
    def says(client: servers.Wire) -> bool:
        said = statistics(client)
        return (said["workers"], said["clients"], said["clients_max"]) == ("2", "4", "4")

    for client in clients:
        # They are told once a second what the others do.
        servers.wait_until(lambda client=client: says(client), "it knows of all")
        assert statistics(client)["pid"] == str(tunnel.process.pid)  # type: ignore[union-attr]


# Bounded together


def test_p6_one_too_many_is_closed_only_when_all_are_full(
    tunnel: servers.Tunnel, clients: list[servers.Wire], connect: Callable[..., servers.Wire]
) -> None:
    assert tunnel.metric("memtunnel_client_connections_rejected_total") == 0
    assert connect(tunnel).at_end()
    assert tunnel.metric("memtunnel_client_connections_rejected_total", reason="max_clients") == 1
    clients.pop().close()
    servers.wait_until(
        lambda: tunnel.metric("memtunnel_client_connections") == 3, "one client has left"
    )

    def served() -> bool:
        client = connect(tunnel)
        if is_closed(client):
            return False  # it came before the others knew of the room
        return client.get(b"absent").status == Status.NOT_FOUND

    servers.wait_until(served, "there is room again")
    for client in clients:
        assert client.get(b"absent").status == Status.NOT_FOUND


# One of them ends


def test_a_worker_that_dies_is_replaced_and_its_counts_are_kept(
    tunnel: servers.Tunnel, clients: list[servers.Wire], connect: Callable[..., servers.Wire]
) -> None:
    before = commands(tunnel)
    opened = tunnel.metric("memtunnel_client_connections_opened_total")
    killed, other = tunnel.workers
    os.kill(killed, signal.SIGKILL)
    seen = [before]

    def replaced() -> bool:
        seen.append(commands(tunnel))
        return len(set(tunnel.workers) - {killed}) == 2 and tunnel.get("/readyz")[0] == 200

    servers.wait_until(replaced, "another worker is ready")
    assert seen == sorted(seen)
    assert other in tunnel.workers
    closed = [client for client in clients if is_closed(client)]
    assert len(closed) == 2
    for client in closed:
        clients.remove(client)
    clients += [connect(tunnel), connect(tunnel)]
    assert [client.get(b"absent").status for client in clients] == [Status.NOT_FOUND] * 4
    assert commands(tunnel) == before + 4
    assert tunnel.metric("memtunnel_client_connections") == 4
    assert tunnel.metric("memtunnel_client_connections_opened_total") == opened + 2
    (line,) = [line for line in tunnel.log().splitlines() if "has ended" in line]
    assert "signal 9; another takes its place" in line


def test_while_a_worker_is_missing_the_others_take_its_clients(
    tunnel: servers.Tunnel, connect: Callable[..., servers.Wire]
) -> None:
    os.kill(tunnel.workers[0], signal.SIGKILL)
    tunnel.wait_ready(ready=False)
    for _ in range(2):
        assert connect(tunnel).get(b"absent").status == Status.NOT_FOUND
    tunnel.wait_ready()


def test_signals_that_platforms_send_to_all_are_the_parents(
    tunnel: servers.Tunnel, clients: list[servers.Wire]
) -> None:
    before = tunnel.workers
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        for pid in before:
            os.kill(pid, number)
    tunnel.signal(signal.SIGHUP)
    for client in clients:
        assert client.get(b"absent").status == Status.NOT_FOUND
    assert tunnel.workers == before
    tunnel.wait_ready()


def test_p3_without_their_parent_they_serve_their_clients_and_accept_nobody(
    tunnel: servers.Tunnel, clients: list[servers.Wire]
) -> None:
    workers = tunnel.workers
    tunnel.signal(signal.SIGKILL)
    assert tunnel.wait() == -signal.SIGKILL
    servers.wait_until(lambda: not servers.connects(tunnel.port), "the port is free")
    for client in clients:
        assert client.get(b"absent").status == Status.NOT_FOUND
        client.close()
    servers.wait_until(lambda: not any(map(servers.runs, workers)), "the workers end")


@pytest.mark.full
def test_a_worker_that_hangs_keeps_no_scrape_waiting_and_is_told(tunnel: servers.Tunnel) -> None:
    hangs = tunnel.workers[0]
    os.kill(hangs, signal.SIGSTOP)
    try:
        assert tunnel.metric("memtunnel_client_connections_max") == 4
        servers.wait_until(lambda: tunnel.get("/healthz")[0] == 503, "it is missed")
        assert tunnel.get("/readyz")[0] == 503
    finally:
        os.kill(hangs, signal.SIGCONT)
    servers.wait_until(lambda: tunnel.get("/healthz")[0] == 200, "it is back")


# What else is as with one


def ask_at(path: Path, client: socket.socket) -> None:
    """Be a client of a unix socket, and have an answer."""
    client.settimeout(servers.PATIENCE)
    client.connect(str(path))
    client.sendall(binary.request(Opcode.NOOP, opaque=b"unix"))
    ((_, opcode, *_),), _ = binary.split(client.recv(100))
    assert opcode == Opcode.NOOP


def test_a_unix_socket_is_shared_too(
    make_memcached: Callable[..., Any], make_tunnel: Callable[..., servers.Tunnel], tmp_path: Path
) -> None:
    path = tmp_path / "tunnel"
    tunnel = make_tunnel(make_memcached(), flags=(*TWO, f"--listen=unix:{path}:mode=600"))
    for _ in range(8):
        with socket.socket(socket.AF_UNIX) as client:
            ask_at(path, client)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client, socket.socket(socket.AF_UNIX) as late:
        ask_at(path, client)
        tunnel.signal(signal.SIGTERM)
        # A worker that has no client ends, and leaves the path to the other.
        servers.wait_until(lambda: len(tunnel.workers) == 1, "one of them ends")
        ask_at(path, late)
    assert tunnel.wait() == 0
    assert list(tmp_path.glob("tunnel*")) == []
    assert "Traceback" not in tunnel.log()


def test_modules_of_the_working_directory_are_nobodys(
    make_memcached: Callable[..., Any], make_tunnel: Callable[..., servers.Tunnel], tmp_path: Path
) -> None:
    (tmp_path / "platform.py").write_text("raise SystemExit('a module of the app was imported')")
    tunnel = make_tunnel(make_memcached(), flags=TWO, ready=False, folder=tmp_path)
    tunnel.wait_ready()


def test_workers_are_not_for_people_to_start() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memtunnel", "worker"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd="/tmp",
    )
    assert done.returncode == 1
    assert done.stderr == "memtunnel worker: only the tunnel itself starts workers\n"
