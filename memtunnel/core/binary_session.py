"""A client that speaks the binary protocol.

A frame that is whole and valid goes on as it is, but for a quiet one, whose loud twin goes on; what
comes back bears the client's own opcode and opaque. NOOP, VERSION, QUIT and SASL are answered here.
"""

from __future__ import annotations

from functools import partial
from operator import is_not
from typing import Final

from memtunnel.core.answers import HIT
from memtunnel.core.lane import Lane
from memtunnel.core.outcomes import (
    LoginResult,
    Reason,
    degraded,
    passes,
    refusal_reason,
    status_index,
)
from memtunnel.core.request import Request, one_by_one
from memtunnel.core.session import LONGEST_LOGIN, REQUESTS_A_TURN, Session
from memtunnel.wire import sasl
from memtunnel.wire.binary import (
    GETS,
    HEADER_LENGTH,
    LOUD,
    MAX_KEY_LENGTH,
    OPCODE_BYTE,
    QUIET,
    REQUEST_MAGIC,
    RULES,
    STATUS_TEXT,
    Opcode,
    Status,
    answer,
    key_of,
    refusal,
    split,
    statistics_answers,
    unpack_request,
)
from memtunnel.wire.binary import request as request_frame

_BEFORE_LOGIN: Final = frozenset(
    (Opcode.SASL_LIST, Opcode.SASL_AUTH, Opcode.SASL_STEP, Opcode.VERSION)
)
_AUTHENTICATED: Final = b"Authenticated"


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


class BinarySession(Session):
    """A `Session` whose client speaks the binary protocol."""

    __slots__ = ()

    # Input

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
            if frames == REQUESTS_A_TURN:
                self._hold(data[position:], now)
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
                # A login changes what may be asked, and may have servers of its own.
                shapes = _KEYED if self._trusted else _NONE_KEYED
                if self._lanes is not lanes:
                    lanes = self._lanes
                    several = len(lanes) > 1
                    lane = None if several else lanes[0] or self._open_lane(0)
                if after is None or self.finishing:
                    end = position
                    break
                if self.pending is not None:
                    if after < end:
                        self._hold(data[after:], now)
                    position = end
                    break
                position = start = after
                continue
            frame = data[position:stop]
            if opcode in QUIET:
                frame = b"\x80" + OPCODE_BYTE[LOUD[opcode]] + frame[2:]
            if several:
                head = HEADER_LENGTH + extras
                to = self._lane_of(frame[head : head + keys])
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
        if opcode in (Opcode.SASL_AUTH, Opcode.SASL_STEP) and body > LONGEST_LOGIN:
            # Before a login nobody has a claim to memory.
            refuse = partial(self._refuse_login, opcode, opaque)
            return self._past(data, position, stop, now, refuse)
        head = HEADER_LENGTH + extras + keys
        if body - extras - keys > self.tunnel.policy.max_value_size:
            if LOUD[opcode] != Opcode.SET:
                return self._refuse(data, position, stop, Status.TOO_LARGE, now)
            if end - position < head:
                self.intake.keep(data, position, head, now)
                return None
            key = data[position + HEADER_LENGTH + extras : position + head]
            return self._past(
                data, position, stop, now, partial(self._too_large, opcode, opaque, key)
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

    def _too_large(self, opcode: int, opaque: bytes, key: bytes, now: float) -> None:
        self._delete_old(self._slot(opcode, opaque, now), key, now)

    def _overload(self, opcode: int, opaque: bytes, key: bytes, now: float) -> None:
        slot = self._slot(opcode, opaque, now)
        slot.frame = request_frame(opcode, key)
        self.failed(slot, Reason.OVERLOADED, now)

    def _gather(
        self, opcode: int, opaque: bytes, frame: bytes, now: float, batch: list[Request]
    ) -> None:
        if opcode == Opcode.STAT:
            own = self._statistics(frame[HEADER_LENGTH:])
            if own is not None:
                self._settle_new(opcode, opaque, statistics_answers(opaque, own), now)
                return
        if opcode in QUIET:
            frame = b"\x80" + OPCODE_BYTE[LOUD[opcode]] + frame[2:]
        self._ask_all(self._slot(opcode, opaque, now), frame, now, batch)

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
        credentials = self.tunnel.cluster.credentials
        (parsed,), _ = split(frame)
        plain = parsed.key.upper() == sasl.MECHANISM
        if self.tunnel.policy.passthrough:
            login = sasl.Credentials.of_message(parsed.value) if plain else None
            self._pass_on(login, opaque, now)
            return
        right = credentials is None or (plain and credentials.verify(parsed.value))
        if not right:
            self._refuse_login(Opcode.SASL_AUTH, opaque, now)
            return
        self._judge(LoginResult.OK)
        self._reply(Opcode.SASL_AUTH, opaque, Status.OK, now, value=_AUTHENTICATED)

    def _refuse_login(self, opcode: int, opaque: bytes, now: float) -> None:
        self._judge(LoginResult.REFUSED)
        self.client.notice("login_refused")
        self._reply(opcode, opaque, Status.AUTH_FAILED, now)

    def _login_told(self, right: bool, slot: Request) -> bytes:
        if right:
            return answer(Opcode.SASL_AUTH, slot.opaque, value=_AUTHENTICATED)
        return refusal(Opcode.SASL_AUTH, slot.opaque, Status.AUTH_FAILED)

    def _reply(
        self, opcode: int, opaque: bytes, status: int, now: float, *, value: bytes = b""
    ) -> None:
        """Answer a request in its place, without a server."""
        frame = answer(opcode, opaque, status, value=value or STATUS_TEXT.get(status, b""))
        self._settle_new(opcode, opaque, frame, now, status_index(status))

    # Answers

    def answered(
        self, request: Request, status: int, data: bytes, start: int, stop: int, now: float
    ) -> None:
        opcode = request.opcode
        loud = LOUD[opcode]
        quiet = opcode != loud
        if not passes(loud, status):
            self.failed(request, refusal_reason(status), now)
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
        tunnel = self.tunnel
        if (
            self.choked
            or owed[0] is not alike
            or now - alike.arrived >= tunnel.slow
            or tunnel.until_sample <= number
            or (number > 1 and any(map(is_not, owed, requests)))
        ):
            one_by_one(self.answered, requests, data, start, now)
            return
        tunnel.until_sample -= number
        lane = alike.lane
        assert lane is not None
        counts = lane.server.counts
        out = self.out
        if not out:
            tunnel.ready.append(self)
        out.append(data[start:stop])
        if number == 1:
            owed.popleft()
            alike.answer = b""
            alike.frame = None
            self.owed_bytes -= alike.size
        else:
            number = 0
            for request in requests:
                owed.popleft()
                request.answer = b""
                request.frame = None
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

    def _degraded(self, request: Request) -> bytes:
        if request.opcode == Opcode.STAT:
            return statistics_answers(request.opaque, [])
        key = b""
        if request.frame is not None and LOUD[request.opcode] in (Opcode.GETK, Opcode.GATK):
            key = key_of(request.frame)
        as_error = self.tunnel.policy.errors_on_unavailable
        return degraded(request.opcode, request.opaque, key, as_error=as_error)

    def _gathered(
        self, slot: Request, status: int, statistics: list[tuple[bytes, bytes]], whole: bool
    ) -> bytes:
        if status:
            return refusal(slot.opcode, slot.opaque, status)
        if slot.opcode == Opcode.STAT:
            return statistics_answers(slot.opaque, statistics)
        return b"" if slot.opcode in QUIET else answer(slot.opcode, slot.opaque)
