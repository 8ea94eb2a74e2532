"""Whom to trust: roots, names, pins and versions, made into connections for pyOpenSSL.

Every certificate is judged twice. OpenSSL's callback gives the first opinion while the
handshake runs: chain, dates, and the name at the leaf. When the handshake is complete,
`Handshake.verify` looks at the certificate that the connection really has, once more and
failing closed: anything unexpected refuses. Nothing is written to a connection before that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL import SSL, crypto
from service_identity.cryptography import extract_patterns
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    AcceptableCiphers,
    Certificate,
    CertificateOptions,
    TLSVersion,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from memtunnel.core.outcomes import Lost

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

#: Bytes of a TLS record's header, whose last two count the rest, and of the most it can carry.
RECORD_HEADER: Final = 5
RECORD: Final = 16 * 1024

_DATES: Final = {9: "is not valid yet", 10: "has expired"}
#: OpenSSL's X509_V_ERR codes that people meet, in words.
_CHAIN: Final = {
    2: "its issuer was not sent and is not trusted",
    7: "its signature is wrong",
    18: "it is self-signed",
    19: "its root is not trusted",
    20: "its issuer was not sent and is not trusted",
    21: "its issuer was not sent and is not trusted",
    22: "the chain is too long",
    26: "it is not meant for a server",
    66: "its key is too short",
    67: "its key is too short",
    68: "its signature is of a kind that is too weak",
    79: "it is no certificate authority",
}


class Untrusted(Exception):
    """A server's certificate was refused: `lost` is which check failed, `str` says why."""

    def __init__(self, lost: Lost, words: str) -> None:
        super().__init__(words)
        self.lost = lost


def pem_certificates(data: bytes) -> list[bytes]:
    """What looks like a certificate in PEM form, without the text around: CA files explain."""
    return _PEM.findall(data)


def load_roots(pem: bytes) -> list[Certificate]:
    """All certificates of a PEM bundle. Raises `ValueError` where there is none, or a bad one."""
    found = pem_certificates(pem)
    if not found:
        raise ValueError("no certificate in PEM form")
    try:
        return [Certificate.loadPEM(one) for one in found]
    except crypto.Error as error:
        raise ValueError(f"a certificate that cannot be read: {words_of(error)}") from error


def make_context(roots: list[Certificate] | None) -> SSL.Context:
    """TLS 1.2 and up, forward-secret AEAD ciphers only; None trusts the system's roots."""
    trust = platformTrust() if roots is None else trustRootFromCertificates(roots)
    options = CertificateOptions(
        trustRoot=trust,
        raiseMinimumTo=TLSVersion.TLSv1_2,
        acceptableCiphers=AcceptableCiphers.fromOpenSSLCipherString(_CIPHERS),
    )
    context = options.getContext()
    # A resumed session is not verified again, and a warm pool gains nothing from it.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    return context


@dataclass(frozen=True)
class Expectation:
    """What a server's certificate has to show.

    `name` is a host name or an address; `check_name` False is ``--verify chain``. `pins` are
    SHA-256 digests of public keys (SubjectPublicKeyInfo, DER), one of which has to match.
    """

    context: SSL.Context
    name: str
    check_name: bool = field(default=True, kw_only=True)
    pins: tuple[bytes, ...] = field(default=(), kw_only=True)

    @property
    def _is_address(self) -> bool:
        return isIPAddress(self.name) or isIPv6Address(self.name)

    @property
    def server_name(self) -> bytes | None:
        """What SNI says; None for an address."""
        return None if self._is_address else self.name.encode("idna")

    def check(self, certificate: x509.Certificate) -> None:
        """Raises `Untrusted` unless name and key are as expected."""
        if self.check_name:
            wanted = (
                IPAddress_ID(self.name)
                if self._is_address
                else DNS_ID(self.name.encode("idna").decode())
            )
            try:
                verify_service_identity(extract_patterns(certificate), [wanted], [])
            except Exception as error:
                # Also what a malformed certificate raises: nothing unexpected passes.
                raise Untrusted(
                    Lost.CERTIFICATE_NAME,
                    f"the certificate bears {names_of(certificate)}, not {self.name}",
                ) from error
        if self.pins and key_digest(certificate) not in self.pins:
            raise Untrusted(
                Lost.CERTIFICATE_PIN, f"the key of {names_of(certificate)} is not a pinned one"
            )

    def handshake(self) -> Handshake:
        """The check of one connection."""
        return Handshake(self)


