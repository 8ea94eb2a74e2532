"""A server with a bad certificate gets no byte of application data, and the log says why.

One real tunnel has a server for each kind of certificate, good and bad, at an address of its own.
The servers say yes to all requests, and record every byte of application data.
What a single connection makes of a certificate is in `test_tls`.
"""

import base64
import contextlib
import datetime
import re
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import authority
import pytest
import servers
from authority import DAY, Pair, issue
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from memtunnel.net.tls import key_digest
from memtunnel.wire import binary, sasl
from memtunnel.wire.binary import Opcode, Status

NAME = "mc1.example.com"
#: So often each bad one is dialled, and the log says it once.
DIALS = 2
WARM = "ok"
NAME_WRONG = "certificate_name"
CHAIN_WRONG = "certificate_chain"
DATE_WRONG = "certificate_date"
PIN_WRONG = "certificate_pin"


# What certificates are made of, beyond what `authority` has.


@dataclass(frozen=True)
class Roots:
    """What the tunnel trusts; some of it should not be of use."""

    usual: Pair
    of_rsa: Pair
    expired: Pair
    of_the_future: Pair
    constrained: Pair

    @property
    def pem(self) -> bytes:
        return b"".join(root.pem for root in vars(self).values())


def made(
    *names: str,
    issuer: Pair,
    key: Any = None,
    common_name: str = "memtunnel test",
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
) -> Pair:
    """A certificate that has just these extensions, each with whether it is critical."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)
        .not_valid_after(now + 30 * DAY)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([authority.general_name(n) for n in names])
        builder = builder.add_extension(alternatives, critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return Pair(builder.sign(issuer.key, hashes.SHA256()), key)


def weakly_signed(issuer: Pair, algorithm: hashes.HashAlgorithm, last: int) -> Pair:
    """Signed with RSA and this hash, whose identifier ends so; nothing makes those any more."""
    pair = issue(NAME, issuer=issuer)
    sha256, weak = (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01" + bytes((end,)) for end in (11, last))
    signed = pair.certificate.tbs_certificate_bytes
    der = pair.certificate.public_bytes(Encoding.DER)
    assert signed.count(sha256) == 1
    weakly = signed.replace(sha256, weak)
    assert isinstance(issuer.key, rsa.RSAPrivateKey)
    signature = issuer.key.sign(weakly, padding.PKCS1v15(), algorithm)
    der = der.replace(signed, weakly).replace(sha256, weak)
    der = der.replace(pair.certificate.signature, signature)
    return Pair(x509.load_der_x509_certificate(der), pair.key)


def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def usage(**yes: bool) -> x509.KeyUsage:
    no = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**(no | yes))


def short_path(root: Pair) -> list[Pair]:
    """Two intermediates, where the upper one may have none below."""
    limit = (x509.BasicConstraints(ca=True, path_length=0), True)
    upper = made(issuer=root, common_name="upper", extensions=(limit,))
    lower = issue(issuer=upper, authority=True, common_name="lower")
    return [issue(NAME, issuer=lower), lower, upper]


def below(root: Pair, *extensions: tuple[x509.ExtensionType, bool]) -> list[Pair]:
    """A leaf below an intermediate that has these extensions."""
    middle = made(issuer=root, common_name="middle", extensions=extensions)
    return [issue(NAME, issuer=middle), middle]


def raw_san(*names: tuple[int, bytes]) -> x509.UnrecognizedExtension:
    """A subjectAltName of these tags and bytes, whatever they are."""
    content = b"".join(bytes((tag, len(data))) + data for tag, data in names)
    der = bytes((0x30, len(content))) + content
    return x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, der)


DNS, ADDRESS = 0x82, 0x87
CA = (x509.BasicConstraints(ca=True, path_length=None), True)
EKU = ExtendedKeyUsageOID

# The kinds.


@dataclass(frozen=True)
class Kind:
    """From the trusted roots, and the address that is dialled, to the chain that is sent."""

    make: Callable[[Roots, str], list[Pair]]
    result: str = WARM
    words: tuple[str, ...] = ()
    """What the line in the log has to contain."""
    name: str = NAME
    """What the certificate is to bear: the address that is dialled, where this is empty."""
    pin: Callable[[list[Pair]], x509.Certificate] | None = None
    """Whose key is pinned."""


def leaf(*names: str, **options: Any) -> Callable[[Roots, str], list[Pair]]:
    return lambda roots, _: [issue(*names, issuer=roots.usual, **options)]


def with_san(extension: x509.ExtensionType) -> Callable[[Roots, str], list[Pair]]:
    return leaf(common_name=NAME, extensions=(extension,))


def with_use(*uses: x509.ObjectIdentifier) -> Callable[[Roots, str], list[Pair]]:
    return leaf(NAME, extensions=(x509.ExtendedKeyUsage(uses),))


def of_the_same_name(roots: Roots, _: str) -> list[Pair]:
    other = authority.authority()
    return [issue(NAME, issuer=other), other]


GOOD = {
    "the name": Kind(leaf(NAME)),
    "the name in capitals": Kind(leaf("MC1.EXAMPLE.COM")),
    "a second name": Kind(leaf("other.example.net", NAME)),
    "a wildcard that fits": Kind(leaf("*.example.com")),
    "an address": Kind(lambda roots, host: [issue(host, issuer=roots.usual)], name=""),
    "a name in punycode": Kind(leaf("xn--bcher-kva.example"), name="xn--bcher-kva.example"),
    "no extended key usage": Kind(leaf(NAME)),
    "any extended key usage beside a server's": Kind(
        with_use(EKU.ANY_EXTENDED_KEY_USAGE, EKU.SERVER_AUTH)
    ),
    "a server's extended key usage": Kind(with_use(EKU.SERVER_AUTH)),
    "an RSA key": Kind(lambda roots, _: [issue(NAME, issuer=roots.usual, key=rsa_key(2048))]),
    "an ECDSA key": Kind(leaf(NAME, key=ec.generate_private_key(ec.SECP384R1()))),
    "an Ed25519 key": Kind(leaf(NAME, key=ed25519.Ed25519PrivateKey.generate())),
    "a root with an RSA key": Kind(lambda roots, _: [issue(NAME, issuer=roots.of_rsa)]),
    "an intermediate that is sent": Kind(lambda roots, _: below(roots.usual, CA)),
    "a pinned key": Kind(leaf(NAME), pin=lambda chain: chain[0].certificate),
    "a name within the constraints": Kind(
        lambda roots, _: [issue("mc1.allowed.example", issuer=roots.constrained)],
        name="mc1.allowed.example",
    ),
}

BAD = {
    "no SAN": Kind(leaf(common_name=NAME), NAME_WRONG, ("no host name", f"CN={NAME}")),
    "an empty SAN": Kind(with_san(raw_san()), NAME_WRONG, ("no host name", f"CN={NAME}")),
    "a malformed SAN": Kind(
        with_san(raw_san((DNS, NAME.encode()), (ADDRESS, b"\1\2\3\4\5"))),
        NAME_WRONG,
        ("names that cannot be read",),
    ),
    "a name that is no text": Kind(
        with_san(raw_san((DNS, b"\xff\xfe"))), NAME_WRONG, ("names that cannot be read",)
    ),
    "another name": Kind(
        leaf("other.example", "two.example"),
        NAME_WRONG,
        ("other.example, two.example", f"not {NAME}"),
    ),
    "a wildcard for all of .com": Kind(leaf("*.com"), NAME_WRONG, ("*.com",)),
    "a wildcard for everything": Kind(leaf("*"), NAME_WRONG),
    "a wildcard for a part of a label": Kind(leaf("m*.example.com"), NAME_WRONG, ("m*.",)),
    "a wildcard two levels up": Kind(leaf("*.example.com"), NAME_WRONG, name="a.b.example.com"),
    "an address in a dNSName": Kind(
        lambda roots, host: with_san(raw_san((DNS, host.encode())))(roots, host),
        NAME_WRONG,
        name="",
    ),
    "a name for an address": Kind(leaf(NAME), NAME_WRONG, (NAME,), name=""),
    "another address": Kind(leaf("127.0.0.99"), NAME_WRONG, ("127.0.0.99",), name=""),
    "an address for a name": Kind(
        lambda roots, host: [issue(host, issuer=roots.usual)], NAME_WRONG, (f"not {NAME}",)
    ),
    "a NUL in the name": Kind(
        with_san(raw_san((DNS, NAME.encode() + b"\0.evil.example"))), NAME_WRONG, (".evil.example",)
    ),
    "a dot behind the name": Kind(leaf(NAME + "."), NAME_WRONG, (NAME + ".,",)),
    "letters that look alike": Kind(
        with_san(raw_san((DNS, "bücher.example".encode()))),
        NAME_WRONG,
        name="xn--bcher-kva.example",
    ),
    "a wildcard in punycode": Kind(
        leaf("xn--bcher*.example"), NAME_WRONG, name="xn--bcher-kva.example"
    ),
    "an expired leaf": Kind(leaf(NAME, days=(-30, -1)), DATE_WRONG, (NAME, "has expired")),
    "a leaf of the future": Kind(leaf(NAME, days=(1, 30)), DATE_WRONG, (NAME, "is not valid yet")),
    "an expired root": Kind(
        lambda roots, _: [issue(NAME, issuer=roots.expired)], DATE_WRONG, ("CN=old", "has expired")
    ),
    "a root of the future": Kind(
        lambda roots, _: [issue(NAME, issuer=roots.of_the_future)],
        DATE_WRONG,
        ("CN=young", "is not valid yet"),
    ),
    "an expired intermediate": Kind(
        lambda roots, _: [
            issue(
                NAME,
                issuer=(
                    middle := authority.authority("middle", issuer=roots.usual, days=(-30, -1))
                ),
            ),
            middle,
        ],
        DATE_WRONG,
        ("CN=middle", "has expired"),
    ),
    "another authority": Kind(
        lambda *_: [issue(NAME, issuer=authority.authority("another one"))],
        CHAIN_WRONG,
        (NAME, "is not trusted"),
    ),
    "another authority of the same name": Kind(of_the_same_name, CHAIN_WRONG, ("is not trusted",)),
    "self-signed": Kind(lambda *_: [issue(NAME)], CHAIN_WRONG, (NAME, "self-signed")),
    "a missing intermediate": Kind(
        lambda roots, _: below(roots.usual, CA)[:1], CHAIN_WRONG, (NAME, "not sent")
    ),
    "an intermediate that is a leaf": Kind(
        lambda roots, _: below(roots.usual, (x509.BasicConstraints(False, None), True)),
        CHAIN_WRONG,
        ("CN=middle", "no certificate authority"),
    ),
    "an intermediate without a word on that": Kind(
        lambda roots, _: below(roots.usual), CHAIN_WRONG, ("CN=middle",)
    ),
    "an intermediate that may not sign": Kind(
        lambda roots, _: below(roots.usual, CA, (usage(digital_signature=True), True)),
        CHAIN_WRONG,
        ("CN=middle",),
    ),
    "too long a path": Kind(lambda roots, _: short_path(roots.usual), CHAIN_WRONG, ("CN=",)),
    "for clients only": Kind(
        with_use(EKU.CLIENT_AUTH), CHAIN_WRONG, (NAME, "not meant for a server")
    ),
    "for any use and no server's by name": Kind(
        with_use(EKU.ANY_EXTENDED_KEY_USAGE), CHAIN_WRONG, (NAME, "not meant for a server")
    ),
    "for the signing of code": Kind(with_use(EKU.CODE_SIGNING), CHAIN_WRONG, (NAME,)),
    "an intermediate for clients only": Kind(
        lambda roots, _: below(roots.usual, CA, (x509.ExtendedKeyUsage([EKU.CLIENT_AUTH]), False)),
        CHAIN_WRONG,
        ("CN=middle", "not meant for a server"),
    ),
    "a key that may only sign certificates": Kind(
        leaf(NAME, extensions=(usage(key_cert_sign=True),)), CHAIN_WRONG, (NAME,)
    ),
    "a signature with SHA-1": Kind(
        lambda roots, _: [weakly_signed(roots.of_rsa, hashes.SHA1(), 5)],
        CHAIN_WRONG,
        (NAME, "too weak"),
    ),
    "a signature with MD5": Kind(
        lambda roots, _: [weakly_signed(roots.of_rsa, hashes.MD5(), 4)],
        CHAIN_WRONG,
        (NAME, "too weak"),
    ),
    "a wrong signature": Kind(
        lambda roots, _: [authority.tampered(issue(NAME, issuer=roots.usual))],
        CHAIN_WRONG,
        (NAME, "signature is wrong"),
    ),
    "an RSA key of 1024 bits": Kind(
        lambda roots, _: [issue(NAME, issuer=roots.usual, key=rsa_key(1024))],
        CHAIN_WRONG,
        (NAME, "too short"),
    ),
    "a name that its authority may not give": Kind(
        lambda roots, _: [issue(NAME, issuer=roots.constrained)], CHAIN_WRONG, (NAME,)
    ),
    "a critical extension that nobody knows": Kind(
        lambda roots, _: [
            made(
                NAME,
                issuer=roots.usual,
                extensions=(
                    (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True),
                ),
            )
        ],
        CHAIN_WRONG,
        (NAME,),
    ),
    "another key than the pinned one": Kind(
        leaf(NAME), PIN_WRONG, (NAME,), pin=lambda _: issue(NAME).certificate
    ),
    "the root's key pinned": Kind(
        lambda roots, _: [issue(NAME, issuer=roots.usual), roots.usual],
        PIN_WRONG,
        (NAME,),
        pin=lambda chain: chain[1].certificate,
    ),
    "a pinned key under another name": Kind(
        leaf("mc2.example.com"),
        NAME_WRONG,
        ("mc2.example.com",),
        pin=lambda chain: chain[0].certificate,
    ),
}
#: Of the chain, some that are refused under ``--verify chain`` too.
SOME_CHAINS = ("another authority", "self-signed", "for clients only", "too long a path")
#: Under ``--verify chain``: no name is wrong, and all else is as it was.
UNNAMED = {
    kind: replace(case, result=WARM, words=()) if case.result == NAME_WRONG else case
    for kind, case in BAD.items()
    if case.result != CHAIN_WRONG or kind in SOME_CHAINS
} | {"the name": GOOD["the name"]}


# Who is dialled, and who dials.


class Recorder(threading.Thread):
    """A TLS server at an address of its own; it says yes to all, and records what it is told."""

    def __init__(self, host: str, chain: list[Pair], folder: Path) -> None:
        super().__init__(name=f"TLS recorder {host}", daemon=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chain.pem").write_bytes(b"".join(pair.pem for pair in chain))
        (folder / "key.pem").write_bytes(chain[0].key_pem)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.set_ciphers("DEFAULT:@SECLEVEL=0")
        self._context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
        self.host = host
        self._listening = socket.create_server((host, 0))
        self.port: int = self._listening.getsockname()[1]
        self.dials = 0
        self.connections: list[threading.Thread] = []
        self.received = b""

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.dials += 1
                thread = threading.Thread(target=self._record, args=(connection,), daemon=True)
                thread.start()
                self.connections.append(thread)

    def stop(self) -> None:
        """Returns once all that was sent is in the record."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.join(servers.PATIENCE)
        for thread in self.connections:
            thread.join(servers.PATIENCE)
            assert not thread.is_alive()

    def _record(self, connection: socket.socket) -> None:
        connection.settimeout(servers.PATIENCE)
        left = b""
        with contextlib.suppress(OSError), connection:
            secure = self._context.wrap_socket(connection, server_side=True)
            with secure:
                while data := secure.recv(1 << 16):
                    self.received += data
                    frames, left = binary.split(left + data)
                    for frame in frames:
                        secure.sendall(binary.answer(frame.opcode, frame.opaque))


