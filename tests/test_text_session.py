"""A client of the text protocol: what it is told, in which order, and what it cannot break.

What memcached itself says to the same bytes is compared in `test_text_differential`; here servers
are late, lost and several, and the bounds are small.
"""

from collections.abc import Iterator

import pytest
from core_harness import Client, House, O, get, opaque_of

from memtunnel.core.answers import CHOKED_BYTES, FULL_REQUESTS
from memtunnel.core.breaker import FAILED_DIALS
from memtunnel.core.session import MAX_SWALLOW, REQUESTS_A_TURN
from memtunnel.core.text_session import LONGEST_GET, LONGEST_LINE, TextSession
from memtunnel.wire.binary import Status
from memtunnel.wire.command import UNAVAILABLE
from memtunnel.wire.sasl import Credentials, Secret

MINE = Credentials(username="user1", password=Secret("secret"))
STORED = b"STORED\r\n"
END = b"END\r\n"


def opened(servers: int = 1, **options: object) -> tuple[House, Client]:
    house = House(servers, **options)  # type: ignore[arg-type]
    return house, house.client(TextSession)


def talk(asked: bytes, **options: object) -> bytes:
    """What a client is told to all that it asks at once."""
    house, client = opened(**options)  # type: ignore[arg-type]
    client.send(asked)
    house.serve()
    settled(house)
    return client.received


def settled(house: House) -> None:
    assert house.budget.used == 0
    assert not any(link.mux.load for link in house.links)
    assert not any(client.session._owed for client in house.clients)


def down(house: House, index: int = 0) -> None:
    """A server cannot be reached."""
    for link in [link for link in house.links if link.server.index == index]:
        link.lose()
    for _ in range(FAILED_DIALS):
        house.servers[index].dial_failed(house.now)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


