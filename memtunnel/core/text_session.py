"""A client that speaks the text protocol: classic and meta commands.

Each command becomes binary requests, one for a key, to the same servers as a binary client's, and
each answer is told in text. VERSION, QUIT and errors are answered here, and so is a login, which in
text is a ``set`` like any other until somebody knows better.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from operator import is_not
from typing import TYPE_CHECKING, Final

from memtunnel.core.answers import HIT, Client, ListenerCounts
from memtunnel.core.lane import Lane
from memtunnel.core.outcomes import LoginResult, Reason, passes, refusal_reason, status_index
from memtunnel.core.request import Request, one_by_one
from memtunnel.core.session import LONGEST_LOGIN, REQUESTS_A_TURN, Session
from memtunnel.wire.binary import GET_HEADERS, GETS, HEADER_LENGTH, Opcode, Status, unpack_length
from memtunnel.wire.binary import request as request_frame
from memtunnel.wire.classic import GETTING, Value
from memtunnel.wire.command import (
    END,
    Ask,
    Command,
    Flush,
    Get,
    Quit,
    Reply,
    Say,
    Skip,
    Statistics,
    Stats,
    Store,
    Version,
)
from memtunnel.wire.numbers import is_meant_as_number, unsigned
from memtunnel.wire.sasl import Credentials
from memtunnel.wire.text import parse, parse_long, words_of

if TYPE_CHECKING:
    from memtunnel.core.tunnel import Tunnel

#: Bytes of a line that has no end yet; only one that gets values may be longer.
LONGEST_LINE: Final = 2048
#: Bytes of a line that gets values. memcached takes them of any length.
LONGEST_GET: Final = 1024 * 1024

_CR: Final = 0x0D
_GET: Final = int(Opcode.GET)
#: Whether the rest of a line from an offset on is one key, without blanks around it.
_ONE_KEY: Final[Callable[[bytes, int], object]] = re.compile(rb"[^ \0]{1,250}\Z").match
_NO_OPAQUE: Final = bytes(4)
#: Blanks that a long line may begin with.
_LEADING_BLANKS: Final = 100
_UNAUTHENTICATED: Final = b"CLIENT_ERROR unauthenticated\r\n"
_LOGIN_FAILED: Final = b"CLIENT_ERROR authentication failure\r\n"
_LOGIN_ENDED_BADLY: Final = b"CLIENT_ERROR bad command line termination\r\n"
_STORED: Final = b"STORED\r\n"


class TextSession(Session):
    """A `Session` whose client speaks the text protocol."""

    __slots__ = ("_batch", "_lane", "_long_get", "_may_log_in", "_only", "_run", "_run_bytes")

    def __init__(self, tunnel: Tunnel, counts: ListenerCounts, client: Client) -> None:
        super().__init__(tunnel, counts, client)
        self._may_log_in = True
        """Whether what comes next may be a login: at the beginning, and as long as one is due."""
        self._long_get: Get | None = None
        """The get whose line goes on with the held bytes."""
        self._batch: list[Request] = []
        """The requests of this read."""
        # What goes to one lane goes there together: requests of so many bytes, not sent yet.
        self._lane: Lane | None = None
        self._only: Lane | None
        """The lane to the only server."""
        self._lanes_changed()
        self._run: list[Request] = []
        self._run_bytes = 0

    def _lanes_changed(self) -> None:
        self._only = self._open_lane(0) if len(self._lanes) == 1 else None
        self._lane = None

    # Input

    def go_on(self, now: float, *, anew: bool = False) -> None:
        if self._long_get is None:
            super().go_on(now, anew=anew)
            return
        # What waits for keys before it in its own line, or for that line, counts from its turn on.
        data = self._take_held()
        end = data.find(b"\n")
        keys = data[:end].split(b" ", REQUESTS_A_TURN)
        after = end + 1
        command = self._long_get
        if len(keys) > REQUESTS_A_TURN:
            after = end - len(keys.pop())
        else:
            self._long_get = None
        self._get(command, keys, self._long_get is None, now)
        self._send_taken(now)
        if after < len(data):
            self._hold(data[after:], now)

    def _parse(self, data: bytes, now: float) -> None:
        position = 0
        taken = 0
        while position < len(data) and not self.finishing:
            if taken >= REQUESTS_A_TURN:
                self._hold(data[position:], now)
                break
            end = data.find(b"\n", position)
            if end < 0:
                self._wait_for_line(data, position, now)
                break
            cut = end > position and data[end - 1] == _CR
            line = data[position : end - 1 if cut else end]
            after = end + 1
            taken += 1
            if self._may_log_in:
                behind = self._log_in(line, data, position, after, now)
                if behind < 0:
                    break
                if behind:
                    position = behind
                    if self.pending is None:
                        continue
                    if position < len(data):
                        self._hold(data[position:], now)
                    break
            if line.startswith(b"get ") and _ONE_KEY(line, 4):
                # What most lines are: by the way of all others it takes 0.9 µs more.
                key = line[4:]
                reply = Value(key, with_cas=False, last=True)
                self._send_later(_GET, key, GET_HEADERS[len(key)] + key, reply, now)
                self.awaits_more = False
                position = after
                continue
            command, rest = parse_long(line) if len(line) > LONGEST_LINE else (parse(line), b"")
            if isinstance(command, Get):
                keys = command.keys
                taken += max(0, len(keys) - 1)
                if len(keys) > REQUESTS_A_TURN:
                    rest = b" ".join(keys[REQUESTS_A_TURN:])
                    del keys[REQUESTS_A_TURN:]
                self._get(command, keys, not rest, now)
                if rest:
                    self._long_get = command
                    self._hold(rest + data[end:], now)
                    break
                position = after
            else:
                position = self._take(command, data, position, after, now)
                if position < 0:
                    break
        self._send_taken(now)

    def _send_taken(self, now: float) -> None:
        """Send what was taken, and watch over it."""
        self._send_run(now)
        if self._batch:
            batch, self._batch = self._batch, []
            self.tunnel.deadlines.add(now, batch)

    def _wait_for_line(self, data: bytes, position: int, now: float) -> None:
        """The line at `position` has no end yet."""
        length = len(data) - position
        longest = LONGEST_LINE
        if length > LONGEST_LINE:
            begin = data[position : position + LONGEST_LINE]
            verb = begin.lstrip(b" ")
            blanks = len(begin) - len(verb)
            may_go_on = self._trusted and verb.startswith(GETTING) and blanks <= _LEADING_BLANKS
            longest = min(4 * length, LONGEST_GET) if may_go_on else 0
        if length > longest:
            self._protocol_error("too_long")
            self.finish()
        elif not self.intake.keep_line(data, position, longest, now):
            # No memory for it: read past it, and tell that nothing was found.
            nothing = Value(b"", with_cas=False, last=True)
            self.intake.skip_line(position, now, partial(self._overload, _GET, nothing))

    def _take(self, command: Command, data: bytes, position: int, after: int, now: float) -> int:
        """Take the command at `position`, whose line ends at `after`.

        Returns the position behind it, or -1 where its block is not there yet.
        """
        self.awaits_more = False
        if isinstance(command, Store):
            return self._store(command, data, position, after, now)
        if isinstance(command, Ask):
            self._ask(command, b"", now)
        elif isinstance(command, Say):
            if command.status == Status.UNKNOWN_COMMAND:
                self._protocol_error("unknown_command")
            elif command.status == Status.INVALID:
                self._protocol_error("invalid")
            self._say(command.text, command.opcode, command.status, now)
        elif isinstance(command, Skip):
            self._protocol_error("invalid")
            say = partial(self._say, command.text, int(Opcode.SET), int(Status.INVALID))
            return self._past(data, position, after + command.size + 2, now, say)
        elif isinstance(command, Stats):
            self._stats(command, now)
        elif isinstance(command, Flush):
            self.awaits_more = command.reply.is_quiet()
            self._send_run(now)
            frame = request_frame(Opcode.FLUSH, extras=command.extras)
            self._ask_all(self._slot_for(Opcode.FLUSH, command.reply, now), frame, now, self._batch)
        elif isinstance(command, Version):
            said = b"VERSION %b\r\n" % self.tunnel.version
            self._say(said, Opcode.VERSION, Status.OK, now)
        else:
            assert isinstance(command, Quit)
            self._say(b"", Opcode.QUIT, Status.OK, now)
            self.finish()
        return after

    # What goes to servers

    def _get(self, command: Get, keys: list[bytes], ends: bool, now: float) -> None:
        """Ask for the values of keys, with which the line `ends` or does not."""
        self.awaits_more = False
        if not keys:
            self._say(END, command.opcode, Status.NOT_FOUND, now)
            return
        opcode = command.opcode
        extras = command.extras
        with_cas = command.with_cas
        left = len(keys) if ends else 0
        for key in keys:
            left -= 1
            if extras:
                frame = request_frame(opcode, key, extras=extras)
            else:
                frame = GET_HEADERS[len(key)] + key
            self._send_later(opcode, key, frame, Value(key, with_cas, left == 0), now)

    def _ask(self, command: Ask, value: bytes, now: float) -> None:
        self.awaits_more = command.reply.is_quiet()
        frame = request_frame(
            command.opcode, command.key, extras=command.extras, value=value, cas=command.cas
        )
        self._send_later(command.opcode, command.key, frame, command.reply, now)

    def _store(self, command: Store, data: bytes, position: int, after: int, now: float) -> int:
        """Take a command with its block; see `_take`."""
        stop = after + command.size + 2
        if command.size > self.tunnel.policy.max_value_size:
            return self._past(data, position, stop, now, partial(self._too_large, command))
        if stop > len(data):
            if self.intake.keep(data, position, stop - position, now):
                return -1
            return self._past(
                data, position, stop, now, partial(self._overload, command.opcode, command.reply)
            )
        if data[stop - 2 : stop] == b"\r\n":
            self._ask(command, data[after : stop - 2], now)
        else:
            self._protocol_error("invalid")
            self._say(command.bad_chunk, command.opcode, Status.INVALID, now)
        return stop

    def _too_large(self, command: Store, now: float) -> None:
        self._send_run(now)
        slot = self._slot_for(command.opcode, command.reply, now)
        if command.drops:
            self._delete_old(slot, command.key, now)
        else:
            said = command.reply.told(Status.TOO_LARGE, b"", 0, 0)
            self._settle(slot, said, status_index(Status.TOO_LARGE), now)

    def _overload(self, opcode: int, reply: Reply, now: float) -> None:
        self.failed(self._slot_for(opcode, reply, now), Reason.OVERLOADED, now)

    def _stats(self, command: Stats, now: float) -> None:
        own = self._statistics(command.key)
        if own is not None:
            self._say(command.reply.listed(own), Opcode.STAT, Status.OK, now)
            return
        self._send_run(now)
        frame = request_frame(Opcode.STAT, command.key)
        self._ask_all(self._slot_for(Opcode.STAT, command.reply, now), frame, now, self._batch)

    def _slot_for(self, opcode: int, reply: Reply, now: float) -> Request:
        """A request's place in the order, which is to be told as `reply` says."""
        slot = self._slot(opcode, _NO_OPAQUE, now)
        slot.reply = reply
        return slot

    def _send_later(self, opcode: int, key: bytes, frame: bytes, reply: Reply, now: float) -> None:
        """Owe a request, and send it together with those that go the same way."""
        lane = self._only or self._lane_of(key)
        if lane is not self._lane:
            self._send_run(now)
            self._lane = lane
        size = len(frame)
        request = Request(self, lane, opcode, _NO_OPAQUE, frame, size, now)
        request.reply = reply
        self._owed.append(request)
        self._batch.append(request)
        self._run.append(request)
        self._run_bytes += size

    def _send_run(self, now: float) -> None:
        lane = self._lane
        if lane is not None and self._run:
            run, self._run = self._run, []
            size, self._run_bytes = self._run_bytes, 0
            self._send(lane, run, size, now)

    # What the tunnel answers itself

    def _say(self, text: bytes, opcode: int, status: int, now: float) -> None:
        self._settle_new(opcode, _NO_OPAQUE, text, now, status_index(status))

    def _log_in(self, line: bytes, data: bytes, position: int, after: int, now: float) -> int:
        """Take the command at `position`, whose line ends at `after`, if it is a login.

        Returns the position behind it, 0 where it is something else, -1 where its block is not
        there yet. MemCachier's clients set the password under the user's name, memcached's both
        of them under any key. Without a login, where one is due, nothing else is taken.
        """
        passthrough = self.tunnel.policy.passthrough
        credentials = self.tunnel.cluster.credentials
        any_will_do = credentials is None and not passthrough
        words = words_of(line)
        size = unsigned(words[4]) if len(words) > 4 and words[0] == b"set" else None
        mine = b"" if credentials is None else credentials.username.encode()
        named = size is not None and (words[1] == mine or not is_meant_as_number(words[2]))
        if self._trusted and not named and (not mine or size is None or size > LONGEST_LOGIN):
            self._may_log_in = False
            return 0
        late = not self._trusted and self.cluster is not self.tunnel.cluster
        if size is None or late:
            if words == [b"quit"]:
                return 0
            self._say(_UNAUTHENTICATED, 0xFF, Status.AUTH_FAILED, now)
            if late:
                # Its login was welcome and then refused: a value of its own is no further one.
                self.finish()
            return after
        stop = after + size + 2
        if size > LONGEST_LOGIN:
            judge = partial(self._judge_login, any_will_do)
            return self._past(data, position, stop, now, judge)
        if stop > len(data):
            if self.intake.keep(data, position, stop - position, now):
                return -1
            if self._trusted and not named:
                self._may_log_in = False
                return 0  # as a value it is told that there is no memory
            return self._past(data, position, stop, now, partial(self._judge_login, False))
        block = data[after : stop - 2]
        both = block.strip(b" ")
        if self._trusted and not named and both != mine and not both.startswith(mine + b" "):
            self._may_log_in = False
            return 0
        if data[stop - 2 : stop] != b"\r\n":
            self._judge(LoginResult.REFUSED)
            self.client.notice("login_refused")
            self._say(_LOGIN_ENDED_BADLY, Opcode.SASL_AUTH, Status.INVALID, now)
        elif passthrough:
            name, blank, secret = both.partition(b" ")
            given = (name, secret.lstrip(b" ")) if blank else (words[1], block)
            self._pass_on(Credentials.given(*given), _NO_OPAQUE, now)
        else:
            right = (
                credentials is None
                or credentials.matches(words[1], block)
                or credentials.matches(both[: len(mine)], both[len(mine) :].lstrip(b" "))
            )
            self._judge_login(right, now)
        return stop

    def _login_told(self, right: bool, slot: Request) -> bytes:
        return _STORED if right else _LOGIN_FAILED

    def _judge(self, result: LoginResult) -> None:
        super()._judge(result)
        self._may_log_in = not result.right

    def _judge_login(self, right: bool, now: float) -> None:
        self._judge(LoginResult.OK if right else LoginResult.REFUSED)
        if not right:
            self.client.notice("login_refused")
        status = Status.OK if right else Status.AUTH_FAILED
        self._say(_STORED if right else _LOGIN_FAILED, Opcode.SASL_AUTH, status, now)

    # Answers

    def answered(
        self, request: Request, status: int, data: bytes, start: int, stop: int, now: float
    ) -> None:
        loud = request.opcode
        gets = loud in GETS
        if not passes(loud, status) and (gets or status != Status.OUT_OF_MEMORY):
            self.failed(request, refusal_reason(status), now)
        elif gets and self.choked and status == Status.OK:
            self.failed(request, Reason.OVERLOADED, now)
        else:
            text = request.reply.told(status, data, start, stop)
            self._settle(request, text, status_index(status), now)

    def all_answered(
        self, requests: list[Request], data: bytearray, start: int, stop: int, now: float
    ) -> None:
        owed = self._owed
        tunnel = self.tunnel
        number = len(requests)
        if (
            self.choked
            or owed[0] is not requests[0]
            or now - requests[0].arrived >= tunnel.slow
            or tunnel.until_sample <= number
            or (number > 1 and any(map(is_not, owed, requests)))
        ):
            one_by_one(self.answered, requests, data, start, now)
            return
        tunnel.until_sample -= number
        out = self.out
        if not out:
            tunnel.ready.append(self)
        for request in requests:
            stop = start + HEADER_LENGTH + unpack_length(data, start)[0]
            owed.popleft()
            request.answer = b""
            request.frame = None
            self.owed_bytes -= request.size
            text = request.reply.told(0, data, start, stop)
            if text:
                out.append(text)
            lane = request.lane
            assert lane is not None
            sent = request.sent
            lane.server.counts.answered(request.opcode, HIT, request.arrived, sent, now, now)
            start = stop
        if owed and owed[0].answer is not None:
            self._emit(now)

    def _degraded(self, request: Request) -> bytes:
        return request.reply.degraded(as_error=self.tunnel.policy.errors_on_unavailable)

    def _gathered(
        self, slot: Request, status: int, statistics: list[tuple[bytes, bytes]], whole: bool
    ) -> bytes:
        reply = slot.reply
        if status or not isinstance(reply, Statistics):
            return reply.told(status, b"", 0, 0)
        return reply.listed(statistics, whole=whole)
