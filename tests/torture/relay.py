"""The fault relay: a process between the tunnel and its servers, one port for each of them.

It is told what to do by lines of JSON on its standard input, and answers each with one:

    ["add", 11211, null]        a server's port; -> the port to dial instead
    ["fault", 0, "delay", 0.2]  what happens from now on before server 0; -> null

With PEM files in place of null it ends TLS itself, sees the frames, and can lie. It ends when its
standard input does. Nothing here is remembered of a fault once another one is set, "none" included.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import sys
from collections import deque
from random import Random
from typing import Any

from memtunnel.wire.binary import HEADER_LENGTH, Opcode, answer, unpack_length

#: By name, what is done; the number that comes with a fault is given its meaning here.
FAULTS = {
    "none": "bytes pass",
    "delay": "bytes pass so many seconds later",
    "throttle": "so many bytes a second pass each way",
    "dribble": "bytes pass in pieces of so many",
    "stall": "connections are accepted, and nothing passes",
    "mute": "the server is asked, and its answers do not pass",
    "black-hole": "as stall, and who dials gets no answer at all",
    "refuse": "connections are reset, and refused",
    "reset": "this part of the connections that are there is reset",
    "cut": "each connection passes so many more bytes of answers, and is reset",
    "half-close": "the server seems to have closed its side, and still reads",
    "corrupt": "one byte of each connection's answers is changed",
    "lie": "an answer of each connection is made one of `LIES`, which comes in place of the number",
}
#: What it can do to an answer, where it ends TLS: all but the last is found out at once.
LIES = ("opaque", "opcode", "magic", "length", "duplicate", "unsolicited", "swallow")
#: Bytes that may wait for their time before more is read.
HIGH = 256 * 1024
#: Bytes that are let through together when they are throttled.
SLICE = 4096
#: Where it dials from: a port that is used here is not taken from those that listen.
SOURCE = ("127.0.0.3", 0)
RESET = struct.pack("ii", 1, 0)


class Pipe(asyncio.Protocol):
    """One direction of a link: what comes in here goes out at `sink`."""

    def __init__(self, link: Link, *, answers: bool) -> None:
        self.link = link
        self.answers = answers
        self.source: Any = None
        self.sink: Any = None
        self.held: set[str] = set()
        """Why nothing is read for now."""
        self.ended = False
        self.left: int | None = None
        """Bytes that pass before the cut."""
        self.spoil = False
        self.lie = ""
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._due = 0.0
        self._timer: Any = None
        self._frames = b""

    def connection_made(self, transport: Any) -> None:
        self.source = transport
        self.hold("link")
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.link.connected(self)

    def hold(self, why: str) -> None:
        self.held.add(why)
        if not self.ended and self.source is not None:
            self.source.pause_reading()

    def release(self, why: str) -> None:
        self.held.discard(why)
        if not self.held and not self.ended and self.source is not None:
            self.source.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.answers and self.link.relay.lies:
            data = self._with_lies(data)
        if self.spoil:
            self.spoil = False
            data = data[:-1] + bytes([data[-1] ^ 0x55])
        if self.left is not None:
            data, self.left = data[: self.left], max(0, self.left - len(data))
            self.sink.write(data)
            if not self.left:
                self.link.reset()
            return
        fault, amount = self.link.relay.fault, self.link.relay.amount
        if fault == "dribble":
            size = max(1, int(amount))
            # What is large would take for ever in the smallest pieces.
            for start in range(0, min(len(data), 200 * size), size):
                self._pass(data[start : start + size], 0.0)
            self._pass(data[200 * size :], 0.0)
        elif fault == "throttle":
            for start in range(0, len(data), SLICE):
                piece = data[start : start + SLICE]
                self._pass(piece, len(piece) / amount)
        else:
            self._pass(data, 0.0)

    def _pass(self, data: bytes, seconds: float) -> None:
        """Let bytes go, after `seconds` of their own and after those before them."""
        now = asyncio.get_running_loop().time()
        fault = self.link.relay.fault
        delay = self.link.relay.amount if fault == "delay" else 0.0
        if not self._waiting and not delay and not seconds:
            self.sink.write(data)
            return
        self._due = max(self._due, now + delay) + seconds
        self._waiting.append((self._due, data))
        self._size += len(data)
        if self._size > HIGH:
            self.hold("waiting")
        self._wait(now)

    def _wait(self, now: float) -> None:
        if self._timer is None and self._waiting:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, self._waiting[0][0] - now), self._let_go)

    def _let_go(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        hurry = self.link.relay.fault not in ("delay", "throttle")
        while self._waiting and (hurry or self._waiting[0][0] <= now + 0.0005):
            data = self._waiting.popleft()[1]
            self._size -= len(data)
            if not self.sink.is_closing():
                self.sink.write(data)
        if self._size < HIGH:
            self.release("waiting")
        self._wait(now)

    def forget(self) -> None:
        """Drop what waits."""
        self._waiting.clear()
        self._size = 0

    def _with_lies(self, data: bytes) -> bytes:
        """The answers that are whole by now, and a lie in place of the first if one is due."""
        self._frames += data
        said = []
        start = 0
        while len(self._frames) - start >= HEADER_LENGTH:
            stop = start + HEADER_LENGTH + unpack_length(self._frames, start)[0]
            if stop > len(self._frames):
                break
            frame = self._frames[start:stop]
            said.append(self._told(frame) if self.lie else frame)
            start = stop
        self._frames = self._frames[start:]
        return b"".join(said)

    def _told(self, frame: bytes) -> bytes:
        changed = bytearray(frame)
        lie, self.lie = self.lie, ""
        match lie:
            case "opaque":
                changed[12] ^= 0xA5
                changed[15] ^= 0x5A
            case "opcode":
                changed[1] = Opcode.VERSION
            case "magic":
                changed[0] = 0x80
            case "length":
                changed[2:4] = b"\xff\xff"
            case "duplicate":
                changed += frame
            case "unsolicited":
                changed += answer(Opcode.GET, b"\xde\xad\xbe\xef", value=b"nobody asked for this")
            case "swallow":
                changed.clear()
        return bytes(changed)

    def pause_writing(self) -> None:
        self.link.other(self).hold("full")

    def resume_writing(self) -> None:
        self.link.other(self).release("full")

    def eof_received(self) -> bool:
        self.ended = True
        if self.answers or self.link.relay.lies:
            return False  # a server that closes, or the end of TLS: the whole link goes
        with contextlib.suppress(OSError, RuntimeError):
            if self.sink is not None and self.sink.can_write_eof():
                self.sink.write_eof()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        if self._timer is not None:
            self._timer.cancel()
        self.link.lost(error)


class Link:
    """One connection of the tunnel's, and ours to the server that goes with it."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.asks = Pipe(self, answers=False)
        self.answers = Pipe(self, answers=True)
        relay.links[self] = None

    def other(self, pipe: Pipe) -> Pipe:
        return self.answers if pipe is self.asks else self.asks

    def connected(self, pipe: Pipe) -> None:
        if self not in self.relay.links:
            pipe.source.abort()
            return
        self.other(pipe).sink = pipe.source
        if pipe is self.answers:
            self.relay.weather(self)
            self.asks.release("link")
            self.answers.release("link")

    def half_close(self) -> None:
        near = self.asks.source
        if near is not None and near.can_write_eof() and not near.is_closing():
            self.answers.hold("half-closed")
            self.answers.forget()
            near.write_eof()

    def reset(self) -> None:
        near = self.asks.source
        if near is not None:
            with contextlib.suppress(OSError):
                sock = near.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.lost(ConnectionResetError())

    def lost(self, error: Exception | None) -> None:
        if self.relay.links.pop(self, self) is self:
            return
        for transport in (self.asks.source, self.answers.source):
            if transport is not None:
                if error is None:
                    transport.close()
                else:
                    transport.abort()