CONVERSATION = (
    b"set a 5 0 3\r\none\r\nget a b a\r\ngets a\r\nadd a 0 0 1\r\nx\r\nreplace b 0 0 1\r\nx\r\n"
    b"append a 0 0 1\r\n!\r\nprepend a 0 0 1 noreply\r\n?\r\nget a\r\ncas a 0 0 1 99\r\nx\r\n"
    b"cas b 0 0 1 9\r\nx\r\nset n 0 0 2\r\n41\r\nincr n 1\r\ndecr n 50\r\nincr a 1\r\nincr b 1\r\n"
    b"touch n 0\r\ntouch b 0\r\ngat 0 n b\r\ndelete n noreply\r\ndelete n\r\nflush_all\r\nget a\r\n"
    b"verbosity 1\r\nmn\r\nnonsense\r\nversion\r\nquit\r\nget a\r\n"
)
TOLD = (
    b"STORED\r\nVALUE a 5 3\r\none\r\nVALUE a 5 3\r\none\r\nEND\r\nVALUE a 5 3 1\r\none\r\nEND\r\n"
    b"NOT_STORED\r\nNOT_STORED\r\nSTORED\r\nVALUE a 5 5\r\n?one!\r\nEND\r\nEXISTS\r\nNOT_FOUND\r\n"
    b"STORED\r\n42\r\n0\r\nCLIENT_ERROR cannot increment or decrement non-numeric value\r\n"
    b"NOT_FOUND\r\nTOUCHED\r\nNOT_FOUND\r\nVALUE n 0 1\r\n0\r\nEND\r\nNOT_FOUND\r\nOK\r\nEND\r\n"
    b"OK\r\nMN\r\nERROR\r\nVERSION 1.6.0\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100000])
def test_a_conversation_reads_the_same_in_any_pieces(size: int) -> None:
    house, client = opened()
    for piece in pieces(CONVERSATION, size):
        client.send(piece)
    house.serve()
    assert client.received == TOLD
    assert client.closed
    settled(house)


META = (
    b"ms a 3 T0 F5 c k Ox\r\none\r\nmg a v f c s k Oy\r\nmg a\r\nmg b k O1\r\nmg b q\r\n"
    b"ms a 1 ME\r\nx\r\nms b 1 MR\r\nx\r\nms a 1 MA q\r\n!\r\nms a 1 C99 c\r\nx\r\nmg a v T30\r\n"
    b"ma n\r\nma n N0 J41 v\r\nma n D1 v k\r\nma n MD D50 v c\r\n"
    b"ma a\r\nmd n C99\r\nmd n q\r\nmd n\r\n"
    b"ms YQ== 1 b k\r\nz\r\nmg YQ== b k v\r\nmg a v t\r\nme a\r\nms a 1 I\r\nx\r\nmg a v\r\nmn\r\n"
)
META_TOLD = (
    b"HD c1 ka Ox\r\nVA 3 f5 c1 s3 ka Oy\r\none\r\nHD\r\nEN kb O1\r\n"
    b"NS\r\nNS\r\nEX c0\r\nVA 4\r\none!\r\n"
    b"NF\r\nVA 2\r\n41\r\nVA 2 kn\r\n42\r\nVA 1 c5\r\n0\r\n"
    b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\nEX\r\nNF\r\n"
    b"HD kYQ== b\r\nVA 1 kYQ== b\r\nz\r\nCLIENT_ERROR unsupported flag\r\n"
    b"CLIENT_ERROR unsupported command\r\nCLIENT_ERROR unsupported flag\r\nVA 1\r\nz\r\nMN\r\n"
)


@pytest.mark.parametrize("size", [1, 7, 100000])
def test_so_does_a_conversation_in_meta_commands(size: int) -> None:
    house, client = opened()
    for piece in pieces(META, size):
        client.send(piece)
    house.serve()
    assert client.received == META_TOLD
    settled(house)


# What there is no answer for

DEGRADED = [
    (b"get k\r\n", END),
    (b"gets k l\r\n", END),
    (b"gat 0 k\r\n", END),
    (b"gats 0 k\r\n", END),
    (b"mg k v\r\n", b"EN\r\n"),
    (b"mg k v q\r\n", b""),
    (b"mg k v k Oid\r\n", b"EN kk Oid\r\n"),
    (b"set k 0 0 1\r\nx\r\n", b"NOT_STORED\r\n"),
    (b"add k 0 0 1\r\nx\r\n", b"NOT_STORED\r\n"),
    (b"replace k 0 0 1\r\nx\r\n", b"NOT_STORED\r\n"),
    (b"append k 0 0 1\r\nx\r\n", b"NOT_STORED\r\n"),
    (b"prepend k 0 0 1\r\nx\r\n", b"NOT_STORED\r\n"),
    (b"cas k 0 0 1 1\r\nx\r\n", b"NOT_STORED\r\n"),
    (b"ms k 1\r\nx\r\n", b"NS\r\n"),
    (b"ms k 1 q\r\nx\r\n", b"NS\r\n"),
    (b"ms k 1 Oid c\r\nx\r\n", b"NS Oid c0\r\n"),
    (b"delete k\r\n", UNAVAILABLE),
    (b"incr k 1\r\n", UNAVAILABLE),
    (b"decr k 1\r\n", UNAVAILABLE),
    (b"touch k 1\r\n", UNAVAILABLE),
    (b"flush_all\r\n", UNAVAILABLE),
    (b"md k\r\n", UNAVAILABLE),
    (b"ma k\r\n", UNAVAILABLE),
    (b"set k 0 0 1 noreply\r\nx\r\n", b""),
    (b"delete k noreply\r\n", b""),
    (b"incr k 1 noreply\r\n", b""),
    (b"touch k 1 noreply\r\n", b""),
    (b"flush_all noreply\r\n", b""),
    (b"stats\r\n", END),
    (b"stats reset\r\n", UNAVAILABLE),
    (b"stats detail on\r\n", UNAVAILABLE),
    (b"version\r\n", b"VERSION 1.6.0\r\n"),
    (b"mn\r\n", b"MN\r\n"),
]


@pytest.mark.parametrize(("asked", "told"), DEGRADED, ids=[asked.decode() for asked, _ in DEGRADED])
@pytest.mark.parametrize("trouble", ["down", "late", "lost"])
def test_degraded_replies(asked: bytes, told: bytes, trouble: str) -> None:
    house, client = opened()
    if trouble == "down":
        down(house)
    client.send(asked + b"mn\r\n")
    if trouble == "late":
        answers = house.links[0].execute()
        house.pass_time(0.41)
        house.pass_time(0.41)
        before = client.received
        house.links[0].deliver(answers)
        assert client.received == before
        house.pass_time(10)
    elif trouble == "lost":
        for _ in range(2):  # a read is sent once more
            house.links[0].pull()
            house.links[0].lose()
            house.connect()
        house.links[0].pull()
    assert client.received == told + b"MN\r\n"
    assert house.budget.used == 0


CHANGES = [
    (asked, told) for asked, told in DEGRADED if told in (UNAVAILABLE, b"NOT_STORED\r\n", b"NS\r\n")
]


@pytest.mark.parametrize("asked", [asked for asked, _ in CHANGES])
def test_changes_can_be_answered_with_an_error(asked: bytes) -> None:
    house, client = opened(errors_on_unavailable=True)
    down(house)
    client.send(asked + b"get k\r\nmg k\r\nset k 0 0 1 noreply\r\nx\r\n")
    assert client.received == UNAVAILABLE + END + b"EN\r\n"


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (Status.TOO_LARGE, b"SERVER_ERROR object too large for cache\r\n"),
        (Status.INVALID, b"CLIENT_ERROR bad command line format\r\n"),
        (Status.NOT_STORED, b"NOT_STORED\r\n"),
        (Status.NON_NUMERIC, b"SERVER_ERROR Non-numeric server-side value for incr or decr\r\n"),
        (Status.OUT_OF_MEMORY, b"SERVER_ERROR out of memory storing object\r\n"),
        (Status.AUTH_FAILED, b"NOT_STORED\r\n"),
        (Status.BUSY, b"NOT_STORED\r\n"),
        (Status.TEMPORARY_FAILURE, b"NOT_STORED\r\n"),
        (0x1234, b"NOT_STORED\r\n"),
    ],
)
def test_a_servers_errors_to_a_store(status: int, told: bytes) -> None:
    house, client = opened()
    client.send(b"set k 0 0 1\r\nx\r\nset k 0 0 1 noreply\r\nx\r\n")
    house.links[0].deliver(house.links[0].refuse(status))
    assert client.received == told


