"""10,000 clients connect, ask, stay idle, ask again, and leave.

They come from several addresses of 127.0.0.0/8, half of them speak binary and half text, and each
knows what it has to read. What an idle client costs is the memory that the tunnel has more while
they are there; its processes have served some clients before, so that what they take once for all
does not count.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from typing import Any

import servers

from memtunnel.wire.binary import Opcode, answer, request
from torture.scorecard import Options, Row
from torture.stage import Vitals, staged

CLIENTS = 10_000
#: Clients that come first, for what is taken once for all.
WARM_UP = 200
#: How many connect, or ask, at a time.
TOGETHER = 100
KEYS = 500
#: Descriptors of the clients' process beside the clients' own.
SPARE = 200


class Idler(asyncio.Protocol):
    """A client that asks for one key when it is told to."""

    def __init__(self, number: int) -> None:
        key, value = b"idle-%d" % (number % KEYS), value_of(number % KEYS)
        if number % 2:
            self._asks = request(Opcode.GET, key)
            self._wants = answer(Opcode.GET, bytes(4), extras=bytes(4), value=value)
        else:
            self._asks = b"get %s\r\n" % key
            self._wants = b"VALUE %s 0 %d\r\n%s\r\nEND\r\n" % (key, len(value), value)
        self._number = number
        self._heard = b""
        self._done: asyncio.Future[bool] | None = None
        self._transport: Any = None

    async def connect(self, port: int) -> bool:
        loop = asyncio.get_running_loop()
        source = (f"127.0.1.{1 + self._number % 8}", 0)
        try:
            await loop.create_connection(lambda: self, "127.0.0.1", port, local_addr=source)
        except OSError:
            return False
        return await self.ask()

    async def ask(self) -> bool:
        """Whether the answer was right."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._heard = b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(self._asks)
        try:
            return await asyncio.wait_for(self._done, servers.PATIENCE)
        except TimeoutError:
            return False

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._heard += data
        if len(self._heard) >= len(self._wants):
            # The version of the value is the server's to choose.
            said = self._heard[:16] + bytes(8) + self._heard[24:]
            self._tell(self._wants in (self._heard, said))

    def connection_lost(self, error: Exception | None) -> None:
        self._tell(False)

    def _tell(self, right: bool) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(right)


def value_of(number: int) -> bytes:
    return b"the value of %d" % number


def groups(clients: list[Idler]) -> Iterator[list[Idler]]:
    return (clients[start : start + TOGETHER] for start in range(0, len(clients), TOGETHER))


def run(options: Options) -> list[Row]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(options.times or CLIENTS, hard - SPARE)
    with staged(options, count=1) as stage:
        tunnel = stage.make_tunnel(f"--max-clients={CLIENTS + WARM_UP}", servers.PATIENT)
        tunnel.start().wait_ready()
        for number in range(KEYS):
            wire = servers.Wire(tunnel.port)
            assert wire.set(b"idle-%d" % number, value_of(number)).status == 0
            wire.close()
        vitals = Vitals(tunnel)
        asyncio.run(_come_and_go(tunnel.port, WARM_UP, None))
        begun = vitals.memory(), vitals.descriptors()
        wrong, there, seen = asyncio.run(_come_and_go(tunnel.port, count, vitals))
        servers.wait_until(
            lambda: vitals.descriptors() <= begun[1], "all clients' descriptors are closed"
        )
        left = vitals.memory()
        ended = "Traceback" in tunnel.log()
    each = (there - begun[0]) / 1024 / count
    rows = [
        ("wrong or missing answers", "0", f"{wrong} of {2 * count:,}", not wrong),
        ("clients that were there at one time", f"{count:,}", f"{seen:,}", seen == count),
        ("memory of an idle client", "at most 20 KiB", f"{each:.1f} KiB", each <= 20),
        ("tracebacks in the log", "0", str(int(ended)), not ended),
    ]
    found = [
        Row(part="clients", name=name, target=target, figure=figure, ok=ok)
        for name, target, figure, ok in rows
    ]
    figures = " / ".join(f"{size / 2**20:.1f}" for size in (begun[0], there, left))
    name = "memory before, with them, after"
    return [*found, Row(part="clients", name=name, figure=f"{figures} MiB, {count:,} clients")]


async def _come_and_go(port: int, count: int, vitals: Vitals | None) -> tuple[int, int, int]:
    """How many answers were wrong; the tunnel's memory with all clients, and how many it saw."""
    clients = [Idler(number) for number in range(count)]
    right = 0
    for some in groups(clients):
        right += sum(await asyncio.gather(*(client.connect(port) for client in some)))
    there = vitals.memory() if vitals is not None else 0
    seen = int(vitals.tunnel.metric("memtunnel_client_connections")) if vitals is not None else 0
    for some in groups(clients):
        right += sum(await asyncio.gather(*(client.ask() for client in some)))
    for client in clients:
        client.close()
    await asyncio.sleep(0)
    return 2 * count - right, there, seen
