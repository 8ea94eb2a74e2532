"""`memtunnel start` and `with_memtunnel`: an app that begins when the tunnel is ready."""

import json
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
#: What an app is: its surroundings, its open files, its children.
SELF = """
import json, os
files = sorted(os.listdir("/proc/self/fd"), key=int)
with open(f"/proc/self/task/{os.getpid()}/children") as children:
    print(json.dumps([dict(os.environ), len(files), children.read()]))
"""
#: Made by shells and by the interpreter, whoever starts them.
SHELLS = {"_", "PWD", "OLDPWD", "SHLVL"}


@pytest.fixture(params=["console script", "shell script"])
def wrapper(request: pytest.FixtureRequest) -> str:
    folder = PROGRAMS if request.param == "console script" else HOUSE / "bin"
    return str(folder / "with_memtunnel")


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
    app = start(sys.executable, "-c", SELF)
    status, out, _ = app.end()
    assert status == 0
    environ, files, children = json.loads(out)
    plain = subprocess.run(
        [sys.executable, "-c", SELF],
        env=app.environ,
        stdin=subprocess.PIPE,
        capture_output=True,
        check=True,
        timeout=servers.PATIENCE,
    )
    wanted, open_files, _ = json.loads(plain.stdout)
    assert {name: environ[name] for name in environ.keys() - SHELLS} == {
        name: wanted[name] for name in wanted.keys() - SHELLS
    }
    assert (files, children) == (open_files, "")


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
        "with_memtunnel: the command is run without it\n"
    )


def test_the_app_is_started_where_there_is_no_tunnel(started: list[Any]) -> None:
    wrapper = str(HOUSE / "bin" / "with_memtunnel")
    app = Started(wrapper, "sh", "-c", "exit 7", PATH="/usr/bin:/bin")
    started.append(app)
    status, _, err = app.end()
    assert status == 7
    assert "memtunnel: not found" in err
    assert err.endswith("with_memtunnel: the command is run without it\n")


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
    assert "with_memtunnel: the command is run without it" in err


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


def begin(*words: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    keep = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-P", "-m", "memtunnel", "start", *words],
        env={**keep, **environ},
        capture_output=True,
        text=True,
        timeout=servers.PATIENCE,
    )


def test_one_that_is_not_ready_in_time_goes_on(tmp_path: Path) -> None:
    tunnel = servers.Tunnel()
    ports = [f"--listen=127.0.0.1:{tunnel.port}", f"--metrics=127.0.0.1:{tunnel.admin}"]
    # Where nobody listens.
    away = [f"--server=127.0.0.1:{servers.free_port()}", "--connect-timeout=60"]
    with subprocess.Popen(["sleep", "60"]) as app:
        try:
            log = tmp_path / "log"
            with log.open("w") as file:
                command = [sys.executable, "-P", "-m", "memtunnel", "start", "--wait=1"]
                command += [*ports, *away, f"--exit-with-pid={app.pid}"]
                status = subprocess.call(command, stdout=file, stderr=file, timeout=20)
            assert status == 1
            assert "memtunnel start: the tunnel is not ready yet; it goes on" in log.read_text()
            servers.wait_until(lambda: servers.connects(tunnel.admin), "it goes on")
            assert tunnel.get("/readyz")[0] == 503
        finally:
            app.kill()
    servers.wait_until(lambda: not servers.connects(tunnel.admin), "it ends")


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
