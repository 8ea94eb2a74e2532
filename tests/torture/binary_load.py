"""Clients that speak the binary protocol: quiet multi-gets, quiet stores, pipelines, counters."""

from __future__ import annotations

from memtunnel.wire.binary import (
    ANSWER_MAGIC,
    HEADER_LENGTH,
    LOUD,
    Opcode,
    Status,
    request,
    unpack_answer,
)
from torture.history import value_of
from torture.load import Ask, Client, Load

_INCR = (1).to_bytes(8, "big") + (1).to_bytes(8, "big") + bytes(4)
_GETS = frozenset((Opcode.GET, Opcode.GETK))
#: By kind, what says that a write took effect: a delete is also done where nothing was there.
_DONE = {"set": (Status.OK,), "delete": (Status.OK, Status.NOT_FOUND)}
#: What says that it did not.
_FAILED = frozenset((Status.NOT_STORED, Status.NOT_FOUND))


class Counter:
    """A number on a server that only one client adds to: no addition may happen twice.

    It starts at 1 where it is not there. Each addition that failed may have happened, once.
    """

    def __init__(self) -> None:
        self.last = 0
        self.credit = 0
        """Additions that may have happened unseen."""
        self.done = 0
        """Additions that were answered well."""
        self.failed = 0
        """Those that were not; each may have happened."""

    def fail(self) -> None:
        self.credit += 1
        self.failed += 1

    def judge(self, value: int) -> str:
        """What is wrong with the answer to an addition."""
        self.done += 1
        # Where it is less than before, the server has begun anew.
        before = self.last if value > self.last else 0
        self.credit -= value - before - 1
        self.last = value
        if self.credit < 0:
            missing, self.credit = -self.credit, 0
            return f"twice: {missing} additions too many, at {value}"
        return ""


