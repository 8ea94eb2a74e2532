"""What a memcache server answers, byte for byte: the embedded server against memcached itself.

Every test of the contract runs on both, with and without TLS and a login: where one fails on
the embedded server alone, that server lies. What takes a clock in hand, and what memcached
cannot be asked, is tested on the embedded server below.
"""

import contextlib
import itertools
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import pack
from typing import Any

import authority
import pytest
import pytest_twisted
import servers
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol

from memtunnel.demo import DemoServer, Store
from memtunnel.wire.binary import (
    ANSWER_MAGIC,
    GETS,
    LOUD,
    QUIET,
    STATUS_TEXT,
    Frame,
    Opcode,
    Status,
    request,
)

O = Opcode  # noqa: E741
FLAGS = bytes.fromhex("deadbeef")
LATER = pack(">I", 100_000)
PAST = pack(">I", 2_592_001)
NEVER = pack(">I", 0)
STORE_EXTRAS = FLAGS + NEVER
#: The longest value under a key of one byte with flags.
LONGEST = (1 << 20) - 64
WRONG_CAS = 0xFFFF_FFFF_FFFF_FFF0


@dataclass(frozen=True)
class Address:
    """Where a server under test is, and what it wants to see."""

    port: int
    ca: str | None = None
    login: bytes | None = None
    """What PLAIN sends."""


class Client(servers.Wire):
    """Speaks frames over TCP or TLS; every request has an opaque of its own, which must return."""

    def __init__(self, address: Address) -> None:
        super().__init__(address.port)
        self._opaques = itertools.count(0xFFFF_FF00)
        if address.ca is not None:
            context = ssl.create_default_context(cadata=address.ca)
            self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")

    def ask(self, opcode: int, key: bytes = b"", **parts: Any) -> Frame:
        opaque = pack(">I", next(self._opaques) & 0xFFFF_FFFF)
        frame = super().ask(opcode, key, opaque=opaque, **parts)
        assert (frame.magic, frame.opcode, frame.opaque) == (ANSWER_MAGIC, opcode, opaque)
        return frame

    def log_in(self, message: bytes, opcode: int = O.SASL_AUTH) -> Frame:
        return self.ask(opcode, b"PLAIN", value=message)

    def store(self, key: bytes, value: bytes, opcode: int = O.SET, cas: int = 0) -> Frame:
        return self.ask(opcode, key, extras=STORE_EXTRAS, value=value, cas=cas)

    def answers(self, *requests: bytes) -> list[Frame]:
        """What these requests are answered with, up to the NOOP that follows them."""
        fence = b"END!"
        self.send(*requests, request(O.NOOP, opaque=fence))
        frames = []
        while True:
            (frame,) = self.read()
            if frame.opaque == fence:
                assert frame == Frame(ANSWER_MAGIC, O.NOOP, 0, fence, 0, b"", b"", b"")
                return frames
            frames.append(frame)

    def is_in_step(self) -> bool:
        return self.answers() == []


def succeeded(
    frame: Frame, *, cas: bool, extras: bytes = b"", key: bytes = b"", value: bytes = b""
) -> bool:
    """Whether an answer is exactly this, with a CAS or with none."""
    parts = (frame.status, frame.extras, frame.key, frame.value)
    return parts == (Status.OK, extras, key, value) and (frame.cas != 0) == cas


def refused(frame: Frame, status: int) -> bool:
    """Whether an answer is an error in memcached's words, with nothing else in it."""
    parts = (frame.status, frame.cas, frame.extras, frame.key, frame.value)
    return parts == (status, 0, b"", b"", STATUS_TEXT[status])


# The servers


@contextlib.contextmanager
def running_demo(*arguments: str) -> Iterator[Address]:
    command = [sys.executable, "-m", "memtunnel.demo", *arguments]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            shown = json.loads(process.stdout.readline())
            login = None
            if "username" in shown:
                login = f"\0{shown['username']}\0{shown['password']}".encode()
            yield Address(shown["port"], shown.get("ca"), login)
        finally:
            process.kill()


@contextlib.contextmanager
def running_memcached(memcached: servers.Memcached, **address: Any) -> Iterator[Address]:
    try:
        memcached.start()
        yield Address(memcached.port, **address)
    finally:
        memcached.stop()


