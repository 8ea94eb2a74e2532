"""In the text protocol the tunnel answers as memcached does, byte for byte.

The same conversations are held with a tunnel and with a memcached without TLS, cut into the
same pieces, and then both are asked what they have stored. What is left out of the comparison,
and why, is `text_conversations.NOT_COMPARED`. That nothing else in the conversations hangs on
chance is tested too: memcached agrees with itself, however the bytes are cut.

With `MEMTUNNEL_DIFFERENTIAL=100000` this goes on until so many commands have been compared.
"""

import itertools
import os
import re
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import authority
import hypothesis
import pytest
import servers
from hypothesis import HealthCheck, Phase, given, settings
from text_conversations import (
    COUNTERS,
    CUTS,
    ENCODED,
    ENCODED_NUMERIC,
    FLUSH,
    LARGE,
    NAMED,
    NUMERIC,
    PLAIN,
    PREFIX,
    Conversation,
    conversations,
    filled_in,
)

#: Seconds within which an answer that does not come is missing.
PATIENCE = 3.0
#: More pieces than this would take longer than they show.
MOST_PIECES = 500
#: Of those after which a long run ends.
MOST_DIFFERENCES = 10
COMMANDS_WANTED = int(os.environ.get("MEMTUNNEL_DIFFERENTIAL", "0"))

#: What a conversation leaves behind, as both servers are then asked.
LOOK = b"".join(
    (
        *(b"gets " + key.word + b"\r\n" for key in (*PLAIN, *NUMERIC, *COUNTERS)),
        *(b"mg " + key.word + b" b v f c\r\n" for key in (*ENCODED, *ENCODED_NUMERIC, *NAMED)),
        b"mg " + LARGE.word + b" s f c\r\n",
        b"mn\r\n",
    )
)
#: A number that was longer: see `NOT_COMPARED`.
PADDED = re.compile(rb"\d+ +\r\n")


@dataclass
class Heard:
    """What a server said in a conversation, fit to be compared."""

    answers: list[bytes]
    ended: str = "closed"
    """How it ended: closed, or silent where the close (or an answer) did not come in time."""
    left: list[bytes] = field(default_factory=list)
    """What it then has stored."""


class Caller:
    """One connection to a server, on which bytes are sent in pieces while answers are read."""

    def __init__(self, port: int, sizes: list[int]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.heard = bytearray()
        self.closed = False
        self._sizes = itertools.cycle(sizes) if sizes else None
        self._pieces = 0

    def say(self, data: bytes) -> None:
        while data and not self.closed:
            size = len(data)
            if self._sizes is not None and self._pieces < MOST_PIECES:
                size = min(size, next(self._sizes))
                self._pieces += 1
            piece, data = data[:size], data[size:]
            until = time.monotonic() + PATIENCE
            while piece and not self.closed and time.monotonic() < until:
                with suppress(BlockingIOError):
                    try:
                        piece = piece[self.socket.send(piece) :]
                    except (BrokenPipeError, ConnectionResetError):
                        self._listen(until)
                        return
                if piece:
                    select.select([self.socket], [self.socket], [], PATIENCE)
                    self._read()

    def hears(self, wanted: bytes) -> bool:
        """Wait until what was said ends with this."""
        until = time.monotonic() + PATIENCE
        while not self.heard.endswith(wanted):
            if self.closed or time.monotonic() > until:
                return False
            select.select([self.socket], [], [], PATIENCE)
            self._read()
        return True

    def end(self, *, first: bool) -> None:
        """Read to the end; being the `first` to end, or not."""
        if first and not self.closed:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)
        self._listen(time.monotonic() + PATIENCE)
        self.socket.close()

    def _listen(self, until: float) -> None:
        while not self.closed and time.monotonic() < until:
            select.select([self.socket], [], [], max(0.0, until - time.monotonic()))
            self._read()

    def _read(self) -> None:
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        self.heard += data
        self.closed = not data


def last_cas(heard: bytes, key: bytes) -> int | None:
    """The number in the answer to the ``gets`` that was the last, unless it found nothing."""
    _, found, answer = heard.rpartition(b"VALUE %s " % key)
    line, _, end = answer.partition(b"\r\n")
    if not found or not re.fullmatch(rb"\d+ \d+ \d+", line):
        return None
    _, size, number = map(int, line.split(b" "))
    return number if end[size:] == b"\r\nEND\r\n" else None


