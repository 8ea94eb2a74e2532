"""An embedded memcache server, to try the tunnel without an account, and a fake for tests.

`Store` is the cache: it does no I/O, and is told the time. `Connection` speaks the binary
protocol and SASL PLAIN to one client. `DemoServer` puts both behind TLS with an authority and a
login that live as long as it does.

It answers as memcached 1.6.18 does; one contract suite runs against both. It leaves out the
text protocol, segments of the LRU, and slabs. Where memcached loses its place in a client's
stream (an unknown command with a key, STAT with a value), it does not. A delayed FLUSH
takes place on time, where memcached's is up to two seconds early.

``python -m memtunnel.demo`` runs a server and prints where it is and how to log in, as JSON;
with ``--plain`` there is neither TLS nor login.
"""

import datetime
import json
import os
import re
import secrets
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from math import inf
from struct import Struct
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL.crypto import X509, PKey
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.internet.task import react
from zope.interface import implementer

from memtunnel.wire import binary
from memtunnel.wire.binary import Frame, Opcode, Status
from memtunnel.wire.sasl import MECHANISM, Credentials, Secret

VERSION: Final = b"1.6.18"
ITEM_LIMIT: Final = 1 << 20
MEMORY_LIMIT: Final = 64 << 20

#: What an item costs beside key and value; flags other than 0 cost four bytes more.
_ITEM_OVERHEAD: Final = 59
#: Expiry times up to this, in seconds, are relative; those beyond are Unix times.
_LONGEST_RELATIVE: Final = 30 * 24 * 3600
#: The expiry time with which INCR and DECR do not create an item.
_CREATE_NOTHING: Final = b"\xff\xff\xff\xff"
_ARITHMETIC: Final = Struct(">QQ4s")
_NUMBER: Final = Struct(">Q")
#: What strtoull makes a number of. It takes a few negative ones too; we take none.
_DIGITS: Final = re.compile(rb"[\t-\r ]*\+?([0-9]+)(?=[\t-\r \0]|\Z)")


@dataclass(slots=True)
class Item:
    """What is stored under a key."""

    value: bytes
    flags: bytes
    """Four bytes, as they came."""
    expires: float
    """When, in seconds of the Unix epoch."""
    cas: int = 0

    def size(self, key: bytes) -> int:
        """Bytes that it takes, reckoned as memcached does."""
        return _ITEM_OVERHEAD + len(key) + len(self.value) + (4 if any(self.flags) else 0)


class Result(NamedTuple):
    """What became of a request: the parts of its answer."""

    status: Status
    extras: bytes = b""
    value: bytes = b""
    cas: int = 0


_OK: Final = Result(Status.OK)
_NOT_FOUND: Final = Result(Status.NOT_FOUND)
_EXISTS: Final = Result(Status.EXISTS)
_TOO_LARGE: Final = Result(Status.TOO_LARGE)
_NOT_STORED: Final = Result(Status.NOT_STORED)
_NON_NUMERIC: Final = Result(Status.NON_NUMERIC)


