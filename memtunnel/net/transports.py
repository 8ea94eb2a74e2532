"""TCP and unix transports that send at once, behind an ordinary reactor's interface.

Twisted's own transports put a write into a buffer, register with the poller, wait for the
next turn, send, and unregister: three system calls and a turn more than a `send` takes. Here
a write is tried right away when nothing is buffered; what the kernel does not take goes to
the reactor's buffer. Endpoints and all that is above stay ordinary Twisted:

    serverFromString(SendAtOnceReactor(reactor), "tcp:11211:interface=127.0.0.1")
"""

import os
import socket
import stat
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from fcntl import ioctl
from termios import FIONREAD
from typing import Any, Final

from twisted.internet import main, tcp, unix
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IReactorSocket,
    IReactorTCP,
    IReactorTime,
    IReactorUNIX,
)
from twisted.python.failure import Failure
from zope.interface import implementer

#: The shortest queue of connections that wait to be accepted: prefork workers and web requests
#: of PHP come in crowds.
BACKLOG = 1024
#: Bytes that are read at one time.
READ: Final = 64 * 1024
#: Seconds that a lookup may take before the last good addresses are used, if there are any.
PATIENCE = 1.0


class SendAtOnce:
    """Mixed into a `Connection`: `write` sends what the kernel takes now.

    It never calls out. An error is not acted upon: the bytes are left to the reactor, whose
    own attempt meets the same error in the next turn, where `connectionLost` cannot run in the
    middle of somebody's loop over answers.
    """

    dataBuffer: bytes
    offset: int
    connected: int
    disconnecting: int
    socket: socket.socket
    protocol: Any
    _tempDataLen: int
    _writeDisconnected: bool
    _writeDisconnecting: bool

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return len(self.dataBuffer) - self.offset + self._tempDataLen

    @property
    def arrived(self) -> int:
        """Bytes that the kernel has received and that were not delivered yet."""
        return int.from_bytes(ioctl(self.socket, FIONREAD, bytes(4)), sys.byteorder)

    def deliver_now(self) -> int:
        """Deliver some of that. Returns how many bytes; 0 for none now, or the stream's end."""
        try:
            data = self.socket.recv(READ)
        except OSError:
            return 0  # the reactor will meet it once more, as the end of the stream
        if data:
            self.protocol.dataReceived(data)
        return len(data)

    def doRead(self) -> Any:
        try:
            data = self.socket.recv(READ)
        except OSError as problem:
            return None if isinstance(problem, BlockingIOError) else main.CONNECTION_LOST
        if not data:
            return main.CONNECTION_DONE
        self.protocol.dataReceived(data)
        return None

    def write(self, data: bytes | bytearray) -> None:
        self.send(data)

    def send(self, data: bytes | bytearray) -> bool:
        """Write, and return whether the kernel took it all."""
        if (
            self.connected
            and not self.dataBuffer
            and not self._tempDataLen
            and not self.disconnecting
            and not self._writeDisconnecting
            and not self._writeDisconnected
            and data
        ):
            try:
                sent = self.socket.send(data)
            except OSError:
                sent = 0
            if sent == len(data):
                return True
            data = data[sent:]
        super().write(bytes(data))  # type: ignore[misc]
        return False


class Server(SendAtOnce, tcp.Server):
    """An accepted TCP connection."""


class UnixServer(SendAtOnce, unix.Server):
    """An accepted connection of a unix socket."""


class Client(SendAtOnce, tcp.Client):
    """A dialled TCP connection."""


class Port(tcp.Port):
    transport = Server


class UnixPort(unix.Port):
    transport = UnixServer


class OneByOne:
    """Mixed into a port that other processes may share: one client is accepted in each turn.

    Twisted takes up to a hundred together, so that the first process to wake would get nearly
    all of a crowd. One by one, whoever has time takes the next.
    """

    @property
    def numberAccepts(self) -> int:
        return 1

    @numberAccepts.setter
    def numberAccepts(self, number: int) -> None:
        """Twisted's own pace is not followed."""


class SharedPort(OneByOne, Port):
    """A port whose socket was inherited."""


class SharedUnixPort(OneByOne, UnixPort):
    """A unix port whose socket was inherited. Path, mode and lock are its maker's."""

    factory: Any
    _preexistingSocket: Any
    _shouldShutdown = False

    def startListening(self) -> None:
        self.socket, self._preexistingSocket = self._preexistingSocket, None
        self.fileno = self.socket.fileno  # type: ignore[method-assign]
        self.factory.doStart()
        self.connected = True
        self.startReading()  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure) -> None:
        tcp.Port.connectionLost(self, reason)


