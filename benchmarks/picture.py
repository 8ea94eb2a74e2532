"""The results as a picture: how much each contender carries, beside HAProxy.

An SVG with text as text and without a background, in colours that can be read on white and on
black. The same results make the same bytes.
"""

from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.results import Ratio, Results
from benchmarks.shapes import Measure, Shape
from benchmarks.tables import label

#: What all are compared with: a line in the picture, where the others are bars.
BESIDE: Final = "haproxy"
TITLE: Final = "Requests per second, as a multiple of HAProxy's"
COLOURS: Final = {
    "none": "#8b949e",
    "stunnel": "#bf8700",
    "memtunnel": "#2f81f7",
    "memtunnel-text": "#3fb950",
    "memtunnel-compiled": "#8957e5",
    "memtunnel-workers": "#1f9d94",
    "memtunnel-scraped": "#db61a2",
    "memtunnel-watched": "#d29922",
    "memtunnel-before": "#6e7681",
}
#: Between white and GitHub's black.
INK: Final = "#7d848d"
STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "memtunnel",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
#: Inches.
WIDTH: Final = 9.0
BAR: Final = 0.16
#: Names in a line of the legend.
ABREAST: Final = 4
#: Bars' room between two shapes.
GAP: Final = 1
TICKS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
TIMES: Final = "\N{MULTIPLICATION SIGN}"


def lacks(results: Results) -> str:
    """What a picture of these needs and will not have, in words; nothing if it can be drawn."""
    if BESIDE in results.contenders and _bars(results) and _shapes(results):
        return ""
    return f"a picture needs the throughput of {BESIDE} and of another contender"


def _bars(results: Results) -> list[str]:
    return [each for each in results.contenders if each != BESIDE]


def _shapes(results: Results) -> list[Shape]:
    return [shape for shape in results.shapes if Measure.THROUGHPUT in shape.about]


def draw(results: Results, path: Path) -> None:
    """What `lacks` nothing. Rounds that do not count leave their place empty."""
    bars, shapes = _bars(results), _shapes(results)
    pitch = len(bars) + GAP
    with matplotlib.rc_context(STYLE):
        height = len(shapes) * pitch * BAR + 1.2 + 0.2 * (len(bars) // ABREAST)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        for first, contender in enumerate(bars):
            for number, shape in enumerate(shapes):
                ratio = results.ratio(shape, contender, BESIDE, Measure.THROUGHPUT)
                if ratio is not None:
                    _bar(axes, number * pitch + first, ratio, COLOURS[contender])
        middles = [number * pitch + (len(bars) - 1) / 2 for number in range(len(shapes))]
        axes.set_yticks(middles, [shape.title for shape in shapes])
        _finish(axes)
        figure.legend(
            handles=[Patch(color=COLOURS[each], label=label(each)) for each in bars],
            frameon=False,
            ncols=ABREAST,
            loc="outside lower center",
        )
        about = {"Title": TITLE, "Date": None, "Creator": None}
        figure.savefig(path, format="svg", transparent=True, metadata=about)


def _bar(axes: Axes, place: float, ratio: Ratio, colour: str) -> None:
    """From 1 to the median, with a thin line from the least round to the most."""
    axes.barh(place, ratio.median - 1, left=1, height=0.9, color=colour)
    axes.plot([ratio.least, ratio.most], [place, place], color=INK, linewidth=0.8)
    more = ratio.median >= 1
    axes.annotate(
        f"{ratio.median:.2f}{TIMES}",
        (max(ratio.most, 1) if more else min(ratio.least, 1), place),
        xytext=(3 if more else -3, 0),
        textcoords="offset points",
        ha="left" if more else "right",
        va="center_baseline",
        fontsize=7,
    )


def _finish(axes: Axes) -> None:
    axes.set_title(TITLE, loc="left")
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.01)
    axes.invert_yaxis()
    axes.axvline(1, color=INK, linewidth=1.2)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _tick(value: float, _: Any) -> str:
    return label(BESIDE) if value == 1 else f"{value:g}{TIMES}"
