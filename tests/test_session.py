"""What one client gets for what it sends: commands, order, framing, bounds, its end."""

import pytest
from core_harness import (
    NEVER_CREATE,
    AllCounts,
    Client,
    House,
    O,
    Store,
    bare,
    concat,
    count,
    get,
    opaque_of,
    store,
    touch,
)
from hypothesis import given
from hypothesis import strategies as st

from memtunnel.core import answers as answers_module
from memtunnel.core.answers import FULL_BYTES, FULL_REQUESTS
from memtunnel.core.mux import MAX_ENTRIES, MAX_UNSENT
from memtunnel.core.session import REQUESTS_A_TURN
from memtunnel.wire.binary import GETS, LOUD, QUIET, Status, answer, refusal, request, split

KIB = 1024
MIB = 1024 * 1024


def opened(servers: int = 1, connections: int = 1, **options: object) -> tuple[House, Client]:
    house = House(servers, connections, **options)  # type: ignore[arg-type]
    return house, house.client()


def settled(house: House) -> None:
    """Nothing is owed, and no memory is counted."""
    assert house.budget.used == 0
    assert not any(server.queued for server in house.servers)
    assert not any(link.mux.load for link in house.links)


# Commands

#: (what the server has for key `k`, the request, what memcached answers)
COMMANDS = {
    "GET hit": (b"5", get(b"k", 7), answer(O.GET, opaque_of(7), extras=b"flag", value=b"5", cas=9)),
    "GET miss": (None, get(b"k", 7), refusal(O.GET, opaque_of(7), Status.NOT_FOUND)),
    "GETK hit": (
        b"5",
        get(b"k", 7, O.GETK),
        answer(O.GETK, opaque_of(7), extras=b"flag", key=b"k", value=b"5", cas=9),
    ),
    "GETK miss": (
        None,
        get(b"k", 7, O.GETK),
        answer(O.GETK, opaque_of(7), Status.NOT_FOUND, key=b"k"),
    ),
    "GETQ hit": (
        b"5",
        get(b"k", 7, O.GETQ),
        answer(O.GETQ, opaque_of(7), extras=b"flag", value=b"5", cas=9),
    ),
    "GETQ miss": (None, get(b"k", 7, O.GETQ), b""),
    "GETKQ hit": (
        b"5",
        get(b"k", 7, O.GETKQ),
        answer(O.GETKQ, opaque_of(7), extras=b"flag", key=b"k", value=b"5", cas=9),
    ),
    "GETKQ miss": (None, get(b"k", 7, O.GETKQ), b""),
    "GAT hit": (
        b"5",
        touch(b"k", 7, O.GAT),
        answer(O.GAT, opaque_of(7), extras=b"flag", value=b"5", cas=9),
    ),
    "GAT miss": (None, touch(b"k", 7, O.GAT), refusal(O.GAT, opaque_of(7), Status.NOT_FOUND)),
    "GATQ hit": (
        b"5",
        touch(b"k", 7, O.GATQ),
        answer(O.GATQ, opaque_of(7), extras=b"flag", value=b"5", cas=9),
    ),
    "GATQ miss": (None, touch(b"k", 7, O.GATQ), b""),
    "GATK hit": (
        b"5",
        touch(b"k", 7, O.GATK),
        answer(O.GATK, opaque_of(7), extras=b"flag", key=b"k", value=b"5", cas=9),
    ),
    "GATKQ hit": (
        b"5",
        touch(b"k", 7, O.GATKQ),
        answer(O.GATKQ, opaque_of(7), extras=b"flag", key=b"k", value=b"5", cas=9),
    ),
    "GATKQ miss": (None, touch(b"k", 7, O.GATKQ), b""),
    "TOUCH hit": (b"5", touch(b"k", 7), answer(O.TOUCH, opaque_of(7), extras=b"flag", cas=9)),
    "TOUCH miss": (None, touch(b"k", 7), refusal(O.TOUCH, opaque_of(7), Status.NOT_FOUND)),
    "SET": (None, store(b"k", b"v", 7), answer(O.SET, opaque_of(7), cas=1)),
    "SET another cas": (
        b"5",
        store(b"k", b"v", 7, cas=8),
        refusal(O.SET, opaque_of(7), Status.EXISTS),
    ),
    "SETQ": (None, store(b"k", b"v", 7, O.SETQ), b""),
    "SETQ another cas": (
        b"5",
        store(b"k", b"v", 7, O.SETQ, cas=8),
        refusal(O.SETQ, opaque_of(7), Status.EXISTS),
    ),
    "ADD": (None, store(b"k", b"v", 7, O.ADD), answer(O.ADD, opaque_of(7), cas=1)),
    "ADD exists": (
        b"5",
        store(b"k", b"v", 7, O.ADD),
        refusal(O.ADD, opaque_of(7), Status.EXISTS),
    ),
    "ADDQ": (None, store(b"k", b"v", 7, O.ADDQ), b""),
    "ADDQ exists": (
        b"5",
        store(b"k", b"v", 7, O.ADDQ),
        refusal(O.ADDQ, opaque_of(7), Status.EXISTS),
    ),
    "REPLACE": (b"5", store(b"k", b"v", 7, O.REPLACE), answer(O.REPLACE, opaque_of(7), cas=1)),
    "REPLACE missing": (
        None,
        store(b"k", b"v", 7, O.REPLACE),
        refusal(O.REPLACE, opaque_of(7), Status.NOT_FOUND),
    ),
    "REPLACEQ": (b"5", store(b"k", b"v", 7, O.REPLACEQ), b""),
    "REPLACEQ missing": (
        None,
        store(b"k", b"v", 7, O.REPLACEQ),
        refusal(O.REPLACEQ, opaque_of(7), Status.NOT_FOUND),
    ),
    "APPEND": (b"5", concat(b"k", b"v", 7), answer(O.APPEND, opaque_of(7), cas=1)),
    "APPEND nothing": (b"5", concat(b"k", b"", 7), answer(O.APPEND, opaque_of(7), cas=1)),
    "APPEND missing": (
        None,
        concat(b"k", b"v", 7),
        refusal(O.APPEND, opaque_of(7), Status.NOT_STORED),
    ),
    "APPENDQ": (b"5", concat(b"k", b"v", 7, O.APPENDQ), b""),
    "APPENDQ missing": (
        None,
        concat(b"k", b"v", 7, O.APPENDQ),
        refusal(O.APPENDQ, opaque_of(7), Status.NOT_STORED),
    ),
    "PREPEND": (b"5", concat(b"k", b"v", 7, O.PREPEND), answer(O.PREPEND, opaque_of(7), cas=1)),
    "PREPENDQ": (b"5", concat(b"k", b"v", 7, O.PREPENDQ), b""),
    "PREPENDQ missing": (
        None,
        concat(b"k", b"v", 7, O.PREPENDQ),
        refusal(O.PREPENDQ, opaque_of(7), Status.NOT_STORED),
    ),
    "DELETE": (b"5", get(b"k", 7, O.DELETE), answer(O.DELETE, opaque_of(7))),
    "DELETE missing": (
        None,
        get(b"k", 7, O.DELETE),
        refusal(O.DELETE, opaque_of(7), Status.NOT_FOUND),
    ),
    "DELETEQ": (b"5", get(b"k", 7, O.DELETEQ), b""),
    "DELETEQ missing": (
        None,
        get(b"k", 7, O.DELETEQ),
        refusal(O.DELETEQ, opaque_of(7), Status.NOT_FOUND),
    ),
    "INCR": (
        b"5",
        count(b"k", 7),
        answer(O.INCR, opaque_of(7), value=(6).to_bytes(8, "big"), cas=1),
    ),
    "INCR missing": (
        None,
        count(b"k", 7, expires=NEVER_CREATE),
        refusal(O.INCR, opaque_of(7), Status.NOT_FOUND),
    ),
    "INCR of a word": (
        b"w",
        count(b"k", 7),
        refusal(O.INCR, opaque_of(7), Status.NON_NUMERIC),
    ),
    "INCRQ": (b"5", count(b"k", 7, O.INCRQ), b""),
    "INCRQ missing": (
        None,
        count(b"k", 7, O.INCRQ, expires=NEVER_CREATE),
        refusal(O.INCRQ, opaque_of(7), Status.NOT_FOUND),
    ),
    "DECR": (
        b"5",
        count(b"k", 7, O.DECR),
        answer(O.DECR, opaque_of(7), value=(4).to_bytes(8, "big"), cas=1),
    ),
    "DECRQ": (b"5", count(b"k", 7, O.DECRQ), b""),
    "DECRQ of a word": (
        b"w",
        count(b"k", 7, O.DECRQ),
        refusal(O.DECRQ, opaque_of(7), Status.NON_NUMERIC),
    ),
    "FLUSH": (b"5", bare(O.FLUSH, 7), answer(O.FLUSH, opaque_of(7))),
    "FLUSH later": (
        b"5",
        request(O.FLUSH, extras=bytes(4), opaque=opaque_of(7)),
        answer(O.FLUSH, opaque_of(7)),
    ),
    "FLUSHQ": (b"5", bare(O.FLUSHQ, 7), b""),
    "NOOP": (None, bare(O.NOOP, 7), answer(O.NOOP, opaque_of(7))),
    "VERSION": (None, bare(O.VERSION, 7), answer(O.VERSION, opaque_of(7), value=b"1.6.0")),
    "SASL_LIST": (None, bare(O.SASL_LIST, 7), answer(O.SASL_LIST, opaque_of(7), value=b"PLAIN")),
    "STAT": (
        None,
        bare(O.STAT, 7),
        answer(O.STAT, opaque_of(7), key=b"pid", value=b"7")
        + answer(O.STAT, opaque_of(7), key=b"curr_items", value=b"5")
        + answer(O.STAT, opaque_of(7), key=b"version", value=b"1")
        + answer(O.STAT, opaque_of(7)),
    ),
    "STAT of a key": (
        None,
        bare(O.STAT, 7, b"bogus"),
        refusal(O.STAT, opaque_of(7), Status.NOT_FOUND),
    ),
    "QUIT": (None, bare(O.QUIT, 7), answer(O.QUIT, opaque_of(7))),
    "QUITQ": (None, bare(O.QUITQ, 7), b""),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_P4_each_command_is_answered_as_memcached_answers_it(name: str) -> None:
    value, asked, expected = COMMANDS[name]
    house, client = opened()
    if value is not None:
        house.stores[0].items[b"k"] = (b"flag", value, 9)
    client.send(asked)
    house.serve()
    assert client.received == expected
    assert client.closed == (asked[1] in (O.QUIT, O.QUITQ))
    settled(house)


def test_every_opcode_has_a_case() -> None:
    covered = {asked[1] for _, asked, _ in COMMANDS.values()}
    assert covered == set(O) - {O.SASL_AUTH, O.SASL_STEP}


def test_changes_reach_the_server() -> None:
    house, client = opened()
    client.send(
        store(b"a", b"b"),
        concat(b"a", b"c"),
        concat(b"a", b"a", opcode=O.PREPENDQ),
        store(b"n", b"8"),
    )
    client.send(count(b"n", opcode=O.DECRQ, delta=3), get(b"x", opcode=O.DELETEQ))
    house.serve()
    assert {key: item[1] for key, item in house.stores[0].items.items()} == {
        b"a": b"abc",
        b"n": b"5",
    }


def test_cas_flags_and_ignored_header_fields_pass_untouched() -> None:
    house, client = opened()
    house.stores[0].items[b"k"] = (b"\xde\xad\xbe\xef", b"v", 0x4101112131415161)
    asked = bytearray(get(b"k", 1))
    asked[5] = 1  # data type
    asked[6:8] = b"\0\x4d"  # vbucket
    asked[16:24] = b"12345678"  # cas of a get
    client.send(bytes(asked))
    house.serve()
    (frame,) = client.frames
    assert (frame.cas, frame.extras) == (0x4101112131415161, b"\xde\xad\xbe\xef")


def test_the_same_opaque_on_many_requests_comes_back_on_each() -> None:
    house, client = opened()
    number = 0xDEADBEEF
    client.send(store(b"k", b"1", number) + get(b"k", number) + bare(O.STAT, number))
    client.send(get(b"k", number, O.DELETE) + bare(O.NOOP, number))
    house.serve()
    assert [(code, opaque) for code, opaque, _ in client.told] == [
        *((code, number) for code in (O.SET, O.GET, O.STAT, O.STAT, O.STAT, O.STAT)),
        (O.DELETE, number),
        (O.NOOP, number),
    ]


@pytest.mark.parametrize("opcode", [O.SET, O.ADD, O.APPEND, O.DELETE])
def test_a_stores_success_never_has_a_body(opcode: int) -> None:
    house, client = opened()
    key_only = opcode == O.DELETE
    client.send(
        get(b"k", 3, opcode)
        if key_only
        else concat(b"k", b"v", 3, opcode)
        if opcode == O.APPEND
        else store(b"k", b"v", 3, opcode)
    )
    house.links[0].deliver(house.links[0].refuse(Status.OK, b"done"))
    assert client.received == answer(opcode, opaque_of(3))


def test_touch_extras_are_stripped_only_when_asked() -> None:
    house, client = opened(strip_touch_extras=True)
    house.stores[0].items[b"k"] = (b"flag", b"v", 9)
    client.send(touch(b"k", 1), touch(b"k", 2, O.GAT))
    house.serve()
    assert client.received == answer(O.TOUCH, opaque_of(1), cas=9) + answer(
        O.GAT, opaque_of(2), extras=b"flag", value=b"v", cas=9
    )


def test_version_is_what_a_server_said_last() -> None:
    house, client = opened()
    house.tunnel.version = b"1.6.18"
    client.send(bare(O.VERSION, 4))
    assert client.received == answer(O.VERSION, opaque_of(4), value=b"1.6.18")


# Quiet requests

QUIET_STORES = [
    store(b"k", b"v", 7, O.SETQ),
    store(b"k", b"v", 7, O.ADDQ),
    store(b"k", b"v", 7, O.REPLACEQ),
    get(b"k", 7, O.DELETEQ),
    count(b"k", 7, O.INCRQ),
    count(b"k", 7, O.DECRQ),
    bare(O.FLUSHQ, 7),
    concat(b"k", b"v", 7, O.APPENDQ),
    concat(b"k", b"v", 7, O.PREPENDQ),
]
QUIET_GETS = [get(b"k", 7, code) for code in (O.GETQ, O.GETKQ)]
QUIET_GETS += [touch(b"k", 7, code) for code in (O.GATQ, O.GATKQ)]


@pytest.mark.parametrize("asked", QUIET_STORES, ids=lambda asked: O(asked[1]).name)
@pytest.mark.parametrize("body", [b"", b"words"], ids=["bare", "with words"])
@pytest.mark.parametrize("status", [1, 2, 3, 4, 5, 6])
def test_P4_a_quiet_change_that_fails_is_told_with_a_body(
    asked: bytes, status: int, body: bytes
) -> None:
    house, client = opened()
    client.send(asked)
    house.links[0].deliver(house.links[0].refuse(status, body))
    assert client.told == [(asked[1], 7, status)]
    assert client.frames[0].value


@pytest.mark.parametrize("asked", QUIET_GETS, ids=lambda asked: O(asked[1]).name)
@pytest.mark.parametrize("status", [1, 2, 3, 4, 5, 6, 0x81, 0x82, 0x84, 0x85, 0x86])
def test_P4_a_quiet_get_never_hears_an_error(asked: bytes, status: int) -> None:
    house, client = opened()
    client.send(asked, bare(O.NOOP, 8))
    house.links[0].deliver(house.links[0].refuse(status))
    assert client.told == [(O.NOOP, 8, 0)]


def test_a_trailing_quiet_request_is_sent_without_waiting_for_a_loud_one() -> None:
    house, client = opened()
    client.send(store(b"k", b"v", opcode=O.SETQ), get(b"k", opcode=O.GETKQ))
    assert house.links[0].opcodes == [O.SET, O.GETK]
    house.serve()
    assert client.told == [(O.GETKQ, 0, 0)]


@pytest.mark.parametrize(
    "barrier",
    [bare(O.NOOP, 9), get(b"z", 9), store(b"z", b"", 9), bare(O.VERSION, 9), bare(O.QUIT, 9)],
    ids=lambda asked: O(asked[1]).name,
)
def test_a_loud_answer_comes_after_all_quiet_ones_before_it(barrier: bytes) -> None:
    house, client = opened(servers=2)
    slow, quick = house.links
    keys = [house.key_on(0), house.key_on(0, 1), house.key_on(1)]
    client.send(
        store(keys[2], b"v", 1, O.ADDQ)
        + get(keys[0], 2, O.GETQ)
        + store(keys[1], b"v", 3, O.REPLACEQ)
        + barrier
    )
    slow_answers = slow.execute()
    quick.deliver(quick.execute())
    assert client.received == b""
    slow.deliver(slow_answers)
    house.serve()
    assert [code for code, _, _ in client.told] == [O.REPLACEQ, barrier[1]]


@given(
    commands=st.lists(
        st.builds(
            lambda code, key, number, cas: _command(code, b"key%d" % key, number, cas),
            st.sampled_from(sorted(set(O) - set(range(0x20, 0x23)) - {O.QUIT, O.QUITQ, O.VERSION})),
            st.integers(0, 2),
            st.integers(0, 3),
            st.sampled_from((0, 0, 0, 1, 2)),
        ),
        max_size=40,
    ),
    cuts=st.lists(st.integers(1, 80), max_size=60),
    answer_cuts=st.lists(st.integers(1, 80), max_size=60),
)
def test_P4_a_client_hears_what_memcached_would_tell_it_however_the_bytes_are_cut(
    commands: list[bytes], cuts: list[int], answer_cuts: list[int]
) -> None:
    model = Store()
    house, client = opened(connections=2)
    sent = b"".join(commands)
    client.send(*pieces(sent, cuts))
    for link in list(house.links):
        link.deliver(*pieces(link.execute(), answer_cuts))
    house.serve()
    assert client.received == b"".join(model.speak(frame) for frame in split(sent)[0])
    assert house.degraded == []
    settled(house)


def _command(opcode: int, key: bytes, number: int, cas: int) -> bytes:
    loud = LOUD[opcode]
    if loud in (O.SET, O.ADD, O.REPLACE):
        return store(key, b"%d" % number, number, opcode, flags=number, cas=cas)
    if loud in (O.APPEND, O.PREPEND):
        return concat(key, b"%d" % number, number, opcode)
    if loud in (O.INCR, O.DECR):
        return count(key, number, opcode, expires=NEVER_CREATE if number else 0)
    if loud in (O.TOUCH, O.GAT, O.GATK):
        return touch(key, number, opcode)
    if loud in (O.GET, O.GETK, O.DELETE):
        return get(key, number, opcode)
    return bare(opcode, number)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    parts = []
    for size in sizes:
        parts.append(data[:size])
        data = data[size:]
    return [*parts, data]


# Order


def test_P2_answers_come_in_the_order_of_requests_whichever_server_is_first() -> None:
    house, client = opened(servers=3)
    asked = [(n, house.key_on(n % 3, n)) for n in range(9)]
    client.send(b"".join(get(key, n) for n, key in asked) + bare(O.NOOP, 9))
    for link in (house.links[2], house.links[0], house.links[1]):
        link.deliver(link.execute())
    assert [opaque for _, opaque, _ in client.told] == list(range(10))
    settled(house)


@given(order=st.lists(st.integers(0, 2), min_size=12, max_size=12), late=st.booleans())
def test_P2_order_holds_for_any_order_of_answers(order: list[int], late: bool) -> None:
    house, client = opened(servers=3)
    for number, index in enumerate(order):
        client.send(store(house.key_on(index), b"v", number), bare(O.NOOP, 100 + number))
    answers = [(link, link.execute()) for link in house.links]
    if late:
        answers.reverse()
    for link, data in answers:
        link.deliver(data)
    assert [opaque for _, opaque, _ in client.told] == [
        opaque for number in range(12) for opaque in (number, 100 + number)
    ]
    settled(house)


def test_P2_a_pipelined_get_reads_what_was_set() -> None:
    house, client = opened(connections=2)
    for number in range(50):
        client.send(store(b"k", b"%d" % number, number, O.SETQ) + get(b"k", number))
    assert not house.links[1].opcodes
    house.serve()
    assert [frame.value for frame in client.frames] == [b"%d" % number for number in range(50)]


def test_P2_after_a_write_timed_out_the_client_keeps_to_that_connection() -> None:
    house, client = opened(connections=2)
    client.send(store(b"k", b"old", 1))
    house.links[0].pull()
    house.pass_time(0.41)
    assert client.told == [(O.SET, 1, Status.NOT_STORED)]
    client.send(store(b"k", b"new", 2))
    for link in reversed(house.links):
        link.deliver(link.execute())
    client.send(get(b"k", 3))
    house.serve()
    assert client.told[1:] == [(O.SET, 2, 0), (O.GET, 3, 0)]
    assert client.frames[-1].value == b"new"


def test_P1_two_clients_with_the_same_opaque_get_their_own_values() -> None:
    house = House()
    house.stores[0].items = {b"a": (bytes(4), b"A", 1), b"b": (bytes(4), b"B", 2)}
    one, two = house.client(), house.client()
    one.send(get(b"a", 5))
    two.send(get(b"b", 5))
    one.send(get(b"a", 5))
    house.serve()
    assert [frame.value for frame in one.frames] == [b"A", b"A"]
    assert [frame.value for frame in two.frames] == [b"B"]


def test_P1_an_answer_with_a_wrong_opaque_reaches_nobody() -> None:
    house, client = opened()
    client.send(store(b"k", b"v", 1, O.ADD), get(b"k", 2, O.GETK))
    said = bytearray(house.links[0].execute())
    said[12:16] = b"\x12\x34\x56\x78"
    link = house.links[0]
    link.deliver(bytes(said))
    assert link.distrust is not None
    house.pass_time(0.41)
    assert client.received == refusal(O.ADD, opaque_of(1), Status.NOT_STORED) + answer(
        O.GETK, opaque_of(2), Status.NOT_FOUND, key=b"k"
    )


def test_P1_an_answer_to_another_command_reaches_nobody() -> None:
    house, client = opened()
    client.send(get(b"k", 1, O.DELETE))
    link = house.links[0]
    said = link.execute()
    link.deliver(said[:1] + bytes((O.SET,)) + said[2:])
    assert link.distrust is not None
    assert client.told == [(O.DELETE, 1, Status.NOT_STORED)]


def test_answers_of_one_read_are_one_write() -> None:
    house, client = opened()
    client.send(b"".join(get(b"k", number) for number in range(20)))
    house.serve()
    assert len(client.frames) == 20
    assert client.writes == 1


# Framing (CLIENTS.md 3.1, R21 to R23)


@pytest.mark.parametrize(
    "asked",
    [
        request(0x1B, extras=bytes(4), opaque=opaque_of(1)),  # VERBOSITY, as xmemcached sends it
        request(0x25, opaque=opaque_of(1)),
        request(0x1F, b"key", opaque=opaque_of(1)),
        request(0x40, b"key", extras=b"12345678", value=b"\x80" * 100, opaque=opaque_of(1)),
        request(0xFF, value=b"\x80" * 5000, opaque=opaque_of(1)),
    ],
    ids=lambda asked: hex(asked[1]),
)
@pytest.mark.parametrize("size", [1, 7, 30, 100000])
def test_an_unknown_command_is_refused_and_its_body_swallowed(asked: bytes, size: int) -> None:
    house, client = opened()
    client.send(*chunks(asked + bare(O.NOOP, 2), size))
    assert client.received == refusal(asked[1], opaque_of(1), Status.UNKNOWN_COMMAND) + answer(
        O.NOOP, opaque_of(2)
    )
    assert not client.closed
    assert house.listener.protocol_errors == {"unknown_command": 1}
    assert house.links[0].opcodes == []


def chunks(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def frame(opcode: int, key: bytes = b"", extras: bytes = b"", value: bytes = b"") -> bytes:
    return request(opcode, key, extras=extras, value=value, opaque=opaque_of(1))


INVALID = {
    "GET without a key": frame(O.GET),
    "SET without a key": frame(O.SET, extras=bytes(8), value=b"v"),
    "SETQ without a key": frame(O.SETQ, extras=bytes(8), value=b"v"),
    "DELETE without a key": frame(O.DELETE),
    "TOUCH without a key": frame(O.TOUCH, extras=bytes(4)),
    "INCR without a key": frame(O.INCR, extras=bytes(20)),
    "APPEND without a key": frame(O.APPEND, value=b"v"),
    "GET of a key of 251": frame(O.GET, b"k" * 251),
    "SET of a key of 251": frame(O.SET, b"k" * 251, bytes(8), b"v"),
    "NOOP with a key of 251": frame(O.NOOP, b"k" * 251),
    "STAT with a key of 251": frame(O.STAT, b"k" * 251),
    "GET with extras": frame(O.GET, b"k", bytes(4)),
    "SET without extras": frame(O.SET, b"k", b"", b"v"),
    "SETQ with short extras": frame(O.SETQ, b"k", bytes(4), b"v"),
    "INCR with short extras": frame(O.INCR, b"k", bytes(8)),
    "INCR with a value": frame(O.INCR, b"k", bytes(20), b"v"),
    "TOUCH without extras": frame(O.TOUCH, b"k"),
    "GAT with long extras": frame(O.GAT, b"k", bytes(8)),
    "APPEND with extras": frame(O.APPEND, b"k", bytes(8), b"v"),
    "DELETE with extras": frame(O.DELETE, b"k", bytes(4)),
    "FLUSH with long extras": frame(O.FLUSH, extras=bytes(8)),
    "FLUSHQ with a key": frame(O.FLUSHQ, b"k"),
    "STAT with extras": frame(O.STAT, extras=bytes(4)),
    "STAT with a value": frame(O.STAT, b"k", value=b"v"),
    "GET with a value": frame(O.GET, b"k", value=b"v"),
    "VERSION with a key": frame(O.VERSION, b"k"),
    "QUIT with a key": frame(O.QUIT, b"k"),
    "NOOP with a value": frame(O.NOOP, value=b"v"),
    "SASL_LIST with a key": frame(O.SASL_LIST, b"k"),
    "SASL_AUTH without a mechanism": frame(O.SASL_AUTH, value=b"\0u\0p"),
    "SASL_AUTH with a mechanism of 33": frame(O.SASL_AUTH, b"m" * 33, value=b"\0u\0p"),
}


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("size", [1, 25, 100000])
def test_an_invalid_request_is_refused_and_its_connection_kept(name: str, size: int) -> None:
    house, client = opened()
    asked = INVALID[name]
    client.send(*chunks(asked + bare(O.NOOP, 2), size))
    assert client.received == refusal(asked[1], opaque_of(1), Status.INVALID) + answer(
        O.NOOP, opaque_of(2)
    )
    assert house.links[0].opcodes == []
    assert house.listener.protocol_errors == {"invalid": 1}


@pytest.mark.parametrize("opcode", [O.GETQ, O.GETKQ, O.GATQ, O.GATKQ])
@pytest.mark.parametrize("key", [b"", b"k" * 251], ids=["no key", "long key"])
@pytest.mark.parametrize("size", [1, 100000])
def test_an_invalid_quiet_get_is_answered_with_nothing(opcode: int, key: bytes, size: int) -> None:
    _, client = opened()
    client.send(*chunks(frame(opcode, key) + bare(O.NOOP, 2), size))
    assert client.received == answer(O.NOOP, opaque_of(2))


def test_an_invalid_request_is_answered_in_its_place() -> None:
    house, client = opened()
    client.send(get(b"k", 0) + INVALID["GET with a value"] + get(b"k", 2))
    assert client.received == b""
    house.serve()
    assert [opaque for _, opaque, _ in client.told] == [0, 1, 2]


@pytest.mark.parametrize("key", [b"k", b"k" * 250, b"a b\0c\r\n"], ids=["1", "250", "odd"])
def test_keys_that_memcached_takes_pass(key: bytes) -> None:
    house, client = opened()
    client.send(store(key, b"v", 1), get(key, 2, O.GETK))
    house.serve()
    assert client.frames[1].key == key


@pytest.mark.parametrize("opcode", [O.GET, O.GETQ, O.SET, O.NOOP, 0x99])
def test_lost_framing_is_refused_and_closes_after_earlier_answers(opcode: int) -> None:
    house, client = opened()
    asked = bytearray(request(opcode, b"kk", opaque=opaque_of(2)))
    asked[11] = 1  # a body shorter than its key
    client.send(get(b"k", 1) + bytes(asked) + bare(O.NOOP, 3))
    assert not client.closed
    house.serve()
    assert client.told == [(O.GET, 1, Status.NOT_FOUND), (opcode, 2, Status.UNKNOWN_COMMAND)]
    assert client.closed
    assert house.listener.protocol_errors == {"framing": 1}
    settled(house)


@pytest.mark.parametrize(
    "garbage",
    [b"\x81" + bare(O.NOOP)[1:], b"get k\r\n", b"\0", b"\x81" * 24],
    ids=["an answer", "text", "a byte", "a header"],
)
@pytest.mark.parametrize("size", [1, 100000])
def test_a_bad_magic_closes_after_earlier_answers(garbage: bytes, size: int) -> None:
    house, client = opened()
    client.send(*chunks(get(b"k", 1) + garbage, size))
    client.send(bare(O.NOOP, 3))
    assert not client.closed
    house.serve()
    assert client.told == [(O.GET, 1, Status.NOT_FOUND)]
    assert client.closed
    assert house.listener.protocol_errors == {"magic": 1}
    settled(house)


@pytest.mark.parametrize("opcode", [O.SET, O.SETQ])
@pytest.mark.parametrize("size", [1, 30, 100000])
def test_a_set_too_large_deletes_the_old_value_in_its_place(opcode: int, size: int) -> None:
    house, client = opened(max_value_size=100)
    house.stores[0].items[b"k"] = (bytes(4), b"old", 1)
    asked = get(b"k", 1) + store(b"k", b"\x80" * 101, 2, opcode) + get(b"k", 3) + bare(O.NOOP, 4)
    client.send(*chunks(asked, size))
    assert house.links[0].opcodes == [O.GET, O.DELETE, O.GET]
    assert house.links[0].asked[1].key == b"k"
    house.serve()
    assert client.told == [
        (O.GET, 1, 0),
        (opcode, 2, Status.TOO_LARGE),
        (O.GET, 3, Status.NOT_FOUND),
        (O.NOOP, 4, 0),
    ]
    assert client.frames[1].value == b"Too large."
    settled(house)


@pytest.mark.parametrize("opcode", [O.ADD, O.ADDQ, O.REPLACE, O.APPEND, O.PREPENDQ])
@pytest.mark.parametrize("size", [1, 100000])
def test_other_values_too_large_are_refused_and_nothing_is_sent(opcode: int, size: int) -> None:
    house, client = opened(max_value_size=100)
    make = concat if LOUD[opcode] in (O.APPEND, O.PREPEND) else store
    client.send(*chunks(make(b"k", b"\x80" * 101, 1, opcode) + bare(O.NOOP, 2), size))
    assert client.told == [(opcode, 1, Status.TOO_LARGE), (O.NOOP, 2, 0)]
    assert house.links[0].opcodes == []


def test_a_value_of_just_the_size_passes() -> None:
    house, client = opened(max_value_size=100)
    client.send(store(b"k", b"v" * 100, 1))
    house.serve()
    assert client.told == [(O.SET, 1, 0)]


def test_a_set_too_large_is_answered_though_its_delete_is_not() -> None:
    house, client = opened(max_value_size=100)
    client.send(store(b"k", b"v" * 101, 1))
    house.links[0].pull()
    house.pass_time(0.41)
    assert client.told == [(O.SET, 1, Status.TOO_LARGE)]


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0x80000010, 0xFFFFFFFF, 33 * MIB])
def test_a_body_too_long_to_be_read_past_is_answered_and_closes(length: int) -> None:
    house, client = opened()
    head = bytearray(store(b"k", b"", 1))
    head[8:12] = length.to_bytes(4, "big")
    client.send(bytes(head))
    house.serve()
    assert client.told == [(O.SET, 1, Status.TOO_LARGE)]
    assert client.closed
    assert house.listener.protocol_errors == {"too_long": 1}


