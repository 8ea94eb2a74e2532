"""Real clients while their servers are away, stall, lie, refuse, and come back.

All clients live through a fault together, on one tunnel. They get values that say which key they
are of, one and several at a time, and set some. Whatever the servers do: no get fails, no value is
another key's, no call takes long. Once the tunnel serves again, each client finds and stores
everything again, at once, with the object that it had before. A set that was not stored is an error
to some of them, as `obedient_clients` says of each.
"""

import contextlib
import itertools
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import authority
import faults
import pytest
import servers
from faults import Fault, FaultyServer
from obedient_clients import PLAYERS, Client, Player, Start

from memtunnel.core.routing import router

pytestmark = pytest.mark.full

#: So that memjs, which gives up after half a second, does not do so because this machine is busy.
TIMEOUT = "--request-timeout=0.25"
#: Seconds: no measure of speed, but proof that nobody hangs.
HANG = 2.0
#: Seconds in which a client has to find what is there. One that has given the server up does not
#: even look for two at least.
AT_ONCE = 1.5
#: How often each client does all that it does while a fault lasts, at least.
ROUNDS = 5
#: Seconds between two rounds.
PAUSE = 0.02
#: Seconds in which they are done, even if all of it takes as long as it may.
PATIENCE = 60.0
#: What all clients get.
SHARED = [f"shared{number}" for number in range(9)]
NAMES = ["server0", "server1", "server2"]
BEFORE, DURING, AFTER = "before it", "in it", "after it"


class Life:
    """What a client does, and what it lives through.

    What it does next is begun by `do`, and done in a thread of its own.
    """

    def __init__(self, player: Player, start: Start) -> None:
        self._player = player
        self._start = start
        self._client: Client
        self._own = "own-" + str(player).replace(" ", "-")
        self._number = itertools.count()
        self._keys = itertools.cycle(SHARED)
        self._thread = ThreadPoolExecutor(1)
        self.rounds = 0
        self.problems: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.hangs = False
        """A call took so long that nobody waits for the next."""
        self.found: set[str] = set()
        """Keys that were found while the fault lasted."""
        self.slowest = 0.0
        """Seconds that a call took, since the fault began."""
        self.back = 0.0
        """Seconds until all was there again."""

    def do(self, what: Callable[..., None], *args: Any) -> Future[None]:
        return self._thread.submit(what, self, *args)

    def begin(self, port: int) -> None:
        self._client = self._start(port)

    def find_all_before(self) -> None:
        self._find_all(BEFORE, servers.PATIENCE)

    def live_through(self, over: threading.Event) -> None:
        while not (self.hangs or over.wait(PAUSE)):
            self.found |= self._get(DURING, next(self._keys)).keys()
            self.found |= self._get(DURING, *SHARED).keys()
            self._set(DURING)
            self._get(DURING, self._own)
            self.rounds += 1

    def find_all_after(self) -> None:
        if not self.hangs:
            self.back = self._find_all(AFTER, AT_ONCE)

    def end(self) -> None:
        self._client.close()

    def _find_all(self, when: str, patience: float) -> float:
        """Find and store everything; how long it took until that succeeded."""
        began = time.monotonic()
        while True:
            apart = [key for key in SHARED if self._get(when, key)]
            together = self._get(when, *SHARED)
            stored = self._set(when) and bool(self._get(when, self._own))
            took = time.monotonic() - began
            if stored and len(apart) == len(together) == len(SHARED):
                return took
            if took > patience:
                self.problems[f"{when}: found {apart} and {[*together]}, stored: {stored}"] += 1
                return took

    def _get(self, when: str, *keys: str) -> dict[str, str]:
        self.counts["gets"] += 1
        began = time.monotonic()
        try:
            found = self._client.get(*keys)
        except Exception as error:
            self.counts["failed gets"] += 1
            self.problems[f"{when}: a get failed: {type(error).__name__}: {error}"] += 1
            return {}
        finally:
            self._took(when, began)
        for key, value in found.items():
            if key not in keys or value.split("|")[0] != key:
                self.counts["crossed values"] += 1
                self.problems[f"{when}: {key} is {value}"] += 1
        return found

    def _set(self, when: str) -> bool:
        self.counts["sets"] += 1
        began = time.monotonic()
        stored = False
        try:
            stored = self._client.set(self._own, f"{self._own}|{next(self._number)}")
        except Exception as error:
            self.counts["sets that raised"] += 1
            if not self._player.raises:
                self.problems[f"{when}: a set raised: {type(error).__name__}: {error}"] += 1
        else:
            if not stored and self._player.raises:
                self.problems[f"{when}: a set that was not stored did not raise"] += 1
        self._took(when, began)
        return stored

    def _took(self, when: str, began: float) -> None:
        took = time.monotonic() - began
        if when != BEFORE:
            self.slowest = max(self.slowest, took)
            if took > HANG:
                self.hangs = True
                self.problems[f"{when}: a call took more than {HANG:g} s"] += 1


