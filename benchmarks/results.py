"""All rounds of a bench, and what they say: medians, and ratios within rounds."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.shapes import Measure, Shape

#: What the tunnel and its variants begin with.
OURS = "memtunnel"


@dataclass(frozen=True, kw_only=True)
class Round:
    """One shape of load on one contender. Those of one number ran shortly after one another."""

    shape: str
    contender: str
    number: int
    figures: tuple[dict[Measure, float], ...]
    """Of each load; those of the first tell what the contender itself used."""
    void: str
    """Why it does not count, if so."""

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "Round":
        """The round that `dataclasses.asdict` and JSON made this of."""
        figures = tuple(
            {Measure(name): value for name, value in each.items()} for each in saved["figures"]
        )
        return cls(**{**saved, "figures": figures})


@dataclass(frozen=True)
class Ratio:
    """The median over the rounds, and the least and most."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """A bench."""

    machine: dict[str, str]
    """What it ran on, and the versions of all programs."""
    seconds: int
    shapes: tuple[Shape, ...]
    contenders: tuple[str, ...]
    rounds: list[Round] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Raises `OSError`, and `ValueError` for what `save` has not written."""
        try:
            saved = json.loads(path.read_text())
            return cls(
                machine=dict(saved["machine"]),
                seconds=saved["seconds"],
                shapes=tuple(map(Shape.of, saved["shapes"])),
                contenders=tuple(saved["contenders"]),
                rounds=list(map(Round.of, saved["rounds"])),
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} does not hold a bench's results: {error!r}") from error

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @property
    def ours(self) -> list[str]:
        """The tunnel and its variants, as far as they took part."""
        return [each for each in self.contenders if each.startswith(OURS)]

    def rounds_of(self, shape: Shape, contender: str) -> list[Round]:
        """Void ones too."""
        return [
            each for each in self.rounds if (each.shape, each.contender) == (shape.name, contender)
        ]

    def counting(self, shape: Shape, contender: str) -> list[Round]:
        """Those of its rounds that count: none where more than half are void."""
        rounds = self.rounds_of(shape, contender)
        counting = [each for each in rounds if not each.void]
        return counting if 2 * len(counting) >= len(rounds) else []

    def measures(self, shape: Shape, load: int = 0) -> list[Measure]:
        """What is known of a load, of some contender at least."""
        rounds = (each for one in self.contenders for each in self.counting(shape, one))
        known = {measure for each in rounds for measure in each.figures[load]}
        return [measure for measure in Measure if measure in known]

    def median(self, shape: Shape, contender: str, measure: Measure, load: int = 0) -> float | None:
        """Over its rounds. None is for what it has not, as no proxy has no memory."""
        values = [
            each.figures[load][measure]
            for each in self.counting(shape, contender)
            if measure in each.figures[load]
        ]
        return median(values) if values else None

    def ratio(self, shape: Shape, one: str, other: str, measure: Measure) -> Ratio | None:
        """One to the other, each time within a round: other times are other conditions."""
        ratios = list(self._ratios(shape, one, other, measure))
        return Ratio(median(ratios), min(ratios), max(ratios)) if ratios else None

    def _ratios(self, shape: Shape, one: str, other: str, measure: Measure) -> Iterator[float]:
        others = {each.number: each.figures[0] for each in self.counting(shape, other)}
        for each in self.counting(shape, one):
            mine, theirs = each.figures[0].get(measure), others.get(each.number, {}).get(measure)
            if mine is not None and theirs:
                yield mine / theirs