@dataclass
class Seen:
    """What came of all kinds: how often connections ended how, lines of the log, records."""

    connects: dict[str, dict[str, float]]
    lines: dict[str, list[str]]
    received: dict[str, bytes]
    log: str
    metrics: str


def connects_of(metrics: str, kinds: list[str]) -> dict[str, dict[str, float]]:
    """By kind and result, the number of connections that were tried."""
    found: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    for line in metrics.splitlines():
        if line.startswith("memtunnel_upstream_connects_total{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            number = float(line.rpartition(" ")[2])
            if number:
                kind = kinds[int(labels["server"].removeprefix("kind"))]
                found[kind][labels["result"]] = number
    return found


def look(kinds: dict[str, Kind], roots: Roots, folder: Path, *flags: str) -> Seen:
    """Dial a server of each kind with one tunnel: a good one once, the others a few times."""
    ca_file = folder / "ca.pem"
    ca_file.write_bytes(roots.pem)
    names = list(kinds)
    recorders: list[Recorder] = []
    arguments = [*flags, f"--ca-file={ca_file}", f"--username={servers.USERNAME}"]
    arguments.append("--pool-size=1")
    with servers.closing_all([]) as started:
        for number, case in enumerate(kinds.values()):
            host = f"127.0.1.{number + 1}"
            chain = case.make(roots, host)
            recorder = Recorder(host, chain, folder / str(number))
            recorder.start()
            recorders.append(recorder)
            started.append(recorder)
            arguments.append(f"--server={host}:{recorder.port}=kind{number}")
            if case.name:
                arguments.append(f"--tls-name={host}={case.name}")
            if case.pin is not None:
                digest = base64.b64encode(key_digest(case.pin(chain))).decode()
                arguments.append(f"--tls-pin={host}=sha256/{digest}")
        tunnel = servers.Tunnel(*arguments, environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD})
        started.append(tunnel)
        tunnel.start()

        def metrics_of_all() -> str:
            metrics = tunnel.get("/metrics")[1]
            connects = connects_of(metrics, names)
            tried = {kind: sum(results.values()) for kind, results in connects.items()}
            done = all(connects[kind].get(WARM) or tried[kind] >= DIALS for kind in names)
            return metrics if done else ""

        metrics = servers.wait_until(metrics_of_all, "all are dialled")
    # All have stopped: nothing is added to the records any more.
    log = tunnel.log()
    lines = log.splitlines()
    return Seen(
        connects_of(metrics, names),
        {
            kind: [line for line in lines if re.search(rf"\bkind{number}: ", line)]
            for number, kind in enumerate(names)
        },
        {kind: recorder.received for kind, recorder in zip(names, recorders, strict=True)},
        log,
        metrics,
    )


