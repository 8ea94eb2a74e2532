"""One connection to a server, from dialling to lost.

It is warm only after TCP, TLS with chain and name, SASL, and one NOOP that came back. What it
carries is its multiplexer's business, how many there should be its pool's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, cast
from typing import Protocol as Interface

from cryptography import x509
from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IHandshakeListener, IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from memtunnel.core.deadlines import LONGEST, RATE
from memtunnel.core.mux import Multiplexer
from memtunnel.core.outcomes import NO_LOGINS, Distrust, Lost, Reason
from memtunnel.core.request import Request, one_by_one
from memtunnel.core.server import Server
from memtunnel.core.tunnel import Tunnel
from memtunnel.net.tls import Expectation, TLSFactory, Untrusted, is_clear_text, words_of
from memtunnel.net.turn import Turn
from memtunnel.wire import binary
from memtunnel.wire.binary import HEADER_LENGTH, Opcode, Status
from memtunnel.wire.sasl import MECHANISM, Credentials

#: The longest TLS record, in bytes. One that a request does not fill ends where a request ends:
#: memcached 1.6.18 reads a value across records, then waits for the socket while the next
#: request lies decrypted in OpenSSL.
RECORD: Final = 16 * 1024
#: Seconds of silence with answers owed after which a connection is given up.
SILENCE: Final = 1.0
#: Seconds without traffic after which a NOOP is sent.
HEARTBEAT: Final = 10.0
#: Seconds that a server has to answer the end of TLS.
FAREWELL: Final = 1.0

#: A key that is asked for to see whether a stalled server answers again.
PROBE_KEY: Final = b"memtunnel:probe"

#: What libmemcached takes for a version: it reads into 32 bytes, and wants numbers first, the
#: major one from 1 to 255.
_VERSION: Final = re.compile(rb"([1-9][0-9]{0,2})\.[0-9]+\.[0-9]+[^\x00-\x20]*")


class State(StrEnum):
    DIALLING = "dialling"
    HANDSHAKE = "handshake"
    LOGIN = "login"
    PROBE = "probe"
    WARM = "warm"
    DRAINING = "draining"
    LOST = "lost"


#: From each state, those that may follow.
TRANSITIONS: Final[dict[State, frozenset[State]]] = {
    State.DIALLING: frozenset((State.HANDSHAKE, State.LOST)),
    State.HANDSHAKE: frozenset((State.LOGIN, State.PROBE, State.LOST)),
    State.LOGIN: frozenset((State.PROBE, State.LOST)),
    State.PROBE: frozenset((State.WARM, State.LOST)),
    State.WARM: frozenset((State.DRAINING, State.LOST)),
    State.DRAINING: frozenset((State.LOST,)),
    State.LOST: frozenset(),
}


class Observer(Interface):
    """A connection's life and its phases are counted here; `ops.metrics` has the real one."""

    sent_bytes: int
    received_bytes: int

    def phase(self, name: str, seconds: float) -> None:
        """A phase of the set-up took so long: dns, tcp, tls, auth or probe."""


class Keeper(Interface):
    """Who is told of a connection's fate: its pool."""

    def connection_warm(self, upstream: Upstream) -> None: ...

    def connection_lost(self, upstream: Upstream, lost: Lost, words: str, kind: str) -> None:
        """`words` say more than `lost` does, and may be empty; `kind` is that of a desync."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to dial, and as whom. `connect_timeout` is from dialling to warm, in seconds.

    A connection that was made for one target does for each that equals it.
    """

    host: str
    port: int
    expectation: Expectation
    credentials: Credentials | None
    connect_timeout: float = field(compare=False)
    max_value_size: int
    address: str
    """Host and port, in writing."""
    only_trust: bool = False
    """Only look whether its certificate can be trusted: there is no login to go on with."""


