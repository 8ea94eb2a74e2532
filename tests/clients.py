"""The real clients that are run through the tunnel, and the tests that run them.

A row is one client in one protocol: what the table of docs/clients.md is made of.
"""

import functools
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

#: Node's clients with all that they need, so that the same code runs tomorrow.
NODE_PACKAGES = {
    "memjs": "1.3.2",
    "memcached": "2.2.2",
    "hashring": "3.2.0",
    "connection-parse": "0.0.7",
    "simple-lru-cache": "0.0.2",
    "jackpot": "0.0.6",
    "retry": "0.6.0",
    # What docs/frameworks/express.md is about.
    "express": "5.3.0",
    "express-session": "1.19.0",
    "connect-memjs": "0.2.1",
    "connect-memcached": "3.0.0",
}
#: What a row's tests run, in the order of the table.
KINDS = {
    "commands": "its commands, compared with what memcached is known to answer",
    "login": "the same with a login of its own",
    "outage": "while the server is away, and once it is back",
    "faults": "gets and sets while servers are away, stall, lie, refuse and come back",
    "conformance": "a suite of tests for servers",
}


@dataclass(frozen=True, kw_only=True)
class Client:
    """`tests` are ids by one of `KINDS`, as pytest writes them within the folder of tests."""

    name: str
    language: str
    protocol: str
    source: str
    """Where the tests have it from."""
    version: Callable[[], str]
    """Asks for the version that is installed."""
    tests: dict[str, str]
    remark: str = ""
    """What someone who uses it has to know."""


def debian_version(package: str) -> str:
    """The version without what Debian adds to it."""
    command = ["dpkg-query", "--show", "--showformat=${Version}", package]
    whole = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return whole.rpartition(":")[2].partition("-")[0].partition("+")[0]


#: How the version of a package is found, by its source.
VERSIONS: dict[str, Callable[[str], str]] = {
    "PyPI": metadata.version,
    "Debian": debian_version,
    "npm": NODE_PACKAGES.__getitem__,
}


def client(
    language: str,
    name: str,
    protocol: str,
    source: str,
    file: str,
    /,
    remark: str = "",
    lives: bool = True,
    **tests: str,
) -> Client:
    """A row; `source` is a registry and a package, `tests` are of this file.

    `lives` says that it is one object for some time, and so lives through all faults as well.
    """
    registry, package = source.split()
    tests = {kind: f"{file}::{test}" for kind, test in tests.items()}
    if lives:
        tests["faults"] = f"{UNDER_FAULTS}[stopped-{language} {name} {protocol}]"
    assert tests.keys() <= KINDS.keys()
    return Client(
        name=name,
        language=language,
        protocol=protocol,
        source=registry,
        version=functools.partial(VERSIONS[registry], package),
        tests={kind: tests[kind] for kind in KINDS if kind in tests},
        remark=remark,
    )


BINARY_PYTHON = "test_clients_python.py"
TEXT_PYTHON = "test_clients_text_python.py"
RUBY = "test_clients_ruby.py"
NODE = "test_clients_node.py"
PHP = "test_clients_php.py"
PERL = "test_clients_perl.py"
TOOLS = "test_clients_libmemcached_tools.py"
CAPABLE = "test_memccapable.py"
#: Under the first of the faults; the others are beside it.
UNDER_FAULTS = "test_clients_under_faults.py::test_gets_and_sets"

