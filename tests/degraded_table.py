"""What clients are to be told where there is no answer from a server, written out.

Nothing here is made by the tunnel: a frame is put together of what stands in its row. Behind each
request there is a fence, a no-op, which is always answered: what stands before that answer is all
that was told.
"""

import struct
from dataclasses import dataclass

import servers
from faults import LARGEST

from memtunnel.core.binary_session import BinarySession
from memtunnel.core.text_session import TextSession

#: Opcode, name, what is asked; what is told, and with ``--on-unavailable error``. Of an answer
#: there is its status and what stands in its body: text, or with `=` the key.
BINARY = """
00 GET       key          | 0001 Not found    | 0001 Not found
09 GETQ      key          | -                 | -
0c GETK      key          | 0001 =k           | 0001 =k
0d GETKQ     key          | -                 | -
1d GAT       expiry       | 0001 Not found    | 0001 Not found
1e GATQ      expiry       | -                 | -
23 GATK      expiry       | 0001 =k           | 0001 =k
24 GATKQ     expiry       | -                 | -
1c TOUCH     expiry       | 0001 Not found    | 0086 Temporary failure
01 SET       store        | 0005 Not stored.  | 0086 Temporary failure
02 ADD       store        | 0005 Not stored.  | 0086 Temporary failure
03 REPLACE   store        | 0005 Not stored.  | 0086 Temporary failure
0e APPEND    concat       | 0005 Not stored.  | 0086 Temporary failure
0f PREPEND   concat       | 0005 Not stored.  | 0086 Temporary failure
11 SETQ      store        | 0005 Not stored.  | 0086 Temporary failure
12 ADDQ      store        | 0005 Not stored.  | 0086 Temporary failure
13 REPLACEQ  store        | 0005 Not stored.  | 0086 Temporary failure
19 APPENDQ   concat       | 0005 Not stored.  | 0086 Temporary failure
1a PREPENDQ  concat       | 0005 Not stored.  | 0086 Temporary failure
04 DELETE    key          | 0005 Not stored.  | 0086 Temporary failure
05 INCR      count        | 0005 Not stored.  | 0086 Temporary failure
06 DECR      count        | 0005 Not stored.  | 0086 Temporary failure
05 INCR      count-there  | 0005 Not stored.  | 0086 Temporary failure
06 DECR      count-there  | 0005 Not stored.  | 0086 Temporary failure
14 DELETEQ   key          | 0001 Not found    | 0086 Temporary failure
15 INCRQ     count        | 0001 Not found    | 0086 Temporary failure
16 DECRQ     count        | 0001 Not found    | 0086 Temporary failure
15 INCRQ     count-there  | 0001 Not found    | 0086 Temporary failure
16 DECRQ     count-there  | 0001 Not found    | 0086 Temporary failure
08 FLUSH     nothing      | 0005 Not stored.  | 0086 Temporary failure
08 FLUSH     delay        | 0005 Not stored.  | 0086 Temporary failure
18 FLUSHQ    nothing      | 0001 Not found    | 0086 Temporary failure
18 FLUSHQ    delay        | 0001 Not found    | 0086 Temporary failure
10 STAT      nothing      | 0000              | 0000
10 STAT      group        | 0000              | 0000
"""

#: The same of what is not asked of a server, or was lost already: always answered so.
BINARY_OF_OUR_OWN = """
0a NOOP      nothing      | 0000
0b VERSION   nothing      | 0000 1.6.18
20 SASL_LIST nothing      | 0000 PLAIN
21 SASL_AUTH login        | 0000 Authenticated
22 SASL_STEP login        | 0020 Auth failure.
01 SET       too-large    | 0003 Too large.
11 SETQ      too-large    | 0003 Too large.
02 ADD       too-large    | 0003 Too large.
12 ADDQ      too-large    | 0003 Too large.
03 REPLACE   too-large    | 0003 Too large.
13 REPLACEQ  too-large    | 0003 Too large.
0e APPEND    concat-large | 0003 Too large.
19 APPENDQ   concat-large | 0003 Too large.
0f PREPEND   concat-large | 0003 Too large.
1a PREPENDQ  concat-large | 0003 Too large.
00 GET       long-key     | 0004 Invalid arguments
0c GETK      long-key     | 0004 Invalid arguments
1d GAT       long-key     | 0004 Invalid arguments
23 GATK      long-key     | 0004 Invalid arguments
09 GETQ      long-key     | -
0d GETKQ     long-key     | -
1e GATQ      long-key     | -
24 GATKQ     long-key     | -
01 SET       key          | 0004 Invalid arguments
11 SETQ      key          | 0004 Invalid arguments
04 DELETE    store        | 0004 Invalid arguments
14 DELETEQ   store        | 0004 Invalid arguments
05 INCR      key          | 0004 Invalid arguments
15 INCRQ     key          | 0004 Invalid arguments
1c TOUCH     key          | 0004 Invalid arguments
10 STAT      concat       | 0004 Invalid arguments
08 FLUSH     key          | 0004 Invalid arguments
0a NOOP      key          | 0004 Invalid arguments
1b VERBOSITY expiry       | 0081 Unknown command
1f ?         store        | 0081 Unknown command
25 ?         nothing      | 0081 Unknown command
99 ?         concat       | 0081 Unknown command
ff ?         store        | 0081 Unknown command
"""

