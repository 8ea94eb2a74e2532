"""Secrets and data that are easy to recognise: none of them may be read anywhere but on the wire.

A password and a wrong one, keys and values go through a tunnel while servers fail and lie, clients
log in wrongly and break the protocol, and files of configuration are broken. Then all that was said
to anybody is searched: log, pages, statistics, process list, words of a start that failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
from pathlib import Path

import servers
from test_passwords_stay_secret import forms

from memtunnel.wire.binary import Opcode, request
from torture.scorecard import Options, Row, problem_rows
from torture.stage import ALL_KINDS, Stage, Vitals, staged
from torture.weather import play

MINUTES = 0.25
WRONG = "wr0ng-canary-4711"
#: All keys of the load begin with this, and all values with their key.
KEY = "key-canary-1234-"
VALUE = "value-canary-5678"
#: What clients say that breaks the protocol, each on a connection of its own.
BROKEN = (
    b"\x80\x01" + KEY.encode() * 4,
    request(Opcode.SET, KEY.encode() * 20, extras=bytes(8), value=VALUE.encode()),
    request(0x77, KEY.encode(), value=VALUE.encode()),
    request(Opcode.GET, KEY.encode(), value=VALUE.encode()),
    b"no-command-but-%s %s\r\n" % (KEY.encode(), VALUE.encode()),
    b"get %s\r\n" % (KEY.encode() * 20),
    b"set %s x y z\r\n%s\r\n" % (KEY.encode(), VALUE.encode()),
    b"set %s 0 0 5\r\n%s\r\n" % (KEY.encode(), VALUE.encode()),
    b"mg %s %s\r\n" % (KEY.encode(), VALUE.encode()),
    KEY.encode() * 1000,
)


class Said:
    """All that was said to anybody, by where it was said."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {}

    def add(self, where: str, text: str) -> None:
        self.texts.setdefault(where, []).append(text)

    def found(self) -> list[str]:
        """Where something was found, with what it was."""
        secrets = set()
        for kind, secret in (
            ("the password", servers.PASSWORD),
            ("a wrong password", WRONG),
            ("a key", KEY),
            ("a value", VALUE),
        ):
            for where, texts in self.texts.items():
                if any(form in text for form in forms(secret) for text in texts):
                    secrets.add(f"{kind} in {where}")
        return sorted(secrets)


def run(options: Options) -> list[Row]:
    said = Said()
    with staged(options, count=3, liar=True) as stage:
        config = stage.folder / "memtunnel.toml"
        config.write_text('on-unavailable = "miss"\n')
        tunnel = stage.make_tunnel("--failover=off", f"--config={config}").start()
        tunnel.wait_ready()
        load = stage.load(tunnel, tag=KEY.encode())
        load.add(ALL_KINDS, ["plain"] * 16 + ["leaver"] * 4)
        _misbehave(tunnel)
        seconds = min(options.minutes or MINUTES, MINUTES) * 60
        asyncio.run(play(stage, load, seconds, tunnel.log))
        desyncs = tunnel.metric("memtunnel_upstream_desync_total")
        config.write_text(f'password = "{servers.PASSWORD}"\nusername = 7\n')
        tunnel.signal(signal.SIGHUP)
        stage.memcacheds[0].stop()
        tunnel.wait_ready(ready=False)
        _misbehave(tunnel)
        _look(tunnel, said)
        tunnel.stop()
        said.add("the log", tunnel.log())
        refused = _refused_login(stage, said)
        _broken_configuration(stage, said)
    found = said.found()
    size = sum(len(text) for texts in said.texts.values() for text in texts)
    rows = [
        Row(
            part="canary",
            name="secrets found",
            target="0",
            figure=f"{len(found)} in {size:,} characters of {len(said.texts)} kinds",
            ok=not found,
        ),
        Row(
            part="canary",
            name="lies of servers, refused logins at them",
            target="some",
            figure=f"{desyncs:.0f}, {refused}",
            ok=desyncs > 0 and refused > 0,
        ),
    ]
    rows += [Row(part="canary", name="found", figure=words, ok=False) for words in found]
    return [*rows, *problem_rows("canary", load)]


