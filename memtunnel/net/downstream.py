"""The local listeners and their clients' connections.

A `Downstream` carries bytes between a transport and a `Session`: it decides when the client is
read from, and how a connection ends. What the bytes mean is the session's business.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from typing import Protocol as Interface

from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from memtunnel.core.answers import CHOKED_BYTES
from memtunnel.core.answers import ListenerCounts as SessionCounts
from memtunnel.core.binary_session import BinarySession
from memtunnel.core.session import Session
from memtunnel.core.text_session import TextSession
from memtunnel.core.tunnel import Tunnel
from memtunnel.net.turn import Turn
from memtunnel.wire.binary import REQUEST_MAGIC

#: Seconds that a client may stop in the middle of a frame.
PARTIAL_TIMEOUT: Final = 10.0
#: Seconds that a client may leave its answers unread.
UNREAD_TIMEOUT: Final = 30.0
#: Seconds that a client is given to close after we have.
LINGER: Final = 1.0
#: Seconds between two lines about the same mistake of clients.
REMINDER: Final = 60.0

#: What clients do wrong that only their owner can mend.
_NOTICES: Final = {
    "login_refused": "a client's login was refused: it is not the one that the tunnel was given",
    "passed_login_refused": "a client's login was refused by the servers",
    "max_logins": "a client's login was refused: --max-logins is reached",
    "max_clients": "a client was refused: --max-clients is reached",
}


def _nothing() -> None:
    """Nobody wants to know."""


class ListenerCounts(SessionCounts, Interface):
    """What is counted for a listener; `ops.metrics` has the real one."""

    opened: int
    connections: int
    rejected: dict[str, int]


@implementer(IHalfCloseableProtocol, IPushProducer)
class Downstream(Protocol):
    """One local client's connection."""

    transport: Any

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._counts = listener.counts
        self._tunnel = listener.tunnel
        self._turn = listener.turn
        self._seconds = listener.seconds
        self.session: Session = BinarySession(listener.tunnel, listener.counts, self)
        """Of the other protocol, if the first byte says so."""
        self._began = False
        self.write: Callable[[bytes | bytearray], bool]
        """The transport's own, so that an answer takes no detour."""
        self._ended = False
        """Whether the client has closed its side."""
        self._stopping = False
        """Whether the tunnel stops."""
        self._rest = 0
        """Bytes that had arrived then and are yet to be taken."""
        self._waiting = False
        """Whether frames are held back for the next turn."""
        self._counts_anew = False
        """Whether they are held back because of the client itself, not for others' turn."""
        self._closing = False
        """Whether our side is closed, or will be once all is written."""
        self._linger: Any = None
        self._unread_since = 0.0

    def connectionMade(self) -> None:
        self.write = self.transport.send
        self._listener.opened(self)
        handle = self.transport.getHandle()
        self._quick = handle.setsockopt if handle.family != socket.AF_UNIX else None
        if self._quick is not None:
            self.transport.setTcpNoDelay(True)
            self._acknowledge()
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        # What comes after the end is read and discarded: a close with unread input would cut
        # the answer short.
        if not self._began:
            self._began = True
            if data[0] != REQUEST_MAGIC:
                self.session = TextSession(self._tunnel, self._counts, self)
        if self.session.receive(data, self._turn.now):
            self._after_read()

    def look(self) -> None:
        """See what follows from what was written, or needs no answer any more."""
        session = self.session
        if session.unread or self.transport.unsent:
            self._note_unread()
        if session.paused:
            self._go_on()
        if session.finishing and session.finished and not self._closing and not session.gone:
            self._close()

    def _after_read(self) -> None:
        """See to it that the client sends on, or does not, and that answers are written."""
        session = self.session
        if session.awaits_more or session.intake.since:
            self._acknowledge()
        if session.held or session.full:
            self._hold()
        self._tunnel.flush()

    def notice(self, what: str) -> None:
        self._listener.notice(what)

    def readConnectionLost(self) -> None:
        """The client has sent all it will; it may still read."""
        self._ended = True
        if self._closing:
            self._drop()
            return
        self.session.finish()
        self._tunnel.flush()

    def writeConnectionLost(self) -> None:
        """Our side is closed, as `_close` asked."""
        if self._ended:
            self._drop()
        else:
            self._linger = self._listener.call_later(LINGER, self._drop)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_lingering()
        self._set_unread(0)
        self.session.lose(self._seconds())
        self._listener.closed(self)
        self._tunnel.flush()

    # Back-pressure

    def pauseProducing(self) -> None:
        """The transport holds more than it likes; the bounds are looked at after each write."""

    def resumeProducing(self) -> None:
        """The client has read all there was."""
        self._set_unread(0)
        if self.session.paused:
            self._go_on()

    def stopProducing(self) -> None:
        """The transport is gone; `connectionLost` says so too."""

    def tick(self, now: float) -> None:
        """Give up a client that stopped in mid-frame, or does not read."""
        session = self.session
        since = session.intake.since
        if since and not session.paused and now - since > PARTIAL_TIMEOUT:
            self._listener.gave_up("partial_frame")
            self.transport.abortConnection()
        elif self._unread_since:
            self._note_unread()
            if self._unread_since and now - self._unread_since > UNREAD_TIMEOUT:
                self._listener.gave_up("unread")
                self.transport.abortConnection()

    def finish(self) -> None:
        """The tunnel stops: take what has arrived, answer it, then close."""
        self._stopping = True
        self._rest = self.transport.arrived
        if not self.session.paused:
            self._take_rest()

    def _take_rest(self) -> None:
        """Take what had arrived when the tunnel stopped, as far as the session has room."""
        while self._rest > 0 and not self.session.paused:
            delivered = self.transport.deliver_now()
            if not delivered:
                break
            self._rest -= delivered
        if not self.session.paused:
            self.session.finish()

    def _note_unread(self) -> None:
        unread = self.transport.unsent
        if unread < self.session.unread or not self._unread_since:
            # It reads, if slowly.
            self._unread_since = self._seconds()
        self._set_unread(unread)
        if self.session.full:
            self._hold()

    def _set_unread(self, unread: int) -> None:
        session = self.session
        budget = self._tunnel.budget
        budget.used += unread - session.unread
        session.unread = unread
        session.choked = unread > CHOKED_BYTES or (unread > 0 and budget.exhausted)
        if not unread:
            self._unread_since = 0.0

    def _hold(self) -> None:
        """Read nothing more for now."""
        if not self.session.paused:
            self.session.paused = True
            self._listener.paused += 1
            self.transport.pauseProducing()
        self._go_on()

    def _go_on(self) -> None:
        """Take held frames in the next turn, and read again, once the session has room."""
        if self.session.full:
            own = self.session.unread > 0 or self.session.pending is not None
            self._counts_anew = self._counts_anew or own
        elif not self._waiting:
            self._waiting = True
            self._turn.at_end(self._take_turn)

    def _take_turn(self) -> None:
        self._waiting = False
        session = self.session
        if session.gone:
            return
        if session.full:
            self._go_on()  # notes why; the next flush comes back here
            return
        if session.held:
            # A client that does not read has itself to blame for the wait, and one that sends
            # on before it is logged in has no answer to wait for yet.
            session.go_on(self._seconds(), anew=self._counts_anew)
            self._counts_anew = False
        if session.held:
            self._go_on()
        elif session.paused and not session.full:
            session.paused = False
            self._listener.paused -= 1
            self.transport.resumeProducing()
            if session.intake.since:
                session.intake.since = self._seconds()  # it stood still while we did not read
            if self._stopping:
                self._take_rest()
            elif self._ended:
                session.finish()
        self._tunnel.flush()

    # The end

    def _close(self) -> None:
        """Close our side once all is written, and wait a moment for the client's."""
        self._closing = True
        if self.session.paused:
            self.session.paused = False
            self._listener.paused -= 1
            self.transport.resumeProducing()
        self.transport.unregisterProducer()
        self.transport.loseWriteConnection()

    def _drop(self) -> None:
        self._stop_lingering()
        self.transport.loseConnection()

    def _stop_lingering(self) -> None:
        if self._linger is not None and self._linger.active():
            self._linger.cancel()

    def _acknowledge(self) -> None:
        """Acknowledge now what was read.

        A client with Nagle's algorithm on that has more to send before it gets an answer (the
        NOOP that ends a multi-get) waits 40 ms for the acknowledgement otherwise.
        """
        if self._quick is not None:
            with suppress(OSError):  # the connection is going; its end is told elsewhere
                self._quick(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class Refusing(Factory):
    """A listening address where no client is taken: each is closed at once."""

    noisy = False

    def __init__(self, reactor: Any) -> None:
        self.seconds: Callable[[], float] = reactor.seconds
        self._log = Logger(namespace="memtunnel")
        self.address = ""
        """Where it listens; set, as `counts` is, when that is known."""
        self.counts: ListenerCounts
        self._said: dict[str, float] = {}

    def logPrefix(self) -> str:
        """What Twisted's log calls the port."""
        return "memtunnel"

    def buildProtocol(self, addr: Any) -> Any:
        self._reject("max_clients")

    def notice(self, what: str) -> None:
        """Say what clients do wrong: each kind once in a while."""
        now = self.seconds()
        if now - self._said.get(what, -REMINDER) >= REMINDER:
            self._said[what] = now
            self._log.warn(
                "{listener}: {_words}",
                event="refused",
                listener=self.address,
                reason=what,
                _words=_NOTICES[what],
            )

    def _reject(self, reason: str) -> None:
        self.counts.rejected[reason] = self.counts.rejected.get(reason, 0) + 1
        self.notice(reason)


class Listener(Refusing):
    """The clients of one listening address, bounded together with all others' by `room`."""

    def __init__(
        self,
        tunnel: Tunnel,
        turn: Turn,
        reactor: Any,
        room: Callable[[], bool],
    ) -> None:
        super().__init__(reactor)
        self.tunnel = tunnel
        self.turn = turn
        self.call_later = reactor.callLater
        self._room = room
        self.clients: dict[Downstream, None] = {}
        self.paused = 0
        self.changed: Callable[[], None] = _nothing
        """Called when there is a client more, or one less."""

    def buildProtocol(self, addr: Any) -> Any:
        return Downstream(self) if self._room() else super().buildProtocol(addr)

    def opened(self, client: Downstream) -> None:
        self.clients[client] = None
        self.counts.opened += 1
        self.counts.connections += 1
        self.changed()

    def closed(self, client: Downstream) -> None:
        del self.clients[client]
        self.counts.connections -= 1
        if client.session.paused:
            self.paused -= 1
        self.changed()

    def gave_up(self, reason: str) -> None:
        """A client was aborted."""
        self.counts.protocol_errors[reason] = self.counts.protocol_errors.get(reason, 0) + 1

    def tick(self, now: float) -> None:
        """Look for clients to give up, once a second or so."""
        for client in list(self.clients):
            client.tick(now)
