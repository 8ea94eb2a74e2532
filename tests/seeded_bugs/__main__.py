"""``python -m seeded_bugs``: put in each of the bugs, and tell which tests catch it.

Each has tests of its own, which all have to fail. Beside them is told what finds the bug by chance:
the state machines, and the simulation.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from seeded_bugs.bugs import BUGS, NONE, Bug
from seeded_bugs.trial import Verdict, trial

MACHINES: Final = (
    "test_mux_machine.py::TestMultiplexer::runTest",
    "test_session_machine.py::test_P1_to_P6_hold_whatever_happens",
    "test_text_session_machine.py::test_P1_to_P6_hold_for_text_and_binary_clients_together",
)


def look(bug: Bug, chance: bool, seeds: range) -> tuple[dict[str, Verdict], list[str]]:
    """What came of the tests of a bug; and where wanted, what finds it by chance."""
    with trial(bug) as made:
        verdicts = made.run(bug.tests)
        if not chance:
            return verdicts, []
        found = [machine for machine in MACHINES if made.search(machine)]
        seed = made.simulate(seeds)
        return verdicts, found + ([] if seed is None else [f"simulation, seed {seed}"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m seeded_bugs", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the tests of each bug")
    parser.add_argument("--seeds", default="0:300", metavar="FIRST:STOP", help="to be simulated")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    first, _, stop = options.seeds.partition(":")
    seeds = range(int(first), int(stop))
    right: list[Bug] = []
    with ThreadPoolExecutor(options.processes) as pool:
        looks = pool.map(lambda bug: look(bug, not options.quick, seeds), (NONE, *BUGS))
        for bug, (verdicts, found) in zip((NONE, *BUGS), looks, strict=True):
            told = [f"{verdict.word}: {test}" for test, verdict in verdicts.items()]
            told += [f"found by chance: {one}" for one in found]
            print(f"{bug.name}: {bug.wrong}", *told, sep="\n    ", flush=True)
            as_expected = all(verdict.word == bug.expected for verdict in verdicts.values())
            if as_expected and (bug.changes or not found):
                right.append(bug)
    print(f"seeded bugs caught: {len({*right} - {NONE})} of {len(BUGS)}")
    return 0 if len(right) == 1 + len(BUGS) else 1


if __name__ == "__main__":
    sys.exit(main())