def test_a_request_goes_upstream_only_when_it_is_whole() -> None:
    house, client = opened()
    asked = store(b"k", b"v" * 2000, 1)
    client.send(asked[:-1])
    assert house.links[0].opcodes == []
    assert house.budget.used == len(asked)
    client.send(asked[-1:])
    assert house.links[0].opcodes == [O.SET]
    assert house.budget.used == 0


def test_the_time_of_an_unfinished_frame_is_that_of_its_first_byte() -> None:
    house, client = opened()
    intake = client.session.intake
    client.send(bare(O.NOOP) + get(b"key")[:10])
    began = house.now
    house.now += 1
    client.send(get(b"key")[10:25])
    assert intake.since == began
    house.now += 1
    client.send(get(b"key")[25:] + b"\x80")
    assert intake.since == house.now
    client.send(bare(O.NOOP)[1:])
    assert intake.since == 0


def test_the_time_of_an_unfinished_frame_is_not_that_of_one_read_past() -> None:
    house, client = opened(max_value_size=100)
    asked = store(b"k", b"v" * 2000, 1)
    client.send(asked[:1000])
    house.now += 5
    client.send(asked[1000:] + b"\x80")
    assert client.session.intake.since == house.now


def test_the_time_of_an_unfinished_frame_is_not_that_of_one_before_the_held_ones() -> None:
    house, client = opened()
    began = house.now
    client.send(bare(O.NOOP)[:10])
    house.now += 5
    client.send(bare(O.NOOP)[10:] + bare(O.NOOP) * (REQUESTS_A_TURN - 1) + store(b"k", b"v")[:-1])
    client.take_turn()
    assert client.session.intake.since > began


