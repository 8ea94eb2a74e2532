"""``memtunnel start``: the tunnel in the background, and word of when it is ready.

It is ready when the tunnel itself says so, to a socket that is made for it alone: a port that
answers may be somebody else's. The tunnel has a session of its own, and writes its log to standard
error. Left to others: when it ends (``--exit-with-pid``), and running a program once it is ready
(``bin/with_memtunnel``).
"""

import argparse
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import Any, Final

from memtunnel import program

#: What a service manager is told, by sd_notify(3). `supervisor` says it.
READY: Final = "READY=1"
#: Seconds that an app waits for the tunnel.
WAIT: Final = 20.0
#: Of a service manager that waits for somebody else's word.
_MANAGER: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
#: Of a sender, by unix(7): its process, user and group.
_CREDENTIALS: Final = struct.Struct("3i")


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
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    interrupted, interrupt = socket.socketpair()
    with listener, interrupted, interrupt:
        # Its name is the kernel's choice, and in no folder. Whoever finds it may write to it, so
        # each sender is looked at.
        listener.bind("")
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        name = listener.getsockname().decode().replace("\0", "@", 1)
        # An exception might come where the tunnel has begun and is not known yet.
        interrupt.setblocking(False)
        signal.set_wakeup_fd(interrupt.fileno())
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, lambda *_: None)
        try:
            tunnel = _spawn(options, name)
            return _wait(tunnel, listener, interrupted, time.monotonic() + wait)
        except OSError as problem:
            return _complain(f"cannot wait for the tunnel: {problem.strerror}")
        finally:
            signal.set_wakeup_fd(-1)


def _spawn(options: list[str], name: str) -> "subprocess.Popen[bytes]":
    others = {name: value for name, value in os.environ.items() if name not in _MANAGER}
    # What the app prints may be somebody's input.
    log = subprocess.DEVNULL if sys.stderr is None else sys.stderr
    return subprocess.Popen(
        program.command(*options),
        env=program.environment({**others, "NOTIFY_SOCKET": name}),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _wait(
    tunnel: "subprocess.Popen[bytes]",
    listener: socket.socket,
    interrupted: socket.socket,
    until: float,
) -> int:
    ended = os.pidfd_open(tunnel.pid)
    watched: list[Any] = [listener, ended, interrupted]
    try:
        while (left := until - time.monotonic()) > 0:
            heard = select.select(watched, [], [], left)[0]
            if interrupted in heard:
                tunnel.terminate()
                # By the signal itself: a shell that sees a status goes on with the app.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                signal.raise_signal(signal.SIGINT)
            # Its last word may have come with its end.
            if listener in heard and READY in _said(listener, tunnel.pid):
                return 0
            if heard == [ended]:
                return _complain(f"the tunnel has ended, with status {tunnel.wait()}")
    finally:
        os.close(ended)
    return _complain("the tunnel is not ready yet; it goes on trying")


def _said(listener: socket.socket, pid: int) -> list[str]:
    """What has come, if it is from this process."""
    text, notes, _, _ = listener.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
    for _, kind, note in notes:
        if kind == socket.SCM_CREDENTIALS and _CREDENTIALS.unpack(note)[0] == pid:
            return text.decode().split("\n")
    return []


def _complain(words: str) -> int:
    if sys.stderr is not None:  # print() would take standard output
        print(f"memtunnel start: {words}", file=sys.stderr)
    return 1
