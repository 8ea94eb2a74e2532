"""What clients are told when there is no answer from a server: each request, each fault, each byte.

Each row of `degraded_table` meets each fault twice: alone in the core, where faults are exact, and
together with all other rows through sockets, with a real tunnel and a server that does wrong over
TLS. ``pytest tests/test_degraded_replies.py`` ends with the figure: how many pairs of a row and a
fault there are, and how many of them conform.
"""

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from operator import gt
from pathlib import Path
from typing import Any, NamedTuple

import authority
import faults
import pytest
import servers
from core_harness import House, Link, get
from degraded_table import FENCE, OPAQUE, ROWS, Row, frame
from faults import LARGEST, Fault, FaultyServer, Then

from memtunnel.core.answers import FULL_REQUESTS
from memtunnel.core.binary_session import BinarySession
from memtunnel.core.breaker import FAILED_DIALS, TIMEOUTS_IN_A_ROW
from memtunnel.core.mux import MAX_ENTRIES, MAX_UNSENT
from memtunnel.core.text_session import TextSession
from memtunnel.wire import classic, meta
from memtunnel.wire.binary import Opcode, Status
from memtunnel.wire.sasl import Credentials, Secret

CREDENTIALS = Credentials(username=servers.USERNAME, password=Secret(servers.PASSWORD))


def test_the_table_has_every_command() -> None:
    opcodes = {row.asked[0][1] for row in ROWS if row.protocol is BinarySession}
    verbs = {row.asked[0].split()[0] for row in ROWS if row.protocol is TextSession}
    assert opcodes >= set(Opcode)
    assert verbs >= set(classic.VERBS) | set(meta.VERBS)


class Score:
    """How many pairs of a row and a fault conform, of all; shown when the tests have ended."""

    def __init__(self) -> None:
        self.conform: Counter[str] = Counter()
        self.all: Counter[str] = Counter()

    def note(self, where: str, number: int, wrong: int) -> None:
        self.all[where] += number
        self.conform[where] += number - wrong

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        figure = f"{self.conform.total():,} of {self.all.total():,}"
        apart = [f"{where} {self.conform[where]:,} of {n:,}" for where, n in self.all.items()]
        terminalreporter.write_line(
            f"degraded replies that conform, op x fault: {figure} ({', '.join(apart)})"
        )


@pytest.fixture(scope="module")
def score(request: pytest.FixtureRequest) -> Score:
    score = Score()
    request.config.pluginmanager.register(score)
    return score


# In the core: each row meets each fault alone.

#: Just past the deadline of a small request.
LATE = 0.41
Ask = Callable[[], None]


def anything(row: Row) -> bool:
    return True


class Trouble(NamedTuple):
    """How a fault comes about: `play` asks when it is time, once."""

    play: Callable[[House, Ask], None]
    reason: str
    """What it is counted as."""
    reason_of_reads: str = ""
    reason_of_gets: str = ""
    """If those are others."""
    concerns: Callable[[Row], bool] = anything
    options: dict[str, Any] = {}


def lose_all(house: House) -> None:
    for link in list(house.links):
        link.lose()


def refuse_dials(house: House) -> None:
    for server in house.servers:
        for _ in range(FAILED_DIALS):
            server.dial_failed(house.now)
    house.tunnel.flush()


def known_to_be_down(house: House, ask: Ask) -> None:
    lose_all(house)
    refuse_dials(house)
    ask()


def no_connection(house: House, ask: Ask) -> None:
    lose_all(house)
    ask()
    house.pass_time(LATE)


def no_connection_and_then_down(house: House, ask: Ask) -> None:
    lose_all(house)
    ask()
    house.pass_time(0.1)
    refuse_dials(house)


def another_waits_its_deadline_out(house: House, ask: Ask) -> None:
    lose_all(house)
    house.client().send(get(b"other"))
    house.pass_time(0.2)
    ask()
    house.pass_time(0.21)


def never_written(house: House, ask: Ask) -> None:
    ask()
    house.pass_time(LATE)


def known_to_be_stalled(house: House, ask: Ask) -> None:
    house.client().send(*(get(b"other") for _ in range(TIMEOUTS_IN_A_ROW)))
    house.links[0].pull()
    house.pass_time(LATE)
    ask()


def lost_and_then_down(house: House, ask: Ask) -> None:
    ask()
    house.links[0].pull()
    house.links[0].lose()
    refuse_dials(house)


def lost_and_no_other_connection(house: House, ask: Ask) -> None:
    ask()
    house.links[0].pull()
    house.links[0].lose()
    house.pass_time(LATE)


