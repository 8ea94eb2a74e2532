"""What is left to do at the end of a reactor turn, once for all that the turn brought."""

from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

_log = Logger(namespace="memtunnel")


class Turn:
    """Calls back once, after all that is readable now was read.

    One timer for all: many clients' requests of one turn become one write per connection.
    """

    __slots__ = ("_calls", "_reactor")

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._calls: list[Callable[[], None]] = []

    def at_end(self, call: Callable[[], None]) -> None:
        """Call `call` at the end of this turn."""
        if not self._calls:
            self._reactor.callLater(0, self._run)
        self._calls.append(call)

    def _run(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            try:
                call()
            except Exception:
                # What one connection met must not cost the others their turn.
                _log.failure("at the end of a turn")