# The end of a client


def test_quit_is_answered_after_all_that_came_before_it() -> None:
    house, client = opened()
    client.send(get(b"k", 1) + bare(O.QUIT, 2) + get(b"k", 3))
    assert not client.closed
    house.serve()
    assert client.told == [(O.GET, 1, Status.NOT_FOUND), (O.QUIT, 2, 0)]
    assert client.closed
    settled(house)


def test_quitq_closes_silently_and_what_came_before_is_carried_out() -> None:
    house, client = opened()
    client.send(store(b"k", b"v", opcode=O.SETQ) + get(b"k", opcode=O.GETKQ) + bare(O.QUITQ))
    house.serve()
    assert client.told == [(O.GETKQ, 0, 0)]
    assert client.closed


def test_a_client_that_half_closes_gets_all_its_answers_first() -> None:
    house, client = opened()
    client.send(b"".join(store(b"k%d" % n, b"v", n) for n in range(200)))
    client.half_close()
    assert not client.closed
    house.serve()
    assert [opaque for _, opaque, _ in client.told] == list(range(200))
    assert client.closed
    settled(house)


def test_a_client_that_half_closes_in_mid_frame_is_closed() -> None:
    house, client = opened()
    client.send(store(b"k", b"v" * 5000)[:3000])
    client.half_close()
    assert client.closed
    assert client.received == b""
    settled(house)


