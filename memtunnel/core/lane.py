"""One session's requests to one server, kept in order.

The rule is short: while something is in flight, the lane keeps to that connection. Where it
must not send on it any more (it drains, or carries too much), new requests wait here until
nothing is in flight, and move to another connection together.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from memtunnel.core.mux import MAX_ENTRIES, MAX_UNSENT, Multiplexer
from memtunnel.core.outcomes import Reason
from memtunnel.core.request import Request

if TYPE_CHECKING:
    from memtunnel.core.server import Server


class Lane:
    """`mux` is the connection that the lane keeps to, meaningful while `in_flight` is not 0."""

    __slots__ = ("in_flight", "moving", "mux", "server", "waiting")

    def __init__(self, server: Server) -> None:
        self.server = server
        self.mux: Multiplexer | None = None
        self.in_flight = 0
        self.moving = False
        self.waiting: deque[Request] = deque()

    def send(self, request: Request, now: float) -> None:
        """Send a request, or keep it until it can be sent."""
        if self.waiting:
            self._wait(request, now)
            return
        mux = self.mux
        if not self.in_flight:
            mux = self.mux = self.server.choose()
            self.moving = False
        if mux is None or mux.draining or self.moving:
            self._wait(request, now)
        elif mux.full:
            self._refuse(request, now)
        else:
            self.in_flight += 1
            mux.send(request)

    def send_all(self, requests: list[Request], size: int, now: float) -> None:
        """Send requests of `size` bytes together, or keep those that cannot be sent."""
        if self.in_flight:
            self.rebalance()
        elif not self.waiting:
            self.mux = self.server.choose()
            self.moving = False
        mux = self.mux
        if (
            mux is None
            or mux.draining
            or self.moving
            or self.waiting
            # Some of them may still find room: each is to ask for itself.
            or mux.load + len(requests) > MAX_ENTRIES
            or mux.unsent_bytes + size > MAX_UNSENT
        ):
            for request in requests:
                self.send(request, now)
        else:
            self.in_flight += len(requests)
            mux.send_all(requests, size)

    def rebalance(self) -> None:
        """Leave a connection that carries twice another's load, once nothing is in flight."""
        mux = self.mux
        if mux is not None and self.in_flight:
            lightest = self.server.choose()
            # A few dozen requests are one write either way: moving would only cost time.
            self.moving = lightest is not None and mux.load > 2 * lightest.load + 64

    def resume(self, now: float) -> None:
        """Send what waits, if nothing is in flight and the server has a connection."""
        waiting = self.waiting
        while waiting:
            if not self.in_flight:
                self.mux = self.server.choose()
                self.moving = False
            mux = self.mux
            if mux is None or mux.draining or self.moving:
                return
            request = waiting.popleft()
            self.server.waits_no_more(request)
            if mux.full:
                self._refuse(request, now)
            else:
                self.in_flight += 1
                mux.send(request)
        self.server.queue.pop(self, None)

    def take_back(self, requests: list[Request]) -> None:
        """Put requests of a lost connection at the head, in their order; nothing is in flight."""
        self.in_flight = 0
        self.mux = None
        for request in reversed(requests):
            request.sent = 0.0
            self.waiting.appendleft(request)
            self.server.waits(request)
        if self.waiting:
            self.server.queue[self] = None

    def divert(self, now: float) -> None:
        """The server takes no requests: hand back all that wait, drop what nobody waits for."""
        waiting, self.waiting = self.waiting, deque()
        self.server.queue.pop(self, None)
        for request in waiting:
            self.server.waits_no_more(request)
            if request.owner is not None:
                request.owner.unserved(request, now)
            else:
                request.end_unowned()

    def give_up(self, request: Request) -> None:
        """A request that waits here is not to be sent any more."""
        # Deadlines come in the order of arrival: in nearly all cases it is the first.
        self.waiting.remove(request)
        self.server.waits_no_more(request)
        if not self.waiting:
            self.server.queue.pop(self, None)

    def _wait(self, request: Request, now: float) -> None:
        if self.server.waits(request):
            self.waiting.append(request)
            self.server.queue[self] = None
        else:
            self.server.waits_no_more(request)
            self._refuse(request, now)

    def _refuse(self, request: Request, now: float) -> None:
        if request.owner is not None:
            request.owner.failed(request, Reason.OVERLOADED, now)
        else:
            request.end_unowned()
