"""``python -m torture``: run the parts, and print the rows of the scorecard.

With the folder of the tests on the path of modules, as ``make torture`` has it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback

import pytest

from torture.scorecard import Options, Row, markdown

PARTS = (
    "faults",
    "sigterm",
    "sighup",
    "clients",
    "storm",
    "soak",
    "descriptors",
    "clock",
    "canary",
)


def run(part: str, options: Options) -> list[Row]:
    """The rows of a part; one that could not be played to its end is a row too."""
    try:
        found: list[Row] = importlib.import_module(f"torture.parts.{part}").run(options)
    except (Exception, pytest.fail.Exception) as problem:
        traceback.print_exc()
        return [Row(part=part, name="played to the end", figure=str(problem), ok=False)]
    return found


def main() -> int:
    defaults = Options()
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; repeatable")
    parser.add_argument("--minutes", type=float, default=0.0, help="of the faults, and of the soak")
    parser.add_argument(
        "--times", type=int, default=0, help="SIGTERMs, SIGHUPs, clients, connections"
    )
    parser.add_argument("--workers", type=int, default=1, help="of the tunnel")
    parser.add_argument("--rate", type=float, default=defaults.rate, help="requests a second")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--markdown", action="store_true", help="a table of all rows at the end")
    chosen = vars(parser.parse_args())
    only, as_table = chosen.pop("only"), chosen.pop("markdown")
    options = Options(**chosen)
    print(f"seed {options.seed}, workers {options.workers}", flush=True)
    rows: list[Row] = []
    for part in only or PARTS:
        began = time.monotonic()
        found = run(part, options)
        print(*found, sep="\n")
        print(f"    {part}: {time.monotonic() - began:.0f} s", flush=True)
        rows += found
    if as_table:
        print(markdown(rows))
    failed = sum(row.ok is False for row in rows)
    print(f"{failed} of {sum(row.ok is not None for row in rows)} are not as they should be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