def test_an_idle_client_that_half_closes_is_closed_at_once() -> None:
    _, client = opened()
    client.half_close()
    assert client.closed


def test_of_a_client_that_left_whole_writes_are_sent_and_reads_are_not() -> None:
    house, client = opened()
    client.send(get(b"k"), store(b"k", b"v", opcode=O.SETQ), get(b"k", opcode=O.GETKQ))
    client.send(get(b"old", opcode=O.DELETE), bare(O.STAT), store(b"part", b"v")[:-1])
    client.leave()
    assert [code for code in house.links[0].opcodes if code != O.STAT] == [O.SET, O.DELETE]
    house.serve()
    assert client.received == b""
    assert set(house.stores[0].items) == {b"k"}
    house.pass_time(0.41)
    settled(house)


def test_answers_to_a_client_that_left_are_dropped_and_the_connection_lives() -> None:
    house, client = opened()
    client.send(get(b"k", 1), store(b"k", b"v", 2), bare(O.STAT, 3), touch(b"k", 4, O.GAT))
    link = house.links[0]
    answers = link.execute()
    client.leave()
    assert link.mux.tombstones >= 3
    link.deliver(*chunks(answers, 10))
    other = house.client()
    other.send(get(b"k", 1))
    house.serve()
    assert link.distrust is None
    assert client.received == b""
    assert [frame.value for frame in other.frames] == [b"v"]
    settled(house)


