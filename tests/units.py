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
    """Clients, one after the other, that connect, ask once, and leave."""

    def __init__(self, *addresses: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self._addresses = addresses
        self.served = 0
        self.stopping = False
        self.problem: Exception | None = None

    def run(self) -> None:
        try:
            while not self.stopping:
                for address in self._addresses:
                    with socket.create_connection(address, servers.PATIENCE) as client:
                        client.sendall(b"get k\r\n")
                        assert client.recv(100) == b"VALUE k 0 1\r\nv\r\nEND\r\n"
                self.served += 1
        except Exception as problem:
            self.problem = problem

    def go_on(self) -> None:
        before = self.served
        servers.wait_until(lambda: self.problem or self.served > before + 1, "they are served")
