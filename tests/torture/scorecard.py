"""The scorecard: what was promised, what was measured, and whether that is within it."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from torture.load import Load

#: The first words of problems, as rows of the scorecard.
PROBLEMS = {
    "crossed, wrong, duplicate or missing replies": ("crossed", "wrong", "unasked", "missing"),
    "requests executed twice": ("twice",),
    "acknowledged writes lost": ("lost",),
    "read-your-writes violations (P2's excuse apart)": ("stale",),
    "connections of clients closed by the tunnel": ("closed",),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure. Without a target it only informs, and `ok` is None."""

    part: str
    name: str
    target: str = ""
    figure: str
    ok: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "ok", False: "NOT", None: ""}[self.ok]
        return f"{verdict:4}{self.part}: {self.name}: {self.figure}" + (
            f" (target {self.target})" if self.target else ""
        )


def markdown(rows: list[Row]) -> str:
    verdicts = {True: "ok", False: "**not**", None: ""}
    lines = ["| part | figure | target | measured | |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.part} | {row.name} | {row.target} | {row.figure} | {verdicts[row.ok]} |"
        for row in rows
    ]
    return "\n".join(lines)


def problem_rows(part: str, load: Load) -> list[Row]:
    """What no client may see, counted; and the first of it in words."""
    rows = [
        Row(
            part=part,
            name=name,
            target="0",
            figure=f"{sum(load.problems[word] for word in words)} in {load.settled:,} requests",
            ok=not any(load.problems[word] for word in words),
        )
        for name, words in PROBLEMS.items()
    ]
    rows += [Row(part=part, name="problem", figure=words, ok=False) for words in load.told]
    return rows


@dataclass(kw_only=True)
class Options:
    """What every part is given; each looks at what concerns it."""

    seed: int = field(default_factory=lambda: Random().getrandbits(32))
    minutes: float = 0.0
    """How long, for the parts that go on until they are stopped; 0 for their own default."""
    times: int = 0
    """How often, for the parts that repeat something; 0 for their own default."""
    workers: int = 1
    rate: float = 6000.0
    """Requests a second of the load."""