@pytest.mark.parametrize("status", [s for s in Status if s not in (Status.OK, Status.AUTH_FAILED)])
def test_a_get_knows_only_hits_and_misses(status: int) -> None:
    house, client = opened()
    client.send(b"get k\r\nmg k\r\n")
    house.links[0].deliver(house.links[0].refuse(status))
    assert client.received == b"END\r\nEN\r\n"


@pytest.mark.parametrize("body", [b"", b"1", b"x" * 500])
def test_a_server_that_answers_in_another_shape_breaks_nothing(body: bytes) -> None:
    house, client = opened()
    client.send(b"get k\r\nincr k 1\r\nma k v\r\nmg k v f c\r\n")
    house.links[0].deliver(house.links[0].refuse(Status.OK, body))
    assert client.received.startswith(b"VALUE k 0 %d\r\n%b\r\nEND\r\n" % (len(body), body))
    assert client.received.count(b"\r\n") == 8


# Order, and several servers


def test_a_get_asks_all_servers_at_once_and_answers_in_the_order_of_its_keys() -> None:
    house, client = opened(3)
    keys = [house.key_on(index, number) for number in range(3) for index in (2, 0, 1)]
    for index, store in enumerate(house.stores):
        store.items = {key: (bytes(4), b"from %d" % index, 1) for key in keys}
    client.send(b"get " + b" ".join(keys) + b"\r\nmn\r\n")
    assert [len(link.opcodes) for link in house.links] == [3, 3, 3]
    for link in reversed(house.links):
        assert not client.received.endswith(b"MN\r\n")
        link.deliver(link.execute())
    assert (
        client.received
        == b"".join(
            b"VALUE %b 0 6\r\nfrom %d\r\n" % (key, (2, 0, 1)[place % 3])
            for place, key in enumerate(keys)
        )
        + b"END\r\nMN\r\n"
    )
    assert client.writes <= 3
    settled(house)


@pytest.mark.parametrize("lost", range(3))
def test_a_server_that_is_down_takes_only_its_own_keys_along(lost: int) -> None:
    house, client = opened(3, failover=False)
    keys = [house.key_on(index) for index in range(3)]
    for store in house.stores:
        store.items = {key: (bytes(4), b"v", 1) for key in keys}
    down(house, lost)
    client.send(b"get " + b" ".join(keys) + b"\r\n")
    house.serve()
    here = [key for index, key in enumerate(keys) if index != lost]
    assert client.received == b"".join(b"VALUE %b 0 1\r\nv\r\n" % key for key in here) + END


def test_commands_for_one_key_are_carried_out_in_their_order() -> None:
    house, client = opened(1, connections=2)
    client.send(
        *[b"set k 0 0 %d noreply\r\n%d\r\nget k\r\n" % (len(b"%d" % n), n) for n in range(20)]
    )
    house.serve()
    assert client.received == b"".join(
        b"VALUE k 0 %d\r\n%d\r\nEND\r\n" % (len(b"%d" % n), n) for n in range(20)
    )


