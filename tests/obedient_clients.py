"""Real clients that do what they are told, a line at a time: get these keys, set that one.

Those of other languages are scripts, pylibmc among them, which is C and might take this process
along. The others are called from here.
"""

import asyncio
import functools
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import bmemcached
import programs
import python_clients
import servers
from django.core.cache.backends.memcached import PyMemcacheCache

PYLIBMC = """
import sys

import pylibmc

# As MemCachier advises: impatient, and unforgiving for half a minute.
settings = {
    "tcp_nodelay": True, "tcp_keepalive": True, "connect_timeout": 2000, "send_timeout": 750_000,
    "receive_timeout": 750_000, "_poll_timeout": 2000, "ketama": True, "remove_failed": 1,
    "retry_timeout": 2, "dead_timeout": 30,
}
_, port, protocol = sys.argv
binary = protocol == "binary"
client = pylibmc.Client([f"127.0.0.1:{port}"], binary=binary, behaviors=settings if binary else {})
print("ready", flush=True)
for line in sys.stdin:
    verb, *words = line.split()
    try:
        if verb == "set":
            said = "+" if client.set(words[0], words[1].encode()) else "-"
        else:
            found = {words[0]: client.get(words[0])} if verb == "get" else client.get_multi(words)
            pairs = [f"{key} {value.decode()}" for key, value in found.items() if value]
            said = " ".join(["=", *pairs])
    except Exception as error:
        said = f"! {type(error).__name__}: {error}".replace("\\n", " ")
    print(said, flush=True)
"""
PHP = """
$client = new Memcached();
$client->setOption(Memcached::OPT_BINARY_PROTOCOL, $argv[2] === "binary");
$client->addServer("127.0.0.1", (int) $argv[1]);
print("ready\\n");
while (($line = fgets(STDIN)) !== false) {
    $words = explode(" ", trim($line));
    $verb = array_shift($words);
    $fine = [Memcached::RES_SUCCESS, Memcached::RES_NOTFOUND];
    if ($verb === "get") {
        $value = $client->get($words[0]);
        $said = $value === false ? "=" : "= $words[0] $value";
    } elseif ($verb === "many") {
        $said = "=";
        foreach ($client->getMulti($words) ?: [] as $key => $value) { $said .= " $key $value"; }
    } else {
        $said = $client->set($words[0], $words[1]) ? "+" : "-";
        $fine[] = Memcached::RES_NOTSTORED;
    }
    if (!in_array($client->getResultCode(), $fine)) { $said = "! " . $client->getResultMessage(); }
    print("$said\\n");
}
"""
RUBY = """
require "dalli"
Dalli.logger.level = Logger::FATAL
$stdout.sync = true
client = Dalli::Client.new("127.0.0.1:#{ARGV[0]}")
puts "ready"
while (line = $stdin.gets)
  verb, *words = line.split
  begin
    said = case verb
           when "set" then client.set(*words, nil, raw: true) ? "+" : "-"
           when "many" then ["=", *client.get_multi(*words).flatten].join(" ")
           else (value = client.get(words[0])) ? "= #{words[0]} #{value}" : "="
           end
  rescue => error
    said = "! #{error.class}: #{error.message}".tr("\\n", " ")
  end
  puts said
end
"""
PERL = r"""
use strict;
use warnings;
$| = 1;
my ($port, $class) = @ARGV;
eval "require $class" or die $@;
my $client = $class->new({ servers => ["127.0.0.1:$port"] });
print "ready\n";
while (my $line = <STDIN>) {
    my ($verb, @words) = split " ", $line;
    my $said = eval {
        if ($verb eq "get") {
            my $value = $client->get($words[0]);
            return defined $value ? "= $words[0] $value" : "=";
        }
        return $client->set(@words) ? "+" : "-" if $verb eq "set";
        return join " ", "=", %{$client->get_multi(@words)};
    } // "! $@";
    $said =~ tr/\n/ /;
    print "$said\n";
}
"""
NODE = """
const { createInterface } = require('node:readline');
const { promisify } = require('node:util');
const [port, name] = process.argv.slice(2);
const clients = {
    memjs() {
        // What it has to say of errors would go to where the answers go.
        const options = { logger: { log() {} } };
        const client = require('memjs').Client.create(`127.0.0.1:${port}`, options);
        const get = async (key) => {
            const { value } = await client.get(key);
            return value && String(value);
        };
        return {
            get,
            // All at once, on one connection.
            many: async (keys) => Promise.all(keys.map(async (key) => [key, await get(key)])),
            set: (key, value) => client.set(key, value, {}),
        };
    },
    memcached() {
        const client = new (require('memcached'))(`127.0.0.1:${port}`);
        const call = (name, ...values) => promisify(client[name]).call(client, ...values);
        return {
            get: (key) => call('get', key),
            many: async (keys) => Object.entries(await call('getMulti', keys)),
            set: (key, value) => call('set', key, value, 0),
        };
    },
};
const client = clients[name]();
const found = (pairs) => ['=', ...pairs.filter(([, value]) => value).flat()].join(' ');
(async () => {
    console.log('ready');
    for await (const line of createInterface({ input: process.stdin })) {
        const [verb, ...words] = line.split(' ');
        let said;
        try {
            if (verb === 'get') said = found([[words[0], await client.get(words[0])]]);
            else if (verb === 'many') said = found(await client.many(words));
            else said = await client.set(...words) ? '+' : '-';
        } catch (error) {
            said = `! ${error}`.replaceAll('\\n', ' ');
        }
        console.log(said);
    }
})();
"""


