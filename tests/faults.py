"""What a server does that leaves a request without an answer, and a server that does it.

A `Fault` takes a request and its right answer, and tells what comes in its place. It knows
nothing of connections: tests of the core apply it in memory, `FaultyServer` over TLS.
"""

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import authority
import servers
from core_harness import Store

from memtunnel.core.mux import MAX_BODY, MAX_OTHER
from memtunnel.wire.binary import GETS, Frame, Opcode, Status, answer, split

#: Bytes of the largest value that a tunnel under test lets pass.
LARGEST = 2000


class Then(Enum):
    """What comes after the bytes that a server says in place of an answer."""

    GO_ON = "go on"
    SILENCE = "silence"
    """Nothing more, until it is well again; then the rest of the right answer."""
    CLOSE = "close"
    RESET = "reset"


class Said(NamedTuple):
    data: bytes
    then: Then = Then.GO_ON


Fault = Callable[[Frame, bytes], Said]


def well(frame: Frame, truth: bytes) -> Said:
    return Said(truth)


def silence(frame: Frame, truth: bytes) -> Said:
    return Said(b"", Then.SILENCE)


def reset(frame: Frame, truth: bytes) -> Said:
    return Said(b"", Then.RESET)


def close(frame: Frame, truth: bytes) -> Said:
    return Said(b"", Then.CLOSE)


