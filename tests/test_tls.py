"""Whom a connection trusts: real TLS servers with certificates good and bad.

Each server keeps a record of every byte of application data that it is sent: none, where the
certificate is not to be trusted.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import authority
import pytest
import pytest_twisted
from authority import Pair, issue
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from memtunnel.core.budget import Budget
from memtunnel.core.cluster import Cluster
from memtunnel.core.outcomes import Lost
from memtunnel.core.routing import router
from memtunnel.core.server import Server
from memtunnel.core.tunnel import Policy, Tunnel
from memtunnel.net.tls import (
    Expectation,
    Untrusted,
    key_digest,
    load_roots,
    make_context,
    names_of,
)
from memtunnel.net.transports import Resolver, SendAtOnceReactor
from memtunnel.net.turn import Turn
from memtunnel.net.upstream import Target, Upstream
from memtunnel.ops.metrics import Metrics
from memtunnel.wire import binary
from memtunnel.wire.sasl import Credentials, Secret

NAME = "mc1.example.com"
CREDENTIALS = Credentials(username="user1", password=Secret("canary-4711"))
PATIENCE = 10.0
WARM = "warm"


class Recorder(threading.Thread):
    """A TLS server for one connection: says yes to all requests, and records what it is sent."""

    def __init__(self, chain: list[Pair], folder: Path) -> None:
        super().__init__(name="TLS recorder", daemon=True)
        (folder / "chain.pem").write_bytes(b"".join(pair.pem for pair in chain))
        (folder / "key.pem").write_bytes(chain[0].key_pem)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.set_ciphers("DEFAULT:@SECLEVEL=0")
        self.context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
        self.context.sni_callback = self._note_name
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(PATIENCE)
        self.port: int = self._listening.getsockname()[1]
        self.connected = False
        self.asked_name: str | None = None
        self.received = b""

    def _note_name(self, _socket: Any, name: str | None, _context: Any) -> None:
        self.asked_name = name

    def run(self) -> None:
        with contextlib.suppress(OSError), self._listening:
            connection, _ = self._listening.accept()
            self.connected = True
            connection.settimeout(PATIENCE)
            with connection:
                self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        left = b""
        with self.context.wrap_socket(connection, server_side=True) as secured:
            while data := secured.recv(65536):
                self.received += data
                frames, left = binary.split(left + data)
                for frame in frames:
                    secured.sendall(binary.answer(frame.opcode, frame.opaque))

    def finish(self) -> None:
        """Wait until all that was sent is in the record."""
        self.join(PATIENCE)
        assert not self.is_alive()


class ClearText(Recorder):
    """Says one line to whoever connects, as a server over its limit does."""

    def serve(self, connection: socket.socket) -> None:
        connection.sendall(b"ERROR Too many open connections\r\n")
        connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(65536):
            # A client of TLS says its hello; anything after that would be too much.
            self.received += data if data[0] not in (0x15, 0x16) else b""


class Keeper:
    """Fires `told` with how a connection went: `WARM`, or the reason and the words."""

    def __init__(self) -> None:
        self.told: Deferred[tuple[str, str]] = Deferred()

    def connection_warm(self, upstream: Upstream) -> None:
        self.told.callback((WARM, ""))
        upstream.close()

    def connection_lost(self, upstream: Upstream, lost: Lost, words: str, kind: str) -> None:
        if not self.told.called:
            self.told.callback((lost, words))


async def dial(recorder: Recorder, expectation: Expectation) -> tuple[str, str]:
    """Connect as the tunnel does. Returns how it went, once the server's record is complete."""
    from twisted.internet import reactor

    recorder.start()
    metrics = Metrics(version="1", python="3", twisted="26", openssl="3", reactor="none")
    counts = metrics.server("mc")
    budget = Budget(1 << 20)
    server = Server("mc", counts, budget)
    tunnel = Tunnel(
        Policy(), Cluster([server], router("modula", ["mc"])), budget, metrics, lambda: None
    )
    keeper = Keeper()
    target = Target(
        host="127.0.0.1",
        port=recorder.port,
        expectation=expectation,
        credentials=CREDENTIALS,
        connect_timeout=PATIENCE,
        max_value_size=1 << 20,
        address="localhost:11219",
    )
    eager = SendAtOnceReactor(reactor, Resolver(reactor))
    Upstream(target, server, tunnel, keeper, counts, eager, Turn(reactor), 1).dial()
    outcome = await keeper.told
    await deferToThread(recorder.finish)
    assert recorder.connected
    return outcome


