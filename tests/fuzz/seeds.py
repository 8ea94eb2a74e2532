"""Writes the corpus anew: real conversations, as inputs of the targets (``python -m fuzz.seeds``).

What a server says in one is what the store of the tests said to the same requests.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random

from core_harness import House, bare, concat, count, get, login, store, touch

from fuzz import CORPUS, client, upstream
from fuzz.choices import put_before
from memtunnel.core.text_session import TextSession
from memtunnel.wire.binary import Opcode, Status, answer, request

O = Opcode  # noqa: E741

BINARY: dict[str, tuple[int, Sequence[int], bytes]] = {
    "get": (0, (1,), get(b"key", 7)),
    "set-get": (4, (24, 3), store(b"key", b"value", 1, flags=5) + get(b"key", 2)),
    "multi-get": (
        0,
        (30, 11),
        b"".join(get(b"key%d" % n, n, O.GETKQ) for n in range(9)) + bare(O.NOOP, 9),
    ),
    "quiet-stores": (
        client.SEVERAL_SERVERS,
        (50,),
        b"".join(store(b"k%d" % n, b"v" * n, n, O.SETQ) for n in range(12)) + bare(O.NOOP),
    ),
    "counters": (4, (40,), count(b"n", 1, initial=5) + count(b"n", 2, O.DECRQ) + get(b"n", 3)),
    "concats": (
        4,
        (7,),
        store(b"l", b"a") + concat(b"l", b"b", 1) + concat(b"l", b"c", 2, O.PREPENDQ) + get(b"l"),
    ),
    "touches": (
        4,
        (5, 9),
        store(b"t", b"x") + touch(b"t") + touch(b"t", 1, O.GAT) + touch(b"u", 2, O.GATKQ),
    ),
    "deletes": (4, (25,), store(b"d", b"x") + get(b"d", 1, O.DELETE) + get(b"d", 2, O.DELETEQ)),
    "cas": (
        4,
        (33,),
        store(b"c", b"1") + store(b"c", b"2", 1, cas=1) + store(b"c", b"3", 2, cas=9),
    ),
    "stat": (client.SEVERAL_SERVERS, (24,), bare(O.STAT) + bare(O.STAT, 1, b"memtunnel")),
    "flush": (client.SEVERAL_SERVERS, (20,), bare(O.FLUSH) + bare(O.FLUSHQ, 1) + bare(O.NOOP, 2)),
    "version-quit": (0, (3,), bare(O.VERSION) + bare(O.QUIT, 1) + get(b"never")),
    "quit-quietly": (0, (), get(b"key") + bare(O.QUITQ)),
    "login": (
        client.LOGIN_REQUIRED,
        (10,),
        bare(O.SASL_LIST) + login(b"\0user1\0secret", 1) + get(b"key", 2),
    ),
    "login-refused": (client.LOGIN_REQUIRED, (10,), login(b"\0user1\0wrong", 1) + get(b"key", 2)),
    "no-login": (client.LOGIN_REQUIRED, (), get(b"key")),
    "long-login": (client.LOGIN_REQUIRED, (200,), login(bytes(5000)) + bare(O.NOOP)),
    "large": (4, (200,), store(b"key", bytes(1100)) + get(b"key")),
    "too-large": (4, (250,), store(b"key", bytes(1300), 3) + store(b"b", bytes(1201), 4, O.SETQ)),
    "too-large-to-add": (0, (190,), store(b"key", bytes(1300), 3, O.ADD) + bare(O.NOOP)),
    "too-large-to-wait-for": (0, (9,), request(O.SET, b"k", extras=bytes(8))[:8] + b"\x7f" * 40),
    "unknown": (0, (6,), request(0x1B, b"k", value=b"abc") + bare(O.NOOP)),
    "invalid": (0, (6,), get(b"k" * 251) + get(b"k" * 251, 1, O.GETQ) + bare(O.NOOP)),
    "framing": (0, (12,), request(O.GET, b"key")[:8] + bytes(16)),
    "magic": (0, (2,), get(b"key") + b"get key\r\n"),
    "half": (0, (1,), store(b"key", b"value")[:-2]),
    "many": (0, (250,), b"".join(get(b"k", n) for n in range(100))),
    "leaves": (client.LEAVES, (31,), store(b"a", b"b") + get(b"a") + get(b"b") + b"\x80"),
    "outage": (client.OUTAGE, (30,), store(b"a", b"b") + get(b"a") + count(b"n") + bare(O.STAT)),
    "outage-errors": (client.OUTAGE | client.ERRORS, (), store(b"a", b"b") + touch(b"a")),
    "little-memory": (client.TIGHT, (70,), store(b"a", bytes(1190)) * 4 + get(b"a") * 20),
}

TEXT: dict[str, tuple[int, Sequence[int], bytes]] = {
    "get": (0, (1,), b"get key\r\n"),
    "set-get": (4, (3,), b"set key 5 0 5\r\nvalue\r\nget key\r\ngets key other\r\n"),
    "stores": (
        4,
        (11, 2),
        b"add a 0 0 1\r\n1\r\nreplace a 0 0 1\r\n2\r\nappend a 0 0 1\r\n3\r\n"
        b"prepend a 0 0 1\r\n0\r\nget a\r\n",
    ),
    "cas": (4, (9,), b"set a 0 0 1\r\n1\r\ncas a 0 0 1 1\r\n2\r\ncas a 0 0 1 1\r\n3\r\ngets a\r\n"),
    "noreply": (
        0,
        (13,),
        b"set a 0 0 1 noreply\r\n1\r\ndelete a noreply\r\nincr a 1 noreply\r\nmn\r\n",
    ),
    "counters": (
        4,
        (4,),
        b"set n 0 0 2\r\n10\r\nincr n 5\r\ndecr n 99\r\nincr m 1\r\nincr n x\r\n",
    ),
    "touches": (
        4,
        (6,),
        b"set a 0 0 1\r\n1\r\ntouch a 60\r\ngat 60 a b\r\ngats 0 a\r\ntouch c 1\r\n",
    ),
    "meta-get": (
        4,
        (8,),
        b"ms a 2 F5\r\nhi\r\nmg a v f s c k t\r\nmg a v f s c k O12\r\nmg b v q\r\n",
    ),
    "meta-set": (
        4,
        (5,),
        b"ms a 1 c MS T60\r\n1\r\nms a 1 ME\r\n2\r\nms a 1 MA q\r\n3\r\nms a 1 C1\r\n4\r\nmn\r\n",
    ),
    "meta-count": (
        4,
        (6,),
        b"ma n N0 J13 v\r\nma n v D2 MD\r\nma m v\r\nma n q\r\nmd n\r\nmd n q\r\n",
    ),
    "meta-base64": (4, (7,), b"ms YWJj 1 b\r\n1\r\nmg YWJj b k v\r\nmg !!! b k\r\nmg abc v\r\n"),
    "meta-refused": (0, (9,), b"mg a h l t\r\nms a 1 I\r\n1\r\nme a\r\nms a 3 MX\r\nabc\r\nmn\r\n"),
    "stats": (client.SEVERAL_SERVERS, (5,), b"stats\r\nstats settings\r\nstats reset\r\n"),
    "stats-memtunnel": (0, (4,), b"stats memtunnel\r\nstats detail on\r\nstats detail dump\r\n"),
    "flush": (client.SEVERAL_SERVERS, (5,), b"flush_all\r\nflush_all 5 noreply\r\nflush_all x\r\n"),
    "version-quit": (0, (2,), b"version\r\nverbosity 1\r\nquit\r\nget never\r\n"),
    "wrong-block": (0, (6,), b"set a 0 0 3\r\nabcdef\r\nget a\r\nset b 0 0 1\r\n\r\n\r\nmn\r\n"),
    "bad-lines": (
        0,
        (7,),
        b"\r\n \r\nget\r\nset a\r\nset a 0 0 -1\r\nincr a\r\nfoo\r\nget %b\r\n" % (b"k" * 251),
    ),
    "odd-ends": (0, (3,), b"get a\nset b 0 0 1\n1\r\nget b\0 c\r\n\r\r\nget  c  d \r\n"),
    "browser": (0, (10,), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "large": (4, (200,), b"set a 0 0 1100\r\n%b\r\nget a\r\n" % bytes(1100)),
    "too-large": (
        4,
        (200,),
        b"set a 0 0 1\r\n1\r\nset a 0 0 1300\r\n%b\r\nget a\r\n" % bytes(1300),
    ),
    "too-large-to-add": (
        4,
        (190,),
        b"add a 0 0 1201\r\n%b\r\nappend a 0 0 999999999\r\n" % bytes(1201),
    ),
    "many-keys": (client.SEVERAL_SERVERS, (99,), b"get" + b" k" * 150 + b"\r\nmn\r\n"),
    "many-lines": (0, (77,), b"get k\r\n" * 100 + b"gets" + b" j" * 70 + b"\r\n"),
    "long-line": (0, (255,), b"get " + b"k" * 240 + b" l" * 1000 + b"\r\nmn\r\n"),
    "too-long": (0, (255,), b"set " + b"k" * 2100),
    "login": (client.LOGIN_REQUIRED, (7,), b"set user1 x 0 6\r\nsecret\r\nget key\r\n"),
    "login-of-memcached": (client.LOGIN_REQUIRED, (6,), b"set k 0 0 12\r\nuser1 secret\r\nmn\r\n"),
    "login-refused": (
        client.LOGIN_REQUIRED,
        (5,),
        b"get a\r\nset user1 x 0 5\r\nwrong\r\nquit\r\n",
    ),
    "login-not-required": (client.KNOWN_LOGIN, (4,), b"set user1 0 0 6\r\nsecret\r\nget user1\r\n"),
    "half": (0, (1,), b"set key 0 0 5\r\nval"),
    "leaves": (client.LEAVES, (8,), b"set a 0 0 1\r\n1\r\nget a b c\r\nmg a v\r\nget "),
    "outage": (
        client.OUTAGE,
        (9,),
        b"set a 0 0 1\r\n1\r\nget a b\r\nincr n 1\r\nmg a v\r\nstats\r\n",
    ),
    "outage-errors": (
        client.OUTAGE | client.ERRORS,
        (),
        b"set a 0 0 1\r\n1\r\ntouch a 1\r\nmg a v\r\n",
    ),
    "little-memory": (
        client.TIGHT,
        (70,),
        b"set a 0 0 1190\r\n%b\r\nget a a a a a a\r\n" % bytes(1190),
    ),
}


def said_by_a_store(named: Sequence[int], refused: int = Status.OK) -> bytes:
    """What a server that works says to these requests, as the target sends them.

    With a status, what one says that refuses all of them, without a word.
    """
    house = House(max_value_size=client.LARGEST)
    (link,) = house.links
    house.stores[0].items[b"k"] = bytes(4), b"7", 7
    binary, text = house.client(), house.client(TextSession)
    for byte in named:
        if byte < 128:
            binary.send(upstream.BINARY[byte])
    for byte in named:
        if byte >= 128:
            text.send(upstream.TEXT[byte - 128])
    return link.refuse(refused, b"") if refused else link.execute()


def upstream_seeds() -> dict[str, bytes]:
    seeds: dict[str, bytes] = {}

    def add(
        name: str, named: Sequence[int], said: bytes, flags: int = 0, sizes: Sequence[int] = (9,)
    ) -> None:
        rest = bytes((len(named), *named)) + said
        seeds[name] = put_before(rest, flags=flags, sizes=sizes)

    some = upstream.MOST_REQUESTS
    binary = list(range(len(upstream.BINARY)))
    text = [128 + number for number in range(len(upstream.TEXT))]
    runs = {
        "gets": binary[:9],
        "stores": binary[9:16],
        "counts-deletes": binary[16:21],
        "of-all-servers": binary[21:],
        "text-gets": text[:4],
        "text-stores": text[4:9],
        "text-others": text[9:14],
        "text-stats": text[14:17],
        "text-meta": text[17:26],
        "both": [0, 128, 9, 132, 23, 142, 16, 138],
        "pipeline": [0] * some,
        "text-pipeline": [128] * some,
    }
    for name, named in runs.items():
        said = said_by_a_store(named)
        add(name, named, said)
        add(f"{name}-at-once", named, said, sizes=())
    for status in (Status.NOT_STORED, Status.OUT_OF_MEMORY):
        for name in ("stores", "counts-deletes", "text-meta"):
            add(f"{name}-{status.name.lower()}", runs[name], said_by_a_store(runs[name], status))
    said = said_by_a_store(runs["both"])
    add("late", runs["both"], said, upstream.LATE)
    add("binary-leaves", runs["both"], said, upstream.BINARY_LEAVES, (24, 1))
    add("text-leaves", runs["both"], said, upstream.TEXT_LEAVES, (5,))
    add("another-connection", runs["both"], said[:70], upstream.ANOTHER, (30,))
    desync = said[:70] + bytes(30)
    add("another-after-a-desync", runs["both"], desync, upstream.ANOTHER, (30,))
    add("errors", runs["stores"], said[:30] + b"\0" * 30, upstream.ERRORS)
    add("stripped", [4, 4, 140], said_by_a_store([4, 4, 140]), upstream.STRIPPED)
    first = upstream.opaque_of(upstream.FIRST)
    add("nothing-said", runs["both"], b"")
    add("not-logged-in", [0, 9], answer(O.GET, first, Status.AUTH_FAILED, value=b"Auth failure."))
    add("too-large", [0, 0], answer(O.GET, first, extras=bytes(4), value=bytes(1300)), sizes=(150,))
    add("unknown-opaque", [0], answer(O.GET, b"abcd"))
    add("other-opcode", [0], answer(O.SET, first))
    add("magic", [0], answer(O.GET, first)[1:] + b"\x81")
    add("impossible-length", [0], answer(O.GET, first)[:2] + b"\xff" * 10 + first + bytes(8))
    deleted = answer(O.DELETE, upstream.opaque_of(upstream.FIRST + 1))
    hit = answer(O.GAT, first, extras=bytes(4), value=b"7")
    add("data-type", [5, 24, 19], hit + deleted[:5] + b"\4" + deleted[6:], sizes=(1,))
    add("busy", [9, 132], answer(O.SET, first, Status.BUSY))
    add("clear-text-behind", [0, 0], said_by_a_store([0]) + b"ERROR\r\n", sizes=(3,))
    add("clear-text", [0], b"ERROR Too many open connections\r\n", sizes=(3,))
    return seeds


def seeds() -> dict[str, dict[str, bytes]]:
    """By target and name."""
    return {
        "binary_client": {
            name: put_before(rest, flags=flags, sizes=sizes)
            for name, (flags, sizes, rest) in BINARY.items()
        },
        "text_client": {
            name: put_before(rest, flags=flags, sizes=sizes)
            for name, (flags, sizes, rest) in TEXT.items()
        },
        "upstream": upstream_seeds(),
    }


def drawn(name: str, random: Random, number: int) -> list[bytes]:
    """So many inputs of a target that are drawn: a few requests, and what a store says to them."""
    binary = range(len(upstream.BINARY))
    text = range(128, 128 + len(upstream.TEXT))
    requests = {"binary_client": [*binary], "text_client": [*text], "upstream": [*binary, *text]}
    inputs: list[bytes] = []
    for _ in range(number):
        named = random.choices(requests[name], k=random.randint(1, 3))
        if name == "binary_client":
            rest = b"".join(upstream.BINARY[byte] for byte in named)
        elif name == "text_client":
            rest = b"".join(upstream.TEXT[byte - 128] for byte in named)
        else:
            refused = random.choice(list(Status)) if random.random() < 0.3 else Status.OK
            rest = bytes((len(named), *named)) + said_by_a_store(named, refused)
        inputs.append(put_before(rest, sizes=(9,)))
    return inputs


def write(folder: Path) -> None:
    for target, named in seeds().items():
        place = folder / target
        place.mkdir(parents=True, exist_ok=True)
        for name, data in named.items():
            (place / name).write_bytes(data)


if __name__ == "__main__":
    write(CORPUS)
