"""What Ruby's Dalli 5 sends, byte for byte, is answered as memcached itself answers it.

Dalli 5 speaks meta commands only, has its server say its version first, and reads answers by the
order of their flags. No package of it is to be had where these tests run, so they say its words.
"""

import base64
import os
import re
import time
from collections.abc import Callable
from typing import Any

import servers

CAS = re.compile(rb"(?<= )c[1-9]\d*(?=[ \r])")
#: One that meta commands cannot carry as it is.
CODED = base64.b64encode("räksmörgås med ägg".encode())
LONG = b"k" * 250
LARGE = base64.b64encode(os.urandom(187_500))
THERE = [b"k%d" % n for n in range(0, 100, 2)]
ASKED = [b"k%d" % (n * 37 % 100) for n in range(100)]


def storing(line: bytes, value: bytes) -> bytes:
    return b"%s\r\n%s\r\n" % (line, value)


def each(form: bytes, keys: list[bytes]) -> bytes:
    """The same command for all these keys, and the `mn` that ends them."""
    return b"".join(form % key for key in keys) + b"mn\r\n"


#: What ends the answers to a batch.
LAST = b"MN\r\n"
#: `%(cas)d` stands for the token that was the last to be told.
CONVERSATION = [
    b"version\r\n",
    # What is not there, and what is.
    b"mg absent v f\r\n",
    b"mg absent v\r\n",
    storing(b"ms a 3 c F0 T60 MS", b"one"),
    b"mg a v f\r\n",
    b"mg a v\r\n",
    storing(b"ms flags 3 c F3 T0 MS", b"two"),
    b"mg flags v f\r\n",
    storing(b"ms empty 0 c F0 T0 MS", b""),
    b"mg empty v f\r\n",
    storing(b"ms large %d c F0 T0 MS" % len(LARGE), LARGE),
    b"mg large v f\r\n",
    storing(b"ms %s 4 c F0 T0 MS" % LONG, b"long"),
    b"mg %s v f\r\n" % LONG,
    # Tokens.
    b"mg a v f c\r\n",
    storing(b"ms a 4 c F0 C%(cas)d T0 MS", b"four"),
    b"mg a v f c\r\n",
    b"mg flags v f c\r\n",
    storing(b"ms a 4 c F0 C%(cas)d T0 MS", b"five"),
    storing(b"ms absent 4 c F0 C%(cas)d T0 MS", b"five"),
    b"mg absent v f c\r\n",
    b"mg a v f\r\n",
    # Only where nothing is, only where something is, before it and after it.
    storing(b"ms a 3 c F0 T0 ME", b"six"),
    storing(b"ms added 3 c F0 T0 ME", b"six"),
    storing(b"ms absent 5 c F0 T0 MR", b"seven"),
    storing(b"ms added 5 c F0 T0 MR", b"seven"),
    b"mg added v f c\r\n",
    storing(b"ms added 5 c F0 C%(cas)d T0 MR", b"eight"),
    storing(b"ms added 1 MA", b"!"),
    storing(b"ms added 1 MP", b"?"),
    storing(b"ms absent 1 MA", b"!"),
    storing(b"ms absent 1 MP", b"?"),
    b"mg added v f\r\n",
    # Many at once, that which is not there in between.
    b"".join(storing(b"ms %s 2 c F0 T0 MS q" % key, b"v1") for key in THERE) + b"mn\r\n",
    each(b"mg %s v f k q s\r\n", ASKED),
    each(b"mg %s v k q s\r\n", ASKED),
    each(b"mg %s v f c k q s\r\n", ASKED),
    each(b"mg %s v f k q s\r\n", [b"x", b"y", b"z"]),
    each(b"mg %s v f k q s\r\n", [b"k2", b"k2", b"absent", b"k2"]),
    each(b"md %s q\r\n", ASKED[:20]),
    each(b"mg %s v f k q s\r\n", ASKED),
    # Quietly, with whatever comes back in its place in the order.
    storing(b"ms q1 2 F0 T0 MS q", b"v1")
    + storing(b"ms q1 2 F0 T0 ME q", b"v2")
    + storing(b"ms absent 2 F0 T0 MR q", b"v3")
    + storing(b"ms absent 2 MA q", b"v3")
    + storing(b"ms q1 1 MA q", b"!")
    + b"md absent q\r\n"
    + b"ma absent v D1 q MI\r\n"
    + b"mn\r\n",
    storing(b"ms q1 2 F0 T0 MS q", b"12") + b"ma q1 v D1 q MI\r\nma q1 v D2 q MD\r\nmn\r\n",
    b"mg q1 v f\r\n",
    # Keys in base64.
    storing(b"ms %s 4 c b F0 T0 MS" % CODED, b"nine"),
    b"mg %s b v f\r\n" % CODED,
    b"mg %s b v f c\r\n" % CODED,
    storing(b"ms %s 3 c b F0 C%%(cas)d T0 MS" % CODED, b"ten"),
    b"mg k2 v f k q s\r\nmg %s b v f k q s\r\nmn\r\n" % CODED,
    b"mg %s b v f c k q s\r\nmn\r\n" % CODED,
    b"mg %s b T100\r\n" % CODED,
    b"md %s b\r\n" % CODED,
    b"md %s b\r\n" % CODED,
    b"mg %s b v f\r\n" % CODED,
    # Time.
    b"mg a T100\r\n",
    b"mg absent T100\r\n",
    b"mg a v f T100\r\n",
    b"mg a v T100\r\n",
    b"mg absent v f T100\r\n",
    storing(b"ms gone 4 c F0 T-1 MS", b"gone"),
    b"mg gone v f\r\n",
    storing(b"ms gone 4 c F0 T2592001 MS", b"gone"),
    b"mg gone v f\r\n",
    storing(b"ms soon 4 c F0 T0 MS", b"soon"),
    b"mg soon T-1\r\n",
    b"mg soon v f\r\n",
    # Deletion.
    storing(b"ms d 1 c F0 T0 MS", b"1"),
    b"mg flags v f c\r\n",
    b"md d C%(cas)d\r\n",
    b"mg d v f c\r\n",
    b"md d C%(cas)d\r\n",
    b"md d C%(cas)d\r\n",
    b"md d\r\n",
    # Counting.
    b"ma n v D1 MI\r\n",
    b"ma n v D3 J10 N0 MI\r\n",
    b"ma n v D3 J10 N0 MI\r\n",
    b"ma n v D5 MD\r\n",
    b"ma n v D100 MD\r\n",
    b"ma n v D100 J7 N60 MD\r\n",
    b"ma m v D100 J7 N60 MD\r\n",
    b"ma n v D18446744073709551615 MI\r\n",
    b"ma n v D2 MI\r\n",
    b"ma a v D1 MI\r\n",
    b"mg n v f\r\n",
    # The rest.
    b"mn\r\n",
    b"flush_all 0\r\n",
    b"mg a v f\r\n",
    b"mn\r\n",
]