def misbehave(house: House, fault: Fault) -> list[tuple[Link, bytes]]:
    """Let the server do to all that has reached it what `fault` says, and take it back.

    Returns what is left to be said.
    """
    kept = []
    for link in list(house.links):
        link.pull()
        while link.asked and link in house.links:
            frame = link.asked.popleft()
            truth = link.store.execute(frame)
            said = fault(frame, truth)
            link.deliver(said.data)
            if said.then is Then.SILENCE:
                kept.append((link, truth[len(said.data) :] + link.execute()))
            elif said.then is not Then.GO_ON:
                link.lose()
        if link not in house.links:
            house.connect()
    return kept


def meet(house: House, fault: Fault) -> None:
    """Let what was asked meet a fault; what only reads is asked once more, and meets it again."""
    kept = misbehave(house, fault) + misbehave(house, fault)
    house.pass_time(LATE)
    for link, data in kept:
        link.deliver(data)
        assert link.distrust is None, "what is late is no reason for distrust"


def served_with(make: Callable[[], Fault]) -> Callable[[House, Ask], None]:
    def play(house: House, ask: Ask) -> None:
        ask()
        meet(house, make())

    return play


def told_twice_what_is_before(house: House, ask: Ask) -> None:
    fault = faults.duplicates()
    house.client().send(get(b"other"))
    misbehave(house, fault)
    ask()
    meet(house, fault)


def too_many_in_flight(house: House, ask: Ask) -> None:
    house.links[0].mux.load = MAX_ENTRIES  # to make so many requests takes long
    ask()


def too_much_unsent(house: House, ask: Ask) -> None:
    house.links[0].mux.unsent_bytes = MAX_UNSENT
    ask()


def no_memory_to_wait(house: House, ask: Ask) -> None:
    lose_all(house)
    house.client().send(*(get(b"other" * 40) for _ in range(10)))
    ask()


def reads_too_little(house: House, ask: Ask) -> None:
    """A hit would be more than the client may leave unread."""
    house.stores[0].items[b"k"] = bytes(4), b"value", 1
    house.clients[0].session.choked = True
    ask()
    house.serve()


def waits_behind_another(house: House, ask: Ask) -> None:
    """A hit that comes before its turn is more than may be kept."""
    here = house.router.server_of(b"k")
    other = house.key_on(1 - here)
    (client,) = house.clients
    in_text = isinstance(client.session, TextSession)
    client.send(b"mg %b q\r\n" % other if in_text else frame(0x8009, OPAQUE, key=other))
    house.stores[here].items[b"k"] = bytes(4), bytes(LARGEST), 1
    ask()
    house.links[here].deliver(house.links[here].execute())
    house.serve()


def one_of_two_is_down(house: House, ask: Ask) -> None:
    house.links[1].lose()
    for _ in range(FAILED_DIALS):
        house.servers[1].dial_failed(house.now)
    ask()
    house.serve()


def one_of_two_refuses(house: House, ask: Ask) -> None:
    ask()
    house.links[1].deliver(house.links[1].refuse(Status.AUTH_FAILED))
    house.serve()


def only_gets(row: Row) -> bool:
    return row.gets and not row.own


def for_all_servers(row: Row) -> bool:
    """What is done only if all have done it."""
    return row.name.startswith(("FLUSH", "flush_all", "stats reset"))


def not_of_memory(row: Row) -> bool:
    """A text client is told in words of its own of a server that is out of memory."""
    return row.gets or row.protocol is BinarySession


class Answers(NamedTuple):
    """A server that says something else to all that it is asked for, and what it is counted as."""

    make: Callable[[], Fault]
    reason: str
    reason_of_gets: str = ""
    concerns: Callable[[Row], bool] = anything


def refusing(status: int, *more: Any, body: bytes = b"because") -> Answers:
    return Answers(lambda: faults.refuses(status, body), *more)


