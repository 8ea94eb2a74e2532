"""The hosted memcached that all talk to: TLS, a login, and values that are there already."""

import subprocess
import sys
from pathlib import Path

import authority
import servers
from cryptography.hazmat.primitives.asymmetric import rsa

from benchmarks import delay
from benchmarks.shapes import ROUND_TRIP, VALUES, Values
from memtunnel.wire.binary import Opcode, request

#: The name in its certificate.
NAME = "localhost"
#: Room for all values, and for large ones whole.
ROOM = ("-m", "2048", "-I", "2m")
#: Bytes of requests that are sent together.
PORTION = 1 << 20


class Hosted:
    """A memcached with a CA of its own. `port` is beside us, `far` is `ROUND_TRIP` away."""

    def __init__(self, folder: Path) -> None:
        root = authority.authority()
        # As most servers' certificates are; one on a curve would make handshakes cheaper.
        pair = authority.issue(NAME, issuer=root, key=rsa.generate_private_key(65537, 2048))
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(root.pem)
        self.memcached = servers.Memcached(folder / "memcached", pair=pair, sasl=True)
        self.port = self.memcached.port
        self.far = 0
        self._delay: subprocess.Popen[str] | None = None

    def start(self) -> "Hosted":
        self.memcached.start(*ROOM)
        for values in VALUES:
            self._fill(values)
        command = [sys.executable, delay.__file__, str(self.port), str(ROUND_TRIP)]
        self._delay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._delay.stdout is not None
        self.far = int(self._delay.stdout.readline())
        return self

    def stop(self) -> None:
        if self._delay is not None:
            self._delay.kill()
            self._delay.wait()
        self.memcached.stop()

    def client(self) -> servers.Wire:
        """A client over TLS, logged in."""
        return servers.Direct(self.memcached, self.ca_file)

    def _fill(self, values: Values) -> None:
        client = self.client()
        value = b"v" * values.size
        portion = b""
        for key in values.keys:
            portion += request(Opcode.SETQ, key, extras=bytes(8), value=value)
            if len(portion) > PORTION:
                client.send(portion)
                portion = b""
        client.send(portion)
        answer = client.ask(Opcode.NOOP)
        assert answer.opcode == Opcode.NOOP, f"memcached does not keep values: {answer}"
        client.close()