def test_the_writes_that_wait_for_a_connection_are_sent_though_their_client_left() -> None:
    house, client = opened(connections=0)
    client.send(get(b"k"), store(b"k", b"v"), get(b"k"))
    client.leave()
    link = house.connect()
    assert link.opcodes == [O.SET]
    house.serve()
    assert house.stores[0].items[b"k"][1] == b"v"
    house.pass_time(0.41)
    settled(house)


def test_writes_of_a_client_that_left_are_given_up_at_their_deadline() -> None:
    house, client = opened(connections=0)
    client.send(store(b"k", b"v"))
    client.leave()
    house.pass_time(0.41)
    assert house.connect().opcodes == []
    settled(house)


def test_answers_that_waited_for_others_are_forgotten_when_the_client_leaves() -> None:
    house, client = opened(servers=2)
    house.stores[1].items[house.key_on(1)] = (bytes(4), b"v" * 100000, 1)
    client.send(get(house.key_on(0)), get(house.key_on(1)))
    house.links[1].deliver(house.links[1].execute())
    assert house.budget.used > 100000
    client.leave()
    assert house.budget.used == 0


# Turns and bounds


def test_after_64_frames_others_get_their_turn() -> None:
    house, client = opened()
    client.send(b"".join(get(b"k", number) for number in range(200)))
    assert client.session.held
    taken = [len(house.links[0].opcodes)]
    while client.session.held:
        client.take_turn()
        taken.append(len(house.links[0].opcodes))
    assert taken == [64, 128, 192, 200]
    house.serve()
    assert [opaque for _, opaque, _ in client.told] == list(range(200))


