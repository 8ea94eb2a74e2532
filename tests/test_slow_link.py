"""A link of 10 Mbit/s: a large value takes longer than a small one may, and is no miss."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import servers

from memtunnel.wire.binary import Status

#: Bytes a second, in each direction.
RATE = 10_000_000 // 8
PIECE = 8192
#: Little, or else the kernel's buffers would be most of the link.
WINDOW = 32 * 1024


class SlowLink(threading.Thread):
    """Carries connections to a port of this machine, at `RATE`."""

    def __init__(self, port: int) -> None:
        super().__init__(name="slow link", daemon=True)
        self._to = port
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen()
        self.port: int = self._listening.getsockname()[1]
        self.carried = 0

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.socket()
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
                far.connect(("127.0.0.1", self._to))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def stop(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        free = time.monotonic()
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                free = max(free, time.monotonic()) + len(data) / RATE
                time.sleep(max(0.0, free - time.monotonic()))  # this is the link
                sink.sendall(data)
                self.carried += len(data)
            sink.shutdown(socket.SHUT_WR)


def test_a_megabyte_goes_both_ways(
    make_memcached: Callable[..., Any],
    started: list[Any],
    ca_file: Path,
    connect: Callable[..., servers.Wire],
) -> None:
    link = SlowLink(make_memcached().port)
    link.start()
    started.append(link)
    tunnel = servers.Tunnel(
        f"--server=127.0.0.1:{link.port}",
        f"--ca-file={ca_file}",
        f"--username={servers.USERNAME}",
        environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD},
    )
    started.append(tunnel)
    tunnel.start().wait_ready()
    client = connect(tunnel)
    value = os.urandom(1_000_000)
    assert client.set(b"k", value).status == Status.OK
    found = client.get(b"k")
    assert (found.status, found.value) == (Status.OK, value)
    assert link.carried > 2 * len(value)
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0
    assert tunnel.metric("memtunnel_upstream_disconnects_total") == 0
