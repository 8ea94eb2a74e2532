"""`make bench`: what to run, in which order, and what becomes of the results."""

import argparse
import contextlib
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import servers

import benchmarks
from benchmarks import processes, programs, rounds, tables
from benchmarks.contenders import COMPILED, CONTENDERS, USUAL, Contender
from benchmarks.hosted import Hosted
from benchmarks.memtier import WARM_UP
from benchmarks.results import Results, Round
from benchmarks.shapes import SHAPES

#: Open files: enough for all clients on both sides of a proxy. A limit without end would make
#: some of the programs prepare for so many.
FILES = 8192
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for; of the program's own arguments where none are given."""
    parser = argparse.ArgumentParser(prog="make bench", description=benchmarks.__doc__)
    shapes = [shape.name for shape in SHAPES]
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="default: 5")
    parser.add_argument("--seconds", type=positive, default=4, metavar="S", help="each; default: 4")
    parser.add_argument(
        "--shapes", type=some_of(shapes), default=shapes, help=f"of {','.join(shapes)}"
    )
    parser.add_argument(
        "--contenders",
        type=some_of(CONTENDERS),
        default=USUAL,
        help=f"of {','.join(CONTENDERS)}; default: {','.join(USUAL)}",
    )
    parser.add_argument("--json", type=new, metavar="FILE", help="write everything there")
    parser.add_argument("--svg", type=new, metavar="FILE", help="draw a picture there")
    parser.add_argument(
        "--from", type=saved, metavar="FILE", dest="saved", help="measure nothing; take that JSON"
    )
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def some_of(names: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = list(dict.fromkeys(text.split(",")))
        if unknown := [name for name in chosen if name not in names]:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)} in {', '.join(names)}")
        return chosen

    return parse


def new(text: str) -> Path:
    """A file to write: it would be late to learn afterwards that this is impossible."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written")
    return path


def saved(text: str) -> Results:
    try:
        return Results.load(Path(text))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = options(arguments)
    results = chosen.saved or nothing_yet(chosen)
    if chosen.svg:
        from benchmarks import picture  # here, since it takes a second

        if missing := picture.lacks(results):
            sys.exit(missing)
    try:
        if not chosen.saved:
            measure(results, chosen.rounds)
    except pytest.fail.Exception as failure:  # the way in which `servers` fails
        sys.exit(str(failure))
    finally:
        keep(results, chosen.json)  # whatever has happened
    if chosen.svg:
        picture.draw(results, chosen.svg)


def keep(results: Results, path: Path | None) -> None:
    """Save what was measured, and print it even where it cannot be saved."""
    if not results.rounds:
        return
    try:
        if path:
            results.save(path)
    finally:
        print(tables.render(results), flush=True)


def nothing_yet(chosen: argparse.Namespace) -> Results:
    """Results without rounds, once all that is needed for these is there."""
    programs.look_where_root_does()
    needed = programs.needed(chosen.contenders)
    lacks = programs.missing(needed)
    if "memtunnel-compiled" in chosen.contenders and not COMPILED.exists():
        lacks.append("the compiled core is not there; make compiled builds it")
    if lacks:
        sys.exit("\n".join(lacks))
    return Results(
        machine=programs.machine(needed),
        seconds=chosen.seconds,
        shapes=tuple(shape for shape in SHAPES if shape.name in chosen.shapes),
        contenders=tuple(chosen.contenders),
    )


def measure(results: Results, count: int) -> None:
    """Add so many rounds of each shape and contender to the results."""
    each = (results.seconds + WARM_UP) * len(results.contenders)
    tell(f"this takes a little more than {len(results.shapes) * count * each} s")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = FILES if limit == resource.RLIM_INFINITY else min(FILES, limit)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, limit))
    for number in INTERRUPTS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup does
            signal.signal(number, interrupted)
    with (
        tempfile.TemporaryDirectory() as name,
        no_child_left(),
        servers.closing_all([]) as things,
    ):
        for done in measured(results, count, Path(name), things):
            results.rounds.append(done)
            tell(f"{done.shape}, round {done.number}, {tables.summary(done)}")


def interrupted(number: int, _: object) -> NoReturn:
    """Once is enough: what was started has to be ended in peace."""
    for each in INTERRUPTS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def no_child_left() -> Iterator[None]:
    """End those that nobody knows: an interrupt came between their start and its being noted."""
    try:
        yield
    finally:
        for process in processes.tree(os.getpid())[1:]:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)


def measured(results: Results, count: int, folder: Path, things: list[Any]) -> Iterator[Round]:
    """Each round, as soon as it is done. What has to be stopped is put into `things`."""
    hosted = Hosted(folder)
    things.append(hosted)
    hosted.start()
    stage: dict[tuple[str, bool], Contender] = {}
    for far in sorted({shape.far for shape in results.shapes}):
        for name in results.contenders:
            place = folder / f"{name}{'-far' * far}"
            place.mkdir()
            contender = CONTENDERS[name](name, hosted, hosted.far if far else hosted.port, place)
            things.append(contender)
            contender.start()
            stage[name, far] = contender
    for shape in results.shapes:
        for number in range(1, count + 1):
            for name in rotated(results.contenders, number):
                yield rounds.run(shape, stage[name, shape.far], number, results.seconds, folder)


def rotated(names: Sequence[str], number: int) -> Iterator[str]:
    """All of them, each round with another one first."""
    first = number % len(names)
    yield from (*names[first:], *names[:first])


def tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
