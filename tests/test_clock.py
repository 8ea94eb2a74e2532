"""The wall clock may be set, an hour ahead or back, and no timer sees it.

Twisted's timers are on the wall clock. Here it belongs to the test: a file's time is how far it is
from the true one, for the tunnel and for its workers.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import servers
from twisted.internet.selectreactor import SelectReactor

from memtunnel.net.loop import keep_monotonic_time
from memtunnel.wire.binary import Opcode, Status, request

HOUR = 3600

_SITE = """
import os, time
true = time.time
time.time = lambda: true() + os.stat({file!r}).st_mtime
"""


def test_timers_do_not_see_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = [1e9]
    monkeypatch.setattr(time, "time", lambda: wall[0])
    reactor = SelectReactor()
    keep_monotonic_time(reactor)
    called: list[str] = []
    reactor.callLater(HOUR / 2, called.append, "in half an hour")
    wall[0] += HOUR
    reactor.runUntilCurrent()
    assert called == []
    reactor.callLater(0, called.append, "now")
    wall[0] -= 2 * HOUR
    reactor.runUntilCurrent()
    assert called == ["now"]


class Clock:
    """The wall clock of tunnels that are started with `folder` in their path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "offset"
        self._file.touch()
        self.set(0)
        (folder / "sitecustomize.py").write_text(_SITE.format(file=str(self._file)))

    @property
    def path(self) -> str:
        """PYTHONPATH for those who are to have it."""
        more = os.environ.get("PYTHONPATH")
        return os.pathsep.join(filter(None, (str(self.folder), more)))

    def set(self, seconds: int) -> None:
        """Let it be so far ahead of the true time."""
        os.utime(self._file, (seconds, seconds))


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def memcached(make_memcached: Callable[..., servers.Memcached]) -> servers.Memcached:
    return make_memcached()


@pytest.fixture(params=["--workers=1", "--workers=2"])
def start(
    request: pytest.FixtureRequest,
    clock: Clock,
    memcached: servers.Memcached,
    make_tunnel: Callable[..., servers.Tunnel],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., servers.Tunnel]:
    """Starts a tunnel on this clock."""
    monkeypatch.setenv("PYTHONPATH", clock.path)
    return lambda *flags: make_tunnel(memcached, flags=(request.param, *flags))


def test_other_processes_have_the_clock_of_the_test(clock: Clock) -> None:
    clock.set(-HOUR)
    command = [sys.executable, "-P", "-c", "import time; print(time.time())"]
    environ = {**os.environ, "PYTHONPATH": clock.path}
    told = subprocess.run(command, env=environ, capture_output=True, check=True, timeout=60).stdout
    assert float(told) < time.time() - HOUR / 2


def stall(memcached: servers.Memcached, tunnel: servers.Tunnel, client: servers.Wire) -> None:
    """Let the server stop, and a request be in flight to it."""
    assert memcached.process is not None
    assert client.set(b"k", b"v").status == Status.OK
    memcached.process.send_signal(signal.SIGSTOP)
    stat = Path(f"/proc/{memcached.process.pid}/stat")
    servers.wait_until(lambda: " (memcached) T " in stat.read_text(), "the server stands")
    client.send(request(Opcode.GET, b"k"))
    servers.wait_until(
        lambda: tunnel.metric("memtunnel_upstream_requests_in_flight"), "a request is in flight"
    )


def resume(memcached: servers.Memcached) -> None:
    assert memcached.process is not None
    memcached.process.send_signal(signal.SIGCONT)


def test_an_hour_ahead_no_deadline_is_over(
    clock: Clock,
    memcached: servers.Memcached,
    start: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
) -> None:
    tunnel = start(servers.PATIENT)
    client = connect(tunnel)
    stall(memcached, tunnel, client)
    clock.set(HOUR)
    for _ in range(3):
        tunnel.get("/metrics")  # all processes have looked at their timers then
    resume(memcached)
    (frame,) = client.read()
    assert (frame.status, frame.value) == (Status.OK, b"v")


def test_an_hour_back_deadlines_are_over_in_time(
    clock: Clock,
    memcached: servers.Memcached,
    start: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
) -> None:
    tunnel = start()
    client = connect(tunnel)
    stall(memcached, tunnel, client)
    clock.set(-HOUR)
    (frame,) = client.read()
    assert frame.status == Status.NOT_FOUND
    resume(memcached)
    servers.wait_until(lambda: client.get(b"k").value == b"v", "the server is back")