Whole = Callable[[bytes], bool]


class Talk:
    """Says the conversation to a server, and keeps what it says, each token as `c#`."""

    def __init__(self, wire: servers.Wire) -> None:
        self.socket = wire.socket
        self.answers: list[bytes] = []
        self._cas = 0

    def say(self, request: bytes, whole: Whole) -> None:
        if b"%(cas)d" in request:
            request = request.replace(b"%(cas)d", b"%d" % self._cas)
        self.socket.sendall(request)
        answer = b""
        while not whole(self.plain(answer)):
            data = self.socket.recv(1 << 16)
            if not data:
                break
            answer += data
        if tokens := CAS.findall(answer):
            self._cas = int(tokens[-1][1:])
        self.answers.append(self.plain(answer))

    @staticmethod
    def plain(answer: bytes) -> bytes:
        return CAS.sub(b"c#", answer)


def ends_with_batch(count: int) -> Whole:
    """An answer is whole with as many lines `MN` as there are commands `mn`."""
    return lambda answer: answer.count(LAST) == count


def as_long_as(expected: bytes) -> Whole:
    return lambda answer: len(answer) >= len(expected) and answer[-2:] in (b"\r\n", b"")


def reference(wire: servers.Wire) -> list[bytes]:
    """What memcached answers to each request, which it is made to tell by one more `mn`."""
    talk = Talk(wire)
    for request in CONVERSATION:
        talk.say(request + b"mn\r\n", ends_with_batch(request.count(b"mn\r\n") + 1))
    return [answer.removesuffix(LAST) for answer in talk.answers]


def heard(wire: servers.Wire, expected: list[bytes]) -> list[bytes]:
    """What the tunnel answers, where nothing comes after a request to have its answer out."""
    talk = Talk(wire)
    for request, answer in zip(CONVERSATION, expected, strict=True):
        talk.say(request, as_long_as(answer))
    return talk.answers


