"""The units of `deploy/systemd` under a systemd of the test's own, in namespaces of its own.

It has the machine's network and file system, but `/etc`, `/opt`, `/run`, processes and control
groups of its own; and no units but ours.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import servers
from units import CREDENTIALS, EXAMPLE, HOUSE, PROGRAM, UNITS, Callers

pytestmark = pytest.mark.full

SYSTEMD = "/lib/systemd/systemd"
#: What units depend on by default, and a first one.
TARGETS = ("basic", "first", "multi-user", "network-online", "shutdown", "sockets", "sysinit")
#: Into a control group and namespaces of its own.
ENTER = """
mount -t cgroup2 none "$FOLDER/cgroup"
mkdir "$FOLDER/cgroup/$GROUP"
echo $$ > "$FOLDER/cgroup/$GROUP/cgroup.procs"
umount "$FOLDER/cgroup"
exec unshare --cgroup --pid --fork --kill-child --mount --uts --ipc --mount-proc \
    sh -eu -c "$BOOT"
"""
#: What is there is made what systemd finds.
BOOT = """
mount --make-rshared /
mount -t tmpfs tmpfs /run
umount --lazy /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$FOLDER/etc,workdir=$FOLDER/work" /etc
mount --bind "$PYTHON" "$FOLDER/opt/python"
mount --bind "$SITE" "$FOLDER/opt/site"
mount --bind "$HOUSE" "$FOLDER/opt/house"
mount --rbind "$FOLDER/opt" /opt
mkdir -p /run/systemd
export container=test SYSTEMD_UNIT_PATH="$FOLDER/units"
exec "$SYSTEMD" --system --unit=first.target --show-status=no --log-target=console
"""
#: The group is gone when it is empty.
LEAVE = """
mount -t cgroup2 none "$FOLDER/cgroup"
find "$FOLDER/cgroup/$GROUP" -depth -type d -exec rmdir {} +
"""
#: Where the service finds the package, with all that it needs.
START = f"""#!/bin/sh
export PYTHONPATH=/opt/house:/opt/site LD_LIBRARY_PATH=/opt/python/lib
exec /opt/python/bin/{Path(os.path.realpath(sys.executable)).name} -P -m memtunnel "$@"
"""


class System:
    """A running systemd, whose files are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environ = {
            "PATH": os.environ["PATH"],
            "FOLDER": str(folder),
            "GROUP": f"memtunnel-{os.getpid()}",
            "BOOT": BOOT,
            "SYSTEMD": SYSTEMD,
            "PYTHON": sys.base_prefix,
            "SITE": sysconfig.get_path("purelib"),
            "HOUSE": str(HOUSE),
        }
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-eu", "-c", ENTER],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        servers.wait_until(self._is_up, "systemd is up")

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            pytest.fail((self._folder / "log").read_text())
        return bool(self._first) and self.control("is-active", "first.target") == 0

    @property
    def _first(self) -> str:
        pid = self._process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self._first}", "--mount", "--pid"]
        return subprocess.run(
            [*enter, *words], capture_output=True, text=True, timeout=servers.PATIENCE
        )

    def control(self, *words: str) -> int:
        """The exit status of systemctl."""
        return self._run("systemctl", *words).returncode

    def show(self, name: str, unit: str = "memtunnel.service") -> str:
        return self._run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def read(self, path: str) -> str:
        """A file as the system's own processes see it."""
        return self._run("cat", path).stdout

    def kill(self, number: int) -> None:
        self._run("kill", f"-{number}", self.show("MainPID"))

    def log(self) -> str:
        return (self._folder / "service.log").read_text()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(servers.PATIENCE)
        self._log.close()
        leave = ["unshare", "--mount", "sh", "-eu", "-c", LEAVE]

        def left() -> bool:
            return subprocess.run(leave, env=self._environ, capture_output=True).returncode == 0

        servers.wait_until(left, "its processes are gone")