def test_bytes_that_come_while_frames_are_held_follow_them() -> None:
    house, client = opened()
    sent = b"".join(get(b"k", number) for number in range(150))
    client.send(sent[:3000], sent[3000:3010], sent[3010:])
    house.serve()
    assert [opaque for _, opaque, _ in client.told] == list(range(150))


def test_P3_held_frames_keep_the_time_of_their_read() -> None:
    house, client = opened()
    client.send(b"".join(get(b"k", number) for number in range(65)))
    house.now += 0.3
    client.take_turn()
    house.links[0].pull()
    house.pass_time(0.11)
    assert len(client.told) == 65


def test_P6_a_client_owed_1024_requests_is_not_read_from() -> None:
    house, client = opened()
    client.send(b"".join(get(b"k", number) for number in range(FULL_REQUESTS + 100)))
    while client.session.held and not client.session.full:
        client.take_turn()
    assert client.session.full
    assert client.session.held
    assert house.links[0].mux.load <= FULL_REQUESTS + REQUESTS_A_TURN
    house.serve()
    assert not client.session.full
    assert len(client.told) == FULL_REQUESTS + 100


def test_P6_a_client_whose_requests_take_4_mib_is_not_read_from() -> None:
    house, client = opened()
    for number in range(5):
        assert not client.session.full
        client.send(store(b"k", b"v" * (MIB - KIB), number))
    assert client.session.full
    house.serve()
    assert not client.session.full