class Relay:
    """What stands before one server. With `pems` (certificate, key) it ends TLS."""

    def __init__(self, target: int, pems: list[str] | None) -> None:
        self.target = target
        self.lies = pems is not None
        self.fault = "none"
        self.amount = 0.0
        self.links: dict[Link, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._fillers: list[socket.socket] = []
        self._near: ssl.SSLContext | None = None
        self._far: ssl.SSLContext | None = None
        if pems is not None:
            self._near = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._near.load_cert_chain(*pems)
            self._far = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._far.check_hostname = False
            self._far.verify_mode = ssl.CERT_NONE
        self.port = 0
        self._listener: Any = None
        self._listen()

    def _listen(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(128)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._accept_more(True)

    def _accept_more(self, more: bool) -> None:
        loop = asyncio.get_running_loop()
        if more:
            loop.add_reader(self._listener, self._accept)
        else:
            loop.remove_reader(self._listener)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            task = asyncio.get_running_loop().create_task(self._join(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _join(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        link = Link(self)
        sock.setblocking(False)
        try:
            await loop.connect_accepted_socket(lambda: link.asks, sock, ssl=self._near)
            await loop.create_connection(
                lambda: link.answers,
                "127.0.0.1",
                self.target,
                ssl=self._far,
                local_addr=SOURCE,
            )
        except (OSError, asyncio.CancelledError):
            link.reset()
            sock.close()

    def weather(self, link: Link) -> None:
        """Let a link know what happens to all."""
        stalled = self.fault in ("stall", "black-hole")
        for pipe, held in (link.asks, stalled), (link.answers, stalled or self.fault == "mute"):
            if held:
                pipe.hold("fault")
            else:
                pipe.release("fault")

    def set(self, fault: str, amount: float | str) -> None:
        assert fault in FAULTS, fault
        before, self.fault = self.fault, fault
        self.amount = amount if isinstance(amount, float) else 0.0
        if before == "refuse":
            self._listen()
        elif before == "black-hole":
            while self._fillers:
                self._fillers.pop().close()
            self._listener.listen(128)
            self._accept_more(True)
        random = Random(str(amount))
        for link in list(self.links):
            answers = link.answers
            answers.left, answers.spoil, answers.lie = None, False, ""
            self.weather(link)
            if fault == "refuse" or (fault == "reset" and random.random() < self.amount):
                link.reset()
            elif fault == "cut":
                answers.left = random.randint(1, max(2, int(self.amount)))
            elif fault == "corrupt":
                answers.spoil = True
            elif fault == "half-close":
                link.half_close()
            elif fault == "lie":
                answers.lie = str(amount)
        if fault in ("refuse", "black-hole"):
            self._accept_more(False)
        if fault == "refuse":
            self._listener.close()
        elif fault == "black-hole":
            # A queue that is full: the kernel leaves who dials without an answer.
            self._listener.listen(0)
            for _ in range(2):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", self.port))
                self._fillers.append(filler)


async def main() -> None:
    relays: list[Relay] = []
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        what, *words = json.loads(line)
        said = None
        if what == "add":
            relays.append(Relay(*words))
            said = relays[-1].port
        else:
            relays[words[0]].set(*words[1:])
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
