"""Faults for minutes on end, with clients of bad manners in the load: memory must not grow.

Memory goes up and down with what is buffered, so its floor is what counts: the least in the time
after the first minute (or tenth, of a short run), against the least in the last part.
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from torture.load import Load
from torture.scorecard import Options, Row, problem_rows
from torture.stage import ALL_KINDS, Vitals, staged
from torture.weather import Weather, play

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
    at: float
    memory: int
    descriptors: int


def run(options: Options) -> list[Row]:
    seconds = (options.minutes or MINUTES) * 60
    with staged(options, count=4, liar=True) as stage:
        tunnel = stage.make_tunnel("--failover=off").start()
        tunnel.wait_ready()
        vitals = Vitals(tunnel)
        samples: list[Sample] = []
        begun = time.monotonic()

        def watch() -> None:
            tunnel.log()
            now = time.monotonic() - begun
            if not samples or now - samples[-1].at >= INTERVAL:
                samples.append(Sample(now, vitals.memory(), vitals.descriptors()))

        load = stage.load(tunnel)
        load.add(ALL_KINDS, [manner for manner, count in MANNERS.items() for _ in range(count)])
        weather = asyncio.run(play(stage, load, seconds, watch))
        left = vitals.left_at_rest()
        objects = vitals.metrics("python_gc_objects_uncollectable_total", "process_open_fds")
        log = tunnel.log()
    return [
        *problem_rows("soak", load),
        *_figures(samples, seconds, left, objects, log, load, weather),
    ]


def _figures(
    samples: list[Sample],
    seconds: float,
    left: float,
    objects: dict[str, float],
    log: str,
    load: Load,
    weather: Weather,
) -> list[Row]:
    first = min(60.0, seconds / 5)
    window = max(INTERVAL * 3, (seconds - first) / 4)
    early = [each for each in samples if first <= each.at <= first + window]
    late = [each for each in samples if each.at >= seconds - window]
    floor, level = (min(each.memory for each in some) for some in (early, late))
    growth = (level - floor) / floor
    files = [max(each.descriptors for each in some) for some in (early, late)]
    uncollectable = objects["python_gc_objects_uncollectable_total"]
    rows = [
        (
            f"growth of memory after {first:.0f} s",
            "under 1%",
            f"{growth:+.2%} of {floor / 2**20:.1f} MiB in {seconds / 60:.1f} min",
            growth < 0.01,
        ),
        ("requests and bytes under way at the end", "0", f"{left:.0f}", left == 0),
        ("objects that cannot be collected", "0", f"{uncollectable:.0f}", uncollectable == 0),
        ("tracebacks in the log", "0", str(log.count("Traceback")), "Traceback" not in log),
    ]
    found = [
        Row(part="soak", name=name, target=target, figure=figure, ok=ok)
        for name, target, figure, ok in rows
    ]
    course = [samples[len(samples) * part // 10].memory / 2**20 for part in range(10)]
    faults = sum(weather.happened.values())
    information = {
        "memory over time, MiB": ", ".join(f"{each:.1f}" for each in course),
        "most descriptors early and late": f"{files[0]}, {files[1]}",
        "faults": f"{faults}, {load.refused:,} writes refused, {load.hits:,} hits",
    }
    return found + [Row(part="soak", name=name, figure=it) for name, it in information.items()]