#: What a text client says, each line with its end; what it is told, twice as above.
TEXT = r"""
get k                          | END                | END
bget k                         | END                | END
get k other k                  | END                | END
gets k                         | END                | END
gets k other                   | END                | END
gat 9 k                        | END                | END
gat 9 k other                  | END                | END
gats 9 k                       | END                | END
mg k                           | EN                 | EN
mg k v                         | EN                 | EN
mg k v k Oid                   | EN kk Oid          | EN kk Oid
mg aw== b k v                  | EN kaw== b         | EN kaw== b
mg k T9 v                      | EN                 | EN
mg k v q                       | -                  | -
set k 0 0 #                    | NOT_STORED         | unavailable
add k 0 0 #                    | NOT_STORED         | unavailable
replace k 0 0 #                | NOT_STORED         | unavailable
append k 0 0 #                 | NOT_STORED         | unavailable
prepend k 0 0 #                | NOT_STORED         | unavailable
cas k 0 0 # 7                  | NOT_STORED         | unavailable
set k 0 0 # noreply            | -                  | -
add k 0 0 # noreply            | -                  | -
replace k 0 0 # noreply        | -                  | -
append k 0 0 # noreply         | -                  | -
prepend k 0 0 # noreply        | -                  | -
cas k 0 0 # 7 noreply          | -                  | -
ms k #                         | NS                 | unavailable
ms k # q                       | NS                 | unavailable
ms k # ME                      | NS                 | unavailable
ms k # MR                      | NS                 | unavailable
ms k # MA                      | NS                 | unavailable
ms k # MP q                    | NS                 | unavailable
ms k # C7 c k Oid              | NS c0 kk Oid       | unavailable
ms aw== # b k                  | NS kaw== b         | unavailable
delete k                       | unavailable        | unavailable
delete k noreply               | -                  | -
incr k 1                       | unavailable        | unavailable
decr k 1                       | unavailable        | unavailable
incr k 1 noreply               | -                  | -
decr k 1 noreply               | -                  | -
touch k 9                      | unavailable        | unavailable
touch k 9 noreply              | -                  | -
md k                           | unavailable        | unavailable
md k q                         | unavailable        | unavailable
md k C7 k Oid                  | unavailable        | unavailable
ma k                           | unavailable        | unavailable
ma k q                         | unavailable        | unavailable
ma k N9 J5 MD v                | unavailable        | unavailable
flush_all                      | unavailable        | unavailable
flush_all 9                    | unavailable        | unavailable
flush_all noreply              | -                  | -
stats                          | END                | END
stats settings                 | END                | END
stats reset                    | unavailable        | unavailable
stats detail on                | unavailable        | unavailable
stats detail dump              | unavailable        | unavailable
"""

TEXT_OF_OUR_OWN = r"""
version                        | VERSION 1.6.18
verbosity 1                    | OK
verbosity 1 noreply            | -
mn                             | MN
me k                           | CLIENT_ERROR unsupported command
mg k t                         | CLIENT_ERROR unsupported flag
get                            | ERROR
nonsense                       | ERROR
shutdown                       | ERROR: shutdown not enabled
delete                         | ERROR
incr k x                       | CLIENT_ERROR invalid numeric delta argument
set k 0 0 %                    | SERVER_ERROR object too large for cache
set k 0 0 % noreply            | -
add k 0 0 %                    | SERVER_ERROR object too large for cache
ms k %                         | SERVER_ERROR object too large for cache
"""
UNAVAILABLE = "SERVER_ERROR temporarily unavailable"

# What the tables are short for.

