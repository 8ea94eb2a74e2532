"""`memtunnel start` and `with_memtunnel`: an app that begins when the tunnel is ready."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import servers

HOUSE = Path(__file__).parent.parent
PROGRAMS = Path(sys.executable).parent
#: Sets a value and gets it; told to end, it says so, and asks once more before it ends.
APP = """
import os, signal, socket, sys
def ask(words):
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as tunnel:
        tunnel.sendall(words + b"quit\\r\\n")
        print(tunnel.makefile("rb").read().decode().split(), flush=True)
def told(*_):
    os.write(1, b"told\\n")  # print may just be at work
signal.signal(signal.SIGTERM, told)
ask(b"set a 0 0 1\\r\\nx\\r\\n")
sys.stdin.readline()
ask(b"get a\\r\\n")
sys.exit(7)
"""
#: What an app is: its surroundings, what signals do, its open files, its children.
SELF = """
env | grep -v '^_='
grep '^Sig[BIC]' /proc/$$/status
for file in /proc/$$/fd/*; do echo "${file##*/}"; done
read children < /proc/$$/task/$$/children
echo "children $children"
"""


@pytest.fixture(params=["installed", "in the repository", "by a link"])
def wrapper(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = HOUSE / "bin" if request.param == "in the repository" else PROGRAMS
    script = folder / "with_memtunnel"
    if request.param == "by a link":
        link = tmp_path / "with_memtunnel"
        link.symlink_to(script)
        script = link
    return str(script)


class Started:
    """An app that was started together with a tunnel."""

    def __init__(self, wrapper: str, *command: str, **environ: str) -> None:
        self.port, self.admin = servers.free_port(), servers.free_port()
        self.tunnel = servers.Tunnel()
        self.tunnel.admin = self.admin
        settings = {
            "MEMTUNNEL_LISTEN": f"127.0.0.1:{self.port}",
            "MEMTUNNEL_METRICS": f"127.0.0.1:{self.admin}",
            "MEMTUNNEL_DEMO": "1",
        }
        self.environ = {
            "PATH": f"{PROGRAMS}:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
            **settings,
            **environ,
        }
        self.process = subprocess.Popen(
            [wrapper, *(command or (sys.executable, "-c", APP, str(self.port)))],
            env={name: value for name, value in self.environ.items() if value},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self, line: str = "\n") -> tuple[int, str, str]:
        """Let it end; its status, what it printed, and what stands on standard error."""
        out, err = self.process.communicate(line, timeout=servers.PATIENCE)
        return self.process.returncode, out, err

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(wrapper: str, started: list[Any]) -> Callable[..., Started]:
    def make(*command: str, **environ: str) -> Started:
        app = Started(wrapper, *command, **environ)
        started.append(app)
        return app

    return make


Start = Callable[..., Started]


def gone(app: Started) -> None:
    servers.wait_until(lambda: not servers.connects(app.port), "the tunnel ends")


def test_the_app_begins_when_the_tunnel_is_ready_and_keeps_its_status(start: Start) -> None:
    app = start()
    assert app.line() == "['STORED']"
    assert app.tunnel.get("/readyz")[0] == 200
    assert app.tunnel.state()["pid"] != app.process.pid
    status, out, err = app.end()
    assert (status, out) == (7, "['VALUE', 'a', '0', '1', 'x', 'END']\n")
    assert "demo: warm" in err, "the tunnel's log stands where errors do"
    gone(app)


def test_the_tunnel_outlives_the_signal_that_all_get(start: Start) -> None:
    app = start()
    assert app.line() == "['STORED']"
    pid = app.tunnel.state()["pid"]
    for each in (pid, app.process.pid):
        os.kill(each, signal.SIGTERM)
    assert app.line() == "told"
    servers.wait_until(lambda: app.tunnel.state()["draining"], "the tunnel was told")
    status, out, _ = app.end()
    assert (status, out) == (7, "['VALUE', 'a', '0', '1', 'x', 'END']\n")
    gone(app)


def test_an_app_that_is_killed_takes_the_tunnel_with_it(start: Start) -> None:
    app = start()
    assert app.line() == "['STORED']"
    app.stop()
    gone(app)


def test_the_app_is_as_it_would_be_without(start: Start) -> None:
    app = start("bash", "-c", SELF, LANG="")
    status, out, _ = app.end()
    assert status == 0
    # A shell that becomes the app, as without the tunnel.
    plain = subprocess.run(
        ["sh", "-c", 'exec bash -c "$0"', SELF],
        env={name: value for name, value in app.environ.items() if value},
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        check=True,
        timeout=servers.PATIENCE,
    )
    assert out.splitlines() == plain.stdout.splitlines()
    assert "SigIgn:" in out
    assert out.endswith("\nchildren \n")


BROKEN = {
    "no servers": ({"MEMTUNNEL_DEMO": ""}, "MEMCACHIER_SERVERS"),
    "a mistake": ({"MEMTUNNEL_POOL_SIZE": "many"}, "MEMTUNNEL_POOL_SIZE: expected"),
    "a missing file": ({"MEMTUNNEL_CONFIG": "/no/such.toml"}, "MEMTUNNEL_CONFIG: expected a file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_app_is_started_where_the_tunnel_is_broken(case: str, start: Start) -> None:
    environ, words = BROKEN[case]
    status, out, err = start("sh", "-c", "echo here; exit 7", **environ).end()
    assert (status, out) == (7, "here\n")
    assert words in err
    assert err.endswith(
        "memtunnel start: the tunnel has ended, with status 1\n"
        "with_memtunnel: the command is run all the same\n"
    )


def test_the_app_is_started_where_there_is_no_tunnel(started: list[Any]) -> None:
    wrapper = str(HOUSE / "bin" / "with_memtunnel")
    app = Started(wrapper, "sh", "-c", "exit 7", PATH="/usr/bin:/bin")
    started.append(app)
    status, _, err = app.end()
    assert status == 7
    assert "memtunnel: not found" in err
    assert err.endswith("with_memtunnel: the command is run all the same\n")


@pytest.fixture
def somebody() -> Iterator[socket.socket]:
    """Somebody else's server, which takes whoever comes."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield listener


