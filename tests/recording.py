"""What the tests of the core put around it: an owner, counts, and the server's end of a connection.

Each insists on what the real one's contract says, so that a test cannot pass by its laxity.
"""

from collections.abc import Callable
from typing import Any

from memtunnel.core.lane import Lane
from memtunnel.core.mux import Multiplexer
from memtunnel.core.outcomes import Reason
from memtunnel.core.request import Request, one_by_one
from memtunnel.wire.binary import (
    HEADER_LENGTH,
    LOUD,
    RULES,
    Frame,
    Opcode,
    Status,
    answer,
    request,
    split,
)

UNSERVED = "unserved"


def bare(frame: bytes) -> bytes:
    """A frame without its opaque: some answers bear the owner's, others the connection's."""
    return frame[:12] + frame[16:]


class Recorder:
    """An `Owner` that notes outcomes, and insists that each request of its has one at most."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[Request, bytes | Reason | str]] = []
        """In their order: the answer's (last) frame, bare; why there is none; or `UNSERVED`."""
        self.statistics: list[tuple[Request, bytes]] = []
        """The frames of STATs but their last."""
        self.growth: list[tuple[Request, int]] = []
        self.runs: list[list[Request]] = []
        """Requests that were answered together, even if it was only one."""

    def answered(
        self, request: Request, status: int, data: bytes, start: int, stop: int, now: float
    ) -> None:
        frame = data[start:stop]
        ((_, opcode, said, *_),), rest = split(frame)
        assert (opcode, said, rest) == (LOUD[request.opcode], status, b"")
        if opcode == Opcode.STAT and not status and len(frame) > HEADER_LENGTH:
            assert request.answer is None
            self.statistics.append((request, frame))
        else:
            self._settle(request, bare(frame))

    def all_answered(
        self, requests: list[Request], data: bytearray, start: int, stop: int, now: float
    ) -> None:
        frames = split(bytes(data[start:stop]))[0]
        assert [frame.opaque for frame in frames] == [request.opaque for request in requests]
        self.runs.append(requests)
        one_by_one(self.answered, requests, data, start, now)

    def failed(self, request: Request, reason: Reason, now: float) -> None:
        self._settle(request, Reason(reason))

    def unserved(self, request: Request, now: float) -> None:
        assert not request.sent
        self._settle(request, UNSERVED)

    def growing(self, request: Request, size: int) -> None:
        assert request.answer is None
        assert size
        request.size += size
        self.growth.append((request, size))

    def _settle(self, request: Request, outcome: bytes | Reason | str) -> None:
        assert request.answer is None, "settled twice"
        request.answer = outcome if isinstance(outcome, bytes) else b""
        self.outcomes.append((request, outcome))

    def outcome(self, request: Request) -> bytes | Reason | str | None:
        """What became of a request; None as long as nothing did."""
        outcomes = [outcome for settled, outcome in self.outcomes if settled is request]
        return outcomes[0] if outcomes else None

    def failures(self) -> list[tuple[bytes, Reason | str]]:
        """The keys (see `ask`) of requests that got no answer, and why, in their order."""
        return [
            (settled.opaque, outcome)
            for settled, outcome in self.outcomes
            if not isinstance(outcome, bytes)
        ]


class Counts:
    """`ServerCounts` that keep nothing but the numbers of a server's own."""

    def __init__(self) -> None:
        self.failovers = 0
        self.retries: dict[str, int] = {}

    def answered(
        self,
        command: int,
        status: int,
        arrived: float,
        sent: float,
        received: float,
        now: float,
        number: int = 1,
    ) -> None:
        raise AssertionError("settled requests are counted by their owners")


def ask(
    owner: Recorder | None,
    opcode: int,
    key: bytes = b"aaaa",
    *,
    lane: Lane | None = None,
    value: bytes = b"",
    arrived: float = 1.0,
) -> Request:
    """A whole request as a session makes it: `key` is four bytes long, and its opaque too."""
    assert len(key) == 4
    rule = RULES[opcode]
    assert rule is not None
    frame = request(
        LOUD[opcode],
        key if rule.longest_key else b"",
        extras=bytes(rule.extras[0]),
        value=value,
        opaque=key,
    )
    return Request(owner, lane, opcode, key, frame, len(frame), arrived)


class Peer:
    """The server's end of the connection of a multiplexer."""

    def __init__(
        self,
        *,
        first_opaque: int = 0x11223344,
        wake: Callable[[], None] = lambda: None,
        max_value: int = 1024 * 1024,
    ) -> None:
        self.mux = Multiplexer(first_opaque, wake, max_value)
        self.asked: list[Frame] = []
        """All requests that were written, in their order."""

    def read(self, now: float = 2.0) -> list[bytes]:
        """Let the multiplexer write; the keys of what it wrote."""
        frames, rest = split(self.mux.take(now))
        assert rest == b""
        self.asked += frames
        return [frame.key for frame in frames]

    def answer(self, of: bytes, status: int = Status.OK, **body: Any) -> bytes:
        """The frame that answers the last request whose key is `of`."""
        asked = next(frame for frame in reversed(self.asked) if frame.key == of)
        return answer(asked.opcode, asked.opaque, status, **body)

    def reply(self, *keys: bytes, status: int = Status.OK, now: float = 3.0) -> int:
        """Answer the last requests of these keys, in this order, in one go."""
        return self.mux.receive(b"".join(self.answer(key, status) for key in keys), now)
