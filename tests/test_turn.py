"""The end of a reactor turn: one timer for all, and what one meets costs the others nothing."""

from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher

from memtunnel.net.turn import Turn


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    seen: list[LogEvent] = []
    globalLogPublisher.addObserver(seen.append)
    yield seen
    globalLogPublisher.removeObserver(seen.append)


def test_one_timer_serves_all_calls_in_their_order() -> None:
    clock = Clock()
    turn = Turn(clock)
    called: list[int] = []
    for number in range(3):
        turn.at_end(lambda number=number: called.append(number))  # type: ignore[misc]
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(0)
    assert called == [0, 1, 2]


def test_a_call_that_raises_costs_the_others_nothing(events: list[LogEvent]) -> None:
    clock = Clock()
    turn = Turn(clock)
    called: list[int] = []
    turn.at_end(lambda: called.append(1 // 0))
    turn.at_end(lambda: called.append(2))
    clock.advance(0)
    assert called == [2]
    assert [event["log_failure"].type for event in events if "log_failure" in event] == [
        ZeroDivisionError
    ]
    turn.at_end(lambda: called.append(3))
    clock.advance(0)
    assert called == [2, 3]
