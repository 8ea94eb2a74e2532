"""Clients that check every answer: what both protocols have in common.

A client asks in batches, at its share of the load's rate, and holds what it asked in the order of
asking. `binary_load` and `text_load` say how things are asked and answered; here is when, with
which manners, and what is noted of it. Nothing is asserted: what is wrong is counted in
`Load.problems`, by the first word, and told.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import Counter, deque
from random import Random
from typing import Any

from memtunnel.core.deadlines import LONGEST, RATE
from memtunnel.core.routing import router
from torture.history import Key, Server

#: Where the clients come from: a port that they use is not taken from those that listen.
SOURCE = ("127.0.0.2", 0)
RESET = struct.pack("ii", 1, 0)
#: Keys of each writer; of every fourth one the value is deleted now and then.
KEYS = 12
#: Problems that are kept in words.
TOLD = 40
#: Seconds for which answers may be owed at the end before they are missing.
PATIENCE = 15.0


class Ask:
    """One request whose answer is owed."""

    __slots__ = ("at", "ceiling", "floor", "key", "kind", "life", "number", "quiet", "size", "word")

    def __init__(self, kind: str, key: Any = None, number: int = 0, quiet: bool = False) -> None:
        self.kind = kind
        """What it asks: see who made it."""
        self.key = key
        self.number = number
        """Of a write: the key's."""
        self.quiet = quiet
        self.word: Any = None
        """What its answer bears: an opaque, or the keys of a line."""
        self.at = 0.0
        self.size = 0
        """Bytes of request and answer by which its deadline grows."""
        if isinstance(key, Key):
            self.floor = key.acknowledged
            self.ceiling = key.asked
            self.life = key.server.life


class Load:
    """All clients of one tunnel at `port`, `rate` requests a second in all."""

    def __init__(
        self,
        port: int,
        names: list[str],
        seed: str,
        *,
        rate: float,
        timeout: float = 0.4,
        tag: bytes = b"",
    ) -> None:
        self.port = port
        self.seed = seed
        self._tag = tag
        """Begins all keys, so that what other loads have left is not found."""
        self.rate = rate
        self.timeout = timeout
        self.servers = [Server(name) for name in names]
        self._router = router("ketama", names)
        self.clients: list[Client] = []
        self.keys: list[Key] = []
        self.problems: Counter[str] = Counter()
        self.told: list[str] = []
        self.requests = 0
        self.settled = 0
        self.hits = 0
        self.misses = 0
        self.refused = 0
        self.excused = 0
        self.late = 0
        self.worst = 0.0
        """Seconds by which the latest answer was behind its deadline."""
        self.stopping = False
        self.large_values = True
        self.keys_move = False
        """Whether servers come and go, so that what is read may be older than what was written."""
        self.may_close = False
        """Whether the tunnel may close connections: it was told to end."""

    def key(self, name: bytes, writer: int) -> Key:
        name = self._tag + name
        return Key(name, writer, self.servers[self._router.server_of(name)])

    def problem(self, words: str) -> None:
        self.problems[words.split(":")[0]] += 1
        if len(self.told) < TOLD:
            self.told.append(words)

    def add(self, kinds: list[type[Client]], manners: list[str]) -> None:
        """Clients for all of `manners`; their kinds take turns."""
        for manner in manners:
            number = len(self.clients)
            client = kinds[number % len(kinds)](self, number, manner)
            self.clients.append(client)
            self.keys += client.own

    async def start(self) -> None:
        for client in self.clients:
            await client.connect()

    async def stop(self) -> None:
        """Ask no more, and wait for what is owed."""
        self.stopping = True
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE
        while any(client.owed for client in self.clients) and loop.time() < until:
            await asyncio.sleep(0.02)
        for client in self.clients:
            for ask in client.owed:
                self.problem(f"missing: {client}: no answer to {ask.kind} {ask.key}")
            client.leave()
        await asyncio.sleep(0)

    def late_by(self, seconds: float) -> None:
        if seconds > 0.05:
            self.late += 1
        self.worst = max(self.worst, seconds)


