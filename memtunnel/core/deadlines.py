"""Deadlines of requests, without a timer for each.

The base timeout is the same for all, so the order of arrival is the order of deadlines: a
queue with one entry per time of arrival, and a sweep that looks at its head. The few whose
deadline lies elsewhere (large frames, or frames that were held back) are kept in a heap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Final

from memtunnel.core.request import Request

#: Bytes of request and answer for which a deadline grows by a second.
RATE: Final = 1024 * 1024
#: A deadline grows by this at most, in seconds.
LONGEST: Final = 5.0


class Deadlines:
    """`timeout` in seconds; `expire` is told of each request that is late; `wake` is called when
    there is something to watch and there was nothing before.
    """

    __slots__ = ("_expire", "_late", "_queue", "_sequence", "_wake", "timeout")

    def __init__(
        self,
        timeout: float,
        expire: Callable[[Request, float], None],
        wake: Callable[[], None],
    ) -> None:
        self.timeout = timeout
        self._expire = expire
        self._wake = wake
        self._queue: deque[tuple[float, list[Request]]] = deque()
        self._late: list[tuple[float, int, Request]] = []
        self._sequence = count()

    def __bool__(self) -> bool:
        """Whether there is anything to watch."""
        return bool(self._queue or self._late)

    def add(self, arrived: float, requests: list[Request]) -> None:
        """Watch requests that arrived together."""
        if not (self._queue or self._late):
            self._wake()
        last = self._queue[-1][0] if self._queue else -inf
        if arrived > last:
            self._queue.append((arrived, requests))
        elif arrived == last:
            self._queue[-1][1].extend(requests)
        else:
            for request in requests:
                self._postpone(request)

    def due(self, request: Request) -> float:
        """When a request has to be answered."""
        return request.arrived + self.timeout + min(request.size / RATE, LONGEST)

    def sweep(self, now: float) -> None:
        """Expire what is late, forget what is settled."""
        queue = self._queue
        base = now - self.timeout
        while queue:
            arrived, requests = queue[0]
            pending = [request for request in requests if request.answer is None]
            if pending and arrived > base:
                break
            queue.popleft()
            for request in pending:
                self._postpone(request)
        late = self._late
        while late and (late[0][2].answer is not None or late[0][0] <= now):
            request = heappop(late)[2]
            if request.answer is not None:
                continue
            if self.due(request) > now:
                self._postpone(request)  # its answer has begun to come meanwhile
            else:
                self._expire(request, now)

    def _postpone(self, request: Request) -> None:
        heappush(self._late, (self.due(request), next(self._sequence), request))