class Server:
    """One of the two that are compared."""

    def __init__(self, port: int) -> None:
        self.port = port

    def converse(self, conversation: Conversation, prefix: bytes, sizes: list[int]) -> Heard:
        caller = Caller(self.port, sizes)
        cas: dict[bytes, int] = {}
        marks = (b"O%s%d" % (prefix, number) for number in itertools.count())

        def settled(unsent: bytes) -> bytes:
            """Send this and wait until all is answered; the answers, none if they do not come."""
            mark = next(marks)
            caller.say(unsent + b"mg %s %s\r\n" % (prefix, mark))
            last = b"EN %s\r\n" % mark
            return bytes(caller.heard[: -len(last)]) if caller.hears(last) else b""

        unsent = FLUSH
        for step in (*conversation.steps, conversation.ending):
            if step.settled:
                if not settled(unsent):
                    break
                unsent = b""
            unsent += filled_in(step.data, prefix, cas)
            if step.reads:
                answers = settled(unsent)
                if not answers:
                    break
                unsent = b""
                number = last_cas(answers, filled_in(step.reads, prefix, cas))
                if number is not None:
                    cas[step.reads.removeprefix(PREFIX)] = number
        caller.say(unsent)
        caller.end(first=not conversation.ending.closes)
        ended = "closed" if caller.closed else "silent"
        return Heard(normal(bytes(caller.heard)), ended, self.look(prefix))

    def look(self, prefix: bytes) -> list[bytes]:
        caller = Caller(self.port, [])
        caller.say(filled_in(LOOK, prefix, {}))
        caller.end(first=True)
        return normal(bytes(caller.heard))


def normal(heard: bytes) -> list[bytes]:
    """Answers one by one: cas numbers by the order in which they come, stats by their shape."""
    answers: list[bytes] = []
    numbers: dict[bytes, bytes] = {b"0": b"0"}

    def number(word: bytes) -> bytes:
        return b"cas" + numbers.setdefault(word, b"%d" % len(numbers))

    at = 0
    while at < len(heard):
        end = heard.find(b"\r\n", at)
        if end < 0:
            answers.append(heard[at:])
            break
        words = heard[at:end].split(b" ")
        at = end + 2
        size = -1
        if words[0] == b"VALUE" and len(words) in (4, 5):
            size = int(words[3])
            words[4:] = map(number, words[4:])
        elif words[0] in (b"VA", b"HD", b"EX", b"NS", b"NF", b"EN"):
            if words[0] == b"VA":
                size = int(words[1])
            words = [
                b"c" + number(word[1:]) if word[:1] == b"c" and word[1:].isdigit() else word
                for word in words
            ]
        elif words[0] in (b"STAT", b"PREFIX"):
            words = [words[0] + b"s"]
            if answers[-1:] == words:
                continue
        value = b""
        if size >= 0:
            value = heard[at : at + size + 2]
            at += size + 2
            if PADDED.fullmatch(value):
                value = value.rstrip() + b"\r\n"
                words[3 if words[0] == b"VALUE" else 1] = b"%d" % (len(value) - 2)
                words = [b"s%d" % (len(value) - 2) if w == b"s%d" % size else w for w in words]
        answer = b" ".join(words) + (b"\r\n" + value if value else b"")
        answers.append(answer)
    return answers


def at_start(server: Server) -> Server:
    """With more cas numbers given out than are made up in a conversation."""
    caller = Caller(server.port, [])
    caller.say(b"set warm 0 0 1 noreply\r\n1\r\n" * 10_000 + b"mn\r\n")
    assert caller.hears(b"MN\r\n")
    caller.end(first=True)
    return server


@contextmanager
def running_memcached(folder: Path) -> Iterator[Server]:
    real = servers.Memcached(folder, pair=None, sasl=False)
    with servers.closing_all([real]):
        yield at_start(Server(real.start("-m", "1024").port))


@pytest.fixture(scope="module")
def memcached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What the tunnel is compared with."""
    with running_memcached(tmp_path_factory.mktemp("one")) as server:
        yield server


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What memcached itself is compared with."""
    with running_memcached(tmp_path_factory.mktemp("other")) as server:
        yield server


