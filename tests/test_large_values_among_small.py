"""What is pipelined after a large value is answered.

memcached forgets what OpenSSL has decrypted behind the end of a value: a request that shares a
TLS record with that is not seen before more bytes come.
"""

from collections.abc import Callable

import pytest
import servers
from hypothesis import given
from hypothesis import strategies as st

from memtunnel.wire import binary
from memtunnel.wire.binary import HEADER_LENGTH, Opcode, Status

LONGEST = 200


def store(value: bytes, key: bytes = b"k") -> bytes:
    return binary.request(Opcode.SET, key, extras=bytes(8), value=value)


@given(st.lists(st.integers(0, 2 * LONGEST), min_size=1))
def test_pieces_are_whole_requests_and_as_long_as_they_may_be(sizes: list[int]) -> None:
    frames = [store(bytes(size)) for size in sizes]
    pieces = list(binary.pieces(b"".join(frames), LONGEST))
    assert b"".join(pieces) == b"".join(frames)
    cut = [binary.split(piece) for piece in pieces]
    assert all(whole and not rest for whole, rest in cut)
    for piece, (whole, _) in zip(pieces, cut, strict=True):
        assert len(piece) <= LONGEST or len(whole) == 1
    for piece, (after, _) in zip(pieces[:-1], cut[1:], strict=True):
        first = after[0]
        size = HEADER_LENGTH + len(first.extras + first.key + first.value)
        assert len(piece) + size > LONGEST, "it would have fitted"


@pytest.mark.parametrize("size", [1_000, 20_000, 40_000, 500_000])
def test_a_request_behind_a_value_is_answered(
    size: int,
    make_memcached: Callable[..., servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
) -> None:
    tunnel = make_tunnel(make_memcached())
    client = connect(tunnel)
    value = b"v" * size
    for _ in range(5):
        client.send(store(value), binary.request(Opcode.GETK, b"k"), store(b"w", b"l"))
        stored, found, last = client.read(3)
        assert (stored.status, found.status, last.status) == (Status.OK, Status.OK, Status.OK)
        assert found.value == value
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0


def test_a_crowd_of_small_values_is_answered(
    make_memcached: Callable[..., servers.Memcached],
    make_tunnel: Callable[..., servers.Tunnel],
    connect: Callable[..., servers.Wire],
) -> None:
    tunnel = make_tunnel(make_memcached(), flags=("--pool-size=1",))
    client = connect(tunnel)
    for _ in range(20):
        # In one turn: more than one record holds, with a value on its edge.
        client.send(*[store(b"v" * 600)] * 60)
        assert {frame.status for frame in client.read(60)} == {Status.OK}
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0
