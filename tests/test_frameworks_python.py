"""Django as docs/frameworks/django.md sets it up: cache, sessions, and both in an outage."""

import sys

import pages
import programs
import pytest
import servers

SCRIPT = """
import sys

import django
from django.conf import settings

port, blocks = sys.argv[1:]
named = {}
exec(blocks.replace("11211", port), named)
settings.configure(
    **{name: value for name, value in named.items() if name.isupper()},
    SECRET_KEY="of tests",
    INSTALLED_APPS=["django.contrib.sessions"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()

from importlib import import_module

from django.core import signals
from django.core.cache import cache
from django.core.management import call_command

SessionStore = import_module(settings.SESSION_ENGINE).SessionStore
call_command("migrate", verbosity=0)


def visit(key=None):
    session = SessionStore(key)
    session["visits"] = session.get("visits", 0) + 1
    session.save()
    # Django does this after each request.
    signals.request_finished.send(None)
    return session.session_key, session["visits"]


def served():
    cache.set("a", "one", 60)
    assert cache.get("a") == "one"
    assert cache.get("absent") is None
    assert cache.add("a", "two") is False
    assert cache.get_or_set("b", lambda: "made", 60) == "made"
    assert cache.set_many({"x": 1, "y": [2]}) == []
    assert cache.get_many(["x", "y", "z"]) == {"x": 1, "y": [2]}
    cache.set("n", 1)
    assert cache.incr("n", 3) == 4
    assert cache.delete("a") is True
    cache.clear()
    assert cache.get("x") is None


def ready():
    print("ready", flush=True)
    sys.stdin.readline()


def outcome(call):
    try:
        return call()
    except Exception:
        return "raises"


served()
key, visits = visit()
assert visit(key) == (key, 2)
ready()
assert cache.get("a") is None
assert cache.get_many(["a", "b"]) == {}
calls = {
    "get_or_set": lambda: cache.get_or_set("b", lambda: "made", 60),
    "set": lambda: cache.set("a", "one"),
    "delete": lambda: cache.delete("a"),
    "incr": lambda: cache.incr("n"),
    "add": lambda: cache.add("a", "one"),
    "set_many": lambda: sorted(cache.set_many({"a": 1, "b": 2})),
    "session": lambda: visit(key)[1],
}
found = {name: outcome(call) for name, call in calls.items()}
ready()
served()
assert visit(key)[1] == (4 if found["session"] == 3 else 3)
assert found == WANTED, found
"""
QUIET = {"set": None, "delete": False, "incr": False, "session": 3}
RAISING = {"set": "raises", "delete": "raises", "incr": "raises", "session": "raises"}
BOTH = {"set_many": ["a", "b"], "get_or_set": "made", "add": False}


@pytest.mark.parametrize(
    ("backend", "wanted"),
    [
        ("PyMemcacheCache", QUIET | BOTH),
        ("PyLibMCCache", RAISING | BOTH),
        ("BMemcached", RAISING | BOTH | {"get_or_set": "raises", "add": "raises"}),
    ],
)
def test_cache_and_sessions(
    outage: servers.Outage, backend: str, wanted: dict[str, object]
) -> None:
    cache = pages.block("frameworks/django.md", "python", backend)
    sessions = pages.block("frameworks/django.md", "python", "SESSION_ENGINE")
    script = SCRIPT.replace("WANTED", repr(wanted))
    programs.live_through([sys.executable, "-c", script], outage, cache + sessions)
