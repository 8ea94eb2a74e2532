"""Long runs: ``python -m fuzz TARGET --executions N``, with this package's folder's parent on the
path of modules, and what the compiled core was built to before it, if that is to be searched.

What is found is kept in `--findings`, made small, and can be replayed:
``python -m fuzz TARGET --replay FILE``.
"""

import argparse
import os
import sys
from pathlib import Path
from random import SystemRandom

from fuzz import TARGETS, target
from fuzz.search import Counts, fuzz
from memtunnel.core import mux

CORE = "plain" if mux.__file__.endswith(".py") else "compiled"


class Progress:
    """Tells how far a search is: each second on a terminal, else every half a minute."""

    def __init__(self, name: str, wanted: str) -> None:
        self._name = name
        self._wanted = wanted
        self._told = 0.0

    def __call__(self, counts: Counts, passed: float) -> None:
        terminal = sys.stdout.isatty()
        if passed - self._told < (1 if terminal else 30):
            return
        self._told = passed
        line = (
            f"{self._name}: {counts.executions:,} executions in {passed:,.0f} s "
            f"({counts.executions / passed:,.0f} a second) of {self._wanted}, "
            f"{counts.failed:,} failed"
        )
        print(f"\r{line} " if terminal else line, end="" if terminal else "\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument(
        "--executions", type=int, default=0, metavar="N", help="until there were so many"
    )
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="else for so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes")
    parser.add_argument("--seed", type=int, default=SystemRandom().getrandbits(32), metavar="N")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz/findings"))
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input and end")
    options = parser.parse_args()
    name = options.target
    if os.environ.get("MEMTUNNEL_CORE", CORE) != CORE:
        parser.error(f"this is the {CORE} core: {mux.__file__}")
    if options.replay:
        target(name)(options.replay.read_bytes())
        return 0
    wanted = f"{options.executions:,}" if options.executions else f"{options.seconds:,} s"
    print(f"{name}: {CORE} core, {options.jobs} processes, seed {options.seed}", flush=True)
    result = fuzz(
        name,
        options.findings,
        executions=options.executions,
        seconds=options.seconds,
        jobs=options.jobs,
        seed=options.seed,
        tell=Progress(name, wanted),
    )
    if sys.stdout.isatty():
        print()
    print(f"{name}: {result}")
    if result.findings:
        print("found:", *result.findings)
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
