"""What a seeded bug is, and how it gets into a copy of the package.

Those that there are stand in `bugs.toml`.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TABLE: Final = Path(__file__).with_name("bugs.toml")


class Moved(Exception):
    """The code has changed, so that a bug cannot be put in any more; says what to do."""


@dataclass(frozen=True)
class Change:
    """In `file` of the package, `old`, which has to be there exactly once, becomes `new`."""

    file: str
    old: str
    new: str

    def make(self, package: Path) -> None:
        """Change the package in the folder `package`. Raises `Moved`."""
        path = package / self.file
        source = path.read_text() if path.is_file() else ""
        number = source.count(self.old)
        if number != 1:
            raise Moved(
                f"memtunnel/{self.file} has this {number} times, and not once:\n\n{self.old}\n\n"
                f"The code has moved. Put the bug into the code as it is now, in {TABLE}, and see "
                "that its tests fail: they must, wherever the code is that they are about."
            )
        before, after = source.split(self.old)
        line = before.rpartition("\n")[2]
        indentation = line[: len(line) - len(line.lstrip())]
        path.write_text(before + self.new.replace("\n", "\n" + indentation) + after)


@dataclass(frozen=True)
class Bug:
    """`wrong` says what it does; all `tests` have to fail, by an assertion, where it is put in.

    One without changes is none, and its tests have to pass.
    """

    name: str
    wrong: str
    tests: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def expected(self) -> str:
        """What has to come of its tests."""
        return "failed" if self.changes else "passed"

    def put_into(self, package: Path) -> None:
        """Change the package in the folder `package`. Raises `Moved`."""
        for change in self.changes:
            change.make(package)


def _load() -> tuple[Bug, ...]:
    return tuple(
        Bug(
            bug["name"],
            bug["wrong"],
            tuple(bug["tests"]),
            tuple(Change(**change) for change in bug["change"]),
        )
        for bug in tomllib.loads(TABLE.read_text())["bug"]
    )


BUGS: Final = _load()
#: The package as it is, with the tests of all bugs.
NONE: Final = Bug(
    "none",
    "the package as it is",
    tuple(dict.fromkeys(test for bug in BUGS for test in bug.tests)),
    (),
)