@pytest.fixture
def port() -> int:
    return servers.free_port()


@pytest.fixture
def system(
    make_memcached: Callable[..., servers.Memcached], ca_file: Path, tmp_path: Path, port: int
) -> Iterator[System]:
    """What docs/systemd.md says that is to be installed is."""
    if os.geteuid() != 0 or not Path(SYSTEMD).exists():
        servers.skip("a systemd of one's own needs root, and systemd")
    programs, settings = tmp_path / "opt/memtunnel/bin", tmp_path / "etc/memtunnel"
    for name in ("cgroup", "work", "opt/python", "opt/site", "opt/house", programs, settings):
        (tmp_path / name).mkdir(parents=True)
    program = tmp_path / PROGRAM.lstrip("/")
    program.write_text(START)
    program.chmod(0o755)
    shutil.copy(ca_file, settings / "ca.pem")
    (settings / "password").write_text(servers.PASSWORD + "\n")
    (settings / "password").chmod(0o600)
    (settings / "memtunnel.toml").write_text(
        re.sub("(?m)^#(?=[a-z-]+ = )", "", EXAMPLE)
        .replace("cache.example.com:11211", f"127.0.0.1:{make_memcached().port}")
        .replace('"user"', f'"{servers.USERNAME}"')
        .replace(":9152", f":{servers.free_port()}")
        .replace("request-timeout = 0.4", "request-timeout = 5")
        .replace("drain-timeout = 5", "drain-timeout = 1")
    )
    units = tmp_path / "units"
    shutil.copytree(UNITS, units, ignore=shutil.ignore_patterns("*.toml"))
    for name in TARGETS:
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    log = tmp_path / "service.log"
    log.touch()
    for path, text in {
        "memtunnel.socket.d": f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n",
        "memtunnel.service.d": f"[Service]\nWatchdogSec=4\nStandardOutput=append:{log}\n",
    }.items():
        (units / path).mkdir()
        (units / path / "test.conf").write_text(text)
    with servers.closing_all([System(tmp_path)]) as (system,):
        yield system


def test_a_service_from_its_start_to_its_end(system: Any, port: int) -> None:
    assert system.control("start", "memtunnel.socket") == 0
    assert system.show("ActiveState") == "inactive"
    # Started by a client, which waits until it is ready.
    with closing(servers.Text(port)) as client:
        assert client.say(client.store(b"k", b"v"), client.fetch(b"k")) == [True, b"v"]
    servers.wait_until(lambda: system.show("ActiveState") == "active", "it is said to be ready")
    # Nobody, without rights, and with a copy of the password that only it may read.
    status = system.read(f"/proc/{system.show('MainPID')}/status")
    (user,) = re.findall(r"^Uid:\t(\d+)\t\1\t\1\t\1$", status, re.MULTILINE)
    assert int(user) >= 61184  # systemd's own range
    assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    assert system.read(f"{CREDENTIALS}/password") == servers.PASSWORD + "\n"

    assert system.control("reload", "memtunnel.service") == 0
    servers.wait_until(lambda: "settings reloaded" in system.log(), "it has reloaded")

    callers = Callers(("127.0.0.1", port))
    callers.start()
    callers.go_on()
    before = system.show("MainPID")
    assert system.control("restart", "memtunnel.service") == 0
    assert system.show("MainPID") != before
    callers.end()

    assert system.show("NRestarts") == "0"
    system.kill(signal.SIGSTOP)
    servers.wait_until(lambda: system.show("NRestarts") == "1", "the watchdog has bitten")
    with closing(servers.Text(port)) as client:
        assert client.say(client.fetch(b"k")) == [b"v"]

    assert system.control("stop", "memtunnel.service", "memtunnel.socket") == 0
    assert system.show("Result") == "success"
    assert system.show("ExecMainStatus") == "0"
    assert not servers.connects(port)
    assert servers.PASSWORD not in system.log()
