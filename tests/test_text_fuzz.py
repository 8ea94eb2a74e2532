"""However the bytes of a text client are cut, they say the same; and no bytes break the tunnel."""

from collections.abc import Iterable

from core_harness import House
from hypothesis import given, settings
from hypothesis import strategies as st
from text_conversations import COMMANDS, CUTS, ODD_LINES, PREFIX, SPOILERS, filled_in

from memtunnel.core.text_session import TextSession
from memtunnel.wire.binary import Frame

WORDS = (
    b"get gets gat set add cas append incr decr touch delete mg ms md ma mn version stats".split()
)
FRAGMENTS = (
    *(*WORDS, *SPOILERS, *ODD_LINES[:60], PREFIX + b"a", PREFIX + b"b", b"noreply"),
    *(
        b" ",
        b" ",
        b"  ",
        b"\r\n",
        b"\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b" 0 0 3\r\nabc\r\n",
        b" 3\r\nabc\r\n",
    ),
)
#: Not so much that a line could get too long: that it is shows only when its end is not there.
SOUP = st.lists(st.sampled_from(FRAGMENTS), max_size=60).map(b"".join)
RIGHT = st.lists(COMMANDS, max_size=20).map(
    lambda drawn: b"".join(step.data for steps in drawn for step in steps)
)
BYTES = st.one_of(
    st.binary(max_size=1000), SOUP, RIGHT, st.tuples(RIGHT, SOUP, RIGHT).map(b"".join)
)

Told = tuple[bytes, bool, list[Frame]]


def pieces(data: bytes, sizes: list[int]) -> Iterable[bytes]:
    """Of these lengths, over and over; all at once where there are none."""
    at = 0
    while at < len(data):
        for size in sizes or [len(data)]:
            yield data[at : at + size]
            at += size


def told(data: bytes, sizes: list[int]) -> Told:
    """What a client hears, whether it is closed before it ends, and what a server is asked."""
    house = House()
    (link,) = house.links
    client = house.client(TextSession)
    asked: list[Frame] = []

    def serve() -> None:
        while True:
            client.take_turn()
            link.pull()
            if not link.asked:
                break
            asked.extend(frame._replace(opaque=b"") for frame in link.asked)
            link.deliver(link.execute())

    for piece in pieces(data, sizes):
        client.send(piece)
        while client.session.held and not client.session.full:
            client.take_turn()
    serve()
    closed = client.closed
    if not closed:
        client.half_close()
        serve()
    assert client.closed
    assert house.budget.used == 0
    assert not link.mux.load
    assert link.distrust is None
    return client.received, closed, asked


@settings(max_examples=300, deadline=None)
@given(data=BYTES, sizes=CUTS)
def test_bytes_say_the_same_however_they_are_cut(data: bytes, sizes: list[int]) -> None:
    data = filled_in(data, PREFIX, {})
    assert told(data, sizes) == told(data, [])


@settings(max_examples=300, deadline=None)
@given(data=BYTES, at=st.integers(0, 2000), servers=st.integers(1, 3))
def test_a_client_that_leaves_anywhere_leaves_nothing_behind(
    data: bytes, at: int, servers: int
) -> None:
    house = House(servers)
    client = house.client(TextSession)
    client.send(filled_in(data, PREFIX, {})[:at])
    client.leave()
    house.serve()
    assert house.budget.used == 0
    assert not any(link.mux.load for link in house.links)