CLIENTS = [
    client(
        *("Python", "pylibmc", "binary", "PyPI pylibmc", BINARY_PYTHON),
        commands="test_pylibmc[open]",
        login="test_pylibmc[login]",
    ),
    client(
        *("Python", "pylibmc", "text", "PyPI pylibmc", BINARY_PYTHON),
        commands="test_pylibmc_in_text",
        outage="test_pylibmc_in_text_without_the_server",
        remark="a delete in an outage: gives the server up for 2 to 3 s",
    ),
    client(
        *("Python", "python-binary-memcached", "binary"),
        *("PyPI python-binary-memcached", BINARY_PYTHON),
        remark="a set in an outage raises",
        commands="test_python_binary_memcached[open]",
        login="test_python_binary_memcached[login]",
    ),
    client(
        *("Python", "pymemcache", "text", "PyPI pymemcache", TEXT_PYTHON),
        commands="test_commands[Pymemcache]",
        outage="test_pymemcache_without_the_server",
    ),
    client(
        *("Python", "pymemcache's HashClient", "text", "PyPI pymemcache", TEXT_PYTHON),
        commands="test_commands[PymemcacheHash]",
    ),
    client(
        *("Python", "Django's PyMemcacheCache", "text", "PyPI django", TEXT_PYTHON),
        remark="a set in an outage raises",
        commands="test_django",
    ),
    client(
        *("Python", "python-memcached", "text", "PyPI python-memcached", TEXT_PYTHON),
        commands="test_commands[PythonMemcached]",
        outage="test_python_memcached_without_the_server",
    ),
    client(
        *("Python", "libmc", "text", "PyPI libmc", TEXT_PYTHON), commands="test_commands[Libmc]"
    ),
    client(
        *("Python", "aiomcache", "text", "PyPI aiomcache", TEXT_PYTHON),
        commands="test_commands[Aiomcache]",
        outage="test_aiomcache_without_the_server",
    ),
    client(
        *("Python", "emcache", "text", "PyPI emcache", TEXT_PYTHON),
        remark="a set in an outage raises",
        commands="test_commands[Emcache]",
        login="test_a_login[Emcache]",
    ),
    client(
        *("Python", "memcachio", "text", "PyPI memcachio", TEXT_PYTHON),
        commands="test_commands[Memcachio]",
        login="test_a_login[Memcachio]",
    ),
    client(
        *("Python", "meta-memcache", "meta", "PyPI meta-memcache", TEXT_PYTHON),
        commands="test_commands[MetaMemcache]",
        remark="its `get` asks for t, h and l, which are refused; `meta_get` need not",
    ),
    client(
        *("Ruby", "Dalli", "binary", "Debian ruby-dalli", RUBY),
        commands="test_commands[binary]",
        login="test_a_login[binary]",
        outage="test_without_the_server[binary]",
    ),
    client(
        *("Node", "memjs", "binary", "npm memjs", NODE),
        remark="a set in an outage is an error",
        commands="test_memjs[open]",
        login="test_memjs[login]",
    ),
    client(
        *("Node", "memcached", "text", "npm memcached", NODE),
        commands="test_memcached",
        outage="test_memcached_without_the_server",
        remark="a set in an outage is an error; a delete: gives the server up for 30 s",
    ),
    client(
        *("PHP", "memcached", "binary", "Debian php-memcached", PHP),
        commands="test_commands[binary]",
        login="test_commands[binary-login]",
    ),
    client(
        *("PHP", "memcached", "text", "Debian php-memcached", PHP),
        commands="test_commands[text]",
        outage="test_text_without_the_server",
    ),
    client(
        *("Perl", "Cache::Memcached", "text", "Debian libcache-memcached-perl", PERL),
        commands="test_commands[Cache::Memcached]",
    ),
    client(
        *("Perl", "Cache::Memcached::Fast", "text"),
        *("Debian libcache-memcached-fast-perl", PERL),
        commands="test_commands[Cache::Memcached::Fast]",
    ),
    client(
        *("C", "libmemcached's tools", "binary", "Debian libmemcached-tools", TOOLS),
        lives=False,
        commands="test_copy_show_look_for_touch_and_remove_a_file[binary]",
        login="test_copy_show_look_for_touch_and_remove_a_file[binary-login]",
    ),
    client(
        *("C", "libmemcached's tools", "text", "Debian libmemcached-tools", TOOLS),
        lives=False,
        commands="test_copy_show_look_for_touch_and_remove_a_file[text]",
    ),
    client(
        *("C", "memccapable", "binary", "Debian libmemcached-tools", CAPABLE),
        lives=False,
        conformance="test_all_tests_pass[binary]",
    ),
    client(
        *("C", "memccapable", "text", "Debian libmemcached-tools", CAPABLE),
        lives=False,
        conformance="test_all_tests_pass[text]",
    ),
]
#: Dalli 5 is in no registry of these: its bytes are said without it.
CLIENTS.append(
    Client(
        name="Dalli 5",
        language="Ruby",
        protocol="meta",
        source="its sources, read",
        version=lambda: "5.0.6",
        tests={
            "commands": "test_dalli_5_commands.py::test_every_answer_is_the_one_of_memcached",
            "outage": "test_dalli_5_commands.py::test_without_the_server",
        },
        remark="what it sends, without the gem; `fetch_with_lock`, `get_with_metadata` are refused",
    )
)


def table() -> str:
    """The clients as docs/clients.md shows them."""
    rows = ["| client | language | protocol | what was run | result |", "|---|---|---|---|---|"]
    for each in sorted(CLIENTS, key=lambda client: client.language):
        result = f"passes; {each.remark}" if each.remark else "passes"
        run = ", ".join(each.tests)
        rows.append(f"| {each.name} | {each.language} | {each.protocol} | {run} | {result} |")
    return "\n".join(rows)