def half_and_silence(frame: Frame, truth: bytes) -> Said:
    return Said(truth[: len(truth) // 2], Then.SILENCE)


def half_and_reset(frame: Frame, truth: bytes) -> Said:
    return Said(truth[: len(truth) // 2], Then.RESET)


def refuses(status: int, body: bytes = b"because") -> Fault:
    """Every answer has this status."""

    def fault(frame: Frame, truth: bytes) -> Said:
        return Said(answer(frame.opcode, frame.opaque, status, value=body))

    return fault


def too_large(frame: Frame, truth: bytes) -> Said:
    """A success with more bytes than may pass."""
    opcode, opaque = frame.opcode, frame.opaque
    if opcode in GETS:
        return Said(answer(opcode, opaque, extras=bytes(4), value=bytes(LARGEST + 1)))
    said = answer(opcode, opaque, key=frame.key or b"k", value=bytes(MAX_OTHER + 1))
    return Said(said + (answer(opcode, opaque) if opcode == Opcode.STAT else b""))


def endless(frame: Frame, truth: bytes) -> Said:
    """The header of an answer that is longer than any."""
    return Said(truth[:8] + (MAX_BODY + 1).to_bytes(4, "big") + truth[12:])


def wrong_magic(frame: Frame, truth: bytes) -> Said:
    return Said(b"\x80" + truth[1:])


def wrong_length(frame: Frame, truth: bytes) -> Said:
    return Said(truth[:2] + b"\xff\xff" + truth[4:])


def wrong_opaque(frame: Frame, truth: bytes) -> Said:
    return Said(truth[:12] + bytes((truth[12] ^ 0x55,)) + truth[13:])


def wrong_opcode(frame: Frame, truth: bytes) -> Said:
    other = Opcode.GAT if frame.opcode == Opcode.GET else Opcode.GET
    return Said(truth[:1] + bytes((other,)) + truth[2:])


def unsolicited(frame: Frame, truth: bytes) -> Said:
    return Said(wrong_opaque(frame, truth).data + truth)


def duplicates() -> Fault:
    """The answer to the request before comes again, and only then the right one."""
    before = b""

    def fault(frame: Frame, truth: bytes) -> Said:
        nonlocal before
        said, before = before + truth, truth
        return Said(said)

    return fault


def swaps() -> Fault:
    """Whoever asks is told what the one before was told, under an opaque of its own."""
    before = b""

    def fault(frame: Frame, truth: bytes) -> Said:
        nonlocal before
        others, before = before or truth, truth
        return wrong_opaque(frame, others)

    return fault


#: What tells that a server has lost its place in the stream.
LIES: dict[str, Callable[[], Fault]] = {
    "magic": lambda: wrong_magic,
    "length": lambda: wrong_length,
    "endless length": lambda: endless,
    "opaque": lambda: wrong_opaque,
    "opcode": lambda: wrong_opcode,
    "answer before": lambda: unsolicited,
}


def lies() -> Fault:
    """All of the lies, in turn."""
    kinds = [*(make() for make in LIES.values()), duplicates(), swaps()]
    told = 0

    def fault(frame: Frame, truth: bytes) -> Said:
        nonlocal told
        told += 1
        return kinds[told % len(kinds)](frame, truth)

    return fault


class FaultyServer:
    """A memcache server with TLS and a login, `start`ed and `stop`ped at will on the same port.

    It carries out all that it is asked, and what it says of that is told by `fault`. It runs in a
    thread of its own.
    """

    def __init__(self, pair: authority.Pair, folder: Path) -> None:
        self.port = servers.free_port()
        self.store = Store()
        self.fault: Fault = well
        self.takes_logins = True
        self.connections: set[Connection] = set()
        self._pair = pair
        self._folder = folder
        self._silent: socket.socket | None = None
        self._listening: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._is_itself = False

    # As what it listens

    def start(self, pair: authority.Pair | None = None) -> "FaultyServer":
        """Listen; with a `pair`, under another certificate than its own."""
        shown = pair or self._pair
        (self._folder / "cert.pem").write_bytes(shown.pem)
        (self._folder / "key.pem").write_bytes(shown.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._folder / "cert.pem", self._folder / "key.pem")
        self._serve(lambda: Connection(self), context)
        self._is_itself = pair is None
        return self

    def start_over_its_limit(self) -> None:
        """Refuse all clients, as memcached does then, in clear text."""
        self._serve(Full, None)

    def start_silent(self) -> None:
        """Connections are made by the kernel, and nobody speaks on them."""
        self._silent = socket.create_server(("127.0.0.1", self.port))

    def stop(self) -> None:
        """Listen no more, and end all connections."""
        self._is_itself = False
        if self._silent is not None:
            self._silent.close()
            self._silent = None
        if self._thread is not None:
            self._run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(servers.PATIENCE)
            self._thread = None
            self._loop.close()

    # While it listens

    def drop(self) -> None:
        """End all connections."""
        self._run(self._drop())

    def heal(self) -> None:
        """Be itself, do from now on what is right, and say what was kept back."""
        self.takes_logins = True
        self.fault = well
        if not self._is_itself:
            self.stop()
            self.start()
        self._run(self._say_what_was_kept())

    # In the thread of its own

    def truth(self, frame: Frame) -> bytes:
        """Carry out a request; its right answer."""
        opcode, opaque = frame.opcode, frame.opaque
        if opcode == Opcode.SASL_AUTH:
            right = self.takes_logins and frame.value == LOGIN
            return answer(opcode, opaque, Status.OK if right else Status.AUTH_FAILED)
        if opcode == Opcode.VERSION:
            return answer(opcode, opaque, value=b"1.6.18")
        return self.store.execute(frame)

    def _serve(
        self, protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        listening = self._loop.create_server(protocol, "127.0.0.1", self.port, ssl=context)
        self._listening = self._run(listening)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(servers.PATIENCE)

    async def _drop(self) -> None:
        for connection in list(self.connections):
            connection.transport.abort()
        while self.connections:
            await asyncio.sleep(0)

    async def _end(self) -> None:
        assert self._listening is not None
        self._listening.close()
        await self._drop()

    async def _say_what_was_kept(self) -> None:
        for connection in self.connections:
            connection.say_what_was_kept()


class Connection(asyncio.Protocol):
    """One client of a `FaultyServer`."""

    transport: Any

    def __init__(self, server: FaultyServer) -> None:
        self._server = server
        self._left = b""
        self._kept = b""
        """What it should have said, and did not."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._server.connections.add(self)

    def connection_lost(self, problem: Exception | None) -> None:
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        frames, self._left = split(self._left + data)
        for frame in frames:
            truth = self._server.truth(frame)
            if self._kept:
                self._kept += truth
                continue
            said = Said(truth) if frame.opcode in SET_UP else self._server.fault(frame, truth)
            self.transport.write(said.data)
            if said.then is Then.SILENCE:
                self._kept = truth[len(said.data) :]
            elif said.then is Then.CLOSE:
                self.transport.close()
                break
            elif said.then is Then.RESET:
                raw = self.transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.transport.abort()
                break

    def say_what_was_kept(self) -> None:
        self.transport.write(self._kept)
        self._kept = b""


class Full(asyncio.Protocol):
    """memcached over its connection limit."""

    def connection_made(self, transport: Any) -> None:
        transport.write(b"ERROR Too many open connections\r\n")
        transport.close()


LOGIN = f"\0{servers.USERNAME}\0{servers.PASSWORD}".encode()
#: What makes a connection warm, and no fault is about.
SET_UP = frozenset((Opcode.SASL_AUTH, Opcode.VERSION, Opcode.NOOP))
