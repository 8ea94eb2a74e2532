"""``memtunnel check``: dial every server once, and say for people what came of it.

Each server is dialled twice. The first connection only looks: it completes the handshake
whatever the certificate is, shows it, and is closed without an application byte. Only where
the certificate passes the configured ``--verify``, a second connection, judged by the tunnel's
own `Handshake`, logs in and measures. Like the tunnel's it has ``--connect-timeout`` for its
whole set-up, up to the first NOOP; anything else may take as long by itself.

Left to others: what the settings are (`config`), whom to trust (`net.tls`), and the
conversation (`net.blocking`).
"""

import base64
import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final, cast

from cryptography import x509
from OpenSSL import SSL, crypto
from twisted.python import usage

from memtunnel.addresses import host_port
from memtunnel.config import Config, ConfigError, ServerConfig, describe
from memtunnel.core.outcomes import NO_LOGINS, Lost
from memtunnel.net.blocking import Address, Channel, Deadline, Trouble, connect, look_up
from memtunnel.net.tls import (
    Expectation,
    Handshake,
    Untrusted,
    chain_problem,
    dates_of,
    key_digest,
    make_context,
    names_of,
    printable,
)
from memtunnel.service import CannotStart, Options, configuration, trusted_roots
from memtunnel.wire.binary import STATUS_TEXT, Frame, Opcode, Status
from memtunnel.wire.sasl import MECHANISM
from memtunnel.worker import expectation

NOOPS: Final = 20
#: Names of a certificate that are suggested for --tls-name.
SUGGESTIONS: Final = 3


def main(arguments: list[str]) -> int:
    """0 only if every server passes everything under the configured settings, else 1."""
    options = cast(Any, Options)()
    options.synopsis = "memtunnel check [options of the tunnel]"
    try:
        options.parseOptions(arguments)
        config = configuration(options, os.environ)
        if config.check_config:
            print(describe(config))
            return 0
        if config.demo:
            raise Trouble("--demo brings a server of its own, there is nothing to check: omit it")
        context = make_context(trusted_roots(config))
    except (usage.UsageError, ConfigError, CannotStart, Trouble) as problem:
        for line in str(problem).splitlines():
            print(f"memtunnel check: {printable(line)}", file=sys.stderr)
        return 1
    passed = 0
    for server in config.servers:
        print(host_port(server.host, server.port))
        passes = Check(server, config, context, _print).run()
        _print("result", "passes" if passes else "FAILS")
        print(flush=True)
        passed += passes
    print(f"{passed} of {len(config.servers)} servers pass, with --verify {config.verify}")
    return 0 if passed == len(config.servers) else 1


def _print(label: str, words: str) -> None:
    print(f"  {label:<9}{printable(words)}")


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What the connection that only looks has seen of the server's certificates."""

    chain: list[x509.Certificate]
    """As it was sent, the server's own first."""
    problem: Untrusted | None
    """What is wrong with the chain or its dates."""