class Case(NamedTuple):
    """A server's certificate, and what is to come of it."""

    make: Callable[[Pair], list[Pair]]
    """From the trusted root to the chain that the server sends, the leaf first."""
    lost: str = WARM
    words: tuple[str, ...] = ()
    """What the reason in words has to contain: which check failed, and the names."""
    name: str = NAME


def san(*names: x509.GeneralName) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(list(names))


def with_extensions(*extensions: x509.ExtensionType) -> Callable[[Pair], list[Pair]]:
    return lambda root: [issue(issuer=root, common_name=NAME, extensions=extensions)]


def named(*names: str) -> Callable[[Pair], list[Pair]]:
    return lambda root: [issue(*names, issuer=root)]


def through(intermediate: Callable[[Pair], Pair], *, send: bool = True) -> Any:
    """A good leaf below an intermediate certificate."""

    def make(root: Pair) -> list[Pair]:
        middle = intermediate(root)
        return [issue(NAME, issuer=middle), *([middle] if send else [])]

    return make


def middle(**options: Any) -> Callable[[Pair], Pair]:
    merged = {"authority": True, "common_name": "middle", **options}
    return lambda root: issue(issuer=root, **merged)


def raw_san(der: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, der)


#: Not even DER: OpenSSL's servers do not load it.
GARBAGE = raw_san(b"\x30\x82\xff\xff!")
#: The right name, and an address of five bytes.
ODD_ADDRESS = raw_san(b"\x30\x18\x82\x0f" + NAME.encode() + b"\x87\x05\1\2\3\4\5")
#: A name in bytes that are no text.
ODD_NAME = raw_san(b"\x30\x04\x82\x02\xff\xfe")

