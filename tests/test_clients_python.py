"""Python's clients of the binary protocol: python-binary-memcached, and pylibmc in both."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bmemcached
import programs
import pytest
import servers
from bmemcached.exceptions import MemcachedException

Started = Callable[..., Any]
LOGIN = (servers.USERNAME, servers.PASSWORD)
LARGE = os.urandom(250_000).hex().encode()


@pytest.fixture
def tunnel(make_memcached: Started, make_tunnel: Started) -> servers.Tunnel:
    started: servers.Tunnel = make_tunnel(make_memcached())
    return started


@pytest.fixture
def python_binary_memcached() -> Iterator[Callable[..., Any]]:
    """Makes clients of python-binary-memcached."""
    clients = []

    def make(tunnel: servers.Tunnel, *login: str) -> Any:
        clients.append(bmemcached.Client((f"127.0.0.1:{tunnel.port}",), *login))
        return clients[-1]

    yield make
    for client in clients:
        client.disconnect_all()


@pytest.mark.parametrize("login", [(), LOGIN], ids=["open", "login"])
def test_python_binary_memcached(
    tunnel: servers.Tunnel, python_binary_memcached: Started, login: tuple[str, ...]
) -> None:
    client = python_binary_memcached(tunnel, *login)
    assert client.get("absent") is None
    assert client.set("a", "one")
    assert client.get("a") == "one"
    assert client.set_multi({f"k{n}": str(n) for n in range(100)}) == []
    wanted = [f"k{n}" for n in range(0, 200, 3)]
    assert client.get_multi(wanted) == {f"k{n}": str(n) for n in range(0, 100, 3)}
    assert client.get_multi(["x", "y", "z"]) == {}
    assert client.add("a", "two") is False
    assert client.replace("a", "three")
    value, token = client.gets("a")
    assert value == "three"
    assert client.cas("a", "four", token) is True
    assert client.cas("a", "five", token) is False
    assert client.get("a") == "four"
    assert client.incr("n", 3, default=10) == 10
    assert client.incr("n", 3) == 13
    assert client.decr("n", 5) == 8
    assert client.set("large", LARGE, compress_level=0)
    assert client.get("large") == LARGE
    assert client.delete("a") is True
    assert client.get("a") is None
    assert client.delete_multi(["k1", "k2"])
    assert client.get_multi(["k1", "k2", "k3"]) == {"k3": "3"}
    (statistics,) = client.stats().values()
    assert int(statistics["curr_items"]) == 100
    assert tunnel.metric("memtunnel_client_logins_total", result="ok") == bool(login)
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0


def test_python_binary_memcached_with_a_wrong_login(
    tunnel: servers.Tunnel, python_binary_memcached: Started
) -> None:
    client = python_binary_memcached(tunnel, servers.USERNAME, "wrong")
    with pytest.raises(MemcachedException):
        client.get("a")
    assert tunnel.metric("memtunnel_client_logins_total", result="refused") >= 1


def test_a_client_without_the_required_login_is_refused(
    make_memcached: Started, make_tunnel: Started, python_binary_memcached: Started
) -> None:
    tunnel = make_tunnel(make_memcached(), flags=("--client-auth=required",))
    with pytest.raises(MemcachedException):
        python_binary_memcached(tunnel).set("a", "one")
    assert python_binary_memcached(tunnel, *LOGIN).set("a", "one")
    assert python_binary_memcached(tunnel, *LOGIN).get("a") == "one"


PYLIBMC = """
import os
import sys

import pylibmc

