"""What a bench needs beside Python's packages, where it is to be had, and what was there."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from benchmarks import memtier

DEBIAN = "on Debian: apt-get install"
#: By program: where it is to be had, and how it tells its version.
PROGRAMS = {
    memtier.PROGRAM: (memtier.HOME, "--version"),
    "memcached": (f"{DEBIAN} memcached", "--version"),
    "saslpasswd2": (f"{DEBIAN} sasl2-bin libsasl2-modules libsasl2-modules-db", "-v"),
    "stunnel": (f"{DEBIAN} stunnel4", "-version"),
    "haproxy": (f"{DEBIAN} haproxy", "-v"),
}
ALWAYS = (memtier.PROGRAM, "memcached", "saslpasswd2")
PACKAGES = ("memtunnel", "twisted", "pyopenssl", "cryptography")


def needed(contenders: Iterable[str]) -> list[str]:
    """The programs for these contenders, some of which are called as their program is."""
    return [*ALWAYS, *(each for each in contenders if each in PROGRAMS)]


def missing(programs: Iterable[str]) -> list[str]:
    """A line about each that is not on the path."""
    return [
        f"{program} is not on PATH; it is to be had here: {PROGRAMS[program][0]}"
        for program in programs
        if shutil.which(program) is None
    ]


def look_where_root_does() -> None:
    """Debian keeps servers where only root's path leads."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin"


def machine(programs: Iterable[str]) -> dict[str, str]:
    """What this is: cores, system, and versions."""
    processors = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", processors, re.MULTILINE)
    return {
        "cores": f"{len(os.sched_getaffinity(0))} of {model[1] if model else platform.machine()}",
        "system": f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}",
        "Python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        **{program: _version(program) for program in programs},
    }


def _version(program: str) -> str:
    """The first line with a number in it."""
    command = [program, PROGRAMS[program][1]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in lines if re.search(r"\d\.\d", line)), "unknown")
