"""PHP's memcached extension, in both protocols."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import programs
import pytest
import servers

pytestmark = pytest.mark.full

LOGIN = (servers.USERNAME, servers.PASSWORD)
BEGINNING = """<?php
function check($right, $words) {
    global $client;
    if (!$right) {
        fwrite(STDERR, "$words: " . $client->getResultMessage() . "\\n");
        exit(1);
    }
}
$client = new Memcached();
$binary = $argv[2] === "binary";
$client->setOption(Memcached::OPT_BINARY_PROTOCOL, $binary);
$client->setOption(Memcached::OPT_COMPRESSION, false);
$client->addServer("127.0.0.1", (int) $argv[1]);
if ($argc > 3) {
    $client->setSaslAuthData($argv[3], $argv[4]);
}
"""
COMMANDS = """
check($client->get("absent") === false, "get of what is not there");
check($client->getResultCode() === Memcached::RES_NOTFOUND, "result of a miss");
check($client->set("a", "one"), "set");
check($client->get("a") === "one", "get");
for ($n = 0; $n < 100; $n++) {
    check($client->set("k$n", "v$n"), "set k$n");
}
$keys = []; $wanted = [];
for ($n = 0; $n < 200; $n += 3) {
    $keys[] = "k$n";
    if ($n < 100) { $wanted["k$n"] = "v$n"; }
}
check($client->getMulti($keys) == $wanted, "getMulti");
check($client->getMulti(["x", "y", "z"]) == [], "getMulti of what is not there");
// Each single get is a quiet get and a NOOP: a miss must not put the next one out of step.
for ($n = 0; $n < 200; $n++) {
    check($client->get("k$n") === ($n < 100 ? "v$n" : false), "get k$n");
}
check($client->add("a", "two") === false, "add to what is there");
check($client->replace("a", "three"), "replace");
$found = $client->get("a", null, Memcached::GET_EXTENDED);
check($client->cas($found["cas"], "a", "four"), "cas");
check(!$client->cas($found["cas"], "a", "five"), "cas with an old token");
if ($binary) {
    check($client->increment("n", 3, 10) === 10, "increment of what is not there");
} else {
    check($client->increment("n", 3) === false, "increment of what is not there");
    check($client->set("n", 10), "set of a number");
}
check($client->increment("n", 3) === 13, "increment");
check($client->decrement("n", 5) === 8, "decrement");
check($client->append("a", "!") && $client->get("a") === "four!", "append");
check($client->increment("a") === false, "increment of a word");
check($client->prepend("a", "?") && $client->get("a") === "?four!", "prepend");
check($client->touch("a", 100), "touch");
check(!$client->touch("absent", 100), "touch of what is not there");
$large = bin2hex(random_bytes(250000));
check($client->set("large", $large) && $client->get("large") === $large, "a large value");
check($client->delete("a"), "delete");
check(!$client->delete("a"), "delete of what was deleted");
check($client->get("a") === false, "get of what was deleted");
$statistics = $client->getStats();
check(count($statistics) === 1 && reset($statistics)["curr_items"] == 102, "stats");
check($client->getVersion() !== false, "version");
check($client->flush(), "flush");
check($client->get("k2") === false, "get after flush");
"""
#: Quiet commands, and the end without waiting for any answer.
NOREPLY = """
$client->setOption(Memcached::OPT_NOREPLY, true);
for ($n = 0; $n < 500; $n++) {
    check($client->set("q$n", "v$n"), "quiet set");
}
check($client->set("q1", "again"), "quiet set again");
check($client->delete("q2"), "quiet delete");
check($client->increment("q3") !== 1, "quiet increment");
check($client->append("q4", "!"), "quiet append");
$client->quit();
"""
LOOK = """
check($client->get("q0") === "v0" && $client->get("q499") === "v499", "what was set");
check($client->get("q1") === "again", "what was set again");
check($client->get("q2") === false, "what was deleted");
check($client->get("q4") === "v4!", "what was appended to");
"""
WRONG_LOGIN = """
check(!$client->set("a", "one"), "set with a wrong login");
check($client->getResultCode() === Memcached::RES_AUTH_FAILURE, "result");
"""


OUTAGE = """
check($client->set("a", "one"), "set");
function ready() {
    print("ready\\n");
    fgets(STDIN);
}
function unavailable($answer, $words) {
    global $client;
    check($answer === false, "$words while the server is away");
    $code = $client->getResultCode();
    check($code === Memcached::RES_SERVER_ERROR, "result $code of $words");
}
ready();
check($client->get("a") === false, "get");
check($client->getResultCode() === Memcached::RES_NOTFOUND, "result of get");
check($client->getMulti(["a", "b"]) == [], "getMulti");
foreach (["set", "add", "replace", "append", "prepend"] as $name) {
    check($client->$name("a", "two") === false, $name);
    check($client->getResultCode() === Memcached::RES_NOTSTORED, "result of $name");
}
unavailable($client->delete("a"), "delete");
unavailable($client->increment("a"), "increment");
unavailable($client->decrement("a"), "decrement");
unavailable($client->touch("a", 100), "touch");
// This one is sent to all servers, and its result tells of none of them.
check($client->flush() === false, "flush");
ready();
$began = microtime(true);
check($client->set("a", "two") && $client->get("a") === "two", "set and get once it is back");
check(microtime(true) - $began < 1, "at once");
"""


Php = Callable[[str], list[Any]]


@pytest.fixture
def php(tmp_path: Path) -> Php:
    """The command that runs a script, which fails where a check does."""
    return lambda script: programs.php(tmp_path / "script.php", BEGINNING + script)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("binary",), id="binary"),
        pytest.param(("binary", *LOGIN), id="binary-login"),
        pytest.param(("text",), id="text"),
    ],
)
def test_commands(served: servers.Tunnel, php: Php, arguments: tuple[str, ...]) -> None:
    programs.run(php(COMMANDS), served.port, *arguments)
    logins = served.metric("memtunnel_client_logins_total", result="ok")
    assert (logins > 0) == (len(arguments) > 1)


@pytest.mark.parametrize("protocol", ["binary", "text"])
def test_what_was_sent_quietly_is_done_though_the_client_has_gone(
    served: servers.Tunnel, php: Php, protocol: str
) -> None:
    programs.run(php(NOREPLY), served.port, protocol)
    programs.run(php(LOOK), served.port, protocol)


def test_a_wrong_login_is_refused(served: servers.Tunnel, php: Php) -> None:
    programs.run(php(WRONG_LOGIN), served.port, "binary", servers.USERNAME, "wrong")
    assert served.metric("memtunnel_client_logins_total", result="refused") >= 1


def test_text_without_the_server(outage: servers.Outage, php: Php) -> None:
    programs.live_through(php(OUTAGE), outage, "text")
