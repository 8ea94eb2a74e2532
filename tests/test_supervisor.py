"""The processes around the tunnel: a service manager that is told, and one that is outlived."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from twisted.internet.task import Clock

from memtunnel import supervisor
from memtunnel.wire.binary import Status

Started = Callable[..., Any]
Connect = Callable[..., Any]
#: Longer than any test waits.
LONG = 60


TWO_AS_WELL = pytest.param(2, marks=pytest.mark.full)


@pytest.fixture(params=[1, 2])
def workers(request: pytest.FixtureRequest) -> str:
    return f"--workers={request.param}"


# A service manager


class Manager:
    """The socket of systemd's protocol, under a name in a folder or in none."""

    def __init__(self, name: str) -> None:
        self.environ = {"NOTIFY_SOCKET": name}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(name.replace("@", "\0", 1) if name[0] == "@" else name)
        self.heard: list[str] = []
        self.speakers: set[int] = set()
        """The processes that have said something."""

    def listen(self) -> list[str]:
        """All that was said so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                said, ((_, _, credentials), *_), _, _ = self._socket.recvmsg(
                    4096, socket.CMSG_SPACE(12), socket.MSG_DONTWAIT
                )
                self.heard.append(said.decode())
                self.speakers.add(struct.unpack("3i", credentials)[0])
        return self.heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(started: list[Any], tmp_path: Path) -> Manager:
    manager = Manager(str(tmp_path / "notify"))
    started.append(manager)
    return manager


def tunnel_to(
    memcached: servers.Memcached, ca_file: Path, *flags: str, environ: dict[str, str]
) -> servers.Tunnel:
    return servers.Tunnel(
        f"--server=127.0.0.1:{memcached.port}",
        f"--ca-file={ca_file}",
        f"--username={servers.USERNAME}",
        *flags,
        environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD, **environ},
    )


@pytest.mark.parametrize(
    ("place", "workers"), [("", 1), ("@", 2)], indirect=["workers"], ids=["path", "abstract"]
)
def test_a_manager_hears_of_readiness_reloads_and_the_end(
    place: str,
    workers: str,
    make_memcached: Started,
    started: list[Any],
    ca_file: Path,
    tmp_path: Path,
) -> None:
    manager = Manager(f"{place}{tmp_path / 'notify'}")
    started.append(manager)
    memcached = make_memcached()
    memcached.stop()
    config = tmp_path / "memtunnel.toml"
    config.write_text("")
    tunnel = tunnel_to(
        memcached,
        ca_file,
        workers,
        f"--config={config}",
        f"--connect-timeout={LONG}",
        environ=manager.environ,
    )
    started.append(tunnel)
    tunnel.start()
    servers.wait_until(lambda: "connect_refused" in tunnel.log(), "it has dialled")
    assert tunnel.get("/readyz")[0] == 503
    assert manager.listen() == []
    memcached.start()
    servers.wait_until(manager.listen, "it says something")
    assert manager.heard == ["READY=1"]
    assert tunnel.get("/readyz")[0] == 200
    for text, words in (("pool-size = 1", "settings reloaded"), ("pool-size = ", "not reloaded")):
        began = time.monotonic_ns() // 1000
        count = len(manager.heard)
        config.write_text(text)
        tunnel.signal(signal.SIGHUP)
        servers.wait_until(
            lambda count=count: len(manager.listen()) == count + 2, "it has reloaded"
        )
        reloading, ready = manager.heard[count:]
        assert ready == "READY=1"
        when = int(reloading.removeprefix("RELOADING=1\nMONOTONIC_USEC="))
        assert began <= when <= time.monotonic_ns() // 1000
        assert words in tunnel.log()
    heard = list(manager.heard)
    tunnel.signal(signal.SIGTERM)
    assert tunnel.wait() == 0
    assert manager.listen() == [*heard, "STOPPING=1"]
    assert tunnel.process is not None
    assert manager.speakers == {tunnel.process.pid}


def test_a_manager_waits_no_longer_than_the_connect_timeout(
    make_memcached: Started, started: list[Any], ca_file: Path, manager: Manager
) -> None:
    memcached = make_memcached()
    memcached.stop()
    tunnel = tunnel_to(memcached, ca_file, "--connect-timeout=0.5", environ=manager.environ)
    started.append(tunnel)
    tunnel.start()
    servers.wait_until(lambda: manager.listen() == ["READY=1"], "it is said to be ready")
    assert tunnel.get("/readyz")[0] == 503


def test_a_reload_before_it_is_ready_does_not_make_it_ready(
    make_memcached: Started, started: list[Any], ca_file: Path, manager: Manager
) -> None:
    memcached = make_memcached()
    memcached.stop()
    tunnel = tunnel_to(memcached, ca_file, f"--connect-timeout={LONG}", environ=manager.environ)
    started.append(tunnel)
    tunnel.start()
    tunnel.signal(signal.SIGHUP)
    servers.wait_until(lambda: "settings reloaded" in tunnel.log(), "it has read its settings")
    assert tunnel.get("/readyz")[0] == 503
    assert "READY=1" not in manager.listen()


def test_a_manager_that_does_not_listen_keeps_nobody_waiting(
    make_memcached: Started, started: list[Any], ca_file: Path, manager: Manager, connect: Connect
) -> None:
    tunnel = tunnel_to(make_memcached(), ca_file, servers.PATIENT, environ=manager.environ)
    started.append(tunnel)
    tunnel.start().wait_ready()
    client = connect(tunnel)
    client.socket.settimeout(2)
    # More than the kernel keeps for somebody who does not read.
    try:
        for _ in range(int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())):
            tunnel.signal(signal.SIGHUP)
            assert client.get(b"absent").status == Status.NOT_FOUND
    finally:
        manager.close()


def test_a_manager_that_is_not_there_is_no_trouble(
    make_memcached: Started, started: list[Any], ca_file: Path, tmp_path: Path
) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "nobody")}
    tunnel = tunnel_to(make_memcached(), ca_file, environ=environ)
    started.append(tunnel)
    tunnel.start().wait_ready()
    tunnel.signal(signal.SIGHUP)
    servers.wait_until(lambda: "settings reloaded" in tunnel.log(), "it has read its settings")
    tunnel.signal(signal.SIGTERM)
    assert tunnel.wait() == 0
    assert "Traceback" not in tunnel.log()


# A manager that watches

ALIVE = "WATCHDOG=1"


@pytest.fixture
def watching(manager: Manager) -> Callable[..., Clock]:
    """Starts what reassures the manager, on a clock of its own."""

    def start(responsive: Callable[[], bool] = lambda: True, **environ: str) -> Clock:
        clock = Clock()
        told = supervisor.Manager({**manager.environ, **environ})
        told.reassure(clock, responsive)
        return clock

    return start


def test_one_that_watches_hears_twice_in_the_time_that_it_grants(
    watching: Callable[..., Clock], manager: Manager
) -> None:
    clock = watching(WATCHDOG_USEC="3000000", WATCHDOG_PID=str(os.getpid()))
    for count in range(1, 5):
        assert manager.listen() == [ALIVE] * count
        clock.advance(1.4)
        assert manager.listen() == [ALIVE] * count
        clock.advance(0.1)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
    ],
    ids=["not asked", "another process", "no time", "no number"],
)
def test_one_that_does_not_watch_hears_nothing(
    watching: Callable[..., Clock], manager: Manager, environ: dict[str, str]
) -> None:
    clock = watching(**environ)
    clock.advance(10)
    assert manager.listen() == []
    assert clock.getDelayedCalls() == []


def test_a_loop_that_hangs_says_nothing(watching: Callable[..., Clock], manager: Manager) -> None:
    clock = watching(WATCHDOG_USEC="2000000")
    said: list[int] = []

    def hang() -> None:
        said.append(len(manager.listen()))
        clock.rightNow += 60
        said.append(len(manager.listen()))

    clock.callLater(2.5, hang)
    clock.advance(1)
    clock.advance(1)
    clock.advance(0.5)
    assert said == [3, 3]
    # Once more, and not for each time that it was silent.
    assert manager.listen() == [ALIVE] * 4


def test_one_that_is_not_responsive_says_nothing(
    watching: Callable[..., Clock], manager: Manager
) -> None:
    responsive = [True]
    clock = watching(lambda: responsive[0], WATCHDOG_USEC="2000000")
    responsive[0] = False
    clock.advance(1)
    clock.advance(1)
    assert manager.listen() == [ALIVE]
    responsive[0] = True
    clock.advance(1)
    assert manager.listen() == [ALIVE] * 2


def test_a_running_tunnel_says_that_it_lives(
    make_memcached: Started, started: list[Any], ca_file: Path, manager: Manager
) -> None:
    environ = {**manager.environ, "WATCHDOG_USEC": "100000"}
    tunnel = tunnel_to(make_memcached(), ca_file, environ=environ)
    started.append(tunnel)
    tunnel.start()
    servers.wait_until(lambda: manager.listen().count(ALIVE) > 3, "it says so again and again")


@pytest.mark.full
def test_a_tunnel_one_of_whose_workers_hangs_does_not_say_that_it_lives(
    make_memcached: Started, started: list[Any], ca_file: Path, manager: Manager
) -> None:
    environ = {**manager.environ, "WATCHDOG_USEC": "100000"}
    tunnel = tunnel_to(make_memcached(), ca_file, "--workers=2", environ=environ)
    started.append(tunnel)
    tunnel.start().wait_ready()
    worker = tunnel.workers[0]
    os.kill(worker, signal.SIGSTOP)
    try:
        servers.wait_until(lambda: tunnel.get("/healthz")[0] == 503, "it is not responsive")
        count = len(manager.listen())
        time.sleep(0.5)  # ten times as long as it takes one that lives
        assert len(manager.listen()) == count
    finally:
        os.kill(worker, signal.SIGCONT)
    servers.wait_until(lambda: len(manager.listen()) > count, "it says again that it lives")


# A process that is outlived


class App:
    """A process that runs until it is told to end, and is then gone without a trace."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.pid = self._process.pid
        self.flag = f"--exit-with-pid={self.pid}"

    def stop(self) -> None:
        self._process.communicate()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None


