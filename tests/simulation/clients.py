"""The clients of the simulation: they say who wrote a value in it, and read strictly.

A value is ``key|writer|number|checksum|`` and some padding, and no two are the same. Whatever
comes has to be owed, in this order, whole, in time, and of the right key; and what is read has to
be as new as what was surely written before.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any
from zlib import crc32

from core_harness import bare, concat, count, get, login, store, touch

from memtunnel.core.deadlines import RATE
from memtunnel.wire.binary import GETS, HEADER_LENGTH, LOUD, Opcode, Status, unpack_answer
from simulation.network import Peer, Server, Socket

if TYPE_CHECKING:
    from simulation.world import World

O = Opcode  # noqa: E741
#: Seconds by which an answer may be later than its deadline.
LATE = 0.05
_STORES = frozenset((O.SET, O.ADD, O.REPLACE))
_CLASSIC_STORES = {"set": O.SET, "add": O.ADD, "replace": O.REPLACE}


class Ask:
    """One request, and what was known when it was made."""

    __slots__ = ("degraded", "disturbed", "end", "floor", "key", "opaque", "opcode", "value")
    __slots__ += ("deletes", "quiet", "seen", "version", "words")

    def __init__(self, client: Client, opcode: int, key: bytes, value: bytes, quiet: bool) -> None:
        world = client.world
        self.opcode = opcode
        """Loud."""
        self.key = key
        self.value = value
        self.quiet = quiet
        self.opaque = b""
        self.words: Any = None
        self.end = 0
        """Where it ends in what the client says."""
        self.seen = 0
        self.floor = world.acknowledged.get(key, 0)
        self.version = world.version
        self.degraded = world.degraded
        self.deletes = client.deletes.get(key, 0)
        self.disturbed = world.disturbed

    def __repr__(self) -> str:
        loud = "quiet " if self.quiet else ""
        return f"{loud}{O(self.opcode).name} {self.key.decode()} {self.value[:50]!r}"


class Client(Peer):
    """What clients of both protocols do."""

    kind = ""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.name = f"{self.kind}{number}"
        self.owed: deque[Ask] = deque()
        self.left = world.random.randint(20, world.quota)
        """Requests that it is still going to make."""
        self.over = False
        self.leaving = ""
        self.half = False
        """It stopped in mid-frame."""
        self.lenient = False
        """It did not read, and may wait."""
        self.said = 0
        self.heard = 0
        self.due = 0.0
        self.floor: dict[bytes, int] = {}
        """By key: what it reads has at least this version."""
        self.present: dict[bytes, int] = {}
        """Keys of its own that are surely there, unless something was disturbed since."""
        self.deletes: dict[bytes, int] = {}
        """How often it asked for the end of a key."""
        self.most = world.random.choice((1, 4, 16, 40))
        self.manners = world.random.random()
        self._next = 0
        self._made = 0
        """Bytes of all that it has made up to say."""
        self._acting = False
        self._buffer = b""

    # Its life

    def come(self, sock: Socket, transport: Server) -> None:
        self.sock = sock
        self.transport = transport
        self.greet()
        self.act_soon()

    def greet(self) -> None: ...

    def _mark(self, ask: Ask, data: bytes) -> bytes:
        """Note where in the client's stream `data`, which asks this, will have ended."""
        self._made += len(data)
        ask.end = self._made
        return data

    def act_soon(self, delay: float = 0.0) -> None:
        if not self._acting and not self.over:
            self._acting = True
            self.world.reactor.at(delay, self.act)

    def act(self) -> None:
        self._acting = False
        world = self.world
        if self.over or self.leaving or self.half:
            return
        random = world.random
        if self.left <= 0 or world.ending:
            self.leave()
            return
        if len(self.owed) < 400:
            said = b"".join(self.speak() for _ in range(random.randint(1, self.most)))
            said += self.fence()
            self.say(said)
        draw = random.random()
        if draw < 0.1:
            self.act_soon(random.random() * 0.02)
        elif draw < 0.003 + 0.1 and world.rough:
            self.misbehave()

    def say(self, data: bytes) -> None:
        self.said += len(data)
        random = self.world.random
        if self.manners < 0.1 and random.random() < 0.2 and self.world.rough:
            for _ in range(random.randint(1, 4)):
                if len(data) > 1:
                    cut = random.randrange(1, len(data))
                    self.sock.put(data[:cut])
                    data = data[cut:]
                    self.sock.pause(random.random() * 0.3)
        self.sock.put(data)

    def misbehave(self) -> None:
        random = self.world.random
        draw = random.random()
        if draw < 0.5:
            self.abort()
        elif draw < 0.8:
            self.patient = self.lenient = True
            seconds = random.choice((0.1, 1.0, 1.0, 3.0, 35.0))
            self.world.tell(self.name, "does not read for %.1f s", seconds)
            for _ in range(random.choice((1, 10, 50))):
                self.say(b"".join(self.speak() for _ in range(30)) + self.fence())
            self.world.reactor.at(seconds, self.read_on)
        else:
            self.half = True
            self.world.tell(self.name, "stops in mid-frame")
            self.sock.put(self.beginning())

    def beginning(self) -> bytes:
        raise NotImplementedError

    def read_on(self) -> None:
        self.patient = False
        self.sock.drain()
        self.act_soon()

    def abort(self) -> None:
        self.world.tell(self.name, "aborts, with %d requests owed", len(self.owed))
        self.over = True
        self.world.gone(self)
        self.sock.break_off()

    def leave(self) -> None:
        draw = self.world.random.random()
        self.leaving = "quit" if draw < 0.3 else "half-close"
        self.world.tell(self.name, "ends: %s", self.leaving)
        if self.leaving == "quit":
            self.farewell()
        else:
            self.sock.put_end()

    def farewell(self) -> None:
        raise NotImplementedError

    def ended(self, reset: bool) -> None:
        if self.over:
            return
        self.over = True
        self.world.tell(self.name, "sees the end%s", ", a reset" if reset else "")
        self.world.gone(self)
        if self.sock.broken or (self.half and reset) or (self.lenient and reset):
            return
        # Whose request was read before the tunnel had to stop gets an answer.
        read = self.sock.read_total
        limit = self.world.stops_reading
        for total, when in self.sock.reads:
            if when >= limit:
                break
            read = total
        if limit < self.world.reactor.now:
            asks = [ask for ask in self.owed if ask.end <= read and self._read_at(ask) < limit]
        elif self.leaving:
            asks = list(self.owed)
        else:
            self.world.fail(f"{self.name} was closed, with {list(self.owed)} owed")
        for ask in asks:
            if not ask.quiet:
                self.world.fail(f"{self.name} was closed in place of an answer to {ask}")
        if not reset:
            self.sock.put_end()

    def _read_at(self, ask: Ask) -> float:
        reads = self.sock.reads
        while reads and reads[0][0] < ask.end:
            reads.popleft()
        return reads[0][1] if reads else float("inf")

    # What it asks for

    def key(self) -> bytes:
        random = self.world.random
        draw = random.random()
        if draw < 0.3:
            return b"shared%d" % (draw * 20)
        return b"%d-own%d" % (self.number, draw * 12)

    def value(self, key: bytes) -> bytes:
        world = self.world
        self._next += 1
        begin = b"%b|%d|%d" % (key, self.number, self._next)
        value = b"%b|%08x|" % (begin, crc32(begin))
        size = world.size()
        if size > len(value):
            value = value.ljust(size, b".")
        world.written[value] = key
        return value

    def own(self, key: bytes) -> bool:
        return key.startswith(b"%d-" % self.number)

    def owe(self, opcode: int, key: bytes, value: bytes = b"", quiet: bool = False) -> Ask:
        ask = Ask(self, opcode, key, value, quiet)
        if opcode not in GETS and opcode not in _STORES:
            self.world.asked[opcode, key, value] += 1
            if opcode == O.DELETE:
                self.deletes_now(key)
        self.owed.append(ask)
        if self.world.story is not None:
            self.world.tell(self.name, "asks: %r", ask)
        self.left -= 1
        self.world.requests += 1
        return ask

    def deletes_now(self, key: bytes) -> None:
        self.present.pop(key, None)
        self.deletes[key] = self.deletes.get(key, 0) + 1

    # What follows from what it hears

    def in_time(self, ask: Ask, stop: int) -> None:
        """P3: the answer that ends at `stop` was written before its deadline."""
        if self.world.story is not None:
            self.world.tell(self.name, "is told of %r", ask)
        reads = self.sock.reads
        while reads[0][0] < ask.end:
            reads.popleft()
        writes = self.transport.writes
        while writes[0][0] < stop:
            writes.popleft()
        due = reads[0][1] + self.world.timeout + LATE
        due += (len(ask.value) + 2 * self.world.largest) / RATE
        self.due = max(self.due, due)
        if writes[0][1] > self.due and not self.lenient:
            late = writes[0][1] - self.due
            self.world.fail(f"{self.name} was told {late * 1000:.0f} ms too late of {ask}")
        self.world.checked += 1

    def stored(self, ask: Ask) -> None:
        world = self.world
        version = world.versions.get(ask.value)
        if version is None:
            world.fail(f"{self.name} was told that {ask} is done, and it is not")
        self.raise_floor(ask.key, version)
        if self.own(ask.key) and ask.deletes == self.deletes.get(ask.key, 0):
            self.present[ask.key] = ask.disturbed

    def deleted(self, ask: Ask) -> None:
        before = max(self.floor.get(ask.key, 0), ask.version)
        self.raise_floor(ask.key, before + 1)

    def raise_floor(self, key: bytes, version: int) -> None:
        floor = self.floor
        if version > floor.get(key, 0):
            floor[key] = version
            acknowledged = self.world.acknowledged
            if version > acknowledged.get(key, 0):
                acknowledged[key] = version

    def read(self, ask: Ask, value: bytes) -> None:
        """P1 and P2."""
        world = self.world
        if world.written.get(value) != ask.key:
            world.fail(f"{self.name} was told {value[:80]!r} for {ask}")
        version = world.versions[value]
        floor = max(ask.floor, self.floor.get(ask.key, 0))
        if version < floor and not world.strayed:
            world.fail(
                f"{self.name} was told an old value for {ask}: "
                f"{value[:60]!r} of version {version}, not {floor}"
            )

    def missed(self, ask: Ask) -> None:
        world = self.world
        if (
            self.present.get(ask.key) == world.disturbed
            and world.degraded == ask.degraded
            and not world.strayed
        ):
            world.fail(f"{self.name} was told that {ask} is not there, and it is")

    def changed(self, ask: Ask, status: int, *, silent: bool = False) -> None:
        """The outcome of a change is known."""
        if ask.opcode in _STORES:
            if status == Status.OK:
                self.stored(ask)
        elif ask.opcode == O.DELETE:
            if status == Status.OK or (status == Status.NOT_FOUND and not ask.quiet):
                self.deleted(ask)
        elif ask.opcode in (O.INCR, O.APPEND) and status == Status.OK:
            what = ask.opcode, ask.key, ask.value
            if not self.world.executed[what]:
                self.world.fail(f"{self.name} was told that {ask} is done, and it is not")


