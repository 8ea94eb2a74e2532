"""PHP's memcached extension."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
$client->setOption(Memcached::OPT_BINARY_PROTOCOL, true);
$client->setOption(Memcached::OPT_COMPRESSION, false);
$client->addServer("127.0.0.1", (int) $argv[1]);
if ($argc > 2) {
    $client->setSaslAuthData($argv[2], $argv[3]);
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
check($client->increment("n", 3, 10) === 10, "increment of what is not there");
check($client->increment("n", 3) === 13, "increment");
check($client->decrement("n", 5) === 8, "decrement");
check($client->append("a", "!") && $client->get("a") === "four!", "append");
check($client->touch("a", 100), "touch");
$large = bin2hex(random_bytes(250000));
check($client->set("large", $large) && $client->get("large") === $large, "a large value");
check($client->delete("a"), "delete");
check($client->get("a") === false, "get of what was deleted");
$statistics = $client->getStats();
check(count($statistics) === 1 && reset($statistics)["curr_items"] == 102, "stats");
check($client->getVersion() !== false, "version");
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


@pytest.fixture
def tunnel(make_memcached: Callable[..., Any], make_tunnel: Callable[..., Any]) -> servers.Tunnel:
    started: servers.Tunnel = make_tunnel(make_memcached())
    return started


@pytest.fixture
def php(tmp_path: Path) -> Callable[..., None]:
    """Runs a script that fails where a check does."""
    program = servers.need("php")
    modules = subprocess.run([program, "-m"], capture_output=True, text=True, timeout=30).stdout
    if "memcached" not in modules.split():
        servers.skip("PHP's memcached extension is not installed")

    def run(script: str, port: int, *login: str) -> None:
        file = tmp_path / "script.php"
        file.write_text(BEGINNING + script)
        command = [program, str(file), str(port), *login]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.mark.parametrize("login", [(), LOGIN], ids=["open", "login"])
def test_commands(tunnel: servers.Tunnel, php: Callable[..., None], login: tuple[str, ...]) -> None:
    php(COMMANDS, tunnel.port, *login)
    assert (tunnel.metric("memtunnel_client_logins_total", result="ok") > 0) == bool(login)
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0


def test_what_was_sent_quietly_is_done_though_the_client_has_gone(
    tunnel: servers.Tunnel, php: Callable[..., None]
) -> None:
    php(NOREPLY, tunnel.port)
    php(LOOK, tunnel.port)


def test_a_wrong_login_is_refused(tunnel: servers.Tunnel, php: Callable[..., None]) -> None:
    php(WRONG_LOGIN, tunnel.port, servers.USERNAME, "wrong")
    assert tunnel.metric("memtunnel_client_logins_total", result="refused") >= 1