class Stage:
    """Servers, and a tunnel to them."""

    def __init__(self, backends: list[Any], tunnel: servers.Tunnel) -> None:
        self.backends = backends
        self.tunnel = tunnel
        self._number = itertools.count()

    def make_well(self) -> None:
        """Wait until the tunnel serves, and set what all clients get."""

        def all_are_warm() -> bool:
            return self.tunnel.metric("memtunnel_upstream_up") == len(self.backends)

        servers.wait_until(all_are_warm, "all servers are warm")
        servers.wait_until(self._shared_are_there, "the tunnel serves")

    def _shared_are_there(self) -> bool:
        values = {key.encode(): f"{key}|{next(self._number)}".encode() for key in SHARED}
        with contextlib.closing(servers.Wire(self.tunnel.port)) as client:
            for key, value in values.items():
                client.set(key, value)
            return all(client.get(key).value == value for key, value in values.items())

    def wait_for(self, metric: str, **labels: str) -> None:
        servers.wait_until(lambda: self.tunnel.metric(metric, **labels), f"{metric} {labels}")


# The faults. Each has begun at the `yield`, and ends behind it.


@contextlib.contextmanager
def stopped(stage: Stage) -> Iterator[None]:
    (memcached,) = stage.backends
    memcached.stop()
    yield
    memcached.start()


@contextlib.contextmanager
def killed_and_restarted(stage: Stage) -> Iterator[None]:
    (memcached,) = stage.backends
    for _ in range(2):
        memcached.stop()
        stage.tunnel.wait_ready(ready=False)
        memcached.start()
        stage.tunnel.wait_ready()
    yield


@contextlib.contextmanager
def black_hole(stage: Stage) -> Iterator[None]:
    (memcached,) = stage.backends
    memcached.process.send_signal(signal.SIGSTOP)
    yield
    memcached.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def one_of_three_down(stage: Stage) -> Iterator[None]:
    down = stage.backends[1]
    down.stop()
    stage.wait_for("memtunnel_upstream_breaker_open", server=NAMES[1])
    yield
    down.start()


def refuse_logins(server: FaultyServer) -> None:
    server.takes_logins = False


@contextlib.contextmanager
def logins_refused(stage: Stage) -> Iterator[None]:
    (server,) = stage.backends
    stage.wait_for("memtunnel_upstream_connects_total", result="login_refused")
    yield
    server.heal()


def answers(make: Callable[[], Fault]) -> Callable[[Stage], AbstractContextManager[None]]:
    """Instead of the right ones."""

    @contextlib.contextmanager
    def happens(stage: Stage) -> Iterator[None]:
        (server,) = stage.backends
        server.fault = make()
        yield
        server.heal()

    return happens


class Trouble(NamedTuple):
    happens: Callable[[Stage], AbstractContextManager[None]]
    servers: int = 1
    faulty: bool = False
    """Whether the server is one that can do wrong, and not memcached."""
    at_first: Callable[[Any], None] | None = None
    """What is wrong with it already when the tunnel starts."""


FAULTS = {
    "stopped": Trouble(stopped),
    "killed and restarted": Trouble(killed_and_restarted),
    "black hole": Trouble(black_hole),
    "one of three down": Trouble(one_of_three_down, servers=3),
    "reset in flight": Trouble(answers(lambda: faults.reset), faulty=True),
    "half an answer, then reset": Trouble(answers(lambda: faults.half_and_reset), faulty=True),
    "silence": Trouble(answers(lambda: faults.silence), faulty=True),
    "garbage": Trouble(answers(faults.lies), faulty=True),
    "answers to others": Trouble(answers(faults.swaps), faulty=True),
    "busy": Trouble(answers(lambda: faults.refuses(0x85)), faulty=True),
    # Only so is the next login tried after five to ten seconds, and not up to sixty.
    "logins refused": Trouble(logins_refused, faulty=True, at_first=refuse_logins),
}


