"""What happens to a world besides its clients' requests: troubles, an end, a new configuration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from memtunnel.core import answers, binary_session, lane, mux, server, session, text_session
from memtunnel.net import downstream
from memtunnel.net.upstream import State

if TYPE_CHECKING:
    from simulation.servers import Host
    from simulation.world import World

#: Where constants can be changed: not in what is compiled.
IS_PLAIN = mux.__file__.endswith(".py")
#: Bounds that are out of reach for so few clients as there are here, and lower ones. Those on bytes
#: are above the 64 KiB that a transport holds before it tells that it has too much.
_BOUNDS: tuple[tuple[str, int, tuple[Any, ...]], ...] = (
    ("MAX_ENTRIES", 40, (mux, lane, server)),
    ("MAX_UNSENT", 30_000, (mux, lane, server)),
    ("FULL_REQUESTS", 50, (answers, session)),
    ("FULL_BYTES", 100_000, (answers,)),
    ("CHOKED_BYTES", 200_000, (answers, downstream)),
    ("REQUESTS_A_TURN", 7, (session, binary_session, text_session)),
)

_AWAY = ("no", "never", "unreachable", "unknown")
_TROUBLES = (
    *("no", "never", "unreachable", "restart", "restart", "stall", "stall", "stall", "drain"),
    *("one connection stalls",) * 4,
    *("drain", "unknown", "login refused", "untrusted", "cut", "never shaken", "stall, then cut"),
)
#: Where keys are to move from server to server all the time. A server that stalls is passed over;
#: what it has read of that time, or has not, is lost when it cuts its connections.
_STORM = (
    *("no", "no", "no", "unreachable", "restart", "stall", "one connection stalls"),
    *("stall, then cut",) * 3,
)


@contextmanager
def no_time_of_day(seed: int) -> Iterator[None]:
    """Whoever asks for the time of day, and not the reactor, is told any."""
    any_time = Random(seed)
    with ExitStack() as stack:
        for name in ("time", "monotonic"):
            stack.enter_context(patch.object(time, name, lambda: any_time.uniform(0.0, 4e9)))
        yield


def lower_bounds(stack: ExitStack, random: Random) -> set[str]:
    """Lower some of the bounds, if that is possible; the names of those that were."""
    lowered: set[str] = set()
    for name, low, modules in _BOUNDS:
        if IS_PLAIN and random.random() < 0.5:
            lowered.add(name)
            for module in modules:
                stack.enter_context(patch.object(module, name, low))
    return lowered


class Events:
    """Draws what happens, and when, until the world heals."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.random
        self.drained = True
        """Whether no drain is under way."""

    def begin(self) -> None:
        world = self._world
        random = self._random
        at = world.reactor.at
        if random.random() < 0.25:
            world.sure_value -= 500
            at(random.random(), self._reload)
        if world.rough:
            for _ in range(len(world.hosts) if world.stormy else 1):
                at(random.random() * (0.3 if world.stormy else 2), self._trouble)
            draw = random.random()
            if draw < 0.15:
                at(random.random() * 2, self._drain)
            elif draw < 0.18:
                # In the middle of the first dials, or of anything.
                at(random.random() * random.choice((0.02, 1.0)), self._stop)

    # Troubles

    def _trouble(self) -> None:
        """Something happens to a server, and passes."""
        world = self._world
        if world.ending:
            return
        random = self._random
        host = random.choice(world.hosts)
        what = random.choice(_STORM if world.stormy else _TROUBLES)
        lasts = random.choice((0.05, 0.3, 0.6, 1.5, 3.0))
        world.tell(host.name, "%s, for %.2f s", what, lasts)
        if what in _AWAY:
            host.answers_dials = what
            if random.random() < 0.7:
                host.restart(loses=random.random() < 0.5)
        elif what == "restart":
            host.restart(loses=random.random() < 0.5)
        elif what.startswith("stall"):
            host.stall(data_only=random.random() < 0.4)
        elif what == "one connection stalls":
            if host.connections:
                random.choice(list(host.connections)).stall()
        elif what == "login refused":
            host.takes_login = False
            host.restart(loses=False)
        elif what == "drain":
            for pool in world.pools_of(host):
                for upstream in pool.upstreams:
                    # It is to be replaced as if it had reached its age.
                    upstream.retires = world.reactor.now
        else:
            host.handshakes = what
            host.restart(loses=False)
        world.reactor.at(lasts, self._passes, host, what)
        world.reactor.at(lasts * random.random() * 3, self._trouble)

    def _passes(self, host: Host, what: str) -> None:
        if what == "stall, then cut":
            host.restart(loses=False)
        if "stall" in what:
            host.resume()
        host.answers_dials, host.takes_login, host.handshakes = "yes", True, "fine"

    # The end

    def _drain(self) -> None:
        world = self._world
        if world.stopped:
            return
        world.tell("tunnel", "drains")
        world.stops_reading = world.reactor.now + world.config.drain_timeout
        self.drained = False
        world.worker.drain().addCallback(self._has_drained)
        if self._random.random() < 0.3:
            # Asked a second time, it stops now.
            world.reactor.at(self._random.random() * 3, self._stop)

    def _has_drained(self, _: object) -> None:
        self.drained = True
        if self._random.random() < 0.5:
            self._stop()

    def _stop(self) -> None:
        world = self._world
        if not world.ending and not world.stopped:
            world.tell("tunnel", "stops")
            self.drained = True
            world.stop()

    # Other settings

    def _reload(self) -> None:
        """The tunnel reads other settings."""
        world = self._world
        if world.ending or world.stopped or not self.drained:
            return
        random = self._random
        settings = world.settings
        before = dict(settings), list(world.configured)
        draw = random.random()
        if draw < 0.5:
            everyone = range(len(world.hosts))
            world.configured = sorted(random.sample(everyone, random.randint(1, len(everyone))))
        elif draw < 0.65:
            settings["max-value-size"] = random.choice(
                (str(world.sure_value), str(world.max_value))
            )
        elif draw < 0.75 and world.rotates:
            world.rotate()
        if random.random() < 0.5:
            settings["pool-size"] = random.choice(("1", "2", "3"))
        if random.random() < 0.3:
            settings["request-timeout"] = random.choice(("0.3", "0.4"))
        world.tell("tunnel", "reads settings: %s, servers %s", settings, world.configured)
        if world.configured != before[1]:
            world.reshaped = True
        self._mark_kept(before[0], set(before[1]) & set(world.configured))
        world.config = config = world.configure()
        world.worker.reload(config, None, world.max_clients)
        world.reactor.at(random.random(), self._reload)

    def _mark_kept(self, before: dict[str, str], staying: set[int]) -> None:
        """Where all is well, servers that are as they were keep their connections."""
        world = self._world
        now = world.settings
        same = before["max-value-size"] == now["max-value-size"] and not world.rotates
        same = same and before["pool-size"] <= now["pool-size"]
        for host in world.hosts:
            drains = any(pool.count(State.DRAINING) for pool in world.pools_of(host))
            keeps = same and not world.rough and not drains and host.index in staying
            for connection in host.connections:
                connection.kept = keeps and connection.proven
