"""SIGTERM under a load that pipelines, again and again.

The clients go on asking as if nothing was. What was sent before the time to drain is over has to be
answered; what is sent later may be read or not, but what the servers have done must have been
answered. Values are small here, so that what is written is at the tunnel at once, and pipelines
mostly stay below the 1,024 answers owed above which a client is not read from.
"""

from __future__ import annotations

import asyncio
import signal
from random import Random

import servers

from torture.load import Load
from torture.scorecard import Options, Row
from torture.stage import ALL_KINDS, Stage, staged

TIMES = 50
CLIENTS = 32
#: Requests in a batch of every fourth client: more than the tunnel takes in one turn.
DEEP = 400
#: Seconds that the tunnel is given to drain.
DRAIN = 0.3


def run(options: Options) -> list[Row]:
    times = options.times or TIMES
    random = Random(options.seed)
    statuses: list[int] = []
    loads: list[Load] = []
    after = 0
    with staged(options) as stage:
        for number in range(times):
            flags = (f"--drain-timeout={DRAIN}", "--failover=off", "--request-timeout=2")
            tunnel = stage.make_tunnel(*flags).start()
            tunnel.wait_ready()
            load = stage.load(tunnel, tag=b"run%d-" % number, timeout=2.0)
            after += asyncio.run(_end_one(tunnel, load, random.uniform(0.2, 0.6)))
            statuses.append(tunnel.wait())
            if "Traceback" in tunnel.log():
                load.problem("traceback: in the log")
            _compare(stage, load)
            loads.append(load)
    return _rows(loads, statuses, after)


async def _end_one(tunnel: servers.Tunnel, load: Load, seconds: float) -> int:
    """Load a tunnel and end it; how many requests came too late."""
    load.large_values = False
    load.add(ALL_KINDS, ["plain"] * CLIENTS)
    for client in load.clients[::4]:
        client.greatest = DEEP
    await load.start()
    await asyncio.sleep(seconds)
    load.may_close = True
    loop = asyncio.get_running_loop()
    # The time to drain begins when the tunnel sees the signal, which is not before this.
    closes = loop.time() + DRAIN
    tunnel.signal(signal.SIGTERM)
    assert tunnel.process is not None
    until = loop.time() + servers.PATIENCE
    while tunnel.process.poll() is None and loop.time() < until:
        await asyncio.sleep(0.01)
        tunnel.log()
    # All that the tunnel wrote is there by now; it only has to be read.
    while any(client.connected for client in load.clients) and loop.time() < until:
        await asyncio.sleep(0.01)
    load.stopping = True
    after = 0
    for client in load.clients:
        for ask in client.owed:
            if ask.at < closes:
                early = closes - ask.at
                load.problem(f"unanswered: {client}: {ask.kind}, {early:.3f} s before the end")
            else:
                after += 1
    return after


def _compare(stage: Stage, load: Load) -> None:
    """Look on the servers for writes that were done and not answered."""
    for server, known in enumerate(load.servers):
        keys = {key.name: key for key in load.keys if key.server is known}
        for name, value in stage.stored(server, list(keys)).items():
            key = keys[name]
            words = key.judge(value, key.acknowledged, max(key.acknowledged, *key.possible, 0))
            if words and words != "excused":
                load.problem(f"executed: {words}")


def _rows(loads: list[Load], statuses: list[int], after: int) -> list[Row]:
    def count(word: str) -> int:
        return sum(load.problems[word] for load in loads)

    unanswered, executed = count("unanswered"), count("executed")
    others = sum(load.problems.total() for load in loads) - unanswered - executed
    requests = f"in {sum(load.settled for load in loads):,} requests"
    bad = sum(status != 0 for status in statuses)
    rows = [
        ("complete requests without an answer", f"{unanswered} {requests}", not unanswered),
        ("writes done without an answer", f"{executed} {requests}", not executed),
        ("anything else that is wrong", f"{others} {requests}", not others),
        ("exit statuses that are not 0", f"{bad} of {len(statuses)}", not bad),
    ]
    found = [
        Row(part="sigterm", name=name, target="0", figure=figure, ok=ok)
        for name, figure, ok in rows
    ]
    found.append(Row(part="sigterm", name="requests sent after the drain", figure=f"{after}"))
    words = [words for load in loads for words in load.told][:20]
    return found + [Row(part="sigterm", name="problem", figure=each, ok=False) for each in words]
