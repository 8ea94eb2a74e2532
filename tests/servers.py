"""Real parts for tests: memcached with and without SASL and TLS, and the tunnel as a process.

Everything listens on 127.0.0.1 on ports that the system chose, is bounded in time, and is
ended by its own process.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import authority
import pytest

from memtunnel.wire import binary

USERNAME = "user1"
PASSWORD = "s3cret-canary-0815"
PATIENCE = 20.0
#: For tests of what is answered, not of when: a machine that is busy makes no misses then.
PATIENT = "--request-timeout=5"


def need(program: str) -> str:
    """The program's path. Without it the test is skipped loudly; in CI it fails."""
    path = shutil.which(program)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is not installed, and CI must not skip")
        pytest.skip(f"{program} is not installed")
    return path


def skip(words: str) -> NoReturn:
    """Skip a test loudly; in CI it fails."""
    if os.environ.get("CI"):
        pytest.fail(f"{words}, and CI must not skip")
    pytest.skip(words)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Any, what: str, patience: float = PATIENCE) -> Any:
    """Poll until `condition()` is true; returns its value. Fails with `what` after `patience`."""
    until = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            pytest.fail(f"not within {patience:g} s: {what}")
        time.sleep(0.02)


def connects(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Memcached:
    """A memcached of its own, `start`ed and `stop`ped at will on the same port."""

    def __init__(self, folder: Path, *, pair: authority.Pair | None, sasl: bool) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._environ = dict(os.environ)
        self._command = [need("memcached"), "-u", "root", "-U", "0", "-l", "127.0.0.1"]
        self._command += ["-p", str(self.port), "-c", "4096"]
        if sasl:
            folder.mkdir(parents=True, exist_ok=True)
            self._logins = folder / "sasldb2"
            configuration = f"mech_list: plain\nsasldb_path: {self._logins}\n"
            (folder / "memcached.conf").write_text(configuration)
            self.add_login(USERNAME, PASSWORD)
            self._environ["SASL_CONF_PATH"] = str(folder)
            self._command += ["-S", "-B", "binary"]
        if pair is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cert.pem").write_bytes(pair.pem)
            (folder / "key.pem").write_bytes(pair.key_pem)
            options = f"ssl_chain_cert={folder / 'cert.pem'},ssl_key={folder / 'key.pem'}"
            self._command += ["-Z", "-o", options]

    def add_login(self, username: str, password: str) -> None:
        """Let one more user in, from now on."""
        add = [need("saslpasswd2"), "-p", "-c", "-a", "memcached", "-u", socket.gethostname()]
        add += ["-f", str(self._logins), username]
        subprocess.run(add, input=password.encode(), check=True, timeout=PATIENCE)

    def start(self, *more: str) -> "Memcached":
        self.process = subprocess.Popen(
            [*self._command, *more],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: connects(self.port), "memcached listens")
        return self

    def stop(self, number: int = signal.SIGKILL) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(number)
            process.wait(PATIENCE)

    def peers(self) -> set[int]:
        """The other ends' ports of the connections established with it, seen from its side."""
        local = f"0100007F:{self.port:04X}"
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return {
            int(fields[2].partition(":")[2], 16)
            for fields in map(str.split, lines)
            if fields[1] == local and fields[3] == "01"
        }

    def established(self) -> int:
        """How many connections are established with it."""
        return len(self.peers())

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """It accepts nobody and answers nothing for a while, and goes on as if nothing had been."""
        assert self.process is not None
        stat = Path(f"/proc/{self.process.pid}/stat")
        self.process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: " (memcached) T " in stat.read_text(), "memcached stands")
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