class Store:
    """A cache with expiry, CAS, and eviction of what was used least recently.

    `memory_limit` and `item_limit` are in bytes, keys and overhead included. Times are in
    seconds of the Unix epoch, because clients may say so when an item expires.
    """

    def __init__(self, memory_limit: int = MEMORY_LIMIT, item_limit: int = ITEM_LIMIT) -> None:
        self._items: OrderedDict[bytes, Item] = OrderedDict()
        self._bytes = 0
        self._memory_limit = memory_limit
        self._item_limit = item_limit
        self._flush_at = inf
        self._cas = 0
        self._counts: Counter[str] = Counter()

    def execute(self, request: Frame, now: float) -> Result:
        """Carry out a well-formed request that reads or changes items, quiet or loud."""
        self._flush_if_due(now)
        return self._COMMANDS[binary.LOUD[request.opcode]](self, request, now)

    def refuse(self, opcode: int, key: bytes) -> Result:
        """The answer to a value that is too large. A SET leaves nothing stale behind."""
        if binary.LOUD[opcode] == Opcode.SET and key in self._items:
            self._drop(key)
        return _TOO_LARGE

    def stats(self, group: bytes, now: float) -> Iterable[tuple[str, object]] | None:
        """Names and values of a group of STAT; None where there is no such group."""
        self._flush_if_due(now)
        if group == b"reset":
            self._counts.clear()
            return ()
        general: dict[str, object] = {
            "pid": os.getpid(),
            "time": int(now),
            "version": VERSION.decode(),
            **{name: self._counts[name] for name in ("cmd_get", "cmd_set")},
            **{name: self._counts[name] for name in ("get_hits", "get_misses", "evictions")},
            "limit_maxbytes": self._memory_limit,
            "bytes": self._bytes,
            "curr_items": len(self._items),
        }
        groups: dict[bytes, dict[str, object]] = {
            b"": general,
            b"settings": {"maxbytes": self._memory_limit, "item_size_max": self._item_limit},
            b"items": {"items:1:number": len(self._items)} if self._items else {},
            b"slabs": {"active_slabs": 1, "total_malloced": self._bytes},
            b"sizes": {"sizes_status": "disabled"},
            b"detail on": {},
            b"detail off": {},
        }
        return groups[group].items() if group in groups else None

    # The commands

    def _get(self, request: Frame, now: float) -> Result:
        item = self._find(request.key, now)
        touch = request.opcode == Opcode.TOUCH
        if not touch:
            self._counts.update(("cmd_get", "get_misses" if item is None else "get_hits"))
        if item is None:
            return _NOT_FOUND
        if request.extras:
            item.expires = _expiry(request.extras, now)
        return Result(Status.OK, item.flags, b"" if touch else item.value, item.cas)

    def _set(self, request: Frame, now: float) -> Result:
        self._counts["cmd_set"] += 1
        flags, expiry = request.extras[:4], request.extras[4:]
        new = Item(request.value, flags, _expiry(expiry, now))
        if new.size(request.key) > self._item_limit:
            return self.refuse(request.opcode, request.key)
        old = self._find(request.key, now)
        loud = binary.LOUD[request.opcode]
        if request.cas:
            # Whichever command it came with: the item has to be the one that was read.
            if old is None:
                return _NOT_FOUND
            if old.cas != request.cas:
                return _EXISTS
        elif loud == Opcode.ADD and old is not None:
            return _EXISTS
        elif loud == Opcode.REPLACE and old is None:
            return _NOT_FOUND
        return self._put(request.key, new)

    def _concatenate(self, request: Frame, now: float) -> Result:
        self._counts["cmd_set"] += 1
        if Item(request.value, b"", inf).size(request.key) > self._item_limit:
            return self.refuse(request.opcode, request.key)
        old = self._find(request.key, now)
        if old is None:
            return _NOT_STORED
        if request.cas not in (0, old.cas):
            return _EXISTS
        prepend = binary.LOUD[request.opcode] == Opcode.PREPEND
        value = request.value + old.value if prepend else old.value + request.value
        new = Item(value, old.flags, old.expires)
        if new.size(request.key) > self._item_limit:
            return _NOT_STORED
        return self._put(request.key, new)

    def _delete(self, request: Frame, now: float) -> Result:
        item = self._find(request.key, now)
        if item is None:
            return _NOT_FOUND
        if request.cas not in (0, item.cas):
            return _EXISTS
        self._drop(request.key)
        return _OK

    def _arithmetic(self, request: Frame, now: float) -> Result:
        delta, initial, expiry = _ARITHMETIC.unpack(request.extras)
        old = self._find(request.key, now)
        if old is None:
            if expiry == _CREATE_NOTHING:
                return _NOT_FOUND
            new = Item(b"%d" % initial, bytes(4), _expiry(expiry, now))
            return self._put(request.key, new)._replace(value=_NUMBER.pack(initial))
        if request.cas not in (0, old.cas):
            return _EXISTS if old.value else _NON_NUMERIC
        digits = _DIGITS.match(old.value)
        number = int(digits[1]) if digits and len(digits[1].lstrip(b"0")) <= 20 else 1 << 64
        if number >= 1 << 64:
            return _NON_NUMERIC
        decrease = binary.LOUD[request.opcode] == Opcode.DECR
        number = max(0, number - delta) if decrease else (number + delta) % (1 << 64)
        # Written over the old one: a shorter number keeps the length, with blanks.
        new = Item((b"%d" % number).ljust(len(old.value)), old.flags, old.expires)
        return self._put(request.key, new)._replace(value=_NUMBER.pack(number))

    def _flush(self, request: Frame, now: float) -> Result:
        # The next request carries it out.
        self._flush_at = _expiry(request.extras, now) if any(request.extras) else now
        return _OK

    _COMMANDS: Final[dict[int, Callable[["Store", Frame, float], Result]]] = {
        **dict.fromkeys((*binary.GETS, Opcode.TOUCH), _get),
        **dict.fromkeys((Opcode.SET, Opcode.ADD, Opcode.REPLACE), _set),
        **dict.fromkeys((Opcode.APPEND, Opcode.PREPEND), _concatenate),
        **dict.fromkeys((Opcode.INCR, Opcode.DECR), _arithmetic),
        Opcode.DELETE: _delete,
        Opcode.FLUSH: _flush,
    }

    # The items

    def _find(self, key: bytes, now: float) -> Item | None:
        item = self._items.get(key)
        if item is None:
            return None
        if item.expires <= now:
            self._drop(key)
            return None
        self._items.move_to_end(key)
        return item

    def _put(self, key: bytes, item: Item) -> Result:
        if key in self._items:
            self._drop(key)
        self._cas += 1
        item.cas = self._cas
        self._items[key] = item
        self._bytes += item.size(key)
        while self._bytes > self._memory_limit:
            self._drop(next(iter(self._items)))
            self._counts["evictions"] += 1
        return Result(Status.OK, cas=item.cas)

    def _drop(self, key: bytes) -> None:
        self._bytes -= self._items.pop(key).size(key)

    def _flush_if_due(self, now: float) -> None:
        if self._flush_at <= now:
            self._flush_at = inf
            self._items.clear()
            self._bytes = 0


