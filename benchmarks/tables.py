"""The results as Markdown: ratios first, then the figures of each shape, then what is void."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from benchmarks.results import OURS, Ratio, Results, Round
from benchmarks.shapes import Measure, Shape

#: Contenders whose name is not what people call them.
LABELS: Final = {"none": "no proxy", "haproxy": "HAProxy"}

#: Where there is no figure, or none that counts.
NOTHING: Final = "\N{EN DASH}"

NOTE: Final = """\
The ratios are the result. Each is taken within one round, in which all ran shortly after one
another; it stands as the median of the rounds, with the least and the most in brackets. Figures
by themselves say as much about the machine and what else it did.
"""

FIGURES_NOTE: Final = """\
Medians of the rounds that count. Latencies begin when a client is connected; *whole* is the mean
of what a client spends on a request, connecting included. The second in which clients connect
counts for latencies, and not for rates. CPU and memory are the proxy's own: CPU over the requests
of all loads, and memory also what the shapes before have left.
"""


def milliseconds(seconds: float) -> str:
    digits = 3 if seconds < 1e-3 else 2 if seconds < 1e-2 else 1
    return f"{seconds * 1e3:.{digits}f} ms"


#: What a measure is called, whether more of it is better, and how it is written.
COLUMNS: Final[dict[Measure, tuple[str, bool, Callable[[float], str]]]] = {
    Measure.THROUGHPUT: ("requests/s", True, lambda rate: f"{rate:,.0f}"),
    Measure.P50: ("p50", False, milliseconds),
    Measure.P99: ("p99", False, milliseconds),
    Measure.P999: ("p99.9", False, milliseconds),
    Measure.WHOLE: ("whole", False, milliseconds),
    Measure.CPU: ("CPU/request", False, lambda seconds: f"{seconds * 1e6:,.1f} µs"),
    Measure.MEMORY: ("memory", False, lambda size: f"{size / (1 << 20):,.0f} MiB"),
    Measure.CONNECTIONS: ("server connections", False, lambda number: f"{number:,.0f}"),
}


def label(contender: str) -> str:
    return LABELS.get(contender, contender)


def render(results: Results) -> str:
    return "\n".join(_lines(results)) + "\n"


def summary(done: Round) -> str:
    """A round in a line."""
    if done.void:
        return f"{label(done.contender)}: void, {done.void}"
    figures = (
        f"{COLUMNS[each][0]} {COLUMNS[each][2](done.figures[0][each])}"
        for each in Measure
        if each in done.figures[0]
    )
    return f"{label(done.contender)}: {', '.join(figures)}"


def _lines(results: Results) -> Iterator[str]:
    yield "# memtunnel beside what else there is"
    yield ""
    for what, is_it in results.machine.items():
        yield f"- {what}: {is_it}"
    yield f"- each round: {results.seconds} s"
    yield ""
    yield NOTE
    for ours in results.ours:
        if _others(results, ours):
            yield f"## {label(ours)} to the others"
            yield ""
            yield from ratios(results, ours)
            yield ""
    yield "## Figures"
    yield ""
    yield FIGURES_NOTE
    for shape in results.shapes:
        for number, title in enumerate(_titles(shape)):
            yield f"### {title}"
            yield ""
            yield from _figures(results, shape, number)
            yield ""
    void = [each for each in results.rounds if each.void]
    if void:
        yield "## Void rounds"
        yield ""
        rows = [[each.shape, label(each.contender), str(each.number), each.void] for each in void]
        yield from _table(["shape", "contender", "round", "why"], rows)
        yield ""


def _titles(shape: Shape) -> list[str]:
    """Of each of its loads."""
    title = f"{shape.title} (`{shape.name}`)"
    if len(shape.loads) < 2:
        return [title]
    return [f"{title}: those with values of {load.values.size:,} B" for load in shape.loads]


def _others(results: Results, ours: str) -> list[str]:
    """With whom one of ours is compared; a variant also with the tunnel itself."""
    return [
        each
        for each in results.contenders
        if each not in results.ours or (each == OURS and ours != OURS)
    ]


def ratios(results: Results, ours: str) -> Iterator[str]:
    """The table of one of ours, a line each."""
    others = _others(results, ours)
    rows = []
    for shape in results.shapes:
        for measure in shape.about:
            name, more, _ = COLUMNS[measure]
            row = [shape.title, f"{name}, {'more' if more else 'less'} is better"]
            row += [_ratio(results.ratio(shape, ours, other, measure)) for other in others]
            rows.append(row)
    yield from _table(["shape", "of", *(f"to {label(other)}" for other in others)], rows)


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return NOTHING
    return f"**{_times(ratio.median)}** ({_times(ratio.least)} to {_times(ratio.most)})"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def _figures(results: Results, shape: Shape, load: int) -> Iterator[str]:
    measures = results.measures(shape, load)
    rows = []
    for contender in results.contenders:
        row = [label(contender), _rounds(results.rounds_of(shape, contender))]
        for measure in measures:
            figure = results.median(shape, contender, measure, load)
            row.append(NOTHING if figure is None else COLUMNS[measure][2](figure))
        rows.append(row)
    heads = ["contender", "rounds", *(COLUMNS[measure][0] for measure in measures)]
    yield from _table(heads, rows)


def _rounds(rounds: Sequence[Round]) -> str:
    """How many of them count."""
    void = sum(bool(each.void) for each in rounds)
    if 2 * void > len(rounds):
        return f"**void**: {void} of {len(rounds)}"
    return f"{len(rounds) - void} of {len(rounds)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