class Connector(tcp.Connector):
    def _makeTransport(self) -> Client:
        where = (self.host, self.port, self.bindAddress)
        return Client(*where, self, self.reactor)  # type: ignore[no-untyped-call]


def _clear(path: str) -> None:
    """Remove a unix socket whose maker was killed, with its lock; or our lock without a socket.

    Twisted goes by the number of the process in the lock. In a container the next one has the same
    number, so that the dead would seem to live for ever: here the kernel is asked who listens.
    Without a socket a lock with our number was made by another that had it.
    """
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except FileNotFoundError:
            if os.readlink(f"{path}.lock") == str(os.getpid()):
                os.remove(f"{path}.lock")
        except ConnectionRefusedError:
            if stat.S_ISSOCK(os.stat(path).st_mode):
                os.remove(path)
                os.remove(f"{path}.lock")


@implementer(IReactorTCP, IReactorUNIX, IReactorSocket, IReactorTime, IReactorPluggableNameResolver)
class SendAtOnceReactor:
    """A reactor whose TCP and unix connections send at once; all else is `reactor`'s."""

    def __init__(self, reactor: Any, resolver: Any = None) -> None:
        self._reactor = reactor
        self.nameResolver = resolver or reactor.nameResolver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Port:
        listening = Port(port, factory, max(backlog, BACKLOG), interface, self._reactor)
        listening.startListening()
        return listening

    def listenUNIX(
        self,
        address: Any,
        factory: Any,
        backlog: int = 50,
        mode: int = 0o660,
        wantPID: bool = False,
    ) -> UnixPort:
        if wantPID:
            _clear(os.fsdecode(address))
        listening = UnixPort(address, factory, max(backlog, BACKLOG), mode, self._reactor, wantPID)
        listening.startListening()  # type: ignore[no-untyped-call]
        return listening

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        adopt: Any
        if addressFamily == socket.AF_UNIX:
            adopt = SharedUnixPort._fromListeningDescriptor
            listening = adopt(self._reactor, fileDescriptor, factory)
        else:
            adopt = SharedPort._fromListeningDescriptor
            listening = adopt(self._reactor, fileDescriptor, addressFamily, factory)
        listening.startListening()
        return listening

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30,
        bindAddress: Any = None,
    ) -> Connector:
        connector = Connector(host, port, factory, timeout, bindAddress, self._reactor)
        connector.connect()
        return connector


@implementer(IHostResolution)
class _Resolution:
    def __init__(self, name: str) -> None:
        self.name = name
        self.done = False

    def cancel(self) -> None:
        """A system call that runs cannot be called back; its result is not waited for."""


@implementer(IHostnameResolver)
class Resolver:
    """Looks names up with the system's resolver, and remembers the last good addresses.

    Each lookup has a daemon thread of its own: a resolver that hangs then keeps nothing else
    waiting, and above all not the end of the process, as a thread pool's would.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._known: dict[tuple[str, int], list[IPv4Address | IPv6Address]] = {}
        self.took: dict[str, float] = {}
        """By name, seconds that the last lookup took."""

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[Any] | None = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        where = (hostName, portNumber)
        began = self._reactor.seconds()
        waiting: list[Any] = []

        def found(addresses: list[IPv4Address | IPv6Address]) -> None:
            if addresses:
                self._known[where] = addresses
            if resolution.done:
                return
            resolution.done = True
            for call in waiting:
                if call.active():
                    call.cancel()
            self.took[hostName] = self._reactor.seconds() - began
            for address in self._known.get(where, []):
                resolutionReceiver.addressResolved(address)
            resolutionReceiver.resolutionComplete()

        def look_up() -> None:
            addresses = addresses_of(hostName, portNumber)
            self._reactor.callFromThread(found, addresses)

        if where in self._known:
            # A resolver that hangs takes longer than a dial may.
            waiting.append(self._reactor.callLater(PATIENCE, found, []))
        try:
            threading.Thread(target=look_up, name="resolver", daemon=True).start()
        except RuntimeError:  # no thread to be had
            waiting.append(self._reactor.callLater(0, found, []))
        return resolution


def addresses_of(host: str, port: int) -> list[IPv4Address | IPv6Address]:
    """The TCP addresses of a name or an address literal; none where it is not found. Blocks."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    addresses: list[IPv4Address | IPv6Address] = []
    for family, _, _, _, where in found:
        if family == socket.AF_INET:
            addresses.append(IPv4Address("TCP", str(where[0]), int(where[1])))
        elif family == socket.AF_INET6:
            addresses.append(IPv6Address("TCP", str(where[0]), int(where[1])))
    return addresses