def test_P6_unread_answers_count_too() -> None:
    _, client = opened()
    client.session.unread = FULL_BYTES
    assert client.session.full


def test_the_answer_that_is_coming_counts_too() -> None:
    house, client = opened()
    house.stores[0].items[b"k"] = (bytes(4), b"v" * MIB, 1)
    client.send(*(get(b"k", number) for number in range(5)))
    answers = house.links[0].execute()
    assert client.session.owed_bytes < KIB
    house.links[0].deliver(answers[:100])
    assert client.session.owed_bytes > MIB
    house.links[0].deliver(answers[100:])
    assert client.session.owed_bytes == 0
    assert len(client.told) == 5


@pytest.mark.parametrize("asked", [*QUIET_GETS, get(b"k", 7), get(b"k", 7, O.GETK)])
def test_P6_a_hit_for_a_client_that_does_not_read_is_a_miss(asked: bytes) -> None:
    house, client = opened()
    house.stores[0].items[b"k"] = (bytes(4), b"v", 1)
    client.session.choked = True
    client.send(asked, store(b"k", b"v", 8), count(b"k", 9))
    house.serve()
    if asked[1] in QUIET:
        assert [code for code, _, _ in client.told] == [O.SET, O.INCR]
    else:
        assert client.told[0] == (asked[1], 7, Status.NOT_FOUND)
        assert client.frames[0].key == (b"k" if asked[1] == O.GETK else b"")
    assert house.degraded == [(LOUD[asked[1]], "overloaded")]


def test_P6_answers_that_wait_for_an_earlier_one_are_bounded() -> None:
    house, client = opened(servers=2)
    key = house.key_on(1)
    house.stores[1].items[key] = (bytes(4), b"v" * MIB, 1)
    client.send(get(house.key_on(0), 0))
    client.send(*(get(key, number, O.GETK) for number in range(1, 20)))
    client.send(*(get(key, number, O.GETKQ) for number in range(20, 22)))
    house.links[1].deliver(house.links[1].execute())
    assert house.budget.used <= answers_module.CHOKED_BYTES + KIB
    house.serve()
    told = client.told
    assert told[:16] == [(O.GET, 0, 1), *((O.GETK, number, 0) for number in range(1, 16))]
    # What is over the bound is a miss as memcached would tell it: with the key, or not at all.
    assert told[16:] == [(O.GETK, number, 1) for number in range(16, 20)]
    assert all(frame.key == key for frame in client.frames[16:])
    assert house.degraded == [(O.GETK, "overloaded")] * 6
    settled(house)


def test_P6_answers_that_wait_are_bounded_by_what_all_clients_may_keep() -> None:
    house, client = opened(servers=2, limit=100 * KIB)
    key = house.key_on(1)
    house.stores[1].items[key] = (bytes(4), b"v" * 30 * KIB, 1)
    client.send(get(house.key_on(0), 0), *(get(key, number) for number in range(1, 6)))
    house.links[1].deliver(house.links[1].execute())
    assert 0 < house.budget.used <= house.budget.limit
    house.serve()
    assert [status for _, _, status in client.told] == [1, 0, 0, 0, 1, 1]
    settled(house)


def test_P6_a_connection_carries_at_most_8192_requests() -> None:
    house = House()
    link = house.links[0]
    clients = [house.client() for _ in range(9)]
    for client in clients:
        client.send(*(get(b"k", number) for number in range(1000)))
    assert link.mux.load == MAX_ENTRIES
    assert house.degraded == [(O.GET, "overloaded")] * (9000 - MAX_ENTRIES)
    assert clients[8].told == []  # in its place, behind what is still in flight
    house.serve()
    assert [len(client.told) for client in clients] == [1000] * 9
    settled(house)


def test_P6_a_connection_keeps_at_most_16_mib_unsent() -> None:
    house = House()
    for number in range(20):
        house.client().send(store(b"k%d" % number, b"v" * (MIB - KIB), number))
    assert MAX_UNSENT <= house.links[0].mux.unsent_bytes <= MAX_UNSENT + MIB
    assert house.degraded == [(O.SET, "overloaded")] * 3
    assert [client.told for client in house.clients[17:]] == [
        [(O.SET, number, Status.NOT_STORED)] for number in range(17, 20)
    ]


def test_P6_a_large_body_is_reserved_at_its_header_or_read_past() -> None:
    house = House(limit=100 * KIB)
    one, two = house.client(), house.client()
    asked = store(b"k", b"v" * 80 * KIB, 1)
    one.send(asked[:100])
    assert house.budget.used == len(asked)
    two.send(*chunks(asked + bare(O.NOOP, 2), 1000))
    assert two.told == [(O.SET, 1, Status.NOT_STORED), (O.NOOP, 2, 0)]
    assert house.degraded == [(O.SET, "overloaded")]
    one.send(asked[100:])
    house.serve()
    assert one.told == [(O.SET, 1, 0)]
    settled(house)


