"""One local client: its requests in order, what it is owed, its login.

Bytes come in with `receive`; what goes out collects in `out` until the client is flushed.
Requests of servers go through their lanes; `_owed` holds every request that is not answered
yet, in the order in which they came. In the usual case the answer that comes belongs to the
one at its head and goes out at once; an answer that is early waits in its request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from memtunnel.core.gather import FlushGather, Gather, StatGather, TooLargeGather, sequence
from memtunnel.core.intake import Intake
from memtunnel.core.lane import Lane
from memtunnel.core.outcomes import REASON_STATUS, Reason, degraded, passes, status_index
from memtunnel.core.request import Request
from memtunnel.wire import sasl
from memtunnel.wire.binary import (
    GETS,
    HEADER_LENGTH,
    LOUD,
    MAX_KEY_LENGTH,
    QUIET,
    READS,
    REQUEST_HEADER,
    REQUEST_MAGIC,
    RULES,
    STATUS_TEXT,
    Opcode,
    Rule,
    Status,
    answer,
    refusal,
    split,
)
from memtunnel.wire.binary import (
    request as request_frame,
)

if TYPE_CHECKING:
    from memtunnel.core.tunnel import Tunnel

#: Frames of one client that are taken in one go; then other clients get their turn.
FRAMES_A_TURN: Final = 64
#: Requests and bytes (of requests, and of answers not read) that make the tunnel stop reading.
FULL_REQUESTS: Final = 1024
FULL_BYTES: Final = 4 * 1024 * 1024
#: Bytes of answers not read past which a hit is answered as a miss.
CHOKED_BYTES: Final = 16 * 1024 * 1024
#: The longest body that is read past to keep a connection whose request cannot be used.
MAX_SWALLOW: Final = 32 * 1024 * 1024

_HIT: Final = status_index(Status.OK)
#: Status of a request whose parts were counted one by one.
_COUNTED: Final = -1
_OPCODE_BYTE: Final = tuple(bytes((opcode,)) for opcode in range(256))
_BEFORE_LOGIN: Final = frozenset(
    (Opcode.SASL_LIST, Opcode.SASL_AUTH, Opcode.SASL_STEP, Opcode.VERSION)
)


def _nothing(now: float) -> None:
    """An invalid quiet get: memcached closes, a client survives only silence."""


def _plain(rule: Rule | None) -> tuple[int, bool] | None:
    """A keyed command's (extras length, may have a value); None for all that are not keyed."""
    if rule is None or rule.shortest_key == 0 or len(rule.extras) != 1:
        return None
    return rule.extras[0], rule.value


#: The commands that go to the server of their key.
_KEYED: Final = tuple(
    None if opcode in _BEFORE_LOGIN else _plain(rule) for opcode, rule in enumerate(RULES)
)


class ListenerCounts(Protocol):
    """What is counted for a listener; `ops.metrics` has the real one."""

    logins: dict[str, int]
    protocol_errors: dict[str, int]


class Client(Protocol):
    """The connection of a session."""

    def flush(self) -> None:
        """Write the session's `out`; close if it is `finished`."""