def children(pid: int) -> list[int]:
    """The processes that this one has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has looked after since then has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Tunnel:
    """``twistd memtunnel`` as a process. `flags` come before the defaults of tests."""

    def __init__(self, *flags: str, environ: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.admin = free_port()
        # The path of modules says which core runs: the plain one or the compiled one.
        keep = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH")
        base = {name: os.environ[name] for name in keep if name in os.environ}
        self.environ = {**base, **(environ or {})}
        # As the program that is installed, which takes no modules from where it is started.
        self.command = [sys.executable, "-P", "-m", "memtunnel"]
        self.command += [f"--listen=127.0.0.1:{self.port}"]
        self.command += [f"--metrics=tcp:{self.admin}:interface=127.0.0.1", *flags]
        self.folder = Path("/tmp")
        """Where it is started."""
        self.process: subprocess.Popen[bytes] | None = None
        self.output = b""

    def start(self, patience: float = PATIENCE) -> "Tunnel":
        self.process = subprocess.Popen(
            self.command,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
        )
        os.set_blocking(self.process.stdout.fileno(), False)  # type: ignore[union-attr]

        def listening() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                pytest.fail(f"the tunnel ended: {self.log()}")
            return connects(self.port) and connects(self.admin)

        wait_until(listening, "the tunnel listens", patience)
        return self

    @property
    def workers(self) -> list[int]:
        """The processes that it has started."""
        assert self.process is not None
        return children(self.process.pid)

    def log(self) -> str:
        """What it has printed so far."""
        if self.process is not None and self.process.stdout is not None:
            with contextlib.suppress(BlockingIOError, ValueError):
                while chunk := self.process.stdout.read(1 << 16):
                    self.output += chunk
        return self.output.decode()

    def wait_ready(self, ready: bool = True, patience: float = PATIENCE) -> None:
        wanted = 200 if ready else 503
        wait_until(lambda: self.get("/readyz")[0] == wanted, f"/readyz {wanted}", patience)

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Status and body of a page of the admin port."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.admin}{path}", headers=headers or {}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def state(self) -> Any:
        return json.loads(self.get("/readyz")[1])

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of this name that bear these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            match = re.fullmatch(r"([a-zA-Z_:]+)(?:\{(.*)\})? (\S+)", line)
            if match is None or match[1] != name:
                continue
            found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            if labels.items() <= found.items():
                total += float(match[3])
        return total

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Its exit status."""
        assert self.process is not None
        status = self.process.wait(patience)
        self.log()
        return status

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            until = time.monotonic() + PATIENCE
            while self.process.poll() is None and time.monotonic() < until:
                # Asked again it does not drain; but two signals that come together are one.
                self.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.2)
            self.process.kill()
            self.process.wait(PATIENCE)
        if self.process is not None:
            self.log()


class Outage:
    """What a tunnel's clients live through: the server goes, and comes back."""

    def __init__(self, memcached: Memcached, tunnel: Tunnel) -> None:
        self.memcached = memcached
        self.tunnel = tunnel
        self.port = tunnel.port

    def begin(self) -> None:
        self.memcached.stop()
        self.tunnel.wait_ready(False)

    def end(self) -> None:
        self.memcached.start()
        self.tunnel.wait_ready()


class Wire:
    """A client that speaks frames over a blocking socket."""

    def __init__(self, port: int, timeout: float = PATIENCE) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._left = b""

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def read(self, count: int = 1) -> list[binary.Frame]:
        """The next `count` answers; fewer only where the server closed."""
        frames: list[binary.Frame] = []
        while len(frames) < count:
            got, self._left = binary.split(self._left)
            frames += got
            if len(frames) >= count:
                break
            data = self.socket.recv(1 << 16)
            if not data:
                break
            self._left += data
        if len(frames) > count:
            for frame in reversed(frames[count:]):
                self._left = self._bytes(frame) + self._left
        return frames[:count]

    def ask(self, opcode: int, key: bytes = b"", **parts: Any) -> binary.Frame:
        """Send one request and read one answer."""
        self.send(binary.request(opcode, key, **parts))
        (frame,) = self.read()
        return frame

    def set(self, key: bytes, value: bytes, flags: int = 0, expiry: int = 0) -> binary.Frame:
        extras = flags.to_bytes(4, "big") + expiry.to_bytes(4, "big")
        return self.ask(binary.Opcode.SET, key, extras=extras, value=value)

    def get(self, key: bytes) -> binary.Frame:
        return self.ask(binary.Opcode.GET, key)

    def at_end(self) -> bool:
        """Whether the server has closed, with nothing left to read."""
        return not self._left and not self.socket.recv(1)

    def close(self) -> None:
        self.socket.close()

    @staticmethod
    def _bytes(frame: binary.Frame) -> bytes:
        return binary.answer(
            frame.opcode,
            frame.opaque,
            frame.status,
            extras=frame.extras,
            key=frame.key,
            value=frame.value,
            cas=frame.cas,
        )


class Direct(Wire):
    """A client of a memcached itself, over TLS and logged in: what the server really has."""

    def __init__(self, memcached: Memcached, ca_file: Path) -> None:
        super().__init__(memcached.port)
        context = ssl.create_default_context(cafile=ca_file)
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        message = f"\0{USERNAME}\0{PASSWORD}".encode()
        assert self.ask(binary.Opcode.SASL_AUTH, b"PLAIN", value=message).status == 0