GOOD = {
    "the name": Case(named(NAME)),
    "the name in capitals": Case(named("MC1.Example.COM")),
    "a wildcard for one level": Case(named("*.example.com")),
    "the second name": Case(named("other.example.net", NAME)),
    "a name beside a strange one": Case(
        with_extensions(san(x509.RFC822Name("root@example.com"), x509.DNSName(NAME)))
    ),
    "an address": Case(named("127.0.0.1"), name="127.0.0.1"),
    "an address of version 6": Case(named("::1"), name="::1"),
    "a name that is set": Case(named("cache.example.net"), name="cache.example.net"),
    "an intermediate that is sent": Case(through(middle())),
    "an RSA key": Case(
        lambda root: [issue(NAME, issuer=root, key=rsa.generate_private_key(65537, 2048))]
    ),
    "server and client use": Case(
        lambda root: [
            issue(
                NAME,
                issuer=root,
                extensions=(
                    x509.ExtendedKeyUsage(
                        [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                    ),
                ),
            )
        ]
    ),
}

NAME_WRONG = Lost.CERTIFICATE_NAME
CHAIN_WRONG = Lost.CERTIFICATE_CHAIN
DATE_WRONG = Lost.CERTIFICATE_DATE

BAD = {
    "no SAN": Case(
        lambda root: [issue(issuer=root, common_name=NAME)],
        NAME_WRONG,
        (f"no host name, subject 'CN={NAME}'", f"not {NAME}"),
    ),
    "an empty SAN": Case(with_extensions(san()), NAME_WRONG, (f"subject 'CN={NAME}'",)),
    "a malformed SAN": Case(
        with_extensions(ODD_ADDRESS), NAME_WRONG, (f"cannot be read, subject 'CN={NAME}'",)
    ),
    "a name that is no text": Case(
        with_extensions(ODD_NAME), NAME_WRONG, (f"cannot be read, subject 'CN={NAME}'",)
    ),
    "another name": Case(named("mc2.example.com"), NAME_WRONG, ("mc2.example.com", f"not {NAME}")),
    "two other names": Case(
        named("mc2.example.com", "10.0.0.1"), NAME_WRONG, ("mc2.example.com, 10.0.0.1",)
    ),
    "a name below": Case(named("a." + NAME), NAME_WRONG, ("a." + NAME,)),
    "the domain above": Case(named("example.com"), NAME_WRONG, ("bears example.com",)),
    "a longer name": Case(named(NAME + ".evil.example"), NAME_WRONG, (NAME + ".evil.example",)),
    "a wildcard for everything": Case(named("*"), NAME_WRONG, ("bears *,",)),
    "a wildcard for .com": Case(named("*.com"), NAME_WRONG, ("*.com",)),
    "a wildcard two levels up": Case(
        named("*.example.com"), NAME_WRONG, ("*.example.com",), name="a.b.example.com"
    ),
    "a wildcard for two levels": Case(named("*.*.com"), NAME_WRONG, ("*.*.com",)),
    "a wildcard inside": Case(named("mc1.*.com"), NAME_WRONG, ("mc1.*.com",)),
    "a wildcard as part of a label": Case(named("mc*.example.com"), NAME_WRONG, ("mc*.",)),
    "a NUL in the name": Case(
        with_extensions(san(x509.DNSName(NAME + "\0.evil.example"))),
        NAME_WRONG,
        (".evil.example",),
    ),
    "an address in a dNSName": Case(
        with_extensions(san(x509.DNSName("127.0.0.1"))),
        NAME_WRONG,
        ("not 127.0.0.1",),
        name="127.0.0.1",
    ),
    "another address": Case(named("127.0.0.2"), NAME_WRONG, ("127.0.0.2",), name="127.0.0.1"),
    "a name for an address": Case(named(NAME), NAME_WRONG, (NAME,), name="127.0.0.1"),
    "an address for a name": Case(named("127.0.0.1"), NAME_WRONG, ("127.0.0.1",)),
    "the name as a URI": Case(
        with_extensions(san(x509.UniformResourceIdentifier(f"https://{NAME}/"))),
        NAME_WRONG,
        (f"https://{NAME}/",),
    ),
    "the name as a mail address": Case(
        with_extensions(san(x509.RFC822Name(f"root@{NAME}"))), NAME_WRONG, (f"root@{NAME}",)
    ),
    "an expired leaf": Case(
        lambda root: [issue(NAME, issuer=root, days=(-30, -1))], DATE_WRONG, (NAME, "has expired")
    ),
    "a leaf of the future": Case(
        lambda root: [issue(NAME, issuer=root, days=(1, 30))],
        DATE_WRONG,
        (NAME, "is not valid yet"),
    ),
    "an expired intermediate": Case(
        through(middle(days=(-30, -1))), DATE_WRONG, ("CN=middle", "depth 1", "has expired")
    ),
    "an intermediate of the future": Case(
        through(middle(days=(1, 30))), DATE_WRONG, ("CN=middle", "is not valid yet")
    ),
    "another authority": Case(
        lambda root: [issue(NAME, issuer=authority.authority("another"))],
        CHAIN_WRONG,
        (NAME, "memtunnel ca FILE"),
    ),
    "another authority, sent": Case(
        lambda root: [issue(NAME, issuer=(other := authority.authority("another"))), other],
        CHAIN_WRONG,
        ("another", "its root is not trusted"),
    ),
    "an authority of the same name": Case(
        lambda root: [issue(NAME, issuer=(other := authority.authority())), other],
        CHAIN_WRONG,
        ("is not trusted",),
    ),
    "self-signed": Case(lambda root: [issue(NAME)], CHAIN_WRONG, (NAME, "self-signed")),
    "self-signed with the root's name": Case(
        lambda root: [issue(NAME, common_name="memtunnel test authority")],
        CHAIN_WRONG,
        (NAME, "is not trusted"),
    ),
    "a missing intermediate": Case(through(middle(), send=False), CHAIN_WRONG, (NAME, "not sent")),
    "an intermediate that may not issue": Case(
        through(middle(authority=False)), CHAIN_WRONG, ("CN=middle", "no certificate authority")
    ),
    "another server's certificate as issuer": Case(
        through(lambda root: issue("mc2.example.com", issuer=root, common_name="mc2")),
        CHAIN_WRONG,
        ("mc2.example.com", "no certificate authority"),
    ),
    "for clients only": Case(
        lambda root: [
            issue(
                NAME,
                issuer=root,
                extensions=(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),),
            )
        ],
        CHAIN_WRONG,
        (NAME, "not meant for a server"),
    ),
    "a wrong signature": Case(
        lambda root: [authority.tampered(issue(NAME, issuer=root))],
        CHAIN_WRONG,
        (NAME, "signature is wrong"),
    ),
    "a wrong signature above": Case(
        through(lambda root: authority.tampered(middle()(root))),
        CHAIN_WRONG,
        ("CN=middle", "signature is wrong"),
    ),
    "a short RSA key": Case(
        lambda root: [issue(NAME, issuer=root, key=rsa.generate_private_key(65537, 1024))],
        CHAIN_WRONG,
        (NAME, "its key is too short"),
    ),
}


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Recorder]:
    return lambda chain, kind=Recorder: kind(chain, tmp_path)


