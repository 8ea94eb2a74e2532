"""Which fault comes when: drawn from the seed, for each server by itself.

The order of faults of a server, with how strong and how long they are, is always the same for a
seed; how that meets the load and the other servers' faults depends on the machine.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from torture.history import audit
from torture.load import Load
from torture.relay import LIES
from torture.stage import Stage

#: By fault of the relay, the least and the most that may be drawn for its amount.
AMOUNTS = {
    "delay": (0.01, 0.7),
    "throttle": (5_000.0, 500_000.0),
    "dribble": (1.0, 30.0),
    "stall": (0.0, 0.0),
    "mute": (0.0, 1.0),
    "black-hole": (0.0, 0.0),
    "refuse": (0.0, 0.0),
    "reset": (0.4, 1.0),
    "cut": (1.0, 5_000.0),
    "half-close": (0.0, 0.0),
    "corrupt": (0.0, 0.0),
}
#: Seconds that a fault lasts, and that it is calm after one.
LASTS = (0.1, 2.0)
CALM = (0.5, 3.0)


class Event(NamedTuple):
    """One fault before one server."""

    fault: str
    amount: float | str
    seconds: float
    calm: float
    """Seconds of calm after it."""


class Draw:
    """The events of one server; a part of them, `kills`, are restarts."""

    def __init__(self, seed: str, *, kills: float, lies: bool) -> None:
        self._random = Random(seed)
        self._kills = kills
        self._lies = lies
        self._first = True

    def next(self) -> Event:
        random = self._random
        calm, seconds = random.uniform(*CALM), random.uniform(*LASTS)
        # So that short runs have of both.
        first, self._first = self._first, False
        if random.random() < self._kills or (first and not self._lies):
            # A server is back soon, or it takes its time.
            return Event("kill", 0.0, seconds * random.choice((0.1, 1.0, 2.0)), calm + 3.0)
        if self._lies:
            if first or random.random() < 0.8:
                return Event("lie", random.choice(LIES[:-1] if first else LIES), 0.3, calm / 2)
            return Event(random.choice(("stall", "delay", "reset")), 0.5, seconds, calm)
        fault = random.choice([*AMOUNTS, "mute"])
        if fault == "mute" and random.random() < 0.7:
            seconds = random.uniform(0.05, 0.35)  # within the deadline of what is under way
        return Event(fault, random.uniform(*AMOUNTS[fault]), seconds, calm)


class Weather:
    """Makes it, on all servers at once, until it is told to clear up."""

    def __init__(self, stage: Stage, load: Load, *, kills: float = 0.35) -> None:
        self._stage = stage
        self._load = load
        self._kills = kills
        self.happened: Counter[str] = Counter()
        self.audited = 0
        """Values that were looked at on the servers themselves."""
        self._clearing = asyncio.Event()

    async def make(self) -> None:
        count = len(self._stage.names)
        await asyncio.gather(*(self._over(server) for server in range(count)))

    def clear_up(self) -> None:
        self._clearing.set()

    async def _over(self, server: int) -> None:
        stage = self._stage
        lies = stage.liar and server == len(stage.names) - 1
        seed = f"{self._load.seed}-weather-{server}"
        draw = Draw(seed, kills=0.0 if lies else self._kills, lies=lies)
        await self._wait(1.0)
        while not self._clearing.is_set():
            event = draw.next()
            self.happened[event.fault] += 1
            if event.fault == "kill":
                await self._restart(server, event.seconds)
            else:
                stage.relay.fault(server, event.fault, event.amount)
                await self._wait(event.seconds)
                if event.fault == "mute":
                    # What was asked has been done, and nobody will ever be told.
                    stage.relay.fault(server, "reset", event.amount)
                stage.relay.fault(server, "none")
            await self._wait(event.calm)

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._clearing.wait(), seconds)
        except TimeoutError:
            return

    async def _restart(self, server: int, seconds: float) -> None:
        """Kill a server, after a look at what it holds, and start it again later."""
        memcached = self._stage.memcacheds[server]
        self.audit(server)
        known = self._load.servers[server]
        known.listening_since = None
        memcached.stop()
        known.life += 1
        await self._wait(seconds)
        await asyncio.to_thread(self._stage.start_server, memcached)
        known.listening_since = asyncio.get_running_loop().time()

    def audit(self, server: int) -> None:
        """Compare what a server holds with what its clients know."""
        known = self._load.servers[server]
        keys = [key for key in self._load.keys if key.server is known]
        noted = [(key, key.life, key.acknowledged, key.gone) for key in keys]
        for words in audit(noted, self._stage.stored(server, [key.name for key in keys])):
            self._load.problem(words)
        self.audited += len(keys)


async def play(stage: Stage, load: Load, seconds: float, watch: Callable[[], object]) -> Weather:
    """Let a load live through so many seconds of weather, and compare what is stored in the end.

    `watch` is called a few times a second; reading the tunnel's log belongs to it.
    """
    weather = Weather(stage, load)
    await load.start()
    making = asyncio.create_task(weather.make())
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while loop.time() < until and not making.done():
        await asyncio.sleep(0.2)
        watch()
    weather.clear_up()
    await making
    await load.stop()
    for server in range(len(stage.names)):
        weather.audit(server)
    return weather
