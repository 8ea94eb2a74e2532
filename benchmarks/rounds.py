"""How a round is run: one shape of load on one contender, watched meanwhile."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import memtier, processes
from benchmarks.contenders import Contender
from benchmarks.memtier import WARM_UP, Report
from benchmarks.results import Round
from benchmarks.shapes import SMALL, Load, Measure, Shape

#: Seconds that a load may take to end.
PATIENCE = 15


def void(reports: Sequence[Report], degraded: float) -> str:
    """Why a round does not count: it does if every request had the server's own answer."""
    if degraded:
        return f"degraded replies: {degraded:g}"
    return next((report.trouble for report in reports if report.trouble), "")


class Running:
    """A load under way."""

    def __init__(self, load: Load, contender: Contender, seconds: int, stem: Path) -> None:
        self._load = load
        self._seconds = seconds
        self._report = stem.with_suffix(".json")
        self._words = stem.with_suffix(".words")
        command = memtier.command(load, contender.port, seconds, self._report, *contender.flags())
        with self._words.open("wb") as words:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=words
            )

    def report(self, until: float) -> Report:
        """What it says at its end, for which it has until then."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, until - time.monotonic()))
        status = self.process.poll()
        words = self._words.read_text(errors="replace")
        if status is None:
            late = f"memtier did not end within {PATIENCE} s of its time"
            return Report({}, memtier.error(words) or late)
        if status:
            return Report({}, memtier.error(words) or f"memtier's status: {status}")
        return memtier.read(self._report.read_text(), words, self._load, self._seconds)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def run(shape: Shape, contender: Contender, number: int, seconds: int, folder: Path) -> Round:
    """Takes a second more than `seconds`, and files of its own in `folder`."""
    try:
        figures, trouble = _measure(shape, contender, seconds, folder)
    except Exception as error:  # what befalls one round must not lose all the others
        figures, trouble = ({},) * max(1, len(shape.loads)), f"{type(error).__name__}: {error}"
    return Round(
        shape=shape.name, contender=contender.name, number=number, figures=figures, void=trouble
    )


Figures = tuple[dict[Measure, float], ...]


def _measure(shape: Shape, contender: Contender, seconds: int, folder: Path) -> tuple[Figures, str]:
    """The figures of a round, and why they do not count, if so."""
    degraded = contender.degraded()
    with (
        _idle(contender, shape.idle),
        _loads(shape, contender, seconds, folder) as loads,
        contender.under_load(),
    ):
        time.sleep(WARM_UP)
        cpu = processes.cpu_seconds(contender.processes())
        began = time.monotonic()
        time.sleep(seconds / 2)
        used = _used(shape, contender, [load.process.pid for load in loads])
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        cpu = processes.cpu_seconds(contender.processes()) - cpu
        lasted = time.monotonic() - began
        until = time.monotonic() + PATIENCE
        reports = [load.report(until) for load in loads]
    rate = sum(report.figures.get(Measure.THROUGHPUT, 0.0) for report in reports)
    if rate and contender.processes():
        used[Measure.CPU] = cpu / lasted / rate
    figures = [report.figures for report in reports] or [{}]
    return ({**figures[0], **used}, *figures[1:]), void(reports, contender.degraded() - degraded)


def _used(shape: Shape, contender: Contender, loads: list[int]) -> dict[Measure, float]:
    """What a contender has in use. Where there is nothing between, clients connect themselves."""
    used: dict[Measure, float] = {}
    own = contender.processes()
    if own:
        used[Measure.MEMORY] = processes.memory(own)
    if not any(load.reconnect for load in shape.loads):  # or else they change as they are counted
        connected = own or [os.getpid(), *loads]
        used[Measure.CONNECTIONS] = processes.connections(connected, contender.dials)
    return used


@contextlib.contextmanager
def _loads(
    shape: Shape, contender: Contender, seconds: int, folder: Path
) -> Iterator[list[Running]]:
    with contextlib.ExitStack() as stack:
        loads = []
        for number, load in enumerate(shape.loads):
            loads.append(Running(load, contender, seconds, folder / f"load{number}"))
            stack.callback(loads[-1].stop)
        yield loads


@contextlib.contextmanager
def _idle(contender: Contender, clients: int) -> Iterator[None]:
    """So many clients that have asked once."""
    with contextlib.ExitStack() as stack:
        for _ in range(clients):
            client = stack.enter_context(contextlib.closing(contender.client()))
            client.get(SMALL.keys[0])
        yield
