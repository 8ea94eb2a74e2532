"""Houses that are lived in over and over.

To build one for each conversation, and to have the collector find what is left of it, takes twice
as long as all the rest of most conversations. A house in which something went wrong is not given
back.
"""

from collections.abc import Callable, Hashable

from core_harness import House, ListenerCounts

from memtunnel.core.breaker import Breaker

#: What the first opaque of a house is.
FIRST = 0xFFFFFFF0
#: When each conversation begins.
START = 1000.0

_empty: dict[Hashable, House] = {}


def taken(kind: Hashable, build: Callable[[], House], connections: int = 1) -> House:
    """A house like a new one, with so many connections to each server; `build` makes it without."""
    house = _empty.pop(kind, None) or build()
    house.now = START
    house._next_opaque = FIRST
    for _ in range(connections):
        for index in range(len(house.servers)):
            house.connect(index)
    return house


def give_back(kind: Hashable, house: House) -> None:
    """The conversation is over, and nothing waits any more: that is for its target to check."""
    for client in house.clients:
        del client.session  # they know each other, which only the collector would find out
    house.clients.clear()
    house.links.clear()
    house.listener = ListenerCounts()
    house.counts.told.clear()
    for counts in (house.counts.local, *house.server_counts):
        counts.settled.clear()
        counts.retries.clear()
        counts.failovers = 0
    for server in house.servers:
        server.connections.clear()
        server.breaker = Breaker()
        server.refusing = False
    for store in house.stores:
        store.items.clear()
        store.executed.clear()
        store._cas = 0
    _empty[kind] = house
