"""Conversations in memcached's text protocol, as Hypothesis draws them.

A `Conversation` is what one client sends on one connection: `Step`s, then an `Ending`. It is a
template, so that it can be told to two servers, and more than once: every key begins with
`PREFIX`, in whose place comes what no other conversation has, and `cas_of` stands for the
number that the server itself last gave for a key.

Each step is whole: whatever a server makes of it, the next step begins with a line of its own.
A length that is wrong is followed by lines enough to be swallowed. So memcached's parser is
reached in every branch, and yet nothing hangs on how the bytes are cut, see `NOT_COMPARED`.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

#: Six bytes, which stand for six others: their base64 is eight characters with nothing left over.
PREFIX = b"prefix"
ENCODED_PREFIX = base64.b64encode(PREFIX)
CRLF = b"\r\n"
#: Has what was said before answered and on its way, by memcached too.
FLUSH = b"mn\r\n"
#: What a line may be, but for those of `get`, before memcached closes if it has not ended.
LONGEST_LINE = 2048
#: No cas number of a server that has just been started.
WRONG_CAS = 9_999_999_999_999_999_999


@dataclass(frozen=True)
class Step:
    """One command, or a few that belong together."""

    data: bytes
    reads: bytes | None = None
    """A key that this asks for with ``gets``: the number in the answer is kept for `cas_of`."""
    settled: bool = False
    """Whether it is sent only when all before it has been answered. So is what goes on after the
    server has closed: it would have the kernel throw away answers that were not yet read."""


@dataclass(frozen=True)
class Ending(Step):
    """The last of what is sent; nothing needs to follow it."""

    data: bytes = FLUSH
    closes: bool = False
    """Whether the server closes of itself; elsewhere the client is the first to end its side."""


@dataclass(frozen=True)
class Conversation:
    steps: list[Step] = field(default_factory=list)
    ending: Ending = Ending()


@dataclass(frozen=True)
class Exclusion:
    """What memcached answers and is not compared."""

    what: str
    reason: str
    lines: re.Pattern[bytes] | None = None
    """Lines that are left out; None where the steps are made so that it does not come about."""


def _lines(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?m)^ *" + pattern)


def _flagged(command: bytes, flags: bytes) -> re.Pattern[bytes]:
    return _lines(command + rb" +[^ \n]+ (?:[^\n]* )?[" + flags + rb"]")


NOT_COMPARED = (
    # What the binary protocol, which is spoken upstream, has no words for.
    Exclusion(
        "mg N R h l t u",
        "the binary protocol makes no item stale or vivid, and tells no times: an error",
        _flagged(b"mg", b"NRhltu"),
    ),
    Exclusion(
        "ms I, md I",
        "the binary protocol marks nothing as stale: an error, also where it would change nothing",
        _flagged(b"m[sd]", b"I"),
    ),
    Exclusion(
        "ma t T",
        "a counter's expiry is neither told nor changed by INCREMENT: an error",
        _flagged(b"ma", b"tT"),
    ),
    Exclusion("me", "debugging: not in the binary protocol", _lines(rb"me( |\r|$)")),
    Exclusion(
        "shutdown, watch, lru, lru_crawler, slabs, cache_memlimit, extstore, refresh_certs",
        "of the server as such, which is shared, and not in the binary protocol: ERROR",
        _lines(rb"(shutdown|watch|lru|lru_crawler|slabs|cache_memlimit|extstore|refresh_certs)\b"),
    ),
    Exclusion(
        "stats cachedump, conns and extstore",
        "only in the text protocol: an error",
        _lines(rb"stats +(cachedump|conns|extstore)"),
    ),
    Exclusion(
        "a set as the first command, with flags that are no number",
        "taken for a login, as memcached -Y takes them: all conversations begin with mn",
    ),
    Exclusion("the names and values of stats", "two servers count differently: only their shape"),
    Exclusion("cas numbers as such", "only which of them are equal"),
    Exclusion(
        "mg k of a key that was stored otherwise than with ms and b, asked for with b, or the "
        "other way round",
        "memcached notes with an item whether its key came in base64, and forgets it with append, "
        "prepend, incr and decr; the binary protocol does not carry it",
    ),
    # Where memcached does what can only be an accident, or what the tunnel does better.
    Exclusion(
        "ma with N and q",
        "memcached tells, in spite of q, that it created the number; an INCREMENT does not tell",
        _lines(rb"ma +[^ \n]+(?=[^\n]* N)(?=[^\n]* q)"),
    ),
    Exclusion(
        "an opaque that is too long with ma, or with mg and T",
        "memcached has then counted, or touched, when it refuses",
        _lines(rb"(ma|mg(?=[^\n]* T)) +[^ \n]+(?=[^\n]* O[^ \n]{32})"),
    ),
    Exclusion(
        "a value that is too large and never comes to its end",
        "memcached drops the old value at once, and says nothing; one of more than 32 MB is "
        "refused at once by the tunnel, which closes, where memcached swallows two gigabytes",
    ),
    Exclusion(
        "ms with M, and a value that is too large only for the server",
        "it drops the old value; the server does not, for what is no SET: values that are also too "
        "large for the tunnel, or for neither",
    ),
    Exclusion(
        "a line of gat or gats that is longer than 2048 bytes and does not end at once",
        "taken as one of get is; memcached closes",
    ),
    # What memcached 1.6.18 answers differently from one time to the next, by how the bytes are cut
    # or by what its memory held before: seen, or read in its source.
    Exclusion(
        "a get with a key that is too long, after commands whose answers have not been sent",
        "memcached throws those away with the get's own: a step of this kind begins with mn",
    ),
    Exclusion(
        "a length that is never filled, a line of HTTP, and a line that is too long, after such",
        "memcached closes without sending them: an ending of this kind begins with mn",
    ),
    Exclusion(
        "a line of more than 2048 bytes that does end, but for get and gets",
        "taken if its end is there when it is first looked at, otherwise memcached closes",
    ),
    Exclusion(
        "decr to fewer digits (or incr past 2^64, or of 007) right after a get of the same key",
        "the value keeps its length, with blanks behind, if the get's answer has been sent, else "
        "it is made anew without: these are sent when all is answered. As memcached's own threads "
        "hold items now and then too, blanks behind a number are not compared, nor added to",
    ),
    Exclusion(
        "incr of a value of blanks only, or of 2^63 and more with a minus somewhere behind it",
        "memcached reads on past the item's end: no such value is stored where it is counted",
    ),
    Exclusion(
        "flush_all at another time than now, expiries of a few seconds",
        "would come at any time; a flush_all that is to come, or never will, also brings back what "
        "an earlier one flushed, as far as it was not swept up yet",
    ),
)


def is_compared(data: bytes) -> bool:
    return not any(each.lines and each.lines.search(data) for each in NOT_COMPARED)


# Keys


@dataclass(frozen=True)
class Key:
    """As it is sent. A kind of keys is kept to the commands that this module gives it."""

    word: bytes
    encoded: bool = False
    """Whether that is base64, and the flag b belongs to it."""


def _plain(*ends: bytes) -> tuple[Key, ...]:
    return tuple(Key(PREFIX + end) for end in ends)


def _encoded(*ends: bytes) -> tuple[Key, ...]:
    return tuple(Key(base64.b64encode(PREFIX + end), True) for end in ends)


#: For values of any kind; nothing counts in them.
PLAIN = _plain(b"a", b"b", b"\r", b"\xff\xfe", b"c".ljust(244, b"c"))
#: For numbers and what looks like them; what may make them shorter is sent in quiet.
NUMERIC = _plain(b"n", b"m")
#: For numbers that only grow, so that they may be counted while they are read.
COUNTERS = _plain(b"i")
(LARGE,) = _plain(b"large")
#: Nothing is ever stored there.
MISSING = _plain(b"-", b"none")
ENCODED = _encoded(b"\0 \r\n")
ENCODED_NUMERIC = _encoded(b"\0 n")
#: Stored with ms alone, so that memcached knows how to write them: only of these is k asked.
#: The others are base64 that is odd but that memcached decodes.
NAMED = (
    *_encoded(b"\r\n!", b"e".ljust(181, b"e")),
    Key(ENCODED_PREFIX + b"Z!z==", True),
    Key(ENCODED_PREFIX + b"Zz==Zz==", True),
    Key(ENCODED_PREFIX + b"Zz=Q", True),
)
TOO_LONG = PREFIX.ljust(251, b"l")
#: With the flag b these are refused.
NOT_BASE64 = (b"YQ=", b"!!!!", b"====", b"A===", b"a", PREFIX + b"a", ENCODED_PREFIX + b"=")

#: Of these a cas number may be read and used.
CAS_KEYS = (*PLAIN[:2], *NUMERIC)

_CAS_OF = re.compile(rb"\{(\w+)\.+\}")


def cas_of(key: Key) -> bytes:
    """Stands for the number that was last read of a key; as long as what takes its place."""
    return b"{" + key.word.removeprefix(PREFIX).ljust(18, b".") + b"}"


def filled_in(template: bytes, prefix: bytes, cas: dict[bytes, int]) -> bytes:
    """What is sent for a template; of the same length."""
    if b"{" in template:
        template = _CAS_OF.sub(lambda found: b"%020d" % cas.get(found[1], WRONG_CAS), template)
    template = template.replace(ENCODED_PREFIX, base64.b64encode(prefix))
    return template.replace(PREFIX, prefix)


# Words

#: What strtoul and its like take although it is not just digits; all are 7 or 0.
ODD_NUMBERS = (b"+7", b"007", b"7\t", b"\t7", b"7\tx", b"7\r", b"-0")
#: 0, 7, -1 and 1 where 32 bits are kept of 64.
WRAPPING = b"4294967296 4294967303 18446744073709551615 -18446744073709551615".split()
BAD_NUMBERS = (b"\t", *b"x 7x + - 0x10 1e3 7.0 99999999999999999999".split())
FLAGS = (*b"0 0 0 0 1 4294967295".split(), *ODD_NUMBERS, *WRAPPING)
BAD_FLAGS = (*b"-1 -7 18446744073709551616".split(), *BAD_NUMBERS)
#: Never, much later and at once.
EXPIRIES = (
    *(*[b"0"] * 60, *b"-0 4294967296 -9223372036854775808".split()),
    *(b"100\t", *b"100 +100 4294967396 2592000 2147483647".split()),
    *b"-1 -100 2592001 -2147483648 2147483648 4294967295 9223372036854775807".split(),
)
BAD_EXPIRIES = (*b"9223372036854775808 -9223372036854775809".split(), *BAD_NUMBERS)
#: Refused at once, so that what follows is a line.
BAD_LENGTHS = (
    *b"-1 -5 2147483646 2147483647 2147483648 4294967295 -2147483648".split(),
    *(b"9223372036854775808", b"noreply", *BAD_NUMBERS),
)
CAS_NUMBERS = (b"0\t", *b"0 12345678901234567890 18446744073709551615 +77777777777".split())
BAD_CAS_NUMBERS = (*b"-1 18446744073709551616 noreply".split(), *BAD_NUMBERS)
DELTAS = (
    *b"1 1 5 0 10 99 18446744073709551615 9223372036854775808 -18446744073709551615".split(),
    *ODD_NUMBERS,
)
BAD_DELTAS = (*b"-1 18446744073709551616".split(), *BAD_NUMBERS)

VALUES = (
    *(b"", b"x", b"hello", b"\r\n", b"a\r\nb", b" ", b"5", b"\0", b"\r", b"\n", b"a\n", b"\r\r"),
    *(b"END\r\n", b"VALUE a 0 1", b"get " + PREFIX + b"a", b"HD c1", b"\xff" * 3, b"v" * 300),
)
NUMERIC_VALUES = (
    *b"5 0 9 99 100 10 5 0 9 99 100 10 5 0 9 99 100 10 5 0 9 99 100 10".split(),
    *(b" 7 ", b"12 x", b"7\r\n8", b"", b"\0", b"1" * 300),
    *b"007 +3 5x x -5 9223372036854775807 9223372036854775808".split(),
    *b"18446744073709551614 18446744073709551615 18446744073709551616".split(),
)
#: A minus is kept away from what may come to lie before it: see NOT_COMPARED.
UNSIGNED_VALUES = [value for value in NUMERIC_VALUES if b"-" not in value]
COUNTED_VALUES = b"0 5 99 123456 999999999".split()


def picked(
    usual: Sequence[bytes], seldom: Sequence[bytes], times: int = 30
) -> st.SearchStrategy[bytes]:
    """So many times as often the usual."""
    more = max(1, times * len(seldom) // len(usual))
    return st.sampled_from((*list(usual) * more, *seldom))


SELDOM = st.sampled_from((False, False, False, False, True))
ANY_FLAGS = picked(FLAGS, BAD_FLAGS)
ANY_EXPIRY = picked(EXPIRIES, BAD_EXPIRIES)
ANY_DELTA = picked(DELTAS, BAD_DELTAS)
NOREPLY = st.sampled_from((b"", b"", b"", b" noreply"))
LINE_ENDS = st.sampled_from((*[CRLF] * 9, b"\n", b" \r\n", b"  \n"))
BLANKS = st.sampled_from((b" ", b" ", b" ", b"  "))


def of(*kinds: Iterable[Key]) -> st.SearchStrategy[Key]:
    return st.sampled_from([key for kind in kinds for key in kind])


@st.composite
def length_of(draw: st.DrawFn, value: bytes) -> bytes:
    """The length of what follows, in one of the ways in which it may be said, or not at all."""
    right = b"%d" % len(value)
    if not draw(SELDOM):
        return right
    odd = (b"+" + right, b"0" + right, right + b"\t", b"\t" + right)
    return draw(picked((*odd, b"%d" % (len(value) + (1 << 32))), BAD_LENGTHS))


def one_line(*parts: st.SearchStrategy[bytes], settled: bool = False) -> st.SearchStrategy[Step]:
    """A command of such words, the blanks between them drawn too."""
    return st.builds(
        lambda words, blanks, end: Step(
            blanks.join([word for word in words if word]) + end, settled=settled
        ),
        st.tuples(*parts),
        BLANKS,
        LINE_ENDS,
    )


def table(text: bytes) -> list[bytes]:
    """Lines of examples: @ is the prefix, ~ the end of a line."""
    cells = [cell.strip(b" ") for cell in re.split(rb"[|\n]", text)]
    return [cell.replace(b"@", PREFIX).replace(b"~", CRLF) for cell in cells if cell]


def among(words: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(words.split())


def words_of(keys: st.SearchStrategy[Key]) -> st.SearchStrategy[bytes]:
    return keys.map(lambda key: key.word)


# Classic commands

READABLE = words_of(of(*[(*PLAIN, *NUMERIC, *COUNTERS)] * 3, MISSING))
#: So short that the line of many does not come near `LONGEST_LINE`.
SHORT = words_of(of(PLAIN[:4], NUMERIC, COUNTERS, MISSING))


def several(keys: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """A few, or about as many as memcached takes in hand at a time, and twice as many."""
    few = st.lists(keys, min_size=1, max_size=4)
    return (few | st.lists(keys, min_size=18, max_size=50)).map(b" ".join)


GETS = one_line(among(b"get gets"), several(READABLE)) | one_line(st.just(b"bget"), several(SHORT))
GATS = one_line(among(b"gat gats"), ANY_EXPIRY, st.just(b"") | several(SHORT))


def _read(key: Key) -> Step:
    return Step(b"gets " + key.word + CRLF, reads=key.word)


READS = st.sampled_from(CAS_KEYS).map(_read)


@st.composite
def cas_number(draw: st.DrawFn, key: Key) -> bytes:
    """Mostly the one that was read, where it can be."""
    if key in CAS_KEYS and draw(st.booleans()):
        return cas_of(key)
    return draw(picked(CAS_NUMBERS, BAD_CAS_NUMBERS))


@st.composite
def stores(draw: st.DrawFn, commands: bytes, keys: Sequence[Key], values: Sequence[bytes]) -> Step:
    """A command with the data that follows it."""
    command = draw(among(commands))
    key = draw(st.sampled_from(keys))
    value = draw(st.sampled_from(values))
    words = [command, key.word, draw(ANY_FLAGS), draw(ANY_EXPIRY), draw(length_of(value))]
    if command == b"cas":
        words.append(draw(cas_number(key)))
    return Step(b" ".join(words) + draw(NOREPLY) + draw(LINE_ENDS) + value + CRLF)


STORES = st.one_of(
    *[stores(b"set set set set add replace cas append prepend", PLAIN, VALUES)] * 4,
    *[stores(b"set set set set add replace cas", NUMERIC, NUMERIC_VALUES)] * 3,
    stores(b"set add replace", COUNTERS, COUNTED_VALUES),
)


def _wrong_data(command: bytes, key: Key, declared: int, more: bytes, data: bytes) -> Step:
    """What of the filling is not swallowed is answered."""
    if command == b"ms":
        line = b"ms %s %d%s\r\n" % (key.word, declared, b" q" if more else b"")
    else:
        line = b"%s %s 0 0 %d%s\r\n" % (command, key.word, declared, more)
    return Step(line + data + FLUSH * (declared // len(FLUSH) + 2))


WRONG_DATA = st.builds(
    _wrong_data,
    among(b"set set add append ms"),
    of(PLAIN, COUNTERS),
    st.sampled_from((0, 1, 2, 3, 5, 8, 300)),
    NOREPLY,
    st.sampled_from((b"", b"a", b"ab\n", b"abc\n", b"abc\r", b"abcd\r\n", b"abc", b"abcdefgh")),
)
#: What may become shorter is sent only when nothing is on its way: see NOT_COMPARED.
ARITHMETIC = one_line(
    among(b"incr decr"),
    words_of(of(NUMERIC, NUMERIC, NUMERIC, MISSING)),
    ANY_DELTA,
    NOREPLY,
    settled=True,
)
COUNTING = one_line(
    st.just(b"incr"), words_of(of(COUNTERS)), picked(b"1 5 0 100".split(), BAD_DELTAS), NOREPLY
)
TOUCHES = one_line(st.just(b"touch"), READABLE, ANY_EXPIRY, NOREPLY)
#: With what is an error, as is all that is neither noreply nor the time 0 of old.
DELETES = one_line(
    st.just(b"delete"),
    READABLE,
    picked(
        (b"", b"0", b"noreply", b"0 noreply"),
        (b"5", b"noreply 0", b"noreply noreply", b"1 noreply", b"0 0", b"0 0 0"),
    ),
)
OTHERS = one_line(
    st.sampled_from(
        table(
            b"""
            flush_all | flush_all 0 | flush_all noreply | flush_all 0 noreply | flush_all -1
            flush_all x | flush_all 0 x | flush_all x noreply | flush_all noreply noreply
            flush_all 0 0 0 | version | version 1 2 3 | verbosity
            verbosity 0 | verbosity 0 0 | verbosity 0 0 0 | verbosity 0 noreply | verbosity x
            verbosity noreply | verbosity -1 | mn | mn k | stats | stats settings
            stats settings x | stats items | stats slabs | stats sizes | stats reset | stats RESET
            stats bogus | stats noreply | stats detail | stats detail x | stats detail off
            stats detail off x | stats detail on | stats detail dump
            """
        )
    )
)

# Meta commands

OPAQUES = (*b"O O1 Oabc Ok".split(), b"O" + b"o" * 31)
META_CAS = b"C0 C12345678901234567890 C18446744073709551615 C+77777777777".split()
TTLS = (b"T100\t", *b"T0 T100 T-1 T2592001 T2147483648 T+100".split())
#: Taken by every command, and of use to none; each is of use to another.
IDLE_FLAGS = (*b"P L Pxyz L1 F1".split(), *OPAQUES, *META_CAS)
BAD_META_FLAGS = (
    *b"T Tx T9223372036854775808 F F-1 Fx F18446744073709551616".split(),
    *b"C C-1 Cx C18446744073709551616 M MSS Mx J J-1 Jx D D-1 Dx D18446744073709551616".split(),
    *b"S1 x E Z 1 = noreply \xff \x7f \x7e".split(),
    *(b"v v", b"O O", b"O" + b"o" * 32, b"O" + b"o" * 300),
)


@dataclass(frozen=True)
class Meta:
    """The flags of one meta command."""

    usual: list[bytes]
    seldom: list[bytes]


MG = Meta(
    b"v v v f c k s q O1 Oabc T0 T100 T-1".split(), [*IDLE_FLAGS, *TTLS, *b"MS D1 J1 I".split()]
)
MS = Meta(
    b"MS ME MA MP MR c c k q F0 F7 O1 Oabc T0 T100 T-1 C0".split(),
    [*IDLE_FLAGS, *TTLS, *b"F4294967295 F4294967296 F+7 v s f t l h u N0 R0 D1 J1".split()],
)
MD = Meta(
    b"k q O1 Oabc C0 T0".split(),
    [*IDLE_FLAGS, *TTLS, *b"MS Mx D1 J1 v s f c t l h u N0 R0".split()],
)
MA = Meta(
    b"M+ MI M- MD N0 N100 N-1 J5 J0 D2 D5 D99 c v v k q O1 C0 J18446744073709551615".split(),
    [
        *IDLE_FLAGS,
        *b"D0 D18446744073709551615 J+7 N Nx N2592001 N4294967295 s f l h u R0 I".split(),
    ],
)


@st.composite
def flags_of(draw: st.DrawFn, meta: Meta, key: Key) -> list[bytes]:
    """Each letter once, but for what goes wrong now and then."""
    seldom = BAD_META_FLAGS if draw(SELDOM) else meta.seldom
    flags = draw(
        st.lists(picked(meta.usual, seldom, 10), max_size=9, unique_by=lambda flag: flag[:1])
    )
    if key in CAS_KEYS and draw(SELDOM):
        flags = [flag for flag in flags if flag[:1] != b"C"] + [b"C" + cas_of(key)]
    if key.encoded:
        flags.insert(draw(st.integers(0, len(flags))), b"b")
    return flags


def _meta(command: bytes, key: Key, *more: bytes) -> bytes:
    return b" ".join([command, key.word, *more])


@st.composite
def mg(draw: st.DrawFn) -> Step:
    key = draw(of(PLAIN, PLAIN, NUMERIC, COUNTERS, MISSING, ENCODED, ENCODED_NUMERIC, NAMED))
    flags = draw(flags_of(MG, key))
    if key.encoded and key not in NAMED:
        flags = [flag for flag in flags if flag != b"k"]
    return Step(_meta(b"mg", key, *flags) + draw(LINE_ENDS))


@st.composite
def ms(draw: st.DrawFn) -> Step:
    key = draw(of(PLAIN, PLAIN, NUMERIC, COUNTERS, ENCODED, ENCODED_NUMERIC, NAMED))
    flags = draw(flags_of(MS, key))
    if key not in PLAIN and key not in ENCODED:
        flags = [flag for flag in flags if flag not in (b"MA", b"MP")]
    values: Sequence[bytes] = VALUES
    if key in COUNTERS:
        values = COUNTED_VALUES
    elif key in NUMERIC:
        values = NUMERIC_VALUES
    elif key in ENCODED_NUMERIC:
        values = UNSIGNED_VALUES
    value = draw(st.sampled_from(values))
    line = _meta(b"ms", key, draw(length_of(value)), *flags)
    return Step(line + draw(LINE_ENDS) + value + CRLF)


@st.composite
def md(draw: st.DrawFn) -> Step:
    key = draw(of(PLAIN, NUMERIC, COUNTERS, MISSING, ENCODED, ENCODED_NUMERIC, NAMED))
    return Step(_meta(b"md", key, *draw(flags_of(MD, key))) + draw(LINE_ENDS))


@st.composite
def ma(draw: st.DrawFn) -> Step:
    key = draw(of(NUMERIC, NUMERIC, NUMERIC, MISSING[:1], ENCODED_NUMERIC))
    flags = draw(flags_of(MA, key))
    if key in MISSING:
        flags = [flag for flag in flags if flag[:1] != b"N"]
    return Step(_meta(b"ma", key, *flags) + draw(LINE_ENDS), settled=True)


#: What is read is used at once, or after something else, as is a number that is not of this key.
CAS_USED = st.builds(
    lambda key, line, between, end: [
        Step(b"set %s 0 0 1\r\n5\r\n" % key.word),
        _read(key),
        *([Step(b"touch %s 0\r\nappend %s 0 0 1\r\n0\r\n" % (key.word, key.word))] * between),
        Step(
            line.replace(b"KEY", key.word).replace(b"CAS", cas_of(key)), settled=line[:2] == b"ma"
        ),
        *([Step(b"mg %s v c\r\n" % key.word)] * end),
    ],
    st.sampled_from(CAS_KEYS),
    st.sampled_from(
        table(
            b"""
            cas KEY 7 0 2 CAS~10~ | cas KEY 0 -1 1 CAS~7~ | cas KEY 0 0 1 CAS noreply~7~
            ms KEY 1 CCAS~7~ | ms KEY 1 CCAS MR c~7~ | ms KEY 1 MA CCAS k~7~ | ms KEY 1 MP CCAS q~7~
            ms KEY 1 ME CCAS~7~ | ms KEY 1 c q CCAS T100 F7~7~ | ms KEY 1 T-1 CCAS~7~
            md KEY CCAS~ | md KEY CCAS q k~ | ma KEY CCAS v c~ | ma KEY CCAS M- D2 v~
            ma KEY q CCAS c~ | ma KEY CCAS N0 J7 v O1~ | mg KEY CCAS v~
            """
        )
    ),
    st.booleans(),
    st.booleans(),
)
META_COUNTING = st.builds(
    lambda key, flags: Step(_meta(b"ma", key, *flags) + CRLF),
    of(COUNTERS),
    st.lists(among(b"N0 J5 D2 M+ v c k q O1"), unique_by=lambda flag: flag[:1]),
)


def _with_data(command: bytes, key: bytes, *flags: bytes) -> Step:
    """A meta command, and after ms the data of one byte."""
    if command == b"ms":
        return Step(b" ".join([command, key, b"1", *flags]) + b"\r\nx\r\n")
    return Step(b" ".join([command, key, *flags]) + CRLF)


#: About as many as are allowed, and as are looked at at all.
MANY_FLAGS = st.builds(
    lambda command, count, flag: _with_data(command, PREFIX + b"a", *[flag] * count),
    among(b"mg ms md"),
    st.integers(14, 26),
    among(b"v c x"),
)
#: As many, each another one, and so not refused for being there twice.
DIFFERENT_FLAGS = st.builds(
    lambda first, count: _with_data(
        b"ms", PREFIX + b"a", *first, *b"v s f t l h u N0 R0 D1 J1".split()[:count]
    ),
    st.permutations(b"T0 F1 c k q O1 MS".split()),
    st.integers(8, 11),
)
BAD_BASE64 = st.builds(
    lambda command, key, flags: _with_data(command, key, b"b", *flags.split()),
    among(b"mg ms md ma"),
    st.sampled_from(NOT_BASE64),
    st.sampled_from((b"", b"k", b"q", b"k q O1", b"Tx", b"v v")),
)

# What is malformed, and what is long

ODD_LINES = [
    *(b"", b" ", b"  ", b"\r", b"\0", b"  get", b"\xff\xfe", b"\x81\0"),
    *table(
        b"""
        a | g | m | mx | mget a | GET @a | Get a | SET a 0 0 1 | bogus | noreply | g a | s x | d a
        t a | i a | c a | get | gets | gat | gats | gat 0 | gat a | gat -1 | getx a | get\ta
        get\0 a | get @a\0 x | bgets a | set | set a | set a 0 0 | set a 0 0 1 noreply x
        set a 0 0 1 2 3 4 | set a b c d | sets a 0 0 1 | add | append a | replace | prepend x
        cas | cas a 0 0 1 | cas a 0 0 noreply | cas a 0 0 1 2 3 4 | incr | incr a | incr a b c d
        incr a noreply | decr | decr a | touch | touch a | touch a b c d | touch a noreply
        delete | delete a b c d | mg | ms | ms a | ms a b | ms a S1 | ms a -1 | ms a 1x
        ms a 2147483646 | md | ma | mgx a | mn\0x | mn\t | quitx | xquit | versio | versions
        version\0 | version\r | verbosity 1 2 3 4 | flush_al | flush_allx | HTTP
        HTTP/1.1 200 OK
        """
    ),
    *(b"x" * 2000, b" " * 2000, b"get" + b" " * 1500 + PREFIX + b"a", b"set" + b" 1" * 30),
    *(b"get " * 30, b"x " * 30, b"x " * 24, b"x " * 23, b"x " * 22),
]
ODD = one_line(st.sampled_from(ODD_LINES))

#: What takes no swallowing has its data read as lines. From a get that fails so memcached takes
#: back what it had found.
LONG_KEYS = st.sampled_from(
    [
        Step(data.replace(b"LONG", TOO_LONG))
        for data in table(
            b"""
            set LONG 0 0 3~abc~ | set LONG 0 0 7 noreply~version~ | cas LONG 0 0 3 1~abc~
            append LONG 0 0 0~~ | incr LONG 1~ | decr LONG x noreply~ | touch LONG 0~
            touch LONG x~ | delete LONG~ | delete LONG 0~ | delete LONG 5~ | delete LONG noreply~
            mg LONG v~ | mg LONG v v q~ | mg LONG b~ | md LONG q~ | ma LONG N0~ | ms LONG~
            ms LONG 3~abc~ | ms LONG 3 b q~abc~ | mn~get LONG~ | mn~get @a LONG @b~
            mn~gat 0 @a LONG~ | mn~gat x LONG~ | mn~gat LONG a~
            mn~gets x x x x x x x x x x x x x x x x x x x x x x x x LONG~
            mn~get x x x x x x x x x x x x x x x x x x x x x x LONG~
            mn~get x x x x x x x x x x x x x x x x x x x x x LONG~
            """
        )
    ]
)
LONG_GETS = st.builds(
    lambda command, key, count, blanks: Step(
        blanks[1:] + command + blanks + blanks.join([PREFIX + b"a", *[key] * count]) + CRLF
    ),
    among(b"get gets"),
    st.sampled_from((PREFIX + b"none", PREFIX + b"n", PREFIX.ljust(250, b"k"))),
    st.sampled_from((10, 220)),
    st.sampled_from((b" ", b"  ", b" " * 90)),
)
#: Around what memcached takes, and far above it.
SIZES = st.sampled_from((1_000, 600_000, 1_048_000, 1_048_576, 1_048_577, 2_500_000))
FOR_THE_TUNNEL = st.sampled_from((1_000, 600_000, 1_048_000, 1_048_577, 2_500_000))


def _large_stores(lines: bytes, sizes: st.SearchStrategy[int]) -> st.SearchStrategy[Step]:
    return st.builds(
        lambda line, size: Step(
            line.replace(b"SIZE", b"%d" % size)
            + b"z" * size
            + b"\r\nmg "
            + LARGE.word
            + b" s f c\r\n"
        ),
        st.sampled_from(table(lines)),
        sizes,
    )


LARGE_STORES = _large_stores(
    b"""
    set @large 0 0 SIZE~ | set @large 0 0 SIZE noreply~ | add @large 0 0 SIZE~
    replace @large 0 0 SIZE~ | append @large 0 0 SIZE~ | cas @large 0 0 SIZE 7777777777~
    ms @large SIZE~ | ms @large SIZE q~ | ms @large SIZE k O1~
    """,
    SIZES,
) | _large_stores(b"ms @large SIZE ME~ | ms @large SIZE MA~", FOR_THE_TUNNEL)

#: Lines that are right, to be spoilt.
RIGHT = [
    line.split(b" ")
    for line in table(
        b"""
        set @a 0 0 3 | add @a 0 0 3 | cas @a 0 0 3 77777777777 | append @a 0 0 3
        set @a 0 0 3 noreply | cas @a 0 0 3 77777777777 noreply | replace @b 7 100 3 | get @a
        prepend @a 0 0 3 | gets @a @b | gat 0 @a | gats 100 @a @b | touch @a 0
        touch @a 0 noreply | delete @a | delete @a noreply | delete @a 0 | version | mn
        stats reset | mg @a v f k O1 | mg @a s v q c | mg @a T0 v | ms @a 3 | ms @a 3 T0 F7 c
        ms @b 3 MA q k | md @a q k | md @a O1 C7777777777 | verbosity 0 noreply
        """
    )
]
#: None of them is a time that will soon have come, or the length of more than follows.
SPOILERS = (
    *b"0 3 30 99 noreply x -1 get set mg q v b k O +3 3x 03 4294967299 ME MA C0 T F T-1 M".split(),
    *(b"", b"\t", b"\0", b"3\t", b"\r", b"3\r", b"\0x", b"c c", PREFIX + b"a"),
    b"18446744073709551616",
)


@st.composite
def spoilt(draw: st.DrawFn) -> Step:
    """A line that was right, with words lost, doubled, added, replaced or run together."""
    words = list(draw(st.sampled_from(RIGHT)))
    storing = b"3" in words
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(words) - 1))
        how = draw(among(b"lose double add replace join swap"))
        if how == b"lose" and len(words) > 1:
            del words[at]
        elif how == b"double":
            words.insert(at, words[at])
        elif how == b"add":
            words.insert(at, draw(st.sampled_from(SPOILERS)))
        elif how == b"replace":
            words[at] = draw(st.sampled_from(SPOILERS))
        elif how == b"join":
            words[at : at + 2] = [b"".join(words[at : at + 2])]
        else:
            words[at] = words[at].swapcase()
    line = b" ".join(words) + draw(LINE_ENDS)
    return Step(line + b"abc\r\n" + FLUSH * 26 if storing else line)


# Whole conversations


def _steps(drawn: Step | list[Step]) -> list[Step]:
    return drawn if isinstance(drawn, list) else [drawn]


COMMANDS: st.SearchStrategy[list[Step]] = st.one_of(
    *[GETS] * 3,
    GATS,
    *[READS] * 2,
    *[STORES] * 8,
    WRONG_DATA,
    *[ARITHMETIC] * 2,
    COUNTING,
    TOUCHES,
    DELETES,
    OTHERS,
    *[mg()] * 3,
    *[ms()] * 4,
    md(),
    *[ma()] * 2,
    *[CAS_USED] * 2,
    META_COUNTING,
    MANY_FLAGS,
    DIFFERENT_FLAGS,
    BAD_BASE64,
    *[ODD] * 2,
    LONG_KEYS,
    *[spoilt()] * 2,
).map(lambda drawn: [step for step in _steps(drawn) if is_compared(step.data)])
#: What takes longer than all the others.
BULKY = LONG_GETS | LARGE_STORES

ENDINGS = [
    Ending(),
    Ending(b""),
    *map(
        Ending,
        table(
            b"""
            version | get @a | mn~set @a 0 0 5~ab | mn~set @a 0 0 2 noreply~ab
            mn~set @a 0 0 200000~abc | mn~set @a 0 0 200000 noreply~abc~version~
            mn~append @a 0 0 2147483645 noreply~abc~version~ | mn~ms @a 2 q~
            mn~ms @a 2000 x~version~
            """
        ),
    ),
    *(Ending(b"mn\r\nset " + PREFIX + b"a 0 0 2\r\nab\r"), Ending(FLUSH + b"x" * LONGEST_LINE)),
    Ending(FLUSH + b"get " + (PREFIX + b"a ") * 600),
    *(
        Ending(data, closes=True)
        for data in table(b"quit~ | quit now~ | set @a 0 0 1 noreply~q~quit~ | mn~POST / HTTP/1.0~")
    ),
    *(
        Ending(data, closes=True, settled=True)
        for data in (
            *table(b"quit~set @a 0 0 1 noreply~q~ | GET / HTTP/1.1~Host: localhost~~"),
            *(b"x" * 3000, b" " * 3000, b"set " + b"k" * 3000),
        )
    ),
]


@st.composite
def conversations(draw: st.DrawFn, most: int = 100, bulky: bool = False) -> Conversation:
    """Of up to so many commands; `bulky`, with large values and long lines among them."""
    # A list of Hypothesis's own would mostly be short, or else could not be made so.
    steps = [step for _ in range(draw(st.integers(0, most))) for step in draw(COMMANDS)]
    for step in draw(st.lists(BULKY, max_size=3)) if bulky else []:
        steps.insert(draw(st.integers(0, len(steps))), step)
    return Conversation(steps, draw(st.sampled_from(ENDINGS)))


#: How long the pieces are in which a conversation is sent, over and over; none: all at once.
CUTS: st.SearchStrategy[list[int]] = st.just([]) | st.lists(
    st.sampled_from((1, 2, 3, 5, 7, 16, 40, 100, 700, 3000)), min_size=1, max_size=12
)
