"""Faults for minutes on end, with clients of bad manners in the load: memory must not grow.

There are two loads, the first for a minute (or a fifth of a short run), and after each the tunnel
is asked at rest what it has in use. What it takes from the kernel is told too: that is what it once
needed together, and grows while coincidences go on to be outdone.
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import servers

from torture.scorecard import Options, Row, problem_rows
from torture.stage import ALL_KINDS, Stage, Vitals, staged
from torture.weather import play

MINUTES = 10.0
MANNERS = {
    "plain": 44,
    "leaver": 8,
    "half-closer": 8,
    "slow-reader": 6,
    "slow-writer": 6,
}
#: Seconds between two samples.
INTERVAL = 2.0


class Sample(NamedTuple):
    memory: int
    descriptors: int


def run(options: Options) -> list[Row]:
    seconds = (options.minutes or MINUTES) * 60
    first = min(60.0, seconds / 5)
    with staged(options, count=4, liar=True) as stage:
        tunnel = stage.make_tunnel("--failover=off").start()
        tunnel.wait_ready()
        vitals = Vitals(tunnel)
        samples: list[Sample] = []
        due = time.monotonic()

        def watch() -> None:
            nonlocal due
            tunnel.log()
            if time.monotonic() >= due:
                due += INTERVAL
                samples.append(Sample(vitals.memory(), vitals.descriptors()))

        rests = []
        found = []
        for tag, length in (b"early-", first), (b"late-", seconds - first):
            load = stage.load(tunnel, tag=tag)
            manners = [manner for manner, count in MANNERS.items() for _ in range(count)]
            load.add(ALL_KINDS, manners)
            weather = asyncio.run(play(stage, load, length, watch))
            left = vitals.left_at_rest()
            _renew_connections(stage, tunnel, vitals)
            rests.append(min(vitals.in_use() for _ in range(5)))
            found += problem_rows(f"soak, {tag.decode()}load", load)
        uncollectable = vitals.metrics("python_gc_objects_uncollectable_total")
        log = tunnel.log()
    faults = f"{sum(weather.happened.values())}, {load.refused:,} writes refused"
    rows = _figures(samples, rests, left, sum(uncollectable.values()), log, first, seconds)
    return [*found, *rows, Row(part="soak", name="faults of the late load", figure=faults)]


def _renew_connections(stage: Stage, tunnel: servers.Tunnel, vitals: Vitals) -> None:
    """Have connections to servers that carried nothing yet.

    OpenSSL keeps for each what it once needed together, a percent of all there is in use.
    """
    servers.wait_until(vitals.pools_are_whole, "the pools are whole", 30)
    there = tunnel.metric("memtunnel_upstream_connections_target")
    made = tunnel.metric("memtunnel_upstream_connects_total", result="ok")
    for server in range(len(stage.names)):
        stage.relay.fault(server, "reset", 1.0)
        stage.relay.fault(server, "none")

    def are_new() -> bool:
        now = tunnel.metric("memtunnel_upstream_connects_total", result="ok")
        return now >= made + there and vitals.pools_are_whole()

    servers.wait_until(are_new, "all connections are new", 30)


def _figures(
    samples: list[Sample],
    rests: list[tuple[int, int]],
    left: float,
    uncollectable: float,
    log: str,
    first: float,
    seconds: float,
) -> list[Row]:
    (blocks, size), (blocks_late, size_late) = rests
    growths = (blocks_late - blocks) / blocks, (size_late - size) / size
    rows = [
        (
            f"growth of memory in use at rest, {first:.0f} s to {seconds / 60:.1f} min",
            "under 1%",
            f"{growths[0]:+.2%} of {blocks:,} objects, {growths[1]:+.2%} of {size / 2**20:.1f} MiB",
            max(growths) < 0.01,
        ),
        ("requests and bytes under way at the end", "0", f"{left:.0f}", left == 0),
        ("objects that cannot be collected", "0", f"{uncollectable:.0f}", uncollectable == 0),
        ("tracebacks in the log", "0", str(log.count("Traceback")), "Traceback" not in log),
    ]
    found = [
        Row(part="soak", name=name, target=target, figure=figure, ok=ok)
        for name, target, figure, ok in rows
    ]
    course = [samples[len(samples) * part // 10] for part in range(10)] + samples[-1:]
    information = {
        "memory from the kernel, MiB": ", ".join(f"{each.memory / 2**20:.0f}" for each in course),
        "descriptors": ", ".join(f"{each.descriptors}" for each in course),
    }
    return found + [Row(part="soak", name=name, figure=it) for name, it in information.items()]
