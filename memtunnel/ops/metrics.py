"""What is counted, in plain slots.

Those who count hold a `ServerMetrics` or a `ListenerMetrics` and add to its slots; nothing on
the path of a request touches prometheus_client, whose histogram costs six times as much. What
can be measured when it is asked for is not counted at all: it comes with each scrape as a
`State`.

The words of reasons, results and kinds belong to those who count; the command and status words
are closed here and in `core.outcomes`. The names under which all this is seen are the business
of `ops.exposition`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from memtunnel.core.outcomes import STATUS_WORDS
from memtunnel.wire.binary import LOUD, Opcode

#: Name of the server that stands for what the tunnel answers itself.
LOCAL: Final = "local"
#: Upper edges in seconds: most requests take a quarter of a millisecond.
REQUEST_BOUNDS: Final[tuple[float, ...]] = (
    0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075,
    0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
CONNECT_BOUNDS: Final[tuple[float, ...]] = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
#: What a connection goes through before it is warm.
PHASES: Final = ("dns", "tcp", "tls", "auth", "probe")

UNKNOWN: Final = "unknown"
_O = Opcode
#: By loud opcode, the `command` label.
COMMAND_WORDS: Final[Mapping[int, str]] = {
    _O.GET: "get",
    _O.GETK: "get",
    _O.GAT: "gat",
    _O.GATK: "gat",
    _O.SET: "set",
    _O.ADD: "add",
    _O.REPLACE: "replace",
    _O.APPEND: "append",
    _O.PREPEND: "prepend",
    _O.DELETE: "delete",
    _O.INCR: "incr",
    _O.DECR: "decr",
    _O.TOUCH: "touch",
    _O.FLUSH: "flush",
    _O.STAT: "stat",
    _O.NOOP: "noop",
    _O.VERSION: "version",
    _O.SASL_LIST: "sasl",
    _O.SASL_AUTH: "sasl",
    _O.SASL_STEP: "sasl",
    _O.QUIT: "quit",
}
#: By opcode, 0 to 255: the `command` label.
COMMANDS: Final = tuple(COMMAND_WORDS.get(LOUD[opcode], UNKNOWN) for opcode in range(256))


class Histogram:
    """Observations counted by upper edge: `counts` has one place more than `bounds`."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = REQUEST_BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Command:
    """What is counted for one command word of one server."""

    __slots__ = ("duration", "statuses")

    def __init__(self) -> None:
        self.statuses = [0] * len(STATUS_WORDS)
        self.duration = Histogram()


class ServerMetrics:
    """What is counted for one server; whoever owns an event adds to its slot."""

    __slots__ = (
        "_arrived",
        "_by_opcode",
        "_duration_place",
        "_now",
        "_queue_place",
        "_received",
        "_sent",
        "_upstream_place",
        "commands",
        "connect_duration",
        "connects",
        "desync",
        "dialled",
        "disconnects",
        "failovers",
        "flaps",
        "queue_duration",
        "received_bytes",
        "retries",
        "sent_bytes",
        "upstream_duration",
    )

    def __init__(self) -> None:
        self.commands = {word: Command() for word in dict.fromkeys(COMMANDS)}
        # Opcodes of one word share one entry: nothing has to be added up at a scrape.
        self._by_opcode = tuple(self.commands[word] for word in COMMANDS)
        self.upstream_duration = Histogram()
        self.queue_duration = Histogram()
        self.connect_duration = {phase: Histogram(CONNECT_BOUNDS) for phase in PHASES}
        self.dialled = 0
        """Connections that were begun, which gives each a number."""
        self.connects: dict[str, int] = {}
        self.disconnects: dict[str, int] = {}
        self.desync: dict[str, int] = {}
        self.retries: dict[str, int] = {}
        self.flaps = 0
        self.failovers = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        # The times of the request that was counted last, and where they belong.
        self._arrived = self._sent = self._received = self._now = 0.0
        self._duration_place = self._upstream_place = self._queue_place = 0

    def answered(
        self,
        command: int,
        status: int,
        arrived: float,
        sent: float,
        received: float,
        now: float,
        number: int = 1,
    ) -> None:
        """So many requests were settled, alike in all that follows.

        `command` is their opcode, `status` an index in `STATUS_WORDS`. The times are seconds of
        one monotonic clock: complete frame, written upstream (0 for never), answer parsed, answer
        handed to the client's transport.
        """
        # Requests of one turn have the same times: they are compared, not looked up again.
        # Written out in place: calls to `observe` would cost as much as the counting.
        if (
            now != self._now
            or arrived != self._arrived
            or sent != self._sent
            or received != self._received
        ):
            self._now = now
            self._arrived = arrived
            self._sent = sent
            self._received = received
            self._duration_place = bisect_left(REQUEST_BOUNDS, now - arrived)
            self._upstream_place = bisect_left(REQUEST_BOUNDS, received - sent)
            self._queue_place = bisect_left(REQUEST_BOUNDS, sent - arrived)
        counted = self._by_opcode[command]
        counted.statuses[status] += number
        histogram = counted.duration
        histogram.counts[self._duration_place] += number
        histogram.sum += (now - arrived) * number
        if sent > 0.0:
            histogram = self.upstream_duration
            histogram.counts[self._upstream_place] += number
            histogram.sum += (received - sent) * number
            histogram = self.queue_duration
            histogram.counts[self._queue_place] += number
            histogram.sum += (sent - arrived) * number

    def phase(self, name: str, seconds: float) -> None:
        """A phase of a connection's set-up, one of `PHASES`, took so long."""
        self.connect_duration[name].observe(seconds)


