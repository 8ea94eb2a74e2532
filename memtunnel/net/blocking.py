"""A blocking conversation with one server, for tools that have no reactor.

A name is looked up, an address connected, TLS spoken over it, and one question asked at a
time. Left to others: whom to trust (`net.tls`), and what the answers mean. Whatever goes wrong
is `Trouble`.
"""

import contextlib
import socket
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, NamedTuple, TypeVar

from OpenSSL import SSL

from memtunnel.net.tls import is_clear_text, words_of
from memtunnel.wire import binary
from memtunnel.wire.binary import Frame

#: Bytes of the largest answer that is waited for: those to a tool's questions are small.
LIMIT: Final = 64 << 10
_CHUNK: Final = 16 << 10

_CLOSED: Final = "the server closed the connection"
_NONSENSE: Final = "the server said something that answers no request"

_T = TypeVar("_T")


class Trouble(Exception):
    """What was tried has failed; the message says how."""


class Deadline:
    """So many seconds from now. Several calls may share them; `missed` is what to say then."""

    __slots__ = ("_until", "missed")

    def __init__(self, seconds: float, missed: str = "") -> None:
        self._until = time.monotonic() + seconds
        self.missed = missed or f"no answer within {seconds:g} s"

    def left(self) -> float:
        """The seconds left. Raises `TimeoutError` where there are none."""
        seconds = self._until - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds


class Address(NamedTuple):
    """Where a name has led."""

    family: socket.AddressFamily
    where: tuple[Any, ...]
    """As `socket.connect` takes it: the address and the port come first."""


def look_up(host: str, port: int, timeout: float) -> list[Address]:
    """The addresses of a host, within `timeout` seconds. Raises `Trouble`."""
    answers: SimpleQueue[list[Any] | OSError] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            answers.put(error)

    # The system's resolver knows no deadline.
    Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=timeout)
    except Empty:
        raise Trouble(f"the name {host} was not looked up within {timeout:g} s") from None
    if isinstance(answer, OSError):
        raise Trouble(f"the name {host} is not found: {words_of(answer)}")
    return [Address(family, where) for family, _, _, _, where in answer]


def connect(address: Address, deadline: Deadline) -> socket.socket:
    """A TCP connection. Raises `Trouble`."""
    connected = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        connected.settimeout(deadline.left())
        connected.connect(address.where)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        connected.close()
        raise _trouble(error, deadline) from None
    return connected


class Channel:
    """TLS over a blocking socket, asking one question at a time.

    What takes a deadline raises `Trouble`.
    """

    __slots__ = ("_asked", "_connection", "_socket")

    def __init__(self, connected: socket.socket, connection: SSL.Connection) -> None:
        self._socket = connected
        self._connection = connection
        self._asked = 0
        connection.set_connect_state()

    def handshake(self, deadline: Deadline) -> None:
        self._do(self._connection.do_handshake, deadline)

    def ask(self, deadline: Deadline, opcode: int, key: bytes = b"", value: bytes = b"") -> Frame:
        """Send a request, and wait for its answer."""
        self._asked += 1
        opaque = self._asked.to_bytes(4, "big")
        request = binary.request(opcode, key, value=value, opaque=opaque)
        self._do(lambda: self._connection.send(request), deadline)
        data = b""
        frames: list[Frame] = []
        while not frames:
            data += self._do(lambda: self._connection.recv(_CHUNK), deadline)
            try:
                frames, rest = binary.split(data)
            except ValueError:
                raise Trouble(_NONSENSE) from None
            if len(data) > LIMIT:
                raise Trouble(_NONSENSE)
        answer = frames[0]
        told = (answer.magic, answer.opcode, answer.opaque)
        if len(frames) > 1 or rest or told != (binary.ANSWER_MAGIC, opcode, opaque):
            raise Trouble(_NONSENSE)
        return answer

    def close(self) -> None:
        """Say goodbye, if that can be done at once, and close."""
        with contextlib.suppress(SSL.Error, OSError):
            self._connection.shutdown()
            self._socket.setblocking(False)
            self._socket.sendall(self._connection.bio_read(_CHUNK))
        self._socket.close()

    def _do(self, step: Callable[[], _T], deadline: Deadline) -> _T:
        try:
            while True:
                try:
                    result = step()
                except SSL.WantReadError:
                    self._push(deadline)
                    self._pull(deadline)
                else:
                    self._push(deadline)
                    return result
        except SSL.ZeroReturnError:
            raise Trouble(_CLOSED) from None
        except SSL.Error as error:
            with contextlib.suppress(OSError):
                self._push(deadline)  # the alert that tells the server why
            raise _trouble(error, deadline) from None
        except OSError as error:
            raise _trouble(error, deadline) from None

    def _push(self, deadline: Deadline) -> None:
        with contextlib.suppress(SSL.WantReadError):
            while data := self._connection.bio_read(_CHUNK):
                self._socket.settimeout(deadline.left())
                self._socket.sendall(data)

    def _pull(self, deadline: Deadline) -> None:
        self._socket.settimeout(deadline.left())
        data = self._socket.recv(_CHUNK)
        if not data:
            raise Trouble(_CLOSED)
        self._connection.bio_write(data)


def _trouble(error: OSError | SSL.Error, deadline: Deadline) -> Trouble:
    if isinstance(error, TimeoutError):
        return Trouble(deadline.missed)
    if isinstance(error, ConnectionRefusedError):
        return Trouble("refused: nothing listens there")
    if is_clear_text(error):
        return Trouble("the server does not speak TLS on this port: give the one that does")
    return Trouble(words_of(error))
