"""Long runs: ``python -m fuzz TARGET --seconds N``, with atheris and this package's folder's parent
on the path of modules.

The fuzzer is a child process, which ends with its first finding. What it found is kept in
`--findings` and can be replayed: ``python -m fuzz TARGET --replay FILE``.
"""

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from fuzz import CORPUS, TARGETS, Target

#: Bytes of an input: enough for a line that is too long.
LONGEST = 2500
#: Seconds that one input may take, and that a run may go on after its time.
SLOW = 10
GRACE = 60
#: In what the fuzzer says: how many executions there were, at the end and on the way.
_EXECUTED = re.compile(r"stat::number_of_executed_units: +(\d+)")
_LAST = re.compile(r"^#(\d+)\t", re.MULTILINE)


class Result(NamedTuple):
    executions: int
    seconds: float
    findings: list[Path]
    output: str

    def __str__(self) -> str:
        rate = self.executions / self.seconds if self.seconds else 0.0
        return (
            f"{self.executions} executions in {self.seconds:.0f} s ({rate:.0f} a second), "
            f"{len(self.findings)} findings"
        )


def target(name: str) -> Target:
    run: Target = importlib.import_module(f"fuzz.{name}").run
    return run


def tokens(name: str) -> str:
    """A dictionary in libFuzzer's form."""
    words: Sequence[bytes] = importlib.import_module(f"fuzz.{name}").TOKENS
    quoted = ["".join(f"\\x{byte:02x}" for byte in word) for word in words]
    return "".join(f'"{word}"\n' for word in quoted)


def fuzz(name: str, seconds: int, findings: Path, corpus: Path) -> Result:
    """Fuzz a target for so long; what is new in `corpus` is kept there."""
    findings.mkdir(parents=True, exist_ok=True)
    corpus.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    path = [str(CORPUS.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.NamedTemporaryFile("w", suffix=".dict") as dictionary:
        dictionary.write(tokens(name))
        dictionary.flush()
        command = [sys.executable, "-m", "fuzz", name, "--child"]
        command += [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-timeout={SLOW}"]
        command += ["-print_final_stats=1", f"-artifact_prefix={findings}/"]
        command += [f"-dict={dictionary.name}", str(corpus), str(CORPUS / name)]
        began = monotonic()
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds + GRACE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
            text=True,
            errors="backslashreplace",
            check=False,
        )
    found = sorted(set(findings.iterdir()) - before)
    if done.returncode and not found:
        raise RuntimeError(f"the fuzzer failed:\n{done.stdout}")
    executed = _EXECUTED.search(done.stdout)
    counted = [int(number) for number in _LAST.findall(done.stdout)]
    executions = int(executed[1]) if executed else max(counted, default=0)
    return Result(executions, monotonic() - began, found, done.stdout)


def _child(name: str, arguments: list[str]) -> None:
    """The fuzzer itself; it does not return."""
    import atheris

    with atheris.instrument_imports(include=["memtunnel.core", "memtunnel.wire"]):
        run = target(name)
    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="default: 60")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz/findings"))
    parser.add_argument("--corpus", type=Path, help="where new inputs are kept")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input and end")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options, arguments = parser.parse_known_args()
    if options.child:
        _child(options.target, arguments)
    if arguments:
        parser.error(f"what is {arguments[0]}?")
    if options.replay:
        target(options.target)(options.replay.read_bytes())
        return 0
    corpus = options.corpus or Path("build/fuzz/corpus", options.target)
    result = fuzz(options.target, options.seconds, options.findings, corpus)
    print(f"{options.target}: {result}")
    if result.findings:
        print(result.output)
        print("found:", *result.findings)
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