def _misbehave(tunnel: servers.Tunnel) -> None:
    """Log in well and wrongly in both protocols, and break the protocol in many ways."""
    for password in (servers.PASSWORD, WRONG):
        message = f"\0{servers.USERNAME}\0{password}".encode()
        _say(tunnel.port, request(Opcode.SASL_AUTH, b"PLAIN", value=message))
        _say(tunnel.port, request(Opcode.SASL_AUTH, password.encode(), value=message))
        pair = f"{servers.USERNAME} {password}".encode()
        for data in (pair, password.encode()):
            line = b"set %s 0 0 %d\r\n%s\r\n" % (servers.USERNAME.encode(), len(data), data)
            _say(tunnel.port, line)
    for data in BROKEN:
        _say(tunnel.port, data)


def _say(port: int, data: bytes) -> None:
    """Say something, and hear what comes in answer."""
    wire = servers.Wire(port, timeout=0.2)
    with contextlib.suppress(OSError):
        wire.send(data, b"\r\nversion\r\n")
        wire.socket.recv(1 << 16)
    wire.close()


def _look(tunnel: servers.Tunnel, said: Said) -> None:
    """What the running tunnel shows."""
    for page in ("/", "/metrics", "/readyz", "/healthz", f"/{KEY}?{VALUE}"):
        said.add(f"the page {page[:9]}", tunnel.get(page)[1])
    wire = servers.Wire(tunnel.port)
    wire.send(b"stats memtunnel\r\n")
    heard = b""
    while not heard.endswith(b"END\r\n"):
        heard += wire.socket.recv(1 << 16)
    wire.close()
    said.add("stats memtunnel", heard.decode())
    processes = ",".join(map(str, Vitals(tunnel).processes()))
    listed = ["ps", "-ww", "-o", "args", "-p", processes]
    said.add("ps", subprocess.run(listed, capture_output=True, text=True, check=True).stdout)
    for pid in Vitals(tunnel).processes():
        said.add("cmdline", Path(f"/proc/{pid}/cmdline").read_text())


def _refused_login(stage: Stage, said: Said) -> float:
    """A tunnel whose password the servers do not know; how often they refused it."""
    stage.start_server(stage.memcacheds[0])
    tunnel = stage.make_tunnel(environ={"MEMTUNNEL_PASSWORD": WRONG}).start()

    def refusals() -> float:
        return tunnel.metric("memtunnel_upstream_connects_total", result="login_refused")

    refused = servers.wait_until(refusals, "the login is refused")
    _look(tunnel, said)
    tunnel.stop()
    said.add("the log", tunnel.log())
    return float(refused)


def _broken_configuration(stage: Stage, said: Said) -> None:
    """Starts that fail, with secrets where they do not belong."""
    file = stage.folder / "broken.toml"
    texts = (
        f'password = "{servers.PASSWORD}"\n',
        f'metrics-token = "{WRONG} with spaces"\n',
        f'server = "{servers.PASSWORD}:x:y"\nrequest-timeout = [1]\n',
        f'password-file = "{stage.folder}/none"\nusername = "{servers.USERNAME}"\n',
        f'not toml "{servers.PASSWORD}\n',
    )
    for number, text in enumerate(texts):
        file.write_text(text)
        environ = {"MEMCACHIER_SERVERS": f"user1:{servers.PASSWORD}@host"}
        tunnel = servers.Tunnel(f"--config={file}", environ=environ)
        done = subprocess.run(
            [*tunnel.command, *(("--check-config",) if number % 2 else ())],
            env=tunnel.environ,
            capture_output=True,
            text=True,
            timeout=30,
            cwd=stage.folder,
        )
        assert done.returncode == 1
        said.add("a start that failed", done.stdout + done.stderr)
