"""Nodes of a cluster, with certificates of a public authority and without logins."""

import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import authority
import pytest
import servers

Start = Callable[..., servers.Tunnel]
KEYS = 60
LOGIN = {"MEMTUNNEL_USERNAME": servers.USERNAME, "MEMTUNNEL_PASSWORD": servers.PASSWORD}
NO_LOGINS = "it knows no logins: leave user name and password out"


@pytest.fixture
def nodes(make_memcached: Callable[..., servers.Memcached]) -> list[servers.Memcached]:
    return [make_memcached(sasl=False) for _ in range(3)]


@pytest.fixture
def start(started: list[Any]) -> Start:
    """Starts a tunnel to these nodes by their name, with these roots as the system's."""

    def start(nodes: list[servers.Memcached], roots: Path, **environ: str) -> servers.Tunnel:
        dial = [f"--server=localhost:{node.port}" for node in nodes]
        environ = {"SSL_CERT_FILE": str(roots), **environ}
        tunnel = servers.Tunnel(*dial, servers.PATIENT, environ=environ)
        started.append(tunnel)
        return tunnel.start()

    return start


def check(nodes: list[servers.Memcached], roots: Path, **environ: str) -> Any:
    tunnel = servers.Tunnel(environ={"SSL_CERT_FILE": str(roots), **environ})
    dial = [f"--server=localhost:{node.port}" for node in nodes]
    return subprocess.run(
        [sys.executable, "-P", "-m", "memtunnel", "check", *dial],
        env=tunnel.environ,
        capture_output=True,
        text=True,
        timeout=servers.PATIENCE,
        cwd="/tmp",
    )


def statistics(node: servers.Memcached, roots: Path) -> dict[str, int]:
    """What a node has counted, asked without a tunnel."""
    context = ssl.create_default_context(cafile=roots)
    wire = servers.Text(node.port)
    with context.wrap_socket(wire.socket, server_hostname="localhost") as tls:
        tls.sendall(b"stats\r\n")
        lines = iter(tls.makefile("rb").readline, b"END\r\n")
        words = (line.decode().split() for line in lines)
        return {name: int(value) for _, name, value in words if value.isdecimal()}


def test_all_nodes_pass_by_the_roots_of_the_system(
    nodes: list[servers.Memcached], ca_file: Path
) -> None:
    done = check(nodes, ca_file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("login    none is configured\n") == 3
    assert done.stdout.endswith("3 of 3 servers pass, with --verify full\n")


def test_keys_spread_over_all_nodes_and_no_login_is_sent(
    nodes: list[servers.Memcached], ca_file: Path, start: Start, connect: Callable[..., Any]
) -> None:
    tunnel = start(nodes, ca_file)
    servers.wait_until(
        lambda: tunnel.metric("memtunnel_upstream_up") == len(nodes), "all nodes are warm"
    )
    client = connect(tunnel, servers.Text)
    for number in range(KEYS):
        key = b"key-%d" % number
        assert client.say(client.store(key, b"v"), client.fetch(key)) == [True, b"v"]
    told = [statistics(node, ca_file) for node in nodes]
    assert sum(each["curr_items"] for each in told) == KEYS
    assert min(each["curr_items"] for each in told) > 0
    assert [each["auth_cmds"] for each in told] == [0, 0, 0]
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0


def test_a_root_that_the_system_does_not_have_is_not_trusted(
    nodes: list[servers.Memcached], start: Start, tmp_path: Path
) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_bytes(authority.authority("another authority").pem)
    tunnel = start(nodes[:1], roots)
    servers.wait_until(lambda: "no connection: certificate_chain" in tunnel.log(), "it says so")
    assert tunnel.get("/readyz")[0] == 503


def test_a_certificate_of_that_authority_for_another_name_is_not_trusted(
    make_memcached: Callable[..., servers.Memcached],
    root: authority.Pair,
    ca_file: Path,
    start: Start,
) -> None:
    node = make_memcached(authority.issue("node.example.com", issuer=root), sasl=False)
    tunnel = start([node], ca_file)
    servers.wait_until(lambda: "no connection: certificate_name" in tunnel.log(), "it says so")
    assert tunnel.get("/readyz")[0] == 503
    assert check([node], ca_file).returncode == 1


def test_a_login_that_nobody_wants_is_told(
    nodes: list[servers.Memcached], ca_file: Path, start: Start
) -> None:
    done = check(nodes[:1], ca_file, **LOGIN)
    assert done.returncode == 1
    assert f"  login    {NO_LOGINS}\n" in done.stdout
    tunnel = start(nodes[:1], ca_file, **LOGIN)
    words = f"no connection: login_refused ({NO_LOGINS})"
    servers.wait_until(lambda: words in tunnel.log(), "it says so")
    assert tunnel.get("/readyz")[0] == 503
    tunnel.stop()
    assert servers.PASSWORD not in done.stdout + tunnel.log()


def test_a_server_that_speaks_only_text_does_not_pass(
    make_memcached: Callable[..., servers.Memcached], ca_file: Path
) -> None:
    node = make_memcached(sasl=False)
    node.stop()
    node.start("-B", "ascii")
    done = check([node], ca_file, MEMTUNNEL_CONNECT_TIMEOUT="0.5")
    assert done.returncode == 1
    assert "  version  not warm within 0.5 s" in done.stdout
