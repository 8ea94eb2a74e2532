"""Clients of the simulation that speak the binary protocol."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from core_harness import NEVER_CREATE

from memtunnel.wire import sasl
from memtunnel.wire.binary import (
    GETS,
    HEADER_LENGTH,
    LOUD,
    Opcode,
    Status,
    request,
    unpack_answer,
)
from simulation.clients import Ask, Client
from simulation.history import COUNTS, STORES, TOUCHES

O = Opcode  # noqa: E741
_NUMBERS = Struct(">QQI")
_cas_at = Struct(">Q").unpack_from

_GETS = (*(O.GET,) * 12, *(O.GETK, O.GETQ, O.GETKQ) * 3, O.GAT, O.GATK, O.GATQ, O.GATKQ)
_STORES = (*(O.SET,) * 9, *(O.SETQ,) * 4, O.ADD, O.ADDQ, O.REPLACE, O.REPLACEQ)
_JOINS = (O.APPEND, O.APPENDQ, O.PREPEND, O.PREPENDQ)
_COUNTS = (O.INCR, O.INCRQ, O.DECR, O.DECRQ)
_UNKNOWN = 0x42
#: What the tunnel answers itself, whoever asks.
_LOCAL = (O.VERSION, O.SASL_LIST)
_STATISTICS = (b"", b"", b"settings", b"memtunnel", b"nonsense")
_LONG = b"k" * 251


class Binary(Client):
    kind = "binary"

    # What it asks for

    def log_in(self, *, right: bool) -> bytes:
        self.trusted = right
        login = self.history.login if right else self.history.login + b"?"
        said = self._ask(O.SASL_AUTH, sasl.MECHANISM, login)
        self.owed[-1].words = Status.OK if right else Status.AUTH_FAILED
        return said

    def _ask(
        self, opcode: int, key: bytes = b"", value: bytes = b"", extras: bytes = b"", cas: int = 0
    ) -> bytes:
        loud = LOUD[opcode]
        if loud in STORES:
            extras = self.stamp.to_bytes(4, "big") + bytes(4)
        payload = b""
        if loud in TOUCHES:
            payload = extras = self.stamp.to_bytes(4, "big")
        elif loud in COUNTS:
            payload = extras[:8]
        ask = self.owe(loud, key, value, payload, quiet=loud != opcode)
        ask.opaque = ask.number.to_bytes(4, "big")
        if cas:
            self.compare(ask, cas)
        return self._mark(
            ask, request(opcode, key, extras=extras, value=value, opaque=ask.opaque, cas=cas)
        )

    def speak(self) -> bytes:
        said: bytes = self.pick(_SPEECH)(self)
        return said

    def _get(self) -> bytes:
        return self._ask(self.pick(_GETS), self.key_to_read())

    def _store(self) -> bytes:
        key = self.key()
        return self._ask(self.pick(_STORES), key, self.value(key))

    def _compare(self) -> bytes:
        key = self.key()
        opcode = self.pick((O.SET, O.SET, O.SETQ, O.REPLACE, O.REPLACEQ, O.DELETE, O.DELETEQ))
        value = self.value(key) if LOUD[opcode] in STORES else b""
        return self._ask(opcode, key, value, cas=self.cas_for(key))

    def _store_large(self) -> bytes:
        """A value about as large as may be, or larger, which takes the old one away."""
        random = self.world.random
        largest = self.world.max_value
        key = self.mine + b"big"
        draw = self.draw()
        if draw < 0.6:
            size = self.world.sure_value - random.randint(0, 3)
            return self._ask(O.SET, key, self.value(key, size))
        opcode = self.pick((O.SET, O.SETQ, O.ADD, O.REPLACEQ))
        said = self._ask(opcode, key, self.value(key, largest + self.pick((1, 2, 5000))))
        if LOUD[opcode] == O.SET:
            self.drops(key)
        self.owed[-1].words = Status.TOO_LARGE
        return said

    def _read_large(self) -> bytes:
        return self._ask(O.GET, self.mine + b"big")

    def _delete(self) -> bytes:
        return self._ask(self.pick((O.DELETE, O.DELETE, O.DELETEQ)), self.key())

    def _join(self) -> bytes:
        if self.draw() < 0.2:
            return self._ask(self.pick((O.SET, O.ADD)), self.log, self.value(self.log, 0))
        return self._ask(self.pick(_JOINS), self.log, b"<%d>" % self.stamp)

    def _count(self) -> bytes:
        expires = NEVER_CREATE if self.draw() < 0.3 else 0
        numbers = _NUMBERS.pack(self.stamp, 7, expires)
        return self._ask(self.pick(_COUNTS), self.counter, extras=numbers)

    def _touch(self) -> bytes:
        return self._ask(O.TOUCH, self.key())

    def _no_op(self) -> bytes:
        return self._ask(O.NOOP)

    def _local(self) -> bytes:
        return self._ask(self.pick(_LOCAL))

    def _statistics(self) -> bytes:
        return self._ask(O.STAT, self.pick(_STATISTICS))

    def _flush(self) -> bytes:
        if self.draw() < 0.9:
            return self._no_op()
        return self._ask(self.pick((O.FLUSH, O.FLUSHQ)))

    def _nonsense(self) -> bytes:
        """Well framed, and no request."""
        opcode, key, status = self.pick(
            (
                (_UNKNOWN, b"key", Status.UNKNOWN_COMMAND),
                (O.GET, _LONG, Status.INVALID),
                (O.GETQ, _LONG, Status.INVALID),
                (O.SET, b"", Status.INVALID),
                (O.NOOP, b"key", Status.INVALID),
                (O.SASL_STEP, b"PLAIN", Status.AUTH_FAILED),
            )
        )
        said = self._ask(opcode, key)
        self.owed[-1].words = status
        return said

    def speak_untrusted(self) -> bytes:
        draw = self.draw()
        if draw < 0.4:
            return self._local()
        if draw < 0.5:
            return self.log_in(right=draw < 0.47)
        # Anything else is the last that the tunnel takes.
        self.leaving = "is not let in"
        said: bytes = self.pick((self._get, self._store, self._count, self._no_op))()
        self.owed[-1].words = Status.AUTH_FAILED
        return said

    def fence(self) -> bytes:
        if self.owed and self.owed[-1].quiet and not self.leaving:
            return self._no_op()
        return b""

    def beginning(self) -> bytes:
        whole = request(O.SET, b"half", extras=bytes(8), value=b"a value")
        return whole[: self.world.random.randint(1, 38)]

    def farewell(self) -> None:
        if self.trusted:
            self.say(self._ask(O.QUIT if self.draw() < 0.7 else O.QUITQ))
        else:
            self.sock.put_end()

    # What it hears

    def received(self, data: bytes) -> None:
        if self.over or self.leaving == "is refused":
            return
        data = self._buffer + data
        position = 0
        end = len(data)
        while end - position >= HEADER_LENGTH:
            magic, opcode, keys, extras, status, body, opaque = unpack_answer(data, position)
            stop = position + HEADER_LENGTH + body
            if magic != 0x81 or keys + extras > body:
                self.world.fail(f"{self.name} was told {data[position : position + 24]!r}")
            if stop > end:
                break
            self.heard += stop - position
            self._hear(data, position, opcode, status, opaque, keys, extras, stop)
            if self.leaving == "is refused":
                return
            position = stop
        self._buffer = data[position:]
        if not self.owed:
            self.act_soon()

    def _hear(
        self,
        data: bytes,
        start: int,
        opcode: int,
        status: int,
        opaque: int,
        keys: int,
        extras: int,
        stop: int,
    ) -> None:
        owed = self.owed
        while owed and owed[0].number != opaque and owed[0].quiet:
            self._heard_nothing(owed.popleft())
        if status == Status.AUTH_FAILED and self.may_be_refused:
            self.is_refused()
            return
        if not owed or owed[0].number != opaque or LOUD[opcode] != owed[0].opcode:
            first = owed[0] if owed else None
            self.world.fail(
                f"{self.name} was told {opcode:#x}, status {status}, opaque {opaque}, "
                f"and is owed {first and (first, first.number)}"
            )
        ask = owed[0]
        loud = ask.opcode
        if ask.quiet != (opcode != loud):
            self.wrong(hex(opcode), ask)
        self.in_time(ask, self.heard)
        body = start + HEADER_LENGTH
        key = data[body + extras : body + extras + keys]
        value = data[body + extras + keys : stop]
        if loud == O.STAT and key and ask.words is None:
            return
        owed.popleft()
        (cas,) = _cas_at(data, start + 16)
        if loud == O.SASL_AUTH and status == Status.OK:
            self.welcomed(ask)
        if ask.words is not None:
            self._hear_refusal(ask, status, value)
        elif loud in GETS:
            self._hear_value(ask, status, data[body : body + extras], key, value, cas)
        elif ask.quiet and (status == Status.OK or not value):
            self.wrong(f"{status}, {value!r}", ask)
        elif loud in (O.NOOP, *_LOCAL, O.QUIT, O.STAT, O.FLUSH):
            self._hear_of_all(ask, status)
        else:
            self._hear_change(ask, status, value, cas)

    def _heard_nothing(self, ask: Ask) -> None:
        """What a quiet request means that was not answered."""
        if ask.words is not None:
            if ask.opcode not in GETS or ask.words != Status.INVALID:
                self.wrong("nothing", ask)
        elif ask.opcode in GETS:
            self.missed(ask)
        elif ask.opcode not in (O.QUIT, O.FLUSH):
            self.changed(ask, Status.OK)

    def _hear_refusal(self, ask: Ask, status: int, value: bytes) -> None:
        """To what must not be done."""
        if status != ask.words or not value:
            self.wrong(f"status {status}, {value!r}", ask)

    def _hear_value(
        self, ask: Ask, status: int, flags: bytes, key: bytes, value: bytes, cas: int
    ) -> None:
        if key != (ask.key if ask.opcode in (O.GETK, O.GATK) else b""):
            self.wrong(f"key {key!r}", ask)
        if status == Status.OK:
            self.read(ask, value, flags, cas)
        elif status == Status.NOT_FOUND and not ask.quiet:
            self.missed(ask)
        else:
            self.wrong(f"status {status}", ask)

    def _hear_of_all(self, ask: Ask, status: int) -> None:
        """To what goes to no server, or to all."""
        known = status == Status.OK
        if ask.opcode == O.STAT:
            known = known or (status == Status.NOT_FOUND and ask.key == b"nonsense")
        elif ask.opcode == O.FLUSH:
            known = known or status in (
                Status.NOT_FOUND if ask.quiet else Status.NOT_STORED,
                Status.TEMPORARY_FAILURE,
            )
        if not known and not (self.world.refused and 0 < status < 7):
            self.wrong(f"status {status}", ask)

    def _hear_change(self, ask: Ask, status: int, value: bytes, cas: int) -> None:
        if not (status < 7 or status == Status.TEMPORARY_FAILURE):
            self.wrong(f"status {status}", ask)
        self.outcome(ask, status)
        if status == Status.OK:
            if ask.opcode in COUNTS:
                self.counted(ask, int.from_bytes(value, "big"))
            elif ask.opcode in STORES and cas != self.history.done[ask.value].cas:
                self.wrong(f"the CAS value {cas}", ask)


_SPEECH: tuple[Callable[[Binary], bytes], ...] = (
    *(Binary._get,) * 84,
    *(Binary._store,) * 52,
    *(Binary._compare,) * 8,
    *(Binary._delete,) * 12,
    *(Binary._join,) * 10,
    *(Binary._count,) * 10,
    *(Binary._touch,) * 4,
    *(Binary._no_op,) * 6,
    *(Binary._local,) * 3,
    *(Binary._statistics,) * 2,
    *(Binary._store_large,) * 3,
    *(Binary._read_large,) * 3,
    *(Binary._nonsense,) * 2,
    Binary._flush,
)
