"""``python -m seeded_bugs``: put in each of the bugs, and tell which tests catch it.

Each has tests of its own, which all have to fail. Beside them is told what finds the bug by chance:
the state machines, and the simulation.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from seeded_bugs.bugs import BUGS, Bug
from seeded_bugs.trial import trial

#: Tests of random steps, each run so often at most.
MACHINES: Final = {
    "state machine of a session": "test_session_machine.py::test_P1_to_P6_hold_whatever_happens",
    "state machine of a multiplexer": "test_mux_machine.py::TestMultiplexer::runTest",
}
RUNS: Final = 3


def look(bug: Bug | None, runs: int, seeds: range) -> tuple[bool, list[str]]:
    """Whether the tests of a bug catch it; what finds it, and what does not and should.

    Without a bug all tests should pass, and nothing is to be found.
    """
    tests, expected = (all_tests(), "passed") if bug is None else (bug.tests, "failed")
    found: list[str] = []
    with trial(bug) as made:
        verdicts = made.run(tests)
        for what, machine in MACHINES.items():
            number = made.search(machine, runs)
            if number is not None:
                found.append(f"{what}, run {number}")
        seed = made.simulate(seeds) if seeds else None
        if seed is not None:
            found.append(f"simulation, seed {seed}")
    wrong = [f"{test}: {one.word}" for test, one in verdicts.items() if one.word != expected]
    if bug is None:
        return not wrong and not found, wrong + found
    caught_by = [test for test, one in verdicts.items() if one.word == expected]
    return not wrong, caught_by + found + wrong


def all_tests() -> tuple[str, ...]:
    """The tests of all bugs, each once."""
    return tuple(dict.fromkeys(test for bug in BUGS for test in bug.tests))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m seeded_bugs", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the tests of each bug")
    parser.add_argument("--seeds", default="0:300", metavar="FIRST:STOP", help="to be simulated")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    first, _, stop = options.seeds.partition(":")
    seeds = range(0) if options.quick else range(int(first), int(stop))
    runs = 0 if options.quick else RUNS
    caught = 0
    with ThreadPoolExecutor(options.processes) as pool:
        looks = pool.map(lambda bug: look(bug, runs, seeds), (None, *BUGS))
        right, found = next(looks)
        print("without a bug:", *(found or ["nothing is found"]), sep="\n    ")
        for bug, (is_caught, by) in zip(BUGS, looks, strict=True):
            caught += is_caught
            print(f"{bug.name}: {bug.wrong}" + ("" if is_caught else " NOT CAUGHT"))
            print(*(f"    {one}" for one in by), sep="\n", flush=True)
    print(f"seeded bugs caught: {caught} of {len(BUGS)}")
    return 0 if right and caught == len(BUGS) else 1


if __name__ == "__main__":
    sys.exit(main())
