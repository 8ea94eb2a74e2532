"""The fuzzer's targets find nothing: in the inputs that are kept, and in some seconds of new ones.

Long runs: ``python -m fuzz TARGET --seconds N``, with this folder on the path of modules.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import servers
from fuzz import CORPUS, TARGETS
from fuzz.__main__ import fuzz, target
from fuzz.choices import MOST_PIECES, pieces, put_before, taken_off
from fuzz.seeds import seeds

from memtunnel.core import mux
from memtunnel.core.intake import Intake
from memtunnel.core.mux import Multiplexer

SECONDS = 5


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
def test_some_seconds_of_new_inputs_break_nothing(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        servers.skip("atheris is not installed")
    result = fuzz(name, SECONDS, tmp_path / "findings", tmp_path / "corpus")
    assert not result.findings, result.output
    assert result.executions > 100


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


@pytest.mark.skipif(not mux.__file__.endswith(".py"), reason="what is compiled cannot be replaced")
@pytest.mark.parametrize("bug", BUGS)
def test_the_inputs_that_are_kept_would_show(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, kind, method, broken = BUGS[bug]
    original = getattr(kind, method)
    monkeypatch.setattr(
        kind, method, lambda self, *more, **named: broken(original, self, *more, **named)
    )
    with pytest.raises((AssertionError, LookupError, ValueError)):
        _replay(name)
