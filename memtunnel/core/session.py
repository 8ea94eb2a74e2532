"""One local client: what it asks, where that goes, its login.

Bytes come in with `receive`. A request that is whole and valid goes to the server of its key,
through the client's lane to it; the others are answered here. What the client is owed, and in
which order, is kept by `core.answers`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from memtunnel.core.answers import FULL_REQUESTS, HIT, Answers, Client, ListenerCounts
from memtunnel.core.gather import FlushGather, Gather, StatGather, TooLargeGather, sequence
from memtunnel.core.intake import Intake
from memtunnel.core.lane import Lane
from memtunnel.core.outcomes import Reason, status_index
from memtunnel.core.request import Request
from memtunnel.wire import sasl
from memtunnel.wire.binary import (
    GETS,
    HEADER_LENGTH,
    LOUD,
    MAX_KEY_LENGTH,
    OPCODE_BYTE,
    QUIET,
    READS,
    REQUEST_MAGIC,
    RULES,
    STATUS_TEXT,
    Opcode,
    Status,
    answer,
    key_of,
    split,
    unpack_request,
)
from memtunnel.wire.binary import (
    request as request_frame,
)

if TYPE_CHECKING:
    from memtunnel.core.tunnel import Tunnel

#: Frames of one client that are taken in one go; then other clients get their turn.
FRAMES_A_TURN: Final = 64
#: The longest body that is read past to keep a connection whose request cannot be used.
MAX_SWALLOW: Final = 32 * 1024 * 1024

_BEFORE_LOGIN: Final = frozenset(
    (Opcode.SASL_LIST, Opcode.SASL_AUTH, Opcode.SASL_STEP, Opcode.VERSION)
)


def _nothing(now: float) -> None:
    """An invalid quiet get: memcached closes, a client survives only silence."""


def _shape(opcode: int) -> int:
    """The extras length of a command that goes to the server of its key; -1 for all others."""
    rule = RULES[opcode]
    if rule is None or opcode in _BEFORE_LOGIN or not rule.shortest_key or len(rule.extras) != 1:
        return -1
    return rule.extras[0]


#: By opcode: its extras length, where it is keyed; and whether it may have a value.
_KEYED: Final = tuple(_shape(opcode) for opcode in range(256))
_HAS_VALUE: Final = tuple(rule is not None and rule.value for rule in RULES)
#: Before a login none is.
_NONE_KEYED: Final = tuple([-1] * 256)  # no literal: mypyc would make a struct of it


class Session(Answers):
    """`client` is where its answers go, `counts` those of its listener."""

    __slots__ = (
        "_begun",
        "_held_at",
        "_lanes",
        "_trusted",
        "awaits_more",
        "held",
        "intake",
    )

    def __init__(self, tunnel: Tunnel, counts: ListenerCounts, client: Client) -> None:
        super().__init__(tunnel, counts, client)
        self._lanes: list[Lane | None] = [None] * len(tunnel.servers)
        self._begun = False
        self._trusted = not tunnel.policy.login_required
        self.intake = Intake(tunnel.budget)
        self.held = b""
        """Frames that wait for the next turn."""
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
        if not self._begun:
            self._begun = True
            if data[0] != REQUEST_MAGIC:
                self._protocol_error("text")
                self.client.notice("text")
                self.out.append(b"ERROR\r\n")
                self.finish()
                return True
        if self.held:
            self._hold(data)
            return True
        intake = self.intake
        if intake.since > 0.0 or intake.began > 0.0:
            data = intake.feed(data, now)
        if data:
            self._parse(data, now)
        return (
            len(self.tunnel.ready) > 0
            or intake.since > 0.0
            or self.awaits_more
            or len(self.held) > 0
            or self.owed_bytes >= FULL_REQUESTS * HEADER_LENGTH
        )

    def go_on(self, now: float | None = None) -> None:
        """Take the frames that were held back; their time is that of their read, or `now`."""
        if now is None:
            now = self._held_at
        data = self._take_held()
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
        """The client has left."""
        self.intake.clear()
        self._take_held()
        self._forget(now)

    def _hold(self, data: bytes) -> None:
        self.held += data
        self.tunnel.budget.used += len(data)

    def _take_held(self) -> bytes:
        data, self.held = self.held, b""
        self.tunnel.budget.used -= len(data)
        return data

    def _parse(self, data: bytes, now: float) -> None:
        owed = self._owed
        lanes = self._lanes
        several = len(lanes) > 1
        longest = self.tunnel.policy.max_value_size
        shapes = _KEYED if self._trusted else _NONE_KEYED
        batch: list[Request] = []
        # What goes to one lane goes there together: the requests of `batch` from `begun` on, whose
        # bytes begin at `start`.
        lane: Lane | None = None if several else lanes[0] or self._open_lane(0)
        begun = 0
        frames = 0
        opcode = 0
        start = position = 0
        end = len(data)
        while end - position >= HEADER_LENGTH:
            if frames == FRAMES_A_TURN:
                self._hold(data[position:])
                self._held_at = now
                end = position
                break
            frames += 1
            magic, opcode, keys, extras, body = unpack_request(data, position)
            stop = position + HEADER_LENGTH + body
            value = body - extras - keys
            # One condition for the usual case; `_unusual` finds out what it was, if not.
            if (
                extras != shapes[opcode]
                or magic != REQUEST_MAGIC
                or not 0 < keys <= MAX_KEY_LENGTH
                or (value and not 0 < value <= (longest if _HAS_VALUE[opcode] else 0))
                or stop > end
            ):
                if lane is not None and len(batch) > begun:
                    self._send(lane, batch[begun:], position - start, now)
                after = self._unusual(data, position, now, batch)
                begun = len(batch)
                shapes = _KEYED if self._trusted else _NONE_KEYED
                if after is None or self.finishing:
                    end = position
                    break
                position = start = after
                continue
            frame = data[position:stop]
            if opcode in QUIET:
                frame = b"\x80" + OPCODE_BYTE[LOUD[opcode]] + frame[2:]
            if several:
                to = self._lane_of(frame, extras, keys)
                if to is not lane:
                    if lane is not None and len(batch) > begun:
                        self._send(lane, batch[begun:], position - start, now)
                    begun = len(batch)
                    start = position
                    lane = to
            request = Request(
                self, lane, opcode, data[position + 12 : position + 16], frame, stop - position, now
            )
            owed.append(request)
            batch.append(request)
            position = stop
        if lane is not None and len(batch) > begun:
            self._send(lane, batch[begun:] if begun else batch, position - start, now)
        if position < end:
            if data[position] == REQUEST_MAGIC:
                self.intake.keep(data, position, HEADER_LENGTH, now)
            else:
                self._protocol_error("magic")
                self.finish()
        self.awaits_more = opcode in QUIET
        if batch:
            self.tunnel.deadlines.add(now, batch)

    def _send(self, lane: Lane, requests: list[Request], size: int, now: float) -> None:
        """Send requests of `size` bytes together, which are owed from now on."""
        self.owed_bytes += size
        if not lane.server.refusing:
            lane.send_all(requests, size, now)
            return
        for request in requests:
            self.unserved(request, now)

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
        magic, opcode, keys, extras, body = unpack_request(data, position)
        opaque = data[position + 12 : position + 16]
        stop = position + HEADER_LENGTH + body
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
        if body - extras - keys > self.tunnel.policy.max_value_size:
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
            self.client.notice("login_refused")

    def _reply(
        self, opcode: int, opaque: bytes, status: int, now: float, *, value: bytes = b""
    ) -> None:
        """Answer a request in its place, without a server."""
        frame = answer(opcode, opaque, status, value=value or STATUS_TEXT.get(status, b""))
        self._settle_new(opcode, opaque, frame, now, status_index(status))

    def _overload(self, opcode: int, opaque: bytes, key: bytes, now: float) -> None:
        slot = self._slot(opcode, opaque, now)
        self._degrade(slot, key, Reason.OVERLOADED, now)

    def _settle_new(
        self, opcode: int, opaque: bytes, frame: bytes, now: float, status: int = HIT
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
        gather = kind(self, slot, [server.address for server in servers])
        loud = LOUD[opcode]
        if loud != opcode:
            frame = frame[:1] + OPCODE_BYTE[loud] + frame[2:]
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

    # Servers that take no requests

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
        for index in self.tunnel.router.order_of(key_of(frame)):
            if not self.tunnel.servers[index].refusing:
                lane.server.counts.failovers += 1
                request.lane = self._open_lane(index)
                request.lane.send(request, now)
                return True
        return False

    def _protocol_error(self, reason: str) -> None:
        errors = self._counts.protocol_errors
        errors[reason] = errors.get(reason, 0) + 1
