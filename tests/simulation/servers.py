"""The servers of the simulation: what they keep, how they fail, and how they lie.

TLS is left out: its records and its crypto are OpenSSL's, and would take most of the time. In its
place stands `PlainTLS`, which ends a handshake after a drawn time with a drawn result: fine,
a certificate with another name, cut off, or never.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core_harness import Store
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from memtunnel.core.mux import MAX_BODY
from memtunnel.core.outcomes import Lost
from memtunnel.net.tls import Untrusted
from memtunnel.wire.binary import (
    LOUD,
    READS,
    Frame,
    Opcode,
    Status,
    answer,
    split,
)
from simulation.history import (
    CHANGES,
    COUNTS,
    NUMBER_BITS,
    STAMPED,
    STORES,
    History,
    stamp_of,
    what_of,
)
from simulation.network import REFUSED, UNREACHABLE, Peer, Socket

if TYPE_CHECKING:
    from simulation.world import World

_READ = frozenset((*READS, Opcode.GAT, Opcode.GATK))
_KEPT = CHANGES - {Opcode.DELETE, Opcode.TOUCH, Opcode.GAT, Opcode.GATK}
_KEYED = CHANGES | READS
_BEFORE = frozenset((Opcode.SASL_AUTH, Opcode.VERSION, Opcode.NOOP))
#: What is so wrong that the tunnel has to give up the connection.
LIES = ("opaque", "opcode", "magic", "length", "size", "duplicate", "unsolicited")
#: What is bad, but may be said.
REFUSALS = (0x02, 0x05, 0x06, 0x20, 0x81, 0x82, 0x85, 0x86)


class Host:
    """One server: what it keeps outlives its connections."""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.name = f"server{index}"
        self.stores = {history: self._new_store() for history in world.histories}
        """What it keeps, by login."""
        self.answers_dials = "yes"
        """Or no, never, unreachable; or unknown, where its name is not found."""
        self.takes_login = True
        self.handshakes = "fine"
        self.stalled = False
        self.hangs = False
        """NOOP is answered, nothing else."""
        self.connections: dict[Connection, None] = {}
        self.last: dict[tuple[bytes, int], int] = {}
        """By key and writer, the stamp of the last request that was carried out."""
        self.lies_told = 0
        draw = world.random.random
        bad = draw() < 0.5
        self.lies = draw() * 0.006 if bad else 0.0
        self.refusals = draw() * 0.01 if bad else 0.0
        self.resets = draw() * 0.003 if bad else 0.0
        self.halves = draw() * 0.001 if bad else 0.0
        self.monsters = draw() * 0.003 if bad else 0.0

    def heal(self) -> None:
        self.answers_dials, self.takes_login, self.handshakes = "yes", True, "fine"
        self.lies = self.refusals = self.resets = self.halves = self.monsters = 0.0
        self.hangs = False
        self.resume()

    def dialled(self, sock: Socket) -> None:
        world = self.world
        delay = world.random.random() * 0.003
        if self.answers_dials == "yes":
            sock.peer = Connection(self, sock)
            world.reactor.at(delay, sock.established)
        elif self.answers_dials != "never":
            code = REFUSED if self.answers_dials == "no" else UNREACHABLE
            world.reactor.at(delay, sock.established, code)

    def stall(self, *, data_only: bool) -> None:
        self.stalled, self.hangs = not data_only, data_only
        if self.stalled:
            for connection in self.connections:
                connection.stall()

    def resume(self) -> None:
        self.stalled = self.hangs = False
        for connection in list(self.connections):
            connection.resume()

    def restart(self, *, loses: bool) -> None:
        if loses:
            self.world.disturbed += 1
            for store in self.stores.values():
                store.items.clear()
        for connection in list(self.connections):
            connection.reset()

    def _new_store(self) -> Store:
        store = Store(self.name)
        store._cas = self.index << 32  # no CAS value is that of another server's, too
        return store

    def execute(self, frame: Frame, history: History) -> bytes:
        """Carry out a data request, and note when in the order of all that was."""
        world = self.world
        opcode = frame.opcode
        key = frame.key
        store = self.stores[history]
        if world.story is not None:
            world.tell(self.name, "%s %r %r", Opcode(opcode).name, key, frame.value[:40])
        if history.served.get(key) != self.index and opcode in _KEYED:
            world.moved(history, key, self.index)
        if opcode in READS:
            item = store.items.get(key)
            if item is not None:
                shown = key if opcode == Opcode.GETK else b""
                return answer(
                    opcode, frame.opaque, extras=item[0], key=shown, value=item[1], cas=item[2]
                )
        elif opcode in CHANGES:
            what = what_of(frame)
            if not history.execute(what):
                world.fail(f"{self.name} was asked for what nobody asked for so often: {frame!r}")
            if opcode in STORES and frame.cas != history.compared.get(frame.value, 0):
                world.fail(f"{self.name} was asked to compare another CAS value: {frame!r}")
        elif opcode == Opcode.FLUSH:
            world.disturbed += 1
        said = store.execute(frame)
        if opcode in _KEPT and said[7] == Status.OK:
            history.keep(frame, self.index, store.items[key])
            if opcode in COUNTS:
                history.results[what] = int.from_bytes(said[24:], "big")
        elif opcode == Opcode.DELETE:
            history.deleted(key, self.index)
        return said


class Connection(Peer):
    """One connection to a server, seen from there."""

    def __init__(self, host: Host, sock: Socket) -> None:
        self.host = host
        self.world = host.world
        self.sock = sock
        self.over = False
        self.trusted = True
        self.silent = False
        self.kept = False
        """Whether nothing has happened for which the tunnel might close it."""
        self.stalled = False
        self.lied = ""
        self.history: History | None = None
        """Of the login that it has."""
        self.proven = False
        self._rest = b""
        self._asked: list[Frame] = []
        host.connections[self] = None
        sock.slowness = host.world.random.choice((1.0, 1.0, 3.0))

    def received(self, data: bytes) -> None:
        if self.over:
            return
        if not self.trusted:
            self.world.fail(f"{len(data)} bytes for {self.host.name}, which is not trusted")
        frames, self._rest = split(self._rest + data)
        self._asked += frames
        self.work()

    def ended(self, reset: bool) -> None:
        if self.kept and not self.world.stopped:
            self.world.fail(f"a connection to {self.host.name} was closed without a reason")
        if not self.over:
            if self._asked and self.world.random.random() < 0.5:
                # What has arrived may still be carried out.
                for frame in self._asked:
                    if self.history and frame.opcode not in _BEFORE and not self.silent:
                        self.host.execute(frame, self.history)
            self.close()
            self.sock.put_end()

    def stall(self) -> None:
        """Answer nothing more for now, and maybe read nothing either."""
        self.stalled = True
        self.patient = self.patient or self.world.random.random() < 0.5

    def resume(self) -> None:
        self.stalled = self.patient = False
        self.sock.drain()
        self.work()

    def reset(self) -> None:
        if not self.over:
            self.sock.break_off()

    def close(self) -> None:
        self.over = True
        self.host.connections.pop(self, None)

    def work(self) -> None:
        host = self.host
        if self.over or self.silent or self.stalled or host.stalled or not self._asked:
            return
        random = self.world.random
        asked, self._asked = self._asked, []
        said: list[bytes] = []
        for place, frame in enumerate(asked):
            opcode = frame.opcode
            if LOUD[opcode] != opcode:
                self.world.fail(f"{host.name} was sent a quiet request: {frame!r}")
            if opcode in _BEFORE:
                said.append(self._set_up(frame))
                continue
            if not self.proven or self.history is None:
                self.world.fail(f"{host.name} was asked before login and NOOP: {frame!r}")
            if host.hangs:
                self._asked = asked[place:]
                break
            draw = random.random()
            if draw < host.refusals:
                status = random.choice(REFUSALS)
                self.world.tell(host.name, "refuses with 0x%02x", status)
                self.world.refused = True
                said.append(answer(opcode, frame.opaque, status, value=b"because"))
                continue
            if opcode in STAMPED and not self.sock.closed and not self.sock.broken:
                self._keep_order(frame)
            frame_said = host.execute(frame, self.history)
            draw = random.random()
            if draw < host.lies and not self.lied:
                frame_said = self._lie(frame, frame_said)
            if draw > 1.0 - host.resets:
                orderly = random.random() < 0.5
                self.world.tell(host.name, "%s a connection", "closes" if orderly else "cuts")
                if said:
                    self.sock.put(b"".join(said))
                if orderly:
                    self.sock.put_end()
                    self.close()
                else:
                    self.reset()
                return
            if random.random() < host.halves:
                self.world.tell(host.name, "stops in the middle of an answer")
                said.append(frame_said[: random.randrange(len(frame_said))])
                self.silent = True
                break
            if opcode in _READ and not self.lied and random.random() < host.monsters:
                self.world.tell(host.name, "answers with a value that is too large")
                monster = b"x" * (self.world.max_value + 1 + random.randrange(5000))
                frame_said = answer(opcode, frame.opaque, extras=bytes(4), value=monster)
                self.world.disturbed += 1
            said.append(frame_said)
        if said:
            self.sock.put(b"".join(said))

    def _keep_order(self, frame: Frame) -> None:
        """P2: what one client asks for is carried out in its order, while a connection lives."""
        stamp = stamp_of(frame)
        last = self.host.last
        by = frame.key, stamp >> NUMBER_BITS
        if stamp < last.get(by, 0):
            self.world.fail(f"{self.host.name} has carried out a later request before {frame!r}")
        last[by] = stamp

    def _set_up(self, frame: Frame) -> bytes:
        world = self.world
        if frame.opcode == Opcode.SASL_AUTH:
            self.history = world.logins.get(frame.value) if self.host.takes_login else None
            if self.history is None:
                if self.host.takes_login and world.auth != "passthrough":
                    world.fail(f"another login came to {self.host.name}")
                world.login_trouble = world.login_trouble or frame.value in world.logins
                return answer(frame.opcode, frame.opaque, Status.AUTH_FAILED, value=b"Auth failure")
        elif self.history is None and frame.opcode == Opcode.NOOP:
            world.fail(f"{self.host.name} was asked before the login: {frame!r}")
        if frame.opcode == Opcode.NOOP:
            self.proven = True
        value = b"1.6.18" if frame.opcode == Opcode.VERSION else b""
        return answer(frame.opcode, frame.opaque, value=value)

    def _lie(self, frame: Frame, truth: bytes) -> bytes:
        random = self.world.random
        self.lied = random.choice(LIES)
        self.host.lies_told += 1
        self.world.tell(self.host.name, "lies about the %s", self.lied)
        self.world.reactor.at(2.5, self._was_believed)
        said = bytearray(truth)
        if self.lied == "opaque":
            said[12] ^= random.randrange(1, 256)
        elif self.lied == "opcode":
            said[1] = random.choice([o for o in (0, 1, 4, 10, 16, 28) if o != frame.opcode])
        elif self.lied == "magic":
            said[0] = random.choice((0x80, 0x00, 0x48))
        elif self.lied == "length":
            said[2:4] = b"\xff\xff"
        elif self.lied == "size":
            said[8:12] = (MAX_BODY + random.randint(1, 1000)).to_bytes(4, "big")
        elif self.lied == "duplicate":
            said += truth
        else:
            opaque = bytes((truth[12] ^ 0x55,)) + truth[13:16]
            said[:0] = answer(random.choice((0, 1, 10)), opaque)
        return bytes(said)

    def _was_believed(self) -> None:
        if not self.over and not self.sock.closed:
            self.world.fail(f"{self.host.name} has lied about the {self.lied}, and was believed")


class PlainTLS(Protocol):
    """Stands between an `Upstream` and its transport, where TLS is."""

    def __init__(self, world: World, wrapped: Any) -> None:
        self.world = world
        self.wrapped = wrapped
        self.done = False
        self.over = False
        self.outcome = "fine"

    def connectionMade(self) -> None:
        self.peer: Connection = self.transport.socket.peer  # type: ignore[union-attr]
        self.outcome = self.peer.host.handshakes
        self.peer.trusted = False
        self.wrapped.makeConnection(self)
        if self.outcome != "never shaken":
            delay = 0.001 + 0.01 * self.world.random.random()
            self.world.reactor.at(delay, self._end_handshake)

    def _end_handshake(self) -> None:
        if self.over:
            return
        if self.outcome == "cut":
            self.peer.reset()
            return
        self.done = True
        self.peer.trusted = self.outcome == "fine"
        self.wrapped.handshakeCompleted()

    def dataReceived(self, data: bytes) -> None:
        if not self.over:
            self.wrapped.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.over = True
        self.wrapped.connectionLost(reason)

    def write(self, data: bytes) -> None:
        if not self.done:
            self.world.problem("written before the handshake")
        self.transport.write(data)  # type: ignore[union-attr]

    def abortConnection(self) -> None:
        self.over = True
        self.transport.abortConnection()  # type: ignore[union-attr]

    def getHandle(self) -> PlainTLS:
        return self

    def get_protocol_version_name(self) -> str:
        return "TLSv1.3"

    def get_cipher_name(self) -> str:
        return "none"

    def loseConnection(self) -> None:
        self.transport.loseConnection()  # type: ignore[union-attr]

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.transport.registerProducer(producer, streaming)  # type: ignore[union-attr]

    def unregisterProducer(self) -> None:
        self.transport.unregisterProducer()  # type: ignore[union-attr]

    def setTcpNoDelay(self, enabled: bool) -> None: ...

    def setTcpKeepAlive(self, enabled: bool) -> None: ...


class PlainTLSFactory(Factory):
    noisy = False

    def __init__(self, world: World, wrapped: Any) -> None:
        self._world = world
        self._wrapped = wrapped

    def buildProtocol(self, addr: Any) -> PlainTLS | None:
        wrapped = self._wrapped.buildProtocol(addr)
        return None if wrapped is None else PlainTLS(self._world, wrapped)


class _PlainExpectation:
    """In place of what is expected of a certificate."""

    problem = None

    def handshake(self) -> _PlainExpectation:
        return self

    def verify(self, connection: PlainTLS) -> None:
        if connection.outcome == "untrusted":
            raise Untrusted(Lost.CERTIFICATE_NAME, "the certificate bears another name")


EXPECTATION = _PlainExpectation()
