"""What all sessions share: the policy, the bounds, and who has something to write."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final, Protocol

from memtunnel.core.budget import Budget
from memtunnel.core.cluster import Cluster
from memtunnel.core.deadlines import Deadlines
from memtunnel.core.outcomes import DEGRADED, Notable, Reason
from memtunnel.core.request import Request
from memtunnel.core.server import ServerCounts
from memtunnel.wire.binary import BODYLESS, LOUD, Opcode
from memtunnel.wire.sasl import Credentials

if TYPE_CHECKING:
    from memtunnel.core.answers import Answers

#: What VERSION says before a server has said its own.
FIRST_VERSION: Final = b"1.6.0"
#: A request, why it is noted, its status, when its answer was parsed and handed over, its bytes.
Note = Callable[[Request, Notable, int, float, float, int], None]
#: Never, as a number of requests.
_NEVER: Final = 1 << 60


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The settings that decide what clients are told; `config.Config` says what each means."""

    login_required: bool = False
    passthrough: bool = False
    """A client's login is not compared with the one in use, but used upstream itself."""
    errors_on_unavailable: bool = False
    failover: bool = True
    max_value_size: int = 1024 * 1024
    strip_touch_extras: bool = False
    request_timeout: float = 0.4
    slow: float = inf
    """Seconds from which on a request is noted as slow."""
    sample: int = 0
    """One in so many requests to servers is noted, whatever it took; 0 for none."""


class TunnelCounts(Protocol):
    """What is counted for the tunnel as a whole; `ops.metrics` has the real one."""

    @property
    def local(self) -> ServerCounts:
        """For requests that the tunnel answers itself."""

    def degraded(self, command: int, reason: str) -> None:
        """A degraded reply to a command, by its loud opcode."""


class Tunnel:
    """Built once, handed to every session.

    `cluster` is that of clients without a login of their own, or with the configured one.
    `wake` is called when `sweep` has something to watch and had nothing before. `describe`
    returns the names and values of the tunnel's own statistics by STAT's key, or None where the
    servers are asked; `log_in` the cluster of a client's own login, or None where there are too
    many. `note` is told of settled requests that are worth to be seen: why, status and times as in
    `ServerCounts.answered`, and the bytes of the answer.
    """

    __slots__ = (
        "bodyless",
        "budget",
        "cluster",
        "counts",
        "deadlines",
        "describe",
        "log_in",
        "note",
        "policy",
        "ready",
        "slow",
        "until_sample",
        "version",
    )

    def __init__(
        self,
        policy: Policy,
        cluster: Cluster,
        budget: Budget,
        counts: TunnelCounts,
        wake: Callable[[], None],
        describe: Callable[[bytes], Iterable[tuple[str, str]] | None] = lambda key: None,
        log_in: Callable[[Credentials], Cluster | None] = lambda login: None,
        note: Note = lambda *what: None,
    ) -> None:
        self.cluster = cluster
        self.budget = budget
        self.counts = counts
        self.describe = describe
        self.log_in = log_in
        self.note = note
        self.deadlines = Deadlines(policy.request_timeout, self._expire, wake)
        self.version = FIRST_VERSION
        self.ready: list[Answers] = []
        """Those who have something to write, or to close, at the end of this event."""
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """Follow other settings from now on."""
        self.policy = policy
        self.slow = policy.slow
        self.until_sample = policy.sample or _NEVER
        """Requests to servers that are not noted before the next one that is."""
        self.deadlines.timeout = policy.request_timeout
        self.bodyless = BODYLESS | {Opcode.TOUCH} if policy.strip_touch_extras else BODYLESS
        """Loud opcodes whose success is passed on without a body."""

    def flush(self) -> None:
        """Let all clients write what they got: one write each. Ends every event."""
        while self.ready:
            ready, self.ready = self.ready, []
            for session in ready:
                session.flush()

    def settled(
        self, request: Request, status: int, received: float, now: float, size: int
    ) -> None:
        """Count a request, and note it if it is worth it.

        Times are those of `ServerCounts.answered`, as is `status`, to which `DEGRADED` may have
        been added; `size` is that of its answer.
        """
        lane = request.lane
        opcode = LOUD[request.opcode]
        arrived = request.arrived
        degraded = status >= DEGRADED
        if degraded:
            status -= DEGRADED
        if lane is None:
            self.counts.local.answered(opcode, status, arrived, request.sent, received, now)
            if not degraded:
                return  # it only waited for others, which are seen themselves
        else:
            lane.server.counts.answered(opcode, status, arrived, request.sent, received, now)
            self.until_sample -= 1
        if degraded:
            why = Notable.FAILED
        elif now - arrived >= self.slow:
            why = Notable.SLOW
        elif self.until_sample <= 0:
            why = Notable.SAMPLE
        else:
            return
        if self.until_sample <= 0:
            self.until_sample = self.policy.sample
        self.note(request, why, status, received, now, size)

    def sweep(self, now: float) -> bool:
        """Settle what is past its deadline. Returns whether there is more to watch."""
        self.deadlines.sweep(now)
        self.flush()
        return bool(self.deadlines)

    def _expire(self, request: Request, now: float) -> None:
        if request.lane is not None:
            request.lane.server.expire(request, now)
        elif request.owner is not None:
            request.owner.failed(request, Reason.TIMEOUT, now)