@pytest.fixture
def app() -> Iterator[App]:
    with servers.closing_all([App()]) as (app,):
        yield app


def test_what_was_asked_before_the_app_ended_is_answered(
    make_memcached: Started, make_tunnel: Started, connect: Connect, app: App, workers: str
) -> None:
    memcached = make_memcached()
    tunnel = make_tunnel(
        memcached, flags=(app.flag, workers, f"--drain-timeout={LONG}", servers.PATIENT)
    )
    processes = tunnel.workers
    clients = [connect(tunnel, kind) for kind in (servers.Binary, servers.Text) * 2]
    idle = connect(tunnel, servers.Binary)
    for client in clients:
        assert client.say(client.store(b"k", b"v")) == [True]
    with memcached.standing():
        for client in clients:
            client.send(*[client.fetch(b"k")] * 3)
        # Silence ends a connection after a second; what it carried then waits for another one.
        states = ("in_flight", "queued")
        servers.wait_until(
            lambda: sum(tunnel.metric(f"memtunnel_upstream_requests_{s}") for s in states) >= 12,
            "all are taken",
        )
        app.stop()
        servers.wait_until(lambda: not servers.connects(tunnel.port), "it accepts nobody")
    for client in clients:
        assert client.hear(3) == [b"v"] * 3
        assert client.at_end()
        client.close()
    assert idle.at_end()
    idle.close()
    assert tunnel.wait() == 0
    assert not any(map(servers.runs, processes))


