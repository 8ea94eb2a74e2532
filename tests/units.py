"""The units of `deploy/systemd`, and clients that come while a service is restarted."""

import socket
import threading
from pathlib import Path

import servers

HOUSE = Path(__file__).parent.parent
UNITS = HOUSE / "deploy" / "systemd"
DOCS = (HOUSE / "docs" / "systemd.md").read_text()
EXAMPLE = (UNITS / "memtunnel.toml").read_text()
PROGRAM = "/opt/memtunnel/bin/memtunnel"
CREDENTIALS = "/run/credentials/memtunnel.service"


class Callers(threading.Thread):
    """Clients, one after the other, that connect, ask once, and leave.

    For a moment there is none, so that a tunnel that drains need not close one.
    """

    PAUSE = 0.01

    def __init__(self, *addresses: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self._addresses = addresses
        self._ending = threading.Event()
        self._served = 0
        self._problem: Exception | None = None

    def run(self) -> None:
        try:
            while not self._ending.wait(self.PAUSE):
                for address in self._addresses:
                    with socket.create_connection(address, servers.PATIENCE) as client:
                        client.sendall(b"get k\r\n")
                        assert client.recv(100) == b"VALUE k 0 1\r\nv\r\nEND\r\n"
                self._served += 1
        except Exception as problem:
            self._problem = problem

    def go_on(self) -> None:
        """Wait until some more have been served."""
        before = self._served
        servers.wait_until(lambda: self._problem or self._served > before + 1, "they are served")

    def end(self) -> None:
        """All have been served until now."""
        self.go_on()
        self._ending.set()
        self.join(servers.PATIENCE)
        assert self._problem is None, self._problem
