"""``python -m simulation --seeds 0:1000``: run seeds on all cores, and tell of those that fail."""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from traceback import format_exc
from typing import NamedTuple

from simulation.network import START
from simulation.world import World

#: Lines of a story that are shown, the last ones.
SHOWN = 150
BAR = 30


class Result(NamedTuple):
    """What came of a seed."""

    seed: int
    requests: int
    checked: int
    """Answers that were looked at."""
    seconds: float
    """Of the simulated time."""
    cpu: float
    """Seconds that it took this process."""
    wrong: str


def run(seed: int) -> Result:
    began = time.process_time()
    world = World(seed)
    wrong = ""
    try:
        world.run()
    except Exception as problem:
        wrong = f"{type(problem).__name__}: {problem}"
    return Result(
        seed,
        world.requests,
        world.checked,
        world.reactor.now - START,
        time.process_time() - began,
        wrong,
    )


def story(seed: int) -> list[str]:
    """What happens in a seed, one line for each event."""
    world = World(seed, tells=True)
    assert world.story is not None
    try:
        world.run()
    except AssertionError:
        pass
    except Exception:
        world.story += format_exc().splitlines()
    return world.story


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:200", metavar="FIRST:STOP")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--story", action="store_true", help="tell the whole story of each seed")
    parser.add_argument("--most", type=int, default=3, help="stories of failures that are told")
    options = parser.parse_args()
    first, _, stop = options.seeds.partition(":")
    try:
        seeds = range(int(first), int(stop or int(first) + 1))
    except ValueError:
        seeds = range(0)
    if not seeds:
        parser.error("--seeds is FIRST:STOP, with STOP above FIRST, or one number")
    if options.story:
        for seed in seeds:
            print(f"seed {seed}", *story(seed), sep="\n")
        return 0
    began = time.monotonic()
    requests = checked = done = 0
    simulated = cpu = 0.0
    wrong: dict[int, str] = {}
    with ProcessPoolExecutor(options.processes) as pool:
        pieces = [seeds[start : start + 5] for start in range(0, len(seeds), 5)]
        for piece in as_completed([pool.submit(_run_all, piece) for piece in pieces]):
            for result in piece.result():
                done += 1
                requests += result.requests
                checked += result.checked
                simulated += result.seconds
                cpu += result.cpu
                if result.wrong:
                    wrong[result.seed] = result.wrong
            _show(done, len(seeds), requests, len(wrong), time.monotonic() - began)
    took = time.monotonic() - began
    for seed in sorted(wrong)[: options.most]:
        print(f"\nseed {seed}: {wrong[seed]}", *story(seed)[-SHOWN:], sep="\n")
    for seed in sorted(wrong):
        print(f"seed {seed}: {wrong[seed][:300]}")
        print(f"  again: python -m simulation --seeds {seed} --story")
    print(
        f"{done} seeds, {len(wrong)} failed; {requests:,} requests, {checked:,} answers checked, "
        f"{simulated:,.0f} simulated seconds in {took:.1f} s on {options.processes} processes: "
        f"{requests / took:,.0f} requests and {done / took:.1f} seeds a second, "
        f"{requests / cpu:,.0f} requests per second of CPU"
    )
    return 1 if wrong else 0


def _run_all(seeds: range) -> list[Result]:
    return [run(seed) for seed in seeds]


def _show(done: int, of: int, requests: int, wrong: int, took: float) -> None:
    if sys.stderr.isatty():
        full = BAR * done // of
        bar = "#" * full + "." * (BAR - full)
        rate = requests / took
        print(
            f"\r[{bar}] {done}/{of} seeds, {rate:,.0f} requests/s, {wrong} failed ",
            end="\n" if done == of else "",
            file=sys.stderr,
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