class ListenerMetrics:
    """What is counted for one local listener."""

    __slots__ = (
        "connections",
        "logins",
        "opened",
        "protocol_errors",
        "received_bytes",
        "rejected",
        "sent_bytes",
    )

    def __init__(self) -> None:
        self.connections = 0
        self.opened = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.rejected: dict[str, int] = {}
        self.protocol_errors: dict[str, int] = {}
        self.logins: dict[str, int] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionState:
    """A connection to a server at the time of a scrape. Times are seconds."""

    number: int
    """Counts the connections that this worker ever dialled to the server."""
    state: str
    age: float
    """Since it was dialled."""
    in_flight: int
    round_trip: float | None
    """Of the request that was answered last; None before there was one."""
    worker: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerState:
    """A server at the time of a scrape."""

    up: bool
    connections: Mapping[str, int]
    """How many are in each state."""
    connections_target: int
    in_flight: int
    queued: int
    tombstones: int
    queue_oldest_seconds: float
    """How long the oldest request has waited; 0 if none waits."""
    breaker_open: bool
    verify: str
    """What is checked of its certificate."""
    tls: tuple[str, str] | None
    """Version and cipher, once they are known."""
    certificate_not_after: float | None
    """Seconds since the epoch, once it is known."""
    last_lost: str = ""
    """Why a connection was lost, or not made, most recently."""
    last_lost_age: float | None = None
    """Seconds since then."""
    address: str = ""
    """Where it is dialled."""
    pool: tuple[ConnectionState, ...] = ()
    """Its connections one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """The tunnel, or one of its workers, at the time of a scrape; `servers` by name."""

    ready: bool
    draining: bool
    client_paused: int
    """How many clients are not read from."""
    buffered_bytes: int
    client_connections_max: int
    config_last_reload_successful: bool
    servers: Mapping[str, ServerState]
    clients: int = 0
    uptime: float = 0.0
    """Seconds since the start."""
    pid: int = 0
    workers: Mapping[str, State] = field(default_factory=dict)
    """By number, where the tunnel has workers in processes of their own."""
    silent: tuple[str, ...] = ()
    """The numbers of workers that do not answer."""


class Build(NamedTuple):
    version: str
    python: str
    twisted: str
    openssl: str
    reactor: str


class Metrics:
    """All that is counted. The arguments are labels of `build_info`."""

    def __init__(
        self, *, version: str, python: str, twisted: str, openssl: str, reactor: str
    ) -> None:
        self.build = Build(version, python, twisted, openssl, reactor)
        self.servers: dict[str, ServerMetrics] = {}
        self.listeners: dict[str, ListenerMetrics] = {}
        self.degraded_replies: dict[tuple[str, str], int] = {}
        self.event_loop_lag = Histogram()
        self.garbage: dict[str, int] = {}
        """What garbage collectors did, of workers that are processes of their own."""
        self.local = self.server(LOCAL)
        self._state: Callable[[], State] | None = None

    def server(self, name: str) -> ServerMetrics:
        """The counts of this server, which go on where it had some."""
        return self.servers.setdefault(name, ServerMetrics())

    def listener(self, name: str) -> ListenerMetrics:
        """The counts of this listener, which go on where it had some."""
        return self.listeners.setdefault(name, ListenerMetrics())

    def degraded(self, command: int, reason: str) -> None:
        """A degraded reply to a command, by its opcode."""
        key = COMMANDS[command], str(reason)
        self.degraded_replies[key] = self.degraded_replies.get(key, 0) + 1

    def watch(self, state: Callable[[], State]) -> None:
        """Ask `state`, once a scrape, for what is not counted."""
        self._state = state

    def state(self) -> State | None:
        """What is not counted; None as long as nobody is there to ask."""
        return None if self._state is None else self._state()
