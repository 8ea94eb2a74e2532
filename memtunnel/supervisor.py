"""The processes around the tunnel: the service manager that is told how it stands, and one that it
outlives.

systemd's protocol (sd_notify(3)) is one datagram for each change, to the socket that it names.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from zope.interface import implementer

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
ALIVE: Final = "WATCHDOG=1"


def reloading() -> str:
    """What is said when new settings are about to be read; `READY` follows when they are."""
    return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"


def _patience(environ: Mapping[str, str]) -> float | None:
    """What is granted to this very process: the variables may be inherited from another one."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    pid = str(os.getpid())
    if environ.get("WATCHDOG_PID", pid) != pid or not microseconds.isdecimal():
        return None
    return int(microseconds) / 1e6 or None


class Manager:
    """The service manager, if `environ` names one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A name that begins with @ has no file: the kernel wants a NUL there.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.patience = _patience(environ)
        """Seconds after which one that said nothing is ended; None where nobody watches."""

    @property
    def listens(self) -> bool:
        return bool(self._address)

    def tell(self, state: str) -> None:
        """Say how the tunnel stands; where nobody can be told, that is no trouble."""
        if self._address:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
                speaker.setblocking(False)  # one that does not listen keeps nobody waiting
                speaker.connect(self._address)
                speaker.send(state.encode())

    def reassure(self, reactor: Any, responsive: Callable[[], bool]) -> None:
        """Say that the tunnel lives, twice in the time that is granted, as long as it does.

        It is said in a turn of the reactor's: one that hangs says nothing, and neither does one
        that is not `responsive`.
        """
        if self.patience is not None:
            loop = LoopingCall(lambda: self.tell(ALIVE) if responsive() else None)
            loop.clock = reactor
            loop.start(self.patience / 2)


@implementer(IReadDescriptor)
class WatchedProcess:
    """A process whose end is told to `ended`, once.

    Raises OSError where there is no such process, or no way to watch one.
    """

    def __init__(self, reactor: Any, pid: int, ended: Callable[[], None]) -> None:
        self._reactor = reactor
        self._ended = ended
        self._descriptor = os.pidfd_open(pid)
        self.lives = True
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._descriptor

    def doRead(self) -> None:
        self.lives = False
        self.forget()
        self._ended()

    def forget(self) -> None:
        """Watch it no more."""
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops."""

    def logPrefix(self) -> str:
        return "watched process"