LOST = "upstream_lost"
ANSWERS = {
    "silence": Answers(lambda: faults.silence, "timeout"),
    "half an answer, then silence": Answers(lambda: faults.half_and_silence, "timeout"),
    "reset": Answers(lambda: faults.reset, LOST),
    "close": Answers(lambda: faults.close, LOST),
    "half an answer, then a reset": Answers(lambda: faults.half_and_reset, LOST),
    "too large": Answers(lambda: faults.too_large, "too_large"),
    **{
        f"status 0x{status:02x}": refusing(status, "error", "", only_gets)
        for status in (0x02, 0x03, 0x04, 0x05, 0x06)
    },
    **{
        f"status 0x{status:02x}": refusing(status, "error")
        for status in (0x07, 0x21, 0x81, 0x83, 0x84, 0x85, 0x86, 0xFFFF)
    },
    "status 0x82": refusing(0x82, "error", "", not_of_memory),
    # What any login may do is refused only to those who are not logged in.
    "status 0x20": refusing(0x20, "refused", LOST),
    "an empty body": refusing(0x85, "error", body=b""),
}
TWO = {"servers": 2}
TROUBLES = {
    "known to be down": Trouble(known_to_be_down, "no_upstream"),
    "no connection": Trouble(no_connection, "timeout"),
    "no connection, and then down": Trouble(no_connection_and_then_down, "no_upstream"),
    "no connection for another": Trouble(another_waits_its_deadline_out, "no_upstream"),
    "never written": Trouble(never_written, "timeout"),
    "known to be stalled": Trouble(known_to_be_stalled, "no_upstream"),
    "lost, and then down": Trouble(lost_and_then_down, LOST, reason_of_reads="no_upstream"),
    "lost, and no other connection": Trouble(
        lost_and_no_other_connection, LOST, reason_of_reads="timeout"
    ),
    **{
        name: Trouble(
            served_with(one.make),
            one.reason,
            reason_of_gets=one.reason_of_gets,
            concerns=one.concerns,
        )
        for name, one in ANSWERS.items()
    },
    **{f"a wrong {kind}": Trouble(served_with(make), LOST) for kind, make in faults.LIES.items()},
    "told twice what is before": Trouble(told_twice_what_is_before, LOST),
    "too many in flight": Trouble(too_many_in_flight, "overloaded"),
    "too much unsent": Trouble(too_much_unsent, "overloaded"),
    "no memory": Trouble(no_memory_to_wait, "overloaded", options={"limit": 1000}),
    "reads too little": Trouble(reads_too_little, "overloaded", concerns=only_gets),
    "waits behind another": Trouble(
        waits_behind_another, "overloaded", concerns=only_gets, options=TWO | {"limit": 0}
    ),
    "one of two is down": Trouble(
        one_of_two_is_down, "no_upstream", concerns=for_all_servers, options=TWO
    ),
    "one of two refuses": Trouble(
        one_of_two_refuses, "refused", concerns=for_all_servers, options=TWO
    ),
}


def wrong_in_the_core(row: Row, trouble: Trouble, errors: bool) -> str:
    """What is wrong with what is told, empty for nothing."""
    options = {"max_value_size": LARGEST, "credentials": CREDENTIALS, **trouble.options}
    house = House(errors_on_unavailable=errors, **options)
    house.tunnel.version = b"1.6.18"
    client = house.client(row.protocol)
    trouble.play(house, lambda: client.send(*row.asked, row.fence))
    house.pass_time(10)
    told = row.told[errors]
    if client.received != told:
        return f"{row.name}: {client.received!r}, not {told!r}"
    if client.closed != row.closes:
        return f"{row.name}: {'closed' if client.closed else 'not closed'}"
    reason = (row.gets and trouble.reason_of_gets) or trouble.reason
    reason = (row.reads and trouble.reason_of_reads) or reason
    if not row.own and reason not in [why for _, why in house.degraded]:
        return f"{row.name}: counted as {house.degraded}, not {reason}"
    return ""


@pytest.mark.parametrize("errors", [False, True], ids=["miss", "error"])
@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_in_the_core(trouble: Trouble, errors: bool, score: Score) -> None:
    rows = [row for row in ROWS if trouble.concerns(row)]
    found = [wrong_in_the_core(row, trouble, errors) for row in rows]
    wrong = list(filter(None, found))
    score.note("in the core", len(rows), len(wrong))
    assert wrong == []


def test_of_two_servers_the_one_that_is_down_is_left_out_of_the_statistics() -> None:
    house = House(**TWO)
    binary, text = house.client(), house.client(TextSession)

    def ask() -> None:
        binary.send(frame(0x8010, OPAQUE), frame(0x800A, FENCE))
        text.send(b"stats\r\n", b"mn\r\n")

    one_of_two_is_down(house, ask)
    statistics = [
        (b"pid", b"7"),
        (b"curr_items", b"5"),
        (b"version", b"1"),
        (b"server0:pid", b"7"),
        (b"server0:curr_items", b"5"),
        (b"server0:version", b"1"),
        (b"", b""),
    ]
    frames = [frame(0x8110, OPAQUE, key=name, value=value) for name, value in statistics]
    assert binary.received == b"".join(frames) + frame(0x810A, FENCE)
    assert text.received == (
        b"STAT pid 7\r\nSTAT curr_items 5\r\nSTAT version 1\r\n"
        b"STAT server0:pid 7\r\nSTAT server0:curr_items 5\r\nSTAT server0:version 1\r\n"
        b"END\r\nMN\r\n"
    )


