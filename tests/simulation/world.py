"""One seed: a whole tunnel, its clients, its servers, what goes wrong, and what is checked.

Everything of the tunnel is real: `Worker` with its sweep and ticks, listeners, sessions,
multiplexers, pools with login and probe, and the transports on Twisted's own. Below are the
sockets of `network`; TLS is left out (`servers.PlainTLS`). Whatever is drawn comes from one
source, so that a seed is one story, and always the same.

During the run the clients check what they are told (`clients`), the servers what they are asked
(`servers`). After it everything has to be back to nothing. A `Violation` ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from random import Random
from typing import Any, NoReturn
from unittest.mock import patch

from twisted.logger import formatEvent, globalLogPublisher

from memtunnel import worker as worker_module
from memtunnel.config import Config, load
from memtunnel.core import answers, mux
from memtunnel.net import upstream as upstream_module
from memtunnel.net.pool import Pool
from memtunnel.net.transports import READ
from memtunnel.net.turn import Turn
from memtunnel.net.upstream import PROBE_KEY, State
from memtunnel.worker import Worker
from simulation.binary import Binary
from simulation.clients import Client
from simulation.events import Events, lower_bounds, no_time_of_day
from simulation.history import History
from simulation.network import START, Faults, Port, Reactor, Server, Socket
from simulation.servers import EXPECTATION, Host, PlainTLSFactory
from simulation.text import Text

PASSWORD = "canary-of-a-password"
#: Seconds by which an answer may be later than its deadline.
LATE = 0.05
#: Simulated seconds between two looks at the bounds.
STEP = 0.25
#: Simulated seconds that clients are given to do what they want, and to leave.
LONGEST = 30.0
FAREWELL = 60.0
#: Simulated seconds after which what was healed has recovered: a refused login waits longest.
RECOVERY = 70.0
#: Bytes by which buffers may exceed their bound: what was let in before it was reached.
OVERRUN = 1 << 20


class Violation(AssertionError):
    """A promise was broken."""


class Counting:
    """The tunnel's counts; it also counts what is told without an answer of a server."""

    def __init__(self, world: World, counts: Any) -> None:
        self._world = world
        self._degraded = counts.degraded
        self.local = counts.local

    def degraded(self, command: int, reason: str) -> None:
        self._world.degraded[command] += 1
        self._degraded(command, reason)