@pytest.fixture(scope="module")
def tunnel(
    tmp_path_factory: pytest.TempPathFactory, good_pair: authority.Pair, ca_file: Path
) -> Iterator[Server]:
    """In front of another memcached, with TLS and a login."""
    real = servers.Memcached(tmp_path_factory.mktemp("secure"), pair=good_pair, sasl=True)
    with servers.closing_all([real]) as things:
        real.start("-m", "1024")
        tunnel = servers.Tunnel(
            f"--server=127.0.0.1:{real.port}",
            f"--ca-file={ca_file}",
            f"--username={servers.USERNAME}",
            servers.PATIENT,
            environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD},
        )
        things.append(tunnel)
        tunnel.start()
        tunnel.wait_ready()
        yield at_start(Server(tunnel.port))


PREFIXES = (b"%06x" % number for number in itertools.count())


def told(answers: list[bytes], others: list[bytes]) -> str:
    """Answers from the first that differs on, with two before it."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(answers, others, strict=False))
    same = sum(1 for _ in pairs)
    return "".join(f"  {answer[:400]!r}\n" for answer in answers[max(0, same - 2) : same + 4])


def difference(ours: Heard, theirs: Heard) -> str | None:
    """In words; where there is none, None."""
    if ours == theirs:
        return None
    words = f"it, which then {ours.ended}:\n{told(ours.answers, theirs.answers)}"
    words += f"memcached, which then {theirs.ended}:\n{told(theirs.answers, ours.answers)}"
    if ours.left != theirs.left:
        words += f"it has stored:\n{told(ours.left, theirs.left)}"
        words += f"memcached has stored:\n{told(theirs.left, ours.left)}"
    return words


def compare(ours: Server, theirs: Server, conversation: Conversation, *cuts: list[int]) -> None:
    """Hold a conversation with both; `cuts` is how it is cut for each, or for both."""
    prefix = next(PREFIXES)
    found = difference(
        ours.converse(conversation, prefix, cuts[0]),
        theirs.converse(conversation, prefix, cuts[-1]),
    )
    assert found is None, found


#: Explaining would take longer than finding.
EXAMPLES = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[phase for phase in Phase if phase != Phase.explain],
)


@settings(EXAMPLES, max_examples=60)
@given(conversation=conversations(bulky=True), cuts=CUTS, others=CUTS)
def test_memcached_agrees_with_itself_however_the_bytes_are_cut(
    memcached: Server,
    another: Server,
    conversation: Conversation,
    cuts: list[int],
    others: list[int],
) -> None:
    compare(another, memcached, conversation, cuts, others)


@settings(EXAMPLES, max_examples=200)
@given(conversation=conversations(), cuts=CUTS)
def test_tunnel_answers_as_memcached_does(
    tunnel: Server, memcached: Server, conversation: Conversation, cuts: list[int]
) -> None:
    compare(tunnel, memcached, conversation, cuts)


@settings(EXAMPLES, max_examples=30)
@given(conversation=conversations(most=20, bulky=True), cuts=CUTS)
def test_tunnel_takes_large_values_and_long_lines_as_memcached_does(
    tunnel: Server, memcached: Server, conversation: Conversation, cuts: list[int]
) -> None:
    compare(tunnel, memcached, conversation, cuts)


@pytest.mark.skipif(not COMMANDS_WANTED, reason="takes minutes: set MEMTUNNEL_DIFFERENTIAL")
def test_tunnel_answers_as_memcached_does_for_long(tunnel: Server, memcached: Server) -> None:
    commands = held = 0
    differences: list[str] = []
    for batch in itertools.count():
        if commands >= COMMANDS_WANTED or len(differences) == MOST_DIFFERENCES:
            break

        @hypothesis.seed(batch)
        @settings(EXAMPLES, max_examples=200, database=None)
        @given(conversation=conversations(bulky=batch % 10 == 9), cuts=CUTS)
        def hold(conversation: Conversation, cuts: list[int]) -> None:
            nonlocal commands, held
            compare(tunnel, memcached, conversation, cuts)
            commands += len(conversation.steps)
            held += 1

        try:
            hold()
        except AssertionError as error:
            differences.append("\n".join([str(error), *getattr(error, "__notes__", [])]))
            print(f"\n{differences[-1]}")
    counted = f"{commands} commands in {held} conversations, {len(differences)} differences"
    print(f"\n{counted}")
    assert not differences, counted
