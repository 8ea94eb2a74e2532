"""This very program, started once more as another process: installed, or frozen into one folder."""

import os
import sys
from collections.abc import Mapping


def command(*words: str) -> list[str]:
    """How to start it with these words."""
    if getattr(sys, "frozen", False):
        return [sys.executable, *words]
    # Without -P, modules of the working directory would be taken for others.
    return [sys.executable, "-P", "-m", "memtunnel", *words]


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ`, by which its modules are found wherever they were found here."""
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
