"""What can stand between clients and a hosted memcached: each as someone careful sets it up.

Chain and name of the server's certificate are checked; all else is left as it comes.
"""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import servers

from benchmarks import processes
from benchmarks.hosted import NAME, Hosted
from memtunnel.wire.binary import Opcode

ROOT = Path(__file__).parent.parent
#: Where `make compiled` puts the tunnel with its core compiled.
COMPILED = ROOT / "build" / "compiled"
LOGIN = f"--authenticate={servers.USERNAME}:{servers.PASSWORD}"
#: Seconds.
SCRAPE_INTERVAL = 1.0
#: What Prometheus asks for.
ACCEPT = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5"


class Contender:
    """Nothing between them: clients speak TLS with the server themselves.

    memtier checks the chain of the certificate, but not the name.
    """

    def __init__(self, name: str, hosted: Hosted, dials: int, folder: Path) -> None:
        self.name = name
        self.hosted = hosted
        self.dials = dials
        """The server's port."""
        self.folder = folder
        self.port = dials
        """Where clients connect."""

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def flags(self) -> list[str]:
        """What memtier has to know."""
        return [LOGIN, "--tls", f"--cacert={self.hosted.ca_file}", f"--sni={NAME}"]

    def client(self) -> servers.Wire:
        """A client that may ask."""
        return self.hosted.client()

    def processes(self) -> list[int]:
        return []

    def degraded(self) -> float:
        """How many answers so far were not the server's."""
        return 0.0

    @contextlib.contextmanager
    def under_load(self) -> Iterator[None]:
        """What else goes on in a round."""
        yield


class Proxy(Contender):
    """A program that adds TLS to each connection, and leaves the login to clients."""

    CONFIGURATION = ""
    COMMAND: tuple[str, ...] = ()
    """The configuration's path comes after it."""

    def __init__(self, name: str, hosted: Hosted, dials: int, folder: Path) -> None:
        super().__init__(name, hosted, dials, folder)
        self.port = servers.free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        path = self.folder / "configuration"
        path.write_text(
            self.CONFIGURATION.format(
                port=self.port, dials=self.dials, ca_file=self.hosted.ca_file, name=NAME
            )
        )
        said = self.folder / "output"
        with said.open("wb") as output:
            self.process = process = subprocess.Popen(
                [*self.COMMAND, str(path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

        def listening() -> bool:
            if process.poll() is not None:
                pytest.fail(f"{self.COMMAND[0]} ended: {said.read_text(errors='replace')}")
            return servers.connects(self.port)

        servers.wait_until(listening, f"{self.COMMAND[0]} listens")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def flags(self) -> list[str]:
        return [LOGIN]

    def client(self) -> servers.Wire:
        client = servers.Wire(self.port)
        message = f"\0{servers.USERNAME}\0{servers.PASSWORD}".encode()
        answer = client.ask(Opcode.SASL_AUTH, b"PLAIN", value=message)
        assert answer.status == 0, f"no login through {self.COMMAND[0]}: {answer}"
        return client

    def processes(self) -> list[int]:
        assert self.process is not None
        return processes.tree(self.process.pid)


class Stunnel(Proxy):
    COMMAND = ("stunnel",)
    #: Where no syslog runs, each line to it costs more than a handshake.
    CONFIGURATION = """\
foreground = yes
pid =
syslog = no

[memcached]
client = yes
accept = 127.0.0.1:{port}
connect = 127.0.0.1:{dials}
CAfile = {ca_file}
verifyChain = yes
checkHost = {name}
sni = {name}
"""


class HAProxy(Proxy):
    COMMAND = ("haproxy", "-db", "-f")
    #: It wants these times; idle clients are to stay.
    CONFIGURATION = """\
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h

listen memcached
    bind 127.0.0.1:{port}
    server memcached 127.0.0.1:{dials} ssl verify required ca-file {ca_file} \
verifyhost {name} sni str({name})
"""


class Memtunnel(Contender):
    """The tunnel of this tree."""

    FLAGS: tuple[str, ...] = ()
    ENVIRON: dict[str, str] = {}

    def __init__(self, name: str, hosted: Hosted, dials: int, folder: Path) -> None:
        super().__init__(name, hosted, dials, folder)
        self.tunnel = servers.Tunnel(
            f"--server={NAME}:{dials}",
            f"--ca-file={hosted.ca_file}",
            f"--username={servers.USERNAME}",
            *self.FLAGS,
            environ={"MEMTUNNEL_PASSWORD": servers.PASSWORD, **self.ENVIRON},
        )
        self.port = self.tunnel.port

    def start(self) -> None:
        self.tunnel.start()
        self.tunnel.wait_ready()

    def stop(self) -> None:
        self.tunnel.stop()

    def flags(self) -> list[str]:
        return []

    def client(self) -> servers.Wire:
        return servers.Wire(self.port)

    def processes(self) -> list[int]:
        assert self.tunnel.process is not None
        return processes.tree(self.tunnel.process.pid)

    def degraded(self) -> float:
        self.tunnel.log()  # or else the pipe fills up, and the tunnel waits for room in it
        return self.tunnel.metric("memtunnel_degraded_replies_total")


class Text(Memtunnel):
    """For clients that speak the text protocol."""

    def flags(self) -> list[str]:
        return ["--protocol=memcache_text"]


class Compiled(Memtunnel):
    """With its core compiled."""

    ENVIRON = {"PYTHONPATH": str(COMPILED)}


class Workers(Memtunnel):
    """Two processes of it."""

    FLAGS = ("--workers=2",)


class Before(Memtunnel):
    """Of another tree, which the variable BENCH_BEFORE names: what a change has cost or brought."""

    ENVIRON = {"PYTHONPATH": os.environ.get("BENCH_BEFORE", "")}


class Scraped(Memtunnel):
    """With its metrics asked for all the time. A scrape that fails ends the round in its error."""

    #: What is asked for, and every how many seconds.
    PAGES: tuple[tuple[str, float], ...] = (("/metrics", SCRAPE_INTERVAL),)

    @contextlib.contextmanager
    def under_load(self) -> Iterator[None]:
        over = threading.Event()
        with ThreadPoolExecutor(len(self.PAGES)) as threads:
            scraping = [threads.submit(self._scrape, over, *page) for page in self.PAGES]
            try:
                yield
            finally:
                over.set()
            for each in scraping:
                each.result()

    def _scrape(self, over: threading.Event, page: str, interval: float) -> None:
        while not over.is_set():
            status, _ = self.tunnel.get(page, {"Accept": ACCEPT})
            if status != 200:
                raise ValueError(f"a scrape was answered with {status}")
            over.wait(interval)


class Watched(Scraped):
    """With all that lets people see what it does, and somebody who looks."""

    FLAGS = ("--slow-ms=50", "--slow-sample=1000", "--log-format=json", "--log-metrics")
    PAGES = (*Scraped.PAGES, ("/status", 2.0))


CONTENDERS: dict[str, type[Contender]] = {
    "none": Contender,
    "stunnel": Stunnel,
    "haproxy": HAProxy,
    "memtunnel": Memtunnel,
    "memtunnel-text": Text,
    "memtunnel-compiled": Compiled,
    "memtunnel-workers": Workers,
    "memtunnel-scraped": Scraped,
    "memtunnel-watched": Watched,
    "memtunnel-before": Before,
}
#: Those that run where none are named.
USUAL = ("none", "stunnel", "haproxy", "memtunnel")