class Summary:
    """What all of them did; shown when the tests have ended."""

    def __init__(self) -> None:
        self.lives: list[Life] = []

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        lives = self.lives
        if not lives:
            return
        total = sum((life.counts for life in lives), Counter())
        told = [f"{total[what]:,} {what}" for what in ("gets", "failed gets", "crossed values")]
        told += [f"{total[what]:,} {what}" for what in ("sets", "sets that raised")]
        told.append(f"slowest call {max(life.slowest for life in lives):.2f} s")
        told.append(f"slowest to be back {max(life.back for life in lives):.2f} s")
        fine = sum(not life.problems for life in lives)
        terminalreporter.write_line(f"clients x faults: {fine} of {len(lives)}; {', '.join(told)}")


@pytest.fixture(scope="module")
def summary(request: pytest.FixtureRequest) -> Summary:
    summary = Summary()
    request.config.pluginmanager.register(summary)
    return summary


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Player, Start | BaseException]:
    """How each client is started, or the skip or failure that says why it cannot be."""
    found: dict[Player, Start | BaseException] = {}
    for player in PLAYERS:
        try:
            found[player] = player.find(tmp_path_factory.getbasetemp())
        except (pytest.skip.Exception, pytest.fail.Exception) as missing:
            found[player] = missing
    return found


@pytest.fixture(scope="module")
def make_stage(
    good_pair: authority.Pair, ca_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Trouble], AbstractContextManager[Stage]]:
    def server(faulty: bool) -> Any:
        folder = tmp_path_factory.mktemp("server")
        if faulty:
            return FaultyServer(good_pair, folder)
        return servers.Memcached(folder, pair=good_pair, sasl=True)

    @contextlib.contextmanager
    def make(trouble: Trouble) -> Iterator[Stage]:
        with servers.closing_all([]) as started:
            for _ in range(trouble.servers):
                started.append(server(trouble.faulty))
                started[-1].start()
                if trouble.at_first is not None:
                    trouble.at_first(started[-1])
            backends = list(started)
            dial = zip(NAMES, backends, strict=False)
            tunnel = servers.Tunnel(
                *(f"--server=127.0.0.1:{each.port}={name}" for name, each in dial),
                f"--ca-file={ca_file}",
                f"--username={servers.USERNAME}",
                TIMEOUT,
                environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD},
            )
            started.append(tunnel)
            tunnel.start()
            yield Stage(backends, tunnel)

    return make


@pytest.fixture(scope="module", params=FAULTS)
def lives(
    request: pytest.FixtureRequest,
    found: dict[Player, Start | BaseException],
    make_stage: Callable[[Trouble], AbstractContextManager[Stage]],
    summary: Summary,
) -> dict[Player, Life]:
    """What all clients did under a fault."""
    trouble = FAULTS[request.param]
    lives = {
        player: Life(player, start)
        for player, start in found.items()
        if not isinstance(start, BaseException)
    }
    over = threading.Event()

    def wait(futures: list[Future[None]]) -> None:
        for future in futures:
            future.result(PATIENCE)

    def all_do(what: Callable[..., None], *args: Any) -> None:
        wait([life.do(what, *args) for life in lives.values()])

    with make_stage(trouble) as stage, contextlib.ExitStack() as stack:
        stack.callback(all_do, Life.end)
        all_do(Life.begin, stage.tunnel.port)
        if trouble.at_first is None:
            stage.make_well()
            all_do(Life.find_all_before)
        stack.callback(over.set)
        living = [life.do(Life.live_through, over) for life in lives.values()]
        with trouble.happens(stage):
            enough = {life: life.rounds + ROUNDS for life in lives.values()}
            servers.wait_until(
                lambda: all(life.hangs or life.rounds >= n for life, n in enough.items()),
                "all clients have done what they do",
                PATIENCE,
            )
        stage.make_well()
        over.set()
        wait(living)
        all_do(Life.find_all_after)
    summary.lives += lives.values()
    return lives


@pytest.mark.parametrize("player", PLAYERS, ids=str)
def test_gets_and_sets(
    lives: dict[Player, Life], found: dict[Player, Start | BaseException], player: Player
) -> None:
    start = found[player]
    if isinstance(start, BaseException):
        raise start
    assert lives[player].problems == {}


@pytest.mark.parametrize("lives", ["one of three down"], indirect=True)
def test_keys_of_the_other_servers_are_found(lives: dict[Player, Life]) -> None:
    server_of = router("ketama", NAMES).server_of
    others = {key for key in SHARED if server_of(key.encode()) != 1}
    assert {str(player): others - life.found for player, life in lives.items()} == {
        str(player): set() for player in lives
    }