OPAQUE = 0x01020304
FENCE = 0x0A0B0C0D
LOGIN = f"\0{servers.USERNAME}\0{servers.PASSWORD}".encode()
#: More than a client may send of a frame without a claim to memory, less than is too large.
BODY = b"v" * 1100
HUGE = b"v" * (LARGEST + 1)
#: By what is asked: extras, key and value.
FORMS = {
    "nothing": (b"", b"", b""),
    "key": (b"", b"k", b""),
    "long-key": (b"", b"k" * 251, b""),
    "expiry": (b"\0\0\0\x09", b"k", b""),
    "delay": (b"\0\0\0\x09", b"", b""),
    "store": (bytes(8), b"k", BODY),
    "concat": (b"", b"k", BODY),
    "too-large": (bytes(8), b"k", HUGE),
    "concat-large": (b"", b"k", HUGE),
    "count": (struct.pack(">QQI", 1, 5, 0), b"k", b""),
    "count-there": (struct.pack(">QQI", 1, 5, 0xFFFFFFFF), b"k", b""),
    "group": (b"", b"settings", b""),
    "login": (b"", b"PLAIN", LOGIN),
    "wrong-login": (b"", b"PLAIN", LOGIN + b"?"),
}
#: Commands that only read, and those that read and touch.
READS = ("GET", "GETQ", "GETK", "GETKQ", "get", "bget", "gets", "mg")
TOUCHES = ("GAT", "GATQ", "GATK", "GATKQ", "gat", "gats")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to ask, and what is told in `miss` mode and in `error` mode.

    What is asked are its head, and its body if it has one; a `fence` follows, and the answer to
    it, if there is one, is the end of what is told.
    """

    name: str
    protocol: type[BinarySession] | type[TextSession]
    asked: list[bytes]
    fence: bytes
    told: tuple[bytes, bytes]
    own: bool
    """Whether the tunnel answers it by itself."""
    closes: bool = False

    @property
    def reads(self) -> bool:
        return self.name.split()[0] in READS and " T9" not in self.name

    @property
    def gets(self) -> bool:
        """Whether it asks for a value."""
        return self.name.split()[0] in READS + TOUCHES


def frame(
    head: int,
    opaque: int,
    status: int = 0,
    extras: bytes = b"",
    key: bytes = b"",
    value: bytes = b"",
    cas: int = 0,
) -> bytes:
    """A frame; `head` is its magic and its opcode."""
    lengths = len(key), len(extras), 0, status, len(extras + key + value)
    return struct.pack(">HHBBHIIQ", head, *lengths, opaque, cas) + extras + key + value


def binary_row(line: str) -> Row:
    what, *told = map(str.strip, line.split("|"))
    code, name, form = what.split()
    opcode = int(code, 16)
    extras, key, value = FORMS[form]
    asked = frame(0x8000 + opcode, OPAQUE, 0, extras, key, value)
    head = len(asked) - len(value)

    def answer(cell: str) -> bytes:
        status, _, body = cell.partition(" ")
        fence = frame(0x810A, FENCE)
        if status == "-":
            return fence
        shown = body.encode()
        parts = {"key": shown[1:]} if shown.startswith(b"=") else {"value": shown}
        return frame(0x8100 + opcode, OPAQUE, int(status, 16), **parts) + fence

    return Row(
        name=f"{name} {form}",
        protocol=BinarySession,
        asked=[asked[:head], asked[head:]],
        fence=frame(0x800A, FENCE),
        told=(answer(told[0]), answer(told[-1])),
        own=len(told) == 1,
    )


def text_row(line: str) -> Row:
    what, *told = map(str.strip, line.split("|"))
    size, block = 0, b""
    if "#" in what or "%" in what:
        block = HUGE if "%" in what else BODY
        size, block = len(block), block + b"\r\n"
    said = what.replace("#", str(size)).replace("%", str(size)) + "\r\n"

    def answer(cell: str) -> bytes:
        words = {"unavailable": UNAVAILABLE, "-": ""}.get(cell, cell)
        return (f"{words}\r\n" if words else "").encode() + b"MN\r\n"

    return Row(
        name=what,
        protocol=TextSession,
        asked=[said.encode(), block],
        fence=b"mn\r\n",
        told=(answer(told[0]), answer(told[-1])),
        own=len(told) == 1,
    )


def last_row(name: str, asked: bytes, told: bytes, *, closes: bool = True) -> Row:
    """What the fence is not answered after."""
    protocol = BinarySession if asked[0] == 0x80 else TextSession
    return Row(
        name=name,
        protocol=protocol,
        asked=[asked],
        fence=b"",
        told=(told, told),
        own=True,
        closes=closes,
    )


REFUSED = b"Auth failure."
ROWS = [
    *map(binary_row, filter(None, (BINARY + BINARY_OF_OUR_OWN).splitlines())),
    *map(text_row, filter(None, (TEXT + TEXT_OF_OUR_OWN).splitlines())),
    last_row("QUIT", frame(0x8007, OPAQUE), frame(0x8107, OPAQUE)),
    last_row("QUITQ", frame(0x8017, OPAQUE), b""),
    last_row("quit", b"quit\r\n", b""),
    # After a wrong login nothing else is taken, as memcached does it.
    last_row(
        "SASL_AUTH wrong-login",
        frame(0x8021, OPAQUE, key=b"PLAIN", value=LOGIN + b"?") + frame(0x8000, FENCE, key=b"k"),
        frame(0x8121, OPAQUE, 0x20, value=REFUSED) + frame(0x8100, FENCE, 0x20, value=REFUSED),
    ),
    last_row(
        "set, a wrong login",
        f"set {servers.USERNAME} 0 0 1\r\n?\r\nget k\r\n".encode(),
        b"CLIENT_ERROR authentication failure\r\nCLIENT_ERROR unauthenticated\r\n",
        closes=False,
    ),
]