# Through sockets: all rows meet each fault together.

#: More than a machine that is busy makes a tunnel wait.
TIMEOUT = "--request-timeout=0.8"
#: What is there once all is well: asked for, and told.
AFTER = {
    BinarySession: (
        frame(0x8000, OPAQUE, key=b"there"),
        frame(0x8100, OPAQUE, 0, bytes(4), value=b"well", cas=7),
    ),
    TextSession: (b"get there\r\n", b"VALUE there 0 4\r\nwell\r\nEND\r\n"),
}


class Asking:
    """A client that asks what is in a row, of a tunnel in one of the modes."""

    def __init__(self, row: Row, port: int, errors: bool) -> None:
        self.row = row
        self._told = row.told[errors]
        self._socket = socket.create_connection(("127.0.0.1", port), servers.PATIENCE)

    def ask(self) -> None:
        self._socket.sendall(b"".join(self.row.asked) + self.row.fence)

    def wrong(self, until: float) -> str:
        """What is wrong with what it is told, empty for nothing."""
        return self._other_than(self._told, until, to_end=self.row.closes)

    def wrong_after(self, until: float) -> str:
        """The same once all is well: it is still connected, and nothing else had come."""
        if not self.row.fence:
            return ""
        asked, told = AFTER[self.row.protocol]
        self._socket.sendall(asked)
        return self._other_than(told, until)

    def _other_than(self, told: bytes, until: float, *, to_end: bool = False) -> str:
        received = b""
        data = b"?"
        while data and (to_end or len(received) < len(told)):
            self._socket.settimeout(max(0.001, until - time.monotonic()))
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                return f"{self.row.name}: {received!r} and nothing more, not {told!r}"
            received += data
        return "" if received == told else f"{self.row.name}: {received!r}, not {told!r}"

    def close(self) -> None:
        self._socket.close()


class Stage:
    """A server that can do wrong, and a tunnel to it for each of the modes."""

    def __init__(self, server: FaultyServer, tunnels: list[servers.Tunnel]) -> None:
        self.server = server
        self.tunnels = tunnels

    def make_well(self) -> None:
        self.server.heal()
        self.server.store.items = {b"there": (bytes(4), b"well", 7)}
        for tunnel in self.tunnels:
            servers.wait_until(lambda tunnel=tunnel: self._is_well(tunnel), "all is well")

    def _is_well(self, tunnel: servers.Tunnel) -> bool:
        client = servers.Wire(tunnel.port)
        try:
            return client.get(b"there").value == b"well"
        finally:
            client.close()

    def find_out(self) -> None:
        """Ask in vain until both tunnels have given the server up."""
        for tunnel in self.tunnels:
            client = servers.Wire(tunnel.port)
            client.send(get(b"k") * TIMEOUTS_IN_A_ROW)
            client.read(TIMEOUTS_IN_A_ROW)
            client.close()
            assert tunnel.metric("memtunnel_upstream_breaker_open") == 1

    @contextlib.contextmanager
    def dials_end(self, result: str) -> Iterator[None]:
        """Wait until both tunnels have dialled the server as it is then, with this result."""

        def count() -> list[float]:
            name = "memtunnel_upstream_connects_total"
            return [tunnel.metric(name, result=result) for tunnel in self.tunnels]

        before = count()
        yield
        servers.wait_until(lambda: all(map(gt, count(), before)), f"a dial ends: {result}")


def wrong_through_sockets(
    stage: Stage,
    begin: Callable[[Stage], None],
    score: Score,
    rows: list[Row] = ROWS,
    *,
    heals: bool = True,
) -> list[str]:
    """Let the rows meet a fault; what is wrong with what is told."""
    with contextlib.ExitStack() as stack:
        asking = [
            stack.enter_context(contextlib.closing(Asking(row, tunnel.port, errors)))
            for errors, tunnel in enumerate(stage.tunnels)
            for row in rows
        ]
        begin(stage)
        for one in asking:
            one.ask()
        until = time.monotonic() + servers.PATIENCE
        found = [one.wrong(until) for one in asking]
        if heals:
            stage.make_well()
            until = time.monotonic() + servers.PATIENCE
            after = [one.wrong_after(until) for one in asking]
            found = [each or later for each, later in zip(found, after, strict=True)]
    wrong = list(filter(None, found))
    score.note("through sockets", len(found), len(wrong))
    return wrong


