"""docs/scorecard.md has a figure for each promise, and beside it a command that there is."""

import re
from pathlib import Path

import pytest
from seeded_bugs.bugs import BUGS
from torture.__main__ import PARTS

ROOT = Path(__file__).parent.parent
SCORECARD = (ROOT / "docs" / "scorecard.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in SCORECARD.partition("\n## ")[0].splitlines()
    if line.startswith("| ") and not line.startswith("| figure")
]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def in_words(test: str) -> str:
    """A test as the page names it: its file, and its name without underscores and parameters."""
    file, _, name = test.partition("::test_")
    return f"`{file}`: {name.partition('[')[0].replace('_', ' ')}"


def bugs_table() -> str:
    rows = ["| bug | caught by |", "|---|---|"]
    rows += [f"| {bug.name} | {'; '.join(map(in_words, bug.tests))} |" for bug in BUGS]
    return "\n".join(rows)


def test_there_is_a_row_for_each_promise() -> None:
    assert len(ROWS) == 16
    assert {len(row) for row in ROWS} == {4}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_figure_can_be_had_anew(row: list[str]) -> None:
    _, target, measured, command = row
    assert re.search(r"\d", measured), "no figure"
    assert target
    for what in re.findall(r"make ([a-z-]+)", command):
        assert what in TARGETS
    for part in re.findall(r"--only (\w+)", command):
        assert part in PARTS
    for path in re.findall(r"tests/\S+\.py", command):
        assert (ROOT / path).is_file()
    assert "`" in command or " above" in command


def test_it_says_which_tests_catch_the_seeded_bugs() -> None:
    assert bugs_table() in SCORECARD
