"""Runs tests, in processes of their own, on a copy of the package with a bug in it or without."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple
from xml.etree import ElementTree

import memtunnel
from seeded_bugs.bugs import Bug
from seeded_bugs.no_shrinking import PROFILE

ROOT: Final = Path(__file__).parent.parent.parent
PACKAGE: Final = Path(memtunnel.__file__).parent
#: Seconds that a process may take.
PATIENCE: Final = 300.0

#: How pytest's story of a failure ends where it is an assertion, and one of the tests' own.
_ASSERTION: Final = re.compile(r"tests/\S+:[0-9]+: (AssertionError|Failed)")

#: Prints the first of some seeds in which the simulation finds anything.
_SIMULATION: Final = """
import sys
from simulation.__main__ import run
print(next((seed for seed in range(*map(int, sys.argv[1:])) if run(seed).wrong), ""))
"""


class Verdict(NamedTuple):
    """What came of a test: ``passed``, ``failed`` by an assertion, ``raised`` anything else, or
    ``absent``, where it was not run.
    """

    word: str
    words: str


class Trial:
    """A copy of the package in `folder`, from which all that is started here imports it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # With what Python has compiled of it: only what is changed takes time.
        self.package = Path(shutil.copytree(PACKAGE, folder / PACKAGE.name))

    def run(self, tests: Sequence[str], *options: str) -> dict[str, Verdict]:
        """Run these tests; what came of each."""
        report = self._folder / "report.xml"
        report.unlink(missing_ok=True)
        command = ["-m", "pytest", "-p", "no:cacheprovider", f"--junit-xml={report}", *options]
        done = self._start(*command, *(f"tests/{test}" for test in tests))
        said = done.stdout + done.stderr
        found: dict[str, Verdict] = {}
        # As `conftest` tells: or else they would be tests of another package.
        if f"core: plain, {self.package / 'core' / 'mux.py'}\n" in said:
            for case in ElementTree.parse(report).iter("testcase"):
                found[f"{case.get('classname')}.{case.get('name')}"] = _verdict(case)
        absent = Verdict("absent", f"it did not run:\n{said}")
        return {test: found.get(_reported(test), absent) for test in tests}

    def search(self, machine: str) -> bool:
        """Whether a test of random steps finds anything."""
        plugins = ("-p", "hypothesispytest", "-p", "seeded_bugs.no_shrinking")
        options = (f"--hypothesis-profile={PROFILE}", "--hypothesis-seed=0")
        verdict = self.run([machine], *plugins, *options)[machine]
        assert verdict.word != "absent", verdict.words
        return verdict.word != "passed"

    def simulate(self, seeds: range) -> int | None:
        """The first seed in which the simulation finds anything."""
        done = self._start("-c", _SIMULATION, str(seeds.start), str(seeds.stop))
        assert done.returncode == 0, done.stderr
        return int(done.stdout) if done.stdout.strip() else None

    def _start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # What is in PYTHONPATH comes before what is installed, as an editable install is too.
        path = (self._folder, ROOT / "tests")
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            # To load them takes longer than most of the tests.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            # What Hypothesis learns of a bug is no use to the true package.
            "HYPOTHESIS_STORAGE_DIRECTORY": str(self._folder / "hypothesis"),
        }
        return subprocess.run(
            [sys.executable, "-P", *arguments],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )


@contextmanager
def trial(bug: Bug) -> Iterator[Trial]:
    """A copy of the package with a bug in it. Raises `bugs.Moved`."""
    with TemporaryDirectory(prefix="memtunnel-bug-") as folder:
        made = Trial(Path(folder))
        bug.put_into(made.package)
        yield made


def _reported(test: str) -> str:
    """A test as pytest's report names it."""
    return "tests." + test.replace(".py::", ".").replace("::", ".")


def _verdict(case: ElementTree.Element) -> Verdict:
    for kind in case:
        words = kind.get("message", "")
        if kind.tag in ("error", "skipped"):
            return Verdict("absent", f"{kind.tag}: {words}")
        if kind.tag == "failure":
            end = (kind.text or "").rstrip().rpartition("\n")[2]
            return Verdict("failed" if _ASSERTION.fullmatch(end) else "raised", words)
    return Verdict("passed", "")