class Binary(Client):
    kind = "binary"

    def greet(self) -> None:
        if self.world.random.random() < 0.3:
            ask = self._owe(O.SASL_AUTH, b"")
            self.say(self._mark(ask, login(self.world.login, self._next)))

    def _owe(self, opcode: int, key: bytes, value: bytes = b"", quiet: bool = False) -> Ask:
        self._next += 1
        ask = self.owe(opcode, key, value, quiet)
        ask.opaque = self._next.to_bytes(4, "big")
        return ask

    def speak(self) -> bytes:
        draw = self.world.random.random()
        key = self.key()
        if draw < 0.45:
            opcode = O.GET if draw < 0.3 else O.GETK if draw < 0.4 else O.GETKQ
            ask = self._owe(LOUD[opcode], key, quiet=opcode == O.GETKQ)
            return self._mark(ask, get(key, self._next, opcode))
        if draw < 0.75:
            opcode = O.SET if draw < 0.6 else O.SETQ if draw < 0.68 else O.ADD
            if draw > 0.72:
                opcode = O.REPLACE
            value = self.value(key)
            ask = self._owe(LOUD[opcode], key, value, quiet=opcode == O.SETQ)
            return self._mark(ask, store(key, value, self._next, opcode))
        if draw < 0.82:
            opcode = O.DELETE if draw < 0.8 else O.DELETEQ
            ask = self._owe(O.DELETE, key, quiet=opcode == O.DELETEQ)
            return self._mark(ask, get(key, self._next, opcode))
        if draw < 0.88:
            opcode = O.INCR if draw < 0.86 else O.INCRQ
            ask = self._owe(O.INCR, b"%d-count" % self.number, quiet=opcode == O.INCRQ)
            return self._mark(ask, count(ask.key, self._next, opcode))
        if draw < 0.91:
            key = b"%d-log" % self.number
            ask = self._owe(O.APPEND, key, b"<%d>" % self._next)
            return self._mark(ask, concat(key, ask.value, self._next))
        if draw < 0.94:
            ask = self._owe(O.GAT, key)
            return self._mark(ask, touch(key, self._next, O.GAT))
        if draw < 0.97:
            ask = self._owe(O.NOOP, b"")
            return self._mark(ask, bare(O.NOOP, self._next))
        if draw < 0.98:
            ask = self._owe(O.VERSION, b"")
            return self._mark(ask, bare(O.VERSION, self._next))
        if draw < 0.985:
            ask = self._owe(O.STAT, b"")
            return self._mark(ask, bare(O.STAT, self._next))
        if draw < 0.986:
            ask = self._owe(O.FLUSH, b"")
            return self._mark(ask, bare(O.FLUSH, self._next))
        if draw < 0.99:
            ask = self._owe(O.SET, key, b"x" * (self.world.max_value + 1))
            self.world.asked[O.DELETE, key, b""] += 1
            self.deletes_now(key)
            ask.words = "too large"
            return self._mark(ask, store(key, ask.value, self._next))
        ask = self._owe(O.TOUCH, key)
        return self._mark(ask, touch(key, self._next))

    def fence(self) -> bytes:
        if self.owed and self.owed[-1].quiet:
            return self._mark(self._owe(O.NOOP, b""), bare(O.NOOP, self._next))
        return b""

    def beginning(self) -> bytes:
        return store(b"half", b"a value", 1)[: self.world.random.randint(1, 38)]

    def farewell(self) -> None:
        self.say(self._mark(self._owe(O.QUIT, b""), bare(O.QUIT, self._next)))

    def received(self, data: bytes) -> None:
        if self.over:
            return
        data = self._buffer + data
        position = 0
        end = len(data)
        while end - position >= HEADER_LENGTH:
            magic, opcode, keys, extras, status, body, _ = unpack_answer(data, position)
            stop = position + HEADER_LENGTH + body
            if magic != 0x81 or keys + extras > body:
                self.world.fail(f"{self.name} was told {data[position : position + 24]!r}")
            if stop > end:
                break
            opaque = data[position + 12 : position + 16]
            start = position + HEADER_LENGTH + extras
            self.heard += stop - position
            self.hear(opcode, status, opaque, data[start : start + keys], data[start + keys : stop])
            position = stop
        self._buffer = data[position:]
        if not self.owed:
            self.act_soon()

    def hear(self, opcode: int, status: int, opaque: bytes, key: bytes, value: bytes) -> None:
        owed = self.owed
        while owed and owed[0].opaque != opaque and owed[0].quiet:
            ask = owed.popleft()
            if ask.opcode in GETS:
                self.missed(ask)
            else:
                self.changed(ask, Status.OK)
        if not owed or owed[0].opaque != opaque or LOUD[opcode] != owed[0].opcode:
            first = owed[0] if owed else None
            self.world.fail(
                f"{self.name} was told {O(opcode).name}, status {status}, opaque {opaque.hex()}, "
                f"and is owed {first and (first, first.opaque.hex())}"
            )
        ask = owed[0]
        loud = ask.opcode
        if ask.quiet != (opcode != loud):
            self.world.fail(f"{self.name} was told {O(opcode).name} for {ask}")
        self.in_time(ask, self.heard)
        if loud == O.STAT and key:
            return
        owed.popleft()
        if loud in GETS:
            if status == Status.OK:
                if key and key != ask.key:
                    self.world.fail(f"{self.name} was told key {key!r} for {ask}")
                self.read(ask, value)
            elif status == Status.NOT_FOUND and not ask.quiet:
                self.missed(ask)
            else:
                self.world.fail(f"{self.name} was told status {status} for {ask}")
        elif ask.quiet and (status == Status.OK or not value):
            self.world.fail(f"{self.name} was told {status}, {value!r} for {ask}")
        elif ask.words == "too large":
            if status != Status.TOO_LARGE:
                self.world.fail(f"{self.name} was told status {status} for {ask}")
        elif loud in (O.NOOP, O.VERSION, O.SASL_AUTH, O.QUIT):
            if status != Status.OK:
                self.world.fail(f"{self.name} was told status {status} for {ask}")
        elif status > 6 and status != Status.TEMPORARY_FAILURE:
            self.world.fail(f"{self.name} was told status {status} for {ask}")
        else:
            self.changed(ask, status)


