"""One local client: where its requests go, and its login.

Bytes come in with `receive`; what they mean is decided by the protocol that the client speaks, in
`core.binary_session` or `core.text_session`. A request goes to the server of its key, through the
client's lane to it, or to all servers. What the client is owed, and in which order, is kept by
`core.answers`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Final, cast

from memtunnel.core.answers import FULL_REQUESTS, HIT, Answers, Client, ListenerCounts
from memtunnel.core.cluster import Cluster, Verdict
from memtunnel.core.gather import FlushGather, Gather, StatGather, TooLargeGather
from memtunnel.core.intake import Intake
from memtunnel.core.lane import Lane
from memtunnel.core.outcomes import LoginResult, Reason, status_index
from memtunnel.core.request import Owner, Request
from memtunnel.wire.binary import HEADER_LENGTH, LOUD, READS, Opcode, Status, key_of
from memtunnel.wire.binary import request as request_frame
from memtunnel.wire.sasl import Credentials

if TYPE_CHECKING:
    from memtunnel.core.tunnel import Tunnel

#: Requests of one client that are taken in one go; then other clients get their turn.
REQUESTS_A_TURN: Final = 64
#: Bytes of what may hold a login.
LONGEST_LOGIN: Final = 4096
#: The longest body that is read past to keep a connection whose request cannot be used.
MAX_SWALLOW: Final = 32 * 1024 * 1024
#: By whether the servers took a login, what came of it.
_RESULT: Final = {True: LoginResult.OK, False: LoginResult.REFUSED}
#: What the owner hears of a login that was used upstream in vain.
_NOTICES: Final = {
    LoginResult.REFUSED: "passed_login_refused",
    LoginResult.TOO_MANY: "max_logins",
}


class Session(Answers):
    """The base of a client's session; `client` is where its answers go, `counts` those of its
    listener.
    """

    __slots__ = (
        "_held_at",
        "_lanes",
        "_trusted",
        "awaits_more",
        "cluster",
        "held",
        "intake",
        "pending",
    )

    def __init__(self, tunnel: Tunnel, counts: ListenerCounts, client: Client) -> None:
        super().__init__(tunnel, counts, client)
        self.cluster = tunnel.cluster
        self._lanes: list[Lane | None] = [None] * len(self.cluster.servers)
        self._trusted = not tunnel.policy.login_required
        self.pending: Request | None = None
        """The client's login that no server has judged yet; nothing else is taken meanwhile."""
        self.intake = Intake(tunnel.budget)
        self.held = b""
        """Requests that wait for the next turn."""
        self._held_at = 0.0
        self.awaits_more = False
        """What came last was quiet: the client will send more before it gets an answer."""

    # Input

    def receive(self, data: bytes, now: float) -> bool:
        """Take what the client sent.

        Returns whether its connection has something to do now: somebody has answers to be
        written, the client will send more before it gets one, or should not be read from.
        """
        self._counts.received_bytes += len(data)
        if self.finishing:
            return False
        if self.held or self.pending is not None:
            self._hold(data, now)
            return True
        intake = self.intake
        if intake.since > 0.0 or intake.began > 0.0:
            data = intake.feed(data, now)
        if data:
            self._parse(data, now)
        after = self  # by another name: the compiler would take `pending` for what it was above
        return (
            len(self.tunnel.ready) > 0
            or intake.since > 0.0
            or self.awaits_more
            or len(self.held) > 0
            or after.pending is not None
            or self.owed_bytes >= FULL_REQUESTS * HEADER_LENGTH
        )

    @property
    def full(self) -> bool:
        """Whether the client should not be read from now."""
        return self.pending is not None or super().full

    def go_on(self, now: float, *, anew: bool = False) -> None:
        """Take what was held back; its time is that of its read, or `now` if it counts `anew`."""
        data = self._take_held()
        arrived = now if anew else self._held_at
        self._parse(self.intake.feed(data, arrived), arrived)

    def finish(self) -> None:
        """No further input: answer what was read, then close."""
        if self.held:
            return  # comes again when the last frame was taken
        self.finishing = True
        self.intake.clear()
        if not self._owed:
            self.tunnel.ready.append(self)

    def lose(self, now: float) -> None:
        """The client has left."""
        self._count_out()
        self.intake.clear()
        self._take_held()
        self._forget(now)

    def _hold(self, data: bytes, now: float) -> None:
        """Keep requests for another turn; a login that they wait for is not waited for any more
        where there is no room for them.
        """
        if not self.held:
            self._held_at = now
        self.held += data
        self.tunnel.budget.used += len(data)
        if self.pending is not None and self.tunnel.budget.exhausted:
            self.failed(self.pending, Reason.OVERLOADED, now)

    def _take_held(self) -> bytes:
        data, self.held = self.held, b""
        self.tunnel.budget.used -= len(data)
        return data

    def _parse(self, data: bytes, now: float) -> None:
        """Take the requests in `data`; keep, or hold, what is not taken."""
        raise NotImplementedError

    def _past(
        self, data: bytes, position: int, stop: int, now: float, then: Callable[[float], None]
    ) -> int:
        """Read past the frame from `position` to `stop`, then do what is due in its place."""
        end = len(data)
        if stop <= end:
            then(now)
            return stop
        if stop - end > MAX_SWALLOW:
            self._protocol_error("too_long")
            then(now)
            self.finish()
        else:
            self.intake.skip(stop - end, position, now, then)
        return end

    def _judge(self, result: LoginResult) -> None:
        """The client has tried to log in. After a wrong login nothing else is taken."""
        self._trusted = result.right
        self._counts.logins[result] = self._counts.logins.get(result, 0) + 1

    def _pass_on(self, login: Credentials | None, opaque: bytes, now: float) -> None:
        """Use a client's own login upstream, if it can be one, and tell what comes of it."""
        slot = self._slot(Opcode.SASL_AUTH, opaque, now)
        cluster = None if login is None else self.tunnel.log_in(login)
        if cluster is None:
            result = LoginResult.REFUSED if login is None else LoginResult.TOO_MANY
            self._settle_login(slot, result, now)
            return
        self._join(cluster)
        if cluster.verdict is Verdict.NONE:
            slot.owner = cast(Owner, self)  # what is missing here, every client's protocol has
            self.pending = slot
            cluster.waiting[self] = None
            self.tunnel.deadlines.add(now, [slot])
        else:
            self._settle_login(slot, _RESULT[cluster.verdict is Verdict.ACCEPTED], now)

    def judged(self, right: bool, now: float) -> None:
        slot = self.pending
        if slot is not None:
            self.pending = None
            self._settle_login(slot, _RESULT[right], now)
        elif not right:
            self._judge(LoginResult.REFUSED)
            self.client.notice(_NOTICES[LoginResult.REFUSED])

    def failed(self, request: Request, reason: Reason, now: float) -> None:
        if request is not self.pending:
            super().failed(request, reason, now)
            return
        # Until there is a verdict there are degraded replies: the tunnel's trouble is no refusal.
        self.pending = None
        self.tunnel.counts.degraded(request.opcode, reason)
        self._settle_login(request, LoginResult.UNJUDGED, now)

    def _settle_login(self, slot: Request, result: LoginResult, now: float) -> None:
        """Tell the verdict on a login that is used upstream; a refused client is closed."""
        self._judge(result)
        status = Status.OK if result.right else Status.AUTH_FAILED
        self._settle(slot, self._login_told(result.right, slot), status_index(status), now)
        if not result.right:
            self.client.notice(_NOTICES[result])
            self._take_held()
            self.finish()

    def _login_told(self, right: bool, slot: Request) -> bytes:
        """What the client's protocol says of a login."""
        raise NotImplementedError

    # Where requests go

    def _join(self, cluster: Cluster) -> None:
        """Send what comes from now on to these servers."""
        self._count_out()
        self.cluster = cluster
        if cluster is not self.tunnel.cluster:
            cluster.clients += 1
        self._lanes = [None] * len(cluster.servers)
        self._lanes_changed()

    def _count_out(self) -> None:
        self.cluster.waiting.pop(self, None)
        if self.cluster is not self.tunnel.cluster:
            self.cluster.clients -= 1

    def follow(self) -> None:
        """The servers have changed: keep the lanes to those that stay."""
        lanes = {lane.server: lane for lane in self._lanes if lane is not None}
        self._lanes = [lanes.get(server) for server in self.cluster.servers]
        self._lanes_changed()

    def _lanes_changed(self) -> None:
        """The lanes are others than before."""

    def _send(self, lane: Lane, requests: list[Request], size: int, now: float) -> None:
        """Send requests of `size` bytes together, which are owed from now on."""
        self.owed_bytes += size
        if not lane.server.refusing:
            lane.send_all(requests, size, now)
            return
        for request in requests:
            self.unserved(request, now)

    def _lane_of(self, key: bytes) -> Lane:
        lanes = self._lanes
        index = self.cluster.router.server_of(key) if len(lanes) > 1 else 0
        return lanes[index] or self._open_lane(index)

    def _open_lane(self, index: int) -> Lane:
        lane = self._lanes[index]
        if lane is None:
            lane = self._lanes[index] = Lane(self.cluster.servers[index])
        return lane

    def _settle_new(
        self, opcode: int, opaque: bytes, reply: bytes, now: float, status: int = HIT
    ) -> None:
        """Answer a request in its place, without a server."""
        self._settle(self._slot(opcode, opaque, now), reply, status, now)

    def _statistics(self, key: bytes) -> list[tuple[bytes, bytes]] | None:
        """What STAT is answered by the tunnel itself; None where the servers are asked."""
        described = self.tunnel.describe(key)
        if described is None:
            return None
        return [(name.encode(), value.encode()) for name, value in described]

    def _ask_all(self, slot: Request, frame: bytes, now: float, batch: list[Request]) -> None:
        """Send STAT or FLUSH, in its loud form, to all servers; `slot` is what it was asked for."""
        loud = LOUD[slot.opcode]
        servers = self.cluster.servers
        kind = StatGather if loud == Opcode.STAT else FlushGather
        gather = kind(self, slot, [server.address for server in servers])
        for place, server in enumerate(servers):
            self._send_part(gather, place, server.index, loud, frame, now, batch)

    def _delete_old(self, slot: Request, key: bytes, now: float) -> None:
        """Drop the old value of a key whose new one is too large, as memcached does."""
        frame = request_frame(Opcode.DELETE, key)
        lane = self._lane_of(key)
        gather = TooLargeGather(self, slot, [lane.server.name])
        batch: list[Request] = []
        self._send_part(gather, 0, lane.server.index, Opcode.DELETE, frame, now, batch)
        self.tunnel.deadlines.add(now, batch)

    def _send_part(
        self,
        gather: Gather,
        place: int,
        index: int,
        loud: int,
        frame: bytes,
        now: float,
        batch: list[Request],
    ) -> None:
        lane = self._open_lane(index)
        part = Request(gather, lane, loud, bytes(4), frame, len(frame), now)
        gather.expect(part, place)
        batch.append(part)
        if lane.server.refusing:
            gather.unserved(part, now)
        else:
            lane.send(part, now)

    # Servers that take no requests

    def unserved(self, request: Request, now: float) -> None:
        lane = request.lane
        assert lane is not None
        if LOUD[request.opcode] in READS and lane.server.breaker.admits_probe(now):
            request.fixed = True  # others are given what is asked later
            lane.send(request, now)
        elif not self.fail_over(request, now):
            self.failed(request, Reason.NO_UPSTREAM, now)

    def fail_over(self, request: Request, now: float) -> bool:
        """Send a request to the server that serves its key meanwhile; False where none may.

        It moves only on in the order of its key, never back: a server before its own in that
        order may have come back meanwhile, and have been given what was asked later. Nor is it
        read again if its connection is lost: by then the servers may have another order.
        """
        lane = request.lane
        frame = request.frame
        assert lane is not None
        assert frame is not None
        if request.fixed or lane.server.cluster is not self.cluster:
            return False  # or it was asked with another login
        servers = self.cluster.servers
        order = self.cluster.router.order_of(key_of(frame))
        failover = self.tunnel.policy.failover
        if lane.server in servers:
            if not failover:
                return False
            for index in order:
                if servers[index] is lane.server:
                    break
        elif not failover:
            order = islice(order, 1)  # it has just gone: its keys have another server of their own
        for index in order:
            if not servers[index].refusing:
                lane.server.counts.failovers += 1
                request.retried = True
                request.lane = self._open_lane(index)
                request.lane.send(request, now)
                return True
        return False

    def _protocol_error(self, reason: str) -> None:
        errors = self._counts.protocol_errors
        errors[reason] = errors.get(reason, 0) + 1
