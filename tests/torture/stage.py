"""What a part plays on: memcacheds with SASL and TLS, the relay before them, and the tunnel.

All of it is in a folder of its own that goes with it, on ports of 127.0.0.1; every process is one
that was started here, and is ended here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import authority
import servers

from benchmarks.processes import memory, tree
from torture.binary_load import BinaryClient
from torture.load import Client, Load
from torture.scorecard import Options
from torture.text_load import ClassicClient, MetaClient

#: Half of the clients speak binary, a quarter each of the ways to speak text.
ALL_KINDS: list[type[Client]] = [BinaryClient, ClassicClient, BinaryClient, MetaClient]

ROOT = Path(__file__).parent.parent
WITNESS = Path(__file__).parent / "witness"


class RelayProcess:
    """The relay, and how it is spoken with."""

    def __init__(self) -> None:
        paths = os.pathsep.join((str(ROOT), str(ROOT.parent)))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torture.relay"],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, *words: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def fault(self, server: int, fault: str, amount: float | str = 0.0) -> None:
        self.ask("fault", server, fault, amount)

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Stage:
    """`count` servers behind the relay; the last of them lies when it is told to, if `liar`."""

    def __init__(self, folder: Path, options: Options, count: int, *, liar: bool) -> None:
        self.folder = folder
        self.options = options
        self.liar = liar
        self.names = [f"server{number}" for number in range(count)]
        self.started: list[Any] = []
        root = authority.authority()
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(root.pem)
        self.pair = authority.issue("localhost", "127.0.0.1", issuer=root)
        self.pems = [str(folder / "cert.pem"), str(folder / "key.pem")]
        (folder / "cert.pem").write_bytes(self.pair.pem)
        (folder / "key.pem").write_bytes(self.pair.key_pem)
        self.relay = RelayProcess()
        self.started.append(self.relay)
        self.memcacheds: list[servers.Memcached] = []
        self.ports: list[int] = []
        """Of the relay, to dial in place of each server."""
        for name in self.names:
            memcached = servers.Memcached(folder / name, pair=self.pair, sasl=True)
            self.started.append(memcached)
            self.memcacheds.append(self.start_server(memcached))
            lies = self.pems if liar and name == self.names[-1] else None
            self.ports.append(self.relay.ask("add", memcached.port, lies))

    def start_server(self, memcached: servers.Memcached) -> servers.Memcached:
        """Start a memcached whose memory is enough that it throws nothing away."""
        return memcached.start("-m", "1024", "-c", "4096")

    def server_flags(self) -> list[str]:
        pairs = zip(self.ports, self.names, strict=True)
        return [f"--server=127.0.0.1:{port}={name}" for port, name in pairs]

    def make_tunnel(
        self,
        *flags: str,
        dial: bool = True,
        prefix: tuple[str, ...] = (),
        environ: dict[str, str] | None = None,
    ) -> servers.Tunnel:
        """A tunnel with the login, to the servers if it shall `dial` them; `prefix` runs it."""
        whole = self.server_flags() if dial else []
        whole += [f"--ca-file={self.ca_file}"] if dial else []
        whole += [f"--username={servers.USERNAME}", f"--workers={self.options.workers}"]
        tunnel = servers.Tunnel(
            *whole, *flags, environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD, **(environ or {})}
        )
        tunnel.command[:0] = prefix
        paths = [str(WITNESS), tunnel.environ.get("PYTHONPATH", "")]
        tunnel.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        tunnel.environ["TORTURE_WITNESS"] = str(self.folder)
        tunnel.folder = self.folder
        self.started.append(tunnel)
        return tunnel

    def load(self, tunnel: servers.Tunnel, *, tag: bytes = b"", timeout: float = 0.4) -> Load:
        seed = f"{self.options.seed}{tag.decode()}"
        rate = self.options.rate
        return Load(tunnel.port, self.names, seed, rate=rate, timeout=timeout, tag=tag)

    def stored(self, server: int, names: list[bytes]) -> dict[bytes, bytes]:
        """What a server itself has under these keys."""
        direct = servers.Direct(self.memcacheds[server], self.ca_file)
        opcodes = servers.binary.Opcode
        found: dict[bytes, bytes] = {}
        try:
            for start in range(0, len(names), 100):
                some = names[start : start + 100]
                direct.send(*(servers.binary.request(opcodes.GETK, name) for name in some))
                answers = direct.read(len(some))
                found.update((each.key, each.value) for each in answers if each.status == 0)
        finally:
            direct.close()
        return found


@contextlib.contextmanager
def staged(options: Options, count: int = 3, *, liar: bool = False) -> Iterator[Stage]:
    """A stage, which is cleared at the end whatever happens on it."""
    with tempfile.TemporaryDirectory(prefix="memtunnel-torture-") as folder:
        stage = None
        try:
            stage = Stage(Path(folder), options, count, liar=liar)
            yield stage
        finally:
            for thing in reversed(stage.started if stage is not None else []):
                thing.stop()


class Vitals:
    """What a tunnel takes: memory, descriptors, objects, taken from the kernel and from itself."""

    def __init__(self, tunnel: servers.Tunnel) -> None:
        self.tunnel = tunnel

    def processes(self) -> list[int]:
        assert self.tunnel.process is not None
        return tree(self.tunnel.process.pid)

    def memory(self) -> int:
        """Bytes, over all of its processes."""
        return memory(self.processes())

    def descriptors(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.processes())

    def pools_are_whole(self) -> bool:
        """Whether there are exactly the connections to servers that there should be, all warm."""
        every = self.tunnel.metric("memtunnel_upstream_connections")
        warm = self.tunnel.metric("memtunnel_upstream_connections", state="warm")
        return every == warm == self.tunnel.metric("memtunnel_upstream_connections_target")

    def in_use(self) -> tuple[int, int]:
        """Python's blocks of memory, and bytes of C's, that its processes hold themselves."""
        blocks = size = 0
        for pid in self.processes():
            file = self.tunnel.folder / str(pid)
            file.unlink(missing_ok=True)
            os.kill(pid, signal.SIGUSR2)
            servers.wait_until(file.exists, "the tunnel tells what it has in use")
            words = file.read_text().split()
            blocks, size = blocks + int(words[0]), size + int(words[1])
        return blocks, size

    def metrics(self, *names: str) -> dict[str, float]:
        """The sums of some gauges, from one scrape."""
        found = dict.fromkeys(names, 0.0)
        for line in self.tunnel.get("/metrics")[1].splitlines():
            name = line.partition(" ")[0].partition("{")[0]
            if name in found:
                found[name] += float(line.rpartition(" ")[2])
        return found

    def left_at_rest(self, patience: float = 20.0) -> float:
        """Requests and bytes thought to be under way when nothing should be: 0, within a time."""
        gauges = ("in_flight", "queued", "tombstones")
        names = [f"memtunnel_upstream_requests_{gauge}" for gauge in gauges]
        until = time.monotonic() + patience
        while True:
            left = sum(self.metrics("memtunnel_buffered_bytes", *names).values())
            if not left or time.monotonic() > until:
                return left
            time.sleep(0.1)
