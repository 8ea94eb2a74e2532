"""What is asked of memtier_benchmark, what it says, and which rounds are void for it."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memtier, processes, programs, rounds
from benchmarks.contenders import Contender
from benchmarks.shapes import LARGE, Load, Measure, Shape

LOAD = Load(clients=2)
#: A report of memtier_benchmark (commit 2f74d611) on two clients and two seconds, cut short.
SAMPLE: dict[str, Any] = {
    "configuration": {"server": "127.0.0.1", "protocol": "memcache_binary", "clients": 2},
    "run information": {"Threads": 1, "Connections per thread": 2, "Seconds": 2},
    "ALL STATS": {
        "Runtime": {"Total duration": 2000, "Time unit": "MILLISECONDS", "Interrupted": "false"},
        "Totals": {
            "Count": 88304,
            "Ops/sec": 44149.99,
            "Hits/sec": 40135.67,
            "Misses/sec": 0.00,
            "Connection Errors/sec": 0.00,
            "Connection Errors": 0,
            "Average Latency": 0.000,
            "Min Latency": 0.008,
            "Max Latency": 3.039,
            "Time-Serie": {
                "0": {"Bytes RX": 0, "Count": 42146, "Average Latency": 0.047, "p50.00": 0.039},
                "1": {"Bytes RX": 0, "Count": 46156, "Average Latency": 0.043, "p50.00": 0.031},
                "2": {"Bytes RX": 0, "Count": 2, "Average Latency": 0.089, "p50.00": 0.023},
            },
            "Percentile Latencies": {"p50.00": 0.039, "p99.00": 0.143, "p99.90": 0.231},
        },
    },
}
#: Its words at that.
WORDS = (
    "Json file a.json created...\n"
    "Writing results to stdout\n"
    "[RUN #1] Preparing benchmark client...\n"
    "[RUN #1] Launching threads now...\n"
    "[RUN #1 50%,   1 secs]  1 threads  2 conns:       42146 ops,   42144 (avg:   42144) ops/sec\r"
    "[RUN #1 100%,   2 secs]  0 threads  2 conns:       88304 ops,   46155 (avg:   44149) ops/sec\n"
    "\n\nSaving JSON output file: a.json\nJson file closed.\n"
)
#: And where nobody listens.
REFUSED = (
    "[RUN #1] Launching threads now...\n"
    "Connection error: Connection refused\n"
    "Maximum reconnection attempts (0) exceeded for Connection error, triggering thread restart.\n"
)


def sample(**totals: Any) -> str:
    changed = copy.deepcopy(SAMPLE)
    changed["ALL STATS"]["Totals"].update(totals)
    return json.dumps(changed)


# The command


def test_a_load_is_asked_for() -> None:
    load = Load(clients=200, pipeline=10, values=LARGE)
    command = memtier.command(load, 11211, 4, Path("/tmp/report"), "--tls")
    assert command[0] == "memtier_benchmark"
    assert set(command[1:]) == {
        "--server=127.0.0.1",
        "--port=11211",
        "--protocol=memcache_binary",
        "--threads=2",
        "--clients=100",
        "--pipeline=10",
        "--data-size=500000",
        "--key-minimum=11001",
        "--key-maximum=11100",
        "--key-pattern=R:R",
        "--ratio=1:10",
        "--distinct-client-seed",
        "--test-time=5",
        "--hide-histogram",
        "--json-out-file=/tmp/report",
        "--tls",
    }


@pytest.mark.parametrize(("clients", "threads"), [(1, 1), (2, 2), (25, 1), (1000, 2)])
def test_threads_share_the_clients_evenly(clients: int, threads: int) -> None:
    command = memtier.command(Load(clients=clients), 11211, 4, Path("report"))
    assert f"--threads={threads}" in command
    assert f"--clients={clients // threads}" in command


def test_clients_connect_anew_if_asked_to() -> None:
    command = memtier.command(Load(reconnect=10), 11211, 4, Path("report"))
    assert "--reconnect-interval=10" in command


# What it says


def test_the_second_in_which_clients_connect_does_not_count() -> None:
    report = memtier.read(sample(), WORDS, LOAD, 1)
    assert report.trouble == ""
    assert report.figures == {
        Measure.THROUGHPUT: 46156,
        Measure.P50: pytest.approx(0.000039),
        Measure.P99: pytest.approx(0.000143),
        Measure.P999: pytest.approx(0.000231),
        Measure.WHOLE: 2 / 46156,
    }


def test_seconds_without_an_answer_count_too() -> None:
    series = {"0": {"Count": 10}, "2": {"Count": 30}}
    report = memtier.read(sample(**{"Time-Serie": series}), WORDS, LOAD, 3)
    assert report.figures[Measure.THROUGHPUT] == 10


@pytest.mark.parametrize(
    ("totals", "words", "trouble"),
    [
        ({"Misses/sec": 0.25}, WORDS, "misses: 0.25 a second"),
        ({"Connection Errors": 2}, WORDS, "connection errors: 2"),
        ({}, WORDS + "server error: out of memory\n", "server error: out of memory"),
        ({}, "50%\rerror: bad\r100%\n", "error: bad"),
        ({"Time-Serie": {"0": {"Count": 9}}}, WORDS, "no request was answered"),
        ({"Time-Serie": {}}, REFUSED, "Connection error: Connection refused"),
    ],
)
def test_trouble(totals: dict[str, Any], words: str, trouble: str) -> None:
    report = memtier.read(sample(**totals), words, LOAD, 1)
    assert report.trouble == trouble


# Rounds


class Fake(Contender):
    """Nothing at all; its answers that were not the server's are given."""

    def __init__(self, *degraded: float | OSError) -> None:
        self.name = "fake"
        self.port = 1
        self._degraded = list(degraded)

    def flags(self) -> list[str]:
        return []

    def degraded(self) -> float:
        said = self._degraded.pop(0)
        if isinstance(said, OSError):
            raise said
        return said


