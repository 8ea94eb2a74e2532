"""``memtunnel start``: the tunnel in the background, and word of when it is ready; and
``with_memtunnel``, which runs a program once it is.

It is ready when the tunnel itself says so, to a socket that is made for it alone: a port that
answers may be somebody else's. The tunnel has a session of its own, and writes its log to standard
error. Left to others: when it ends (``--exit-with-pid``).
"""

import argparse
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NoReturn

from memtunnel import program

#: What a service manager is told, by sd_notify(3). `supervisor` says it.
READY: Final = "READY=1"
#: Seconds that an app waits for the tunnel.
WAIT: Final = 20.0
#: Seconds that the tunnel serves on when it is told to end before the app has ended: platforms
#: that tell both at once kill both after 30.
DRAIN: Final = "25"
#: Of a service manager that waits for somebody else's word.
_MANAGER: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def main(arguments: list[str]) -> int:
    """The exit status: 0 if it is ready."""
    parser = argparse.ArgumentParser(
        prog="memtunnel start",
        usage="%(prog)s [--wait SECONDS] [options of the tunnel]",
        description="Start the tunnel in the background, and return when it is ready.",
        epilog="memtunnel --help lists the options of the tunnel.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--wait",
        metavar="SECONDS",
        type=_seconds,
        default=WAIT,
        help="how long to wait for it (default: %(default)g)",
    )
    options, others = parser.parse_known_args(arguments)
    return start(others, options.wait)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError("expected seconds above 0, at most 3600")
    return value


def start(options: list[str], wait: float = WAIT) -> int:
    """Start it with these options; 0 if it is ready in time."""
    with tempfile.TemporaryDirectory(prefix="memtunnel-") as folder:
        # Nobody else gets to it there.
        place = str(Path(folder, "ready"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(place)
            tunnel = _spawn(options, place)
            return _wait(tunnel, listener, time.monotonic() + wait)


def _spawn(options: list[str], place: str) -> "subprocess.Popen[bytes]":
    others = {name: value for name, value in os.environ.items() if name not in _MANAGER}
    return subprocess.Popen(
        program.command(*options),
        env=program.environment({**others, "NOTIFY_SOCKET": place}),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,  # what the app prints may be somebody's input
        start_new_session=True,
    )


def _wait(tunnel: "subprocess.Popen[bytes]", listener: socket.socket, until: float) -> int:
    ended = os.pidfd_open(tunnel.pid)
    watched: list[Any] = [listener, ended]
    try:
        while (left := until - time.monotonic()) > 0:
            heard = select.select(watched, [], [], left)[0]
            # Its last word may have come with its end.
            if listener in heard and READY in listener.recv(4096).decode().split("\n"):
                return 0
            if heard == [ended]:
                return _complain(f"the tunnel has ended, with status {tunnel.wait()}")
    finally:
        os.close(ended)
    return _complain("the tunnel is not ready yet; it goes on trying")


def _complain(words: str) -> int:
    print(f"memtunnel start: {words}", file=sys.stderr)
    return 1


def with_memtunnel() -> NoReturn:
    """The console script: run a command once the tunnel is ready, and also if it is not."""
    command = sys.argv[1:]
    if not command or command[0].startswith("-"):
        print("usage: with_memtunnel COMMAND [ARGUMENT ...]", file=sys.stderr)
        sys.exit(2)
    tunnel = program.command("start", f"--exit-with-pid={os.getpid()}")
    environ = program.environment({"MEMTUNNEL_DRAIN_TIMEOUT": DRAIN, **os.environ})
    # By another process, which ends: so the app has no child that it did not make.
    if subprocess.run(tunnel, env=environ, check=False).returncode:
        print("with_memtunnel: the command is run without it", file=sys.stderr)
    try:
        os.execvp(command[0], command)
    except OSError as problem:
        print(f"with_memtunnel: {command[0]}: {problem.strerror}", file=sys.stderr)
        # As shells have it.
        sys.exit(127 if isinstance(problem, FileNotFoundError) else 126)