def test_answers_wait_for_those_before_them() -> None:
    house, client = opened(2)
    first, second = house.key_on(0), house.key_on(1)
    client.send(b"get %b\r\nset %b 0 0 1\r\nx\r\nbogus\r\n" % (first, second))
    house.links[1].deliver(house.links[1].execute())
    assert client.received == b""
    house.links[0].deliver(house.links[0].execute())
    assert client.received == b"END\r\nSTORED\r\nERROR\r\n"
    settled(house)


def test_flush_all_goes_to_all_servers() -> None:
    house, client = opened(2)
    for store in house.stores:
        store.items[b"k"] = (bytes(4), b"v", 1)
    client.send(b"flush_all\r\nflush_all 0 noreply\r\nflush_all -1\r\nflush_all soon\r\n")
    house.serve()
    assert client.received == b"OK\r\nOK\r\nCLIENT_ERROR invalid exptime argument\r\n"
    assert not any(store.items for store in house.stores)


def test_flush_all_takes_its_delay_along() -> None:
    house, client = opened()
    client.send(b"flush_all 10\r\n")
    house.links[0].pull()
    assert house.links[0].asked[0].extras == (10).to_bytes(4, "big")


def test_stats() -> None:
    house, client = opened(statistics=[("uptime", "5"), ("empty", "")])
    client.send(b"stats \r\nstats settings\r\nstats nonsense\r\nstats reset\r\nstats memtunnel\r\n")
    house.serve()
    one = b"STAT pid 7\r\nSTAT curr_items 5\r\nSTAT version 1\r\nEND\r\n"
    assert client.received == one + one + b"ERROR\r\nRESET\r\n" + (
        b"STAT uptime 5\r\nSTAT empty\r\nEND\r\n"
    )
    settled(house)


def test_what_some_servers_did_not_do_is_not_claimed() -> None:
    house, client = opened(2)
    down(house, 1)
    client.send(b"stats reset\r\nstats\r\n")
    house.serve()
    assert client.received.startswith(UNAVAILABLE + b"STAT pid 7\r\n")


def test_statistics_that_come_in_count_as_memory() -> None:
    house, client = opened(2)
    house.stores[0].statistics = {b"k%d" % n: b"v" * 100 for n in range(1000)}
    client.send(b"stats\r\n")
    house.links[0].deliver(house.links[0].execute())
    assert house.budget.used > 100_000
    client.leave()
    house.serve()
    settled(house)


def test_stats_of_several_servers_are_summed() -> None:
    told = talk(b"stats\r\n", servers=2)
    assert b"STAT curr_items 10\r\n" in told
    assert b"STAT server1:curr_items 5\r\n" in told
    assert told.count(END) == 1


# Deadlines


def test_a_get_that_is_late_ends_in_time_and_the_next_one_is_right() -> None:
    house, client = opened()
    house.stores[0].items[b"k"] = (bytes(4), b"v", 1)
    client.send(b"get k\r\n")
    late = house.links[0].execute()
    house.pass_time(0.41)
    assert client.received == END
    client.send(b"get k\r\n")
    house.links[0].deliver(late)
    assert client.received == END
    house.serve()
    assert client.received == END + b"VALUE k 0 1\r\nv\r\nEND\r\n"
    settled(house)


# Long lines


def keys_of(number: int) -> list[bytes]:
    return [b"key%d" % n for n in range(number)]


@pytest.mark.parametrize("number", [REQUESTS_A_TURN, REQUESTS_A_TURN + 1, 129, 3000])
@pytest.mark.parametrize("size", [1, 1000, 100000])
def test_a_get_of_many_keys_is_taken_in_turns(number: int, size: int) -> None:
    house, client = opened()
    keys = keys_of(number)
    house.stores[0].items = {key: (bytes(4), b"v", 1) for key in keys[::3]}
    line = b"  get   " + b"  ".join(keys) + b" \r\n"
    client.send(*pieces(line, size))
    client.send(b"get key0\r\n")
    assert len(client.session._owed) <= REQUESTS_A_TURN + 1
    house.serve()
    hits = b"".join(b"VALUE %b 0 1\r\nv\r\n" % key for key in keys[::3])
    assert client.received == hits + END + b"VALUE key0 0 1\r\nv\r\nEND\r\n"
    settled(house)


def test_others_get_their_turn_between() -> None:
    house, client = opened()
    other = house.client(TextSession)
    client.send(b"get " + b" ".join(keys_of(1000)) + b"\r\n")
    other.send(b"get k\r\n")
    house.links[0].deliver(house.links[0].execute())
    assert other.received == END
    assert client.received == b""
    house.serve()
    assert client.received == END


