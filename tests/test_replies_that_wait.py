"""A degraded reply that waits for earlier ones is told, whatever becomes of its connection.

The reply to a write whose deadline has passed stays in its request until its turn comes. The
server may still answer meanwhile, or the connection be lost: neither takes the reply away. A
client that missed it would take every later answer for the one before.
"""

import pytest
from core_harness import Client, House, O, bare, get, store

from memtunnel.core.binary_session import BinarySession
from memtunnel.core.session import Session
from memtunnel.core.text_session import TextSession
from memtunnel.wire.binary import Status
from memtunnel.wire.command import UNAVAILABLE

#: Of a size that adds to its deadline, so that the small write behind it times out first.
LARGE = b"x" * 200_000


def ask(house: House, speaks: type[Session], large: bytes, small: bytes) -> Client:
    """A client stores a large value and deletes another one; both are written, and one is late."""
    client = house.client(speaks)
    if speaks is BinarySession:
        client.send(store(large, LARGE, 1) + get(small, 2, O.DELETE) + bare(O.NOOP, 3))
    else:
        head = b"set %b 0 0 %d\r\n" % (large, len(LARGE))
        client.send(head + LARGE + b"\r\ndelete %b\r\nmn\r\n" % small)
    for link in house.links:
        link.pull()
    house.pass_time(0.42)
    assert client.received == b""
    assert len(house.degraded) == 1
    return client


@pytest.mark.parametrize("speaks", [BinarySession, TextSession])
def test_where_its_connection_is_lost(speaks: type[Session]) -> None:
    house = House()
    client = ask(house, speaks, b"a", b"b")
    house.links[0].lose()
    if speaks is BinarySession:
        refused = Status.NOT_STORED
        assert client.told == [(O.SET, 1, refused), (O.DELETE, 2, refused), (O.NOOP, 3, 0)]
    else:
        assert client.received == b"NOT_STORED\r\n" + UNAVAILABLE + b"MN\r\n"
    assert house.budget.used == 0


@pytest.mark.parametrize("speaks", [BinarySession, TextSession])
def test_where_its_answer_comes_after_all(speaks: type[Session]) -> None:
    house = House(2)
    client = ask(house, speaks, house.key_on(0), house.key_on(1))
    house.links[1].deliver(house.links[1].execute())
    assert client.received == b""
    house.links[0].deliver(house.links[0].execute())
    if speaks is BinarySession:
        assert client.told == [(O.SET, 1, 0), (O.DELETE, 2, Status.NOT_STORED), (O.NOOP, 3, 0)]
    else:
        assert client.received == b"STORED\r\n" + UNAVAILABLE + b"MN\r\n"
    assert house.budget.used == 0
