"""SIGHUP under load, again and again, with the file of `--config` written anew each time.

Pools change their size, servers come and go, so do the deadline and the trusted roots; every tenth
time the file is broken, and nothing may change. No client is disconnected, and none is told of any
trouble: the deadlines are generous, and all servers are well.

A server that comes or goes moves keys, so what is read may be older than what was written last.
"""

from __future__ import annotations

import asyncio
import signal
import time
from random import Random

import authority
import servers

from torture.binary_load import BinaryClient
from torture.load import Load
from torture.scorecard import Options, Row, problem_rows
from torture.stage import ALL_KINDS, Stage, Vitals, staged

TIMES = 100
CLIENTS = 32
#: Seconds within which a reload is seen to be over, and reloads in a row that may not be.
PATIENCE = 10.0
GIVE_UP = 3
#: Servers that always stay.
LEAST = 2
#: What makes a file broken, in place of the value that it had; None takes part of the file away.
BROKEN = {
    "request-timeout": '"soon"',
    "pool-size": "-1",
    "ca-file": '"/nowhere/ca.pem"',
    "server": '["127.0.0.1:no-port"]',
    "no-such-setting": "1",
    "not toml": "= [",
}
SUCCESSFUL = "memtunnel_config_last_reload_successful"
TARGET = "memtunnel_upstream_connections_target"


class File:
    """The configuration, which is drawn anew each time."""

    def __init__(self, stage: Stage, random: Random) -> None:
        self._stage = stage
        self._random = random
        self.path = stage.folder / "memtunnel.toml"
        self.target = 0
        """Connections that the pools want by the file that was written last and is not broken."""
        other = authority.authority("another authority").pem
        self._roots = stage.ca_file.read_bytes(), other + stage.ca_file.read_bytes()
        self._settings: dict[str, str] = {}

    def draw(self) -> None:
        """Write a file whose pools differ in sum from those before, so that a reload shows."""
        random, before = self._random, self.target
        while self.target == before:
            size = random.randint(1, 4)
            count = random.randint(LEAST, len(self._stage.names))
            self.target = size * count * self._stage.options.workers
        dialled = [flag.partition("=")[2] for flag in self._stage.server_flags()[:count]]
        # One file or the other, and now and then with other content under the same name.
        roots = self._stage.folder / random.choice(("roots.pem", "more-roots.pem"))
        roots.write_bytes(random.choice(self._roots))
        self._settings = {
            "server": "[" + ", ".join(f'"{each}"' for each in dialled) + "]",
            "pool-size": str(size),
            "request-timeout": f"{random.uniform(2.0, 5.0):.3f}",
            "ca-file": f'"{roots}"',
            "failover": '"off"',
        }
        self._write(self._settings)

    def break_it(self) -> None:
        name = self._random.choice(list(BROKEN))
        self._write({**self._settings, name: BROKEN[name]})

    def _write(self, settings: dict[str, str]) -> None:
        new = self.path.with_suffix(".new")
        new.write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        new.rename(self.path)


class Reloads:
    """What came of them."""

    def __init__(self) -> None:
        self.done = 0
        self.unseen: list[str] = []
        self.changed = 0
        """Broken files after which the pools were not what they had been."""
        self.silent = 0
        """Broken files that no line of the log tells of."""
        self.seconds: list[float] = []


def run(options: Options) -> list[Row]:
    with staged(options, count=4) as stage:
        file = File(stage, Random(options.seed))
        file.draw()
        tunnel = stage.make_tunnel(f"--config={file.path}", dial=False).start()
        tunnel.wait_ready()
        load = stage.load(tunnel, timeout=5.0)
        load.keys_move = True
        load.add(ALL_KINDS, ["plain"] * CLIENTS)
        reloads = asyncio.run(_play(tunnel, load, file, options.times or TIMES))
        _count(stage, load)
        metrics = Vitals(tunnel).metrics(
            "memtunnel_degraded_replies_total", "memtunnel_client_connections_opened_total"
        )
        log = tunnel.log()
    degraded = metrics["memtunnel_degraded_replies_total"]
    unseen = len(reloads.unseen)
    rows = [
        ("reloads that were not seen to happen", f"{unseen} of {reloads.done}", not unseen),
        ("broken files that changed something", f"{reloads.changed}", not reloads.changed),
        ("broken files without a line in the log", f"{reloads.silent}", not reloads.silent),
        ("degraded replies", f"{degraded:.0f}", not degraded),
        ("writes refused", f"{load.refused}", not load.refused),
        ("tracebacks in the log", str(log.count("Traceback")), "Traceback" not in log),
    ]
    found = [
        Row(part="sighup", name=name, target="0", figure=figure, ok=ok) for name, figure, ok in rows
    ]
    found += [Row(part="sighup", name="not seen", figure=words) for words in reloads.unseen]
    if reloads.seconds:
        took = f"{max(reloads.seconds):.2f} s at worst"
        found.append(Row(part="sighup", name="from the signal to the change", figure=took))
    return problem_rows("sighup", load) + found


def _count(stage: Stage, load: Load) -> None:
    """Compare additions with what all servers together have: each has happened once, somewhere."""
    counters = [client for client in load.clients if isinstance(client, BinaryClient)]
    names = [client.counter.name for client in counters]
    stored = [stage.stored(server, names) for server in range(len(stage.names))]
    for client in counters:
        done, most = client.count.done, client.count.done + client.count.failed
        found = sum(int(values.get(client.counter.name, 0)) for values in stored)
        if found > most:
            load.problem(f"twice: {found} additions are stored, {most} were asked ({client})")
        elif found < done:
            load.problem(f"lost: {found} additions are stored, {done} were answered ({client})")


async def _play(tunnel: servers.Tunnel, load: Load, file: File, times: int) -> Reloads:
    reloads = Reloads()
    vitals = Vitals(tunnel)
    await load.start()
    await asyncio.sleep(0.5)
    for number in range(1, times + 1):
        broken = number % 10 == 0
        lines = tunnel.log().count("\n")
        if broken:
            file.break_it()
        else:
            file.draw()
        tunnel.signal(signal.SIGHUP)
        began = time.monotonic()
        reloads.done += 1
        seen = await _settles(vitals, 0.0 if broken else 1.0, file.target)
        if seen["good"]:
            reloads.seconds.append(time.monotonic() - began)
        else:
            what = "broken" if broken else "good"
            reloads.unseen.append(f"file {number}, {what}: {seen}, {file.target} wanted")
            if len(reloads.unseen) >= GIVE_UP:
                break
        if broken:
            reloads.changed += seen[TARGET] != file.target
            reloads.silent += tunnel.log().count("\n") == lines
        await asyncio.sleep(0.2)  # the load goes on with it
    await load.stop()
    return reloads


async def _settles(vitals: Vitals, successful: float, target: int) -> dict[str, float]:
    """Wait until the metrics tell of a reload; `good` is whether they do."""
    until = time.monotonic() + PATIENCE
    while True:
        seen = await asyncio.to_thread(vitals.metrics, SUCCESSFUL, TARGET)
        good = seen[SUCCESSFUL] == successful and seen[TARGET] == target
        if good or time.monotonic() > until:
            return {**seen, "good": float(good)}
        await asyncio.sleep(0.05)