def _expiry(field: bytes, now: float) -> float:
    """The time that an expiry field of four bytes means."""
    seconds = int.from_bytes(field, "big")
    if seconds == 0:
        return inf
    return now + seconds if seconds <= _LONGEST_RELATIVE else seconds


_SASL: Final = frozenset((Opcode.SASL_LIST, Opcode.SASL_AUTH, Opcode.SASL_STEP))
_BEFORE_LOGIN: Final = _SASL | {Opcode.VERSION}
#: No body that long fits into the store: it is swallowed, not kept.
_LARGEST_BODY: Final = ITEM_LIMIT + binary.MAX_KEY_LENGTH


@implementer(IHalfCloseableProtocol)
class Connection(Protocol):
    """One client, which speaks the binary protocol and nothing else.

    `credentials` are what it has to log in with; with None it needs no login, and SASL is
    unknown here.
    """

    transport: Any
    factory: Any

    def __init__(
        self, store: Store, credentials: Credentials | None, wall_clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._credentials = credentials
        self._wall_clock = wall_clock
        self._logged_in = credentials is None
        self._stepping = False
        self._closing = False
        self._buffer = bytearray()
        #: What is still to be swallowed of a refused body, and the answer that follows it.
        self._to_swallow = 0
        self._late = b""

    def connectionMade(self) -> None:
        self.factory.connections.add(self)
        # Or an answer waits until the one before it is acknowledged: 40 ms for some of them.
        self.transport.setTcpNoDelay(True)
        # While a client does not read its answers, none of its requests are read.
        self.transport.registerProducer(self.transport, True)

    def connectionLost(self, reason: Any = None) -> None:
        self.factory.connections.discard(self)

    def readConnectionLost(self) -> None:
        """The client sends no more: what it sent was carried out, and its answers still go."""
        self._close()

    def writeConnectionLost(self) -> None:
        """Only after a half-close of our own, of which there is none."""

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        now = self._wall_clock()
        answers: list[bytes] = []
        position = 0
        while not self._closing and (length := self._take(position, answers, now)):
            position += length
        del self._buffer[:position]
        if answers:
            self.transport.write(b"".join(answers))
        if self._closing:
            self._close()

    def _close(self) -> None:
        self._closing = True
        self.transport.unregisterProducer()
        self.transport.loseConnection()

    def _take(self, position: int, answers: list[bytes], now: float) -> int:
        """Deal with what stands at `position`; returns its length, 0 where it is not whole."""
        buffer = self._buffer
        available = len(buffer) - position
        if self._to_swallow:
            swallowed = min(self._to_swallow, available)
            self._to_swallow -= swallowed
            if not self._to_swallow:
                answers.append(self._late)
            return swallowed
        if available < binary.HEADER_LENGTH:
            return 0
        head = bytes(buffer[position : position + binary.HEADER_LENGTH])
        magic, opcode, keys, extras, body = binary.unpack_request(head, 0)
        if magic != binary.REQUEST_MAGIC:
            self._closing = True
            return 0
        status, kept = self._judge(opcode, keys, extras, body)
        opaque = bytes(buffer[position + 12 : position + 16])
        if not kept:
            answers.append(binary.refusal(opcode, opaque, status))
            self._closing = True
            return 0
        length: int = binary.HEADER_LENGTH + (body if status == Status.OK else extras + keys)
        if available < length:
            return 0
        end = position + length
        if status == Status.OK:
            (request,), _ = binary.split(bytes(buffer[position:end]))
            answers += self._answers(request, now)
        else:
            if status == Status.TOO_LARGE:
                self._store.refuse(opcode, bytes(buffer[end - keys : end]))
            self._late = binary.refusal(opcode, opaque, status)
            self._to_swallow = body - extras - keys
            if not self._to_swallow:
                answers.append(self._late)
        return length

    def _judge(self, opcode: int, keys: int, extras: int, body: int) -> tuple[Status, bool]:
        """What a header alone says of its request: a status, and whether the client is kept."""
        rule = binary.RULES[opcode]
        if keys + extras > body:
            return Status.UNKNOWN_COMMAND, False
        if not self._logged_in and opcode not in _BEFORE_LOGIN:
            return Status.AUTH_FAILED, False
        if keys > binary.MAX_KEY_LENGTH:
            return Status.INVALID, False
        if rule is None:
            return Status.UNKNOWN_COMMAND, True
        if not rule.allows(keys, extras, body):
            long_mechanism = opcode in (Opcode.SASL_AUTH, Opcode.SASL_STEP) and keys and not extras
            return Status.INVALID, bool(long_mechanism)
        if opcode in _SASL and self._credentials is None:
            return Status.UNKNOWN_COMMAND, True
        if body > _LARGEST_BODY:
            return Status.OUT_OF_MEMORY if opcode in _SASL else Status.TOO_LARGE, True
        return Status.OK, True

    def _answers(self, request: Frame, now: float) -> list[bytes]:
        """The frames that a well-formed request is answered with; none where it is quiet."""
        opcode, opaque = request.opcode, request.opaque
        loud = binary.LOUD[opcode]
        match loud:
            case Opcode.NOOP:
                return [binary.answer(opcode, opaque)]
            case Opcode.VERSION:
                return [binary.answer(opcode, opaque, value=VERSION)]
            case Opcode.QUIT:
                self._closing = True
                return [binary.answer(opcode, opaque)] if opcode == loud else []
            case Opcode.STAT:
                return self._stats(request, now)
            case Opcode.SASL_LIST | Opcode.SASL_AUTH | Opcode.SASL_STEP:
                return [self._login(request)]
        status, extras, value, cas = self._store.execute(request, now)
        unheard = Status.NOT_FOUND if loud in binary.GETS else Status.OK
        if opcode in binary.QUIET and status == unheard:
            return []
        key = request.key if loud in (Opcode.GETK, Opcode.GATK) else b""
        if status != Status.OK and not key:
            return [binary.refusal(opcode, opaque, status)]
        return [binary.answer(opcode, opaque, status, extras=extras, key=key, value=value, cas=cas)]

    def _stats(self, request: Frame, now: float) -> list[bytes]:
        opcode, opaque = request.opcode, request.opaque
        stats = self._store.stats(request.key, now)
        if stats is None:
            return [binary.refusal(opcode, opaque, Status.NOT_FOUND)]
        return [
            binary.answer(opcode, opaque, key=name.encode(), value=str(value).encode())
            for name, value in (*stats, ("", ""))
        ]

    def _login(self, request: Frame) -> bytes:
        opcode, opaque = request.opcode, request.opaque
        if opcode == Opcode.SASL_LIST:
            return binary.answer(opcode, opaque, value=MECHANISM)
        credentials = self._credentials
        begun = opcode == Opcode.SASL_AUTH or self._stepping
        # A failed login ends one that stood before it.
        self._logged_in = self._stepping = False
        if credentials is None or not begun or request.key.upper() != MECHANISM:
            return binary.refusal(opcode, opaque, Status.AUTH_FAILED)
        if opcode == Opcode.SASL_AUTH and not request.value:
            self._stepping = True
            return binary.answer(opcode, opaque, Status.AUTH_CONTINUE)
        if not credentials.verify(request.value):
            return binary.refusal(opcode, opaque, Status.AUTH_FAILED)
        self._logged_in = True
        return binary.answer(opcode, opaque, value=b"Authenticated")


class ConnectionFactory(ServerFactory):
    """Makes the connections that share a store, and knows those that are open."""

    noisy = False

    def __init__(self, *parts: Any) -> None:
        self.connections: set[Connection] = set()
        self._parts = parts

    def buildProtocol(self, addr: Any) -> Any:
        connection = Connection(*self._parts)
        connection.factory = self
        return connection


def throwaway_authority() -> tuple[bytes, CertificateOptions]:
    """A new authority's certificate (PEM), and the TLS of a server on this machine under it.

    The keys are in memory only; the certificates are good for a week.
    """
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    addresses = [x509.IPAddress(ip_address(address)) for address in ("127.0.0.1", "::1")]
    here = x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses])
    issuer = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = _certificate("authority", ca_key.public_key(), ca_key, _MAY_ISSUE, issuer)
    certificate = _certificate(
        "server",
        key.public_key(),
        ca_key,
        here,
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer),
    )
    options = CertificateOptions(
        privateKey=PKey.from_cryptography_key(key),
        certificate=X509.from_cryptography(certificate),
        raiseMinimumTo=TLSVersion.TLSv1_2,
    )
    return ca.public_bytes(Encoding.PEM), options