class BinaryClient(Client):
    """Opaques are numbers that no other request of this client has."""

    def __init__(self, load: Load, number: int, manner: str) -> None:
        super().__init__(load, number, manner)
        self._opaque = self.random.getrandbits(31)
        self.counter = load.key(b"counter-%d" % number, number)
        self.count = Counter()

    def batch(self, count: int) -> bytes:
        frames: list[bytes] = []
        while count > 0:
            draw = self.random.random()
            if draw < 0.15:
                many = min(count, self.random.randint(2, 20))
                opcode = self.random.choice((Opcode.GETQ, Opcode.GETKQ))
                frames += [self._get(opcode) for _ in range(many)]
                frames.append(self._bare(Opcode.NOOP))
                count -= many
            elif draw < 0.55:
                frames.append(self._get(self.random.choice((Opcode.GET, Opcode.GETK))))
            elif draw < 0.75:
                frames.append(self._set(Opcode.SET))
            elif draw < 0.87:
                frames.append(self._set(Opcode.SETQ))
            elif draw < 0.90:
                frames.append(self._delete())
            elif draw < 0.97:
                frames.append(self._incr())
            else:
                frames.append(self._bare(self.random.choice((Opcode.NOOP, Opcode.VERSION))))
            count -= 1
        if self.owed[-1].quiet:
            # Else nobody could tell when it is over.
            frames.append(self._bare(Opcode.NOOP))
        return b"".join(frames)

    def _owe(self, ask: Ask, opcode: int, key: bytes = b"", **parts: bytes) -> bytes:
        self._opaque = self._opaque + 1 & 0xFFFFFFFF
        ask.word = opcode, self._opaque
        ask.quiet = LOUD[opcode] != opcode
        frame = request(opcode, key, opaque=self._opaque.to_bytes(4, "big"), **parts)
        ask.size = len(frame)
        self.owed.append(ask)
        return frame

    def _get(self, opcode: Opcode) -> bytes:
        key = self.any_key()
        return self._owe(Ask("get", key), opcode, key.name)

    def _set(self, opcode: Opcode) -> bytes:
        key = self.random.choice(self.own)
        number = key.ask()
        value = value_of(key.name, self.number, number, self.size())
        return self._owe(Ask("set", key, number), opcode, key.name, extras=bytes(8), value=value)

    def _delete(self) -> bytes:
        key = self.own[self.random.randrange(0, len(self.own), 4)]
        return self._owe(Ask("delete", key, key.ask(delete=True)), Opcode.DELETE, key.name)

    def _incr(self) -> bytes:
        ask = Ask("incr", self.counter)
        return self._owe(ask, Opcode.INCR, self.counter.name, extras=_INCR)

    def _bare(self, opcode: Opcode) -> bytes:
        return self._owe(Ask("bare"), opcode)

    def read(self, now: float) -> None:
        buffer = self.buffer
        position = 0
        while len(buffer) - position >= HEADER_LENGTH:
            magic, opcode, keys, extras, status, body, opaque = unpack_answer(buffer, position)
            if magic != ANSWER_MAGIC:
                self.wrong(f"wrong: magic {magic:#x}")
                return
            stop = position + HEADER_LENGTH + body
            if stop > len(buffer):
                break
            ask = self._asked(opcode, opaque, status, now)
            if ask is None:
                return
            ask.size += body
            start = position + HEADER_LENGTH + extras
            key, value = buffer[start : start + keys], buffer[start + keys : stop]
            if not self._answered(ask, opcode, status, key, value, now):
                return
            position = stop
        self.buffer = buffer[position:]

    def _asked(self, opcode: int, opaque: int, status: int, now: float) -> Ask | None:
        """What this answers; quiet requests before it have ended well. None where it is wrong."""
        word = opcode, opaque
        owed = self.owed
        if not any(ask.word == word for ask in owed):
            words = f"{Opcode(opcode).name} {opaque:#x} {status:#x}"
            self.wrong(f"unasked: an answer that nothing asked for, or a second one: {words}")
            return None
        while True:
            ask = owed.popleft()
            if ask.word == word:
                return ask
            if not ask.quiet:
                self.wrong(f"missing: the answer to {ask.kind} {ask.word}, before {word}")
                return None
            if ask.kind == "set":
                self.stored(ask, now)
            else:
                self.load.misses += 1

    def _answered(
        self, ask: Ask, opcode: int, status: int, key: bytes, value: bytes, now: float
    ) -> bool:
        """Judge one answer; whether reading may go on."""
        if ask.kind == "get":
            if status == Status.OK:
                if opcode in (Opcode.GETK, Opcode.GETKQ) and key != ask.key.name:
                    self.wrong(f"crossed: the key {key[:60]!r} in answer to {ask.key.name!r}")
                    return False
                self.hit(ask, ask.key, value, now)
                return True
            if status == Status.NOT_FOUND and opcode in _GETS:
                if opcode == Opcode.GETK and key != ask.key.name:
                    self.wrong(f"crossed: a miss of {key[:60]!r} in answer to {ask.key.name!r}")
                    return False
                self.load.misses += 1
                return True
        elif ask.kind == "incr":
            if status == Status.OK:
                fault = self.count.judge(int.from_bytes(value, "big"))
                if fault and not self.load.keys_move:
                    self.load.problem(f"{fault} ({self})")
                ask.key.server.said_well(now)
                return True
            if status == Status.NOT_STORED:
                self.count.fail()
                self.load.refused += 1
                return True
        elif ask.kind == "bare":
            if status == Status.OK:
                return True
        elif not ask.quiet and status in _DONE[ask.kind]:
            self.stored(ask, now)
            return True
        elif status in _FAILED and value:
            self.not_stored(ask)
            return True
        self.wrong(f"wrong: status {status:#x} and {len(value)} bytes to {Opcode(opcode).name}")
        return False

    def unanswered(self, ask: Ask) -> None:
        if ask.kind == "incr":
            self.count.fail()
        elif ask.number:
            ask.key.failed(ask.number, delete=ask.kind == "delete")
