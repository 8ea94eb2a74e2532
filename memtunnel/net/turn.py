"""What is left to do at the end of a reactor turn, once for all that the turn brought."""

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

_log = Logger(namespace="memtunnel")


class Turn:
    """Calls back once, after all that is readable now was read.

    Many clients' requests of one turn become one write per connection. `run` is called by a
    timer, or by the loop itself where that is ours (`driven`, see `net.loop`).
    """

    __slots__ = ("_reactor", "began", "calls", "driven")

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.calls: list[Callable[[], None]] = []
        """What is left to do."""
        self.driven = False
        self.began = 0.0
        """When this turn's events were taken from the kernel; 0 outside of a driven turn."""

    @property
    def now(self) -> float:
        """When what is read in this turn arrived, in seconds of the monotonic clock."""
        return self.began or self._reactor.seconds()

    def at_end(self, call: Callable[[], None]) -> None:
        """Call `call` at the end of this turn."""
        if not self.calls and not self.driven:
            self._reactor.callLater(0, self.run)
        self.calls.append(call)

    def run(self) -> None:
        """The turn ends. What is added meanwhile is left to the next."""
        calls, self.calls = self.calls, []
        for call in calls:
            try:
                call()
            except Exception:
                # What one connection met must not cost the others their turn.
                _log.failure("at the end of a turn")
