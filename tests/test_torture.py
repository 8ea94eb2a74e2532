"""A short torture: real sockets, faults, restarts, and clients that check every answer.

What is asserted here are the promises, and no times; ``make torture`` has the figures and runs as
long as it is told to.
"""

import pytest
from torture.parts import faults, sigterm
from torture.scorecard import Options, Row


@pytest.fixture(params=[1, 2])
def options(request: pytest.FixtureRequest) -> Options:
    """For a tunnel of one process, or of several."""
    drawn = Options(minutes=0.12, times=2, workers=request.param, rate=3000)
    print(f"seed {drawn.seed}")
    return drawn


def wrong(rows: list[Row]) -> list[str]:
    """The rows that are not as promised, but for those that tell how long something took."""
    return [str(row) for row in rows if row.ok is False and not row.name.startswith("recovery")]


def test_faults_of_servers_are_nothing_but_misses_and_refused_writes(options: Options) -> None:
    assert not wrong(faults.run(options))


def test_the_end_under_load_leaves_no_request_without_an_answer(options: Options) -> None:
    assert not wrong(sigterm.run(options))
