"""When to stop waiting for a server.

While the breaker is open the server's requests are not kept waiting: another server has them,
or they get their degraded reply at once. What opened it says what closes it: an unreachable
server is back when a connection is warm, a stalled one only when a data request succeeds (an
endpoint may answer a NOOP while the backend behind it hangs). A stalled server stays stalled
however often it is dialled; the tunnel asks it something itself, so that it is found out even
where no client only reads.
"""

from enum import Enum
from typing import Final

FAILED_DIALS: Final = 3
TIMEOUTS_IN_A_ROW: Final = 20
#: Seconds between the reads that are let through to a stalled server.
PROBE_INTERVAL: Final = 1.0


class State(Enum):
    CLOSED = "closed"
    UNREACHABLE = "unreachable"
    STALLED = "stalled"
    WITHDRAWN = "withdrawn"


class Breaker:
    """Counts the failures of one server. A method that may open or close it says if it did."""

    __slots__ = ("_dials", "_next_probe", "_timeouts", "state")

    def __init__(self) -> None:
        self.state = State.CLOSED
        self._dials = 0
        self._timeouts = 0
        self._next_probe = 0.0

    @property
    def is_open(self) -> bool:
        return self.state is not State.CLOSED

    def dial_failed(self) -> bool:
        """A dial failed while the server had no warm connection."""
        self._dials += 1
        return self._dials >= FAILED_DIALS and self._open(State.UNREACHABLE)

    def waited_out(self) -> bool:
        """A request spent its whole deadline waiting for a connection."""
        return self._open(State.UNREACHABLE)

    def timed_out(self, now: float) -> bool:
        """A data request in flight was not answered within its deadline."""
        self._timeouts += 1
        if self._timeouts < TIMEOUTS_IN_A_ROW or self.is_open:
            return False
        self._next_probe = now + PROBE_INTERVAL
        return self._open(State.STALLED)

    def connected(self) -> bool:
        """A connection became warm."""
        self._dials = 0
        self._next_probe = 0.0
        return self.state is State.UNREACHABLE and self._close()

    def answered(self) -> bool:
        """A data request was answered in time."""
        self._timeouts = 0
        return self.state is State.STALLED and self._close()

    def withdraw(self) -> None:
        """The server is used no more: open for good."""
        self.state = State.WITHDRAWN

    def admits_probe(self, now: float) -> bool:
        """Whether a read may be sent to see whether a stalled server is back."""
        if self.state is not State.STALLED or now < self._next_probe:
            return False
        self._next_probe = now + PROBE_INTERVAL
        return True

    def _open(self, state: State) -> bool:
        if self.is_open:
            return False
        self.state = state
        return True

    def _close(self) -> bool:
        self.state = State.CLOSED
        self._timeouts = 0
        return True