class Check:
    """The check of one server. `say` takes a label and a line of words."""

    def __init__(
        self,
        server: ServerConfig,
        config: Config,
        context: SSL.Context,
        say: Callable[[str, str], None],
    ) -> None:
        self._server = server
        self._host = server.host
        self._config = config
        self._context = context
        self._timeout = config.connect_timeout
        self._say = say
        self._phase = "TCP"

    def run(self) -> bool:
        """Whether the server passes everything."""
        try:
            address, connected = self._dial()
            sight = self._look(connected)
            if not self._judge(sight):
                self._say("login", "not tried: nothing is sent to a server that does not verify")
                return False
            self._speak(address)
        except Trouble as trouble:
            self._say(self._phase, str(trouble))
            return False
        return True

    def _dial(self) -> tuple[Address, socket.socket]:
        """The first address of the server that takes a connection, and that connection."""
        for address in look_up(self._host, self._server.port, self._timeout):
            there = host_port(*address.where[:2])
            began = time.perf_counter()
            try:
                connected = connect(address, Deadline(self._timeout))
            except Trouble as trouble:
                self._say("TCP", f"{there}: {trouble}")
            else:
                took = _ms(time.perf_counter() - began)
                self._say("TCP", f"{there}: connected in {took} ms")
                return address, connected
        raise Trouble("no address of this server takes a connection")

    # The connection that only looks

    def _look(self, connected: socket.socket) -> Sight:
        problems: list[Untrusted] = []

        def record(_: object, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
            if not ok:
                problems.append(_chain_problem(code, depth, certificate))
            return True

        self._phase = "TLS"
        connection = _connection(self._expectation().handshake())
        connection.set_verify(SSL.VERIFY_PEER, record)
        with contextlib.closing(Channel(connected, connection)) as channel:
            channel.handshake(Deadline(self._timeout))
            version, cipher = connection.get_protocol_version_name(), connection.get_cipher_name()
            self._say("TLS", f"{version}, {cipher}")
            try:
                chain = connection.get_peer_cert_chain(as_cryptography=True) or []
            except Exception as error:  # whatever cryptography thinks of what was sent
                raise Trouble(f"the certificates cannot be read: {error}") from None
        for depth, certificate in enumerate(chain):
            self._show(depth, certificate)
        return Sight(chain=chain, problem=problems[0] if problems else None)

    def _show(self, depth: int, certificate: x509.Certificate) -> None:
        label = f"cert {depth}"
        try:
            key = f"sha256/{base64.b64encode(key_digest(certificate)).decode()}"
            lines = [
                f"subject  {certificate.subject.rfc4514_string()}",
                f"issuer   {certificate.issuer.rfc4514_string()}",
                f"dates    {dates_of(certificate)}",
            ]
            if depth == 0:
                lines += [f"names    {names_of(certificate)}", f"pin      {self._host}={key}"]
            else:
                lines += [f"key      {key}"]
        except Exception as error:  # parts of it are parsed only here
            lines = [f"cannot be read: {error}"]
        for line in lines:
            self._say(label, line)
            label = ""

    # The verdict

    def _expectation(self, **changes: Any) -> Expectation:
        """The tunnel's own of this server, or what it would be with other settings."""
        return expectation(replace(self._config, **changes), self._server, self._context)

    def _judge(self, sight: Sight) -> bool:
        """Say which ``--verify`` would pass; whether the configured one does."""
        full = _problem(sight, self._expectation(verify="full"))
        chain = _problem(sight, self._expectation(verify="chain"))
        if chain is not None:
            self._say("verify", f"neither full nor chain would pass: {chain}")
        elif full is not None:
            self._say("verify", f"full would not pass: {full}")
            self._say("verify", "chain would pass")
        else:
            self._say("verify", "full and chain would pass")
        for advice in self._advice(sight, chain or full):
            self._say("to do", advice)
        return (full if self._config.verify == "full" else chain) is None

    def _advice(self, sight: Sight, problem: Untrusted | None) -> list[str]:
        """What to set, given the worst of what is wrong."""
        host = self._host
        if problem is None:
            if self._config.verify == "chain":
                return ["leave --verify chain out: the name is right"]
            return []
        if problem.lost is Lost.CERTIFICATE_CHAIN:
            return ["its root into the file of --ca-file; memtunnel ca FILE fetches MemCachier's"]
        if problem.lost is Lost.CERTIFICATE_DATE:
            return ["if this machine's clock is right, the provider has to renew the certificate"]
        pin = f"--tls-pin {host}=sha256/{base64.b64encode(key_digest(sight.chain[0])).decode()}"
        if problem.lost is Lost.CERTIFICATE_PIN:
            return [f"{pin}, if the provider says that this is the new key"]
        names = [
            name
            for name in _names_to_expect(sight.chain[0], host)
            if _problem(sight, self._expectation(verify="full", tls_names={host: name})) is None
        ]
        sure = "if the provider says that this is the server's name"
        return [f"--tls-name {host}={name}, {sure}" for name in names] or [
            f"--verify chain {pin}, if the provider says that this is the server's key"
        ]

    # The connection that speaks

    def _speak(self, address: Address) -> None:
        """Log in and measure, over a connection that the tunnel would trust."""
        seconds = self._timeout
        given_up = f"not warm within {seconds:g} s: the tunnel, too, would give up here"
        warm = Deadline(seconds, f"{given_up}; --connect-timeout says when")
        self._phase = "TCP"
        connected = connect(address, warm)
        self._phase = "TLS"
        handshake = self._expectation().handshake()
        connection = _connection(handshake)
        with contextlib.closing(Channel(connected, connection)) as channel:
            try:
                channel.handshake(warm)
                handshake.verify(connection)
            except Untrusted as problem:
                raise Trouble(str(problem)) from None
            except Trouble as trouble:
                raise (Trouble(str(handshake.problem)) if handshake.problem else trouble) from None
            self._log_in(channel, warm)
            self._measure(channel, warm)

    def _log_in(self, channel: Channel, warm: Deadline) -> None:
        self._phase = "login"
        credentials = self._config.credentials
        if credentials is None:
            self._say("login", "none is configured")
            return
        answer = channel.ask(warm, Opcode.SASL_AUTH, MECHANISM, credentials.initial_response())
        if answer.status == Status.UNKNOWN_COMMAND:
            raise Trouble(NO_LOGINS)
        if answer.status != Status.OK:
            raise Trouble(f"{credentials.username}: refused, {_status(answer)}")
        self._say("login", f"{credentials.username}: accepted")

    def _measure(self, channel: Channel, warm: Deadline) -> None:
        """Up to the first NOOP, what the tunnel asks before a connection is warm."""
        self._phase = "version"
        try:
            answer = channel.ask(warm, Opcode.VERSION)
        except Trouble as trouble:
            if str(trouble) != warm.missed or self._config.credentials is not None:
                raise
            raise Trouble(f"{trouble}. A server that speaks only text answers nothing") from None
        told = answer.status == Status.OK
        self._say("version", answer.value.decode(errors="replace") if told else _status(answer))
        self._phase = "NOOP"
        times: list[float] = []
        for _ in range(NOOPS):
            deadline = Deadline(self._timeout) if times else warm
            began = time.perf_counter()
            answer = channel.ask(deadline, Opcode.NOOP)
            times.append(time.perf_counter() - began)
            if answer.status == Status.AUTH_FAILED and self._config.credentials is None:
                raise Trouble("the server wants a login, and none is configured")
            if answer.status != Status.OK:
                raise Trouble(f"refused, {_status(answer)}")
        low, middle, high = _ms(min(times)), _ms(median(times)), _ms(max(times))
        self._say("NOOP", f"{NOOPS} round trips: min {low}, median {middle}, max {high} ms")


def _connection(handshake: Handshake) -> SSL.Connection:
    """One like the tunnel's own; only Twisted would hand in a protocol."""
    return handshake.clientConnectionForTLS(cast(Any, None))


def _chain_problem(code: int, depth: int, certificate: crypto.X509) -> Untrusted:
    try:
        return chain_problem(code, depth, certificate.to_cryptography())
    except Exception as error:
        # An exception would get lost inside OpenSSL; the problem must not.
        words = f"the certificate cannot be read: {error}"
        return Untrusted(Lost.CERTIFICATE_CHAIN, words)


def _problem(sight: Sight, expectation: Expectation) -> Untrusted | None:
    """Why a server with these certificates is not what is expected; None if it is."""
    if sight.problem is not None:
        return sight.problem
    if not sight.chain:
        return Untrusted(Lost.CERTIFICATE_CHAIN, "the server showed no certificate")
    try:
        expectation.check(sight.chain[0])
    except Untrusted as problem:
        return problem
    except Exception as error:
        # Nothing unexpected passes.
        return Untrusted(Lost.CERTIFICATE_CHAIN, f"the certificate cannot be checked: {error}")
    return None


def _names_to_expect(certificate: x509.Certificate, host: str) -> list[str]:
    """Names that ``--tls-name`` could have; for a wildcard one that it covers."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = [str(name.value) for name in extension.value]
    except Exception:
        return []
    label = host.partition(".")[0].replace(":", "") or "server"
    return [name.replace("*", label, 1) for name in names][:SUGGESTIONS]


def _status(answer: Frame) -> str:
    words = STATUS_TEXT.get(answer.status, b"no words for it").decode()
    return f"status 0x{answer.status:02x} ({words})"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"
