"""Python's clients of the text protocol and of the meta commands."""

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pymemcache
import pytest
import python_clients
import servers
from django.core.cache.backends.memcached import PyMemcacheCache
from memcachio.authentication import MemCachierAuthenticator
from pymemcache.exceptions import MemcacheError, MemcacheUnknownError
from pymemcache.serde import pickle_serde

LARGE = os.urandom(125_000).hex().encode()
#: Half of them are there, and they are asked for out of their order.
ASKED = [f"k{n * 37 % 100}" for n in range(100)]
THERE = {f"k{n}": f"v{n}".encode() for n in range(0, 100, 2)}
#: How long a client may look for its server once it is back.
AT_ONCE = 1.0


@pytest.fixture
def make_client() -> Iterator[Callable[..., Any]]:
    """Makes clients, which are closed when the test ends."""
    clients: list[Any] = []
    with asyncio.Runner() as runner:

        def make(kind: Any, port: int, **login: Any) -> Any:
            if issubclass(kind, python_clients.Async):
                clients.append(kind(port, runner, **login))
            else:
                clients.append(kind(port))
            return clients[-1]

        yield make
        for client in clients:
            client.quit()
    # A connection that was not let in is closed by nobody else.
    gc.collect()


def knows(client: Any, verb: str) -> bool:
    """Whether a client has this command, by this name or as it is called here."""
    return hasattr(type(client), verb) or hasattr(client.client, verb)


# --- what each of them does


def store(client: Any) -> None:
    assert client.get("absent") is None
    assert client.set("a", b"one")
    assert client.get("a") == b"one"
    assert not client.add("a", b"two")
    assert client.add("b", b"two")
    assert not client.replace("absent", b"three")
    assert client.replace("b", b"three")
    assert client.get("b") == b"three"
    assert not client.append("absent", b"!")
    assert client.append("b", b"!")
    assert client.prepend("b", b"?")
    assert client.get("b") == b"?three!"
    assert client.set("empty", b"")
    assert client.get("empty") == b""
    assert client.set("large", LARGE)
    assert client.get("large") == LARGE


def read_many(client: Any) -> None:
    for key, value in THERE.items():
        assert client.set(key, value)
    assert client.get_many(ASKED) == THERE
    assert client.get_many(["x", "y", "z"]) == {}
    assert client.get("k2") == b"v2"


def compare_and_swap(client: Any) -> None:
    client.set("c", b"one")
    value, token = client.gets("c")
    assert value == b"one"
    assert client.cas("c", b"two", token)
    assert not client.cas("c", b"three", token)
    assert client.get("c") == b"two"


def count(client: Any) -> None:
    assert client.incr("absent", 1) is None
    assert client.decr("absent", 1) is None
    client.set("n", b"10")
    assert client.incr("n", 3) == 13
    assert client.decr("n", 5) == 8
    assert client.decr("n", 100) == 0
    client.set("word", b"ten")
    with pytest.raises(client.error):
        client.incr("word", 1)
    assert client.get("word") == b"ten"


def expire(client: Any) -> None:
    client.set("e", b"one")
    assert client.touch("e", 100)
    assert not client.touch("absent", 100)
    if knows(client, "gat"):
        assert client.gat("e", 100) == b"one"
        assert client.gat("absent", 100) is None


def remove(client: Any) -> None:
    client.set("d", b"one")
    assert client.delete("d")
    assert bool(client.delete("d")) is client.deletes_what_is_absent
    assert client.get("d") is None


def speak_quietly(client: Any) -> None:
    if not client.has_quiet_commands:
        return
    for n in range(50):
        client.quietly("set", f"q{n}", b"1")
    client.quietly("append", "q1", b"!")
    client.quietly("append", "absent", b"!")
    client.quietly("delete", "q2")
    client.quietly("delete", "absent")
    client.quietly("incr", "q3", 5)
    client.quietly("incr", "absent", 5)
    assert client.get("q1") == b"1!"
    assert client.get("q2") is None
    assert client.get("q3") == b"6"
    assert client.get("q49") == b"1"


