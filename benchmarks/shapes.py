"""The shapes of load: who asks for what, how often, and which figures it is about."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Measure(StrEnum):
    """What is measured of a contender in a round."""

    THROUGHPUT = "throughput"
    """Requests in a second."""
    P50 = "p50"
    """Seconds within which half of the requests are answered, once a client is connected."""
    P99 = "p99"
    P999 = "p99.9"
    WHOLE = "whole"
    """Seconds that a client spends on a request, connecting included."""
    CPU = "cpu"
    """Seconds of a contender's processor time that go into a request."""
    MEMORY = "memory"
    """Bytes of a contender."""
    CONNECTIONS = "connections"
    """Connections that it keeps to the server."""


@dataclass(frozen=True)
class Values:
    """Values of one size, under memtier's names for the keys from `first` to `last`."""

    size: int
    first: int
    last: int

    @property
    def keys(self) -> list[bytes]:
        return [b"memtier-%d" % number for number in range(self.first, self.last + 1)]


SMALL = Values(100, 1, 10_000)
MIDDLE = Values(10_000, 10_001, 11_000)
LARGE = Values(500_000, 11_001, 11_100)
VALUES = (SMALL, MIDDLE, LARGE)


@dataclass(frozen=True, kw_only=True)
class Load:
    """Clients that ask without a pause, one set to ten gets."""

    clients: int = 50
    pipeline: int = 1
    """Requests that a client has on the way."""
    values: Values = SMALL
    reconnect: int = 0
    """Requests after which a client connects anew; 0 is never."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Loads that run at the same time. The first is the one that counts."""

    name: str
    title: str
    loads: tuple[Load, ...] = ()
    idle: int = 0
    """Clients that have asked once and stay connected."""
    far: bool = False
    """Whether the server is `ROUND_TRIP` away."""
    about: tuple[Measure, ...] = (Measure.THROUGHPUT, Measure.CPU)
    """What is compared."""

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "Shape":
        """The shape that `dataclasses.asdict` and JSON made this of."""
        loads = tuple(
            Load(**{**load, "values": Values(**load["values"])}) for load in saved["loads"]
        )
        return cls(**{**saved, "loads": loads, "about": tuple(map(Measure, saved["about"]))})


#: Milliseconds.
ROUND_TRIP = 2.0

LATENCY = (Measure.THROUGHPUT, Measure.P50)

SHAPES = (
    Shape(
        name="idle",
        title="1,000 idle clients",
        idle=1000,
        about=(Measure.MEMORY, Measure.CONNECTIONS),
    ),
    Shape(name="1x1", title="1 client", loads=(Load(clients=1),), about=LATENCY),
    Shape(name="50x1", title="50 clients", loads=(Load(),)),
    Shape(name="200x1", title="200 clients", loads=(Load(clients=200),)),
    Shape(name="1000x1", title="1,000 clients", loads=(Load(clients=1000),)),
    Shape(name="50x10", title="50 clients, pipelines of 10", loads=(Load(pipeline=10),)),
    Shape(name="50x50", title="50 clients, pipelines of 50", loads=(Load(pipeline=50),)),
    Shape(name="10kB", title="50 clients, values of 10 kB", loads=(Load(values=MIDDLE),)),
    Shape(name="500kB", title="50 clients, values of 500 kB", loads=(Load(values=LARGE),)),
    Shape(
        name="mixed",
        title="50 clients beside 2 with values of 500 kB",
        loads=(Load(), Load(clients=2, values=LARGE)),
        about=(Measure.P99, Measure.THROUGHPUT),
    ),
    Shape(
        name="reconnect",
        title="20 clients, a connection for every request",
        loads=(Load(clients=20, reconnect=1),),
    ),
    Shape(
        name="reconnect-10",
        title="20 clients, a connection for every 10 requests",
        loads=(Load(clients=20, reconnect=10),),
    ),
    Shape(
        name="far",
        title="50 clients, server 2 ms away",
        loads=(Load(),),
        far=True,
        about=LATENCY,
    ),
    Shape(
        name="far-reconnect",
        title="1 client, a connection for every request, server 2 ms away",
        loads=(Load(clients=1, reconnect=1),),
        far=True,
        about=(Measure.WHOLE,),
    ),
)