def test_sigterm_is_only_noted_while_the_app_runs(
    make_memcached: Started, make_tunnel: Started, connect: Connect, app: App, workers: str
) -> None:
    tunnel = make_tunnel(
        make_memcached(), flags=(app.flag, workers, f"--drain-timeout={LONG}", servers.PATIENT)
    )
    processes = tunnel.workers
    tunnel.signal(signal.SIGTERM)
    tunnel.wait_ready(False)
    for number in range(10):
        for kind in (servers.Binary, servers.Text):
            client = connect(tunnel, kind)
            value = b"%d" % number
            assert client.say(client.store(b"k", value), client.fetch(b"k")) == [True, value]
            client.close()
        # For a moment there is no client at all.
        servers.wait_until(
            lambda: tunnel.metric("memtunnel_client_connections") == 0, "all have left"
        )
        assert tunnel.get("/readyz")[0] == 503
        assert tunnel.state()["draining"] is True
    assert tunnel.workers == processes
    app.stop()
    assert tunnel.wait() == 0
    assert not any(map(servers.runs, processes))


@pytest.mark.full
def test_an_app_that_stays_is_served_though_workers_die(
    make_memcached: Started, make_tunnel: Started, connect: Connect, app: App
) -> None:
    tunnel = make_tunnel(
        make_memcached(), flags=(app.flag, "--workers=2", f"--drain-timeout={LONG}")
    )
    tunnel.signal(signal.SIGTERM)
    tunnel.wait_ready(False)
    dead = tunnel.workers
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    servers.wait_until(lambda: set(tunnel.workers).isdisjoint(dead), "they are seen to be gone")
    client = connect(tunnel, servers.Binary)
    assert client.say(client.fetch(b"absent")) == [None]


def test_an_app_that_stays_is_served_until_the_drain_timeout(
    make_memcached: Started, make_tunnel: Started, connect: Connect, app: App, workers: str
) -> None:
    tunnel = make_tunnel(make_memcached(), flags=(app.flag, workers, "--drain-timeout=0.5"))
    client = connect(tunnel, servers.Binary)
    assert client.say(client.store(b"k", b"v")) == [True]
    tunnel.signal(signal.SIGTERM)
    assert client.at_end()
    client.close()
    assert tunnel.wait() == 0
    assert app.runs


@pytest.mark.parametrize("workers", [1, TWO_AS_WELL], indirect=True)
def test_a_second_sigterm_means_now_though_the_app_runs(
    make_memcached: Started, make_tunnel: Started, app: App, workers: str
) -> None:
    tunnel = make_tunnel(make_memcached(), flags=(app.flag, workers, f"--drain-timeout={LONG}"))
    tunnel.signal(signal.SIGTERM)
    tunnel.wait_ready(False)
    tunnel.signal(signal.SIGTERM)
    assert tunnel.wait() == 0
    assert app.runs


@pytest.mark.parametrize("workers", [1, TWO_AS_WELL], indirect=True)
def test_an_app_that_is_gone_already_is_told_on_the_terminal(ca_file: Path, workers: str) -> None:
    app = App()
    app.stop()
    tunnel = servers.Tunnel(
        f"--server=127.0.0.1:{servers.free_port()}", f"--ca-file={ca_file}", app.flag, workers
    )
    run = subprocess.run(
        tunnel.command, env=tunnel.environ, capture_output=True, text=True, timeout=30, cwd="/tmp"
    )
    assert run.returncode == 1
    assert run.stderr == f"memtunnel: {app.flag.replace('=', ' ')}: No such process\n"
