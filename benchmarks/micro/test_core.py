"""What the pure core costs: one client or many, one request per read or many.

    pytest benchmarks/micro

Each round is all of a reactor turn without the reactor: what clients sent is scanned, taken for
the connection, matched with what the server says, and delivered. Times are those of a round;
its name says of how many frames. `PARTS` has the steps one by one.
"""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from memtunnel.core.binary_session import BinarySession
from memtunnel.core.budget import Budget
from memtunnel.core.cluster import Cluster
from memtunnel.core.mux import Multiplexer
from memtunnel.core.routing import router
from memtunnel.core.server import Server
from memtunnel.core.session import Session
from memtunnel.core.text_session import TextSession
from memtunnel.core.tunnel import Policy, Tunnel
from memtunnel.ops.metrics import Metrics
from memtunnel.wire.binary import Opcode, answer, request

VALUE = b"v" * 100
#: Clients, and frames in each of their reads.
SHAPES = [(1, 1), (1, 50), (50, 1), (200, 1)]


class Client:
    """The connection of a session; it writes to nowhere."""

    def write(self, data: bytes | bytearray) -> bool:
        return True

    def look(self) -> None:
        raise AssertionError("nothing is unread")

    def notice(self, what: str) -> None:
        raise AssertionError(what)


def binary_get(key: bytes, number: int) -> bytes:
    return request(Opcode.GET, key, opaque=number.to_bytes(4, "big"))


def text_get(key: bytes, number: int) -> bytes:
    return b"get %b\r\n" % key


PROTOCOLS: dict[str, tuple[type[Session], Callable[[bytes, int], bytes]]] = {
    "binary": (BinarySession, binary_get),
    "text": (TextSession, text_get),
}


class House:
    """A tunnel with one server and one connection to it, and clients."""

    def __init__(self, protocol: str, clients: int, frames: int) -> None:
        metrics = Metrics(version="", python="", twisted="", openssl="", reactor="")
        budget = Budget(1 << 30)
        server = Server("server", metrics.server("server"), budget)
        policy = Policy()
        self.tunnel = Tunnel(
            policy, Cluster([server], router("ketama", ["server"])), budget, metrics, lambda: None
        )
        self.first = 1
        self.mux = Multiplexer(self.first, lambda: None, policy.max_value_size)
        server.add(self.mux, 0.0)
        self.sessions: list[Session] = []
        speaks, get = PROTOCOLS[protocol]
        for _ in range(clients):
            self.sessions.append(speaks(self.tunnel, metrics.listener("listener"), Client()))
        self.read = b"".join(get(b"memtier-%d" % number, number) for number in range(frames))
        self.frames = clients * frames
        self.clock = count(1)

    def scan(self) -> None:
        now = float(next(self.clock))
        for session in self.sessions:
            session.receive(self.read, now)

    def take(self) -> None:
        self.mux.take(float(next(self.clock)))

    def answers(self) -> bytes:
        """What the server says to all that was taken."""
        opaques = range(self.first, self.first + self.frames)
        self.first += self.frames
        return b"".join(
            answer(Opcode.GET, opaque.to_bytes(4, "big"), extras=bytes(4), value=VALUE)
            for opaque in opaques
        )

    def match(self, data: bytes) -> None:
        """Match and deliver, which are one pass."""
        self.mux.receive(data, float(next(self.clock)))

    def flush(self) -> None:
        self.tunnel.flush()

    def sweep(self) -> None:
        self.tunnel.sweep(float(next(self.clock)))


#: Each step, and those that have to come before and after it, unmeasured.
PARTS = ("scan", "take", "match and deliver", "sweep")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("clients", "frames"), SHAPES)
@pytest.mark.parametrize("part", PARTS)
def test_part(benchmark: Any, part: str, protocol: str, clients: int, frames: int) -> None:
    house = House(protocol, clients, frames)

    def before() -> tuple[tuple[bytes], dict[str, Any]]:
        if part == "take" and house.mux.in_flight:
            house.match(house.answers())  # before a sweep finds them late: each step is a second
        house.flush()
        house.sweep()
        if part == "scan":
            house.take()
            # What was scanned in the last round is answered now.
            if house.mux.in_flight:
                house.match(house.answers())
            house.flush()
            house.sweep()
            return (b"",), {}
        house.scan()
        if part != "take":
            house.take()
        data = b"" if part == "take" else house.answers()
        if part == "sweep":
            house.match(data)
            house.flush()
        return (data,), {}

    steps: dict[str, Callable[[bytes], None]] = {
        "scan": lambda data: house.scan(),
        "take": lambda data: house.take(),
        "match and deliver": house.match,
        "sweep": lambda data: house.sweep(),
    }
    benchmark.group = part
    benchmark.pedantic(steps[part], setup=before, rounds=max(200, 100_000 // house.frames // 5))
    tell_per_frame(benchmark, house.frames)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("clients", "frames"), SHAPES)
def test_turn(benchmark: Any, protocol: str, clients: int, frames: int) -> None:
    house = House(protocol, clients, frames)
    said = [house.answers() for _ in range(max(200, 100_000 // house.frames // 5) + 1)]
    said.reverse()

    def turn() -> None:
        house.scan()
        house.take()
        house.match(said.pop())
        house.flush()
        house.sweep()

    benchmark.group = "a whole turn"
    benchmark.pedantic(turn, rounds=len(said) - 1)
    tell_per_frame(benchmark, house.frames)


def tell_per_frame(benchmark: Any, frames: int) -> None:
    if benchmark.stats is not None:  # measured, not only tried out
        median = benchmark.stats.stats.median / frames
        benchmark.extra_info["microseconds_per_frame"] = round(median * 1e6, 3)
        print(f"\n{benchmark.name}: {median * 1e6:.2f} µs per frame")