@pytest.fixture(scope="module")
def make_stage(
    good_pair: authority.Pair, ca_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Stage]]:
    with contextlib.ExitStack() as stack:

        def make(*flags: str) -> Stage:
            server = FaultyServer(good_pair, tmp_path_factory.mktemp("faulty")).start()
            stack.callback(server.stop)
            tunnels = []
            for mode in ("miss", "error"):
                tunnel = servers.Tunnel(
                    f"--server=127.0.0.1:{server.port}=server0",
                    f"--ca-file={ca_file}",
                    f"--username={servers.USERNAME}",
                    f"--max-value-size={LARGEST}",
                    f"--on-unavailable={mode}",
                    *flags,
                    environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD},
                )
                stack.callback(tunnel.stop)
                tunnels.append(tunnel.start())
            return Stage(server, tunnels)

        yield make


@pytest.fixture(scope="module")
def stage(make_stage: Callable[..., Stage]) -> Stage:
    return make_stage(TIMEOUT)


def is_stalled(stage: Stage) -> None:
    stage.server.fault = faults.silence
    stage.find_out()


def is_stopped(stage: Stage) -> None:
    stage.server.stop()
    stage.find_out()


def is_silent(stage: Stage) -> None:
    stage.server.stop()
    stage.server.start_silent()


def is_over_its_limit(stage: Stage) -> None:
    with stage.dials_end("not_tls"):
        stage.server.stop()
        stage.server.start_over_its_limit()


def is_another(stage: Stage) -> None:
    with stage.dials_end("certificate_chain"):
        stage.server.stop()
        stage.server.start(authority.issue("localhost"))


def answers(make: Callable[[], Fault]) -> Callable[[Stage], None]:
    def begin(stage: Stage) -> None:
        stage.server.fault = make()

    return begin


SERVERS = {
    **{name: (answers(one.make), one.concerns) for name, one in ANSWERS.items()},
    "lies": (answers(faults.lies), anything),
    "known to be stalled": (is_stalled, anything),
    "stopped": (is_stopped, anything),
    "silent from the first byte": (is_silent, anything),
    "over its connection limit": (is_over_its_limit, anything),
    "not who it should be": (is_another, anything),
}


@pytest.mark.full
@pytest.mark.parametrize(("begin", "concerns"), SERVERS.values(), ids=SERVERS)
def test_through_sockets(
    begin: Callable[[Stage], None], concerns: Callable[[Row], bool], stage: Stage, score: Score
) -> None:
    stage.make_well()
    rows = [row for row in ROWS if concerns(row)]
    assert wrong_through_sockets(stage, begin, score, rows) == []


@pytest.mark.full
def test_through_sockets_where_logins_are_refused(
    make_stage: Callable[..., Stage], score: Score
) -> None:
    def begin(stage: Stage) -> None:
        with stage.dials_end("login_refused"):
            stage.server.takes_logins = False
            stage.server.drop()

    stage = make_stage(TIMEOUT)
    stage.make_well()
    # Another login is tried only after many seconds.
    assert wrong_through_sockets(stage, begin, score, heals=False) == []


@pytest.mark.full
def test_through_sockets_where_too_many_are_in_flight(
    make_stage: Callable[..., Stage], score: Score
) -> None:
    def begin(stage: Stage) -> None:
        stage.server.fault = faults.silence
        for tunnel in stage.tunnels:
            for _ in range(MAX_ENTRIES // FULL_REQUESTS):
                client = stack.enter_context(contextlib.closing(servers.Wire(tunnel.port)))
                client.send(get(b"other") * FULL_REQUESTS)
            servers.wait_until(
                lambda tunnel=tunnel: (
                    tunnel.metric("memtunnel_upstream_requests_in_flight") >= MAX_ENTRIES
                ),
                "as many are in flight as may be",
            )

    # They are in flight until the server is given up, which is sooner.
    stage = make_stage("--pool-size=1", "--request-timeout=5")
    stage.make_well()
    with contextlib.ExitStack() as stack:
        assert wrong_through_sockets(stage, begin, score) == []
    for tunnel in stage.tunnels:
        refused = tunnel.metric("memtunnel_degraded_replies_total", reason="overloaded")
        assert refused > len(ROWS) / 2