class Text(Client):
    kind = "text"

    def _owe(
        self,
        opcode: int,
        key: bytes,
        line: bytes,
        words: str,
        value: bytes = b"",
        quiet: bool = False,
    ) -> bytes:
        ask = self.owe(opcode, key, value, quiet)
        ask.words = words
        return self._mark(ask, line)

    def speak(self) -> bytes:
        draw = self.world.random.random()
        key = self.key()
        if draw < 0.4:
            return self._owe(O.GET, key, b"get %b\r\n" % key, "get")
        if draw < 0.45:
            keys = [key]
            while len(keys) < 5:
                if (other := self.key()) not in keys:
                    keys.append(other)
            line = b"get %b\r\n" % b" ".join(keys)
            self._owe(O.GET, key, line, "many")
            self.owed[-1].value = b" ".join(keys)
            return line
        if draw < 0.55:
            return self._owe(O.GET, key, b"mg %b v k\r\n" % key, "mg")
        if draw < 0.85:
            verb = "set" if draw < 0.75 else "add" if draw < 0.8 else "replace"
            value = self.value(key)
            quiet = draw < 0.6
            form = b"%b %b 0 0 %d%b\r\n%b\r\n"
            tail = b" noreply" if quiet else b""
            line = form % (verb.encode(), key, len(value), tail, value)
            return self._owe(_CLASSIC_STORES[verb], key, line, "store", value, quiet)
        if draw < 0.9:
            return self._owe(O.DELETE, key, b"delete %b\r\n" % key, "delete")
        if draw < 0.94:
            key = b"%d-log" % self.number
            self._next += 1
            value = b"<%d>" % self._next
            line = b"append %b 0 0 %d\r\n%b\r\n" % (key, len(value), value)
            return self._owe(O.APPEND, key, line, "store", value)
        if draw < 0.97:
            key = b"%d-count" % self.number
            return self._owe(O.INCR, key, b"ma %b N0 v\r\n" % key, "number")
        if draw < 0.98:
            value = self.value(key)
            line = b"ms %b %d\r\n%b\r\n" % (key, len(value), value)
            return self._owe(O.SET, key, line, "meta store", value)
        return self._owe(O.NOOP, b"", b"mn\r\n", "MN")

    def fence(self) -> bytes:
        if self.owed and self.owed[-1].quiet:
            return self._owe(O.NOOP, b"", b"mn\r\n", "MN")
        return b""

    def beginning(self) -> bytes:
        return b"set half 0 0 7\r\na value\r\n"[: self.world.random.randint(1, 24)]

    def farewell(self) -> None:
        self.say(self._owe(O.QUIT, b"", b"quit\r\n", "quit", quiet=True))

    def received(self, data: bytes) -> None:
        if self.over:
            return
        self._buffer += data
        while (size := self.take(self._buffer)) > 0:
            self._buffer = self._buffer[size:]
        if not self.owed:
            self.act_soon()

    def take(self, data: bytes) -> int:
        """Read one answer, or a part that can be read by itself; its length, 0 if not whole."""
        end = data.find(b"\r\n") + 2
        if end < 2:
            return 0
        line = data[: end - 2]
        words = line.split(b" ")
        block = b""
        if words[0] in (b"VALUE", b"VA"):
            size = int(words[3] if words[0] == b"VALUE" else words[1])
            block = data[end : end + size]
            if len(data) < end + size + 2:
                return 0
            if data[end + size : end + size + 2] != b"\r\n":
                self.world.fail(f"{self.name} was told a block without an end: {line!r}")
            end += size + 2
        self.heard += end
        self.hear(words, block)
        return end

    def hear(self, words: list[bytes], block: bytes) -> None:
        owed = self.owed
        while owed and owed[0].quiet:
            owed.popleft()  # nobody tells what became of it
        if not owed:
            self.world.fail(f"{self.name} was told {words!r}, and is owed nothing")
        ask = owed[0]
        said = words[0]
        kind = ask.words
        if kind in ("get", "many"):
            keys = ask.value.split() if kind == "many" else [ask.key]
            if said == b"VALUE" and words[1] in keys[ask.seen :]:
                ask.seen = keys.index(words[1]) + 1
                one = ask
                if kind == "many":
                    one = Ask(self, O.GET, words[1], b"", False)
                    one.floor = 0
                self.read(one, block)
                return
            if said != b"END":
                self.world.fail(f"{self.name} was told {words!r} for {ask}")
            if kind == "get" and not ask.seen:
                self.missed(ask)
        elif kind == "mg":
            if said == b"VA" and words[2] == b"k" + ask.key:
                self.read(ask, block)
            elif said == b"EN":
                self.missed(ask)
            else:
                self.world.fail(f"{self.name} was told {words!r} for {ask}")
        else:
            self._hear_change(ask, words, block)
        self.in_time(ask, self.heard)
        owed.popleft()

    def _hear_change(self, ask: Ask, words: list[bytes], block: bytes) -> None:
        line = b" ".join(words)
        done, others = _ANSWERS[ask.words]
        if done.fullmatch(line):
            self.changed(ask, Status.OK)
        elif ask.words == "delete" and line == b"NOT_FOUND":
            self.changed(ask, Status.NOT_FOUND)
        elif not others.fullmatch(line):
            self.world.fail(f"{self.name} was told {line!r} for {ask}")


_BAD = rb"SERVER_ERROR [ -~]+|CLIENT_ERROR [ -~]+"
_ANSWERS = {
    "store": (re.compile(rb"STORED"), re.compile(rb"NOT_STORED|EXISTS|NOT_FOUND|" + _BAD)),
    "meta store": (re.compile(rb"HD"), re.compile(rb"NS|EX|NF|" + _BAD)),
    "delete": (re.compile(rb"DELETED"), re.compile(_BAD + rb"|EXISTS")),
    "number": (re.compile(rb"VA \d+"), re.compile(rb"NF|NS|EX|" + _BAD)),
    "MN": (re.compile(rb"MN"), re.compile(rb"(?!)")),
}