def ask_about_the_server(client: Any) -> None:
    if knows(client, "stats"):
        assert int(client.stats()[b"curr_items"]) > 0
    if knows(client, "version"):
        assert client.version().startswith(b"1.")
    if knows(client, "flush_all"):
        client.flush_all()
        assert client.get("k2") is None


@pytest.mark.parametrize("kind", python_clients.KINDS)
def test_commands(served: servers.Tunnel, make_client: Callable[..., Any], kind: Any) -> None:
    client = make_client(kind, served.port)
    for step in (store, read_many, compare_and_swap, count, expire, remove, speak_quietly):
        step(client)
    ask_about_the_server(client)


def test_what_meta_memcache_asks_by_itself_is_refused(
    served: servers.Tunnel, make_client: Callable[..., Any]
) -> None:
    client = make_client(python_clients.MetaMemcache, served.port)
    assert client.set("a", b"one")
    with pytest.raises(client.error):
        client.client.get("a")
    assert client.get("a") == b"one"


def test_pymemcache_waits_for_no_reply_by_default(served: servers.Tunnel) -> None:
    client = pymemcache.Client(("127.0.0.1", served.port), timeout=5)
    assert client.set_many({f"k{n}": f"v{n}".encode() for n in range(100)}) == []
    assert client.add("k1", b"two")
    assert client.append("k2", b"!")
    assert client.prepend("k2", b"?")
    assert client.delete("k3")
    assert client.delete("k3")
    assert client.touch("k4", 100)
    assert client.get_many([f"k{n}" for n in range(1, 5)]) == {
        "k1": b"v1",
        "k2": b"?v2!",
        "k4": b"v4",
    }
    assert client.delete_many(["k5", "k6"])
    assert client.get("k6") is None
    assert client.raw_command("get k7", "END\r\n") == b"VALUE k7 0 2\r\nv7\r\n"
    assert client.flush_all()
    assert client.get("k7") is None
    client.quit()


def test_pymemcache_with_pickled_values(served: servers.Tunnel) -> None:
    client = pymemcache.Client(("127.0.0.1", served.port), serde=pickle_serde, timeout=5)
    things = {"list": [1, "two", 3.0], "text": "räksmörgås", "bytes": b"\0\r\n", "number": 7}
    client.set_many(things)
    assert client.get_many(things) == things
    assert client.incr("number", 2) == 9
    # Its flags tell what the value was.
    assert client.get("number") == 9
    client.close()


def test_django(served: servers.Tunnel) -> None:
    cache = PyMemcacheCache(f"127.0.0.1:{served.port}", {})
    assert cache.get("absent", "default") == "default"
    cache.set("a", {"one": [1]}, 60)
    assert cache.get("a") == {"one": [1]}
    assert cache.add("a", "two") is False
    assert cache.add("b", "two", None) is True
    assert cache.set_many({f"k{n}": n for n in range(0, 100, 2)}) == []
    assert cache.get_many(ASKED) == {f"k{n}": n for n in range(0, 100, 2)}
    assert cache.incr("k2", 5) == 7
    assert cache.decr("k2") == 6
    with pytest.raises(ValueError, match="not found"):
        cache.incr("absent")
    assert cache.touch("a", 60) is True
    assert cache.touch("absent", 60) is False
    assert cache.get_or_set("c", lambda: "made") == "made"
    # A time that has passed removes what was there.
    cache.set("a", "gone", -1)
    assert cache.get("a") is None
    assert cache.delete("b") is True
    assert cache.delete("b") is False
    cache.delete_many(["k4", "k6"])
    assert cache.get_many(["k4", "k6", "k8"]) == {"k8": 8}
    cache.clear()
    assert cache.get("k8") is None
    cache.close()


# --- those that log in


