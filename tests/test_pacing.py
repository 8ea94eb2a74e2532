"""Dials are one at a time and ever rarer until one succeeds, and then four at a time.

At most three in the first second, then at most one a second; the waits are drawn with full
jitter; a refused login waits five seconds to a minute.
"""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtunnel.core.pacing import AT_ONCE, LONGEST, LONGEST_LOGIN, SHORTEST_LOGIN, Pacing

fractions = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def drawing(fractions: list[float]) -> Pacing:
    """Its n-th draw is the n-th fraction of the way from the lower bound to the upper."""
    left = iter(fractions)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * next(left)

    return Pacing(uniform)


def dials(pacing: Pacing, number: int) -> list[float]:
    """When the dials of a server start that refuses each of them at once."""
    starts = []
    now = 0.0
    for _ in range(number):
        now = max(now, pacing.not_before)
        starts.append(now)
        pacing.failed(now)
    return starts


def test_the_first_dial_may_start_at_once_and_alone() -> None:
    pacing = Pacing(random.uniform)
    assert (pacing.not_before, pacing.at_once, pacing.proven) == (0.0, 1, False)


def test_after_a_success_several_dials_may_be_under_way() -> None:
    pacing = drawing([1.0])
    pacing.failed(0.0)
    pacing.succeeded()
    assert (pacing.not_before, pacing.at_once, pacing.proven) == (0.0, AT_ONCE, True)


def test_after_a_failure_it_is_one_at_a_time_again() -> None:
    pacing = drawing([0.5])
    pacing.succeeded()
    pacing.failed(10.0)
    assert (pacing.at_once, pacing.proven) == (1, False)
    assert pacing.not_before > 10.0


@given(fractions)
def test_whatever_is_drawn_at_most_three_dials_start_in_a_second_and_then_one_a_second(
    drawn: list[float],
) -> None:
    starts = dials(drawing(drawn), len(drawn))
    assert sum(start < 1.0 for start in starts) <= 3
    assert all(later - earlier >= 1.0 - 1e-9 for earlier, later in pairwise(starts[2:]))


@given(fractions)
def test_no_wait_is_longer_than_two_seconds(drawn: list[float]) -> None:
    starts = dials(drawing(drawn), len(drawn))
    assert all(later - earlier <= LONGEST + 1e-9 for earlier, later in pairwise(starts))


def test_the_range_of_the_waits_doubles_to_its_bound() -> None:
    starts = dials(drawing([1.0] * 8), 8)
    waits = [later - earlier for earlier, later in pairwise(starts)]
    assert waits == pytest.approx([0.2, 0.4, 1.0, 1.6, 2.0, 2.0, 2.0])


def test_the_range_begins_anew_after_a_success() -> None:
    pacing = drawing([1.0] * 9)
    dials(pacing, 8)
    pacing.succeeded()
    pacing.failed(100.0)
    assert pacing.not_before == pytest.approx(100.2)


@given(fractions)
def test_a_refused_login_waits_from_five_seconds_to_a_minute(drawn: list[float]) -> None:
    pacing = drawing(drawn)
    now = 0.0
    for _ in drawn:
        pacing.failed(now, login_refused=True)
        assert SHORTEST_LOGIN - 1e-9 <= pacing.not_before - now <= LONGEST_LOGIN + 1e-9
        now = pacing.not_before


def test_refused_logins_come_to_wait_a_minute() -> None:
    pacing = drawing([1.0] * 6)
    for _ in range(6):
        pacing.failed(0.0, login_refused=True)
    assert pacing.not_before == LONGEST_LOGIN


def test_a_short_wait_does_not_cut_a_longer_one() -> None:
    pacing = drawing([1.0, 0.0])
    pacing.failed(0.0, login_refused=True)
    pacing.failed(1.0)
    assert pacing.not_before == 10.0


def test_it_can_fail_for_a_year() -> None:
    pacing = Pacing(random.Random(1).uniform)
    for _ in range(2000):
        pacing.failed(0.0)
    assert pacing.not_before <= LONGEST


def test_the_first_refused_login_waits_shortly_whatever_failed_before() -> None:
    ranges: list[tuple[float, float]] = []
    pacing = Pacing(lambda least, most: ranges.append((least, most)) or least)  # type: ignore[func-returns-value]
    for _ in range(5):
        pacing.failed(0.0)
    pacing.failed(0.0, login_refused=True)
    assert ranges[-1] == (5.0, 10.0)
    pacing.failed(0.0)
    pacing.failed(0.0, login_refused=True)
    assert ranges[-1] == (5.0, 20.0)
    pacing.succeeded()
    pacing.failed(0.0, login_refused=True)
    assert ranges[-1] == (5.0, 10.0)
