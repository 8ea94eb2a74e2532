"""The wall clock jumps an hour forward and back under load: nothing happens.

The tunnel runs under libfaketime (Debian's package of this name), which moves the wall clock and
leaves the monotonic one alone, as an administrator or a time server does. Between the jumps a
server is restarted, and a client stops in the middle of a request: timers go on at their pace.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from datetime import datetime
from pathlib import Path

import servers

from memtunnel.wire.binary import Opcode, request
from torture.load import Load
from torture.scorecard import Options, Row, problem_rows
from torture.stage import ALL_KINDS, Stage, staged

LIBRARIES = "/usr/lib/*/faketime/libfaketime.so.1"
#: What the clock is moved to, in seconds from the true time; it stays for `STAY` seconds.
JUMPS = (3600, 0, -3600, 0, 7200, -7200, 0)
STAY = 2.5
CLIENTS = 24
#: Seconds after which a client that stopped in mid-frame is closed, and how much later is late.
PARTIAL = 10.0
LATE = 3.0


def run(options: Options) -> list[Row]:
    found = sorted(Path("/").glob(LIBRARIES.lstrip("/")))
    if not found:
        words = "SKIPPED: libfaketime is not there (on Debian: apt-get install libfaketime)"
        return [Row(part="clock", name="jumps of an hour", figure=words, ok=False)]
    with staged(options) as stage:
        setting = stage.folder / "clock"
        setting.write_text("+0s\n")
        environ = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(setting),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        tunnel = stage.make_tunnel("--failover=off", "--request-timeout=2", environ=environ)
        tunnel.start().wait_ready()
        load = stage.load(tunnel, timeout=2.0)
        load.add(ALL_KINDS, ["plain"] * CLIENTS)
        calm, closed_after, recovery = asyncio.run(_play(stage, tunnel, load, setting))
        log = tunnel.log()
    seen = sorted({round((said - time.time()) / 3600) for said in _times(log)})
    rows = [
        ("hours ahead in the log", "some", f"{seen}", bool({1, 2} & set(seen))),
        ("degraded replies and lost connections in the jumps", "0", f"{calm:.0f}", calm == 0),
        (
            "a client in mid-frame is closed after",
            f"{PARTIAL:.0f} s",
            f"{closed_after:.1f} s",
            PARTIAL - 0.5 <= closed_after <= PARTIAL + LATE,
        ),
        ("recovery after a restart, an hour ahead", "3 s", f"{recovery:.2f} s", recovery <= 3.0),
        ("tracebacks in the log", "0", str(log.count("Traceback")), "Traceback" not in log),
    ]
    return problem_rows("clock", load) + [
        Row(part="clock", name=name, target=target, figure=figure, ok=ok)
        for name, target, figure, ok in rows
    ]


async def _play(
    stage: Stage, tunnel: servers.Tunnel, load: Load, setting: Path
) -> tuple[float, float, float]:
    """Degraded replies and losses in the jumps; seconds to a close; seconds to a recovery."""
    await load.start()
    await asyncio.sleep(1.0)

    async def troubles() -> float:
        names = ("memtunnel_degraded_replies_total", "memtunnel_upstream_disconnects_total")
        return sum([await asyncio.to_thread(tunnel.metric, name) for name in names])

    before = await troubles()
    partial = asyncio.create_task(_stop_in_mid_frame(tunnel.port))
    for seconds in JUMPS:
        # As a whole, or it might be read half written.
        new = setting.with_suffix(".new")
        new.write_text(f"{seconds:+d}s\n")
        new.rename(setting)
        await asyncio.sleep(STAY)
        tunnel.log()
    calm = await troubles() - before
    closed_after = await partial
    new.write_text("+3600s\n")
    new.rename(setting)
    for server, memcached in zip(load.servers, stage.memcacheds, strict=True):
        memcached.stop()
        server.life += 1
        await asyncio.to_thread(stage.start_server, memcached)
        server.listening_since = asyncio.get_running_loop().time()
    await asyncio.sleep(4.0)
    recoveries = [seconds for server in load.servers for seconds in server.recoveries]
    await load.stop()
    return calm, closed_after, max(recoveries) if len(recoveries) == 3 else float("inf")


async def _stop_in_mid_frame(port: int) -> float:
    """Seconds until a client that has sent half a request is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(Opcode.GET, b"half a request")[:30])
    began = time.monotonic()
    with contextlib.suppress(OSError, TimeoutError):
        await asyncio.wait_for(reader.read(), PARTIAL * 4)
    writer.close()
    return time.monotonic() - began


def _times(log: str) -> list[float]:
    """The times of the log's lines, in seconds since the epoch."""
    stamps = re.findall(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\S*)", log, re.MULTILINE)
    found = []
    for stamp, zone in stamps:
        hours = re.match(r"[+-]\d\d", zone)
        offset = f"{hours[0]}:00" if hours else "+00:00"
        found.append(datetime.fromisoformat(stamp + offset).timestamp())
    return found
