"""The clients of the simulation: they say who wrote a value in it, and read strictly.

A value is ``key|writer|number|checksum|`` and some padding, and no two are the same. Whatever
comes has to be owed, in this order, whole, in time, and of the right key; and what is read has to
be as new as what was surely written before, on the server that it comes from. What clients say, and
how they read what they are told, is in `binary` and `text`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

from memtunnel.core.deadlines import RATE
from memtunnel.wire.binary import Opcode, Status
from simulation.history import (
    CHANGES,
    JOINS,
    NUMBER_BITS,
    STORES,
    Done,
    Floors,
    History,
    raised,
)
from simulation.network import Peer, Server, Socket

if TYPE_CHECKING:
    from simulation.world import World

O = Opcode  # noqa: E741
#: Requests that a client lets be owed.
MOST_OWED = 400
#: A CAS value that no item has.
WRONG_CAS = 1 << 60
#: A log: its value, with what was prepended and appended around it.
_LOG = re.compile(rb"((?:<\d+>)*)([^<]*)((?:<\d+>)*)")
#: What servers that are well say to each command; besides, with a CAS value, how it compares.
_NATURAL: dict[int, frozenset[int]] = {
    O.SET: frozenset((Status.OK,)),
    O.ADD: frozenset((Status.OK, Status.EXISTS)),
    O.REPLACE: frozenset((Status.OK, Status.NOT_FOUND)),
    O.APPEND: frozenset((Status.OK, Status.NOT_STORED)),
    O.PREPEND: frozenset((Status.OK, Status.NOT_STORED)),
    O.DELETE: frozenset((Status.OK, Status.NOT_FOUND)),
    O.INCR: frozenset((Status.OK, Status.NOT_FOUND)),
    O.DECR: frozenset((Status.OK, Status.NOT_FOUND)),
    O.TOUCH: frozenset((Status.OK, Status.NOT_FOUND)),
}
_COMPARED = frozenset((Status.NOT_FOUND, Status.EXISTS))


class Ask:
    """One request, and what was known when it was made."""

    __slots__ = ("cas", "degraded", "deletes", "disturbed", "end", "flags", "floors", "key")
    __slots__ += (
        "moves",
        "number",
        "opaque",
        "opcode",
        "payload",
        "quiet",
        "seen",
        "value",
        "version",
    )
    __slots__ += ("words",)

    def __init__(
        self, client: Client, opcode: int, key: bytes, value: bytes, payload: bytes, quiet: bool
    ) -> None:
        world = client.world
        history = client.history
        self.opcode = opcode
        """Loud."""
        self.key = key
        self.value = value
        self.payload = payload
        """What tells this change from others."""
        self.quiet = quiet
        self.number = client.number_of_next
        self.opaque = b""
        self.words: Any = None
        """What kind of answer it is to get, where that is not as its opcode says."""
        self.flags = b""
        """What the answer to a meta command is to show."""
        self.cas = 0
        """The CAS value that it compares."""
        self.end = 0
        """Where it ends in what the client says."""
        self.seen = 0
        self.floors: Floors = history.acknowledged.get(key, history.no_floors)
        self.moves = history.moves.get(key, 0)
        self.version = history.version
        self.degraded = world.degraded[opcode]
        self.deletes = client.deletes.get(key, 0)
        self.disturbed = world.disturbed

    def __repr__(self) -> str:
        loud = "quiet " if self.quiet else ""
        name = O(self.opcode).name if self.opcode in _OPCODES else hex(self.opcode)
        value = b"***" if self.opcode == O.SASL_AUTH else self.value[:50]
        return f"{loud}{name} {self.key.decode()} {value!r}"


_OPCODES = frozenset(O)


class Client(Peer):
    """What clients of both protocols do."""

    kind = ""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.name = f"{self.kind}{number}"
        self.history: History = world.history_of(number)
        self.owed: deque[Ask] = deque()
        self.left = world.random.randint(20, world.quota)
        """Requests that it is still going to make."""
        self.over = False
        self.leaving = ""
        self.half = False
        """It stopped in mid-frame."""
        self.lenient = False
        """It did not read, and may wait."""
        self.trusted = world.auth != "required"
        """Whether the tunnel will take its next request, as far as the login goes."""
        self.unknown = False
        """Whether its own login is one that no server takes."""
        self.said = 0
        self.heard = 0
        self.due = 0.0
        self.floors: dict[bytes, Floors] = {}
        """By key and server: what it reads has at least this version."""
        self.present: dict[bytes, tuple[int, int]] = {}
        """Keys of its own that are surely there, unless something was disturbed or moved since."""
        self.deletes: dict[bytes, int] = {}
        """How often it asked for the end of a key."""
        self.cas: dict[bytes, int] = {}
        """The CAS values that it was told last."""
        self.most = world.random.choice((1, 4, 16, 40))
        self.manners = world.random.random()
        self.mine = b"%d-" % number
        """What its own keys begin with."""
        self.log = b"%d-log" % number
        self.counter = b"%d-count" % number
        self.number_of_next = 1
        self.draw = world.random.random
        self._made = 0
        """Bytes of all that it has made up to say."""
        self._acting = False
        self._buffer = b""

    # Its life

    def come(self, sock: Socket, transport: Server) -> None:
        self.sock = sock
        self.transport = transport
        draw = self.world.random.random()
        if self.world.auth == "required":
            # Most have the right login, some the wrong one, and some do not know that it takes one.
            if draw < 0.9:
                self.say(self.log_in(right=draw < 0.75))
        elif self.world.auth == "passthrough":
            if draw > 0.9:
                self.unknown = True
                self.history = self.world.no_history()
            if self.unknown or draw < 0.3 or self.history is not self.world.histories[0]:
                self.say(self.log_in(right=True))
        elif draw < 0.3 and not self.world.rotates:
            self.say(self.log_in(right=draw < 0.27))
        self.act_soon()

    def log_in(self, *, right: bool) -> bytes:
        raise NotImplementedError

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
        if len(self.owed) < MOST_OWED:
            self.say(self.speech(random.randint(1, self.most)))
        draw = random.random()
        if draw < world.haste:
            # It does not wait for its answers.
            self.act_soon(random.random() * world.pause)
        elif draw < world.haste + 0.003 and world.rough and self.trusted and not self.leaving:
            self.misbehave()

    def speech(self, number: int) -> bytes:
        """So many requests, or fewer where one of them is the last."""
        said: list[bytes] = []
        while number > 0 and not self.leaving:
            number -= 1
            said.append(self.speak() if self.trusted else self.speak_untrusted())
        said.append(self.fence())
        return b"".join(said)

    def speak(self) -> bytes:
        """A request."""
        raise NotImplementedError

    def speak_untrusted(self) -> bytes:
        """The same, of a client that is not logged in where it has to be."""
        raise NotImplementedError

    def fence(self) -> bytes:
        """What makes the tunnel tell what came of quiet requests, if there are any."""
        raise NotImplementedError

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
                self.say(self.speech(30))
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
        world = self.world
        world.tell(self.name, "sees the end%s", ", a reset" if reset else "")
        world.gone(self)
        if self.sock.broken or (self.half and reset) or (self.lenient and reset) or world.stopped:
            return
        # Whose request was read before the tunnel had to stop gets an answer.
        read = self.sock.read_total
        limit = world.stops_reading
        for total, when in self.sock.reads:
            if when >= limit:
                break
            read = total
        if limit < world.reactor.now:
            asks = [ask for ask in self.owed if ask.end <= read and self._read_at(ask) < limit]
        elif self.leaving:
            asks = list(self.owed)
        else:
            world.fail(f"{self.name} was closed, with {list(self.owed)} owed")
        for ask in asks:
            if not ask.quiet:
                world.fail(f"{self.name} was closed in place of an answer to {ask}")
        if not reset:
            self.sock.put_end()

    def _read_at(self, ask: Ask) -> float:
        reads = self.sock.reads
        while reads and reads[0][0] < ask.end:
            reads.popleft()
        return reads[0][1] if reads else float("inf")

    # What it asks for

    def pick(self, things: Sequence[Any]) -> Any:
        """One of them: what `Random.choice` takes three times as long for."""
        return things[int(self.draw() * len(things))]

    def key(self) -> bytes:
        draw = self.draw()
        if draw < 0.3:
            return b"shared%d" % (draw * 20)
        return b"%d-own%d" % (self.number, draw * self.world.keys)

    def key_to_read(self) -> bytes:
        """The same, or its log, or what only somebody else writes."""
        draw = self.draw()
        if draw > 0.06:
            return self.key()
        return self.log if draw < 0.03 else b"%d-own%d" % (self.number + 1, draw * 200)

    @property
    def stamp(self) -> int:
        """That of the next request."""
        return self.number << NUMBER_BITS | self.number_of_next

    def value(self, key: bytes, size: int | None = None) -> bytes:
        """A value for the next request to store, of so many bytes if it has to be."""
        begin = b"%b|%d|%d" % (key, self.number, self.number_of_next)
        value = b"%b|%08x|" % (begin, crc32(begin))
        if size is None:
            size = self.world.size()
        return value.ljust(size, b".") if size > len(value) else value

    def cas_for(self, key: bytes) -> int:
        """A CAS value to compare, the one that was read last or a wrong one."""
        known = self.cas.get(key)
        return known if known and self.world.random.random() < 0.8 else WRONG_CAS

    def owe(
        self, opcode: int, key: bytes, value: bytes = b"", payload: bytes = b"", *, quiet: bool
    ) -> Ask:
        """Make a request, in its loud form. A store's `value` is what tells it from others."""
        ask = Ask(self, opcode, key, value, value or payload, quiet)
        self.number_of_next += 1
        if opcode in CHANGES:
            self.history.asked[opcode, key, ask.payload] += 1
            if opcode == O.DELETE:
                self.deletes_now(key)
        self.owed.append(ask)
        if self.world.story is not None:
            self.world.tell(self.name, "asks: %r", ask)
        self.left -= 1
        self.world.requests += 1
        return ask

    def compare(self, ask: Ask, cas: int) -> int:
        """The request is to be done only if its key has this CAS value."""
        ask.cas = cas
        if ask.opcode in STORES:
            self.history.compared[ask.value] = cas
        return cas

    def drops(self, key: bytes) -> None:
        """What it asks for takes the old value of a key away, and stores no other."""
        self.history.asked[O.DELETE, key, b""] += 1
        self.deletes_now(key)

    def deletes_now(self, key: bytes) -> None:
        self.present.pop(key, None)
        self.deletes[key] = self.deletes.get(key, 0) + 1

    # What follows from what it hears

    @property
    def may_be_refused(self) -> bool:
        """Whether a server may have refused its own login, which it may be told at any time."""
        world = self.world
        return world.auth == "passthrough" and (self.unknown or world.login_trouble)

    def is_refused(self) -> None:
        """Nothing more is taken of what it asks."""
        self.world.tell(self.name, "is refused")
        self.leaving = "is refused"
        self.owed.clear()
        self.sock.put_end()

    def welcomed(self, ask: Ask) -> None:
        """Its login is taken; what came behind it counts from now on."""
        world = self.world
        if self.unknown and world.degraded[O.SASL_AUTH] == ask.degraded:
            self.wrong("that it is welcome", ask)
        if world.auth == "passthrough":
            self.due = world.reactor.now + world.timeout + world.late + 2 * world.max_value / RATE

    def wrong(self, told: object, ask: object) -> None:
        self.world.fail(f"{self.name} was told {told} for {ask}")

    def in_time(self, ask: Ask, stop: int) -> None:
        """P3: the answer that ends at `stop` was written before its deadline."""
        world = self.world
        if world.story is not None:
            world.tell(self.name, "is told of %r", ask)
        world.checked += 1
        reads = self.sock.reads
        while reads and reads[0][0] < ask.end:
            reads.popleft()
        if not reads and self.leaving:
            return  # what is not let in is told so at its beginning
        writes = self.transport.writes
        while writes[0][0] < stop:
            writes.popleft()
        due = reads[0][1] + world.timeout + world.late + self.grace(ask)
        if due > self.due:
            self.due = due
        if writes[0][1] > self.due and not self.lenient:
            late = writes[0][1] - self.due
            world.fail(f"{self.name} was told {late * 1000:.0f} ms too late of {ask}")

    def grace(self, ask: Ask) -> float:
        """Seconds by which its deadline grows, for its bytes and those of its answer."""
        world = self.world
        longest = world.max_value if ask.key.endswith(b"-big") else world.largest
        return (len(ask.value) + 2 * longest) / RATE

    def raise_floor(self, key: bytes, server: int, version: int) -> None:
        none = self.history.no_floors
        for all_floors in (self.floors, self.history.acknowledged):
            floors = all_floors.get(key, none)
            if version > floors[server]:
                all_floors[key] = raised(floors, server, version)

    def read(self, ask: Ask, value: bytes, flags: int | bytes = b"", cas: int = 0) -> None:
        """P1 and P2: a value was read. `flags` are a number, or as they stand in a frame."""
        key = ask.key
        done = self.history.done.get(value)
        if done is None or done.key != key:
            self.wrong(f"{value[:80]!r}", ask)
            return
        if flags != b"" and flags not in (done.flags, int.from_bytes(done.flags, "big")):
            self.wrong(f"flags {flags!r}, not {done.flags!r}, of {value[:60]!r}", ask)
        if cas:
            if cas != done.cas:
                self.wrong(f"the CAS value {cas}, not {done.cas}, of {value[:60]!r}", ask)
            self.cas[key] = cas
        self._not_old(ask, value, done)
        if key == self.log:
            self._read_log(ask, value)

    def _not_old(self, ask: Ask, value: bytes, done: Done) -> None:
        server = done.server
        floor = ask.floors[server]
        known = self.floors.get(done.key)
        if known is not None and known[server] > floor:
            floor = known[server]
        if done.version < floor:
            self.wrong(
                f"an old value: {value[:60]!r} of version {done.version}, not {floor}, "
                f"of server{server},",
                ask,
            )
        if done.stamp >> NUMBER_BITS == self.number and done.stamp > (
            self.number << NUMBER_BITS | ask.number
        ):
            self.wrong(f"what it wrote later, {value[:60]!r},", ask)

    def _read_log(self, ask: Ask, value: bytes) -> None:
        """P5: nothing was joined to it twice."""
        parts = _LOG.fullmatch(value)
        if parts is None:
            self.wrong(f"{value[:80]!r}", ask)
            return
        joined = parts[1].split(b">") + parts[3].split(b">")
        joined = [part for part in joined if part]
        if len(set(joined)) != len(joined):
            self.wrong(f"{value[:80]!r}", ask)

    def missed(self, ask: Ask) -> None:
        """What it wrote itself is there, if nothing was lost or moved, and the tunnel says so."""
        world = self.world
        key = ask.key
        present = self.present.get(key)
        if (
            present is not None
            and present == (world.disturbed, ask.moves)
            and ask.moves == self.history.moves.get(key, 0)
            and world.degraded[ask.opcode] == ask.degraded
        ):
            self.wrong(f"that {key!r} is not there, and it is,", ask)

    def outcome(self, ask: Ask, status: int, others: frozenset[int] = frozenset()) -> None:
        """A change has come to this: as servers say it, or as the tunnel, which counts that.

        `others` are statuses by which this protocol tells what servers say, too.
        """
        world = self.world
        if (
            status not in _NATURAL[ask.opcode]
            and status not in others
            and not (ask.cas and status in _COMPARED)
            and not world.refused
            and world.degraded[ask.opcode] == ask.degraded
        ):
            self.wrong(f"status {status}, which nobody said,", ask)
        self.changed(ask, status)

    def changed(self, ask: Ask, status: int) -> None:
        """The outcome of a change is known."""
        opcode = ask.opcode
        history = self.history
        if opcode in STORES or opcode in JOINS:
            done = history.done.get(ask.key + ask.value if opcode in JOINS else ask.value)
            if status == Status.OK:
                if done is None:
                    self.world.fail(f"{self.name} was told that {ask} is done, and it is not")
                self._stored(ask, done)
            elif status in _COMPARED and done is not None:
                self.world.fail(f"{self.name} was told that {ask} is not done, and it is")
        elif opcode == O.DELETE:
            if status == Status.OK or (status == Status.NOT_FOUND and not ask.quiet):
                self._deleted(ask)
        elif status == Status.OK and not history.executed.get((opcode, ask.key, ask.payload)):
            self.world.fail(f"{self.name} was told that {ask} is done, and it is not")

    def _stored(self, ask: Ask, done: Done) -> None:
        key = ask.key
        self.raise_floor(key, done.server, done.version)
        if key.startswith(self.mine) and ask.deletes == self.deletes.get(key, 0):
            self.present[key] = ask.disturbed, done.moves

    def _deleted(self, ask: Ask) -> None:
        key = ask.key
        servers = self.history.deleted_by(key, ask.version)
        if not servers:
            self.world.fail(f"{self.name} was told that {ask} is done, and it is not")
        if len(servers) == 1:  # else it is not known which of them it was
            (server,) = servers
            known = self.floors.get(key, self.history.no_floors)[server]
            self.raise_floor(key, server, max(known, ask.version) + 1)

    def counted(self, ask: Ask, number: int) -> None:
        """A counter was set to this by what was asked."""
        result = self.history.results.get((ask.opcode, ask.key, ask.payload))
        if number != result:
            self.wrong(f"{number}, not {result},", ask)
