"""What one client is owed: the answers to its requests, in the order in which it asked.

`_owed` holds every request that is not answered yet. In the usual case the answer that comes
belongs to the one at its head and goes out at once; one that is early waits in its request.
Which status a client may see, and which answer it asked not to hear, is decided here. Where
requests come from is the session's business.
"""

from __future__ import annotations

from collections import deque
from operator import is_not
from typing import TYPE_CHECKING, Final, Protocol

from memtunnel.core.outcomes import REASON_STATUS, Reason, degraded, passes, status_index
from memtunnel.core.request import Request, one_by_one
from memtunnel.wire.binary import (
    GETS,
    HEADER_LENGTH,
    LOUD,
    OPCODE_BYTE,
    READS,
    STATUS_TEXT,
    Opcode,
    Status,
    answer,
    key_of,
    refusal,
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
        """The client did what its owner should hear of: ``text`` or ``login_refused``."""


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

    def answered(
        self, request: Request, status: int, data: bytes, start: int, stop: int, now: float
    ) -> None:
        opcode = request.opcode
        loud = LOUD[opcode]
        quiet = opcode != loud
        if not passes(loud, status):
            refused = status == Status.AUTH_FAILED
            self.failed(request, Reason.REFUSED if refused else Reason.ERROR, now)
            return
        if loud in GETS:
            if self.choked and status == Status.OK:
                self.failed(request, Reason.OVERLOADED, now)
                return
            silent = quiet and status == Status.NOT_FOUND
        else:
            silent = quiet and status == Status.OK
        if silent:
            frame = b""
        elif status and stop - start == HEADER_LENGTH and status in STATUS_TEXT:
            # An error without a body is taken for the next request's answer by some clients.
            frame = refusal(opcode, request.opaque, status)
        elif status == Status.OK and loud in self.tunnel.bodyless:
            cas = int.from_bytes(data[start + 16 : start + 24], "big")
            frame = answer(opcode, request.opaque, cas=cas)
        else:
            head = b"\x81" + OPCODE_BYTE[opcode] + data[start + 2 : start + 12]
            frame = head + request.opaque + data[start + 16 : stop]
        self._settle(request, frame, status_index(status), now)

    def all_answered(
        self, requests: list[Request], data: bytearray, start: int, stop: int, now: float
    ) -> None:
        owed = self._owed
        alike = requests[0]
        number = len(requests)
        if self.choked or owed[0] is not alike or (number > 1 and any(map(is_not, owed, requests))):
            one_by_one(self.answered, requests, data, start, now)
            return
        lane = alike.lane
        assert lane is not None
        counts = lane.server.counts
        out = self.out
        if not out:
            self.tunnel.ready.append(self)
        out.append(data[start:stop])
        if number == 1:
            owed.popleft()
            alike.answer = b""
            self.owed_bytes -= alike.size
        else:
            number = 0
            for request in requests:
                owed.popleft()
                request.answer = b""
                self.owed_bytes -= request.size
                if (
                    request.opcode != alike.opcode
                    or request.sent != alike.sent
                    or request.arrived != alike.arrived
                ):
                    counts.answered(alike.opcode, HIT, alike.arrived, alike.sent, now, now, number)
                    alike = request
                    number = 0
                number += 1
        counts.answered(alike.opcode, HIT, alike.arrived, alike.sent, now, now, number)
        if owed and owed[0].answer is not None:
            self._emit(now)

    def failed(self, request: Request, reason: Reason, now: float) -> None:
        key = b""
        frame = request.frame
        if frame is not None and LOUD[request.opcode] in (Opcode.GETK, Opcode.GATK):
            key = key_of(frame)
        self._degrade(request, key, reason, now)

    def growing(self, request: Request, size: int) -> None:
        request.size += size
        self.owed_bytes += size

    def _degrade(self, request: Request, key: bytes, reason: Reason, now: float) -> None:
        tunnel = self.tunnel
        tunnel.counts.degraded(LOUD[request.opcode], reason)
        frame = degraded(
            request.opcode,
            request.opaque,
            key,
            as_error=tunnel.policy.errors_on_unavailable,
        )
        self._settle(request, frame, REASON_STATUS[reason], now)

    def _settle(self, request: Request, frame: bytes, status: int, now: float) -> None:
        """The answer to a request is known; it goes out when its turn comes."""
        request.answer = frame
        if self.gone:
            return
        request.frame = None
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
        reply = degraded(request.opcode, request.opaque, key_of(hit), as_error=False)
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
            if request.status == _COUNTED:
                continue
            lane = request.lane
            counts = tunnel.counts.local if lane is None else lane.server.counts
            counts.answered(
                LOUD[request.opcode],
                request.status,
                request.arrived,
                request.sent,
                request.received,
                now,
            )
        if not out:
            # Silence is progress too: the client may be closed, or be read from again.
            tunnel.ready.append(self)

    def conclude(self, slot: Request, reply: bytes, now: float, reason: Reason | None) -> None:
        """A gather is complete: `reason` says why, where a server's answer is missing."""
        if reason is not None:
            self.tunnel.counts.degraded(LOUD[slot.opcode], reason)
        self._settle(slot, reply, _COUNTED, now)

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
