"""Bugs that would be bad, put into a copy of the package one by one, are caught by tests.

Which, and by what, is in `seeded_bugs/bugs.toml`; ``python -m seeded_bugs`` in this folder also
tells which of them are found by chance.
"""

from pathlib import Path

import pytest
from seeded_bugs.bugs import BUGS, NONE, Bug, Change, Moved
from seeded_bugs.trial import trial

from memtunnel.core import mux

pytestmark = pytest.mark.skipif(
    not mux.__file__.endswith(".py"), reason="what is compiled cannot be changed"
)

NAMES = [
    "forget on timeout",
    "forget on disconnect",
    "accept a wrong opaque",
    "accept a wrong opcode",
    "answer NOOP early",
    "reuse an opaque in flight",
    "forward a partial SET",
    "retry INCR",
    "pool after a login timeout",
    "deliver after a bad frame",
    "empty body of a quiet error",
    "0x86 to a GET",
    "skip the name check",
    "SASL in connectionMade",
    "wall-clock timers",
    "unpin on a write's timeout",
]
MUX = "core/mux.py"
A_TEST = "test_mux.py::test_it_takes_any_first_opaque"


def seeded(old: str, new: str, test: str = A_TEST) -> Bug:
    return Bug("a bug of a test", "something", (test,), (Change(MUX, old, new),))


def test_there_are_sixteen() -> None:
    assert [bug.name for bug in BUGS] == NAMES
    assert all(bug.tests and bug.changes for bug in BUGS)


@pytest.mark.parametrize("bug", [NONE, *BUGS], ids=lambda bug: bug.name)
def test_its_tests_fail_with_it_and_pass_without_any(bug: Bug) -> None:
    with trial(bug) as made:
        verdicts = made.run(bug.tests)
    assert {test: one.word for test, one in verdicts.items()} == dict.fromkeys(
        bug.tests, bug.expected
    ), "\n".join(one.words for one in verdicts.values())


# What happens when the code moves


def test_what_is_put_in_has_the_indentation_of_its_place(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("if x:\n    call(x)\n    more()\n")
    Change("source.py", "call(x)", "if y:\n    call(y)").make(tmp_path)
    assert source.read_text() == "if x:\n    if y:\n        call(y)\n    more()\n"


@pytest.mark.parametrize(
    ("source", "times"), [("call(y)\n", 0), ("call(x)\ncall(x)\n", 2), (None, 0)]
)
def test_where_a_bug_no_longer_fits_it_is_said_what_to_do(
    source: str | None, times: int, tmp_path: Path
) -> None:
    if source is not None:
        (tmp_path / "source.py").write_text(source)
    with pytest.raises(Moved) as moved:
        Change("source.py", "call(x)", "pass").make(tmp_path)
    said = str(moved.value)
    assert f"memtunnel/source.py has this {times} times" in said
    assert "\ncall(x)\n" in said
    assert "Put the bug into the code as it is now, in " in said
    assert "bugs.toml" in said


# What does not count as caught


@pytest.mark.parametrize(
    ("bug", "word"),
    [
        (seeded("while opaque in entries:", "while opaque  in entries:"), "passed"),
        (seeded("_MASK: Final = 0xFFFFFFFF", '_MASK: Final = "mask"'), "raised"),
        (seeded("self._entries: dict[int, Request] = {}", "assert False"), "raised"),
        (seeded("while opaque in entries:", "while opaque in entries"), "absent"),
        (seeded("while opaque in entries:", "while False:", "test_mux.py::gone"), "absent"),
    ],
    ids=["no bug", "an error", "an assertion of the package", "no import", "no test"],
)
def test_it_is_not_caught_by(bug: Bug, word: str) -> None:
    with trial(bug) as made:
        assert made.run(bug.tests)[bug.tests[0]].word == word
