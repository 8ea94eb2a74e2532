"""One request, from its last byte's arrival to its answer.

A request is *waiting* (in its lane), *unsent* or *in flight* (with a multiplexer), and at last
*settled* (its answer is known, and the deadline no longer looks at it). One that was given up
while in flight is a *tombstone*: nobody owns it, and its late answer is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from memtunnel.wire.binary import HEADER_LENGTH
from memtunnel.wire.command import Reply

if TYPE_CHECKING:
    from memtunnel.core.lane import Lane
    from memtunnel.core.mux import Multiplexer
    from memtunnel.core.outcomes import Reason


class Owner(Protocol):
    """Who made a request, and is told its outcome: one of these, once (STAT's frames apart)."""

    def answered(
        self, request: Request, status: int, data: bytes, start: int, stop: int, now: float
    ) -> None:
        """The server's answer is the frame ``data[start:stop]``."""

    def all_answered(
        self, requests: list[Request], data: bytearray, start: int, stop: int, now: float
    ) -> None:
        """Loud requests have succeeded: their answers are the frames ``data[start:stop]``.

        They are in the order of `requests`, and bear the owner's opaques already.
        """

    def failed(self, request: Request, reason: Reason, now: float) -> None:
        """There will be no answer from a server."""

    def unserved(self, request: Request, now: float) -> None:
        """Its server takes no requests now; nothing of it was written."""

    def growing(self, request: Request, size: int) -> None:
        """The header of an answer of `size` bytes has come, the rest of it is on its way.

        A negative `size` takes that back: the answer was lost, and the request is sent again.
        """


class Request:
    """A request frame on its way.

    `opcode` and `opaque` (four bytes) are its owner's; `frame` is what goes upstream, in the
    loud form; once that is written only what has its key is kept, which is all of what reads, and
    nothing once it is answered.
    `size` is its length in bytes, and that of its answer once that is coming. Times are seconds of
    the monotonic clock; `sent` is 0 until the frame was handed to a transport.
    """

    # A plain class, not a dataclass: one is made for every frame (0.19 µs), and some of its slots
    # stay empty where they are not needed.
    __slots__ = (
        "answer",
        "arrived",
        "connection",
        "fixed",
        "frame",
        "lane",
        "mux",
        "opaque",
        "opcode",
        "owner",
        "received",
        "reply",
        "retried",
        "sent",
        "size",
        "status",
    )

    connection: int
    """The number of the connection that it was written to; set together with `sent`."""
    reply: Reply
    """How its outcome is told; set only by who does not pass on frames."""
    received: float
    """When its answer was parsed; set only where the answer has to wait for others."""
    status: int
    """Index in `outcomes.STATUS_WORDS`; set together with `received`."""

    def __init__(
        self,
        owner: Owner | None,
        lane: Lane | None,
        opcode: int,
        opaque: bytes,
        frame: bytes | None,
        size: int,
        arrived: float,
    ) -> None:
        self.owner = owner
        self.lane = lane
        self.opcode = opcode
        self.opaque = opaque
        self.frame = frame
        self.size = size
        self.arrived = arrived
        self.sent = 0.0
        self.answer: bytes | None = None
        self.mux: Multiplexer | None = None
        self.retried = False
        self.fixed = False
        """Whether it moves to no other server any more, whatever becomes of this one."""

    def end_unowned(self) -> None:
        """Nobody waits for its outcome: the deadline need look at it no more.

        A reply that was made up for it before may still wait for its turn, and stays.
        """
        if self.answer is None:
            self.answer = b""


def one_by_one(
    answered: Callable[[Request, int, bytes, int, int, float], None],
    requests: list[Request],
    data: bytearray,
    start: int,
    now: float,
) -> None:
    """Tell of successes as of any other answers: `answered` is the owner's."""
    for request in requests:
        stop = start + HEADER_LENGTH + int.from_bytes(data[start + 8 : start + 12], "big")
        answered(request, 0, bytes(data[start:stop]), 0, stop - start, now)
        start = stop