class Binary(Wire):
    """A client whose requests and answers are said alike in both protocols; see `Text`.

    An answer is True for what was done, False for what was not; a value, or None for a miss; and
    REFUSED where there was not the right login.
    """

    @staticmethod
    def log_in(username: str, password: str) -> bytes:
        message = f"\0{username}\0{password}".encode()
        return binary.request(binary.Opcode.SASL_AUTH, b"PLAIN", value=message)

    @staticmethod
    def store(key: bytes, value: bytes) -> bytes:
        return binary.request(binary.Opcode.SET, key, extras=bytes(8), value=value)

    @staticmethod
    def fetch(key: bytes) -> bytes:
        return binary.request(binary.Opcode.GET, key)

    def say(self, *requests: bytes) -> list[Any]:
        """Send requests in one write, and hear an answer to each, or fewer if it is closed."""
        self.send(*requests)
        return self.hear(len(requests))

    def hear(self, count: int) -> list[Any]:
        return [self._said(frame) for frame in self.read(count)]

    @staticmethod
    def _said(frame: binary.Frame) -> Any:
        if frame.status == binary.Status.AUTH_FAILED:
            return REFUSED
        if frame.opcode == binary.Opcode.GET:
            assert frame.status in (binary.Status.OK, binary.Status.NOT_FOUND)
            return frame.value if frame.status == binary.Status.OK else None
        assert frame.status in (binary.Status.OK, binary.Status.NOT_STORED)
        return frame.status == binary.Status.OK


class Text(Binary):
    """The same in text; a login is answered with REFUSED where it is wrong, too."""

    def __init__(self, port: int, timeout: float = PATIENCE) -> None:
        super().__init__(port, timeout)
        self._input = self.socket.makefile("rb")

    @staticmethod
    def log_in(username: str, password: str) -> bytes:
        return Text.store(b"any", f"{username} {password}".encode())

    @staticmethod
    def store(key: bytes, value: bytes) -> bytes:
        return b"set %b 0 0 %d\r\n%b\r\n" % (key, len(value), value)

    @staticmethod
    def fetch(key: bytes) -> bytes:
        return b"get %b\r\n" % key

    def hear(self, count: int) -> list[Any]:
        said = (self._answer(line) for line in iter(self._input.readline, b""))
        return list(islice(said, count))

    def _answer(self, line: bytes) -> Any:
        if line.startswith(b"VALUE "):
            value = self._input.read(int(line.split()[3]))
            assert self._input.read(7) == b"\r\nEND\r\n"
            return value
        return _SAID[line]

    def at_end(self) -> bool:
        return not self._input.read(1)

    def close(self) -> None:
        self._input.close()
        super().close()


REFUSED = "refused"
_SAID = {
    b"STORED\r\n": True,
    b"NOT_STORED\r\n": False,
    b"END\r\n": None,
    b"CLIENT_ERROR authentication failure\r\n": REFUSED,
    b"CLIENT_ERROR unauthenticated\r\n": REFUSED,
}


class Regular(threading.Thread):
    """Stores and fetches keys of its own, pipelined, until it is told to stop.

    Any answer but the right one ends it, and so does a connection that is closed.
    """

    def __init__(self, number: int, client: Binary) -> None:
        super().__init__(name=f"regular {number}", daemon=True)
        self._number = number
        self._client = client
        self.rounds = 0
        self.stopping = False
        self.problem: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stopping:
                asked: list[bytes] = []
                wanted: list[Any] = []
                for number in range(10):
                    key, value = b"%d-%d" % (self._number, number), b"%d" % self.rounds
                    asked += self._client.store(key, value), self._client.fetch(key)
                    wanted += True, value
                said = self._client.say(*asked)
                assert said == wanted, f"{said} in place of {wanted}"
                self.rounds += 1
        except BaseException as problem:
            self.problem = problem


class Regulars:
    """Several of them, on connections that are theirs. None may have had a problem at the end."""

    def __init__(self, clients: list[Binary]) -> None:
        self._threads = [Regular(number, client) for number, client in enumerate(clients)]

    def go_on(self) -> None:
        """Wait until all have been served once more, from the first request to the last answer."""
        rounds = [thread.rounds for thread in self._threads]
        wait_until(
            lambda: all(
                thread.problem or thread.rounds >= before + 2
                for thread, before in zip(self._threads, rounds, strict=True)
            ),
            "all clients are served",
        )

    def __enter__(self) -> "Regulars":
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.go_on()
        for thread in self._threads:
            thread.stopping = True
        for thread in self._threads:
            thread.join(PATIENCE)
        problems = [f"{each.name}: {each.problem!r}" for each in self._threads if each.problem]
        assert not problems, problems


@contextlib.contextmanager
def closing_all(things: list[Any]) -> Iterator[list[Any]]:
    """Stop (or close) everything in the list at the end, the last first."""
    try:
        yield things
    finally:
        for thing in reversed(things):
            (thing.stop if hasattr(thing, "stop") else thing.close)()
