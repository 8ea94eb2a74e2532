"""The fuzzer's targets find nothing: in the inputs that are kept, and in some thousand new ones.

Long runs: ``make fuzz``.
"""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import pytest
from fuzz import CORPUS, TARGETS, client, houses, search, target
from fuzz.choices import MOST_PIECES, pieces, put_before, taken_off
from fuzz.client import Told, converse
from fuzz.mutation import LONGEST, SHORT, Mutator, frames, lines
from fuzz.search import Search, Share, Tried, fuzz
from fuzz.seeds import drawn, seeds

from memtunnel.core import mux
from memtunnel.core.binary_session import BinarySession
from memtunnel.core.intake import Intake
from memtunnel.core.mux import Multiplexer
from memtunnel.core.session import Session
from memtunnel.core.text_session import TextSession

#: A few seconds.
EXECUTIONS = 10_000

of_plain_core = pytest.mark.skipif(
    not mux.__file__.endswith(".py"), reason="what is compiled cannot be replaced"
)


def _replay(name: str) -> int:
    """Run all inputs that are kept for a target; how many there are."""
    run = target(name)
    kept = sorted((CORPUS / name).iterdir())
    for each in kept:
        run(each.read_bytes())
    return len(kept)


@pytest.mark.parametrize("name", TARGETS)
def test_the_inputs_that_are_kept_break_nothing(name: str) -> None:
    assert _replay(name) >= 24


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_kept(name: str) -> None:
    """Whoever changes a conversation writes the corpus anew: ``python -m fuzz.seeds``."""
    for seed, data in seeds()[name].items():
        assert (CORPUS / name / seed).read_bytes() == data, seed


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff", b"\0\7", b"\0\7\1\2", b"\0\0", bytes(100)])
def test_inputs_may_be_short(name: str, data: bytes) -> None:
    target(name)(data)


@pytest.mark.parametrize("name", TARGETS)
def test_some_thousand_new_inputs_break_nothing(name: str, tmp_path: Path) -> None:
    seed = SystemRandom().getrandbits(32)
    result = fuzz(name, tmp_path, executions=EXECUTIONS, seed=seed)
    found = {path.name: path.read_bytes() for path in result.findings}
    assert not found, (seed, found)
    assert result.counts.executions >= EXECUTIONS
    assert result.counts.compared > 0.8 * EXECUTIONS


def test_choices_are_taken_off_as_they_were_put_before() -> None:
    assert taken_off(put_before(b"rest", flags=5, sizes=(1, 255))) == (5, [1, 255], b"rest")
    assert taken_off(b"\0\1\0rest").sizes == [256]


@pytest.mark.parametrize("sizes", [(), (1,), (3, 5), (256,)])
def test_pieces_are_all_of_it(sizes: tuple[int, ...]) -> None:
    data = bytes(range(200))
    cut = list(pieces(data, sizes))
    assert b"".join(cut) == data
    assert all(cut)
    assert len(cut) <= MOST_PIECES + 1


