"""A stand-in for memtier_benchmark, and what it has in common with the real one.

Run as a program it sends real requests from one thread, and reports what the bench reads. It was
modelled on memtier_benchmark of August 2026 (commit 2f74d611): its JSON report, cut down to the
totals, and an error of a connection as a line on standard error. Keys are random, and clients
take turns. It does not connect anew, and has no statistics but those.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import servers

from benchmarks import memtier
from benchmarks.shapes import Load, Measure, Values
from memtunnel.wire.binary import Opcode, Status, request

REAL = shutil.which(memtier.PROGRAM)
LOAD = Load(clients=2, pipeline=3, values=Values(100, 1, 50))


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("port", "threads", "clients", "pipeline", "data-size", "test-time"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("key-minimum", "key-maximum"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--cacert")
    parser.add_argument("--json-out-file", type=Path)
    asked, _ = parser.parse_known_args()
    clients: list[servers.Wire] = []
    with contextlib.ExitStack() as stack:
        try:
            for _ in range(asked.threads * asked.clients):
                clients.append(stack.enter_context(contextlib.closing(connect(asked))))
        except ConnectionRefusedError:
            time.sleep(asked.test_time)  # the real one tries on, and without an end
            sys.exit("Connection error: Connection refused")
        totals = run(clients, asked)
    asked.json_out_file.write_text(json.dumps({"ALL STATS": {"Totals": totals}}))


def connect(asked: argparse.Namespace) -> servers.Wire:
    """A client. Where there is TLS, it logs in with the name and password of tests."""
    if asked.tls:
        server: Any = SimpleNamespace(port=asked.port)
        return servers.Direct(server, asked.cacert)
    return servers.Wire(asked.port)


def run(clients: list[servers.Wire], asked: argparse.Namespace) -> dict[str, Any]:
    """Ask until the time is over. The totals of memtier's report."""
    seconds: Counter[int] = Counter()
    latencies: list[float] = []
    misses = 0
    value = b"v" * asked.data_size
    began = time.monotonic()
    while (now := time.monotonic() - began) < asked.test_time:
        for client in clients:
            frames = []
            for _ in range(asked.pipeline):
                key = b"memtier-%d" % random.randint(asked.key_minimum, asked.key_maximum)
                if random.randrange(11):
                    frames.append(request(Opcode.GET, key))
                else:
                    frames.append(request(Opcode.SET, key, extras=bytes(8), value=value))
            client.send(*frames)
            answers = client.read(len(frames))
            misses += sum(answer.status == Status.NOT_FOUND for answer in answers)
            latencies += [time.monotonic() - began - now] * len(answers)
            seconds[int(now)] += len(answers)
    latencies.sort()
    return {
        "Misses/sec": misses / asked.test_time,
        "Connection Errors": 0,
        "Time-Serie": {str(second): {"Count": count} for second, count in seconds.items()},
        "Percentile Latencies": {
            f"p{percent}": latencies[int(len(latencies) * float(percent) / 100)] * 1000
            for percent in ("50.00", "99.00", "99.90")
        },
    }


def install(folder: Path) -> None:
    """Put this on PATH there, as memtier_benchmark."""
    folder.mkdir()
    program = folder / memtier.PROGRAM
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n')
    program.chmod(0o755)


@pytest.fixture(
    params=[
        "fake",
        pytest.param(
            "real",
            marks=[
                pytest.mark.full,
                pytest.mark.skipif(REAL is None, reason=f"{memtier.PROGRAM} is not on PATH"),
            ],
        ),
    ]
)
def measure(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], memtier.Report]:
    """Runs the load on a port for a second."""
    monkeypatch.setattr(memtier, "WARM_UP", 0)
    if request.param == "fake":
        install(tmp_path / "bin")
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))

    def run(port: int) -> memtier.Report:
        report = tmp_path / "report.json"
        command = memtier.command(LOAD, port, 1, report)
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return memtier.read(report.read_text(), done.stderr, LOAD, 1)

    return run


def test_hits_count(
    measure: Callable[[int], memtier.Report],
    make_memcached: Callable[..., servers.Memcached],
    connect: Callable[..., servers.Wire],
) -> None:
    memcached = make_memcached(pair=None, sasl=False)
    client = connect(memcached)
    for key in LOAD.values.keys:
        client.set(key, b"v" * LOAD.values.size)
    report = measure(memcached.port)
    assert report.trouble == ""
    assert set(report.figures) == {
        Measure.THROUGHPUT,
        Measure.P50,
        Measure.P99,
        Measure.P999,
        Measure.WHOLE,
    }
    assert all(figure > 0 for figure in report.figures.values())
    ordered = [report.figures[each] for each in (Measure.P50, Measure.P99, Measure.P999)]
    assert ordered == sorted(ordered)
    # A client has three requests on the way, and the next ones leave when these are answered.
    assert report.figures[Measure.WHOLE] * report.figures[Measure.THROUGHPUT] == pytest.approx(6)


def test_misses_are_trouble(
    measure: Callable[[int], memtier.Report], make_memcached: Callable[..., servers.Memcached]
) -> None:
    memcached = make_memcached(pair=None, sasl=False)
    assert measure(memcached.port).trouble.startswith("misses: ")


if __name__ == "__main__":
    main()
