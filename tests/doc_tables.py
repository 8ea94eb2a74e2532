"""The tables in the docs that the code makes. `make tables` writes them anew."""

import re
from collections.abc import Callable
from pathlib import Path

import clients

from benchmarks import tables
from benchmarks.results import OURS, Results
from memtunnel.core.outcomes import STATUS_WORDS, Desync, LoginResult, Lost, Reason
from memtunnel.net.upstream import State
from memtunnel.ops.exposition import FAMILIES
from memtunnel.ops.metrics import COMMAND_WORDS, PHASES, UNKNOWN
from memtunnel.settings import reference

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def metrics_table() -> str:
    rows = ["| metric | type | labels | what it tells |", "|---|---|---|---|"]
    for family in FAMILIES:
        labels = ", ".join(family.labels)
        rows.append(f"| `{family.name}` | {family.type} | {labels} | {family.help} |")
    return "\n".join(rows)


def counted(module: str, call: str) -> list[str]:
    """The words that a module counts by calling a method of its own, in their order."""
    source = (ROOT / "memtunnel" / module).read_text()
    found = list(dict.fromkeys(re.findall(rf'self\.\S*{call}\("(\w+)"\)', source)))
    assert found
    return found


def words_table() -> str:
    lost = [str(each) for each in Lost]
    in_use = [str(each) for each in State if each is not State.LOST]
    sets = {
        "`command`": [*dict.fromkeys(COMMAND_WORDS.values()), UNKNOWN],
        "`status`": STATUS_WORDS,
        "`reason` of degraded replies": [str(each) for each in Reason],
        "`result` of connects": ["ok", *lost],
        "`reason` of disconnects": lost,
        "`kind` of desync": [str(each) for each in Desync],
        "`reason` of retries": counted("core/server.py", "_count_retry"),
        "`state`": in_use,
        "`phase`": PHASES,
        "`mode`": ["full", "chain"],
        "`result` of client logins": [str(each) for each in LoginResult],
        "`reason` of rejected clients": counted("net/downstream.py", "_reject"),
        "`reason` of protocol errors": [
            *counted("core/binary_session.py", "_protocol_error"),
            *counted("core/session.py", "_protocol_error"),
            *counted("net/downstream.py", "gave_up"),
        ],
    }
    rows = [f"| {name} | {', '.join(words)} |" for name, words in sets.items()]
    return "\n".join(["| label | words |", "|---|---|", *rows])


def speed_table() -> str:
    return "\n".join(tables.ratios(Results.load(DOCS / "bench.json"), OURS))


#: Of each: its page in docs/, and what makes it.
TABLES: list[tuple[str, Callable[[], str]]] = [
    ("settings.md", reference),
    ("clients.md", clients.table),
    ("speed.md", speed_table),
    ("observability.md", metrics_table),
    ("observability.md", words_table),
]


def main() -> None:
    """Each in place of the one with the same head."""
    for name, table in TABLES:
        made = table()
        head = re.escape("\n".join(made.split("\n", 2)[:2]))
        page = DOCS / name
        parts = re.split(rf"(?m)^{head}\n(?:\|.*\n)*", page.read_text())
        if len(parts) != 2:
            raise SystemExit(
                f"{page}: not one table begins like this one, but {len(parts) - 1}:\n{made}"
            )
        page.write_text(f"{made}\n".join(parts))


if __name__ == "__main__":
    main()
