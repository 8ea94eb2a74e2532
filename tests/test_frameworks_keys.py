"""Where clients put keys among several servers, and which `--hashing` finds them there.

The table of docs/from-stunnel.md is what is tried: each client stores keys by its own choice of a
server, without the tunnel, and they are looked for through tunnels to the same servers.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import authority
import pages
import programs
import pytest
import servers

pytestmark = pytest.mark.full

COUNT = 200
HASHINGS = ("ketama", "ketama-weighted", "modula")


def python(beginning: str) -> Callable[[Path], list[Any]]:
    script = f"import sys\n{beginning}\nfor n in range({COUNT}): cache.set(f'probe-{{n}}', 'x')"
    return lambda _: [sys.executable, "-c", script]


def php(option: str = "") -> Callable[[Path], list[Any]]:
    script = f"""$cache = new Memcached(); {option}
    foreach (array_slice($argv, 1) as $server) {{
        $cache->addServer(strtok($server, ":"), (int) strtok(":"));
    }}
    for ($n = 0; $n < {COUNT}; $n++) $cache->set("probe-$n", "x");"""
    return lambda _: [servers.need("php"), "-r", script, "--"]


def node(beginning: str, call: str) -> Callable[[Path], list[Any]]:
    script = f"""{beginning}
    (async () => {{
        for (let n = 0; n < {COUNT}; n++) await {call};
        process.exit(0);
    }})();"""

    def command(base: Path) -> list[Any]:
        file = programs.node_packages(base) / "keys.js"
        file.write_text(script)
        return [servers.need("node"), file]

    return command


#: By the words of the table: what stores the keys. Its arguments are the servers.
CLIENTS = {
    "pylibmc with `ketama`": python(
        "import pylibmc; cache = pylibmc.Client(sys.argv[1:], behaviors={'ketama': True})"
    ),
    "pylibmc with `ketama_weighted`": python(
        "import pylibmc; cache = pylibmc.Client(sys.argv[1:], behaviors={'ketama_weighted': True})"
    ),
    "pylibmc with neither": python("import pylibmc; cache = pylibmc.Client(sys.argv[1:])"),
    "PHP with `DISTRIBUTION_CONSISTENT`": php(
        "$cache->setOption(Memcached::OPT_DISTRIBUTION, Memcached::DISTRIBUTION_CONSISTENT);"
    ),
    "PHP with `OPT_LIBKETAMA_COMPATIBLE`": php(
        "$cache->setOption(Memcached::OPT_LIBKETAMA_COMPATIBLE, true);"
    ),
    "PHP with neither": php(),
    "memcached of Node": node(
        "const cache = new (require('memcached'))(process.argv.slice(2));",
        "new Promise((done) => cache.set(`probe-${n}`, 'x', 0, done))",
    ),
    "python-binary-memcached": python(
        "import bmemcached; cache = bmemcached.Client(tuple(sys.argv[1:]))"
    ),
    "Dalli": lambda _: [
        *(servers.need("ruby"), "-rdalli", "-e"),
        f"c = Dalli::Client.new(ARGV); {COUNT}.times {{ |n| c.set('probe-' + n.to_s, 'x') }}",
        "--",
    ],
    "memjs": node(
        "const cache = require('memjs').Client.create(process.argv.slice(2).join(','));",
        "cache.set(`probe-${n}`, 'x', {})",
    ),
    "pymemcache": python(
        "from pymemcache.client.hash import HashClient\n"
        "cache = HashClient(sys.argv[1:], default_noreply=False)"
    ),
    "python-memcached": python("import memcache; cache = memcache.Client(sys.argv[1:])"),
    "Perl's clients": lambda _: [
        *(servers.need("perl"), "-MCache::Memcached", "-e"),
        "my $cache = Cache::Memcached->new({servers => [@ARGV]});"
        f'$cache->set("probe-$_", "x") for 0..{COUNT - 1};',
    ],
}


def told() -> dict[str, str]:
    """The table's first word on the hashing, by client."""
    page = (pages.ROOT / "docs" / "from-stunnel.md").read_text()
    rows = re.findall(r"(?m)^\| (.*?) \| (`[\w-]+`|any|none)", page.partition("| `--hashing` |")[2])
    found = {}
    for names, hashing in rows:
        # "a, b, with neither" is one setting of both; elsewhere names stand by themselves.
        for name in re.split("[;,] ", re.sub(r"(\w+), (\w+), (with \w+)", r"\1 \3, \2 \3", names)):
            found[name] = hashing.strip("`")
    return found


@pytest.fixture
def three(tmp_path: Path, good_pair: authority.Pair) -> Iterator[list[tuple[int, int]]]:
    """Three memcacheds: a port with TLS, and one without for the clients."""
    (tmp_path / "cert.pem").write_bytes(good_pair.pem)
    (tmp_path / "key.pem").write_bytes(good_pair.key_pem)
    options = f"ssl_chain_cert={tmp_path / 'cert.pem'},ssl_key={tmp_path / 'key.pem'}"
    processes, ports = [], []
    try:
        for _ in range(3):
            secure, plain = servers.free_port(), servers.free_port()
            where = f"127.0.0.1:{secure},notls:127.0.0.1:{plain}"
            command = [servers.need("memcached"), "-u", "root", "-l", where, "-Z", "-o", options]
            processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
            ports.append((secure, plain))
            servers.wait_until(lambda port=plain: servers.connects(port), "memcached listens")
        yield ports
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_the_table_names_these_clients() -> None:
    assert told().keys() == CLIENTS.keys()


def test_keys_are_found_as_the_table_says(
    three: list[tuple[int, int]],
    ca_file: Path,
    started: list[Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tunnels = {}
    for hashing in HASHINGS:
        # A client's server is a name here, with the port of the client.
        dial = [f"--server=127.0.0.1:{tls}=127.0.0.1:{plain}" for tls, plain in three]
        flags = (*dial, f"--ca-file={ca_file}", f"--hashing={hashing}", servers.PATIENT)
        tunnels[hashing] = servers.Tunnel(*flags, "--failover=off")
        started.append(tunnels[hashing])
        tunnels[hashing].start()
    for tunnel in tunnels.values():
        tunnel.wait_ready()
    found: dict[str, str] = {}
    ask = "get " + " ".join(f"probe-{number}" for number in range(COUNT)) + "\r\n"
    for name, client in CLIENTS.items():
        for _, plain in three:
            wire = servers.Wire(plain)
            wire.ask(servers.binary.Opcode.FLUSH)
            wire.close()
        command = client(tmp_path_factory.getbasetemp())
        command += [f"127.0.0.1:{plain}" for _, plain in three]
        done = subprocess.run(command, capture_output=True, text=True, timeout=programs.SECONDS)
        assert done.returncode == 0, done.stdout + done.stderr
        hits = {}
        for hashing, tunnel in tunnels.items():
            text = servers.Wire(tunnel.port)
            text.send(ask.encode())
            with text.socket.makefile("rb") as answers:
                lines = list(iter(answers.readline, b"END\r\n"))
            hits[hashing] = sum(line.startswith(b"VALUE ") for line in lines)
            text.close()
        assert max(hits.values()) > COUNT / 5, (name, hits)
        whole = [hashing for hashing, count in hits.items() if count == COUNT]
        found[name] = {0: "none", 3: "any"}.get(len(whole)) or " ".join(whole)
    assert found == told()