@pytest.fixture
def at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A round takes no time. The folder of the program that is memtier_benchmark."""
    programs_of_test = tmp_path / "bin"
    programs_of_test.mkdir()
    monkeypatch.setenv("PATH", f"{programs_of_test}:/usr/bin:/bin")
    monkeypatch.setattr(rounds, "WARM_UP", 0)
    monkeypatch.setattr(rounds.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(processes, "connections", lambda who, port: 2)
    return programs_of_test


def put_memtier(folder: Path, script: str) -> None:
    program = folder / memtier.PROGRAM
    program.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    program.chmod(0o755)


def put_report(folder: Path) -> None:
    """It says what the sample says."""
    put_memtier(
        folder,
        f"(path,) = (each[16:] for each in sys.argv if each.startswith('--json-out-file='))\n"
        f"open(path, 'w').write({sample()!r})",
    )


def a_round(contender: Fake, folder: Path) -> rounds.Round:
    contender.dials = 1
    shape = Shape(name="2x1", title="2 clients", loads=(LOAD,))
    return rounds.run(shape, contender, 3, 1, folder)


def test_a_round(at_once: Path, tmp_path: Path) -> None:
    put_report(at_once)
    done = a_round(Fake(5, 5), tmp_path)
    assert (done.shape, done.contender, done.number, done.void) == ("2x1", "fake", 3, "")
    (figures,) = done.figures
    assert figures[Measure.THROUGHPUT] == 46156
    assert figures[Measure.CONNECTIONS] == 2


def test_degraded_replies_void_a_round(at_once: Path, tmp_path: Path) -> None:
    put_report(at_once)
    assert a_round(Fake(5, 7), tmp_path).void == "degraded replies: 2"


def test_memtiers_failure_voids_a_round(at_once: Path, tmp_path: Path) -> None:
    put_memtier(at_once, f"sys.stderr.write({REFUSED!r})\nsys.exit(1)")
    assert a_round(Fake(0, 0), tmp_path).void == "Connection error: Connection refused"
    put_memtier(at_once, "sys.exit(3)")
    assert a_round(Fake(0, 0), tmp_path).void == "memtier's status: 3"


def test_a_load_without_an_end_voids_a_round(
    at_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "PATIENCE", 0)
    put_memtier(at_once, "import time\ntime.sleep(60)")
    assert a_round(Fake(0, 0), tmp_path).void == "memtier did not end within 0 s of its time"


def test_what_befalls_a_round_does_not_end_the_bench(at_once: Path, tmp_path: Path) -> None:
    done = a_round(Fake(ConnectionRefusedError("nobody there")), tmp_path)
    assert done.void == "ConnectionRefusedError: nobody there"
    assert done.figures == ({},)
    done = a_round(Fake(0, 0), tmp_path)  # no memtier
    assert done.void.startswith("FileNotFoundError: ")


# Programs


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    needed = programs.needed(["none", "haproxy", "memtunnel"])
    assert needed == ["memtier_benchmark", "memcached", "saslpasswd2", "haproxy"]
    first, *_, last = programs.missing(needed)
    home = "https://github.com/RedisLabs/memtier_benchmark"
    assert first == f"memtier_benchmark is not on PATH; it is to be had here: {home}"
    assert last == (
        "haproxy is not on PATH; it is to be had here: on Debian: apt-get install haproxy"
    )