def test_P6_requests_that_wait_for_a_connection_are_bounded() -> None:
    house, client = opened(connections=0, limit=10 * KIB)
    client.send(*(store(b"k", b"v" * 900, number, O.SETQ) for number in range(20)))
    assert 0 < house.budget.used <= house.budget.limit
    refused = len(house.degraded)
    assert house.degraded == [(O.SET, "overloaded")] * refused
    assert 8 <= refused <= 10
    house.connect()
    house.serve()
    assert len(client.told) == refused
    settled(house)


# Statuses of servers


def all_commands() -> list[bytes]:
    """One well-formed request of every command that goes to a server by its key."""
    made = [_command(code, b"k", 7, 0) for code in O]
    plain = (O.NOOP, O.VERSION, O.QUIT, O.FLUSH, O.STAT, O.SASL_LIST, O.SASL_AUTH, O.SASL_STEP)
    return [asked for asked in made if LOUD[asked[1]] not in plain]


#: What a client hears when there is no answer (RELIABILITY.md, 2): status and body, by opcode.
DEGRADED: dict[int, tuple[int, bytes] | None] = {
    **dict.fromkeys((O.GET, O.GAT, O.TOUCH), (0x01, b"Not found")),
    **dict.fromkeys((O.GETK, O.GATK), (0x01, b"k")),
    **dict.fromkeys((O.GETQ, O.GETKQ, O.GATQ, O.GATKQ), None),
    **dict.fromkeys((O.SET, O.ADD, O.REPLACE, O.APPEND, O.PREPEND), (0x05, b"Not stored.")),
    **dict.fromkeys((O.SETQ, O.ADDQ, O.REPLACEQ, O.APPENDQ, O.PREPENDQ), (0x05, b"Not stored.")),
    **dict.fromkeys((O.DELETE, O.INCR, O.DECR), (0x05, b"Not stored.")),
    **dict.fromkeys((O.DELETEQ, O.INCRQ, O.DECRQ), (0x01, b"Not found")),
}


def degraded_reply(opcode: int) -> bytes:
    said = DEGRADED[opcode]
    if said is None:
        return b""
    keyed = opcode in (O.GETK, O.GATK)
    return answer(
        opcode,
        opaque_of(7),
        said[0],
        key=said[1] if keyed else b"",
        value=b"" if keyed else said[1],
    )


@pytest.mark.parametrize("asked", all_commands(), ids=lambda asked: O(asked[1]).name)
@pytest.mark.parametrize("status", [0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x07, 0x21])
def test_an_upstream_status_that_clients_do_not_survive_is_degraded(
    asked: bytes, status: int
) -> None:
    house, client = opened()
    client.send(asked)
    link = house.links[0]
    link.deliver(link.refuse(status))
    assert client.received == degraded_reply(asked[1])
    assert link.distrust is None
    assert house.degraded == [(LOUD[asked[1]], "error")]


@pytest.mark.parametrize("asked", all_commands(), ids=lambda asked: O(asked[1]).name)
def test_an_upstream_refusal_costs_the_connection_only_where_it_must(asked: bytes) -> None:
    house, client = opened()
    client.send(asked)
    link = house.links[0]
    link.deliver(link.refuse(Status.AUTH_FAILED))
    house.pass_time(0.41)
    assert client.received == degraded_reply(asked[1])
    assert (link.distrust is not None) == (LOUD[asked[1]] in GETS)
    if link.distrust is None:
        assert house.degraded == [(LOUD[asked[1]], "refused")]


@pytest.mark.parametrize("asked", all_commands(), ids=lambda asked: O(asked[1]).name)
@pytest.mark.parametrize("status", [1, 2, 3, 4, 5, 6])
def test_an_upstream_verdict_passes_but_for_gets(asked: bytes, status: int) -> None:
    house, client = opened()
    client.send(asked)
    house.links[0].deliver(house.links[0].refuse(status, b"words"))
    if LOUD[asked[1]] not in GETS:
        assert client.received == answer(asked[1], opaque_of(7), status, value=b"words")
    elif status != 1:
        assert client.received == degraded_reply(asked[1])


@pytest.mark.parametrize("asked", all_commands(), ids=lambda asked: O(asked[1]).name)
def test_on_unavailable_error_tells_changes_so_and_gets_a_miss(asked: bytes) -> None:
    house, client = opened(errors_on_unavailable=True)
    client.send(asked)
    house.links[0].deliver(house.links[0].refuse(0x85))
    if LOUD[asked[1]] in GETS:
        assert client.received == degraded_reply(asked[1])
    else:
        assert client.told == [(asked[1], 7, Status.TEMPORARY_FAILURE)]
        assert client.frames[0].value


def test_a_value_over_the_bound_is_read_past_and_a_miss() -> None:
    house, client = opened(max_value_size=1000)
    house.stores[0].items[b"k"] = (bytes(4), b"\x81" * 1001, 1)
    house.stores[0].items[b"l"] = (bytes(4), b"v", 2)
    client.send(get(b"k", 1, O.GETK), get(b"l", 2))
    link = house.links[0]
    link.deliver(*chunks(link.execute(), 100))
    assert client.received == answer(O.GETK, opaque_of(1), 1, key=b"k") + answer(
        O.GET, opaque_of(2), extras=bytes(4), value=b"v", cas=2
    )
    assert house.degraded == [(O.GETK, "too_large")]


# What is counted


def test_each_request_is_counted_once_with_what_became_of_it() -> None:
    house, client = opened(servers=2)
    here, there = house.key_on(0), house.key_on(1)
    client.send(store(here, b"v"), get(there, opcode=O.GETQ), store(here, b"v", opcode=O.ADDQ))
    client.send(bare(O.NOOP), bare(O.FLUSH), get(here), frame(0x55))
    house.serve()
    assert sorted(house.server_counts[0].settled) == [
        (O.GET, "miss"),
        (O.SET, "hit"),
        (O.ADD, "badval"),
        (O.FLUSH, "hit"),
    ]
    assert sorted(house.server_counts[1].settled) == [(O.GET, "miss"), (O.FLUSH, "hit")]
    assert house.counts.local.settled == [(O.NOOP, "hit"), (0x55, "unknown_command")]
    assert house.counts == AllCounts(local=house.counts.local)