def test_every_answer_is_the_one_of_memcached(
    served: servers.Tunnel,
    make_memcached: Callable[..., servers.Memcached],
    connect: Callable[..., servers.Wire],
) -> None:
    plain = make_memcached(pair=None, sasl=False)
    expected = reference(connect(plain))
    wire = connect(served)
    wire.socket.settimeout(10)
    differences = [
        (request[:100], right[:300], got[:300])
        for request, right, got in zip(CONVERSATION, expected, heard(wire, expected), strict=True)
        if got != right
    ]
    assert differences == []


def test_statistics(served: servers.Tunnel, connect: Callable[..., servers.Wire]) -> None:
    wire = connect(served)
    answer = ask(wire, storing(b"ms a 3 c F0 T0 MS", b"one"), b"\r\n")
    assert CAS.sub(b"c#", answer) == b"HD c#\r\n"
    for what in (b"", b" items", b" slabs", b" settings"):
        lines = ask(wire, b"stats" + what + b"\r\n", b"END\r\n").split(b"\r\n")
        assert lines[-2:] == [b"END", b""]
        assert len(lines) > 5
        assert all(re.fullmatch(rb"STAT \S+ .*", line) for line in lines[:-2]), lines
    assert ask(wire, b"stats reset\r\n", b"\r\n") == b"RESET\r\n"


#: Of a client that lets one of many remake a value; the binary protocol has no words for it.
UNHEARD_OF = [
    b"mg a v f c N30\r\n",
    b"mg a v f c N30 R10\r\n",
    b"mg a v f c h\r\n",
    b"mg a v f c l\r\n",
    b"md a I\r\n",
]


def test_what_cannot_be_carried_is_refused_and_not_half_done(
    served: servers.Tunnel, connect: Callable[..., servers.Wire]
) -> None:
    wire = connect(served)
    ask(wire, storing(b"ms a 3 c F0 T0 MS", b"one"), b"\r\n")
    for request in UNHEARD_OF:
        assert ask(wire, request, b"\r\n").startswith(b"CLIENT_ERROR "), request
        assert ask(wire, b"mg a v f\r\n", b"one\r\n") == b"VA 3 f0\r\none\r\n"
        assert ask(wire, b"mn\r\n", b"\r\n") == b"MN\r\n"


def test_without_the_server(outage: servers.Outage, connect: Callable[..., servers.Wire]) -> None:
    wire = connect(outage)
    outage.begin()
    unavailable = b"SERVER_ERROR temporarily unavailable\r\n"
    for request, answer in [
        (b"mg a v f\r\n", b"EN\r\n"),
        (b"mg a v f c\r\n", b"EN\r\n"),
        (b"mg a T100\r\n", b"EN\r\n"),
        (each(b"mg %s v f k q s\r\n", ASKED), b"MN\r\n"),
        (storing(b"ms a 3 c F0 T0 MS", b"one"), b"NS c0\r\n"),
        (storing(b"ms a 3 c F0 T0 ME", b"one"), b"NS c0\r\n"),
        (storing(b"ms a 3 c F0 C9 T0 MS", b"one"), b"NS c0\r\n"),
        (storing(b"ms a 3 MA", b"one"), b"NS\r\n"),
        (b"md a\r\n", unavailable),
        (b"ma a v D1 MI\r\n", unavailable),
        (b"ma a v D1 J1 N0 MI\r\n", unavailable),
        (b"flush_all 0\r\n", unavailable),
        (b"mn\r\n", b"MN\r\n"),
    ]:
        assert ask(wire, request, b"\r\n") == answer, request
    assert re.fullmatch(rb"VERSION \d+\.\d+\.\d+\S*\r\n", ask(wire, b"version\r\n", b"\r\n"))
    outage.end()
    began = time.monotonic()
    ask(wire, storing(b"ms a 3 c F0 T0 MS", b"one"), b"\r\n")
    assert ask(wire, b"mg a v f\r\n", b"one\r\n") == b"VA 3 f0\r\none\r\n"
    assert time.monotonic() - began < 1


def ask(wire: Any, request: bytes, end: bytes) -> bytes:
    """Send this, and read what comes up to these last bytes of it."""
    wire.socket.sendall(request)
    answer = b""
    while not answer.endswith(end):
        data = wire.socket.recv(1 << 16)
        if not data:
            break
        answer += data
    return answer
