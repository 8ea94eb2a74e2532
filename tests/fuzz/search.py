"""A search for inputs that break a target, in several processes.

They share which inputs were tried, so that none is run twice, and each tells how far it is and what
it has at hand: the input with which a process dies, or hangs, is a finding as well.
"""

import importlib
import os
import signal
from collections.abc import Callable, Sequence
from hashlib import sha256
from mmap import mmap
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from random import Random
from struct import Struct
from time import monotonic
from traceback import extract_tb
from typing import NamedTuple, TypeVar

from fuzz import CORPUS, Target, target
from fuzz.choices import put_before, taken_off
from fuzz.mutation import Language, Mutator
from fuzz.seeds import drawn

#: Inputs that a process runs before it tells how far it is, and looks whether to go on.
BATCH = 256
#: Seconds of processor time that a batch may take: one that takes as long hangs.
SLOW = 20
#: Conversations that are drawn for a process to begin with. Those that are kept weigh as much.
DRAWN = 500
#: Runs in which a finding is made smaller.
MOST_TRIES = 2000
#: Bits to remember inputs by: after 20 million one in fifty is taken for another and left out.
MEMORY = 1 << 30

_COUNTS = Struct("=QQQ")
_LENGTH = Struct("=Q")
_PAGE = 16384
# Forked, processes share memory, and hash alike.
_processes = get_context("fork")

Thing = TypeVar("Thing")
#: What makes two findings one: the exception, and where it was raised.
Kind = tuple[str, str, int | None]


class Counts(NamedTuple):
    """`failed` are executions as well; `compared` are those whose input was run twice."""

    executions: int
    compared: int
    failed: int


class Result(NamedTuple):
    counts: Counts
    seconds: float
    cpu: float
    """Seconds of processor time, of all processes."""
    findings: list[Path]

    def __str__(self) -> str:
        executions, compared, failed = self.counts
        return (
            f"{executions:,} executions, {compared:,} compared, {failed:,} failed, "
            f"{len(self.findings)} findings, in {self.seconds:,.0f} s: "
            f"{executions / self.seconds:,.0f} a second, "
            f"{executions / self.cpu:,.0f} a second of processor time"
        )


class Tried:
    """Which inputs were tried: a bit for each, in memory that processes share."""

    def __init__(self) -> None:
        self._bits = mmap(-1, MEMORY >> 3)

    def is_new(self, data: bytes) -> bool:
        """Whether it was not tried; from now on it was."""
        place = hash(data) & (MEMORY - 1)
        byte, bit = place >> 3, 1 << (place & 7)
        known = self._bits[byte]
        # Two processes may write the same byte at once. Not to know an input is no harm: it would
        # have to be drawn a second time.
        self._bits[byte] = known | bit
        return not known & bit


class Share:
    """What a process tells the one that has started it."""

    def __init__(self) -> None:
        self._memory = mmap(-1, _PAGE)

    @property
    def counts(self) -> Counts:
        return Counts(*_COUNTS.unpack_from(self._memory, 0))

    @counts.setter
    def counts(self, counts: Counts) -> None:
        _COUNTS.pack_into(self._memory, 0, *counts)

    @property
    def at_hand(self) -> bytes:
        """The input that is run now."""
        (length,) = _LENGTH.unpack_from(self._memory, _COUNTS.size)
        begin = _COUNTS.size + _LENGTH.size
        return self._memory[begin : begin + length]

    @at_hand.setter
    def at_hand(self, data: bytes) -> None:
        begin = _COUNTS.size + _LENGTH.size
        self._memory[begin : begin + len(data)] = data
        _LENGTH.pack_into(self._memory, _COUNTS.size, len(data))


