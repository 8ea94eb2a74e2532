"""The units of `deploy/systemd`: by systemd's own tools, and run as systemd would run them."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import servers
from units import CREDENTIALS, DOCS, EXAMPLE, PROGRAM, UNITS, Callers

from memtunnel.config import SETTINGS, load
from memtunnel.core import deadlines
from memtunnel.net import downstream
from memtunnel.workers import SILENCE

#: By path: the drop-ins that the docs show.
DROP_INS = dict(re.findall(r"```ini\n# /etc/systemd/system/(\S+)\n(.*?)```", DOCS, re.DOTALL))
#: Starts a program with the sockets of these descriptors, as systemd does.
HAND_OVER = """
import fcntl, os, sys
count = int(sys.argv[1])
ours = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 3 + count) for each in sys.argv[2:2 + count]]
for number, descriptor in enumerate(ours):
    os.dup2(descriptor, 3 + number)
names = ":".join(["memtunnel.socket"] * count)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count), LISTEN_FDNAMES=names)
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""


def read_unit(text: str) -> dict[str, list[str]]:
    """By name, all values that a unit's text gives it."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


SERVICE = read_unit((UNITS / "memtunnel.service").read_text())
SOCKET = read_unit((UNITS / "memtunnel.socket").read_text())


def seconds(name: str) -> float:
    (value,) = SERVICE[name]
    return float(value)


# By systemd's tools


@pytest.fixture
def analyze(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs systemd-analyze on the units, whose program is one that is there."""
    tool = servers.need("systemd-analyze")
    for name in ("memtunnel.service", "memtunnel.socket"):
        text = (UNITS / name).read_text().replace(PROGRAM, sys.executable)
        (tmp_path / name).write_text(text)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:", "SYSTEMD_COLORS": "0"}
        return subprocess.run(
            [tool, *arguments],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


VERIFY = ("verify", "--man=no", "memtunnel.service", "memtunnel.socket")


@pytest.mark.parametrize("drop_ins", ["", "ipv6", "unix"])
def test_systemd_has_nothing_to_say_of_the_units(
    analyze: Callable[..., Any], tmp_path: Path, drop_ins: str
) -> None:
    for path, text in DROP_INS.items():
        if drop_ins and drop_ins in path:
            (tmp_path / path).parent.mkdir()
            (tmp_path / path).write_text(text)
    done = analyze(*VERIFY)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_is_seen_if_it_has(analyze: Callable[..., Any], tmp_path: Path) -> None:
    with (tmp_path / "memtunnel.service").open("a") as unit:
        unit.write("[Service]\nProtectSytem=strict\n")
    assert "ProtectSytem" in analyze(*VERIFY).stderr


def test_the_service_can_do_little(analyze: Callable[..., Any]) -> None:
    security = ("security", "--no-pager", "--offline=yes", "memtunnel.service")
    done = analyze(*security, "--threshold=11")
    assert done.returncode == 0, done.stdout + done.stderr
    (score,) = re.findall(r"exposure level for memtunnel.service: (\S+)", done.stdout)
    assert f"gives it {score}," in DOCS
    assert analyze(*security, "--threshold=5").returncode != 0


# The settings


def test_the_example_of_settings_is_one(tmp_path: Path) -> None:
    path = tmp_path / "memtunnel.toml"
    path.write_text(EXAMPLE)
    # As it is, an add-on's variables hold.
    environ = {
        "MEMCACHIER_SERVERS": "mc1.example.com:11211",
        "MEMCACHIER_USERNAME": "user",
        "MEMCACHIER_PASSWORD": "secret",
    }
    config = load({"config": str(path)}, environ)
    assert config.credentials is not None
    assert [server.host for server in config.servers] == ["mc1.example.com"]


def test_what_it_shows_as_a_comment_is_a_setting(tmp_path: Path, ca_file: Path) -> None:
    (tmp_path / "password").write_text("secret\n")
    path = tmp_path / "memtunnel.toml"
    path.write_text(
        re.sub("(?m)^#(?=[a-z-]+ = )", "", EXAMPLE)
        .replace(CREDENTIALS, str(tmp_path))
        .replace("/etc/memtunnel/ca.pem", str(ca_file))
    )
    config = load({"config": str(path)}, {})
    assert config.credentials is not None
    assert config.credentials.password.reveal() == b"secret"
    shown = dict(re.findall("(?m)^#([a-z-]+) = (.*)$", EXAMPLE))
    assert len(shown) > 5
    for setting in SETTINGS:
        if setting.name in shown and setting.default is not None and setting.name != "metrics":
            assert shown[setting.name].strip('"') == setting.default


def test_systemd_waits_longer_than_the_tunnel_takes() -> None:
    config = load({"demo": True}, {})
    assert seconds("TimeoutStartSec") > config.connect_timeout
    last_answers = config.request_timeout + deadlines.LONGEST + downstream.LINGER
    assert seconds("TimeoutStopSec") > 2 * (config.drain_timeout + last_answers)
    assert seconds("WatchdogSec") > 2 * SILENCE
    assert f"Twice in {seconds('WatchdogSec'):g} seconds" in DOCS


# As systemd would run it


class Service:
    """The service's own command, with what systemd gives to it: see systemd.exec(5)."""

    def __init__(self, folder: Path, memcached: servers.Memcached, ca_file: Path) -> None:
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(folder / "notify"))
        self._notify.setblocking(False)
        self.heard: list[str] = []
        self.admin = servers.free_port()
        (folder / "password").write_text(servers.PASSWORD + "\n")
        config = folder / "memtunnel.toml"
        config.write_text(
            re.sub("(?m)^#(?=(server|username|password-file|ca-file|metrics) = )", "", EXAMPLE)
            .replace("cache.example.com:11211", f"127.0.0.1:{memcached.port}")
            .replace('"user"', f'"{servers.USERNAME}"')
            .replace(CREDENTIALS, str(folder))
            .replace("/etc/memtunnel/ca.pem", str(ca_file))
            .replace(":9152", f":{self.admin}")
        )
        (command,) = SERVICE["ExecStart"]
        program, *arguments = shlex.split(command)
        assert program == PROGRAM
        assert arguments == ["--config", "/etc/memtunnel/memtunnel.toml"]
        # The program that is installed with the package that is tested.
        self.command = [sys.executable, "-P", "-m", "memtunnel", arguments[0], str(config)]
        (self.environ,) = [dict(value.split("=", 1) for value in SERVICE["Environment"])]
        self.environ |= {
            "NOTIFY_SOCKET": str(folder / "notify"),
            "WATCHDOG_USEC": "200000",
            "CREDENTIALS_DIRECTORY": str(folder),
            "PATH": os.environ["PATH"],
            **{name: os.environ[name] for name in ("PYTHONPATH", "HOME") if name in os.environ},
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *command: str, descriptors: tuple[int, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*command, *self.command],
            env=self.environ,
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def start_with(self, *sockets: socket.socket) -> None:
        descriptors = tuple(each.fileno() for each in sockets)
        words = [str(len(descriptors)), *map(str, descriptors)]
        self.start(sys.executable, "-c", HAND_OVER, *words, descriptors=descriptors)

    def listen(self) -> list[str]:
        """All that the manager was told so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard.append(self._notify.recv(4096).decode())
        return self.heard

    def hears(self, words: str) -> None:
        servers.wait_until(lambda: words in self.listen(), f"it says {words}")

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(servers.PATIENCE)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(servers.PATIENCE)
        self._notify.close()


@pytest.fixture
def service(
    make_memcached: Callable[..., servers.Memcached],
    started: list[Any],
    ca_file: Path,
    tmp_path: Path,
) -> Service:
    service = Service(tmp_path, make_memcached(), ca_file)
    started.append(service)
    return service


def test_it_is_started_by_a_client_through_its_socket(service: Service) -> None:
    activate = servers.need("systemd-socket-activate")
    (address,) = SOCKET["ListenStream"]
    assert address == "127.0.0.1:11211"
    port = servers.free_port()
    given = [f"--setenv={name}={value}" for name, value in service.environ.items()]
    service.start(activate, f"--listen=127.0.0.1:{port}", "--fdname=memtunnel.socket", *given)
    servers.wait_until(lambda: port in listening(), "the socket is open")
    # This one waits in the socket until the service is there. If that has no server yet, nothing is
    # stored.
    client = servers.Text(port)
    with contextlib.closing(client):
        assert client.say(client.store(b"k", b"v"), client.fetch(b"k"))[1] in (b"v", None)
        service.hears("READY=1")
        assert client.say(client.store(b"k", b"v"), client.fetch(b"k")) == [True, b"v"]
        service.hears("WATCHDOG=1")
        reload = SERVICE["ExecReload"]
        assert reload == ['/bin/sh -c "kill -HUP $MAINPID"']
        count = len(service.listen())
        assert service.process is not None
        service.process.send_signal(signal.SIGHUP)
        servers.wait_until(lambda: "READY=1" in service.listen()[count:], "it has reloaded")
        assert any(said.startswith("RELOADING=1") for said in service.heard[count:])
    assert service.end() == 0
    assert "STOPPING=1" in service.listen()


@pytest.mark.parametrize("count", [None, 0], ids=["by hand", "too few"])
def test_without_its_socket_it_says_so(service: Service, count: int | None) -> None:
    hand_over = [] if count is None else [sys.executable, "-c", HAND_OVER, "0"]
    done = subprocess.run(
        [*hand_over, *service.command],
        env=service.environ,
        capture_output=True,
        text=True,
        timeout=servers.PATIENCE,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "memtunnel: cannot listen on systemd:domain=INET:index=0: "
        "the service manager has handed over no such socket\n"
    )


def listening() -> set[int]:
    """The ports of this machine that are open on 127.0.0.1."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = map(str.split, lines)
    return {int(each[1].partition(":")[2], 16) for each in fields if each[3] == "0A"}


def test_a_restart_refuses_nobody(service: Service, started: list[Any]) -> None:
    environment = read_unit(DROP_INS["memtunnel.service.d/ipv6.conf"])["Environment"]
    service.environ |= dict(value.split("=", 1) for value in environment)
    (address,) = read_unit(DROP_INS["memtunnel.socket.d/ipv6.conf"])["ListenStream"]
    assert address == "[::1]:11211"
    ours = [socket.create_server(("127.0.0.1", 0), backlog=100)]
    with contextlib.suppress(OSError):
        ours.append(socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=100))
    started.extend(ours)
    if len(ours) < 2:
        servers.skip("this machine has no IPv6")
    service.environ["MEMTUNNEL_REQUEST_TIMEOUT"] = "5"
    service.start_with(*ours)
    service.hears("READY=1")
    client = servers.Text(ours[0].getsockname()[1])
    with contextlib.closing(client):
        assert client.say(client.store(b"k", b"v")) == [True]
    callers = Callers(*(each.getsockname()[:2] for each in ours))
    callers.start()
    callers.go_on()
    assert service.end() == 0
    service.heard.clear()
    service.start_with(*ours)
    service.hears("READY=1")
    callers.end()
