"""A short torture: real sockets, faults, restarts, and clients that check every answer.

What is asserted here are the promises, and no times; ``make torture`` has the figures, and runs as
long as it is told to.
"""

import random

import pytest
import servers
from torture.binary_load import Counter
from torture.history import Key, Server, audit, value_of
from torture.parts import canary, faults, sigterm
from torture.scorecard import Options, Row


@pytest.fixture
def options() -> Options:
    drawn = Options(seed=random.getrandbits(32), rate=3000)
    print(f"seed {drawn.seed}")
    return drawn


def wrong(rows: list[Row]) -> list[str]:
    """The rows that are not as promised, but for those that tell how long something took."""
    return [str(row) for row in rows if row.ok is False and not row.name.startswith("recovery")]


def test_faults_of_servers_are_nothing_but_misses_and_refused_writes(options: Options) -> None:
    options.minutes = 0.1
    assert not wrong(faults.run(options))


def test_the_end_under_load_leaves_no_request_without_an_answer(options: Options) -> None:
    options.times = 3
    assert not wrong(sigterm.run(options))


def test_no_canary_is_found_after_all_that_can_go_wrong(options: Options) -> None:
    options.minutes = 0.05
    assert not wrong(canary.run(options))


@pytest.mark.parametrize("secret", [servers.PASSWORD, canary.WRONG, canary.KEY, canary.VALUE])
def test_a_canary_is_found_where_it_is(secret: str) -> None:
    said = canary.Said()
    said.add("the log", f"login of {secret.encode().hex()} refused")
    assert len(said.found()) == 1


@pytest.fixture
def key() -> Key:
    """A key with three writes, of which the second failed and the others were acknowledged."""
    key = Key(b"1.1", 1, Server("server0"))
    key.succeeded(key.ask(), life=0)
    key.failed(key.ask())
    key.succeeded(key.ask(), life=0)
    return key


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (value_of(b"1.1", 1, 3, 100), ""),
        (value_of(b"1.1", 1, 2, 100), "excused"),
        (value_of(b"1.1", 1, 1, 100), "stale"),
        (value_of(b"1.1", 1, 4, 100), "wrong"),
        (value_of(b"1.2", 1, 3, 100), "crossed"),
        (value_of(b"1.1", 1, 3, 100)[:-1], "wrong"),
        (value_of(b"1.1", 1, 3, 100)[:-1] + b"?", "wrong"),
        (b"", "wrong"),
    ],
    ids=["last", "failed", "stale", "future", "foreign", "short", "spoilt", "empty"],
)
def test_a_value_is_judged_by_what_was_acknowledged(key: Key, value: bytes, verdict: str) -> None:
    assert key.judge(value, key.acknowledged, key.asked).split(":")[0] == verdict


def test_what_was_acknowledged_has_to_be_there_until_its_server_is_restarted(key: Key) -> None:
    noted = [(key, key.life, key.acknowledged, key.gone)]
    assert not audit(noted, {key.name: value_of(key.name, 1, 3, 100)})
    assert audit(noted, {})[0].startswith("lost")
    assert audit(noted, {key.name: value_of(key.name, 1, 1, 100)})[0].startswith("stale")
    key.server.life += 1
    assert not audit(noted, {})


def test_an_addition_that_failed_may_have_happened_once() -> None:
    counter = Counter()
    assert not counter.judge(1)
    counter.fail()
    assert not counter.judge(3)
    assert counter.judge(5).startswith("twice")
