"""README and docs tell what the program has: settings, metrics, words, commands, nothing else."""

import re
from collections.abc import Callable
from pathlib import Path

import pictures
import pytest
from doc_tables import TABLES

from benchmarks import tables
from benchmarks.results import Results
from memtunnel.__main__ import TOOLS
from memtunnel.core.outcomes import Lost, Reason
from memtunnel.ops.exposition import FAMILIES
from memtunnel.ops.slowlog import Entry
from memtunnel.wire import meta
from memtunnel.wire.command import Ask, Say, Skip
from memtunnel.wire.text import parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
OBSERVABILITY = (DOCS / "observability.md").read_text()
CLIENTS = (DOCS / "clients.md").read_text()
#: The commands of the README, a line each.
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.split("\n")
]
#: What the section on speed is about.
BENCH = Results.load(ROOT / "docs" / "bench.json")


@pytest.mark.parametrize(("page", "table"), TABLES)
def test_the_docs_have_the_tables_that_the_code_makes(page: str, table: Callable[[], str]) -> None:
    assert f"\n\n{table()}\n" in (DOCS / page).read_text(), "`make tables` writes them"


def words_under(heading: str) -> list[str]:
    """The first column of the table in this section."""
    _, _, section = OBSERVABILITY.partition(f"\n### {heading}\n")
    return re.findall(r"(?m)^\| `(\w+)` ", section.partition("\n#")[0])


def test_every_word_for_an_end_is_explained() -> None:
    assert words_under("Why a connection is lost, or not made") == [str(each) for each in Lost]
    assert words_under("Why a reply is degraded") == [str(each) for each in Reason]


def test_every_picture_is_there_and_shown() -> None:
    shown = set(re.findall(r"\]\(pictures/([\w-]+)\.png\)", OBSERVABILITY))
    assert shown >= set(pictures.PICTURES)
    shown |= set(re.findall(r"\]\(docs/pictures/([\w-]+)\.png\)", README))
    assert shown == {path.stem for path in pictures.FOLDER.iterdir()}


def test_every_part_of_a_slow_request_is_explained() -> None:
    _, _, section = OBSERVABILITY.partition("\n## Slow and failed requests\n")
    rows = re.findall(r"(?m)^\| (`.*?) \| ", section.partition("\n#")[0])
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert told == {"time", *Entry._fields} - {"settled", "number"}


def test_the_flags_of_meta_commands_are_as_told() -> None:
    rows = re.findall(r"^\| `(m[a-z])` \| ([\w ]+) \| ([\w ]+) \|$", CLIENTS, re.MULTILINE)
    assert [verb.encode() for verb, _, _ in rows] == list(meta.REFUSED)
    samples = {"C": "C1", "D": "D1", "F": "F1", "J": "J1", "N": "N1", "R": "R1", "T": "T1"}
    for verb, taken, refused in rows:
        assert refused.replace(" ", "").encode() == meta.REFUSED[verb.encode()]
        samples["M"] = "ME" if verb == "ms" else "MI"
        for flag in (taken + " " + refused).split():
            size = "1 " if verb == "ms" else ""
            command = parse(f"{verb} Zm9v {size}{samples.get(flag, flag)}".encode())
            assert isinstance(command, Ask) == (flag in taken), (verb, flag)
            if flag in refused:
                assert isinstance(command, Say | Skip)
                assert command.text == meta.UNSUPPORTED


def test_the_figures_are_those_that_were_measured() -> None:
    assert (ROOT / "docs" / "bench.md").read_text() == tables.render(BENCH)


def test_every_metric_is_told() -> None:
    names = {family.name for family in FAMILIES}
    assert set(re.findall(r"\bmemtunnel_\w+", OBSERVABILITY)) == names


def test_every_command_exists() -> None:
    # A command may have variables before it, and stand in a virtual environment.
    tools = set(re.findall(r"(?m)^(?:\w+=\S+ )*memtunnel ([a-z]+)\b", "\n".join(COMMANDS)))
    assert tools == set(TOOLS)


def test_every_part_of_the_house_exists() -> None:
    told = set(re.findall(r"\b(?:[a-z]+/)?[a-z_]+\.py\b|(?m:^  [a-z]+/)", README))
    assert {"wire/", "service.py", "core/mux.py"} <= {name.strip() for name in told}
    for name in told:
        assert (ROOT / "memtunnel" / name.strip()).exists(), name
    parts = {path.name for path in (ROOT / "memtunnel").glob("*.py") if path.name[0] != "_"}
    assert parts <= told


def test_every_promise_is_told_once() -> None:
    assert re.findall(r"(?m)^\| (P\d) \|", README) == [f"P{number}" for number in range(1, 10)]