@implementer(IHandshakeListener, IPushProducer)
class Upstream(Protocol):
    """`reactor` sends at once; `first_opaque` is random; `number` is for people."""

    transport: Any

    def __init__(
        self,
        target: Target,
        server: Server,
        tunnel: Tunnel,
        keeper: Keeper,
        observer: Observer,
        reactor: Any,
        turn: Turn,
        first_opaque: int,
        number: int = 0,
    ) -> None:
        self.target = target
        self._server = server
        self._tunnel = tunnel
        self._keeper = keeper
        self._observer = observer
        self._reactor = reactor
        self._seconds: Callable[[], float] = reactor.seconds
        self.mux = Multiplexer(
            first_opaque, lambda: turn.at_end(self.flush), target.max_value_size, number
        )
        self._handshake = target.expectation.handshake()
        self._attempt: Deferred[Any] | None = None
        self._deadline: Any = None
        self._paused = False
        self.was_warm = False
        """Whether it ever carried requests."""
        self.state = State.DIALLING
        self.certificate: x509.Certificate | None = None
        self.tls_version = ""
        self.tls_cipher = ""
        self.began = self._phase_began = reactor.seconds()
        self.warm_since = 0.0
        self.retires = float("inf")
        """When its pool will replace it."""
        self._progress = self.began
        self._unsent = 0

    # From dialling to warm

    def dial(self) -> None:
        """Begin. The keeper is told how it ends, once."""
        target = self.target
        self._deadline = self._reactor.callLater(
            target.connect_timeout, self._lose, Lost.SETUP_TIMEOUT
        )
        factory: Any = TLSFactory(cast(Any, self._handshake), True, cast(Any, _Once(self)))
        endpoint = HostnameEndpoint(
            self._reactor, target.host, target.port, target.connect_timeout, attemptDelay=0.1
        )
        self._attempt = endpoint.connect(factory)
        self._attempt.addErrback(self._dial_failed)

    def connectionMade(self) -> None:
        """TCP is there. Nothing is written: the certificate was not seen yet."""
        if self.state is not State.DIALLING:
            self.transport.abortConnection()
            return
        now = self._seconds()
        took = self._reactor.nameResolver.took.get(self.target.host, 0.0)
        self._observer.phase("dns", took)
        self._observer.phase("tcp", max(0.0, now - self.began - took))
        self._move(State.HANDSHAKE)
        self._phase_began = now
        self.transport.setTcpNoDelay(True)
        self.transport.setTcpKeepAlive(True)
        self.transport.registerProducer(self, True)

    def handshakeCompleted(self) -> None:
        if self.state is not State.HANDSHAKE:
            return
        connection: SSL.Connection = self.transport.getHandle()
        try:
            self.certificate = self._handshake.verify(connection)
        except Untrusted as problem:
            self._lose(problem.lost, str(problem))
            return
        except Exception as problem:
            self._lose(Lost.CERTIFICATE_CHAIN, f"the certificate cannot be checked: {problem}")
            return
        self.tls_version = connection.get_protocol_version_name()
        self.tls_cipher = connection.get_cipher_name() or ""
        self._phase("tls")
        credentials = self.target.credentials
        if self.target.only_trust:
            self._lose(Lost.RETIRED)
        elif credentials is None:
            self._probe()
        else:
            self._move(State.LOGIN)
            message = credentials.initial_response()
            self._ask(Opcode.SASL_AUTH, binary.request(Opcode.SASL_AUTH, MECHANISM, value=message))

    def _probe(self) -> None:
        self._move(State.PROBE)
        self._ask(Opcode.VERSION, binary.request(Opcode.VERSION))
        self._ask(Opcode.NOOP, binary.request(Opcode.NOOP))

    def _ask(self, opcode: int, frame: bytes) -> None:
        """Send a request of the connection's own."""
        request = Request(self, None, opcode, bytes(4), frame, len(frame), self._seconds())
        self.mux.send(request)

    def answered(
        self, request: Request, status: int, data: bytes, start: int, stop: int, now: float
    ) -> None:
        if request.opcode == Opcode.VERSION:
            version = data[start + HEADER_LENGTH : stop]
            known = _VERSION.fullmatch(version) if len(version) <= 31 else None
            if status == Status.OK and known and int(known[1]) <= 255:
                self._tunnel.version = version
        elif request.opcode == Opcode.SASL_AUTH:
            if status == Status.OK:
                self._phase("auth")
                self._probe()
            else:
                words = NO_LOGINS if status == Status.UNKNOWN_COMMAND else ""
                raise Distrust(Lost.LOGIN_REFUSED, words=words)
        elif request.opcode == Opcode.GET:
            if status in (Status.OK, Status.NOT_FOUND):
                self._server.answered()
        elif self.state is State.PROBE:
            if status != Status.OK:
                raise Distrust(Lost.LOGIN_LOST)
            self._phase("probe")
            self._move(State.WARM)
            self.was_warm = True
            self.warm_since = now
            self._stop_clock()
            self._keeper.connection_warm(self)

    def all_answered(
        self, requests: list[Request], data: bytearray, start: int, stop: int, now: float
    ) -> None:
        one_by_one(self.answered, requests, data, start, now)

    def failed(self, request: Request, reason: Reason, now: float) -> None:
        """A question of its own ends with the connection: nobody waits for it."""

    def unserved(self, request: Request, now: float) -> None:
        """Its own questions are not routed."""

    def growing(self, request: Request, size: int) -> None:
        """Its own answers are small."""

    def _phase(self, name: str) -> None:
        now = self._seconds()
        self._observer.phase(name, now - self._phase_began)
        self._phase_began = now

    def _dial_failed(self, failure: Failure) -> None:
        if failure.check(error.DNSLookupError):
            self._lose(Lost.DNS)
        elif failure.check(error.ConnectionRefusedError):
            self._lose(Lost.CONNECT_REFUSED)
        elif failure.check(error.TimeoutError, CancelledError, error.ConnectingCancelledError):
            self._lose(Lost.SETUP_TIMEOUT)
        else:
            self._lose(Lost.UNREACHABLE, failure.getErrorMessage())

    # Traffic

    def flush(self) -> None:
        """Write what has collected, unless the transport has enough."""
        if self._paused or self.state is State.LOST:
            return
        now = self._seconds()
        idle = not self.mux.in_flight
        data = self.mux.take(now)
        if not data:
            return
        if idle:
            self._progress = now
        self._observer.sent_bytes += len(data)
        if len(data) <= RECORD:
            self.transport.write(data)
        else:
            for piece in binary.pieces(data, RECORD):
                self.transport.write(piece)

    def dataReceived(self, data: bytes) -> None:
        if self.state is State.LOST:
            return
        now = self._seconds()
        self._progress = now
        self._observer.received_bytes += len(data)
        try:
            if self.mux.receive(data, now):
                self._server.answered()
        except Distrust as distrust:
            self._lose(distrust.lost, distrust.words, distrust.kind or "")
        # Each client gets one write for all that this read brought.
        self._tunnel.flush()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self.flush()

    def stopProducing(self) -> None:
        """The transport is gone; `connectionLost` says so too."""

    def tick(self, now: float) -> None:
        """Look after the connection, a few times a second."""
        if self.state not in (State.WARM, State.DRAINING):
            return
        unsent = self.transport.transport.unsent
        if unsent != self._unsent:
            # What the kernel takes is progress: a slow upload is no silence.
            self._unsent = unsent
            self._progress = now
        quiet = now - self._progress
        if self.mux.in_flight:
            # Bytes that the kernel has taken need their time to arrive.
            if quiet > SILENCE and quiet > SILENCE + min(self.mux.owed_bytes / RATE, LONGEST):
                self._lose(Lost.SILENT)
        elif self.state is State.DRAINING:
            if not self.mux.load:
                self._lose(Lost.RETIRED)
        elif quiet > HEARTBEAT:
            self._ask(Opcode.NOOP, binary.request(Opcode.NOOP))
        if self.state is State.WARM and self._server.breaker.admits_probe(now):
            self._ask(Opcode.GET, binary.request(Opcode.GET, PROBE_KEY))

    # The end

    def drain(self) -> None:
        """Take no more requests; close once nothing is in flight."""
        if self.state is State.WARM:
            self._move(State.DRAINING)
            self._server.drain(self.mux)

    def close(self) -> None:
        """The tunnel stops."""
        self._lose(Lost.SHUTDOWN)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_clock()
        problem = self._handshake.problem
        in_handshake = self.state is State.HANDSHAKE
        if in_handshake and problem is not None:
            self._lose(problem.lost, str(problem))
        elif in_handshake and isinstance(reason.value, SSL.Error):
            if is_clear_text(reason.value):
                self._lose(Lost.NOT_TLS)
            else:
                self._lose(Lost.TLS, words_of(reason.value))
        else:
            self._lose(Lost.CLOSED if reason.check(error.ConnectionDone) else Lost.RESET)

    def _lose(self, lost: Lost, words: str = "", kind: str = "") -> None:
        if self.state is State.LOST:
            return
        connected = self.state is not State.DIALLING
        self._move(State.LOST)
        self._stop_clock()
        if connected:
            if lost in (Lost.RETIRED, Lost.SHUTDOWN):
                self.transport.unregisterProducer()
                self.transport.loseConnection()
                # A silent peer would keep it half closed for ever.
                self._deadline = self._reactor.callLater(FAREWELL, self.transport.abortConnection)
            else:
                self.transport.abortConnection()
        elif self._attempt is not None:
            self._attempt.cancel()
        # The table is empty before its members are told.
        self._server.lose(self.mux, self._seconds())
        self._keeper.connection_lost(self, lost, words, kind)
        self._tunnel.flush()

    def _stop_clock(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def _move(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state


class _Once(Factory):
    """Of several addresses that are tried side by side, only the first to connect counts."""

    noisy = False

    def __init__(self, upstream: Upstream) -> None:
        self._upstream: Upstream | None = upstream

    def buildProtocol(self, addr: Any) -> Upstream | None:
        upstream, self._upstream = self._upstream, None
        return upstream
