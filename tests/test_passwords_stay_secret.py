"""Promise P7: a password appears in no log line, metric, error, page or process list."""

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import servers

from memtunnel.wire.binary import Opcode

WRONG = "wr0ng-canary-4711"
#: Anything shorter could turn up by chance.
SHORTEST = 12


def forms(password: str) -> set[str]:
    """The password as it may turn up: plain, in hex, and in base64 wherever it begins in a text."""
    raw = password.encode()
    found = {password, raw.hex()}
    for before in range(3):
        # Without the characters to which neighbours contribute.
        text = base64.b64encode(bytes(before) + raw).decode().rstrip("=")
        found.add(text[-(-before * 4 // 3) : -1])
    message = b"\0".join((b"", servers.USERNAME.encode(), raw))
    found.add(base64.b64encode(message).decode())
    assert all(len(form) >= SHORTEST for form in found)
    return found


def logs_in(client: servers.Wire, password: str) -> bool:
    message = f"\0{servers.USERNAME}\0{password}".encode()
    return client.ask(Opcode.SASL_AUTH, b"PLAIN", value=message).status == 0


def statistics(client: servers.Wire) -> str:
    client.send(servers.binary.request(Opcode.STAT, b"memtunnel"))
    said = []
    while True:
        (frame,) = client.read()
        if not frame.key:
            return "\n".join(said)
        said.append(f"{frame.key.decode()} {frame.value.decode()}")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("place", ["environment", "file"])
def test_p7_the_password_is_nowhere_to_be_read(
    place: str,
    workers: int,
    make_memcached: Callable[..., Any],
    started: list[Any],
    connect: Callable[..., servers.Wire],
    ca_file: Path,
    tmp_path: Path,
) -> None:
    memcached = make_memcached()
    flags = [f"--server=127.0.0.1:{memcached.port}", f"--ca-file={ca_file}"]
    flags += [f"--username={servers.USERNAME}", f"--workers={workers}"]
    environ = {}
    if place == "environment":
        environ["MEMTUNNEL_PASSWORD"] = servers.PASSWORD
    else:
        (tmp_path / "password").write_text(servers.PASSWORD + "\n")
        flags.append(f"--password-file={tmp_path / 'password'}")
    tunnel = servers.Tunnel(*flags, environ=environ)
    started.append(tunnel)
    tunnel.start().wait_ready()
    said = []

    def look() -> None:
        said.extend(tunnel.get(page)[1] for page in ("/", "/metrics", "/readyz", "/healthz"))
        assert tunnel.process is not None
        said.extend(
            Path(f"/proc/{pid}/cmdline").read_text()
            for pid in (tunnel.process.pid, *tunnel.workers)
        )
        # Its own is where it has it from; its workers get it over their channel.
        said.extend(Path(f"/proc/{pid}/environ").read_text() for pid in tunnel.workers)

    client, stranger = connect(tunnel), connect(tunnel)
    assert logs_in(client, servers.PASSWORD)
    assert not logs_in(stranger, WRONG)
    said.append(statistics(client))
    look()
    memcached.stop()
    tunnel.wait_ready(ready=False)
    assert logs_in(client, servers.PASSWORD)
    assert not logs_in(stranger, WRONG)
    said.append(statistics(client))
    look()
    client.close()
    stranger.close()
    tunnel.stop()
    said.append(tunnel.log())
    check = [*tunnel.command, "--check-config"]
    shown = subprocess.run(
        check, env=tunnel.environ, capture_output=True, text=True, timeout=30, cwd=tmp_path
    )
    assert shown.returncode == 0
    assert servers.USERNAME in shown.stdout
    said.append(shown.stdout + shown.stderr)
    for text in said:
        for secret in forms(servers.PASSWORD) | forms(WRONG):
            assert secret not in text


def test_p7_a_password_that_the_server_refuses_is_not_told(
    make_memcached: Callable[..., Any], started: list[Any], ca_file: Path
) -> None:
    tunnel = servers.Tunnel(
        f"--server=127.0.0.1:{make_memcached().port}",
        f"--ca-file={ca_file}",
        f"--username={servers.USERNAME}",
        environ={"MEMTUNNEL_PASSWORD": WRONG},
    )
    started.append(tunnel)
    tunnel.start()
    servers.wait_until(lambda: "login_refused" in tunnel.log(), "the log says why")
    said = [tunnel.get(page)[1] for page in ("/", "/metrics", "/readyz")]
    tunnel.stop()
    said.append(tunnel.log())
    for text in said:
        for secret in forms(WRONG):
            assert secret not in text


def test_p7_a_password_in_a_mistaken_configuration_is_not_told(tmp_path: Path) -> None:
    file = tmp_path / "memtunnel.toml"
    file.write_text(f'password = "{servers.PASSWORD}"\nmetrics-token = "{WRONG} with spaces"\n')
    tunnel = servers.Tunnel(
        f"--config={file}", environ={"MEMCACHIER_SERVERS": f"user1:{servers.PASSWORD}@host"}
    )
    run = subprocess.run(
        tunnel.command, env=tunnel.environ, capture_output=True, text=True, timeout=30
    )
    assert run.returncode == 1
    for secret in forms(servers.PASSWORD) | forms(WRONG):
        assert secret not in run.stdout + run.stderr