def context(*roots: Pair) -> SSL.Context:
    return make_context(load_roots(b"".join(root.pem for root in roots)))


@pytest.mark.parametrize("kind", GOOD)
@pytest_twisted.ensureDeferred
async def test_a_good_certificate_is_accepted(kind: str, root: Pair, record: Any) -> None:
    case = GOOD[kind]
    recorder = record(case.make(root))
    outcome = await dial(recorder, Expectation(context(root), case.name))
    assert outcome == (WARM, "")
    assert b"canary-4711" in recorder.received


@pytest.mark.parametrize("kind", BAD)
@pytest_twisted.ensureDeferred
async def test_a_bad_certificate_gets_not_one_byte(kind: str, root: Pair, record: Any) -> None:
    case = BAD[kind]
    recorder = record(case.make(root))
    lost, words = await dial(recorder, Expectation(context(root), case.name))
    assert recorder.received == b""
    assert lost == case.lost
    for word in case.words:
        assert word in words


def test_there_are_enough_bad_ones() -> None:
    assert len(BAD) >= 24


@pytest_twisted.ensureDeferred
async def test_an_expired_root_is_refused(record: Any) -> None:
    root = authority.authority("old root", days=(-30, -1))
    recorder = record([issue(NAME, issuer=root)])
    lost, words = await dial(recorder, Expectation(context(root), NAME))
    assert recorder.received == b""
    assert lost == DATE_WRONG
    assert "CN=old root" in words
    assert "has expired" in words


@pytest.mark.parametrize("extension", [GARBAGE, ODD_ADDRESS, ODD_NAME, raw_san(b"")])
def test_a_san_that_cannot_be_read_is_refused(extension: x509.ExtensionType) -> None:
    certificate = issue(common_name=NAME, extensions=(extension,)).certificate
    with pytest.raises(Untrusted, match="names that cannot be read") as refused:
        Expectation(make_context(None), NAME).check(certificate)
    assert refused.value.lost == NAME_WRONG


# --verify chain


@pytest.mark.parametrize("kind", ["another name", "no SAN", "a wildcard for everything"])
@pytest_twisted.ensureDeferred
async def test_chain_only_accepts_any_name(kind: str, root: Pair, record: Any) -> None:
    recorder = record(BAD[kind].make(root))
    expectation = Expectation(context(root), NAME, check_name=False)
    assert await dial(recorder, expectation) == (WARM, "")


@pytest.mark.parametrize(
    "kind",
    [kind for kind, case in BAD.items() if case.lost in (CHAIN_WRONG, DATE_WRONG)],
)
@pytest_twisted.ensureDeferred
async def test_chain_only_still_checks_the_chain(kind: str, root: Pair, record: Any) -> None:
    case = BAD[kind]
    recorder = record(case.make(root))
    lost, _ = await dial(recorder, Expectation(context(root), NAME, check_name=False))
    assert recorder.received == b""
    assert lost == case.lost


# Pins


@pytest_twisted.ensureDeferred
async def test_a_pinned_key_is_accepted(root: Pair, record: Any) -> None:
    leaf = issue(NAME, issuer=root)
    pins = (bytes(32), key_digest(leaf.certificate))
    assert await dial(record([leaf]), Expectation(context(root), NAME, pins=pins)) == (WARM, "")