#: In this order: signature, commitment, four ways of encipherment, certificates, lists, two more.
_MAY_ISSUE: Final = x509.KeyUsage(False, False, False, False, False, True, True, False, False)


def _certificate(
    role: str,
    key: ec.EllipticCurvePublicKey,
    issuer: ec.EllipticCurvePrivateKey,
    *extensions: x509.ExtensionType,
) -> x509.Certificate:
    subject, authority = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"memtunnel demo {word}")])
        for word in (role, "authority")
    )
    now = datetime.datetime.now(datetime.UTC)
    constraints = x509.BasicConstraints(ca=role == "authority", path_length=None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=90))
        .add_extension(constraints, critical=True)
    )
    for extension in extensions:
        critical = isinstance(extension, x509.KeyUsage)
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer, hashes.SHA256())


class DemoServer:
    """A memcache server on a free port of 127.0.0.1, with TLS and a login of its own.

    `wall_clock` tells Unix time in seconds: a reactor's clock may count from anywhere. Without
    `login` it speaks no SASL.
    """

    def __init__(
        self,
        *,
        tls: bool = True,
        login: bool = True,
        memory_limit: int = MEMORY_LIMIT,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.credentials = Credentials(username="demo", password=Secret(secrets.token_urlsafe()))
        self.ca_pem = b""
        self._context: CertificateOptions | None = None
        if tls:
            self.ca_pem, self._context = throwaway_authority()
        asked_for = self.credentials if login else None
        self._factory = ConnectionFactory(Store(memory_limit), asked_for, wall_clock)
        self._listening: Any = None

    @property
    def port(self) -> int:
        """Where it listens; only between `start` and `stop`."""
        number: int = self._listening.getHost().port
        return number

    def start(self, reactor: Any) -> None:
        """Listen, from now on."""
        if self._context is None:
            self._listening = reactor.listenTCP(0, self._factory, interface="127.0.0.1")
        else:
            self._listening = reactor.listenSSL(
                0, self._factory, self._context, interface="127.0.0.1"
            )

    def stop(self) -> Deferred[Any]:
        """Stop listening and drop all clients; fires when the port is free."""
        listening, self._listening = self._listening, None
        for connection in list(self._factory.connections):
            connection.transport.abortConnection()
        return maybeDeferred(listening.stopListening)


def _serve(reactor: Any, *arguments: str) -> Deferred[None]:
    plain = "--plain" in arguments
    server = DemoServer(tls=not plain, login=not plain)
    server.start(reactor)
    shown: dict[str, object] = {"port": server.port}
    if not plain:
        shown["username"] = server.credentials.username
        shown["password"] = server.credentials.password.reveal().decode()
        shown["ca"] = server.ca_pem.decode()
    print(json.dumps(shown), flush=True)
    return Deferred()


if __name__ == "__main__":
    react(_serve, sys.argv[1:])