class Client(Protocol):
    """What each of them does. All of it may raise what the client raises."""

    def get(self, *keys: str) -> dict[str, str]:
        """Those of the keys that were found, with their values."""

    def set(self, key: str, value: str) -> bool:
        """Whether it was stored."""

    def close(self) -> None: ...


class Failed(Exception):
    """A client reported an error, or threw one."""


class Obedient:
    """A client in a process of its own.

    It says that it is ready, and is told ``get KEY``, ``many KEY ...`` or ``set KEY VALUE``. It
    answers ``=`` with the keys and values that it found, ``+`` where it stored something, ``-``
    where it did not, or ``!`` and the words of an error.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._process = subprocess.Popen(
            [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._hear() == ["ready"]

    def get(self, *keys: str) -> dict[str, str]:
        words = self._tell("get" if len(keys) == 1 else "many", *keys)
        return dict(zip(words[1::2], words[2::2], strict=True))

    def set(self, key: str, value: str) -> bool:
        return self._tell("set", key, value)[0] == "+"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _tell(self, *words: str) -> list[str]:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> list[str]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], servers.PATIENCE)[0]:
            raise Failed(f"no answer for {servers.PATIENCE:g} s")
        said = self._process.stdout.readline().rstrip("\n")
        if not said:
            raise Failed(f"it has ended: {self._process.wait(servers.PATIENCE)}")
        if said[0] == "!":
            raise Failed(said)
        return said.split()


class InPython:
    """A client that is called from here; `several` and `end` are methods of it."""

    def __init__(self, client: Any, several: str = "get_many", end: str = "quit") -> None:
        self._client = client
        self._several = getattr(client, several)
        self.ends: list[Callable[[], object]] = [getattr(client, end)]

    def get(self, *keys: str) -> dict[str, str]:
        if len(keys) == 1:
            found = {keys[0]: self._client.get(keys[0])}
        else:
            found = self._several(list(keys))
        return {
            key: str(value, "ascii") if isinstance(value, bytes) else value
            for key, value in found.items()
            if value is not None
        }

    def set(self, key: str, value: str) -> bool:
        stored = self._client.set(key, value.encode())
        return stored is None or bool(stored)  # Django does not say

    def close(self) -> None:
        for end in self.ends:
            end()


def ask_for(command: Sequence[str | Path], words: str) -> None:
    """Skip, with these words, where a command fails."""
    if subprocess.run(command, capture_output=True, timeout=servers.PATIENCE).returncode:
        servers.skip(words)


# How each is started, with the port of a tunnel, once it is found. What is missing is told by a
# skip, or in CI by a failure. `base` is a folder that is kept as long as the tests run.

Start = Callable[[int], Client]


def text_of_python(kind: Any) -> Callable[[Path], Start]:
    """Those of `python_clients`."""

    def start(port: int) -> Client:
        if not issubclass(kind, python_clients.Async):
            return InPython(kind(port))
        runner = asyncio.Runner()
        client = InPython(kind(port, runner))
        client.ends.append(runner.close)
        return client

    return lambda base: start


def python_binary_memcached(base: Path) -> Start:
    def start(port: int) -> Client:
        client = bmemcached.Client((f"127.0.0.1:{port}",))
        return InPython(client, "get_multi", "disconnect_all")

    return start


def django(base: Path) -> Start:
    # Without a prefix of its own its keys are the same as everybody's.
    settings = {"KEY_FUNCTION": lambda key, prefix, version: key}
    return lambda port: InPython(PyMemcacheCache(f"127.0.0.1:{port}", settings), end="close")


def pylibmc(protocol: str, base: Path) -> Start:
    return lambda port: Obedient([sys.executable, "-c", PYLIBMC, str(port), protocol])


def php(protocol: str, base: Path) -> Start:
    program = servers.need("php")
    ask_for([program, "-r", "new Memcached();"], "PHP's memcached extension is not installed")
    return lambda port: Obedient([program, "-r", PHP, "--", str(port), protocol])


def dalli(base: Path) -> Start:
    program = servers.need("ruby")
    ask_for([program, "-rdalli", "-e", ""], "Dalli is not installed")
    return lambda port: Obedient([program, "-e", RUBY, "--", str(port)])


def perl(module: str, base: Path) -> Start:
    program = servers.need("perl")
    ask_for([program, f"-M{module}", "-e", "1"], f"Perl's {module} is not installed")
    return lambda port: Obedient([program, "-e", PERL, "--", str(port), module])


def node(name: str, base: Path) -> Start:
    program = servers.need("node")
    file = programs.node_packages(base) / "obedient.js"
    file.write_text(NODE)
    return lambda port: Obedient([program, file, str(port), name])


class Player(NamedTuple):
    """A client of the table of `clients`, by what it is there."""

    language: str
    name: str
    protocol: str
    find: Callable[[Path], Start]
    raises: bool = False
    """Whether a set that is not stored is an error to it."""

    def __str__(self) -> str:
        return f"{self.language} {self.name} {self.protocol}"


PLAYERS = [
    Player("Python", "pylibmc", "binary", functools.partial(pylibmc, "binary")),
    Player("Python", "pylibmc", "text", functools.partial(pylibmc, "text")),
    Player("Python", "python-binary-memcached", "binary", python_binary_memcached, raises=True),
    Player("Python", "pymemcache", "text", text_of_python(python_clients.Pymemcache)),
    Player(
        "Python", "pymemcache's HashClient", "text", text_of_python(python_clients.PymemcacheHash)
    ),
    Player("Python", "Django's PyMemcacheCache", "text", django, raises=True),
    Player("Python", "python-memcached", "text", text_of_python(python_clients.PythonMemcached)),
    Player("Python", "libmc", "text", text_of_python(python_clients.Libmc)),
    Player("Python", "aiomcache", "text", text_of_python(python_clients.Aiomcache)),
    Player("Python", "emcache", "text", text_of_python(python_clients.Emcache), raises=True),
    Player("Python", "memcachio", "text", text_of_python(python_clients.Memcachio)),
    Player("Python", "meta-memcache", "meta", text_of_python(python_clients.MetaMemcache)),
    Player("Ruby", "Dalli", "binary", dalli),
    Player("Node", "memjs", "binary", functools.partial(node, "memjs"), raises=True),
    Player("Node", "memcached", "text", functools.partial(node, "memcached"), raises=True),
    Player("PHP", "memcached", "binary", functools.partial(php, "binary")),
    Player("PHP", "memcached", "text", functools.partial(php, "text")),
    Player("Perl", "Cache::Memcached", "text", functools.partial(perl, "Cache::Memcached")),
    Player(
        "Perl", "Cache::Memcached::Fast", "text", functools.partial(perl, "Cache::Memcached::Fast")
    ),
]
