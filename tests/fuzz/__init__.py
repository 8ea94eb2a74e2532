"""Fuzzing of the three parsers: those of binary and of text clients, and that of servers' answers.

Each target takes bytes and raises if a promise is broken; `TARGETS` has them by name. The first
bytes of an input are choices: what kind of tunnel it meets, and how the rest is cut into pieces.
Nothing here needs atheris but the child process of `__main__`: `test_fuzz` replays the corpus.
"""

from collections.abc import Callable
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
#: By name, the module of this package that has the target as `run`, and its `TOKENS`.
TARGETS = ("binary_client", "text_client", "upstream")

Target = Callable[[bytes], None]