class Client(asyncio.Protocol):
    """One client, which reconnects when it has left.

    Manners: "plain"; "leaver" (leaves now and then with answers owed); "half-closer" (closes its
    side after a batch, and wants all answers and then the end); "slow-writer" (a few bytes at a
    time); "slow-reader" (does not read for seconds).
    """

    def __init__(self, load: Load, number: int, manner: str) -> None:
        self.load = load
        self.number = number
        self.manner = manner
        self.random = Random(f"{load.seed}-client-{number}")
        self.own = [load.key(b"%d.%d" % (number, index), number) for index in range(KEYS)]
        self.owed: deque[Ask] = deque()
        self.buffer = b""
        self.transport: Any = None
        self.greatest = 10 if manner in ("slow-writer", "slow-reader") else 40
        """Requests in a batch."""
        self._due = 0.0
        """When the latest of the deadlines is that are under way."""
        self._next = 0.0
        """When it is this client's turn to ask."""
        self._asking: Any = None
        self._unsaid = b""
        self._closed_own_side = False
        self._left = True

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.number} ({self.manner})"

    @property
    def connected(self) -> bool:
        return not self._left

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        self.buffer = self._unsaid = b""
        self._closed_own_side = self._left = False
        try:
            await loop.create_connection(
                lambda: self, "127.0.0.1", self.load.port, local_addr=SOURCE
            )
        except OSError as problem:
            if not self.load.may_close:
                self.load.problem(f"closed: {self}: cannot connect: {problem}")

    # What the two protocols say

    def batch(self, count: int) -> bytes:
        """The bytes of about `count` requests, whose asks are now owed."""
        raise NotImplementedError

    def read(self, now: float) -> None:
        """Take all whole answers off `buffer`."""
        raise NotImplementedError

    # Asking

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._next = asyncio.get_running_loop().time() + self.random.random() * 0.05
        self._ask_later()

    def _ask_later(self) -> None:
        if self._asking is None and not self.load.stopping and not self._left:
            loop = asyncio.get_running_loop()
            self._asking = loop.call_later(max(0.0, self._next - loop.time()), self._ask)

    def _ask(self) -> None:
        self._asking = None
        if self._left or self.load.stopping or self._closed_own_side or self._unsaid:
            return
        if len(self.owed) > self.greatest:
            return  # asked again when there is room
        load = self.load
        now = asyncio.get_running_loop().time()
        before = len(self.owed)
        # Some are deep, most are not.
        count = self.greatest * 5 if self.random.random() < 0.02 else self.greatest
        data = self.batch(self.random.randint(1, count))
        asked = len(self.owed) - before
        load.requests += asked
        for index in range(before, len(self.owed)):
            ask = self.owed[index]
            ask.at = now
            self._due = max(self._due, now + load.timeout + min(ask.size / RATE, LONGEST))
        self._next = max(now, self._next) + asked * len(load.clients) / load.rate
        if self.manner == "slow-writer":
            self._unsaid = data
            self._say_some()
        else:
            self.transport.write(data)
        manners = self.random.random()
        if self.manner == "leaver" and manners < 0.05:
            self.leave()
            self._come_again()
        elif self.manner == "half-closer" and manners < 0.05:
            self._closed_own_side = True
            self.transport.write_eof()
        elif self.manner == "slow-reader" and manners < 0.2:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(manners * 15, self._read_again)
            self._ask_later()
        else:
            self._ask_later()

    def _say_some(self) -> None:
        if self._left:
            return
        count = self.random.randint(1, 9) if len(self._unsaid) < 4000 else len(self._unsaid) // 100
        piece, self._unsaid = self._unsaid[:count], self._unsaid[count:]
        self.transport.write(piece)
        if self._unsaid:
            asyncio.get_running_loop().call_later(0.001, self._say_some)
        else:
            now = asyncio.get_running_loop().time()
            self._due = max(self._due, now + self.load.timeout + LONGEST)
            self._ask_later()

    def _read_again(self) -> None:
        if not self._left:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        now = asyncio.get_running_loop().time()
        before = len(self.owed)
        self.read(now)
        settled = before - len(self.owed)
        if settled:
            self.load.settled += settled
            if self._due and self.manner in ("plain", "leaver"):
                self.load.late_by(now - self._due)
            if not self.owed:
                self._due = 0.0
        if len(self.owed) <= self.greatest:
            self._ask_later()

    # Going

    def leave(self) -> None:
        """Close with whatever is owed; what came of the writes stays unknown."""
        self._left = True
        for ask in self.owed:
            self.unanswered(ask)
        self.owed.clear()
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None
        if self.transport is not None:
            with contextlib.suppress(OSError):
                sock = self.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()
            self.transport = None

    def unanswered(self, ask: Ask) -> None:
        """Nobody will say what came of this."""
        raise NotImplementedError

    def _come_again(self) -> None:
        if not self.load.stopping:
            self._again = asyncio.get_running_loop().create_task(self.connect())

    def eof_received(self) -> bool:
        if self._closed_own_side and not self.owed:
            self.leave()
            self._come_again()
        elif not self._left and not self.load.may_close:
            self.load.problem(f"closed: {self}: {len(self.owed)} answers are owed")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self._left:
            return
        if error is not None and not self.load.may_close:
            self.load.problem(f"closed: {self}: {error}")
        self._left = True

    # What is common to judging answers

    def wrong(self, words: str) -> None:
        """Something that cannot be: no more is read from this connection."""
        self.load.problem(f"{words} ({self})")
        self.leave()
        self._come_again()

    def size(self) -> int:
        """The length of a value: most are small."""
        draw = self.random.random()
        if draw < 0.005 and self.load.large_values:
            return self.random.randint(20_000, 300_000)
        return self.random.randint(40, 200 if draw < 0.6 else 2000)

    def any_key(self) -> Key:
        return self.random.choice(self.load.keys if self.random.random() < 0.3 else self.own)

    def hit(self, ask: Ask, key: Key, value: bytes, now: float) -> None:
        own = key.writer == self.number
        # Answers come in order: what is acknowledged of one's own by now was asked before.
        floor = key.acknowledged if own else ask.floor
        verdict = key.judge(value, floor, ask.ceiling if own else key.asked)
        moved = verdict.startswith("stale") and self.load.keys_move
        if verdict == "excused" or moved:
            self.load.excused += 1
        elif verdict:
            self.load.problem(f"{verdict} ({self})")
        self.load.hits += 1
        key.server.said_well(now)

    def stored(self, ask: Ask, now: float) -> None:
        ask.key.succeeded(ask.number, ask.life, delete=ask.kind == "delete")
        ask.key.server.said_well(now)

    def not_stored(self, ask: Ask) -> None:
        ask.key.failed(ask.number, delete=ask.kind == "delete")
        self.load.refused += 1
