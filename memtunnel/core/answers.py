"""What one client is owed: the answers to its requests, in the order in which it asked.

`_owed` holds every request that is not answered yet. In the usual case the answer that comes
belongs to the one at its head and goes out at once; one that is early waits in its request.
Which status a client may see, and which answer it asked not to hear, is decided here. Where
requests come from is the session's business.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from memtunnel.core.outcomes import REASON_STATUS, Reason, status_index
from memtunnel.core.request import Request
from memtunnel.wire.binary import (
    GETS,
    HEADER_LENGTH,
    LOUD,
    READS,
    Status,
)

if TYPE_CHECKING:
    from memtunnel.core.tunnel import Tunnel

#: Requests and bytes (of requests, and of answers not read) that make the tunnel stop reading.
FULL_REQUESTS: Final = 1024
FULL_BYTES: Final = 4 * 1024 * 1024
#: Bytes of answers not read past which a hit is answered as a miss.
CHOKED_BYTES: Final = 16 * 1024 * 1024

HIT: Final = status_index(Status.OK)
#: Status of a request whose parts were counted one by one.
_COUNTED: Final = -1


class Client(Protocol):
    """The connection of a session."""

    def write(self, data: bytes | bytearray) -> bool:
        """Write answers; whether the client has room for more."""

    def look(self) -> None:
        """Something has changed for a client that does not read, is not read from, or is done."""

    def notice(self, what: str) -> None:
        """The client did what its owner should hear of: ``login_refused``,
        ``passed_login_refused`` or ``max_logins``."""


class ListenerCounts(Protocol):
    """What is counted for a listener; `ops.metrics` has the real one."""

    received_bytes: int
    sent_bytes: int
    logins: dict[str, int]
    protocol_errors: dict[str, int]


class Answers:
    """The base of a session: `client` is where answers go, `counts` those of its listener."""

    __slots__ = (
        "_counts",
        "_owed",
        "_stored",
        "choked",
        "client",
        "finishing",
        "gone",
        "out",
        "owed_bytes",
        "paused",
        "tunnel",
        "unread",
    )

    def __init__(self, tunnel: Tunnel, counts: ListenerCounts, client: Client) -> None:
        self.tunnel = tunnel
        self._counts = counts
        self.client = client
        self._owed: deque[Request] = deque()
        self.owed_bytes = 0
        """Bytes of the requests in `_owed`, and of those of their answers that are coming."""
        self.out: list[bytes | bytearray] = []
        """What is to be written to the client at the end of this event."""
        self._stored = 0
        """Bytes of answers that wait for earlier ones."""
        self.finishing = False
        """No further input is taken."""
        self.gone = False
        """The client has left: nothing can be written any more."""
        self.unread = 0
        """Bytes that the client has not read; kept by `client`."""
        self.paused = False
        """The client is not read from for now; kept by `client`."""
        self.choked = False
        """So many that hits are answered as misses; kept by `client`."""

    @property
    def finished(self) -> bool:
        """Nothing more is owed and nothing more will be asked."""
        return self.finishing and not self._owed

    @property
    def full(self) -> bool:
        """Whether the client should not be read from now."""
        return (
            len(self._owed) >= FULL_REQUESTS
            or self.owed_bytes + self.unread + self._stored >= FULL_BYTES
        )

    def flush(self) -> None:
        """The end of an event: write what it brought, all at once."""
        room = True
        out = self.out
        if out and not self.gone:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self._counts.sent_bytes += len(data)
            room = self.client.write(data)
        if not room or self.unread or self.paused or self.finishing:
            self.client.look()

    def _slot(self, opcode: int, opaque: bytes, now: float) -> Request:
        """A request's place in the order, for one that goes to no server by itself."""
        slot = Request(None, None, opcode, opaque, None, HEADER_LENGTH, now)
        self._owed.append(slot)
        self.owed_bytes += slot.size
        return slot

    def failed(self, request: Request, reason: Reason, now: float) -> None:
        self.tunnel.counts.degraded(LOUD[request.opcode], reason)
        self._settle(request, self._degraded(request), REASON_STATUS[reason], now)

    def growing(self, request: Request, size: int) -> None:
        request.size += size
        self.owed_bytes += size

    def _settle(self, request: Request, frame: bytes, status: int, now: float) -> None:
        """The answer to a request is known; it goes out when its turn comes."""
        request.answer = frame
        if self.gone:
            return
        request.status = status
        request.received = now
        self._stored += len(frame)
        self.tunnel.budget.used += len(frame)
        if self._owed[0] is request:
            self._emit(now)
        elif self._stored > CHOKED_BYTES or self.tunnel.budget.exhausted:
            self._unstore(request)

    def _unstore(self, request: Request) -> None:
        """Too much waits for earlier answers: a hit becomes a miss."""
        if LOUD[request.opcode] not in GETS or request.status != HIT:
            return
        hit = request.answer
        assert hit is not None
        reply = self._degraded(request)
        saved = len(hit) - len(reply)
        self._stored -= saved
        self.tunnel.budget.used -= saved
        self.tunnel.counts.degraded(LOUD[request.opcode], Reason.OVERLOADED)
        request.answer = reply
        request.status = REASON_STATUS[Reason.OVERLOADED]

    def _emit(self, now: float) -> None:
        """Write all answers whose turn has come."""
        owed = self._owed
        out = self.out
        tunnel = self.tunnel
        while owed and (frame := owed[0].answer) is not None:
            request = owed.popleft()
            self.owed_bytes -= request.size
            if frame:
                if not out:
                    tunnel.ready.append(self)
                out.append(frame)
                self._stored -= len(frame)
                tunnel.budget.used -= len(frame)
                request.answer = b""
            if request.status != _COUNTED:
                tunnel.settled(request, request.status, request.received, now, len(frame))
            request.frame = None
        if not out:
            # Silence is progress too: the client may be closed, or be read from again.
            tunnel.ready.append(self)

    def conclude(
        self,
        slot: Request,
        status: int | None,
        statistics: list[tuple[bytes, bytes]],
        reason: Reason | None,
        now: float,
    ) -> None:
        """A gather is complete.

        `status` is None where a server's answer is missing, and `reason` says why one is, if that
        is to be counted. `statistics` are names and values, in answer to STAT.
        """
        if reason is not None:
            self.tunnel.counts.degraded(LOUD[slot.opcode], reason)
        if status is None:
            frame = self._degraded(slot)
        else:
            frame = self._gathered(slot, status, statistics, reason is None)
        self._settle(slot, frame, _COUNTED, now)

    # What the client's protocol decides

    def _degraded(self, request: Request) -> bytes:
        """What is said where there is no answer from a server.

        `request.frame` is a frame that has its key, if one is needed.
        """
        raise NotImplementedError

    def _gathered(
        self, slot: Request, status: int, statistics: list[tuple[bytes, bytes]], whole: bool
    ) -> bytes:
        """What is said when a gather is complete; `whole` if all servers have answered."""
        raise NotImplementedError

    def _forget(self, now: float) -> None:
        """Owe nothing any more. Whole writes are still sent, reads are dropped."""
        self.gone = True
        self.finishing = True
        self.tunnel.budget.release(self._stored)
        self._stored = 0
        self.out.clear()
        owed, self._owed = self._owed, deque()
        for request in owed:
            lane = request.lane
            if request.answer is not None or lane is None:
                request.answer = b""
                continue
            reads = LOUD[request.opcode] in READS
            if request.sent and request.mux is not None:
                request.mux.abandon(request, now)
            elif not reads:
                request.owner = None
                continue
            elif request.mux is not None:
                request.mux.abandon(request, now)
            else:
                lane.give_up(request)
            request.answer = b""
