"""Each request is given up when its deadline has passed, not before, and not once it is settled.

A deadline is the timeout, longer by a second for each MiB of request and answer, by five at most.
"""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memtunnel.core.deadlines import LONGEST, RATE, Deadlines
from memtunnel.core.request import Request
from memtunnel.wire.binary import Opcode

TIMEOUT = 0.5
SMALL = 0


class Watch:
    """Deadlines, and what they did. Expired requests are settled, as their owners would do."""

    def __init__(self, settle: Callable[[Request], None] | None = None) -> None:
        self.expired: list[tuple[Request, float]] = []
        self.wakes = 0
        self._settle = settle
        self.deadlines = Deadlines(TIMEOUT, self._expire, self._wake)

    def _expire(self, request: Request, now: float) -> None:
        assert request.answer is None
        request.answer = b""
        self.expired.append((request, now))
        if self._settle is not None:
            self._settle(request)

    def _wake(self) -> None:
        self.wakes += 1

    def add(self, arrived: float, *sizes: int) -> list[Request]:
        requests = [
            Request(None, None, Opcode.GET, bytes(4), None, size, arrived) for size in sizes
        ]
        self.deadlines.add(arrived, requests)
        return requests

    @property
    def names(self) -> list[Request]:
        return [request for request, _ in self.expired]


def test_a_request_expires_at_its_deadline_and_not_before() -> None:
    watch = Watch()
    requests = watch.add(1.0, SMALL, SMALL)
    watch.deadlines.sweep(1.4375)
    assert watch.expired == []
    watch.deadlines.sweep(1.5)
    assert watch.names == requests
    watch.deadlines.sweep(9.0)
    assert watch.names == requests


def test_a_settled_request_does_not_expire() -> None:
    watch = Watch()
    settled, other = watch.add(1.0, SMALL, SMALL)
    settled.answer = b""
    watch.deadlines.sweep(2.0)
    assert watch.names == [other]


def test_a_request_settled_by_the_expiry_of_another_does_not_expire() -> None:
    requests: list[Request] = []

    def settle_all(request: Request) -> None:
        for other in requests:
            other.answer = b""

    watch = Watch(settle_all)
    requests += watch.add(1.0, SMALL, SMALL, SMALL)
    watch.deadlines.sweep(2.0)
    assert watch.names == requests[:1]


def test_requests_expire_in_the_order_of_their_deadlines() -> None:
    watch = Watch()
    large, first = watch.add(1.0, RATE, SMALL)
    (second,) = watch.add(1.25, SMALL)
    watch.deadlines.sweep(9.0)
    assert watch.names == [first, second, large]


@pytest.mark.parametrize(
    ("size", "grows"), [(RATE // 2, 0.5), (2 * RATE, 2.0), (5 * RATE, 5.0), (64 * RATE, LONGEST)]
)
def test_a_deadline_grows_with_size_up_to_a_bound(size: int, grows: float) -> None:
    watch = Watch()
    (large,) = watch.add(1.0, size)
    assert watch.deadlines.due(large) == 1.0 + TIMEOUT + grows
    watch.deadlines.sweep(1.0 + TIMEOUT + grows - 0.0625)
    assert watch.expired == []
    watch.deadlines.sweep(1.0 + TIMEOUT + grows)
    assert watch.names == [large]


def test_an_answer_that_begins_to_come_moves_its_deadline() -> None:
    watch = Watch()
    (request,) = watch.add(1.0, RATE)
    watch.deadlines.sweep(1.75)
    request.size += RATE
    watch.deadlines.sweep(2.5)
    assert watch.expired == []
    watch.deadlines.sweep(3.5)
    assert watch.names == [request]


def test_frames_held_back_keep_the_time_of_their_read() -> None:
    watch = Watch()
    (later,) = watch.add(2.0, SMALL)
    (held,) = watch.add(1.75, SMALL)
    watch.deadlines.sweep(2.25)
    assert watch.names == [held]
    watch.deadlines.sweep(2.5)
    assert watch.names == [held, later]


def test_a_large_request_does_not_hide_those_behind_it() -> None:
    watch = Watch()
    watch.add(1.0, 5 * RATE)
    (small,) = watch.add(1.25, SMALL)
    watch.deadlines.sweep(1.75)
    assert watch.names == [small]


def test_it_wakes_its_clock_when_there_is_something_to_watch_again() -> None:
    watch = Watch()
    assert not watch.deadlines
    watch.add(1.0, SMALL)
    watch.add(1.25, SMALL)
    assert (watch.wakes, bool(watch.deadlines)) == (1, True)
    watch.deadlines.sweep(9.0)
    assert not watch.deadlines
    watch.add(10.0, SMALL)
    assert watch.wakes == 2


def test_settled_requests_are_forgotten_without_waiting_for_their_deadline() -> None:
    watch = Watch()
    requests = watch.add(1.0, SMALL) + watch.add(1.0, SMALL) + watch.add(1.0, RATE)
    watch.deadlines.sweep(1.75)
    for request in requests:
        request.answer = b""
    watch.deadlines.sweep(1.75)
    assert not watch.deadlines


# Eighths of seconds and of MiB: exact in binary, so that a deadline is never off by rounding.
eighths = st.integers(0, 24).map(lambda n: n / 8)
events = st.lists(
    st.tuples(
        eighths,
        st.lists(st.integers(0, 60).map(lambda n: n * RATE // 8), max_size=3),
        st.integers(0, 3).map(lambda n: n / 8),
        st.booleans(),
    ),
    max_size=20,
)


@given(events)
def test_p3_with_any_traffic_each_request_expires_at_the_first_sweep_after_its_deadline(
    traffic: list[tuple[float, list[int], float, bool]],
) -> None:
    watch = Watch()
    now = 10.0
    waiting: list[Request] = []
    for step, sizes, held, settle in traffic:
        now += step
        watch.deadlines.sweep(now)
        late = [request for request in waiting if watch.deadlines.due(request) <= now]
        assert {request for request, when in watch.expired if when == now} >= set(late)
        assert all(watch.deadlines.due(request) <= when for request, when in watch.expired)
        waiting = [request for request in waiting if request not in late]
        if settle and waiting:
            waiting.pop(len(waiting) // 2).answer = b""
        if sizes:
            waiting += watch.add(now - held, *sizes)
    watch.deadlines.sweep(now + 10)
    assert set(waiting) <= set(watch.names)
    assert len(watch.names) == len(set(watch.names))
    assert not watch.deadlines
