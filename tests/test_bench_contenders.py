"""Each contender as it is set up: its configuration, and what memtier is told of it."""

import contextlib
import http.server
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import servers

from benchmarks.contenders import COMPILED, CONTENDERS, USUAL, Proxy, Scraped

HOSTED: Any = SimpleNamespace(ca_file=Path("/ca.pem"))
DIALS = 4711


def make(name: str, folder: Path = Path("/nowhere")) -> Any:
    return CONTENDERS[name](name, HOSTED, DIALS, folder)


def test_without_a_proxy_clients_do_all_themselves() -> None:
    nobody = make("none")
    assert nobody.port == DIALS
    assert nobody.flags() == [
        f"--authenticate={servers.USERNAME}:{servers.PASSWORD}",
        "--tls",
        "--cacert=/ca.pem",
        "--sni=localhost",
    ]
    assert nobody.processes() == []
    assert nobody.degraded() == 0


@pytest.mark.parametrize("name", ["stunnel", "haproxy"])
def test_through_a_proxy_clients_log_in(name: str) -> None:
    proxy = make(name)
    assert proxy.port != DIALS
    assert proxy.flags() == [f"--authenticate={servers.USERNAME}:{servers.PASSWORD}"]


CHECKS = {
    "stunnel": {
        "accept = 127.0.0.1:{port}",
        "connect = 127.0.0.1:4711",
        "CAfile = /ca.pem",
        "verifyChain = yes",
        "checkHost = localhost",
        "sni = localhost",
    },
    "haproxy": {
        "bind 127.0.0.1:{port}",
        "server memcached 127.0.0.1:4711 ssl verify required ca-file /ca.pem "
        "verifyhost localhost sni str(localhost)",
    },
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_proxy_checks_the_certificate(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration is given to a program that takes its place, and only listens."""
    listen = (
        f"#!{sys.executable}\n"
        "import re, socket, sys\n"
        "text = open(sys.argv[-1]).read()\n"
        "port = re.search(r'(?:accept =|bind) 127.0.0.1:(\\d+)', text)[1]\n"
        "server = socket.create_server(('127.0.0.1', int(port)))\n"
        "while True: server.accept()\n"
    )
    (tmp_path / name).write_text(listen)
    (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    folder = tmp_path / "folder"
    folder.mkdir()
    proxy = make(name, folder)
    with servers.closing_all([proxy]):
        proxy.start()
        assert len(proxy.processes()) == 1
        lines = {line.strip() for line in (folder / "configuration").read_text().splitlines()}
        assert {line.format(port=proxy.port) for line in CHECKS[name]} <= lines
    assert proxy.process.returncode is not None


def test_a_proxy_that_ends_is_told_with_its_words(tmp_path: Path) -> None:
    class Broken(Proxy):
        COMMAND = ("sh", "-c", "echo no such file; exit 1")

    with pytest.raises(pytest.fail.Exception, match="sh ended: no such file"):
        Broken("broken", HOSTED, DIALS, tmp_path).start()


def test_the_tunnel_checks_the_certificate_and_logs_in() -> None:
    tunnel = make("memtunnel")
    assert tunnel.flags() == []
    assert {"--server=localhost:4711", "--ca-file=/ca.pem"} < set(tunnel.tunnel.command)
    assert tunnel.tunnel.environ["MEMTUNNEL_PASSWORD"] == servers.PASSWORD
    assert servers.PASSWORD not in " ".join(tunnel.tunnel.command)


def test_variants_of_the_tunnel() -> None:
    assert make("memtunnel-compiled").tunnel.environ["PYTHONPATH"] == str(COMPILED)
    assert "--workers=2" in make("memtunnel-workers").tunnel.command
    assert make("memtunnel-text").flags() == ["--protocol=memcache_text"]
    assert "--workers=2" not in make("memtunnel").tunnel.command


def test_those_that_usually_run() -> None:
    assert USUAL == ("none", "stunnel", "haproxy", "memtunnel")


class Admin(http.server.BaseHTTPRequestHandler):
    """Answers all with a status, and counts."""

    status = 200
    asked: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Accept"]))
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("status", [200, 500])
def test_scrapes_go_on_while_a_load_runs(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.contenders.SCRAPE_INTERVAL", 0.01)
    monkeypatch.setattr(Admin, "status", status)
    monkeypatch.setattr(Admin, "asked", [])
    scraped: Scraped = make("memtunnel-scraped")
    with http.server.ThreadingHTTPServer(("127.0.0.1", scraped.tunnel.admin), Admin) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            ends: Any = contextlib.nullcontext()
            if status != 200:
                ends = pytest.raises(ValueError, match="a scrape was answered with 500")
            with ends, scraped.under_load():
                count = 3 if status == 200 else 1
                servers.wait_until(lambda: len(Admin.asked) >= count, "scrapes")
        finally:
            server.shutdown()
            thread.join()
    path, accept = Admin.asked[0]
    assert path == "/metrics"
    assert accept is not None
    assert accept.startswith("application/openmetrics-text")
    assert not any(each.name.startswith("ThreadPool") for each in threading.enumerate())