@pytest.mark.parametrize("check_name", [True, False])
@pytest_twisted.ensureDeferred
async def test_another_key_is_refused(check_name: bool, root: Pair, record: Any) -> None:
    leaf = issue(NAME, issuer=root)
    pins = (key_digest(root.certificate), key_digest(issue(NAME, issuer=root).certificate))
    recorder = record([leaf])
    expectation = Expectation(context(root), NAME, check_name=check_name, pins=pins)
    lost, words = await dial(recorder, expectation)
    assert recorder.received == b""
    assert lost == Lost.CERTIFICATE_PIN
    assert NAME in words


@pytest_twisted.ensureDeferred
async def test_a_pin_is_no_substitute_for_the_name(root: Pair, record: Any) -> None:
    leaf = issue("mc2.example.com", issuer=root)
    recorder = record([leaf])
    pins = (key_digest(leaf.certificate),)
    lost, _ = await dial(recorder, Expectation(context(root), NAME, pins=pins))
    assert recorder.received == b""
    assert lost == NAME_WRONG


# The second look


@pytest.mark.parametrize("kind", ["another name", "no SAN", "a malformed SAN"])
@pytest_twisted.ensureDeferred
async def test_the_name_is_checked_after_the_handshake_too(
    kind: str, root: Pair, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever OpenSSL's callback lets through."""
    monkeypatch.setattr("memtunnel.net.tls.Handshake._opinion", lambda *_: True)
    recorder = record(BAD[kind].make(root))
    lost, _ = await dial(recorder, Expectation(context(root), NAME))
    assert recorder.received == b""
    assert lost == NAME_WRONG


@pytest.mark.parametrize("kind", ["another name", "no SAN", "a malformed SAN"])
@pytest_twisted.ensureDeferred
async def test_the_name_is_checked_during_the_handshake(
    kind: str, root: Pair, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is done after it."""
    monkeypatch.setattr("memtunnel.net.tls.Handshake.verify", lambda *_: None)
    recorder = record(BAD[kind].make(root))
    lost, _ = await dial(recorder, Expectation(context(root), NAME))
    assert recorder.received == b""
    assert lost == NAME_WRONG


@pytest_twisted.ensureDeferred
async def test_an_error_in_the_check_refuses(
    root: Pair, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("what nobody thought of")

    monkeypatch.setattr("memtunnel.net.tls.Expectation.check", broken)
    recorder = record([issue(NAME, issuer=root)])
    lost, words = await dial(recorder, Expectation(context(root), NAME))
    assert recorder.received == b""
    assert lost == CHAIN_WRONG
    assert "nobody thought of" in words


# Servers that do not speak as they should


@pytest_twisted.ensureDeferred
async def test_clear_text_is_not_tls(root: Pair, record: Any) -> None:
    recorder = record([issue(NAME, issuer=root)], ClearText)
    lost, _ = await dial(recorder, Expectation(context(root), NAME))
    assert lost == Lost.NOT_TLS
    assert recorder.received == b""


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest_twisted.ensureDeferred
async def test_an_old_version_is_refused(root: Pair, record: Any) -> None:
    recorder = record([issue(NAME, issuer=root)])
    recorder.context.minimum_version = ssl.TLSVersion.TLSv1
    recorder.context.maximum_version = ssl.TLSVersion.TLSv1_1
    lost, words = await dial(recorder, Expectation(context(root), NAME))
    assert lost == Lost.TLS
    assert words
    assert recorder.received == b""


@pytest.mark.parametrize("ciphers", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256"])
@pytest_twisted.ensureDeferred
async def test_a_weak_cipher_is_refused(ciphers: str, root: Pair, record: Any) -> None:
    """Without forward secrecy, or without authenticated encryption."""
    key = rsa.generate_private_key(65537, 2048) if ciphers.startswith("AES") else None
    recorder = record([issue(NAME, issuer=root, key=key)])
    recorder.context.maximum_version = ssl.TLSVersion.TLSv1_2
    recorder.context.set_ciphers(ciphers)
    lost, _ = await dial(recorder, Expectation(context(root), NAME))
    assert lost == Lost.TLS
    assert recorder.received == b""


@pytest_twisted.ensureDeferred
async def test_tls_1_2_is_accepted(root: Pair, record: Any) -> None:
    recorder = record([issue(NAME, issuer=root)])
    recorder.context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await dial(recorder, Expectation(context(root), NAME)) == (WARM, "")


@pytest.mark.parametrize(("name", "asked"), [(NAME, NAME), ("127.0.0.1", None)])
@pytest_twisted.ensureDeferred
async def test_sni_bears_a_name_and_never_an_address(
    name: str, asked: str | None, root: Pair, record: Any
) -> None:
    recorder = record([issue(name, issuer=root)])
    assert (await dial(recorder, Expectation(context(root), name)))[0] == WARM
    assert recorder.asked_name == asked


@pytest_twisted.ensureDeferred
async def test_no_session_is_resumed(root: Pair, tmp_path: Path) -> None:
    """OpenSSL would not look at the certificate of a resumed one."""
    trusted = context(root)
    leaf = issue(NAME, issuer=root)
    reused: list[bool | None] = []

    class Noting(Recorder):
        def serve(self, connection: socket.socket) -> None:
            with shared.wrap_socket(connection, server_side=True) as secured:
                reused.append(secured.session_reused)
                self.context = shared
                while data := secured.recv(65536):
                    for frame in binary.split(data)[0]:
                        secured.sendall(binary.answer(frame.opcode, frame.opaque))

    first = Noting([leaf], tmp_path)
    shared = first.context
    for recorder in (first, Noting([leaf], tmp_path)):
        assert (await dial(recorder, Expectation(trusted, NAME)))[0] == WARM
    assert reused == [False, False]


# Roots


@pytest_twisted.ensureDeferred
async def test_every_root_of_a_bundle_is_trusted(record: Any, tmp_path: Path) -> None:
    roots = [authority.authority(f"root {number}") for number in range(3)]
    text = b"# Some roots\n\n"
    for number, root in enumerate(roots):
        text += b"Root number %d\n===========\n" % number + root.pem.replace(b"\n", b"\r\n")
    trusted = make_context(load_roots(text + b"# the end"))
    assert len(load_roots(text)) == 3
    for number, root in enumerate(roots):
        folder = tmp_path / str(number)
        folder.mkdir()
        recorder = Recorder([issue(NAME, issuer=root)], folder)
        assert (await dial(recorder, Expectation(trusted, NAME)))[0] == WARM


@pytest.mark.parametrize("bundle", [b"", b"# nothing\n", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_bundle_without_a_root_is_refused(bundle: bytes) -> None:
    with pytest.raises(ValueError, match="no certificate"):
        load_roots(bundle)


def test_a_key_is_no_root(root: Pair) -> None:
    with pytest.raises(ValueError, match="no certificate"):
        load_roots(root.key_pem)


def test_a_broken_root_is_refused(root: Pair) -> None:
    broken = root.pem + b"-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n"
    with pytest.raises(ValueError, match=r"a certificate that cannot be read: \w+"):
        load_roots(broken)


@pytest_twisted.ensureDeferred
async def test_the_system_does_not_trust_a_test_authority(root: Pair, record: Any) -> None:
    recorder = record([issue(NAME, issuer=root)])
    lost, _ = await dial(recorder, Expectation(make_context(None), NAME))
    assert recorder.received == b""
    assert lost == CHAIN_WRONG


@pytest.mark.parametrize(
    ("certificate", "names"),
    [
        (issue("a.example.com", "10.0.0.1"), "a.example.com, 10.0.0.1"),
        (issue(common_name="cn"), "no host name, subject 'CN=cn'"),
        (issue(common_name="cn", extensions=(san(),)), "no host name, subject 'CN=cn'"),
        (
            issue(common_name="cn", extensions=(GARBAGE,)),
            "names that cannot be read, subject 'CN=cn'",
        ),
    ],
)
def test_names_are_told_to_people(certificate: Pair, names: str) -> None:
    assert names_of(certificate.certificate) == names