LOGIN = {"username": servers.USERNAME, "password": servers.PASSWORD}
#: As MemCachier wants it, which is not as memcached does.
MEMCACHIER = {"authenticator": MemCachierAuthenticator(**LOGIN)}


@pytest.mark.parametrize(
    ("kind", "login"),
    [
        pytest.param(python_clients.Emcache, LOGIN, id="Emcache"),
        pytest.param(python_clients.Memcachio, LOGIN, id="Memcachio"),
        pytest.param(python_clients.Memcachio, MEMCACHIER, id="Memcachio-MemCachier"),
    ],
)
def test_a_login(
    served: servers.Tunnel, make_client: Callable[..., Any], kind: Any, login: dict[str, Any]
) -> None:
    client = make_client(kind, served.port, **login)
    store(client)
    assert served.metric("memtunnel_client_logins_total", result="ok") > 0
    assert served.metric("memtunnel_client_logins_total", result="refused") == 0


def test_a_wrong_login(served: servers.Tunnel, make_client: Callable[..., Any]) -> None:
    login = {**LOGIN, "password": "wrong"}
    client = make_client(python_clients.Memcachio, served.port, **login)
    with pytest.raises(Exception, match=r"(?i)auth"):
        client.get("a")
    assert served.metric("memtunnel_client_logins_total", result="refused") > 0


# --- while the server is away


def back(client: Any) -> None:
    """The client has its server again, at once."""
    began = time.monotonic()
    assert client.set("a", b"two")
    assert client.get("a") == b"two"
    assert time.monotonic() - began < AT_ONCE


def stored(client: Any) -> list[Any]:
    """Nothing is found and nothing fails; what the client makes of stores that are refused."""
    assert client.get("a") is None
    assert client.get_many(["a", "b"]) == {}
    verbs = (client.set, client.add, client.replace, client.append, client.prepend)
    return [verb("a", b"two") for verb in verbs]


def raise_all(client: Any, error: type[Exception]) -> None:
    """What changes something, and is no store, raises."""
    for call in (
        lambda: client.delete("a"),
        lambda: client.incr("a", 1),
        lambda: client.decr("a", 1),
        lambda: client.touch("a", 100),
        lambda: client.flush_all(),
    ):
        with pytest.raises(error, match="temporarily unavailable"):
            call()


def test_pymemcache_without_the_server(
    outage: servers.Outage, make_client: Callable[..., Any]
) -> None:
    client = make_client(python_clients.Pymemcache, outage.port)
    assert client.set("a", b"one")
    outage.begin()
    assert all(each is False for each in stored(client))
    assert client.gets("a") == (None, None)
    # It knows no NOT_STORED here, which has no token to disagree with.
    with pytest.raises(MemcacheUnknownError, match="NOT_STORED"):
        client.cas("a", b"two", b"1")
    client.quietly("set", "a", b"two")
    assert client.get("a") is None
    raise_all(client, MemcacheError)
    outage.end()
    back(client)


def test_python_memcached_without_the_server(
    outage: servers.Outage, make_client: Callable[..., Any]
) -> None:
    client = make_client(python_clients.PythonMemcached, outage.port)
    assert client.set("a", b"one")
    outage.begin()
    assert not any(stored(client))
    assert not client.cas("a", b"two", 1)
    assert client.delete("a") is False
    assert not client.touch("a", 100)
    for verb in (client.incr, client.decr):
        with pytest.raises(ValueError, match="temporarily unavailable"):
            verb("a", 1)
    client.flush_all()
    # It calls a server dead for half a minute; here it has seen nothing to call it so.
    outage.end()
    back(client)


def test_aiomcache_without_the_server(
    outage: servers.Outage, make_client: Callable[..., Any]
) -> None:
    client = make_client(python_clients.Aiomcache, outage.port)
    assert client.set("a", b"one")
    outage.begin()
    assert all(each is False for each in stored(client))
    assert client.gets("a") == (None, None)
    assert client.cas("a", b"two", 1) is False
    raise_all(client, client.error)
    outage.end()
    back(client)