class Session:
    """`client` is where its answers go, `counts` those of its listener."""

    __slots__ = (
        "_begun",
        "_counts",
        "_held_at",
        "_lanes",
        "_owed",
        "_stored",
        "_trusted",
        "awaits_more",
        "choked",
        "client",
        "finishing",
        "gone",
        "held",
        "intake",
        "out",
        "owed_bytes",
        "tunnel",
        "unread",
    )

    def __init__(self, tunnel: Tunnel, counts: ListenerCounts, client: Client) -> None:
        self.tunnel = tunnel
        self.client = client
        self._counts = counts
        self._lanes: list[Lane | None] = [None] * len(tunnel.servers)
        self._owed: deque[Request] = deque()
        self.owed_bytes = 0
        self.out: list[bytes] = []
        self._stored = 0
        """Bytes of answers that wait for earlier ones."""
        self._begun = False
        self._trusted = not tunnel.policy.login_required
        self.intake = Intake(tunnel.budget)
        self.held = b""
        """Frames that wait for the next turn."""
        self._held_at = 0.0
        self.awaits_more = False
        """What came last was quiet: the client will send more before it gets an answer."""
        self.finishing = False
        """No further input is taken."""
        self.gone = False
        """The client has left: nothing can be written any more."""
        self.unread = 0
        """Bytes that the client has not read; kept by `client`."""
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

    # Input

    def receive(self, data: bytes, now: float) -> bool:
        """Take what the client sent.

        Returns whether the client needs a look: it will send more before it gets an answer, or
        should not be read from now.
        """
        if self.finishing:
            return False
        if not self._begun:
            self._begun = True
            if data[0] != REQUEST_MAGIC:
                self._protocol_error("text")
                self.out.append(b"ERROR\r\n")
                self.finish()
                return False
        if self.held:
            self.held += data
            return True
        for lane in self._lanes:
            if lane is not None and lane.in_flight:
                lane.rebalance()
        data = self.intake.feed(data, now)
        if data:
            self._parse(data, now)
        return bool(
            self.intake.since
            or self.awaits_more
            or self.held
            or self.owed_bytes >= FULL_REQUESTS * HEADER_LENGTH
        )

    def go_on(self, now: float | None = None) -> None:
        """Take the frames that were held back; their time is that of their read, or `now`."""
        if now is None:
            now = self._held_at
        data, self.held = self.held, b""
        self._parse(self.intake.feed(data, now), now)

    def finish(self) -> None:
        """No further input: answer what was read, then close."""
        if self.held:
            return  # comes again when the last frame was taken
        self.finishing = True
        self.intake.clear()
        if not self._owed:
            self.tunnel.ready.append(self)

    def lose(self, now: float) -> None:
        """The client has left. Whole writes are still sent, reads are dropped."""
        self.gone = True
        self.finishing = True
        self.intake.clear()
        self.tunnel.budget.release(self._stored)
        self._stored = 0
        self.out.clear()
        self.held = b""
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

    def _parse(self, data: bytes, now: float) -> None:
        unpack = REQUEST_HEADER.unpack_from
        owed = self._owed
        batch: list[Request] = []
        longest = self.tunnel.policy.max_value_size
        largest = self.tunnel.largest_item
        frames = 0
        position = 0
        end = len(data)
        while end - position >= HEADER_LENGTH and not self.finishing:
            if frames == FRAMES_A_TURN:
                self.held = data[position:]
                self._held_at = now
                break
            frames += 1
            magic, opcode, keys, extras, body = unpack(data, position)
            shape = _KEYED[opcode]
            stop = position + HEADER_LENGTH + body
            value = body - extras - keys
            # One condition for the usual case; `_unusual` finds out what it was, if not.
            if (
                shape is None
                or magic != REQUEST_MAGIC
                or extras != shape[0]
                or not 0 < keys <= MAX_KEY_LENGTH
                or (value and not (shape[1] and 0 < value <= longest and keys + value <= largest))
                or stop > end
                or not self._trusted
            ):
                after = self._unusual(data, position, now, batch)
                if after is None:
                    position = end
                    break
                position = after
                continue
            loud = LOUD[opcode]
            frame = data[position:stop]
            if loud != opcode:
                frame = b"\x80" + _OPCODE_BYTE[loud] + frame[2:]
            opaque = data[position + 12 : position + 16]
            lane = self._lane_of(frame, extras, keys)
            request = Request(self, lane, opcode, opaque, frame, stop - position, now)
            owed.append(request)
            batch.append(request)
            self.owed_bytes += request.size
            if lane.server.refusing:
                self.unserved(request, now)
            else:
                lane.send(request, now)
            position = stop
        else:
            if position < end and not self.finishing:
                if data[position] == REQUEST_MAGIC:
                    self.intake.keep(data, position, HEADER_LENGTH, now)
                else:
                    self._protocol_error("magic")
                    self.finish()
        self.awaits_more = bool(owed) and owed[-1].opcode in QUIET
        if batch:
            self.tunnel.deadlines.add(now, batch)

    def _lane_of(self, frame: bytes, extras: int, keys: int) -> Lane:
        lanes = self._lanes
        if len(lanes) == 1:
            index = 0
        else:
            start = HEADER_LENGTH + extras
            index = self.tunnel.router.server_of(frame[start : start + keys])
        return lanes[index] or self._open_lane(index)

    def _open_lane(self, index: int) -> Lane:
        lane = self._lanes[index]
        if lane is None:
            lane = self._lanes[index] = Lane(self.tunnel.servers[index])
        return lane

    def _unusual(self, data: bytes, position: int, now: float, batch: list[Request]) -> int | None:
        """Take a frame that is not a whole, well-formed, keyed request.

        Returns the position behind it, or None where `data` ends inside it.
        """
        magic, opcode, keys, extras, body = REQUEST_HEADER.unpack_from(data, position)
        opaque = data[position + 12 : position + 16]
        stop: int = position + HEADER_LENGTH + body
        end = len(data)
        if magic != REQUEST_MAGIC:
            self._protocol_error("magic")
            self.finish()
            return end
        if not self._trusted and opcode not in _BEFORE_LOGIN:
            self._reply(opcode, opaque, Status.AUTH_FAILED, now)
            self.finish()
            return end
        if keys + extras > body:
            self._protocol_error("framing")
            self._reply(opcode, opaque, Status.UNKNOWN_COMMAND, now)
            self.finish()
            return end
        rule = RULES[opcode]
        if rule is None:
            self._protocol_error("unknown_command")
            return self._refuse(data, position, stop, Status.UNKNOWN_COMMAND, now)
        if not rule.allows(keys, extras, body):
            self._protocol_error("invalid")
            return self._refuse(data, position, stop, Status.INVALID, now)
        head = HEADER_LENGTH + extras + keys
        value = body - extras - keys
        if value > self.tunnel.policy.max_value_size or keys + value > self.tunnel.largest_item:
            if LOUD[opcode] != Opcode.SET:
                return self._refuse(data, position, stop, Status.TOO_LARGE, now)
            if end - position < head:
                self.intake.keep(data, position, head, now)
                return None
            key = data[position + HEADER_LENGTH + extras : position + head]
            return self._past(
                data, position, stop, now, partial(self._delete_old, opcode, opaque, key)
            )
        if stop > end:
            if not self.intake.keep(data, position, stop - position, now):
                # No memory for it: read past it, and say so in its place.
                key = data[position + HEADER_LENGTH + extras : position + head]
                return self._past(
                    data, position, stop, now, partial(self._overload, opcode, opaque, key)
                )
            return None
        frame = data[position:stop]
        if LOUD[opcode] in (Opcode.STAT, Opcode.FLUSH):
            self._gather(opcode, opaque, frame, now, batch)
        else:
            self._local(opcode, opaque, frame, now)
        return stop

    def _refuse(self, data: bytes, position: int, stop: int, status: int, now: float) -> int:
        """Answer a frame that cannot be used with an error, once it is read past."""
        opcode = data[position + 1]
        opaque = data[position + 12 : position + 16]
        if status == Status.INVALID and opcode in QUIET and LOUD[opcode] in GETS:
            return self._past(data, position, stop, now, _nothing)
        return self._past(data, position, stop, now, partial(self._reply, opcode, opaque, status))

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

    # What the tunnel answers itself

    def _local(self, opcode: int, opaque: bytes, frame: bytes, now: float) -> None:
        if opcode == Opcode.NOOP:
            self._reply(opcode, opaque, Status.OK, now)
        elif opcode == Opcode.VERSION:
            self._reply(opcode, opaque, Status.OK, now, value=self.tunnel.version)
        elif opcode == Opcode.SASL_LIST:
            self._reply(opcode, opaque, Status.OK, now, value=sasl.MECHANISM)
        elif opcode == Opcode.SASL_AUTH:
            self._log_in(opaque, frame, now)
        elif opcode == Opcode.SASL_STEP:
            self._reply(opcode, opaque, Status.AUTH_FAILED, now)
        else:
            assert LOUD[opcode] == Opcode.QUIT
            self._settle_new(
                opcode, opaque, b"" if opcode in QUIET else answer(opcode, opaque), now
            )
            self.finish()

    def _log_in(self, opaque: bytes, frame: bytes, now: float) -> None:
        credentials = self.tunnel.policy.credentials
        (parsed,), _ = split(frame)
        right = credentials is None or (
            parsed.key.upper() == sasl.MECHANISM and credentials.verify(parsed.value)
        )
        self._trusted = right
        word = "ok" if right else "refused"
        self._counts.logins[word] = self._counts.logins.get(word, 0) + 1
        if right:
            self._reply(Opcode.SASL_AUTH, opaque, Status.OK, now, value=b"Authenticated")
        else:
            self._reply(Opcode.SASL_AUTH, opaque, Status.AUTH_FAILED, now)

    def _reply(
        self, opcode: int, opaque: bytes, status: int, now: float, *, value: bytes = b""
    ) -> None:
        """Answer a request in its place, without a server."""
        frame = answer(opcode, opaque, status, value=value or STATUS_TEXT.get(status, b""))
        self._settle_new(opcode, opaque, frame, now, status_index(status))

    def _overload(self, opcode: int, opaque: bytes, key: bytes, now: float) -> None:
        slot = self._slot(opcode, opaque, now)
        self._degrade(slot, key, Reason.OVERLOADED, now)

    def _slot(self, opcode: int, opaque: bytes, now: float) -> Request:
        """A request's place in the order, for one that goes to no server by itself."""
        slot = Request(self, None, opcode, opaque, None, HEADER_LENGTH, now)
        self._owed.append(slot)
        self.owed_bytes += slot.size
        return slot

    def _settle_new(
        self, opcode: int, opaque: bytes, frame: bytes, now: float, status: int = _HIT
    ) -> None:
        self._settle(self._slot(opcode, opaque, now), frame, status, now)

    # What goes to all servers, or to one in another form

    def _gather(
        self, opcode: int, opaque: bytes, frame: bytes, now: float, batch: list[Request]
    ) -> None:
        key = frame[HEADER_LENGTH:]
        if opcode == Opcode.STAT and key == b"memtunnel":
            pairs = [(name.encode(), value.encode()) for name, value in self.tunnel.describe()]
            self._settle_new(opcode, opaque, sequence(opaque, pairs), now)
            return
        slot = self._slot(opcode, opaque, now)
        servers = self.tunnel.servers
        kind = StatGather if opcode == Opcode.STAT else FlushGather
        gather = kind(self, slot, [server.name for server in servers])
        loud = LOUD[opcode]
        if loud != opcode:
            frame = frame[:1] + _OPCODE_BYTE[loud] + frame[2:]
        for place, server in enumerate(servers):
            self._send_part(gather, place, server.index, loud, frame, now, batch)

    def _delete_old(self, opcode: int, opaque: bytes, key: bytes, now: float) -> None:
        frame = request_frame(Opcode.DELETE, key)
        lane = self._lane_of(frame, 0, len(key))
        gather = TooLargeGather(self, self._slot(opcode, opaque, now), [lane.server.name])
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

    def conclude(self, slot: Request, reply: bytes, now: float, reason: Reason | None) -> None:
        """A gather is complete: `reason` says why, where a server's answer is missing."""
        if reason is not None:
            self.tunnel.counts.degraded(LOUD[slot.opcode], reason)
        self._settle(slot, reply, _COUNTED, now)

    # Outcomes

    def answered(
        self, request: Request, status: int, data: bytes, start: int, stop: int, now: float
    ) -> None:
        opcode = request.opcode
        loud = data[start + 1]
        if (
            status
            or opcode != loud
            or self.choked
            or (stop - start != HEADER_LENGTH and loud in self.tunnel.bodyless)
        ):
            self._answered_otherwise(request, status, data, start, stop, now)
            return
        owed = self._owed
        if owed[0] is not request:
            frame = data[start : start + 12] + request.opaque + data[start + 16 : stop]
            self._settle(request, frame, _HIT, now)
            return
        owed.popleft()
        out = self.out
        if not out:
            self.tunnel.ready.append(self)
        out += (data[start : start + 12], request.opaque, data[start + 16 : stop])
        request.answer = b""
        self.owed_bytes -= request.size
        lane = request.lane
        assert lane is not None
        lane.server.counts.answered(loud, _HIT, request.arrived, request.sent, now, now)
        if owed and owed[0].answer is not None:
            self._emit(now)

    def _answered_otherwise(
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
            head = b"\x81" + _OPCODE_BYTE[opcode] + data[start + 2 : start + 12]
            frame = head + request.opaque + data[start + 16 : stop]
        self._settle(request, frame, status_index(status), now)

    def failed(self, request: Request, reason: Reason, now: float) -> None:
        key = b""
        frame = request.frame
        if frame is not None and LOUD[request.opcode] in (Opcode.GETK, Opcode.GATK):
            key = frame[HEADER_LENGTH + frame[4] :]
        self._degrade(request, key, reason, now)

    def unserved(self, request: Request, now: float) -> None:
        lane = request.lane
        assert lane is not None
        if LOUD[request.opcode] in READS and lane.server.breaker.admits_probe(now):
            lane.send(request, now)
        elif not self.fail_over(request, now):
            self.failed(request, Reason.NO_UPSTREAM, now)

    def fail_over(self, request: Request, now: float) -> bool:
        """Send a request to the server that serves its key meanwhile; False where none may."""
        lane = request.lane
        frame = request.frame
        assert lane is not None
        assert frame is not None
        if not self.tunnel.policy.failover:
            return False
        start = HEADER_LENGTH + frame[4]
        key = frame[start : start + int.from_bytes(frame[2:4], "big")]
        for index in self.tunnel.router.order_of(key):
            if not self.tunnel.servers[index].refusing:
                lane.server.counts.failovers += 1
                request.lane = self._open_lane(index)
                request.lane.send(request, now)
                return True
        return False

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
        if LOUD[request.opcode] not in GETS or request.status != _HIT:
            return
        hit = request.answer
        assert hit is not None
        start = HEADER_LENGTH + hit[4]
        key = hit[start : start + int.from_bytes(hit[2:4], "big")]
        reply = degraded(request.opcode, request.opaque, key, as_error=False)
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

    def _protocol_error(self, reason: str) -> None:
        errors = self._counts.protocol_errors
        errors[reason] = errors.get(reason, 0) + 1
