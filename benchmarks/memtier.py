"""memtier_benchmark: how a load is asked of it, and what it says.

Two of its own figures are not used. Its rate divides by a time that is wrong by a second where
connections are slow to end; the counts of its seconds are right. Its latencies begin when a
client is connected, so that those who connect for every request need `Measure.WHOLE`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shapes import Load, Measure

PROGRAM = "memtier_benchmark"
HOME = "https://github.com/RedisLabs/memtier_benchmark"
#: Seconds at the start that do not count: clients connect in them.
WARM_UP = 1


def command(load: Load, port: int, seconds: int, report: Path, *more: str) -> list[str]:
    """Run `load` on a port of this machine for so many seconds that count."""
    threads = 1 if load.clients % 2 else 2
    return [
        PROGRAM,
        "--server=127.0.0.1",
        f"--port={port}",
        "--protocol=memcache_binary",
        f"--threads={threads}",
        f"--clients={load.clients // threads}",
        f"--pipeline={load.pipeline}",
        f"--data-size={load.values.size}",
        f"--key-minimum={load.values.first}",
        f"--key-maximum={load.values.last}",
        "--key-pattern=R:R",
        "--ratio=1:10",
        "--distinct-client-seed",
        f"--test-time={WARM_UP + seconds}",
        "--hide-histogram",
        f"--json-out-file={report}",
        *([f"--reconnect-interval={load.reconnect}"] if load.reconnect else []),
        *more,
    ]


@dataclass(frozen=True)
class Report:
    """What came of a load."""

    figures: dict[Measure, float]
    trouble: str
    """Why they do not count, if so."""


def read(report: str, words: str, load: Load, seconds: int) -> Report:
    """Make sense of the JSON report, and of the words on standard error."""
    totals = json.loads(report)["ALL STATS"]["Totals"]
    counts = {int(second): each["Count"] for second, each in totals["Time-Serie"].items()}
    counted = sum(counts.get(second, 0) for second in range(WARM_UP, WARM_UP + seconds))
    trouble = _trouble(totals, words)
    if not counted:
        return Report({}, trouble or "no request was answered")
    throughput = counted / seconds
    latencies = totals["Percentile Latencies"]
    figures = {
        Measure.THROUGHPUT: throughput,
        Measure.P50: latencies["p50.00"] / 1000,
        Measure.P99: latencies["p99.00"] / 1000,
        Measure.P999: latencies["p99.90"] / 1000,
        Measure.WHOLE: load.clients * load.pipeline / throughput,
    }
    return Report(figures, trouble)


def _trouble(totals: dict[str, Any], words: str) -> str:
    if totals["Misses/sec"]:
        return f"misses: {totals['Misses/sec']:g} a second"
    if totals["Connection Errors"]:
        return f"connection errors: {totals['Connection Errors']}"
    return error(words)


def error(words: str) -> str:
    """The first line that tells of an error."""
    return next((line.strip() for line in words.splitlines() if "error" in line.lower()), "")