def test_a_get_of_many_keys_stops_at_the_bound() -> None:
    house, client = opened()
    client.send(b"get " + b" ".join(keys_of(20 * FULL_REQUESTS)) + b"\r\n")
    for _ in range(100):
        client.take_turn()
    assert FULL_REQUESTS <= len(client.session._owed) <= FULL_REQUESTS + REQUESTS_A_TURN
    house.serve()
    assert client.received == END
    settled(house)


def test_a_key_too_long_spoils_the_whole_line() -> None:
    line = b"get " + b" ".join([*keys_of(200), b"x" * 251]) + b"\r\nmn\r\n"
    assert talk(line) == b"CLIENT_ERROR bad command line format\r\nMN\r\n"
    assert talk(b"get " + b"x" * 250 + b"\r\n") == END


def test_a_key_waits_for_those_before_it_in_its_line_and_not_past_its_deadline() -> None:
    house, client = opened()
    keys = keys_of(1000)
    house.stores[0].items = {key: (bytes(4), b"v", 1) for key in keys}
    client.send(b"get " + b" ".join(keys) + b"\r\nget key0\r\n")
    for _ in range(16):
        house.pass_time(0.1)
        house.links[0].deliver(house.links[0].execute())
        client.take_turn()
    house.serve()
    assert client.received.count(b"VALUE") == 1001
    assert house.degraded == []


def test_flags_of_meta_commands_are_not_kept() -> None:
    house, client = opened()
    client.send(b"ms k 1 P%b L%b k Oid\r\nx\r\n" % (b"x" * 30000, b"y" * 30000))
    (request,) = client.session._owed
    assert sum(map(len, request.reply._flags.tokens)) < 10
    house.serve()
    assert client.received == b"HD kk Oid\r\n"


def test_a_client_that_leaves_in_the_middle_of_a_long_line_leaves_nothing_behind() -> None:
    house, client = opened()
    client.send(b"get " + b" ".join(keys_of(1000)) + b"\r\nset k 0 0 1\r\n")
    client.leave()
    house.serve()
    settled(house)


@pytest.mark.parametrize("begin", [b"set ", b"x", b" " * 101 + b"get ", b"get"])
@pytest.mark.parametrize("size", [1, 100000])
def test_a_line_without_an_end_is_closed(begin: bytes, size: int) -> None:
    house, client = opened()
    client.send(*pieces(b"mn\r\n" + (begin + b"x" * LONGEST_LINE)[:LONGEST_LINE], size))
    assert client.received == b"MN\r\n"
    assert not client.closed
    client.send(b"x")
    assert client.closed
    assert house.listener.protocol_errors == {"too_long": 1}
    settled(house)


@pytest.mark.parametrize("verb", [b"get ", b"gets ", b"gat 0 ", b"gats 0 "])
def test_a_line_of_a_get_may_be_long(verb: bytes) -> None:
    house, client = opened()
    client.send(*pieces(verb + b"k " * 40000, 5000))
    assert house.budget.used > 0
    client.send(b"\n")
    house.serve()
    assert client.received == END
    settled(house)