@pytest.fixture(scope="module")
def roots() -> Roots:
    example = x509.DNSName("allowed.example")
    constraint = x509.NameConstraints(permitted_subtrees=[example], excluded_subtrees=None)
    return Roots(
        usual=authority.authority(),
        of_rsa=authority.authority("of RSA", key=rsa_key(2048)),
        expired=authority.authority("old", days=(-30, -1)),
        of_the_future=authority.authority("young", days=(1, 30)),
        constrained=authority.authority("constrained", extensions=(constraint,)),
    )


@pytest.fixture(scope="module")
def seen(roots: Roots, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return look(GOOD | BAD, roots, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def seen_unnamed(roots: Roots, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return look(UNNAMED, roots, tmp_path_factory.mktemp("unnamed"), "--verify=chain")


def check(seen: Seen, kind: str, case: Kind) -> None:
    results = seen.connects[kind]
    (line,) = seen.lines[kind]
    assert set(results) == {case.result}, line
    if case.result == WARM:
        assert line.endswith(": warm")
        assert seen.received[kind][1] == Opcode.SASL_AUTH
        assert sasl.MECHANISM in seen.received[kind]
        return
    assert seen.received[kind] == b""
    assert results[case.result] >= DIALS
    assert f": {case.result} (" in line
    for word in case.words:
        assert word in line


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_one_becomes_warm(kind: str, seen: Seen) -> None:
    check(seen, kind, GOOD[kind])


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_one_is_sent_nothing_and_the_log_says_why(kind: str, seen: Seen) -> None:
    check(seen, kind, BAD[kind])


@pytest.mark.parametrize("kind", UNNAMED)
def test_without_a_check_of_names_all_else_is_checked(kind: str, seen_unnamed: Seen) -> None:
    check(seen_unnamed, kind, UNNAMED[kind])


def test_that_names_are_not_checked_is_said(seen: Seen, seen_unnamed: Seen) -> None:
    assert "--verify chain: the names of certificates are not checked" in seen_unnamed.log
    assert "names of certificates are not checked" not in seen.log
    for looked, mode, other in ((seen, "full", "chain"), (seen_unnamed, "chain", "full")):
        lines = [one for one in looked.metrics.splitlines() if "tls_verify_info{" in one]
        assert len(lines) == len(looked.lines)
        assert all(f'mode="{mode}"' in line and line.endswith(" 1.0") for line in lines)
        assert f'mode="{other}"' not in looked.metrics


def test_no_certificate_makes_the_tunnel_stumble(seen: Seen, seen_unnamed: Seen) -> None:
    for log in (seen.log, seen_unnamed.log):
        assert "Traceback" not in log
        assert servers.PASSWORD not in log


def test_there_are_enough_kinds() -> None:
    assert len(BAD) >= 24
    assert {case.result for case in BAD.values()} == {
        NAME_WRONG,
        CHAIN_WRONG,
        DATE_WRONG,
        PIN_WRONG,
    }


def test_clients_are_told_of_misses_meanwhile(
    roots: Roots, tmp_path: Path, started: list[Any], connect: Callable[..., servers.Wire]
) -> None:
    recorder = Recorder("127.0.0.1", [issue("other.example", issuer=roots.usual)], tmp_path)
    recorder.start()
    started.append(recorder)
    (tmp_path / "ca.pem").write_bytes(roots.pem)
    tunnel = servers.Tunnel(
        f"--server=localhost:{recorder.port}=recorder",
        f"--ca-file={tmp_path / 'ca.pem'}",
        f"--username={servers.USERNAME}",
        environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD},
    )
    started.append(tunnel)
    tunnel.start()
    client = connect(tunnel)
    servers.wait_until(lambda: recorder.dials > DIALS, "the tunnel tries again")
    assert client.set(b"k", b"v").status == Status.NOT_STORED
    assert client.get(b"k").status == Status.NOT_FOUND
    assert recorder.received == b""
    assert tunnel.get("/readyz")[0] == 503
    lines = [line for line in tunnel.log().splitlines() if "recorder: no connection" in line]
    assert len(lines) == 1, "each dial is said"