port, protocol, *login = sys.argv[1:]
named = dict(zip(("username", "password"), login))
client = pylibmc.Client([f"127.0.0.1:{port}"], binary=protocol == "binary", **named)
client.behaviors["cas"] = True
assert client.get("absent") is None
assert client.set("a", "one")
assert client.get("a") == "one"
assert client.set_multi({f"k{n}": str(n) for n in range(100)}) == []
wanted = [f"k{n}" for n in range(0, 200, 3)]
assert client.get_multi(wanted) == {f"k{n}": str(n) for n in range(0, 100, 3)}
assert client.get_multi(["x", "y", "z"]) == {}
assert client.add("a", "two") is False
assert client.replace("a", "three")
value, token = client.gets("a")
assert value == "three"
assert client.cas("a", "four", token) is True
assert client.cas("a", "five", token) is False
assert client.get("a") == "four"
assert client.set("n", 10)
assert client.incr("n", 3) == 13
assert client.decr("n", 5) == 8
assert client.append("a", "!")
assert client.prepend("a", "?")
assert client.get("a") == "?four!"
large = os.urandom(250_000).hex()
assert client.set("large", large)
assert client.get("large") == large
assert client.delete("a") is True
assert client.delete("a") is False
assert client.get("a") is None
((_, statistics),) = client.get_stats()
assert int(statistics["curr_items"]) == 102, statistics
"""

PYLIBMC_OUTAGE = """
import sys
import time

import pylibmc

client = pylibmc.Client([f"127.0.0.1:{sys.argv[1]}"])


def ready():
    print("ready", flush=True)
    sys.stdin.readline()


assert client.set("a", "one")
ready()
assert client.get("a") is None
assert client.get_multi(["a", "b"]) == {}
for verb in (client.set, client.add, client.replace, client.append, client.prepend):
    assert verb("a", "two") is False, verb
assert client.set_multi({"a": "two", "b": "three"}) == ["a", "b"]
assert client.get("a") is None
ready()
began = time.monotonic()
assert client.set("a", "two")
assert client.get("a") == "two"
assert time.monotonic() - began < 1
"""

PYLIBMC_TOUCH = """
import sys

import pylibmc

client = pylibmc.Client([f"127.0.0.1:{sys.argv[1]}"], binary=True)
assert client.set("a", "one")
assert client.touch("a", 100)
assert client.get("a") == "one"
assert client.touch("absent", 100) is False
"""

PYLIBMC_WRONG_LOGIN = """
import sys

import pylibmc

port, username, password = sys.argv[1:]
client = pylibmc.Client(
    [f"127.0.0.1:{port}"], binary=True, username=username, password=password
)
try:
    client.set("a", "one")
except pylibmc.Error as error:
    print(error)
else:
    raise AssertionError("a wrong login was accepted")
"""


def run(script: str, port: int, *arguments: str, login: tuple[str, ...] = ()) -> str:
    """Run a script in a process of its own; pylibmc's wheel looks for SASL's plugins there."""
    environ = dict(os.environ)
    plugin = next(Path("/usr").glob("lib*/**/sasl2/libplain.so*"), None)
    if plugin is not None:
        environ["SASL_PATH"] = str(plugin.parent)
    elif login:
        servers.skip("SASL's plugins are not installed")
    command = [sys.executable, "-c", script, str(port), *arguments, *login]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("login", [(), LOGIN], ids=["open", "login"])
def test_pylibmc(tunnel: servers.Tunnel, login: tuple[str, ...]) -> None:
    run(PYLIBMC, tunnel.port, "binary", login=login)
    assert tunnel.metric("memtunnel_client_logins_total", result="ok") == bool(login)
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0


def test_pylibmc_in_text(served: servers.Tunnel) -> None:
    run(PYLIBMC, served.port, "text")


def test_pylibmc_in_text_without_the_server(outage: servers.Outage) -> None:
    programs.live_through([sys.executable, "-c", PYLIBMC_OUTAGE], outage)


def test_pylibmc_touches_where_the_extras_are_left_out(
    make_memcached: Started, make_tunnel: Started
) -> None:
    # Its libmemcached waits for more extras than memcached sends, and at last reports a failure.
    tunnel = make_tunnel(make_memcached(), flags=("--strip-touch-extras",))
    run(PYLIBMC_TOUCH, tunnel.port)


def test_pylibmc_with_a_wrong_login(tunnel: servers.Tunnel) -> None:
    assert "AUTHENTICATION" in run(
        PYLIBMC_WRONG_LOGIN, tunnel.port, login=(servers.USERNAME, "wrong")
    )
    assert tunnel.metric("memtunnel_client_logins_total", result="refused") >= 1
