"""Faults of all kinds before four servers, restarts among them, under the load of both protocols.

Three servers are killed, stalled, cut off and so on; the relay ends the TLS of the fourth, and
lies in its name. Failover is off: what is written must be read again.
"""

from __future__ import annotations

import asyncio
from statistics import median

from torture.load import Load
from torture.scorecard import Options, Row, problem_rows
from torture.stage import ALL_KINDS, staged
from torture.weather import Weather, play

MINUTES = 1.5
CLIENTS = 64


def manners(count: int) -> list[str]:
    """Most clients are plain; some leave in the middle, some close their side."""
    few = ["leaver"] * (count // 16) + ["half-closer"] * (count // 16)
    return few + ["plain"] * (count - len(few))


def run(options: Options) -> list[Row]:
    with staged(options, count=4, liar=True) as stage:
        tunnel = stage.make_tunnel("--failover=off").start()
        tunnel.wait_ready()
        load = stage.load(tunnel)
        load.add(ALL_KINDS, manners(CLIENTS))
        seconds = (options.minutes or MINUTES) * 60
        weather = asyncio.run(play(stage, load, seconds, tunnel.log))
        desyncs = tunnel.metric("memtunnel_upstream_desync_total")
        log = tunnel.log()
    recoveries = [seconds for server in load.servers for seconds in server.recoveries]
    return [*problem_rows("faults", load), *_figures(load, weather, recoveries, log, desyncs)]


def _figures(
    load: Load, weather: Weather, recoveries: list[float], log: str, desyncs: float
) -> list[Row]:
    rows = []

    def say(name: str, figure: str, target: str = "", ok: bool | None = None) -> None:
        rows.append(Row(part="faults", name=name, target=target, figure=figure, ok=ok))

    if recoveries:
        middle, worst = median(recoveries), max(recoveries)
        restarts = f"{len(recoveries)} restarts"
        say("recovery, median", f"{middle:.2f} s of {restarts}", "1 s", middle <= 1.0)
        say("recovery, worst", f"{worst:.2f} s of {restarts}", "3 s", worst <= 3.0)
    answered = f"{load.late} of {load.settled:,}, at worst {load.worst * 1000:.0f} ms"
    say("reads with answers later than deadline + 50 ms", answered)
    say("values compared on the servers", f"{weather.audited:,}", "some", weather.audited > 0)
    say(
        "hits, misses, refused writes, excused reads",
        f"{load.hits:,}, {load.misses:,}, {load.refused:,}, {load.excused:,}",
    )
    faults = ", ".join(f"{name} {count}" for name, count in sorted(weather.happened.items()))
    say("faults", faults)
    say("connections given up for lies", f"{desyncs:.0f}", "some", desyncs > 0)
    tracebacks = log.count("Traceback") + log.count("Unhandled")
    say("tracebacks in the log", str(tracebacks), "0", not tracebacks)
    return rows