class Search:
    """The part of one process. Its inputs are the same ones for a seed, others' apart."""

    def __init__(self, name: str, seed: int, tried: Tried, share: Share, findings: Path) -> None:
        module = importlib.import_module(f"fuzz.{name}")
        kept = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
        inputs = kept * (DRAWN // len(kept)) + drawn(name, Random(seed), DRAWN)
        self._name = name
        self._run = target(name)
        self._language: Language = module.LANGUAGE
        self._mutator = Mutator(self._language, inputs, module.TOKENS, seed)
        self._tried = tried
        self._share = share
        self._findings = findings
        self._known: set[Kind] = set()

    def batch(self) -> None:
        """Run some inputs."""
        executions, compared, failed = self._share.counts
        done = 0
        while done < BATCH:
            data = self._mutator.draw()
            if not self._tried.is_new(data):
                continue
            self._share.at_hand = data
            done += 1
            try:
                compared += self._run(data)
            except Exception as problem:
                failed += 1
                self._keep(data, problem)
        self._share.counts = Counts(executions + done, compared, failed)

    def _keep(self, data: bytes, problem: Exception) -> None:
        kind = kind_of(problem)
        if kind not in self._known:
            self._known.add(kind)
            small = minimized(data, self._language, lambda data: fails(self._run, data) == kind)
            kept = keep(self._findings, self._name, small)
            print(f"{kept}: {kind}: {str(problem)[:500]}", flush=True)


def kind_of(problem: Exception) -> Kind:
    last = extract_tb(problem.__traceback__)[-1]
    return type(problem).__name__, Path(last.filename).name, last.lineno


def fails(run: Target, data: bytes) -> Kind | None:
    try:
        run(data)
    except Exception as problem:
        return kind_of(problem)
    return None


def keep(findings: Path, name: str, data: bytes) -> Path:
    findings.mkdir(parents=True, exist_ok=True)
    path = findings / f"{name}-{sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def minimized(data: bytes, language: Language, still: Callable[[bytes], bool]) -> bytes:
    """A smaller input for which `still` holds, by leaving out choices, units and bytes."""
    flags, sizes, rest = taken_off(data)
    head = language.head(rest)
    tries = 0

    def holds(bits: Sequence[int], sizes: Sequence[int], parts: Sequence[bytes]) -> bool:
        nonlocal tries
        tries += 1
        smaller = put_before(b"".join(parts), flags=sum(bits), sizes=sizes)
        return tries <= MOST_TRIES and still(smaller)

    bits = [1 << place for place in range(8) if flags >> place & 1]
    parts = [rest[:head], *language.units(rest[head:])]
    bits = _fewer(bits, lambda some: holds(some, sizes, parts))
    # Where each byte is a piece, others may go without moving the cut that matters.
    sizes = [1] if holds(bits, [1], parts) else _fewer(sizes, lambda some: holds(bits, some, parts))
    parts = _fewer(parts, lambda some: holds(bits, sizes, some))
    parts = [bytes((byte,)) for byte in b"".join(parts)]
    parts = _fewer(parts, lambda some: holds(bits, sizes, some))
    return put_before(b"".join(parts), flags=sum(bits), sizes=sizes)


def _fewer(things: Sequence[Thing], still: Callable[[Sequence[Thing]], bool]) -> Sequence[Thing]:
    """Leave out what can be, many at once and then fewer."""
    number = len(things)
    while number:
        begin = 0
        while begin < len(things):
            fewer = [*things[:begin], *things[begin + number :]]
            if still(fewer):
                things = fewer
            else:
                begin += max(1, number // 8)
        number //= 2
    return things


def fuzz(
    name: str,
    findings: Path,
    *,
    executions: int = 0,
    seconds: float = 0.0,
    jobs: int = 1,
    seed: int = 0,
    tell: Callable[[Counts, float], None] = lambda counts, passed: None,
) -> Result:
    """Search with so many processes, for so many executions or, where that is 0, so many seconds.

    `tell` is called now and then. What is found is kept in `findings`.
    """
    before = set(findings.iterdir()) if findings.is_dir() else set()
    tried = Tried()
    shares = [Share() for _ in range(jobs)]
    stop = mmap(-1, 1)
    parent = os.getpid()

    def work(job: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        search = Search(name, seed * 1000 + job, tried, shares[job], findings)
        while not stop[0] and os.getppid() == parent:
            signal.setitimer(signal.ITIMER_VIRTUAL, SLOW)  # it ends the process
            search.batch()

    def total() -> Counts:
        return Counts(*map(sum, zip(*(share.counts for share in shares), strict=True)))

    processes = [_processes.Process(target=work, args=(job,), daemon=True) for job in range(jobs)]
    began, cpu = monotonic(), _cpu_of_children()
    for process in processes:
        process.start()
    try:
        while running := [process.sentinel for process in processes if process.is_alive()]:
            wait(running, timeout=0.1)
            passed = monotonic() - began
            tell(total(), passed)
            if total().executions >= executions if executions else passed >= seconds:
                stop[0] = 1
    except KeyboardInterrupt:
        stop[0] = 1
    for process, share in zip(processes, shares, strict=True):
        process.join()
        if process.exitcode:
            kept = keep(findings, name, share.at_hand)
            print(f"{kept}: the process ended with {process.exitcode}", flush=True)
    found = sorted(set(findings.iterdir()) - before) if findings.is_dir() else []
    return Result(total(), monotonic() - began, _cpu_of_children() - cpu, found)


def _cpu_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system