def test_somebody_elses_port_is_not_taken_for_the_tunnel(
    start: Start, somebody: socket.socket
) -> None:
    port = somebody.getsockname()[1]
    status, _, err = start("sh", "-c", "exit 7", MEMTUNNEL_LISTEN=f"127.0.0.1:{port}").end()
    assert status == 7
    assert "cannot listen on" in err
    assert "with_memtunnel: the command is run all the same" in err


@pytest.mark.parametrize(
    ("command", "status"),
    [("no-such-command", 127), ("/dev/null", 126)],
    ids=["none", "no program"],
)
def test_what_is_no_command_is_told_as_shells_do(command: str, status: int, start: Start) -> None:
    assert start(command, MEMTUNNEL_DEMO="").end()[0] == status


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_it_says_what_it_wants(wrapper: str, arguments: list[str]) -> None:
    done = subprocess.run([wrapper, *arguments], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "usage: with_memtunnel COMMAND [ARGUMENT ...]\n"


# memtunnel start

BEGIN = (sys.executable, "-P", "-m", "memtunnel", "start")


def begin(*words: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    keep = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        [*BEGIN, *words],
        env={**keep, **environ},
        capture_output=True,
        text=True,
        timeout=servers.PATIENCE,
    )


class Waiting:
    """A command that waits for a tunnel whose server is away, in a process group of its own."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.tunnel = servers.Tunnel()
        self.printed, self.log = folder / "printed", folder / "log"
        environ = self.tunnel.environ | {
            "MEMTUNNEL_LISTEN": f"127.0.0.1:{self.tunnel.port}",
            "MEMTUNNEL_METRICS": f"127.0.0.1:{self.tunnel.admin}",
            "MEMTUNNEL_SERVER": f"127.0.0.1:{servers.free_port()}",
            "MEMTUNNEL_CONNECT_TIMEOUT": "60",
        }
        # The tunnel keeps its standard error, and so that is a file.
        with self.printed.open("w") as printed, self.log.open("w") as log:
            self.process = subprocess.Popen(
                # Whatever runs in the background may have been told to ignore SIGINT.
                ["env", "--default-signal=INT", *command],
                env=environ,
                stdout=printed,
                stderr=log,
                start_new_session=True,
            )
        servers.wait_until(lambda: servers.connects(self.tunnel.admin), "there is a tunnel")
        self.pid: int = self.tunnel.state()["pid"]

    def ended(self) -> None:
        servers.wait_until(lambda: not servers.runs(self.pid), "the tunnel ends")

    def stop(self) -> None:
        if servers.runs(self.pid):
            os.kill(self.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait(servers.PATIENCE)


def test_one_that_is_not_ready_in_time_goes_on(tmp_path: Path, started: list[Any]) -> None:
    with subprocess.Popen(["sleep", "60"]) as app:
        try:
            waiting = Waiting(tmp_path, *BEGIN, "--wait=3", f"--exit-with-pid={app.pid}")
            started.append(waiting)
            # That somebody else says so is not enough.
            environ = Path(f"/proc/{waiting.pid}/environ").read_bytes().split(b"\0")
            (name,) = [each[14:] for each in environ if each.startswith(b"NOTIFY_SOCKET=")]
            with (
                contextlib.suppress(ConnectionRefusedError),  # on a busy machine it waits no more
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger,
            ):
                stranger.sendto(b"READY=1", name.replace(b"@", b"\0", 1))
            assert waiting.process.wait(servers.PATIENCE) == 1
            assert (
                "memtunnel start: the tunnel is not ready yet; it goes on"
                in waiting.log.read_text()
            )
            assert waiting.tunnel.get("/readyz")[0] == 503
        finally:
            app.kill()
    waiting.ended()


def test_who_stops_waiting_ends_the_tunnel(tmp_path: Path, started: list[Any]) -> None:
    waiting = Waiting(tmp_path, *BEGIN)
    started.append(waiting)
    waiting.process.send_signal(signal.SIGINT)
    assert waiting.process.wait(servers.PATIENCE) == -signal.SIGINT
    waiting.ended()
    assert "Traceback" not in waiting.log.read_text()


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_ctrl_c_while_it_waits_does_not_begin_the_app(
    shell: str, tmp_path: Path, started: list[Any]
) -> None:
    """Terminals tell all that is in the foreground. Some shells go on after a status."""
    wrapper = str(PROGRAMS / "with_memtunnel")
    waiting = Waiting(tmp_path, servers.need(shell), wrapper, "echo", "here")
    started.append(waiting)
    os.killpg(waiting.process.pid, signal.SIGINT)
    waiting.process.wait(servers.PATIENCE)
    waiting.ended()
    assert waiting.printed.read_text() == ""


def test_word_of_readiness_is_for_nobody_else(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "manager"))
        manager.setblocking(False)
        done = begin("--server=x:y", NOTIFY_SOCKET=str(tmp_path / "manager"))
        assert done.returncode == 1
        with pytest.raises(BlockingIOError):
            manager.recv(1)


@pytest.mark.parametrize("wait", ["0", "soon", "1e9", "nan"])
def test_a_wait_that_is_none_is_told(wait: str) -> None:
    done = begin(f"--wait={wait}")
    assert done.returncode == 2
    assert "expected seconds above 0, at most 3600" in done.stderr
