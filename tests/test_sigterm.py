"""SIGTERM and SIGINT: what was asked is answered, then the tunnel ends with status 0.

One process or several: it is the same.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers

from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode, Status

#: Longer than any test waits: who ends sooner did not wait for it.
LONG = "--drain-timeout=60"
BATCH = 20
ONE = (1).to_bytes(8, "big") + (1).to_bytes(8, "big") + bytes(4)


class Counter(threading.Thread):
    """Adds to a number of its own, batch after batch, until it is told to stop or is closed."""

    def __init__(self, number: int, port: int) -> None:
        super().__init__(name=f"counter {number}")
        self.key = b"count-%d" % number
        self._client = servers.Wire(port)
        self.answered = 0
        self.closed = False
        self.stopping = False
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stopping and not self.closed:
                self._batch()
        except BaseException as problem:
            self.problem = problem
        finally:
            self._client.close()

    def _batch(self) -> None:
        sent = [binary.request(Opcode.INCR, self.key, extras=ONE)] * BATCH
        try:
            self._client.send(*sent)
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True  # between two batches: nothing was asked
            return
        answers = self._client.read(BATCH)
        self.closed = len(answers) < BATCH
        for frame in answers:
            self.answered += 1
            assert frame.status == Status.OK
            assert int.from_bytes(frame.value, "big") == self.answered


@pytest.fixture(params=["--workers=1", "--workers=2"])
def make_tunnel(
    request: pytest.FixtureRequest, make_tunnel: Callable[..., servers.Tunnel]
) -> Iterator[Callable[..., servers.Tunnel]]:
    """Starts tunnels, none of whose processes may be left at the end."""
    processes = []

    def make(*memcacheds: servers.Memcached, flags: tuple[str, ...]) -> servers.Tunnel:
        tunnel = make_tunnel(*memcacheds, flags=(request.param, *flags))
        processes.extend(tunnel.workers)
        return tunnel

    yield make
    assert not any(map(servers.runs, processes))


@pytest.fixture
def counters() -> Any:
    """Starts threads, which have ended when the test has."""
    running: list[Counter] = []

    def start(count: int, port: int) -> list[Counter]:
        running.extend(Counter(number, port) for number in range(count))
        for counter in running:
            counter.start()
        servers.wait_until(
            lambda: all(counter.answered >= 10 * BATCH or counter.problem for counter in running),
            "all clients are at work",
        )
        return running

    yield start
    for counter in running:
        counter.stopping = True
    for counter in running:
        counter.join(servers.PATIENCE)


def assert_executed_as_answered(
    counters: list[Counter], memcached: servers.Memcached, ca_file: Path
) -> None:
    """What the server counted is what the clients were told."""
    direct = servers.Direct(memcached, ca_file)
    for counter in counters:
        assert counter.problem is None, f"{counter.name}: {counter.problem!r}"
        assert int(direct.get(counter.key).value) == counter.answered
    direct.close()


def test_clients_that_leave_within_the_drain_have_all_their_answers(
    make_memcached: Callable[..., Any],
    make_tunnel: Callable[..., Any],
    counters: Callable[..., list[Counter]],
    connect: Callable[..., servers.Wire],
    ca_file: Path,
) -> None:
    memcached = make_memcached()
    tunnel = make_tunnel(memcached, flags=(LONG, servers.PATIENT))
    running = counters(6, tunnel.port)
    tunnel.signal(signal.SIGTERM)
    tunnel.wait_ready(ready=False)
    assert tunnel.state()["draining"] is True
    late = connect(tunnel)
    assert late.get(b"absent").status == Status.NOT_FOUND
    late.close()
    before = [counter.answered for counter in running]
    servers.wait_until(
        lambda: all(
            counter.problem or counter.answered > count
            for counter, count in zip(running, before, strict=True)
        ),
        "clients are served while the tunnel drains",
    )
    for counter in running:
        counter.stopping = True
    for counter in running:
        counter.join(servers.PATIENCE)
    assert tunnel.wait() == 0
    assert not any(counter.closed for counter in running)
    assert_executed_as_answered(running, memcached, ca_file)


def test_clients_that_stay_have_an_answer_to_all_that_was_executed(
    make_memcached: Callable[..., Any],
    make_tunnel: Callable[..., Any],
    counters: Callable[..., list[Counter]],
    ca_file: Path,
) -> None:
    memcached = make_memcached()
    tunnel = make_tunnel(memcached, flags=("--drain-timeout=0.3", servers.PATIENT))
    running = counters(6, tunnel.port)
    tunnel.signal(signal.SIGTERM)
    assert tunnel.wait() == 0
    for counter in running:
        counter.join(servers.PATIENCE)
        assert counter.closed
    assert_executed_as_answered(running, memcached, ca_file)


def test_a_second_sigterm_means_now(
    make_memcached: Callable[..., Any],
    make_tunnel: Callable[..., Any],
    connect: Callable[..., servers.Wire],
) -> None:
    tunnel = make_tunnel(make_memcached(), flags=(LONG,))
    client = connect(tunnel)
    assert client.get(b"absent").status == Status.NOT_FOUND
    tunnel.signal(signal.SIGTERM)
    tunnel.wait_ready(ready=False)
    assert client.get(b"absent").status == Status.NOT_FOUND
    tunnel.signal(signal.SIGTERM)
    assert tunnel.wait() == 0
    assert "Traceback" not in tunnel.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_clients_it_ends_at_once(
    number: int, make_memcached: Callable[..., Any], make_tunnel: Callable[..., Any]
) -> None:
    tunnel = make_tunnel(make_memcached(), flags=(LONG,))
    tunnel.signal(number)
    assert tunnel.wait() == 0


def test_it_ends_while_its_server_cannot_be_reached(started: list[Any], ca_file: Path) -> None:
    tunnel = servers.Tunnel(
        f"--server=127.0.0.1:{servers.free_port()}", f"--ca-file={ca_file}", LONG
    )
    started.append(tunnel)
    tunnel.start()
    tunnel.signal(signal.SIGTERM)
    assert tunnel.wait() == 0
