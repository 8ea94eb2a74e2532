"""A server with a bad certificate gets no byte of application data, and the log says why."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import authority
import pytest
import servers

from memtunnel.wire import sasl
from memtunnel.wire.binary import Opcode, Status

#: Dials after which a log that says each one would be flooded.
DIALS = 5


class Recorder(threading.Thread):
    """A TLS server that answers nothing and records what it is told."""

    def __init__(self, pair: authority.Pair, folder: Path) -> None:
        super().__init__(name="TLS recorder", daemon=True)
        chain, key = folder / "recorder.pem", folder / "recorder.key"
        chain.write_bytes(pair.pem)
        key.write_bytes(pair.key_pem)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(chain, key)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.dials = 0
        self.received = b""

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.dials += 1
                threading.Thread(target=self._record, args=(connection,), daemon=True).start()

    def stop(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _record(self, connection: socket.socket) -> None:
        connection.settimeout(servers.PATIENCE)
        with contextlib.suppress(OSError), connection:
            secure = self._context.wrap_socket(connection, server_side=True)
            with secure:
                while data := secure.recv(1 << 16):
                    self.received += data


@pytest.fixture
def dial(
    started: list[Any], ca_file: Path, tmp_path: Path
) -> Callable[..., tuple[Recorder, servers.Tunnel]]:
    """Starts a recorder with this certificate, and a tunnel to it."""

    def make(pair: authority.Pair) -> tuple[Recorder, servers.Tunnel]:
        recorder = Recorder(pair, tmp_path)
        recorder.start()
        started.append(recorder)
        tunnel = servers.Tunnel(
            f"--server=localhost:{recorder.port}=recorder",
            f"--ca-file={ca_file}",
            f"--username={servers.USERNAME}",
            environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD},
        )
        started.append(tunnel)
        return recorder, tunnel.start()

    return make


BAD: dict[str, tuple[Callable[[authority.Pair], authority.Pair], tuple[str, ...]]] = {
    "other_name": (
        lambda root: authority.issue("other.example", "two.example", issuer=root),
        ("certificate_name", "other.example, two.example", "not localhost"),
    ),
    "other_authority": (
        lambda root: authority.issue("localhost", issuer=authority.authority("another one")),
        ("certificate_chain", "localhost", "is not trusted"),
    ),
    "self_signed": (
        lambda root: authority.issue("localhost"),
        ("certificate_chain", "localhost", "self-signed"),
    ),
    "expired": (
        lambda root: authority.issue("localhost", issuer=root, days=(-30, -1)),
        ("certificate_date", "localhost", "has expired"),
    ),
    "without_a_name": (
        lambda root: authority.issue(issuer=root, common_name="localhost"),
        ("certificate_name", "no host name", "CN=localhost"),
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_nothing_is_sent_and_the_log_says_what_was_wrong(
    kind: str,
    root: authority.Pair,
    dial: Callable[..., tuple[Recorder, servers.Tunnel]],
    connect: Callable[..., servers.Wire],
) -> None:
    make, words = BAD[kind]
    recorder, tunnel = dial(make(root))
    client = connect(tunnel)
    servers.wait_until(lambda: recorder.dials >= DIALS, "the tunnel tries again")
    assert client.set(b"k", b"v").status == Status.NOT_STORED
    assert client.get(b"k").status == Status.NOT_FOUND
    assert recorder.received == b""
    assert tunnel.get("/readyz")[0] == 503
    assert tunnel.metric("memtunnel_upstream_connects_total", result=words[0]) >= DIALS - 1
    assert tunnel.metric("memtunnel_upstream_connects_total", result="ok") == 0
    lines = [line for line in tunnel.log().splitlines() if "recorder" in line]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]
    assert "Traceback" not in tunnel.log()


def test_the_recorder_would_hear_a_login(
    good_pair: authority.Pair, dial: Callable[..., tuple[Recorder, servers.Tunnel]]
) -> None:
    recorder, _ = dial(good_pair)
    servers.wait_until(lambda: recorder.received, "the tunnel logs in")
    assert recorder.received[1] == Opcode.SASL_AUTH
    assert sasl.MECHANISM in recorder.received
