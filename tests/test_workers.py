"""``--workers``: several processes that look like one tunnel.

First the real thing; then, for what takes its time or seldom happens, the parent alone, with
workers that the test plays.
"""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import servers
from prometheus_client import parser
from prometheus_client.samples import Sample
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone, ProcessDone, ProcessTerminated
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from memtunnel.channel import Ask, Begin, Channel, Drain, Reading, Room, Said, Stop
from memtunnel.config import load
from memtunnel.ops import totals
from memtunnel.ops.metrics import Metrics, State
from memtunnel.wire import binary
from memtunnel.wire.binary import Opcode, Status
from memtunnel.worker import new_metrics
from memtunnel.workers import AFTERMATH, FAREWELL, PATIENCE, SILENCE, TICK, Workers

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


def samples(tunnel: servers.Tunnel) -> list[Sample]:
    """All that ``/metrics`` tells."""
    families = parser.text_string_to_metric_families(tunnel.get("/metrics")[1])
    return [sample for family in families for sample in family.samples]


def counters(tunnel: servers.Tunnel) -> dict[Any, float]:
    """What must never fall."""
    ends = ("_total", "_bucket", "_count", "_sum")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for sample in samples(tunnel)
        if sample.name.endswith(ends)
    }


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
    assert tunnel.metric("memtunnel_request_duration_seconds_bucket", le="2.5") == 10
    assert tunnel.metric("memtunnel_client_connections") == 4
    assert tunnel.metric("memtunnel_client_connections_opened_total") == opened
    assert tunnel.metric("memtunnel_client_connections_max") == 4
    assert tunnel.metric("memtunnel_client_received_bytes_total") == 4 * 30 + 6 * 34
    assert tunnel.metric("memtunnel_client_sent_bytes_total") == 4 * 33 + 6 * 24
    assert tunnel.metric("memtunnel_upstream_connections", state="warm") == 4
    assert tunnel.metric("memtunnel_upstream_connections_target") == 4
    for worker in ("1", "2"):
        assert tunnel.metric("memtunnel_upstream_up", worker=worker) == 1
        assert tunnel.metric("memtunnel_tls_info", worker=worker) == 1
    check = [servers.need("promtool"), "check", "metrics"]
    done = subprocess.run(check, input=text, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.usefixtures("clients")
def test_each_process_has_its_part(tunnel: servers.Tunnel) -> None:
    workers = tunnel.state()["workers"]
    assert {number: worker["clients"] for number, worker in workers.items()} == {"1": 2, "2": 2}
    assert sorted(worker["pid"] for worker in workers.values()) == sorted(tunnel.workers)
    told = samples(tunnel)
    by_worker = defaultdict(set)
    for sample in told:
        if "worker" in sample.labels:
            by_worker[sample.name].add(sample.labels["worker"])
    # A sum would say nothing of these.
    assert by_worker == {
        "memtunnel_queue_oldest_seconds": {"1", "2"},
        "memtunnel_tls_certificate_not_after_timestamp_seconds": {"1", "2"},
        "memtunnel_tls_info": {"1", "2"},
        "memtunnel_upstream_breaker_open": {"1", "2"},
        "memtunnel_upstream_up": {"1", "2"},
    }
    buckets = defaultdict(list)
    for sample in told:
        if sample.name == "memtunnel_upstream_duration_seconds_bucket":
            buckets[sample.labels["server"]].append(sample.value)
    assert buckets["server0"] == sorted(buckets["server0"])
    assert buckets["server0"][-1] == 4
    assert tunnel.process is not None
    pids = [tunnel.process.pid, *tunnel.workers]
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
    # Whichever worker has room, the client finds it: the full one leaves it alone.
    for _ in range(8):
        clients.pop(0).close()
        servers.wait_until(
            lambda: tunnel.metric("memtunnel_client_connections") == 3, "one client has left"
        )
        clients.append(connect(tunnel))
        assert clients[-1].get(b"absent").status == Status.NOT_FOUND
    assert tunnel.metric("memtunnel_client_connections_rejected_total") == 1
    for client in clients:
        assert client.get(b"absent").status == Status.NOT_FOUND


# One of them ends


def test_a_worker_that_dies_is_replaced_and_its_counts_are_kept(
    tunnel: servers.Tunnel, clients: list[servers.Wire], connect: Callable[..., servers.Wire]
) -> None:
    before = tunnel.metric("memtunnel_commands_total")
    opened = tunnel.metric("memtunnel_client_connections_opened_total")
    killed, other = tunnel.workers
    seen = [counters(tunnel)]
    os.kill(killed, signal.SIGKILL)

    def replaced() -> bool:
        seen.append(counters(tunnel))
        return len(set(tunnel.workers) - {killed}) == 2 and tunnel.get("/readyz")[0] == 200

    servers.wait_until(replaced, "another worker is ready")
    for earlier, later in pairwise(seen):
        assert [key for key, value in earlier.items() if later.get(key, 0) < value] == []
    assert other in tunnel.workers
    closed = [client for client in clients if is_closed(client)]
    assert len(closed) == 2
    for client in closed:
        clients.remove(client)
    clients += [connect(tunnel), connect(tunnel)]
    assert [client.get(b"absent").status for client in clients] == [Status.NOT_FOUND] * 4
    assert tunnel.metric("memtunnel_commands_total") == before + 4
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


def stat_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_p3_what_is_in_flight_when_the_parent_ends_is_answered(
    number: signal.Signals,
    tunnel: servers.Tunnel,
    clients: list[servers.Wire],
    started: list[Any],
) -> None:
    (memcached,) = (each.process for each in started if isinstance(each, servers.Memcached))
    assert memcached is not None
    workers = tunnel.workers
    memcached.send_signal(signal.SIGSTOP)
    servers.wait_until(lambda: " (memcached) T " in stat_of(memcached.pid), "the server stands")
    try:
        for client in clients:
            client.send(*[binary.request(Opcode.GET, b"absent")] * 3)
        servers.wait_until(
            lambda: tunnel.metric("memtunnel_upstream_requests_in_flight") == 12, "all are sent"
        )
        tunnel.signal(number)
        if number == signal.SIGKILL:
            assert tunnel.wait() == -number
            servers.wait_until(lambda: not servers.connects(tunnel.port), "the port is free")
        else:
            tunnel.wait_ready(ready=False)
    finally:
        memcached.send_signal(signal.SIGCONT)
    for client in clients:
        assert [frame.status for frame in client.read(3)] == [Status.NOT_FOUND] * 3
        client.close()
    if number == signal.SIGTERM:
        assert tunnel.wait() == 0
    servers.wait_until(lambda: not any(map(servers.runs, workers)), "the workers end")


def test_without_their_parent_they_accept_nobody_even_if_it_had_told_them_to_drain(
    make_memcached: Callable[..., Any],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
) -> None:
    tunnel = make_tunnel(make_memcached(), flags=(*TWO, "--drain-timeout=10"))
    client = connect(tunnel)
    assert client.get(b"absent").status == Status.NOT_FOUND
    tunnel.signal(signal.SIGTERM)
    tunnel.wait_ready(ready=False)
    tunnel.signal(signal.SIGKILL)
    assert tunnel.wait() == -signal.SIGKILL
    servers.wait_until(lambda: not servers.connects(tunnel.port), "the port is free", 3)
    assert client.get(b"absent").status == Status.NOT_FOUND


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


def test_a_unix_socket_is_shared_too(
    make_memcached: Callable[..., Any], make_tunnel: Callable[..., servers.Tunnel], tmp_path: Path
) -> None:
    path = tmp_path / "tunnel"
    tunnel = make_tunnel(make_memcached(), flags=(*TWO, f"--listen=unix:{path}:mode=600"))
    for _ in range(8):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(servers.PATIENCE)
            client.connect(str(path))
            client.sendall(binary.request(Opcode.NOOP, opaque=b"unix"))
            ((_, opcode, *_),), _ = binary.split(client.recv(100))
            assert opcode == Opcode.NOOP
    mode = stat.S_IMODE(path.stat().st_mode)
    tunnel.signal(signal.SIGTERM)
    assert tunnel.wait() == 0
    left = [each.name for each in tmp_path.glob("tunnel*")]
    assert (mode, left) == (0o600, [])


def test_modules_of_the_working_directory_are_nobodys(
    make_memcached: Callable[..., Any], make_tunnel: Callable[..., servers.Tunnel], tmp_path: Path
) -> None:
    (tmp_path / "platform.py").write_text("raise SystemExit('a module of the app was imported')")
    make_tunnel(make_memcached(), flags=TWO, folder=tmp_path)


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


# The parent alone


class Process:
    """A worker that the test plays."""

    def __init__(
        self, protocol: Any, command: list[str], environ: dict[str, str], channel: Any
    ) -> None:
        self.protocol = protocol
        self.command = command
        self.environ = environ
        self.signals: list[str] = []
        self.channel = channel
        """The parent's end."""
        self.wire: StringTransport = channel.transport
        protocol.makeConnection(self)

    def signalProcess(self, name: str) -> None:
        self.signals.append(name)

    def told(self) -> list[Any]:
        """What it was told since this was asked last."""
        told: list[Any] = []
        hears: Any = Channel(told.append, lambda: None)
        hears.makeConnection(StringTransport())
        hears.dataReceived(self.wire.value())
        self.wire.clear()
        return told

    def says(self, message: Any) -> None:
        says: Any = Channel(lambda _: None, lambda: None)
        wire = StringTransport()
        says.makeConnection(wire)
        says.tell(message)
        self.channel.dataReceived(wire.value())

    def reads(self, number: int, counted: Metrics, **state: Any) -> None:
        """Answer that `Ask`."""
        self.says(Reading(number=number, counts=totals.counts(counted), state=one_state(**state)))

    def ends(self, reason: Exception | None = None) -> None:
        """End: with the reason that the reactor gives, else by a signal."""
        self.protocol.processEnded(Failure(reason or ProcessTerminated(signal=9)))
        self.channel.connectionLost(Failure(ConnectionDone()))


def one_state(**parts: Any) -> State:
    told: dict[str, Any] = {"ready": True, "draining": False, "client_paused": 0}
    told |= {"buffered_bytes": 0, "client_connections_max": 2, "servers": {}}
    told |= {"config_last_reload_successful": True}
    return State(**told | parts)


class Machine(MemoryReactorClock):
    """A reactor that runs, and whose processes are played."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.hasRun = True
        self.processes: list[Process] = []
        self.adopted: list[Any] = []
        """The parent's ends, until their process is there."""
        self.lacks_processes = False

    def spawnProcess(
        self, protocol: Any, executable: str, args: list[str], env: dict[str, str], childFDs: Any
    ) -> None:
        assert executable == sys.executable
        if self.lacks_processes:
            raise OSError("no process is left")
        self.processes.append(Process(protocol, args, env, self.adopted.pop()))

    def adoptStreamConnection(self, descriptor: int, family: int, factory: Any) -> None:
        channel = factory.buildProtocol(None)
        channel.makeConnection(StringTransport())
        self.adopted.append(channel)


class ListeningPort:
    """A port of the parent."""

    def __init__(self) -> None:
        self.reading = True
        self.closed = False
        self.socket = socket.socket()

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 11211)

    def fileno(self) -> int:
        return self.socket.fileno()

    def startReading(self) -> None:
        self.reading = True

    def stopReading(self) -> None:
        self.reading = False

    def stopListening(self) -> None:
        self.closed = True
        self.socket.close()