def test_but_not_endless() -> None:
    house, client = opened()
    client.send(*pieces(b"get " + b"k " * (LONGEST_GET // 2), 50000))
    assert client.closed
    assert house.listener.protocol_errors == {"too_long": 1}
    settled(house)


@pytest.mark.parametrize("size", [1, 1000])
def test_where_there_is_no_memory_for_it_it_is_read_past(size: int) -> None:
    house, client = opened(limit=10000)
    client.send(*pieces(b"get " + b"k " * 10000, size))
    client.send(b"k\r\nmn\r\n")
    assert client.received == b"END\r\nMN\r\n"
    assert house.degraded == [(O.GET, "overloaded")]
    settled(house)


# Blocks


@pytest.mark.parametrize(
    ("head", "told", "kept"),
    [
        (b"set k 0 0 101\r\n", b"SERVER_ERROR object too large for cache\r\n", False),
        (b"set k 0 0 101 noreply\r\n", b"", False),
        (b"ms k 101\r\n", b"SERVER_ERROR object too large for cache\r\n", False),
        (b"ms k 101 q\r\n", b"SERVER_ERROR object too large for cache\r\n", False),
        (b"ms k 101 ME\r\n", b"SERVER_ERROR object too large for cache\r\n", False),
        (b"add k 0 0 101\r\n", b"SERVER_ERROR object too large for cache\r\n", True),
        (b"append k 0 0 101\r\n", b"SERVER_ERROR object too large for cache\r\n", True),
        (b"cas k 0 0 101 1\r\n", b"SERVER_ERROR object too large for cache\r\n", True),
    ],
)
@pytest.mark.parametrize("size", [1, 50, 100000])
def test_a_value_too_large(head: bytes, told: bytes, kept: bool, size: int) -> None:
    house, client = opened(max_value_size=100)
    house.stores[0].items[b"k"] = (bytes(4), b"old", 1)
    client.send(*pieces(head + b"\n" * 101 + b"\r\nget k\r\n", size))
    house.serve()
    assert client.received == told + (b"VALUE k 0 3\r\nold\r\n" if kept else b"") + END
    settled(house)


@pytest.mark.parametrize("head", [b"set k 0 0 101\r\n", b"ms k 101 q\r\n"])
@pytest.mark.parametrize("size", [1, 100000])
def test_its_old_value_goes_in_its_place_among_other_commands(head: bytes, size: int) -> None:
    house, client = opened(max_value_size=100)
    asked = (
        b"set k 0 0 1\r\nx\r\nget k\r\n" + head + b"y" * 101 + b"\r\nset k 0 0 1\r\nz\r\nget k\r\n"
    )
    client.send(*pieces(asked, size))
    assert house.links[0].opcodes == [O.SET, O.GET, O.DELETE, O.SET, O.GET]


def test_a_block_that_is_far_too_long_is_refused_and_closed() -> None:
    house, client = opened()
    client.send(b"set k 0 0 %d\r\nxx" % (MAX_SWALLOW + 1000))
    house.serve()
    assert client.received == b"SERVER_ERROR object too large for cache\r\n"
    assert client.closed


@pytest.mark.parametrize("size", [1, 1000, 100000])
def test_a_block_for_which_there_is_no_memory_is_read_past(size: int) -> None:
    house, client = opened(limit=5000)
    ask = b"set k 0 0 9000\r\n" + b"x" * 9000
    client.send(*pieces(ask, size))
    client.send(b"\r\nmn\r\n")
    house.serve()
    assert client.received == b"NOT_STORED\r\nMN\r\n"
    assert house.degraded == [(O.SET, "overloaded")]
    settled(house)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (b"set k 0 0 3\r\nabcd\r\n", b"CLIENT_ERROR bad data chunk\r\nERROR\r\n"),
        (b"set k 0 0 3\r\nab\r\n\r\nmn\r\n", b"CLIENT_ERROR bad data chunk\r\nERROR\r\nMN\r\n"),
        (b"set k 0 0 3 noreply\r\nabcd\r\n", b"ERROR\r\n"),
        (b"ms k 3 q\r\nabcd\r\n", b"CLIENT_ERROR bad data chunk\r\nERROR\r\n"),
        (b"ms k 3 Z\r\nabc\r\nmn\r\n", b"CLIENT_ERROR invalid flag\r\nMN\r\n"),
    ],
)
def test_a_block_that_does_not_end_where_it_should(asked: bytes, told: bytes) -> None:
    assert talk(asked) == told


@pytest.mark.parametrize("asked", [b"get k", b"set k 0 0 3\r\nab", b"set k 0 0 3\r\nabc\r"])
def test_half_a_command_is_no_command(asked: bytes) -> None:
    house, client = opened()
    client.send(asked)
    assert house.links[0].opcodes == []
    client.half_close()
    assert client.closed
    assert client.received == b""
    settled(house)


def test_a_half_close_gets_all_its_answers() -> None:
    house, client = opened()
    client.send(b"get k\r\n" * (REQUESTS_A_TURN + 10))
    client.half_close()
    house.serve()
    assert client.received == END * (REQUESTS_A_TURN + 10)
    assert client.closed
    settled(house)


def test_a_client_that_does_not_read_gets_misses() -> None:
    house, client = opened()
    house.stores[0].items[b"k"] = (bytes(4), b"v", 1)
    client.session.choked = True
    client.send(b"get k k\r\nmg k v\r\n")
    house.serve()
    assert client.received == b"END\r\nEN\r\n"
    assert house.degraded == [(O.GET, "overloaded")] * 3


def test_what_is_early_and_too_much_becomes_a_miss() -> None:
    house, client = opened(2, max_value_size=CHOKED_BYTES)
    first, second = house.key_on(0), house.key_on(1)
    house.stores[1].items[second] = (bytes(4), b"v" * (CHOKED_BYTES // 2), 1)
    client.send(b"get %b\r\nget %b\r\nget %b %b\r\n" % (first, second, second, second))
    house.links[1].deliver(house.links[1].execute())
    house.links[0].deliver(house.links[0].execute())
    assert client.received.count(b"VALUE") < 3
    assert client.received.count(END) == 3
    assert client.received.endswith(END)


# What is quiet


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        (b"get k\r\n", False),
        (b"set k 0 0 1 noreply\r\nx\r\n", True),
        (b"set k 0 0 1\r\nx\r\n", False),
        (b"delete k noreply\r\n", True),
        (b"mg k q\r\n", True),
        (b"mg k q\r\nmn\r\n", False),
        (b"flush_all noreply\r\n", True),
    ],
)
def test_a_client_that_asked_for_silence_will_send_more(asked: bytes, more: bool) -> None:
    _, client = opened()
    client.send(asked)
    assert client.session.awaits_more == more


def test_errors_are_told_where_they_are_asked_for() -> None:
    asked = (
        b"incr k x noreply\r\ntouch k x noreply\r\ndelete k 5 noreply\r\nset k 0 0 x noreply\r\n"
    )
    assert talk(asked + b"mg k Z q\r\n") == b"CLIENT_ERROR invalid flag\r\n"


@pytest.mark.parametrize(
    "asked", [b"GET / HTTP/1.1\r\nHost: a\r\nget k\r\n", b"POST /x HTTP/1.0\r\n"]
)
def test_a_browser_gets_nothing(asked: bytes) -> None:
    house, client = opened()
    client.send(asked)
    house.serve()
    assert client.received == b""
    assert client.closed
    assert not house.stores[0].executed


# Logins

RIGHT = [
    b"set user1 0 0 6\r\nsecret\r\n",
    b"set any 0 0 12\r\nuser1 secret\r\n",
    b"set _ _ _ 12\r\nuser1 secret\r\n",
    b"set _ _ _ 12 noreply\r\nuser1 secret\r\n",
]
WRONG = [
    b"set user1 0 0 6\r\nSecret\r\n",
    b"set user1 0 0 0\r\n\r\n",
    b"set any 0 0 12\r\nuser1 Secret\r\n",
    b"set any 0 0 5\r\nuser1\r\n",
    b"set _ _ _ 12\r\nuser2 secret\r\n",
    b"set user1 0 0 5000\r\n" + b"x" * 5000 + b"\r\n",
]
FAILED = b"CLIENT_ERROR authentication failure\r\n"
UNAUTHENTICATED = b"CLIENT_ERROR unauthenticated\r\n"


@pytest.mark.parametrize("login", RIGHT)
@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("size", [1, 100000])
def test_a_right_login(login: bytes, required: bool, size: int) -> None:
    house, client = opened(credentials=MINE, login_required=required)
    client.send(*pieces(login + b"set k 0 0 1\r\nx\r\nget k\r\n", size))
    house.serve()
    assert client.received == STORED + STORED + b"VALUE k 0 1\r\nx\r\nEND\r\n"
    assert list(house.stores[0].items) == [b"k"]
    assert house.listener.logins == {"ok": 1}
    settled(house)


@pytest.mark.parametrize("login", WRONG)
@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("size", [1, 100000])
def test_a_wrong_login_is_never_stored(login: bytes, required: bool, size: int) -> None:
    house, client = opened(credentials=MINE, login_required=required)
    client.send(*pieces(login + b"set k 0 0 3\r\nabc\r\nget k\r\n" + RIGHT[0] + b"mn\r\n", size))
    house.serve()
    assert client.received == FAILED + FAILED + UNAUTHENTICATED + STORED + b"MN\r\n"
    assert not house.stores[0].executed
    assert house.listener.logins == {"refused": 2, "ok": 1}
    assert client.noticed == ["login_refused"] * 2
    settled(house)


@pytest.mark.parametrize(
    "asked", [b"get k", b"version", b"mn", b"stats", b"set k 0 0", b"", b"flush_all"]
)
def test_nothing_is_taken_before_a_login_that_is_required(asked: bytes) -> None:
    house, client = opened(credentials=MINE, login_required=True)
    client.send(asked + b"\r\n")
    assert client.received == UNAUTHENTICATED
    assert not house.links[0].opcodes


@pytest.mark.parametrize(
    "first",
    [
        b"set k 0 0 4\r\nuser\r\n",
        b"set k 0 0 13\r\nuser1x secret\r\n",
        b"set user 0 0 6\r\nsecret\r\n",
        b"set k 0 0 5000\r\nuser1 " + b"x" * 4994 + b"\r\n",
        b"add user1 0 0 6\r\nsecret\r\n",
    ],
)
def test_any_other_first_command_is_what_it_is(first: bytes) -> None:
    house, client = opened(credentials=MINE)
    client.send(first)
    house.serve()
    assert client.received == STORED
    assert len(house.stores[0].items) == 1


@pytest.mark.parametrize("flags", [b"-1", b"1e3", b"99999999999999999999", b"+x5"])
def test_flags_that_are_a_wrong_number_make_no_login(flags: bytes) -> None:
    house, client = opened(credentials=MINE)
    client.send(b"set k %b 0 12\r\nuser2 secret\r\n" % flags)
    login = flags == b"+x5"
    assert client.received.startswith(FAILED if login else b"CLIENT_ERROR bad command line format")
    assert bool(house.listener.logins) == login


def test_only_the_first_command_is_a_login() -> None:
    house, client = opened(credentials=MINE)
    client.send(b"mn\r\n" + RIGHT[0])
    house.serve()
    assert client.received == b"MN\r\n" + STORED
    assert list(house.stores[0].items) == [b"user1"]


def test_where_no_login_is_known_all_are_right() -> None:
    house, client = opened()
    long = house.client(TextSession)
    client.send(b"set _ _ _ 9\r\nuser pass\r\nset k 0 0 9\r\nuser pass\r\n")
    long.send(b"set _ _ _ 5000\r\n" + b"x" * 5000 + b"\r\nget k\r\n")
    house.serve()
    assert client.received == STORED + STORED
    assert long.received == STORED + b"VALUE k 0 9\r\nuser pass\r\nEND\r\n"
    assert list(house.stores[0].items) == [b"k"]


@pytest.mark.parametrize(
    "login",
    [
        b"set user1 0 0 6\r\nsecretxx",
        b"set user1 0 0 5\r\nsecret\r\n",
        b"set user1 0 0 9\r\nsecret\nabcd",
        b"set any 0 0 11\r\nuser1 secret\r\n",
    ],
)
def test_after_a_login_that_ended_badly_nothing_else_is_taken(login: bytes) -> None:
    # Its next try would be a set like any other, and the password a value.
    house, client = opened(credentials=MINE)
    client.send(login + b"\r\n" + b"set k 0 0 0\r\n\r\n")
    client.received = b""
    client.send(RIGHT[0])
    assert client.received == STORED
    assert not house.links[0].opcodes


@pytest.mark.parametrize("block", [b" user1 secret", b"user1  secret ", b"user1", b" user1 "])
def test_blanks_around_a_login_do_not_make_it_a_value(block: bytes) -> None:
    house, client = opened(credentials=MINE)
    client.send(b"set any 0 0 %d\r\n%b\r\n" % (len(block), block))
    assert not house.links[0].opcodes


def test_a_user_name_or_password_may_have_blanks() -> None:
    house, client = opened(credentials=Credentials(username="a b", password=Secret("c d")))
    client.send(b"set any 0 0 7\r\na b c d\r\n")
    assert client.received == STORED
    assert not house.links[0].opcodes


@pytest.mark.parametrize("limit", [0, 500, 10000])
def test_a_first_set_for_which_there_is_no_memory_is_answered(limit: int) -> None:
    house, client = opened(credentials=MINE, limit=limit)
    house.budget.used = limit
    client.send(b"set k 0 0 2000\r\nxx")
    client.send(b"x" * 1998 + b"\r\nmn\r\n")
    assert client.received == b"NOT_STORED\r\nMN\r\n"
    assert house.budget.used == limit


def test_a_client_may_quit_before_a_login() -> None:
    house, client = opened(credentials=MINE, login_required=True)
    client.send(b"get k\r\nquit\r\nget k\r\n")
    assert client.received == UNAUTHENTICATED
    assert client.closed
    settled(house)


def test_before_a_login_there_is_no_memory_for_more_than_one() -> None:
    house, client = opened(credentials=MINE, login_required=True)
    client.send(b"get " + b"k " * 1500)
    assert client.closed
    settled(house)
    other = house.client(TextSession)
    other.send(b"set user1 0 0 100000\r\n" + b"x" * 5000)
    assert house.budget.used == 0
    other.send(b"x" * 95000 + b"\r\n")
    assert other.received == FAILED


# Together with others


def test_text_and_binary_clients_do_not_mix_their_answers() -> None:
    house = House()
    text, binary = house.client(TextSession), house.client()
    house.stores[0].items[b"k"] = (bytes(4), b"v", 1)
    text.send(b"get k\r\n")
    binary.send(get(b"k", 7))
    text.send(b"get x k\r\n")
    house.serve()
    assert text.received == b"VALUE k 0 1\r\nv\r\nEND\r\n" * 2
    assert [(frame.opaque, frame.value) for frame in binary.frames] == [(opaque_of(7), b"v")]
    settled(house)
