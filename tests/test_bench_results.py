"""What rounds say together: ratios, medians, the table, the picture."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import picture, tables
from benchmarks.contenders import CONTENDERS
from benchmarks.results import Ratio, Results, Round
from benchmarks.shapes import LARGE, SHAPES, Load, Measure, Shape

PLAIN = Shape(name="50x1", title="50 clients", loads=(Load(),))
MIXED = Shape(
    name="mixed",
    title="small beside large",
    loads=(Load(), Load(clients=2, values=LARGE)),
    about=(Measure.P99,),
)
Figures = dict[Measure, float]


def a_round(shape: Shape, contender: str, number: int, *figures: Figures, void: str = "") -> Round:
    return Round(shape=shape.name, contender=contender, number=number, figures=figures, void=void)


def rates(contender: str, *rates: float, void: tuple[int, ...] = ()) -> list[Round]:
    """A round of the plain shape for each rate; those of these numbers are void."""
    return [
        a_round(
            PLAIN,
            contender,
            number,
            {Measure.THROUGHPUT: rate},
            void="misses: 1 a second" if number in void else "",
        )
        for number, rate in enumerate(rates, 1)
    ]


def make_results(*rounds: Round, shapes: tuple[Shape, ...] = (PLAIN,)) -> Results:
    return Results(
        machine={"cores": "2 of X"},
        seconds=4,
        shapes=shapes,
        contenders=tuple(dict.fromkeys(each.contender for each in rounds)),
        rounds=list(rounds),
    )


def some_results() -> Results:
    memory = {Measure.CPU: 0.0000155, Measure.MEMORY: 50 << 20, Measure.CONNECTIONS: 2}
    small = {Measure.THROUGHPUT: 900.0, Measure.P99: 0.00655}
    large = {Measure.THROUGHPUT: 90.0, Measure.P99: 0.0123}
    return make_results(
        *rates("none", 5000),
        *rates("haproxy", 1000, 3000, void=(2,)),
        a_round(PLAIN, "memtunnel", 1, {Measure.THROUGHPUT: 2000.0, **memory}),
        a_round(PLAIN, "memtunnel", 2, {Measure.THROUGHPUT: 1000.0, **memory}),
        a_round(MIXED, "haproxy", 1, small, large),
        a_round(MIXED, "memtunnel", 1, {}, {}, void="ConnectionError: gone"),
        shapes=(PLAIN, MIXED),
    )


# Together


def test_a_ratio_is_taken_within_each_round() -> None:
    results = make_results(*rates("memtunnel", 20, 30, 400), *rates("haproxy", 10, 10, 100))
    ratio = results.ratio(PLAIN, "memtunnel", "haproxy", Measure.THROUGHPUT)
    assert ratio == Ratio(median=3, least=2, most=4)


def test_a_ratio_needs_both_in_a_round() -> None:
    results = make_results(
        *rates("memtunnel", 20, 30, 40, void=(1,)), *rates("haproxy", 10, 10, 10, void=(2,))
    )
    ratio = results.ratio(PLAIN, "memtunnel", "haproxy", Measure.THROUGHPUT)
    assert ratio == Ratio(median=4, least=4, most=4)
    assert results.ratio(PLAIN, "memtunnel", "haproxy", Measure.CPU) is None
    assert results.ratio(PLAIN, "memtunnel", "stunnel", Measure.THROUGHPUT) is None


def test_void_rounds_do_not_count() -> None:
    results = make_results(*rates("memtunnel", 1, 20, 1000, 30, void=(1, 3)))
    assert results.median(PLAIN, "memtunnel", Measure.THROUGHPUT) == 25
    assert results.median(PLAIN, "memtunnel", Measure.CPU) is None


def test_where_most_are_void_none_counts() -> None:
    results = make_results(*rates("memtunnel", 1, 20, 1000, void=(1, 3)))
    assert results.counting(PLAIN, "memtunnel") == []
    assert results.median(PLAIN, "memtunnel", Measure.THROUGHPUT) is None
    assert "| memtunnel | **void**: 2 of 3 |" in tables.render(results)


def test_the_tunnel_and_its_variants_are_ours() -> None:
    results = make_results(*rates("haproxy", 1), *rates("memtunnel", 1), *rates("memtunnel-x", 1))
    assert results.ours == ["memtunnel", "memtunnel-x"]


# JSON


def test_results_survive_json(tmp_path: Path) -> None:
    results = some_results()
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


def test_every_shape_survives_json(tmp_path: Path) -> None:
    results = make_results(shapes=SHAPES)
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json").shapes == SHAPES


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"machine": [1]}', "\udcff"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"^{path} does not hold a bench's results: "):
        Results.load(path)


# The table


def test_the_table() -> None:
    text = tables.render(some_results())
    assert text.startswith(
        "# memtunnel beside what else there is\n\n- cores: 2 of X\n- each round: 4 s\n"
    )
    assert re.findall(r"^(?:\||##).*", text.replace(tables.NOTHING, "-"), re.MULTILINE) == [
        "## memtunnel to the others",
        "| shape | of | to no proxy | to HAProxy |",
        "|---|---|---|---|",
        "| 50 clients | requests/s, more is better "
        "| **0.40** (0.40 to 0.40) | **2.00** (2.00 to 2.00) |",
        "| 50 clients | CPU/request, less is better | - | - |",
        "| small beside large | p99, less is better | - | - |",
        "## Figures",
        "### 50 clients (`50x1`)",
        "| contender | rounds | requests/s | CPU/request | memory | server connections |",
        "|---|---|---|---|---|---|",
        "| no proxy | 1 of 1 | 5,000 | - | - | - |",
        "| HAProxy | 1 of 2 | 1,000 | - | - | - |",
        "| memtunnel | 2 of 2 | 1,500 | 15.5 µs | 50 MiB | 2 |",
        "### small beside large (`mixed`): those with values of 100 B",
        "| contender | rounds | requests/s | p99 |",
        "|---|---|---|---|",
        "| no proxy | 0 of 0 | - | - |",
        "| HAProxy | 1 of 1 | 900 | 6.55 ms |",
        "| memtunnel | **void**: 1 of 1 | - | - |",
        "### small beside large (`mixed`): those with values of 500,000 B",
        "| contender | rounds | requests/s | p99 |",
        "|---|---|---|---|",
        "| no proxy | 0 of 0 | - | - |",
        "| HAProxy | 1 of 1 | 90 | 12.3 ms |",
        "| memtunnel | **void**: 1 of 1 | - | - |",
        "## Void rounds",
        "| shape | contender | round | why |",
        "|---|---|---|---|",
        "| 50x1 | HAProxy | 2 | misses: 1 a second |",
        "| mixed | memtunnel | 1 | ConnectionError: gone |",
    ]


def test_a_line_for_a_round() -> None:
    first, second = rates("haproxy", 1000, 3000, void=(2,))
    assert tables.summary(first) == "HAProxy: requests/s 1,000"
    assert tables.summary(second) == "HAProxy: void, misses: 1 a second"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0000312, "0.031 ms"), (0.00123, "1.23 ms"), (0.0456, "45.6 ms")],
)
def test_milliseconds(seconds: float, text: str) -> None:
    assert tables.milliseconds(seconds) == text


def test_a_small_ratio_is_not_nothing() -> None:
    results = make_results(*rates("memtunnel", 2), *rates("haproxy", 1000))
    assert "**0.002** (0.002 to 0.002)" in tables.render(results)


# The picture


def texts(svg: Path) -> list[str]:
    tags = ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    return [tag.text or "" for tag in tags]


def test_the_picture_has_its_bars(tmp_path: Path) -> None:
    picture.draw(some_results(), tmp_path / "bench.svg")
    said = texts(tmp_path / "bench.svg")
    assert "50 clients" in said
    assert {"no proxy", "memtunnel"} <= set(said)
    assert {"5.00×", "2.00×"} <= set(said)  # noqa: RUF001
    svg = (tmp_path / "bench.svg").read_text()
    for contender in ("none", "memtunnel"):  # in the legend, and as a bar
        assert svg.count(f"fill: {picture.COLOURS[contender]}") == 2


def test_the_same_results_make_the_same_picture(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        picture.draw(some_results(), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_picture_without_a_round_that_counts(tmp_path: Path) -> None:
    results = make_results(*rates("haproxy", 1, void=(1,)), *rates("memtunnel", 1))
    picture.draw(results, tmp_path / "bench.svg")
    assert "50 clients" in texts(tmp_path / "bench.svg")


@pytest.mark.parametrize(
    "results",
    [
        make_results(*rates("none", 1), *rates("memtunnel", 1)),
        make_results(*rates("haproxy", 1)),
        make_results(
            a_round(MIXED, "haproxy", 1, {}), a_round(MIXED, "memtunnel", 1, {}), shapes=(MIXED,)
        ),
    ],
    ids=["no HAProxy", "HAProxy only", "no throughput"],
)
def test_what_cannot_be_drawn(results: Results) -> None:
    assert picture.lacks(results) == (
        "a picture needs the throughput of haproxy and of another contender"
    )


def test_every_contender_has_a_colour() -> None:
    assert picture.lacks(some_results()) == ""
    assert set(picture.COLOURS) == set(CONTENDERS) - {picture.BESIDE}
