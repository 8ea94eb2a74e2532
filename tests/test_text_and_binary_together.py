"""Clients of both protocols on one tunnel: values, flags, CAS values and counters are the same."""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import servers

from memtunnel.wire.binary import Opcode, Status


@pytest.fixture
def tunnel(
    make_memcached: Callable[..., servers.Memcached], make_tunnel: Callable[..., servers.Tunnel]
) -> servers.Tunnel:
    return make_tunnel(make_memcached(), make_memcached(), flags=(servers.PATIENT,))


@pytest.fixture
def text(tunnel: servers.Tunnel) -> Iterator[Callable[[bytes], bytes]]:
    """Asks, and returns all that is told up to an ``mn`` behind it."""
    with closing(socket.create_connection(("127.0.0.1", tunnel.port), servers.PATIENCE)) as client:

        def ask(asked: bytes) -> bytes:
            client.sendall(asked + b"mn\r\n")
            told = b""
            while not told.endswith(b"MN\r\n"):
                data = client.recv(1 << 16)
                assert data, told
                told += data
            return told.removesuffix(b"MN\r\n")

        yield ask


@pytest.fixture
def binary(tunnel: servers.Tunnel, connect: Callable[..., servers.Wire]) -> servers.Wire:
    return connect(tunnel)


Text = Callable[[bytes], bytes]


@pytest.mark.parametrize("value", [b"", b"hello", b"\r\nEND\r\n", bytes(range(256)) * 500])
def test_values_and_flags(text: Text, binary: servers.Wire, value: bytes) -> None:
    for number in range(10):  # on both servers
        key = b"key%d" % number
        assert text(b"set %b %d 0 %d\r\n%b\r\n" % (key, 3000000000, len(value), value)) == (
            b"STORED\r\n"
        )
        found = binary.get(key)
        assert (found.status, found.value) == (Status.OK, value)
        assert found.extras == (3000000000).to_bytes(4, "big")
        assert binary.set(key, value + b"!", flags=7).status == Status.OK
        assert text(b"get %b\r\n" % key) == (
            b"VALUE %b 7 %d\r\n%b!\r\nEND\r\n" % (key, len(value) + 1, value)
        )
        assert text(b"mg %b f v\r\n" % key) == b"VA %d f7\r\n%b!\r\n" % (len(value) + 1, value)
        assert binary.ask(Opcode.DELETE, key).status == Status.OK
        assert text(b"gets %b\r\n" % key) == b"END\r\n"


def test_cas_values(text: Text, binary: servers.Wire) -> None:
    stored = binary.set(b"k", b"one")
    unique = int(text(b"gets k\r\n").split()[4])
    assert unique == stored.cas
    assert text(b"mg k c\r\n") == b"HD c%d\r\n" % unique
    assert text(b"cas k 0 0 3 %d\r\ntwo\r\n" % unique) == b"STORED\r\n"
    assert text(b"cas k 0 0 3 %d\r\ntwo\r\n" % unique) == b"EXISTS\r\n"
    assert text(b"ms k 3 C%d\r\ntwo\r\n" % unique) == b"EX\r\n"
    stale = binary.ask(Opcode.SET, b"k", extras=bytes(8), value=b"three", cas=unique)
    assert stale.status == Status.EXISTS
    now = binary.get(b"k")
    assert now.value == b"two"
    told = text(b"ms k 4 c C%d\r\nfour\r\n" % now.cas)
    (after,) = re.findall(rb"HD c(\d+)\r\n", told)
    assert binary.get(b"k").cas == int(after)
    assert binary.ask(Opcode.DELETE, b"k", cas=now.cas).status == Status.EXISTS
    assert text(b"md k C%b\r\n" % after) == b"HD\r\n"


def test_counters(text: Text, binary: servers.Wire) -> None:
    extras = (5).to_bytes(8, "big") + (10).to_bytes(8, "big") + bytes(4)
    assert binary.ask(Opcode.INCR, b"n", extras=extras).value == (10).to_bytes(8, "big")
    assert text(b"incr n 1\r\nget n\r\n") == b"11\r\nVALUE n 0 2\r\n11\r\nEND\r\n"
    assert binary.ask(Opcode.INCR, b"n", extras=extras).value == (16).to_bytes(8, "big")
    assert text(b"ma n MD D10 v\r\ndecr n 100\r\nma m N0 J7\r\n") == b"VA 1\r\n6\r\n0\r\nHD\r\n"
    assert binary.ask(Opcode.DECR, b"m", extras=extras).value == (2).to_bytes(8, "big")


def test_a_negative_time_of_expiry_is_over_at_once_for_both(
    text: Text, binary: servers.Wire
) -> None:
    assert text(b"set k 0 -1 1\r\nx\r\nget k\r\n") == b"STORED\r\nEND\r\n"
    assert binary.get(b"k").status == Status.NOT_FOUND
    assert text(b"set k 0 100 1\r\nx\r\ntouch k -1\r\nget k\r\n") == b"STORED\r\nTOUCHED\r\nEND\r\n"
    assert binary.get(b"k").status == Status.NOT_FOUND


def test_keys_in_base64_are_those_that_they_stand_for(text: Text, binary: servers.Wire) -> None:
    key = b"\0 key \r\n"
    assert binary.set(key, b"value").status == Status.OK
    assert text(b"mg ACBrZXkgDQo= b k v\r\n") == b"VA 5 kACBrZXkgDQo= b\r\nvalue\r\n"
    assert text(b"md ACBrZXkgDQo= b\r\n") == b"HD\r\n"
    assert binary.get(key).status == Status.NOT_FOUND


def test_the_demo_command_is_answered(tunnel: servers.Tunnel) -> None:
    with closing(socket.create_connection(("127.0.0.1", tunnel.port), servers.PATIENCE)) as client:
        client.sendall(b"set a 0 0 1\r\nx\r\nget a\r\n")
        client.shutdown(socket.SHUT_WR)  # as nc -N does
        told = b""
        while data := client.recv(1 << 16):
            told += data
    assert told == b"STORED\r\nVALUE a 0 1\r\nx\r\nEND\r\n"