@pytest.mark.parametrize(
    ("name", "protocol"), [("binary_client", BinarySession), ("text_client", TextSession)]
)
def test_a_house_that_was_lived_in_is_like_a_new_one(
    name: str, protocol: type[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [taken_off(path.read_bytes()) for path in sorted((CORPUS / name).iterdir())]

    def all_told() -> list[Told]:
        return [converse(protocol, rest, flags, sizes) for flags, sizes, rest in inputs]

    all_told()
    lived_in = all_told()
    monkeypatch.setattr(houses, "_empty", {})
    with monkeypatch.context() as patch:
        patch.setattr(client, "give_back", lambda kind, house: None)
        assert all_told() == lived_in


# That the targets would see what they are there for.


def _keep_too_little(
    original: Callable[..., bool], self: Intake, data: bytes, *more: Any, **named: Any
) -> bool:
    return original(self, data[:-1], *more, **named)


def _release_nothing(original: Callable[..., None], self: Intake) -> None:
    self._reserved = 0
    original(self)


def _forget_the_begin(
    original: Callable[..., int], self: Multiplexer, data: bytes, now: float
) -> int:
    self._buffer.clear()
    return original(self, data, now)


def _forget_what_was_written(
    original: Callable[..., tuple[list[Any], list[Any]]], self: Multiplexer
) -> tuple[list[Any], list[Any]]:
    return [], original(self)[1]


BUGS: dict[str, tuple[str, type, str, Callable[..., Any]]] = {
    "a byte of a frame is lost": ("binary_client", Intake, "keep", _keep_too_little),
    "a byte of a block is lost": ("text_client", Intake, "keep", _keep_too_little),
    "a byte of a line is lost": ("text_client", Intake, "keep_line", _keep_too_little),
    "memory is not given back": ("binary_client", Intake, "clear", _release_nothing),
    "a part of an answer is lost": ("upstream", Multiplexer, "receive", _forget_the_begin),
    "requests are lost with a connection": (
        "upstream",
        Multiplexer,
        "lose",
        _forget_what_was_written,
    ),
}


@of_plain_core
@pytest.mark.parametrize("bug", BUGS)
def test_the_inputs_that_are_kept_would_show(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, kind, method, broken = BUGS[bug]
    original = getattr(kind, method)
    monkeypatch.setattr(
        kind, method, lambda self, *more, **named: broken(original, self, *more, **named)
    )
    with pytest.raises((AssertionError, LookupError, ValueError)):
        _replay(name)


# The search.


def _made(name: str, seed: int) -> list[bytes]:
    module = import_module(f"fuzz.{name}")
    kept = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    mutator = Mutator(module.LANGUAGE, kept, module.TOKENS, seed)
    return [mutator.draw() for _ in range(2000)]


@pytest.mark.parametrize("name", TARGETS)
def test_a_seed_decides_which_inputs_are_made(name: str) -> None:
    made = _made(name, 1)
    assert made == _made(name, 1)
    assert len({*made, *_made(name, 2)}) > 1.8 * len(made)


@pytest.mark.parametrize("name", TARGETS)
def test_most_inputs_are_short_and_some_are_long(name: str) -> None:
    lengths = sorted(map(len, _made(name, 1)))
    assert lengths[len(lengths) // 2] < 2 * SHORT
    assert 4 * SHORT < lengths[-1] < LONGEST + 40


@pytest.mark.parametrize("cut", [frames, lines])
def test_units_are_all_of_a_stream(cut: Callable[[bytes], list[bytes]]) -> None:
    for path in CORPUS.glob("*/*"):
        data = path.read_bytes()
        assert b"".join(cut(data)) == data
        assert all(cut(data))


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_drawn_is_compared(name: str) -> None:
    assert all(target(name)(data) for data in drawn(name, Random(1), 50))


def test_no_input_is_run_twice() -> None:
    tried = Tried()
    assert tried.is_new(b"a")
    assert tried.is_new(b"b")
    assert not tried.is_new(b"a")


@of_plain_core
def test_what_is_found_is_made_small_and_can_be_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Intake.keep
    monkeypatch.setattr(Intake, "keep", lambda *all_of_it: _keep_too_little(original, *all_of_it))
    share = Share()
    Search("binary_client", 1, Tried(), share, tmp_path).batch()
    assert share.counts.executions == search.BATCH
    assert 0 < share.counts.failed < search.BATCH
    found = list(tmp_path.iterdir())
    assert 0 < len(found) < share.counts.failed
    for path in found:
        flags, _, rest = taken_off(path.read_bytes())
        assert not flags
        assert len(rest) < 30
        with pytest.raises(AssertionError):
            target("binary_client")(path.read_bytes())


def _hang() -> None:
    while True:
        pass


def _die() -> None:
    os._exit(7)


@of_plain_core
@pytest.mark.parametrize("end", [_hang, _die])
def test_an_input_that_ends_its_process_is_found(
    end: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SLOW", 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(Intake, "keep", lambda *_: end())
        result = fuzz("binary_client", tmp_path, seconds=60)
    (path,) = result.findings
    monkeypatch.setattr(Intake, "keep", lambda *_: {}[end])
    with pytest.raises(KeyError):
        target("binary_client")(path.read_bytes())