ENVIRON = {
    "MEMTUNNEL_SERVER": "a",
    "MEMTUNNEL_USERNAME": servers.USERNAME,
    "MEMTUNNEL_PASSWORD": servers.PASSWORD,
    "MEMTUNNEL_WORKERS": "2",
    "MEMTUNNEL_MAX_CLIENTS": "5",
}


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def port() -> Iterator[ListeningPort]:
    port = ListeningPort()
    yield port
    port.stopListening()


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What is logged meanwhile as a warning."""
    said: list[str] = []

    def note(event: LogEvent) -> None:
        if event["log_level"].name == "warn":
            said.append(formatEvent(event))

    log: Any = globalLogPublisher
    log.addObserver(note)
    yield said
    log.removeObserver(note)


@pytest.fixture
def workers(machine: Machine, port: ListeningPort) -> Workers:
    """A parent that has just started two."""
    config = load({}, ENVIRON)
    workers = Workers(config, machine, None, config.max_clients, {"PATH": "here"})
    workers.serve(workers.listener(), port)
    workers.start()
    return workers


def scrape(workers: Workers) -> list[Metrics]:
    """What a scrape gets; nothing as long as it waits."""
    got: list[Metrics] = []
    workers.read().addCallback(got.append)
    return got


def asked(process: Process) -> int:
    """The number of the `Ask` that it was told last."""
    return max(each.number for each in process.told() if isinstance(each, Ask))


def lag(*observed: float) -> Metrics:
    """The metrics of a worker that has seen this."""
    metrics = new_metrics(None)
    for each in observed:
        metrics.event_loop_lag.observe(each)
    return metrics


def test_workers_get_what_is_divided_and_no_secret_where_others_look(
    workers: Workers, machine: Machine
) -> None:
    begins = [process.told()[0] for process in machine.processes]
    assert all(isinstance(begin, Begin) for begin in begins)
    assert [begin.settings.max_clients for begin in begins] == [3, 2]
    assert [begin.settings.config.max_buffer for begin in begins] == [128 << 20] * 2
    for process in machine.processes:
        assert servers.PASSWORD not in " ".join((*process.command, *process.environ.values()))
        assert process.environ.keys() == {"PATH", "PYTHONPATH"}


def test_nobody_is_turned_away_while_one_has_room(
    workers: Workers, machine: Machine, port: ListeningPort
) -> None:
    one, other = machine.processes
    reading = [port.reading]
    for process, left in ((one, False), (other, False), (one, True), (one, False)):
        process.says(Room(left=left))
        reading.append(port.reading)
    other.ends()  # those who come wait until there is another
    reading.append(port.reading)
    assert reading == [False, False, True, False, True, False]


def test_a_scrape_waits_for_all_but_not_for_long(workers: Workers, machine: Machine) -> None:
    one, other = machine.processes
    got = scrape(workers)
    for process in machine.processes:
        assert got == []
        process.reads(asked(process), lag(1.0))
    assert sum(got[0].event_loop_lag.counts) == 2
    late = scrape(workers)
    one.reads(asked(one), lag(1.0, 1.0))
    machine.advance(PATIENCE * 0.99)
    assert late == []
    machine.advance(PATIENCE * 0.02)
    # Of the other one it has what that said before.
    assert sum(late[0].event_loop_lag.counts) == 3
    del other


def test_a_scrape_has_all_that_was_counted_before_it(workers: Workers, machine: Machine) -> None:
    one, other = machine.processes
    machine.advance(TICK)
    one.reads(asked(one), lag())
    # Then something happens, and whoever has seen it looks, while the other one is still busy.
    got = scrape(workers)
    other.reads(asked(other), lag())
    if not got:
        one.reads(asked(one), lag(1.0))
        other.reads(asked(other), lag())
    assert sum(got[0].event_loop_lag.counts) == 1


def test_no_sum_ever_falls_when_a_worker_ends(workers: Workers, machine: Machine) -> None:
    """Not even by a rounding: Prometheus would take it for a counter that began anew."""
    one, other = machine.processes
    seen = [0.0]

    def look(counted: dict[Process, float]) -> None:
        got = scrape(workers)
        for process, seconds in counted.items():
            process.reads(asked(process), lag(seconds))
        seen.append(got[0].event_loop_lag.sum)

    # 0.4 + 0.8 + 0.3 is more than 0.4 + 0.3 + 0.8.
    look({one: 0.4, other: 0.8})
    one.ends()
    look({other: 0.8})
    machine.advance(2 * TICK)
    machine.advance(PATIENCE)  # no reading is under way
    third = machine.processes[-1]
    look({other: 0.8, third: 0.3})
    third.ends()
    look({other: 0.8})
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.5)


def test_clients_of_a_worker_that_has_ended_are_gone(workers: Workers, machine: Machine) -> None:
    one, other = machine.processes
    counted = lag()
    listener = counted.listener(workers.listeners[0].address)
    listener.connections = listener.opened = 2
    for process in machine.processes:
        process.reads(asked(process), counted)
    one.ends()
    got = scrape(workers)
    other.reads(asked(other), counted)
    (told,) = got[0].listeners.values()
    assert (told.connections, told.opened) == (2, 4)


def test_one_that_ends_again_and_again_is_replaced_with_pauses(
    workers: Workers, machine: Machine, warnings: list[str]
) -> None:
    pauses = []
    for number in range(1, 8):
        machine.processes[-1].ends()
        assert len(warnings) == number
        began = machine.seconds()
        for _ in range(300):
            if len(machine.processes) < 2 + number:
                machine.advance(0.01)
        pauses.append(machine.seconds() - began)
    assert max(pauses) < 2.1
    assert min(pauses[3:]) > 0.99
    # Once one has worked for a while, it is replaced soon; to have begun is not enough.
    for works, replaced in ((False, 9), (True, 11)):
        last = machine.processes[-1]
        if works:
            for _ in range(11):
                machine.advance(1.0)
        last.reads(asked(last), lag())
        last.ends()
        machine.advance(0.21)
        assert len(machine.processes) == replaced
        machine.advance(2.0)
    assert len(machine.processes) == 11
    assert set(warnings) == {"worker 2 has ended: signal 9; another takes its place"}


def test_one_that_works_does_not_hurry_one_that_ends_again_and_again(
    workers: Workers, machine: Machine
) -> None:
    works = machine.processes[0]
    for _ in range(12):
        machine.advance(1.0)
        works.reads(asked(works), lag())
    for _ in range(6):
        machine.processes[-1].ends()
        for _ in range(30):
            machine.advance(0.1)
            works.reads(1, lag())
    machine.processes[-1].ends()
    before = len(machine.processes)
    works.reads(1, lag())
    machine.advance(0.9)
    assert len(machine.processes) == before
    machine.advance(1.2)
    assert len(machine.processes) == before + 1


def test_one_that_cannot_be_started_is_tried_again(
    workers: Workers, machine: Machine, warnings: list[str]
) -> None:
    machine.lacks_processes = True
    machine.processes[-1].ends()
    for _ in range(50):
        machine.advance(0.1)
    assert len(machine.processes) == 2
    assert "worker 2 cannot be started: no process is left" in warnings
    machine.lacks_processes = False
    for _ in range(30):
        machine.advance(0.1)
    assert len(machine.processes) == 3


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (ProcessDone(0), "exit status 0"),
        (ProcessTerminated(3), "exit status 3"),
        (ProcessTerminated(signal=11), "signal 11"),
    ],
)
def test_how_one_has_ended_is_told(
    reason: Exception, words: str, workers: Workers, machine: Machine, warnings: list[str]
) -> None:
    machine.processes[0].ends(reason)
    assert warnings == [f"worker 1 has ended: {words}; another takes its place"]


def test_what_a_worker_said_last_is_logged_before_its_end(
    workers: Workers, machine: Machine, warnings: list[str]
) -> None:
    process = machine.processes[0]
    process.protocol.processEnded(Failure(ProcessTerminated(1)))
    process.says(Said(level="warn", format="{it} broke", fields={"it": "one"}))
    process.channel.connectionLost(Failure(ConnectionDone()))
    assert [line.split(":")[0] for line in warnings] == ["worker 1", "worker 1 has ended"]
    assert warnings[0] == "worker 1: one broke"


def test_one_that_says_nothing_is_missed(
    workers: Workers, machine: Machine, warnings: list[str]
) -> None:
    one, other = machine.processes
    machine.advance(2 * SILENCE)
    assert workers.responsive, "they have not begun yet"
    for process in machine.processes:
        process.reads(asked(process), lag())
    machine.advance(SILENCE / 2)
    one.says(Room(left=True))
    assert workers.responsive
    machine.advance(SILENCE / 2)
    assert not workers.responsive
    read: list[Metrics] = []
    workers.read().addCallback(read.append)
    for seconds in (PATIENCE, PATIENCE, TICK):
        machine.advance(seconds)
    assert [metrics.state().silent for metrics in read] == [("2",)]
    assert warnings == ["worker 2 does not answer"]
    # It is not asked on and on, and is back as soon as it answers.
    assert Ask in {type(message) for message in one.told()}
    other.told()
    machine.advance(1.0)
    assert other.told() == []
    for process in machine.processes:
        process.says(Room(left=True))
    assert workers.responsive
    of_it = [words for words in warnings if words.startswith("worker 2")]
    assert of_it == ["worker 2 does not answer", "worker 2 answers again"]


def test_all_drain_and_none_is_replaced(
    workers: Workers, machine: Machine, port: ListeningPort, warnings: list[str]
) -> None:
    drained: list[None] = []
    workers.drain().addCallback(drained.append)
    for process in machine.processes:
        assert process.told()[-1] == Drain()
    machine.processes[0].ends(ProcessDone(0))
    machine.advance(4.9)
    assert (drained, port.closed) == ([], False)
    machine.advance(0.2)
    assert port.closed
    machine.processes[1].ends(ProcessDone(0))
    assert drained == [None]
    assert (len(machine.processes), warnings) == (2, [])


def test_who_does_not_end_is_killed(workers: Workers, machine: Machine) -> None:
    one, other = machine.processes
    workers.drain()
    machine.advance(5 + 0.4 + AFTERMATH - 0.1)
    assert one.signals == []
    machine.advance(0.2)
    assert (one.signals, other.signals) == (["KILL"], ["KILL"])


def test_a_second_signal_ends_all_at_once(
    workers: Workers, machine: Machine, port: ListeningPort
) -> None:
    one, other = machine.processes
    stopped: list[object] = []
    workers.drain()
    workers.stop().addCallback(stopped.append)
    for process in machine.processes:
        assert process.told()[-1] == Stop()
    assert port.closed
    one.ends(ProcessDone(0))
    machine.advance(FAREWELL)
    assert (one.signals, other.signals, stopped) == ([], ["KILL"], [])
    other.ends()
    assert len(stopped) == 1


def test_one_that_was_to_be_replaced_is_not_once_all_end(
    workers: Workers, machine: Machine
) -> None:
    drained: list[None] = []
    for process in machine.processes:
        process.ends()
    workers.drain().addCallback(drained.append)
    machine.advance(10)
    assert drained == [None]
    assert len(machine.processes) == 2