@implementer(IOpenSSLClientConnectionCreator)
class Handshake:
    """Makes one TLS connection and judges its certificate."""

    def __init__(self, expectation: Expectation) -> None:
        self._expectation = expectation
        self.problem: Untrusted | None = None
        """Why OpenSSL was told to refuse."""

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._expectation.context, None)
        name = self._expectation.server_name
        if name is not None:
            connection.set_tlsext_host_name(name)
        required = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        connection.set_verify(required, self._opinion)
        return connection

    def verify(self, connection: SSL.Connection) -> x509.Certificate:
        """The certificate of a completed handshake. Raises `Untrusted`."""
        if self.problem is not None:
            raise self.problem
        certificate = connection.get_peer_certificate(as_cryptography=True)
        if certificate is None:
            raise Untrusted(Lost.CERTIFICATE_CHAIN, "the server showed no certificate")
        self._expectation.check(certificate)
        return certificate

    def _opinion(self, connection: Any, certificate: Any, code: int, depth: int, ok: int) -> bool:
        try:
            shown = certificate.to_cryptography()
            if not ok:
                raise chain_problem(code, depth, shown)
            if depth == 0:
                self._expectation.check(shown)
        except Untrusted as problem:
            # A new one: the traceback of that leads back to here.
            self.problem = self.problem or Untrusted(problem.lost, str(problem))
        except Exception as error:
            # An exception would get lost inside OpenSSL; the refusal must not.
            words = f"the certificate cannot be read: {error}"
            self.problem = self.problem or Untrusted(Lost.CERTIFICATE_CHAIN, words)
        return self.problem is None


def chain_problem(code: int, depth: int, certificate: x509.Certificate) -> Untrusted:
    """What OpenSSL's verification error `code` at `depth` of the chain means."""
    whose = "the certificate" if depth == 0 else f"the issuing certificate at depth {depth}"
    bears = f"{whose} ({names_of(certificate)})"
    if code in _DATES:
        dates = f"{certificate.not_valid_before_utc:%F} to {certificate.not_valid_after_utc:%F}"
        return Untrusted(Lost.CERTIFICATE_DATE, f"{bears} {_DATES[code]} ({dates})")
    why = _CHAIN.get(code, f"verification error {code}")
    return Untrusted(
        Lost.CERTIFICATE_CHAIN,
        f"{bears} is not trusted: {why}; --ca-file has to hold its root, and MemCachier's is to be "
        "had by memtunnel ca FILE",
    )


def names_of(certificate: x509.Certificate) -> str:
    """The names that a certificate bears, for people."""
    subject = printable(certificate.subject.rfc4514_string())
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = [printable(str(name.value)) for name in extension.value]
    except x509.ExtensionNotFound:
        return f"no host name, subject {subject!r}"
    except Exception:
        return f"names that cannot be read, subject {subject!r}"
    return ", ".join(names) or f"no host name, subject {subject!r}"


def dates_of(certificate: x509.Certificate) -> str:
    """From when to when it is valid, and how many days are left, for people."""
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.now(UTC)
    if now < first:
        state = f"valid only in {(first - now).days} days"
    elif now > last:
        state = f"expired {(now - last).days} days ago"
    else:
        state = f"{(last - now).days} days left"
    return f"{first:%F} to {last:%F}, {state}"


def printable(text: str) -> str:
    """What a server has said, on one line, with nothing in it that a terminal would obey."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def words_of(error: BaseException) -> str:
    """What went wrong, in the system's words or OpenSSL's, without its source's names."""
    if isinstance(error, SSL.Error | crypto.Error) and error.args:
        reasons = error.args[0]
        if isinstance(reasons, list):
            return ", ".join(str(reason[-1]) for reason in reasons)
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def is_clear_text(error: BaseException) -> bool:
    """Whether the other side spoke, but not TLS."""
    words = words_of(error) if isinstance(error, SSL.Error) else ""
    return "wrong version number" in words or "packet length too long" in words


def key_digest(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate's public key, as a pin names it."""
    key = certificate.public_key()
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


class TLSConnection(TLSMemoryBIOProtocol):
    """TLS that delivers all records of a read together.

    Plain TLS delivers record by record, and a server may give each answer one of its own:
    answers would be matched one by one, and written to a client with as many system calls.
    """

    wrappedProtocol: Any

    def dataReceived(self, data: bytes) -> None:
        if not self._handshakeDone or self._appSendBuffer:
            super().dataReceived(data)  # type: ignore[no-untyped-call]
            return
        connection = self._tlsConnection
        connection.bio_write(data)
        records: list[bytes] = []
        failure: Failure | None = None
        # Of a read that is just one record, nothing is left in OpenSSL once it has been read:
        # to be told so costs an exception.
        alone = len(data) == RECORD_HEADER + int.from_bytes(data[3:5], "big")
        try:
            while not (alone and records):
                records.append(connection.recv(RECORD))
        except SSL.WantReadError:
            pass
        except SSL.Error:
            failure = Failure()
        if records and not self._aborted:
            self.wrappedProtocol.dataReceived(b"".join(records))
        if failure is not None and not self._lostTLSConnection:
            closed = failure.check(SSL.ZeroReturnError)
            if closed:
                self._shutdownTLS()  # type: ignore[no-untyped-call]
            self._tlsShutdownFinished(None if closed else failure)
        elif not records:
            # Only TLS itself has spoken, and may want to answer. To find out costs an exception:
            # next to data, its answer goes out with our next write.
            self._flushSendBIO()  # type: ignore[no-untyped-call]

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]
        if reason is not None and reason.value is not None:
            # Its traceback leads to frames that lead back to it, and would keep OpenSSL's buffers
            # until Python collects garbage.
            reason.value.with_traceback(None)
            reason.tb = None


class TLSFactory(TLSMemoryBIOFactory):
    protocol = TLSConnection