@pytest.fixture(scope="module", params=["demo", "memcached"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A server without TLS and without a login."""
    with contextlib.ExitStack() as stack:
        if kind == "demo":
            yield stack.enter_context(running_demo("--plain"))
        else:
            folder = tmp_path_factory.mktemp("plain")
            memcached = servers.Memcached(folder, pair=None, sasl=False)
            yield stack.enter_context(running_memcached(memcached))


@pytest.fixture(scope="module")
def secure(
    kind: str,
    tmp_path_factory: pytest.TempPathFactory,
    root: authority.Pair,
    good_pair: authority.Pair,
) -> Iterator[Address]:
    """A server with TLS and a login."""
    with contextlib.ExitStack() as stack:
        if kind == "demo":
            yield stack.enter_context(running_demo())
        else:
            folder = tmp_path_factory.mktemp("secure")
            memcached = servers.Memcached(folder, pair=good_pair, sasl=True)
            login = f"\0{servers.USERNAME}\0{servers.PASSWORD}".encode()
            ca = root.pem.decode()
            yield stack.enter_context(running_memcached(memcached, ca=ca, login=login))


@pytest.fixture(scope="module", params=["plain", "secure"])
def address(request: pytest.FixtureRequest, kind: str) -> Address:
    """Each kind of server, both ways."""
    found: Address = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def connect(started: list[Any]) -> Callable[[Address], Client]:
    """Connects, and sends nothing yet."""

    def make(address: Address) -> Client:
        client = Client(address)
        started.append(client)
        return client

    return make


@pytest.fixture
def client(address: Address, connect: Callable[[Address], Client]) -> Client:
    """A client that may do everything, of an empty server."""
    client = connect(address)
    if address.login is not None:
        assert client.log_in(address.login).status == Status.OK
    assert client.ask(O.FLUSH).status == Status.OK
    return client


# Reading


@pytest.mark.parametrize("opcode", [O.GET, O.GETQ, O.GETK, O.GETKQ, O.GAT, O.GATQ, O.GATK, O.GATKQ])
def test_a_hit_is_flags_value_and_cas_and_the_key_where_asked_for(
    client: Client, opcode: Opcode
) -> None:
    cas = client.store(b"a", b"hello").cas
    touching = LOUD[opcode] in (O.GAT, O.GATK)
    frame = client.ask(opcode, b"a", extras=LATER if touching else b"")
    key = b"a" if LOUD[opcode] in (O.GETK, O.GATK) else b""
    assert succeeded(frame, extras=FLAGS, key=key, value=b"hello", cas=True)
    assert frame.cas == cas


@pytest.mark.parametrize("opcode", [O.GET, O.GAT, O.TOUCH])
def test_a_miss_is_not_found(client: Client, opcode: Opcode) -> None:
    extras = b"" if opcode == O.GET else LATER
    assert refused(client.ask(opcode, b"zz", extras=extras), Status.NOT_FOUND)


@pytest.mark.parametrize("opcode", [O.GETK, O.GATK])
def test_a_miss_of_a_get_with_key_is_the_key_and_no_words(client: Client, opcode: Opcode) -> None:
    frame = client.ask(opcode, b"zz", extras=b"" if opcode == O.GETK else LATER)
    parts = (frame.status, frame.extras, frame.key, frame.value, frame.cas)
    assert parts == (Status.NOT_FOUND, b"", b"zz", b"", 0)


@pytest.mark.parametrize("opcode", [O.GETQ, O.GETKQ, O.GATQ, O.GATKQ])
def test_a_quiet_miss_is_silence(client: Client, opcode: Opcode) -> None:
    extras = b"" if opcode in (O.GETQ, O.GETKQ) else LATER
    assert client.answers(request(opcode, b"zz", extras=extras)) == []


def test_touch_answers_the_flags_and_keeps_the_cas(client: Client) -> None:
    cas = client.store(b"a", b"hello").cas
    frame = client.ask(O.TOUCH, b"a", extras=LATER)
    assert succeeded(frame, extras=FLAGS, cas=True)
    assert frame.cas == cas == client.get(b"a").cas


def test_the_recorded_bytes(client: Client) -> None:
    """The frames that other parts of the tests take for granted, whole."""
    client.send(
        bytes.fromhex("800100010800 0000 0000000e 11223344 0000000000000000 deadbeef 00000000")
        + b"ahello"
    )
    (stored,) = client.read()
    cas = f"{stored.cas:016x}"
    assert client._bytes(stored).hex() == "81010000000000000000000011223344" + cas
    frame = client.answers(request(O.GETK, b"a", opaque=b"\0\0\0U"))[0]
    assert client._bytes(frame).hex() == (
        "810c0001040000000000000a00000055" + cas + "deadbeef" + "61" + b"hello".hex()
    )


# Writing


@pytest.mark.parametrize("opcode", [O.SET, O.ADD, O.REPLACE, O.APPEND, O.PREPEND])
def test_a_store_answers_a_new_cas_and_no_body(client: Client, opcode: Opcode) -> None:
    cas = 0 if opcode == O.ADD else client.store(b"a", b"old").cas
    extras = b"" if opcode in (O.APPEND, O.PREPEND) else STORE_EXTRAS
    frame = client.ask(opcode, b"a", extras=extras, value=b"new")
    assert succeeded(frame, cas=True)
    assert frame.cas != cas
    value = {O.APPEND: b"oldnew", O.PREPEND: b"newold"}.get(opcode, b"new")
    after = client.get(b"a")
    assert (after.value, after.extras, after.cas) == (value, FLAGS, frame.cas)


@pytest.mark.parametrize(
    ("opcode", "present", "status"),
    [
        (O.ADD, True, Status.EXISTS),
        (O.REPLACE, False, Status.NOT_FOUND),
        (O.APPEND, False, Status.NOT_STORED),
        (O.PREPEND, False, Status.NOT_STORED),
        (O.DELETE, False, Status.NOT_FOUND),
        (O.INCR, False, Status.NOT_FOUND),
        (O.DECR, False, Status.NOT_FOUND),
    ],
)
@pytest.mark.parametrize("quiet", [False, True])
def test_a_write_that_finds_the_wrong_thing_says_so_even_when_quiet(
    client: Client, opcode: Opcode, present: bool, status: Status, quiet: bool
) -> None:
    if present:
        client.store(b"a", b"old")
    twin = next(each for each in QUIET if LOUD[each] == opcode) if quiet else opcode
    (frame,) = client.answers(well_formed(twin, b"a"))
    assert frame.opcode == twin
    assert refused(frame, status)
    assert client.get(b"a").status == (Status.OK if present else Status.NOT_FOUND)


@pytest.mark.parametrize("opcode", [O.SET, O.ADD, O.REPLACE])
def test_with_a_cas_every_store_compares_and_swaps(client: Client, opcode: Opcode) -> None:
    assert refused(client.store(b"a", b"1", opcode, cas=5), Status.NOT_FOUND)
    cas = client.store(b"a", b"1").cas
    assert refused(client.store(b"a", b"2", opcode, cas=WRONG_CAS), Status.EXISTS)
    assert client.get(b"a").value == b"1"
    assert succeeded(client.store(b"a", b"3", opcode, cas=cas), cas=True)
    assert client.get(b"a").value == b"3"


@pytest.mark.parametrize("opcode", [O.APPEND, O.PREPEND, O.DELETE, O.INCR, O.DECR])
def test_a_wrong_cas_changes_nothing(client: Client, opcode: Opcode) -> None:
    cas = client.store(b"a", b"1").cas
    (frame,) = client.answers(well_formed(opcode, b"a", cas=WRONG_CAS))
    assert refused(frame, Status.EXISTS)
    assert (client.get(b"a").value, client.get(b"a").cas) == (b"1", cas)
    (frame,) = client.answers(well_formed(opcode, b"a", cas=cas))
    assert frame.status == Status.OK


def test_append_to_nothing_is_not_stored_whatever_the_cas(client: Client) -> None:
    assert refused(client.ask(O.APPEND, b"a", value=b"x", cas=5), Status.NOT_STORED)


def test_an_empty_append_is_fine(client: Client) -> None:
    client.store(b"a", b"1")
    assert succeeded(client.ask(O.APPEND, b"a"), cas=True)


def test_delete_answers_no_cas(client: Client) -> None:
    client.store(b"a", b"1")
    assert succeeded(client.ask(O.DELETE, b"a"), cas=False)
    assert refused(client.ask(O.DELETE, b"a"), Status.NOT_FOUND)


@pytest.mark.parametrize("key", [b"k" * 250, b"a b", b"a\0b", b"a\r\nb", b"\xff"])
def test_a_key_is_any_bytes(client: Client, key: bytes) -> None:
    assert client.store(key, b"1").status == Status.OK
    assert succeeded(client.ask(O.GETK, key), extras=FLAGS, key=key, value=b"1", cas=True)


# Arithmetic


def arithmetic(delta: int, initial: int = 0, expiry: bytes = NEVER) -> bytes:
    return pack(">QQ", delta, initial) + expiry


@pytest.mark.parametrize("opcode", [O.INCR, O.DECR])
def test_counting_creates_with_the_initial_value_unless_told_not_to(
    client: Client, opcode: Opcode
) -> None:
    no = arithmetic(1, 5, b"\xff\xff\xff\xff")
    assert refused(client.ask(opcode, b"n", extras=no), Status.NOT_FOUND)
    frame = client.ask(opcode, b"n", extras=arithmetic(1, 5))
    assert succeeded(frame, value=pack(">Q", 5), cas=True)
    assert succeeded(client.get(b"n"), extras=bytes(4), value=b"5", cas=True)
    assert client.get(b"n").cas == frame.cas


@pytest.mark.parametrize(
    ("opcode", "before", "delta", "after"),
    [
        (O.INCR, b"9", 1, b"10"),
        (O.INCR, b"007", 1, b"8  "),
        (O.INCR, b" 7", 1, b"8 "),
        (O.INCR, b"+7", 1, b"8 "),
        (O.INCR, b"7 x", 1, b"8  "),
        (O.INCR, b"%d" % (2**64 - 1), 2, b"1".ljust(20)),
        (O.DECR, b"100", 1, b"99 "),
        (O.DECR, b"5", 7, b"0"),
    ],
)
def test_counting(client: Client, opcode: Opcode, before: bytes, delta: int, after: bytes) -> None:
    cas = client.store(b"n", before).cas
    frame = client.ask(opcode, b"n", extras=arithmetic(delta))
    assert succeeded(frame, value=pack(">Q", int(after)), cas=True)
    assert frame.cas != cas
    assert succeeded(client.get(b"n"), extras=FLAGS, value=after, cas=True)


@pytest.mark.parametrize("value", [b"", b"x", b"5x", b"-5", b"0x5", b"%d" % 2**64, b"9" * 30])
def test_what_is_no_number_is_not_counted(client: Client, value: bytes) -> None:
    client.store(b"n", value)
    frame = client.ask(O.INCR, b"n", extras=arithmetic(1))
    assert refused(frame, Status.NON_NUMERIC)
    assert client.get(b"n").value == value


def test_an_empty_value_is_no_number_before_its_cas_is_looked_at(client: Client) -> None:
    client.store(b"n", b"")
    frame = client.ask(O.INCR, b"n", extras=arithmetic(1), cas=WRONG_CAS)
    assert refused(frame, Status.NON_NUMERIC)


# Sizes


def test_the_longest_value_is_stored_and_one_byte_more_deletes_the_old(client: Client) -> None:
    assert client.store(b"a", b"x" * LONGEST).status == Status.OK
    assert len(client.get(b"a").value) == LONGEST
    assert refused(client.store(b"a", b"x" * (LONGEST + 1)), Status.TOO_LARGE)
    assert refused(client.get(b"a"), Status.NOT_FOUND)


@pytest.mark.parametrize("length", [LONGEST + 1, 3_000_000])
@pytest.mark.parametrize("opcode", [O.SETQ, O.ADD, O.REPLACE, O.APPEND, O.PREPENDQ])
def test_a_value_that_is_too_large_is_swallowed(
    client: Client, opcode: Opcode, length: int
) -> None:
    client.store(b"a", b"old")
    extras = b"" if LOUD[opcode] in (O.APPEND, O.PREPEND) else STORE_EXTRAS
    # Nothing follows at once: with TLS, memcached would leave it lying until more comes.
    frame = client.ask(opcode, b"a", extras=extras, value=b"x" * (length + 8))
    assert refused(frame, Status.TOO_LARGE)
    kept = LOUD[opcode] != O.SET
    assert client.get(b"a").status == (Status.OK if kept else Status.NOT_FOUND)


def test_a_result_that_is_too_large_is_not_stored(client: Client) -> None:
    client.store(b"a", b"x" * (LONGEST - 1))
    assert client.ask(O.APPEND, b"a", value=b"y").status == Status.OK
    assert refused(client.ask(O.APPEND, b"a", value=b"y"), Status.NOT_STORED)
    assert client.get(b"a").value == b"x" * (LONGEST - 1) + b"y"


# Time


@pytest.mark.parametrize("expiry", [0, 100_000, 2_592_000, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_an_expiry_to_come_is_a_hit(client: Client, expiry: int) -> None:
    client.set(b"a", b"1", expiry=expiry)
    assert client.get(b"a").status == Status.OK


def test_beyond_thirty_days_an_expiry_is_a_date(client: Client) -> None:
    assert client.set(b"a", b"1", expiry=2_592_001).status == Status.OK
    assert refused(client.get(b"a"), Status.NOT_FOUND)


@pytest.mark.parametrize("opcode", [O.TOUCH, O.GAT])
def test_touched_with_a_date_gone_by_it_is_a_hit_once_more(client: Client, opcode: Opcode) -> None:
    client.store(b"a", b"1")
    assert client.ask(opcode, b"a", extras=PAST).status == Status.OK
    assert refused(client.get(b"a"), Status.NOT_FOUND)


def test_an_item_expires(client: Client) -> None:
    client.set(b"a", b"1", expiry=1)
    client.set(b"b", b"1")
    servers.wait_until(lambda: client.get(b"a").status == Status.NOT_FOUND, "it expires")
    assert client.get(b"b").status == Status.OK


@pytest.mark.parametrize("extras", [b"", bytes(4)])
def test_flush_empties_and_what_comes_after_it_stays(client: Client, extras: bytes) -> None:
    client.store(b"a", b"1")
    assert succeeded(client.ask(O.FLUSH, extras=extras), cas=False)
    assert refused(client.get(b"a"), Status.NOT_FOUND)
    client.store(b"a", b"2")
    assert client.get(b"a").value == b"2"


def test_a_delayed_flush_waits(client: Client) -> None:
    client.store(b"a", b"1")
    assert client.ask(O.FLUSH, extras=LATER).status == Status.OK
    assert client.get(b"a").status == Status.OK
    assert client.ask(O.FLUSH, extras=pack(">I", 2)).status == Status.OK
    servers.wait_until(lambda: client.get(b"a").status == Status.NOT_FOUND, "it is flushed")


# Order, quiet requests, and the rest


def well_formed(opcode: int, key: bytes, cas: int = 0) -> bytes:
    """A request of any command that takes a key, or FLUSH."""
    loud = LOUD[opcode]
    if loud in (O.SET, O.ADD, O.REPLACE):
        return request(opcode, key, extras=STORE_EXTRAS, value=b"1", cas=cas)
    if loud in (O.APPEND, O.PREPEND):
        return request(opcode, key, value=b"1", cas=cas)
    if loud in (O.INCR, O.DECR):
        return request(opcode, key, extras=arithmetic(1, 0, b"\xff\xff\xff\xff"), cas=cas)
    if loud in (O.GAT, O.GATK, O.TOUCH):
        return request(opcode, key, extras=LATER)
    return request(opcode, b"" if loud == O.FLUSH else key, cas=cas)


@pytest.mark.parametrize("opcode", [each for each in QUIET if LOUD[each] not in (*GETS, O.QUIT)])
def test_a_quiet_success_is_silence(client: Client, opcode: Opcode) -> None:
    if LOUD[opcode] != O.ADD:
        client.store(b"a", b"1")
    assert client.answers(well_formed(opcode, b"a")) == []
    gone = LOUD[opcode] in (O.DELETE, O.FLUSH)
    assert client.get(b"a").status == (Status.NOT_FOUND if gone else Status.OK)


def test_answers_come_in_the_order_of_requests(client: Client) -> None:
    frames = client.answers(
        well_formed(O.SETQ, b"a"),
        well_formed(O.ADDQ, b"a"),
        well_formed(O.DELETEQ, b"b"),
        well_formed(O.INCRQ, b"b"),
        well_formed(O.GETQ, b"b"),
        well_formed(O.GETK, b"b"),
        well_formed(O.GETKQ, b"a"),
    )
    assert [(frame.opcode, frame.status) for frame in frames] == [
        (O.ADDQ, Status.EXISTS),
        (O.DELETEQ, Status.NOT_FOUND),
        (O.INCRQ, Status.NOT_FOUND),
        (O.GETK, Status.NOT_FOUND),
        (O.GETKQ, Status.OK),
    ]


def test_byte_by_byte(client: Client) -> None:
    for byte in well_formed(O.SET, b"a") + well_formed(O.GETK, b"a"):
        client.send(bytes([byte]))
    stored, got = client.read(2)
    assert succeeded(stored, cas=True)
    assert succeeded(got, extras=FLAGS, key=b"a", value=b"1", cas=True)


def test_who_reads_late_gets_everything(client: Client) -> None:
    client.store(b"a", bytes(10_000))
    count = 2_000
    client.send(well_formed(O.GET, b"a") * count)
    assert sum(len(frame.value) for frame in client.read(count)) == count * 10_000
    assert client.is_in_step()


@pytest.mark.parametrize("opcode", [O.GET, O.NOOP, O.VERSION])
def test_vbucket_data_type_and_a_cas_without_meaning_are_ignored(
    client: Client, opcode: Opcode
) -> None:
    key = b"zz" if opcode == O.GET else b""
    frame = bytearray(request(opcode, key, cas=77))
    frame[5:8] = b"\x01\x00\x4d"
    (answer,) = client.answers(bytes(frame))
    assert answer.status == (Status.NOT_FOUND if opcode == O.GET else Status.OK)


def test_noop_and_version(client: Client) -> None:
    assert succeeded(client.ask(O.NOOP), cas=False)
    assert succeeded(client.ask(O.VERSION), value=b"1.6.18", cas=False)


def test_quit_answers_and_closes_after_what_came_before(client: Client) -> None:
    client.send(well_formed(O.SETQ, b"a"), well_formed(O.GET, b"a"), request(O.QUIT))
    got, quit_ = client.read(2)
    assert got.value == b"1"
    assert succeeded(quit_, cas=False)
    assert client.at_end()


def test_quitq_closes_silently(client: Client) -> None:
    client.send(request(O.QUITQ))
    assert client.at_end()


def test_a_half_closed_client_gets_its_answers(
    plain: Address, connect: Callable[[Address], Client]
) -> None:
    client = connect(plain)
    count = 500  # So many that the end of the stream is there before the last is answered.
    client.send(
        well_formed(O.SETQ, b"half"), well_formed(O.GETKQ, b"half") * count, request(O.NOOP)
    )
    client.socket.shutdown(socket.SHUT_WR)
    assert [frame.opcode for frame in client.read(count + 1)] == [O.GETKQ] * count + [O.NOOP]
    assert client.at_end()


# STAT


@pytest.mark.parametrize("group", [b"", b"settings", b"items", b"slabs", b"sizes"])
def test_stat_is_a_sequence_that_an_empty_key_ends(client: Client, group: bytes) -> None:
    client.store(b"a", b"1")
    *stats, end = client.answers(request(O.STAT, group, opaque=b"stat"))
    assert stats
    assert all(succeeded(each, key=each.key, value=each.value, cas=False) for each in stats)
    assert all(each.key and each.value for each in stats)
    assert succeeded(end, cas=False)
    assert {each.opaque for each in (*stats, end)} == {b"stat"}


def test_the_stats_that_are_counted(client: Client) -> None:
    assert succeeded(client.ask(O.STAT, b"reset"), cas=False)
    client.store(b"a", b"1")
    client.get(b"a")
    client.get(b"b")
    client.ask(O.TOUCH, b"a", extras=LATER)
    stats = {frame.key: frame.value for frame in client.answers(request(O.STAT))}
    wanted = {
        b"cmd_get": b"2",
        b"cmd_set": b"1",
        b"get_hits": b"1",
        b"get_misses": b"1",
        b"evictions": b"0",
        b"limit_maxbytes": b"67108864",
        b"version": b"1.6.18",
    }
    assert {name: stats[name] for name in wanted} == wanted


@pytest.mark.parametrize("key", [b"reset", b"detail on", b"detail off"])
def test_a_stat_that_only_does_something_is_its_end(client: Client, key: bytes) -> None:
    (frame,) = client.answers(request(O.STAT, key))
    assert succeeded(frame, cas=False)


def test_an_unknown_stat_is_one_refusal_without_an_end(client: Client) -> None:
    (frame,) = client.answers(request(O.STAT, b"bogus"))
    assert refused(frame, Status.NOT_FOUND)


# Frames that are none


def header(opcode: int, keys: int, extras: int, body: int) -> bytes:
    return pack(">BBHBBHIIQ", 0x80, opcode, keys, extras, 0, 0, body, 0x1234, 0)


WRONG_EXTRAS = [(O.GET, 4), (O.SET, 4), (O.SETQ, 0), (O.INCR, 8), (O.TOUCH, 0), (O.GAT, 8)]
WRONG_EXTRAS += [(O.APPEND, 8), (O.DELETE, 4), (O.STAT, 4)]
INVALID = [
    *(request(opcode, b"key", extras=bytes(extras)) for opcode, extras in WRONG_EXTRAS),
    *(request(opcode) for opcode in (O.GET, O.GETQ, O.GETK, O.DELETE, O.APPEND)),
    request(O.SET, extras=STORE_EXTRAS),
    request(O.SETQ, extras=STORE_EXTRAS),
    request(O.TOUCH, extras=LATER),
    request(O.INCR, extras=arithmetic(1)),
    request(O.FLUSH, extras=bytes(8)),
    request(O.GET, b"key", value=b"value"),
    request(O.VERSION, b"key"),
    request(O.QUIT, b"key"),
    request(O.NOOP, value=b"value"),
    request(O.VERSION, value=b"value"),
    request(O.SASL_LIST, b"key"),
    request(O.SASL_AUTH),
    *(request(opcode, b"k" * 251) for opcode in (O.GET, O.NOOP, O.STAT, 0x99)),
]


@pytest.mark.parametrize("frame", INVALID, ids=lambda frame: frame[:12].hex())
def test_an_invalid_request_is_refused_and_the_connection_closed(
    client: Client, frame: bytes
) -> None:
    client.send(frame)
    (answer,) = client.read()
    assert answer.opcode == frame[1]
    assert refused(answer, Status.INVALID)
    assert client.at_end()


@pytest.mark.parametrize(
    "frame",
    [
        header(O.GET, 3, 0, 2) + b"key",
        header(O.SETQ, 3, 8, 10) + STORE_EXTRAS + b"key",
        header(O.NOOP, 0, 1, 0) + b"x",
    ],
    ids=["key", "key and extras", "extras"],
)
def test_lengths_that_contradict_each_other_end_the_connection(
    client: Client, frame: bytes
) -> None:
    client.send(frame)
    (answer,) = client.read()
    assert refused(answer, Status.UNKNOWN_COMMAND)
    assert client.at_end()


@pytest.mark.parametrize("magic", [0x00, 0x81, ord("g")])
def test_another_magic_ends_the_connection_without_a_word(client: Client, magic: int) -> None:
    assert client.is_in_step()
    client.send(bytes([magic]) + request(O.NOOP)[1:])
    assert client.at_end()


@pytest.mark.parametrize("opcode", [0x1B, 0x1F, 0x25, 0x40, 0x99, 0xFF])
@pytest.mark.parametrize("value", [b"", b"ten bytes."])
def test_an_unknown_command_is_refused_and_the_client_kept(
    client: Client, opcode: int, value: bytes
) -> None:
    assert refused(client.ask(opcode, value=value), Status.UNKNOWN_COMMAND)
    assert client.is_in_step()


# SASL


@pytest.mark.parametrize("opcode", [O.SASL_LIST, O.SASL_AUTH, O.SASL_STEP])
def test_without_a_login_sasl_is_unknown(
    plain: Address, connect: Callable[[Address], Client], opcode: Opcode
) -> None:
    client = connect(plain)
    key, value = (b"", b"") if opcode == O.SASL_LIST else (b"PLAIN", b"\0u\0p")
    assert refused(client.ask(opcode, key, value=value), Status.UNKNOWN_COMMAND)
    assert client.is_in_step()


@pytest.fixture
def stranger(secure: Address, connect: Callable[[Address], Client]) -> Client:
    """A client that has yet to log in."""
    return connect(secure)


def test_a_login(stranger: Client, secure: Address) -> None:
    assert succeeded(stranger.ask(O.VERSION), value=b"1.6.18", cas=False)
    assert succeeded(stranger.ask(O.SASL_LIST), value=b"PLAIN", cas=False)
    assert secure.login is not None
    assert succeeded(stranger.log_in(secure.login), value=b"Authenticated", cas=False)
    assert stranger.is_in_step()


def test_a_login_that_names_whom_it_acts_for(stranger: Client, secure: Address) -> None:
    assert secure.login is not None
    user = secure.login.split(b"\0")[1]
    assert stranger.log_in(user + secure.login).status == Status.OK


def test_a_login_in_two_steps_and_in_lower_case(stranger: Client, secure: Address) -> None:
    assert secure.login is not None
    challenge = stranger.ask(O.SASL_AUTH, b"plain")
    assert (challenge.status, challenge.value, challenge.cas) == (Status.AUTH_CONTINUE, b"", 0)
    frame = stranger.log_in(secure.login, O.SASL_STEP)
    assert succeeded(frame, value=b"Authenticated", cas=False)
    assert stranger.is_in_step()


@pytest.mark.parametrize("message", [b"\0nobody\0wrong", b"nonsense", b"\0\0", b"a\0b\0c\0d"])
def test_a_wrong_login_is_refused_and_may_be_put_right(
    stranger: Client, secure: Address, message: bytes
) -> None:
    assert secure.login is not None
    assert refused(stranger.log_in(message), Status.AUTH_FAILED)
    assert stranger.log_in(secure.login).status == Status.OK
    assert stranger.is_in_step()


def test_a_wrong_password_of_the_right_user_is_refused(stranger: Client, secure: Address) -> None:
    assert secure.login is not None
    assert refused(stranger.log_in(secure.login + b"x"), Status.AUTH_FAILED)


def test_another_mechanism_and_a_step_too_early_are_refused(
    stranger: Client, secure: Address
) -> None:
    assert secure.login is not None
    assert refused(stranger.ask(O.SASL_AUTH, b"CRAM-MD5"), Status.AUTH_FAILED)
    assert refused(stranger.log_in(secure.login, O.SASL_STEP), Status.AUTH_FAILED)
    assert stranger.log_in(secure.login).status == Status.OK


def test_a_mechanism_that_is_too_long_is_invalid_and_the_client_kept(
    stranger: Client, secure: Address
) -> None:
    assert refused(stranger.ask(O.SASL_AUTH, b"P" * 33, value=b"\0u\0p"), Status.INVALID)
    assert stranger.ask(O.VERSION).status == Status.OK


def test_a_login_of_two_megabytes_is_swallowed(stranger: Client) -> None:
    assert refused(stranger.log_in(bytes(2 << 20)), Status.OUT_OF_MEMORY)
    assert stranger.ask(O.VERSION).status == Status.OK


def test_a_failed_login_ends_the_one_before_it(stranger: Client, secure: Address) -> None:
    assert secure.login is not None
    assert stranger.log_in(secure.login).status == Status.OK
    assert refused(stranger.log_in(b"\0nobody\0wrong"), Status.AUTH_FAILED)
    assert refused(stranger.ask(O.NOOP), Status.AUTH_FAILED)
    assert stranger.at_end()


ONLY_AFTER_LOGIN = [O.GET, O.GETQ, O.SET, O.SETQ, O.NOOP, O.QUIT, O.QUITQ, O.STAT, O.FLUSH, 0x99]


@pytest.mark.parametrize("opcode", ONLY_AFTER_LOGIN)
def test_before_the_login_everything_else_is_refused_and_the_connection_closed(
    stranger: Client, opcode: int
) -> None:
    keyless = opcode in (O.NOOP, O.QUIT, O.QUITQ, O.STAT, 0x99)
    stranger.send(request(opcode) if keyless else well_formed(opcode, b"a"))
    (frame,) = stranger.read()
    assert frame.opcode == opcode
    assert refused(frame, Status.AUTH_FAILED)
    assert stranger.at_end()


# Both at once: whatever is said to them, they say the same


@dataclass(frozen=True)
class Step:
    opcode: Opcode
    key: bytes = b""
    extras: bytes = b""
    value: bytes = b""
    cas: str = "none"
    """``none``, ``seen``: the last that was seen of this key, or ``wrong``."""


KEYS = st.sampled_from([b"a", b"b", b"c d"])
VALUES = st.sampled_from([b"", b"x", b"5", b"100", b" 7 ", b"9" * 19, b"%d" % (2**64 - 1)])
EXPIRIES = st.sampled_from([NEVER, LATER, PAST, pack(">I", 0x7FFF_FFFF)])
CASES = st.sampled_from(["none", "none", "seen", "wrong"])
FLAG_WORDS = st.sampled_from([bytes(4), FLAGS])
NUMBERS = st.sampled_from([0, 1, 7, 2**64 - 1])
CREATIONS = st.sampled_from([NEVER, LATER, b"\xff\xff\xff\xff"])


def among(*louds: Opcode) -> st.SearchStrategy[Opcode]:
    return st.sampled_from([each for each in Opcode if LOUD[each] in louds])


STEPS = st.one_of(
    st.builds(Step, among(O.GET, O.GETK), KEYS),
    st.builds(Step, among(O.GAT, O.GATK, O.TOUCH), KEYS, EXPIRIES),
    st.builds(
        Step,
        among(O.SET, O.ADD, O.REPLACE),
        KEYS,
        st.builds(bytes.__add__, FLAG_WORDS, EXPIRIES),
        VALUES,
        CASES,
    ),
    st.builds(Step, among(O.APPEND, O.PREPEND), KEYS, st.just(b""), VALUES, CASES),
    st.builds(
        Step,
        among(O.INCR, O.DECR),
        KEYS,
        st.builds(arithmetic, NUMBERS, NUMBERS, CREATIONS),
        st.just(b""),
        CASES,
    ),
    st.builds(Step, among(O.DELETE), KEYS, st.just(b""), st.just(b""), CASES),
    st.builds(Step, among(O.FLUSH), st.just(b""), st.sampled_from([b"", bytes(4)])),
    st.builds(Step, st.sampled_from([O.NOOP, O.VERSION])),
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Client]]:
    """Clients of the embedded server and of memcached."""
    memcached = servers.Memcached(tmp_path_factory.mktemp("both"), pair=None, sasl=False)
    with (
        running_demo("--plain") as demo,
        running_memcached(memcached) as real,
        servers.closing_all([Client(demo), Client(real)]) as (ours, theirs),
    ):
        yield ours, theirs


def told(client: Client, steps: list[Step]) -> list[list[Frame]]:
    """The answers to each step on an empty server, CAS values numbered as they turn up."""
    assert client.answers(request(O.FLUSH))[0].status == Status.OK
    numbers = {0: 0}
    seen: dict[bytes, int] = {}
    answers = []
    for step in steps:
        cas = {"none": 0, "seen": seen.get(step.key, 0), "wrong": WRONG_CAS}[step.cas]
        frame = request(
            step.opcode, step.key, extras=step.extras, value=step.value, opaque=b"step", cas=cas
        )
        heard = client.answers(frame)
        for one in heard:
            if one.cas:
                seen[step.key] = one.cas
        answers.append(
            [one._replace(cas=numbers.setdefault(one.cas, len(numbers))) for one in heard]
        )
    return answers


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(STEPS, min_size=1, max_size=30))
def test_whatever_they_are_told_they_answer_alike(
    both: tuple[Client, Client], steps: list[Step]
) -> None:
    ours, theirs = both
    assert told(ours, steps) == told(theirs, steps)


# The embedded server alone, with the clock in hand


NOW = 1_800_000_000.0


def do(store: Store, opcode: int, key: bytes = b"", now: float = NOW, **parts: Any) -> Any:
    frame = Frame(0x80, opcode, 0, bytes(4), 0, b"", key, b"")
    return store.execute(frame._replace(**parts), now)


def test_store_expires_to_the_second_relative_and_absolute() -> None:
    store = Store()
    for key, expiry in ((b"relative", 10), (b"absolute", int(NOW) + 10)):
        do(store, O.SET, key, extras=bytes(4) + pack(">I", expiry), value=b"1")
        assert do(store, O.GET, key, NOW + 9.9).status == Status.OK
        assert do(store, O.GET, key, NOW + 10).status == Status.NOT_FOUND
        assert do(store, O.GET, key, NOW).status == Status.NOT_FOUND


@pytest.mark.parametrize("opcode", [O.APPEND, O.INCR])
def test_store_keeps_the_expiry_of_what_is_changed(opcode: Opcode) -> None:
    store = Store()
    do(store, O.SET, b"a", extras=FLAGS + pack(">I", 10), value=b"1")
    extras = b"" if opcode == O.APPEND else arithmetic(1)
    assert do(store, opcode, b"a", extras=extras, value=b"").status == Status.OK
    assert do(store, O.GET, b"a", NOW + 9).extras == FLAGS
    assert do(store, O.GET, b"a", NOW + 10).status == Status.NOT_FOUND


def test_store_touch_moves_the_expiry() -> None:
    store = Store()
    do(store, O.SET, b"a", extras=bytes(4) + pack(">I", 10), value=b"1")
    do(store, O.TOUCH, b"a", extras=pack(">I", 20))
    assert do(store, O.GET, b"a", NOW + 19).status == Status.OK
    assert do(store, O.GET, b"a", NOW + 20).status == Status.NOT_FOUND


def test_store_flushes_when_the_delay_is_over_and_only_once() -> None:
    store = Store()
    do(store, O.SET, b"a", extras=bytes(8), value=b"1")
    do(store, O.FLUSH, extras=pack(">I", 10))
    do(store, O.SET, b"b", NOW + 9, extras=bytes(8), value=b"1")
    assert do(store, O.GET, b"a", NOW + 9.9).status == Status.OK
    do(store, O.SET, b"c", NOW + 10, extras=bytes(8), value=b"1")
    found = [do(store, O.GET, key, NOW + 20).status for key in (b"a", b"b", b"c")]
    assert found == [Status.NOT_FOUND, Status.NOT_FOUND, Status.OK]


def counted(store: Store) -> dict[str, object]:
    return dict(store.stats(b"", NOW) or ())


def test_store_evicts_what_was_used_least_recently() -> None:
    store = Store(memory_limit=1000)
    for key in (b"a", b"b", b"c"):
        do(store, O.SET, key, extras=bytes(8), value=bytes(240))
    assert do(store, O.GET, b"a").status == Status.OK
    do(store, O.SET, b"d", extras=bytes(8), value=bytes(240))
    found = {key: do(store, O.GET, key).status == Status.OK for key in (b"a", b"b", b"c", b"d")}
    assert found == {b"a": True, b"b": False, b"c": True, b"d": True}
    assert counted(store)["evictions"] == 1
    assert counted(store)["bytes"] == 3 * 300


def test_store_gives_back_the_memory_of_what_is_gone() -> None:
    store = Store()
    do(store, O.SET, b"a", extras=bytes(8), value=bytes(1000))
    do(store, O.SET, b"a", extras=bytes(8), value=bytes(10))
    do(store, O.APPEND, b"a", value=bytes(10))
    do(store, O.SET, b"b", extras=FLAGS + bytes(4), value=b"")
    assert counted(store)["bytes"] == (60 + 20) + (60 + 4)
    do(store, O.DELETE, b"a")
    do(store, O.TOUCH, b"b", extras=PAST)
    do(store, O.GET, b"b")
    assert (counted(store)["bytes"], counted(store)["curr_items"]) == (0, 0)
    do(store, O.SET, b"a", extras=bytes(8), value=bytes(1000))
    do(store, O.FLUSH)
    assert (counted(store)["bytes"], counted(store)["curr_items"]) == (0, 0)


def test_embedded_unknown_commands_and_stats_with_bodies_leave_it_in_step() -> None:
    """Where memcached loses its place in the stream."""
    with running_demo("--plain") as address, servers.closing_all([Client(address)]) as (client,):
        for parts in ({"key": b"key"}, {"extras": b"more"}, {"key": b"k", "value": b"v" * 9}):
            assert refused(client.ask(0x1B, **parts), Status.UNKNOWN_COMMAND)
        assert client.is_in_step()


def test_embedded_server_is_of_this_machine_only() -> None:
    with running_demo("--plain") as address:
        assert servers.connects(address.port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", address.port), 1)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_embedded_server_has_a_certificate_for_its_names_only(version: ssl.TLSVersion) -> None:
    with running_demo() as address:
        context = ssl.create_default_context(cadata=address.ca)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.minimum_version = context.maximum_version = version

        def handshake(name: str) -> None:
            where = ("127.0.0.1", address.port)
            with socket.create_connection(where, servers.PATIENCE) as plain:
                context.wrap_socket(plain, server_hostname=name).close()

        for name in ("localhost", "127.0.0.1", "::1"):
            handshake(name)
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake("example.org")


def test_embedded_server_shows_its_password_to_nobody() -> None:
    server, other = DemoServer(tls=False), DemoServer(tls=False)
    password = server.credentials.password.reveal()
    assert len(password) >= 32
    assert password != other.credentials.password.reveal()
    assert password.decode() not in repr(vars(server)) + repr(server.credentials)


class Watcher(Protocol):
    """Knows when it was disconnected."""

    def __init__(self) -> None:
        self.lost: Deferred[None] = Deferred()

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.callback(None)


@pytest_twisted.ensureDeferred
async def test_embedded_server_drops_its_clients_when_it_stops() -> None:
    server = DemoServer(tls=False)
    server.start(reactor)
    port = server.port
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    watcher = await connectProtocol(endpoint, Watcher())
    watcher.transport.write(request(O.VERSION))
    await server.stop()
    await watcher.lost
    assert not servers.connects(port)
