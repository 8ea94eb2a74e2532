"""Laravel and WordPress as their pages in docs/frameworks set them up.

Laravel's own cache and session classes run as its application puts them together. Of WordPress
there is what a drop-in does with the servers of its settings.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pages
import programs
import pytest
import servers

pytestmark = pytest.mark.full

Php = Callable[[str], list[Any]]

BEGINNING = """<?php
function check($right, $words) {
    if (!$right) {
        fwrite(STDERR, "$words\\n");
        exit(1);
    }
}
function ready() {
    print("ready\\n");
    fgets(STDIN);
}
"""
LARAVEL = """
foreach (["Cache", "Config", "Container", "Session"] as $part) {
    require "Illuminate/$part/autoload.php";
}
$stores = eval("return [" . str_replace("11211", $argv[1], $argv[2]) . "];");
$environment = parse_ini_string($argv[3]);
$binary = $argv[4] === "binary";
if ($binary) {
    $stores["memcached"]["options"][Memcached::OPT_BINARY_PROTOCOL] = true;
}
/** An application as each request makes it. */
function application() {
    global $stores, $environment;
    $app = new Illuminate\\Container\\Container;
    $app["config"] = new Illuminate\\Config\\Repository([
        "cache" => [
            "default" => $environment["CACHE_STORE"], "prefix" => "app", "stores" => $stores,
        ],
        "session" => [
            "driver" => $environment["SESSION_DRIVER"], "store" => null, "lifetime" => 120,
            "cookie" => "session", "encrypt" => false,
        ],
    ]);
    $app->singleton("cache", fn ($app) => new Illuminate\\Cache\\CacheManager($app));
    $app->singleton("memcached.connector", fn () => new Illuminate\\Cache\\MemcachedConnector);
    $app->singleton("session", fn ($app) => new Illuminate\\Session\\SessionManager($app));
    return $app;
}
function visit() {
    static $id = null;
    $session = application()["session"]->driver();
    $session->setId($id);
    $session->start();
    $session->put("visits", $session->get("visits", 0) + 1);
    $session->save();
    $id = $session->getId();
    return $session->get("visits");
}
function served() {
    $cache = application()["cache"]->store();
    check($cache->put("a", "one", 60), "put");
    check($cache->get("a") === "one" && $cache->get("absent") === null, "get");
    check(!$cache->add("a", "two", 60), "add to what is there");
    check($cache->remember("b", 60, fn () => "made") === "made", "remember");
    check($cache->remember("b", 60, fn () => "other") === "made", "remembered");
    check($cache->putMany(["x" => 1, "y" => [2]], 60), "putMany");
    check($cache->many(["x", "y", "z"]) === ["x" => 1, "y" => [2], "z" => null], "many");
    check($cache->put("n", 1, 60) && $cache->increment("n", 3) === 4, "increment");
    check($cache->tags(["t"])->put("k", "v", 60), "put with a tag");
    check($cache->tags(["t"])->get("k") === "v", "get with a tag");
    $lock = $cache->lock("L", 10);
    check($lock->get() && !$cache->lock("L", 10)->get() && $lock->release(), "lock");
    check($cache->forget("a") && $cache->get("a") === null, "forget");
}
served();
check([visit(), visit(), visit()] === [1, 2, 3], "a session");
ready();
$cache = application()["cache"]->store();
check($cache->get("b") === null, "get");
check($cache->many(["x"]) === ["x" => null], "many");
check($cache->remember("b", 60, fn () => "again") === "again", "remember");
check($cache->put("a", "one", 60) === false, "put");
check($cache->add("a", "one", 60) === false, "add");
check($cache->increment("n", 3) === false, "increment");
check($cache->forget("b") === false, "forget");
check($cache->lock("L", 10)->get() === false, "lock");
$cache->tags(["t"])->put("k", "v", 60);
check($cache->tags(["t"])->get("k") === null, "tags");
check([visit(), visit()] === [1, 1], "a session");
ready();
served();
check([visit(), visit()] === [1, 2], "a session of afterwards");
"""
WORDPRESS = """
eval(str_replace("11211", $argv[1], $argv[2]));
$memcached = new Memcached();
check($memcached->addServers($memcached_servers), "addServers");
$salt = WP_CACHE_KEY_SALT;
function served() {
    global $memcached, $salt;
    check($memcached->set("$salt:posts:a", ["one"], 60), "set");
    check($memcached->get("$salt:posts:a") === ["one"], "get");
    check($memcached->add("$salt:posts:a", "two") === false, "add to what is there");
    check($memcached->set("$salt:n", 1) && $memcached->increment("$salt:n", 3) === 4, "increment");
    check($memcached->delete("$salt:n"), "delete");
}
served();
ready();
foreach (["get", "increment", "delete"] as $name) {
    check($memcached->$name("$salt:posts:a") === false, $name);
}
foreach (["set", "add", "replace"] as $name) {
    check($memcached->$name("$salt:posts:a", "two") === false, $name);
}
ready();
served();
"""


@pytest.fixture
def php(tmp_path: Path) -> Php:
    """The command that runs a script, which fails where a check does."""
    return lambda script: programs.php(tmp_path / "script.php", BEGINNING + script)


@pytest.mark.parametrize("protocol", ["text", "binary"])
def test_laravel(outage: servers.Outage, php: Php, protocol: str) -> None:
    look = 'exit(stream_resolve_include_path("Illuminate/Session/autoload.php") ? 0 : 1);'
    if subprocess.run([servers.need("php"), "-r", look], timeout=30).returncode:
        servers.skip("Laravel's cache and session classes are not installed")
    store = pages.block("frameworks/laravel.md", "php")
    environment = pages.block("frameworks/laravel.md", "", "CACHE_STORE")
    before = outage.tunnel.metric("memtunnel_client_connections_opened_total")
    programs.live_through(php(LARAVEL), outage, store, environment, protocol)
    opened = outage.tunnel.metric("memtunnel_client_connections_opened_total") - before
    # In text an error ends a connection of libmemcached's.
    assert opened == 1 if protocol == "binary" else opened < 8


def test_wordpress(outage: servers.Outage, php: Php) -> None:
    settings = pages.block("frameworks/wordpress.md", "php", "array('127.0.0.1', 11211)")
    programs.live_through(php(WORDPRESS), outage, settings)


def test_the_shortest_client(served: servers.Tunnel, php: Php) -> None:
    script = 'eval(str_replace("11211", $argv[1], $argv[2]));'
    script += ' check($cache->set("a", "one") && $cache->get("a") === "one", "set and get");'
    programs.run(php(script), served.port, pages.block("../README.md", "php"))
