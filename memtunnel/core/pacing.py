"""When to dial a server again.

Until a dial has succeeded, one at a time, and soon only one a second; once one has, several
at a time, since then only their number is missing. After a failure the wait is drawn from a
growing range (full jitter), so that many tunnels do not come back to a server in step.
"""

from collections.abc import Callable
from typing import Final

SHORTEST: Final = 0.1
LONGEST: Final = 2.0
#: The waits after a refused login: more tries do not mend a password.
SHORTEST_LOGIN: Final = 5.0
LONGEST_LOGIN: Final = 60.0
#: Dials in a row without success after which there is at most one a second.
QUICK_DIALS: Final = 3
AT_ONCE: Final = 4


class Pacing:
    """`uniform` draws a number between two bounds, as `random.uniform` does."""

    __slots__ = ("_failures", "_refusals", "_uniform", "not_before", "proven")

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._failures = 0
        self._refusals = 0
        self.proven = False
        """Whether the last dial that ended did so in success."""
        self.not_before = 0.0
        """When the next dial may start, in seconds."""

    @property
    def at_once(self) -> int:
        """How many dials may be under way together."""
        return AT_ONCE if self.proven else 1

    def succeeded(self) -> None:
        self.proven = True
        self._failures = 0
        self._refusals = 0
        self.not_before = 0.0

    def failed(self, now: float, *, login_refused: bool = False) -> None:
        self.proven = False
        if login_refused:
            # Counted by themselves: what an outage before had of failures is no reason to wait.
            self._refusals += 1
            most = SHORTEST_LOGIN * 2.0 ** min(self._refusals, 16)
            wait = self._uniform(SHORTEST_LOGIN, min(LONGEST_LOGIN, most))
        else:
            self._failures += 1
            most = SHORTEST * 2.0 ** min(self._failures, 16)
            wait = self._uniform(0.0, min(LONGEST, most))
            if self._failures >= QUICK_DIALS:
                wait = max(wait, 1.0)
        self.not_before = max(self.not_before, now + wait)