class World:
    """The world of a seed. `tells` keeps its story, which costs time."""

    def __init__(self, seed: int, *, tells: bool = False) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        self.story: list[str] | None = [] if tells else None
        self.reactor = Reactor(random)
        self.rough = random.random() < 0.85
        """Whether anything goes wrong."""
        self.stormy = self.rough and random.random() < 0.15
        """Whether servers come and go all the time, so that keys move between them."""
        # There clients have few keys, and ask for them whatever they have been told so far.
        self.keys = 4 if self.stormy else 12
        self.haste = 0.7 if self.stormy else 0.1
        self.pause = 0.1 if self.stormy else 0.02
        self.quota = random.choice((100, 300, 600))
        self.largest = random.choice((0, 200, 200, 3000, 30_000))
        self.max_value = max(4500, self.largest + 600)
        self.sure_value = self.max_value
        """Values of so many bytes are taken, whatever the settings come to be."""
        self.requests = 0
        self.checked = 0
        self.degraded = [0] * 256
        """By loud opcode: how often something was told without an answer of a server."""
        self.strays = 0
        """How often a key came to a server that is not its own."""
        self.reshaped = False
        """Whether keys have come to be at home elsewhere."""
        self.disturbed = 0
        """How often something vanished rightly."""
        self.refused = False
        self.ending = False
        self.stops_reading = float("inf")
        self.problems: list[str] = []
        self.clients: dict[Client, None] = {}
        self.auth = random.choice(("open",) * 7 + ("required",) * 2 + ("passthrough",) * 2)
        self.rotates = self.auth == "open" and random.random() < 0.3
        """Whether the tunnel's login may come to be another; then clients do not log in."""
        self.login_trouble = False
        """Whether a server has refused a right login."""
        self.stopped = False
        self.late = LATE
        self._build()

    # Made of

    def _build(self) -> None:
        random = self.random
        reactor = self.reactor
        if not self.rough:
            calm = Random()
            calm.random = lambda: 0.99  # type: ignore[method-assign]
            reactor.faults = Faults(calm)
            reactor.faults.latency = 0.0005
        servers = 3 if self.stormy else random.choice((1, 1, 2, 3))
        spare = random.choice((0, 1))
        self.configured = list(range(servers))
        """The hosts that are servers now; others may come to be."""
        logins = 3 if self.auth == "passthrough" else 1
        self.histories = [History(f"user{i}", PASSWORD, servers + spare) for i in range(logins)]
        self.logins = {history.login: history for history in self.histories}
        self.hosts = [Host(self, index) for index in range(servers + spare)]
        if not self.rough:
            for host in self.hosts:
                host.heal()
        self.settings: dict[str, str] = {
            "username": "user0",
            "pool-size": str(random.choice((1, 2, 3))),
            "failover": "on" if self.stormy else random.choice(("on", "off")),
            "on-unavailable": random.choice(("miss", "error")),
            "hashing": random.choice(("ketama", "modula")),
            "drain-timeout": random.choice(("0.1", "0.5", "2")),
            "client-auth": self.auth,
            "max-value-size": str(self.max_value),
        }
        tight = self.rough and random.random() < 0.15
        self.max_buffer = random.choice((20_000, 200_000)) if tight else 0
        self.config = config = self.configure()
        self.timeout = config.request_timeout  # at most, whatever the settings come to be
        turn = reactor.turn = Turn(reactor)
        turn.driven = random.random() < 0.5
        reactor.dialled = self._dialled
        reactor.resolve_name = self._address_of
        self.max_clients = random.choice((50, 50, 50, 3))
        with self._stand_ins():
            self.worker = Worker(config, reactor, None, turn, self.max_clients)
            self.worker.slow.salt = bytes(16)
        self.tunnel = self.worker.tunnel
        self.tunnel.counts = Counting(self, self.tunnel.counts)
        self.listener = self.worker.listener()
        self.worker.serve(self.listener, Port())
        self.events = Events(self)

    def configure(self) -> Config:
        """The settings, as the tunnel reads them now."""
        servers = [f"server{index}.example:11219" for index in self.configured]
        flags: dict[str, Any] = {**self.settings, "server": servers}
        config = load(flags, {"MEMTUNNEL_PASSWORD": self.histories[0].password})
        return replace(config, max_buffer=self.max_buffer or config.max_buffer)

    @contextmanager
    def _stand_ins(self) -> Iterator[None]:
        """What the world has in place of TLS, threads, and garbage to collect."""
        with ExitStack() as stack:
            for name, value in (
                ("SystemRandom", lambda: self.random),
                ("SendAtOnceReactor", lambda reactor, resolver: reactor),
                ("Resolver", lambda reactor: None),
                ("make_context", lambda roots: None),
                ("expectation", lambda *_: EXPECTATION),
            ):
                stack.enter_context(patch.object(worker_module, name, value))
            for name in ("freeze", "set_threshold"):
                stack.enter_context(patch.object(worker_module.gc, name, lambda *_: None))
            tls = patch.object(
                upstream_module, "TLSFactory", lambda _, __, inner: PlainTLSFactory(self, inner)
            )
            stack.enter_context(tls)
            yield

    def _dialled(self, sock: Socket, address: str, port: int) -> None:
        self.hosts[int(address.rpartition(".")[2]) - 1].dialled(sock)

    def _address_of(self, name: str) -> str | None:
        index = int(name.removeprefix("server").partition(".")[0])
        return None if self.hosts[index].answers_dials == "unknown" else f"10.0.0.{index + 1}"

    def size(self) -> int:
        """Bytes of a value."""
        return self.random.randint(0, self.largest) if self.random.random() < 0.3 else 0

    # What is told

    def tell(self, who: str, words: str, *details: Any) -> None:
        if self.story is not None:
            when = self.reactor.now - START
            self.story.append(f"{when:10.5f}  {who:10} {words % details}")

    def fail(self, words: str) -> NoReturn:
        self.tell("VIOLATION", "%s", words)
        raise Violation(words)

    def problem(self, words: str) -> None:
        """The same, in the middle of the tunnel, which would catch it."""
        self.problems.append(words)

    def _log(self, event: Any) -> None:
        words = formatEvent(event)
        failure = event.get("log_failure")
        self.tell("log", "%s", words)
        if PASSWORD in words or PASSWORD in repr(event.get("log_failure")):
            self.problem(f"the password is in the log: {words}")
        if failure is not None:
            self.problem(f"{words}: {failure.getTraceback()}")

    def moved(self, history: History, key: bytes, server: int) -> None:
        """A key is served by another server than before, or for the first time."""
        if key == PROBE_KEY:
            return  # every server is asked for it
        history.moved(key, server)
        if server != self.configured[self.tunnel.cluster.router.server_of(key)]:
            self.strays += 1

    def history_of(self, client: int) -> History:
        """That of the login which this client has."""
        return self.histories[client % len(self.histories)]

    def no_history(self) -> History:
        """That of a login which no server takes."""
        return History("nobody", PASSWORD, len(self.hosts))

    # What happens

    def run(self) -> None:
        globalLogPublisher.addObserver(self._log)
        try:
            with ExitStack() as stack:
                stack.enter_context(self._stand_ins())
                stack.enter_context(no_time_of_day(self.seed))
                lowers = self.rough and self.random.random() < 0.15
                lowered = lower_bounds(stack, self.random) if lowers else set()
                if lowered & {"FULL_REQUESTS", "FULL_BYTES"}:
                    # Few are taken at a time, and what is behind them waits for that.
                    self.late += 2 * self.timeout
                self._run()
        finally:
            globalLogPublisher.removeObserver(self._log)

    def _run(self) -> None:
        random = self.random
        self.worker.start()
        clients = random.choice((2, 4, 8))
        for number in range(clients):
            self.reactor.at(random.random() * 0.5 if number else 0.0, self._connect, number)
        self.awaited = clients
        self.coming = clients
        self.events.begin()
        self._pass_until(lambda: not self.awaited, LONGEST)
        self._heal()
        self._pass_until(lambda: not self.awaited, FAREWELL)
        if self.awaited:
            left = [(one.name, one.leaving, list(one.owed)[:3]) for one in self.clients]
            self.fail(f"not closed, or not answered: {left}")
        self._pass_until(self._recovered, RECOVERY)
        self._pass_until(lambda: False, 2.0)
        self._pass_until(self._recovered, 5.0)  # a heartbeat may be under way
        self._check_end()

    def _pass_until(self, done: Callable[[], bool], longest: float) -> None:
        until = self.reactor.now + longest
        while not done() and self.reactor.now < until:
            self.reactor.run(self.reactor.now + STEP)
            self._check_bounds()

    def _connect(self, number: int) -> None:
        if self.stopped or self.stops_reading < self.reactor.now:
            self.awaited -= 1
            return
        protocol = self.listener.buildProtocol(None)
        if protocol is None:
            status = self.worker.status
            if status.clients < status.max_clients:
                self.fail(f"client {number} is not let in")
            self.reactor.at(0.05, self._connect, number)
            return
        kind = Binary if self.random.random() < 0.5 else Text
        client = kind(self, number)
        sock = Socket(self.reactor)
        sock.peer = client
        self.clients[client] = None
        self.tell(client.name, "comes")
        transport = Server(sock, protocol, self.reactor)
        protocol.makeConnection(transport)
        client.come(sock, transport)

    def gone(self, client: Client) -> None:
        """A client is gone; now and then another takes its place."""
        del self.clients[client]
        if not self.ending and self.coming < 20 and self.random.random() < 0.5:
            self.reactor.at(0.01, self._connect, self.coming)
            self.coming += 1
        else:
            self.awaited -= 1

    def _heal(self) -> None:
        self.tell("world", "heals")
        self.ending = True
        self.reactor.faults.heal()
        for host in self.hosts:
            host.heal()
        for client in self.clients:
            if not client.patient:
                client.act_soon()

    # What is checked

    def _check_bounds(self) -> None:
        """P6, and what could not be said where it was seen."""
        if self.problems:
            self.fail(self.problems[0])
        budget = self.tunnel.budget
        if not 0 <= budget.used <= budget.limit + OVERRUN:
            self.fail(f"{budget.used} bytes are in use, of {budget.limit}")
        moved = sum(counts.failovers for counts in self.worker.metrics.servers.values())
        if self.strays > moved and not self.reshaped:
            self.fail(f"keys have come to other servers {self.strays} times, and moved {moved}")
        for pool in self.worker.logins.pools:
            host = self.host_of(pool)
            # What a server says rightly, be it late, never costs its connection.
            if sum(pool.server.counts.desync.values()) > host.lies_told:
                self.fail(f"{host.name} is accused of lies that it has not told")
            for upstream in pool.upstreams:
                # One heartbeat, and one look at a server that stalls, are not asked whether.
                if not 0 <= upstream.mux.load <= mux.MAX_ENTRIES + 2:
                    self.fail(f"a connection carries {upstream.mux.load} requests")
                if upstream.mux.unsent_bytes > mux.MAX_UNSENT + self.max_value + 300:
                    self.fail(f"{upstream.mux.unsent_bytes} bytes wait for a connection")
        for client in self.listener.clients:
            if client.session.unread > 2 * answers.CHOKED_BYTES + 4 * READ:
                self.fail(f"{client.session.unread} bytes wait for a client")

    def rotate(self) -> None:
        """The tunnel's login has another password from now on; the former one will do, too."""
        history = self.histories[0]
        history.password += "+"
        self.logins[history.login] = history

    def stop(self) -> None:
        self.stopped = True
        self.worker.stop()

    def host_of(self, pool: Pool) -> Host:
        return self.hosts[int(pool.target.host.removeprefix("server").partition(".")[0])]

    def pools_of(self, host: Host) -> list[Pool]:
        return [pool for pool in self.worker.logins.pools if self.host_of(pool) is host]

    def _recovered(self) -> bool:
        """Whether all connections are there that should be, and nothing is on them."""
        logins = self.worker.logins
        if self.stopped:
            return not any(pool.upstreams for pool in logins.pools)
        kept = {pool: None for login in logins if not login.retired for pool in login.pools}
        return all(
            pool.count(State.WARM) == pool.size
            and len(pool.upstreams) == pool.size
            and not pool.server.refusing
            and not any(upstream.mux.load for upstream in pool.upstreams)
            if pool in kept
            else not pool.upstreams
            for pool in logins.pools
        )

    def _check_end(self) -> None:
        """Everything is back to nothing."""
        tunnel = self.tunnel
        if not self._recovered():
            states = [
                [(str(one.state), one.mux.load) for one in pool.upstreams]
                + [pool.last_lost, pool.server.breaker.state.value]
                for pool in self.worker.logins.pools
            ]
            self.fail(f"servers are well, and the tunnel is not: {states}")
        if not self.rough and any(self.degraded) and not self.stopped:
            self.fail("nothing went wrong, and there was no answer from a server")
        left: list[tuple[str, object]] = [
            ("bytes of the budget", tunnel.budget.used),
            ("a drain", not self.events.drained),
            ("deadlines", bool(tunnel.deadlines)),
            ("clients", self.worker.status.clients),
            ("paused clients", self.listener.paused),
            ("clients counted", self.listener.counts.connections),
        ]
        for pool in self.worker.logins.pools:
            left.append(("requests waiting", pool.server.queued or len(pool.server.queue)))
            for upstream in pool.upstreams:
                left.append(("in flight", upstream.mux.in_flight))
                left.append(("bytes unsent", upstream.mux.unsent_bytes))
        for what, number in left:
            if number:
                self.fail(f"left at the end: {what}, {number}")
        if not self.stopped:
            self.stop()
            self._pass_until(lambda: False, 2.0)
        if self.reactor.sockets:
            self.fail(f"{len(self.reactor.sockets)} sockets are open after the end")
        if calls := self.reactor.pending:
            self.fail(f"calls are still due after the end: {calls}")
