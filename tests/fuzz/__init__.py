"""Fuzzing of the three parsers: those of binary and of text clients, and that of servers' answers.

An *execution* is one input, unlike all others of its run, through the real parser and the whole
core behind it: session, lanes, multiplexer, deadlines. Only what is at the far ends is the tests'
own. The first bytes of an input are choices: what kind of tunnel it meets, and how the rest is cut
into pieces. It is run so cut and once more in one piece, and

- nothing is raised; after each piece, what waits is bounded, and all of it is counted;
- both times the same is heard, asked, counted and closed;
- each request has had one outcome, in order, of a kind that clients survive;
- nothing is left, neither in flight nor in memory nor among the deadlines.

Where the cuts do matter (there is hardly any memory, or the client leaves while it is served) an
input is run once; those that are run twice are counted apart, as *compared*.

`TARGETS` are the parsers' names. Each has a module here with `run`, which raises where one of these
does not hold and returns whether it has compared, and with `LANGUAGE` and `TOKENS`, of which
`fuzz.mutation` makes inputs. `fuzz.search` runs them, and ``python -m fuzz`` does so for long.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
TARGETS = ("binary_client", "text_client", "upstream")

Target = Callable[[bytes], bool]


def target(name: str) -> Target:
    run: Target = importlib.import_module(f"fuzz.{name}").run
    return run
