"""Seconds since the epoch: made of those that the monotonic clock counts, and written."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

#: Seconds by which the clock on the wall is taken to run, and not to have been set.
SLACK: Final = 0.1


class Epoch:
    """To be added to a time of `seconds`, the monotonic clock.

    It is the same each time it is asked for, so that what has happened is always said to have
    happened at the same time; but not if somebody sets `wall`, the clock on the wall.
    """

    def __init__(self, seconds: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self._seconds = seconds
        self._wall = wall
        self._value = wall() - seconds()

    def __call__(self) -> float:
        value = self._wall() - self._seconds()
        if abs(value - self._value) > SLACK:
            self._value = value
        return self._value


def timestamp(seconds: float) -> str:
    """A time in seconds since the epoch as it is written for programs, to the millisecond."""
    when = datetime.fromtimestamp(seconds, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
