"""A server that is far away: carries connections to a port of this machine, and takes its time.

    python benchmarks/delay.py PORT MILLISECONDS

PORT is the server's, MILLISECONDS the round trip. It prints the port that it listens on, and
runs until it is ended. Each direction takes half a round trip, and keeps the order of its bytes.
On loopback a TCP handshake is over at once. What a client sends within the first round trip is
therefore taken to leave at its end, when the handshake would have been over.

All traffic passes through here, so a turn has to be cheap and its times exact. epoll knows the
sockets, but rounds timeouts up to whole milliseconds; so select waits, for epoll alone. What is
under way is held without a bound, as on a long line.
"""

import contextlib
import heapq
import select
import socket
import sys
import time
from itertools import count

READ = 1 << 18
#: Seconds after which a socket that had no room is tried again.
AGAIN = 0.0002


class Direction:
    """What goes from one socket to another."""

    __slots__ = ("back", "ended", "ending", "leaves", "sink", "source", "unsent")

    back: "Direction"
    """The other direction of the same connection."""

    def __init__(self, source: socket.socket, sink: socket.socket, leaves: float) -> None:
        self.source = source
        self.sink = sink
        self.leaves = leaves
        """The time before which nothing leaves."""
        self.unsent = bytearray()
        """What has come over, and found no room."""
        self.ending = False
        """Whether the source's end has come over."""
        self.ended = False

    def send(self) -> None:
        """As much as there is room for; after all of it, the end."""
        try:
            if self.unsent:
                del self.unsent[: self.sink.send(self.unsent)]
            if self.ending and not self.unsent:
                self.ended = True
                self.sink.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:
            self.unsent.clear()  # the sink is gone, which the other direction will tell
        if self.ended and self.back.ended:
            self.source.close()
            self.sink.close()


class Line:
    """Listens on a port of its own, and connects all who come with the port `to`."""

    def __init__(self, to: int, round_trip: float) -> None:
        self._to = to
        self._round_trip = round_trip
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port: int = self._listening.getsockname()[1]
        self._epoll = select.epoll()
        self._epoll.register(self._listening, select.EPOLLIN)
        self._directions: dict[int, Direction] = {}
        """By the number of their source."""
        self._under_way: list[tuple[float, int, Direction, bytes | None]] = []
        """What arrives when, the first one first. Where there is no data, sending is due again."""
        self._number = count()

    def run(self) -> None:
        while True:
            wait = None
            if self._under_way:
                wait = max(0.0, self._under_way[0][0] - time.monotonic())
            select.select([self._epoll], [], [], wait)
            for number, _ in self._epoll.poll(0):
                direction = self._directions.get(number)
                if direction is None:
                    self._accept()
                else:
                    self._depart(direction)
            now = time.monotonic()
            while self._under_way and self._under_way[0][0] <= now:
                _, _, direction, data = heapq.heappop(self._under_way)
                self._arrive(direction, data)

    def _accept(self) -> None:
        near, _ = self._listening.accept()
        try:
            far = socket.create_connection(("127.0.0.1", self._to))
        except OSError:
            near.close()
            return
        there = Direction(near, far, time.monotonic() + self._round_trip)
        there.back = Direction(far, near, 0.0)
        there.back.back = there
        for direction in (there, there.back):
            direction.source.setblocking(False)
            direction.source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._directions[direction.source.fileno()] = direction
            self._epoll.register(direction.source, select.EPOLLIN)

    def _depart(self, direction: Direction) -> None:
        try:
            data = direction.source.recv(READ)
        except ConnectionError:
            data = b""
        if not data:
            del self._directions[direction.source.fileno()]
            self._epoll.unregister(direction.source)
        leaves = max(direction.leaves, time.monotonic())
        self._expect(leaves + self._round_trip / 2, direction, data)

    def _arrive(self, direction: Direction, data: bytes | None) -> None:
        if data is not None:
            waits = bool(direction.unsent)
            direction.unsent += data
            direction.ending = not data
            if waits:
                return
        direction.send()
        if direction.unsent:
            self._expect(time.monotonic() + AGAIN, direction, None)

    def _expect(self, when: float, direction: Direction, data: bytes | None) -> None:
        heapq.heappush(self._under_way, (when, next(self._number), direction, data))


def main() -> None:
    port, milliseconds = sys.argv[1:]
    line = Line(int(port), float(milliseconds) / 1000)
    print(line.port, flush=True)
    line.run()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
