"""What goes wrong at the start is said in words on the terminal, with exit status 1."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers

from memtunnel.service import in_words

PIDFILE = "memtunnel.pid"


@pytest.fixture
def busy() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def flags(ca_file: Path) -> list[str]:
    """A tunnel to where nobody is; it starts all the same."""
    return [f"--server=127.0.0.1:{servers.free_port()}", f"--ca-file={ca_file}"]


def run(
    command: list[str], folder: Path, environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        command,
        env=keep | (environ or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        cwd=folder,
    )


def in_foreground(*flags: str) -> list[str]:
    """The command of a tunnel, but with these flags only."""
    return [*servers.Tunnel().command[:4], *flags]


@contextlib.contextmanager
def daemon(
    folder: Path, *flags: str, environ: dict[str, str] | None = None
) -> Iterator[subprocess.CompletedProcess[str]]:
    """Run `twistd memtunnel`, and end the daemon that it leaves behind."""
    twistd = Path(sysconfig.get_path("scripts")) / "twistd"
    pidfile = folder / PIDFILE
    try:
        yield run([str(twistd), f"--pidfile={pidfile}", "memtunnel", *flags], folder, environ)
    finally:
        if pidfile.exists():
            os.kill(int(pidfile.read_text()), signal.SIGTERM)
            servers.wait_until(lambda: not pidfile.exists(), "the daemon ends")


@pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])
@pytest.mark.parametrize("flag", ["--listen", "--metrics"])
def test_a_busy_port_is_one_line(
    flag: str, workers: str, busy: int, flags: list[str], tmp_path: Path
) -> None:
    ports = {"--listen": servers.free_port(), "--metrics": servers.free_port(), flag: busy}
    flags += [f"{name}=127.0.0.1:{port}" for name, port in ports.items()]
    done = run(in_foreground(*flags, workers), tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert str(busy) in line
    assert flag in line
    assert "Traceback" not in done.stdout


def test_a_busy_port_is_told_before_the_daemon_leaves_the_terminal(
    busy: int, flags: list[str], tmp_path: Path
) -> None:
    flags += [f"--listen=127.0.0.1:{busy}", f"--metrics=127.0.0.1:{servers.free_port()}"]
    with daemon(tmp_path, *flags) as done:
        assert done.returncode == 1
        said = done.stdout + done.stderr
        assert str(busy) in said
        assert "--listen" in said
        assert "Traceback" not in said


def test_a_daemon_serves_once_twistd_is_back(flags: list[str], tmp_path: Path) -> None:
    port, admin = servers.free_port(), servers.free_port()
    flags += [f"--listen=127.0.0.1:{port}", f"--metrics=127.0.0.1:{admin}"]
    with daemon(tmp_path, *flags) as done:
        assert done.returncode == 0, done.stderr
        servers.wait_until(lambda: servers.connects(port), "the daemon listens")
        client = servers.Wire(port)
        assert client.ask(servers.binary.Opcode.NOOP).status == 0
        client.close()


MISTAKEN = """
pool-sise = 3
verify = "perhaps"
"""


@pytest.mark.parametrize("daemonizing", [False, True])
def test_all_mistakes_are_told_at_once_and_nothing_is_opened(
    daemonizing: bool, busy: int, tmp_path: Path
) -> None:
    file = tmp_path / "memtunnel.toml"
    file.write_text(MISTAKEN)
    flags = [f"--config={file}", f"--listen=127.0.0.1:{busy}", "--request-timeout=soon"]
    flags += [f"--ca-file={tmp_path / 'missing.pem'}"]
    environ = {"MEMTUNNEL_POOL_SIZE": "none", "MEMCACHIER_SERVERS": "one,two:x"}
    if daemonizing:
        with daemon(tmp_path, *flags, environ=environ) as done:
            assert not (tmp_path / PIDFILE).exists()
    else:
        done = run(in_foreground(*flags), tmp_path, environ)
    assert done.returncode == 1
    told = [line.removeprefix("memtunnel: ").partition(":")[0] for line in done.stderr.splitlines()]
    assert sorted(told) == [
        "--ca-file",
        "--request-timeout",
        "MEMCACHIER_SERVERS",
        "MEMTUNNEL_POOL_SIZE",
        f"pool-sise in {file}",
        f"verify in {file}",
    ]
    # Had it tried to listen, that would be among the complaints.
    assert str(busy) not in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_without_a_server_it_says_what_to_set(tmp_path: Path) -> None:
    done = run(in_foreground(), tmp_path)
    assert done.returncode == 1
    assert "MEMCACHIER_SERVERS" in done.stderr
    assert "--demo" in done.stderr


def test_an_unknown_flag_is_refused(flags: list[str], tmp_path: Path) -> None:
    done = run(in_foreground(*flags, "--pool-sise=3"), tmp_path)
    assert done.returncode == 1
    assert "pool-sise" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_check_config_shows_the_configuration_and_opens_nothing(
    busy: int, flags: list[str], tmp_path: Path
) -> None:
    flags += [f"--listen=127.0.0.1:{busy}", "--pool-size=7", "--check-config"]
    done = run(in_foreground(*flags), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pool-size = 7" in done.stdout.splitlines()
    assert done.stderr == ""


def test_check_config_fails_where_a_start_would(flags: list[str], tmp_path: Path) -> None:
    done = run(in_foreground(*flags, "--pool-size=none", "--check-config"), tmp_path)
    assert done.returncode == 1
    assert "--pool-size" in done.stderr


def test_a_demo_with_a_server_is_refused(flags: list[str], tmp_path: Path) -> None:
    done = run(in_foreground(*flags, "--demo"), tmp_path)
    assert done.returncode == 1
    assert "--demo" in done.stderr


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--sever=x", "did you mean --server?"),
        ("--request-timeo=1", "did you mean --request-timeout?"),
        ("--password=x", "only the environment may hold it, as MEMTUNNEL_PASSWORD"),
        ("chekc", "a tool comes first: memtunnel check"),
        ("--demo=on", "--demo"),
    ],
)
def test_a_mistyped_command_line_is_one_line(argument: str, words: str) -> None:
    command = [sys.executable, "-m", "memtunnel", argument]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=servers.PATIENCE, cwd="/tmp"
    )
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_clients_get_the_file_descriptors_that_connections_to_servers_do_not_need(
    flags: list[str],
) -> None:
    several = ["--client-auth=passthrough", "--max-logins=10", "--pool-size=3", "--workers=1"]
    tunnel = servers.Tunnel(*flags, *several)
    tunnel.command = ["prlimit", "--nofile=512:512", *tunnel.command]
    tunnel.start()
    try:
        reserved = 64 + (1 + 10) * (3 + 1)
        assert f"--max-clients lowered to {512 - reserved}:" in tunnel.log()
    finally:
        tunnel.stop()


def test_several_mistakes_are_one_line_of_the_log_and_can_be_told_apart() -> None:
    assert in_words(ValueError("--a: 1\n--b:  2")) == "--a: 1; --b: 2"


@pytest.mark.parametrize("words", ["--help", "--demo --check-config", "check --help", "--version"])
def test_who_stops_reading_is_told_nothing_more(words: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "memtunnel", *words.split()],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=servers.PATIENCE,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
