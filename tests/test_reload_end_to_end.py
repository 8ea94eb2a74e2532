"""SIGHUP: a running tunnel follows its files, and no client notices.

With one process and with two, each shared by the tests here; every test ends with the settings
that it began with. Clients of both protocols ask without a pause meanwhile.
"""

import contextlib
import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import authority
import pytest
import servers

from memtunnel.wire.binary import Opcode, Status

Connect = Callable[..., Any]
POOL = 2
OTHER = ("another-user", "an0ther-canary-4712")


class Files:
    """The settings of a tunnel in files of its own, to be changed and read again."""

    def __init__(
        self,
        folder: Path,
        memcacheds: list[servers.Memcached],
        root: authority.Pair,
        workers: int,
        *flags: str,
    ) -> None:
        self.memcacheds = memcacheds
        self.workers = workers
        self.config = folder / "memtunnel.toml"
        self.password = folder / "password"
        self.ca = folder / "ca.pem"
        self.root = root.pem
        # Flags stay as they are: all is in the file.
        self.tunnel = servers.Tunnel(f"--config={self.config}", *flags)
        command = self.tunnel.command
        command[:] = [w for w in command if not w.startswith(("--listen=", "--metrics="))]
        self.settings: dict[str, Any] = {
            "listen": f"127.0.0.1:{self.tunnel.port}",
            "metrics": f"127.0.0.1:{self.tunnel.admin}",
            "server": self.servers(0, 1),
            "ca-file": str(self.ca),
            "username": servers.USERNAME,
            "password-file": str(self.password),
            "pool-size": POOL,
            "request-timeout": 10,
            "workers": workers,
        }
        self.write()

    def servers(self, *places: int) -> list[str]:
        return [f"127.0.0.1:{self.memcacheds[n].port}=server{n}" for n in places]

    def write(self, **changes: Any) -> None:
        """The usual settings but for `changes`; None leaves one out."""
        named = {name.replace("_", "-"): value for name, value in changes.items()}
        self.password.write_text(named.pop("password", servers.PASSWORD))
        self.ca.write_bytes(named.pop("ca", self.root))
        settings = {k: v for k, v in (self.settings | named).items() if v is not None}
        self.config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))

    def read_again(self) -> str:
        """Let the tunnel read the files; what it says of that."""
        before = len(self.tunnel.log())
        self.tunnel.signal(signal.SIGHUP)
        servers.wait_until(
            lambda: re.search(r"settings (not )?reloaded.*\n", self.tunnel.log()[before:]),
            "it has read its settings",
        )
        return self.tunnel.log()[before:]

    def reload(self, **changes: Any) -> str:
        self.write(**changes)
        return self.read_again()

    def peers(self, *places: int) -> list[set[int]]:
        return [self.memcacheds[n].peers() for n in places]

    def wait_for(self, place: int, size: int) -> None:
        """Wait until a memcached has as many connections as pools of this size have."""
        servers.wait_until(
            lambda: self.memcacheds[place].established() == size * self.workers,
            f"server{place} has pools of {size}",
        )

    def wait_until_in_use(self, successful: bool = True) -> None:
        name = "memtunnel_config_last_reload_successful"
        servers.wait_until(lambda: self.tunnel.metric(name) == successful, f"{name} {successful:d}")


@pytest.fixture(scope="module")
def things() -> Iterator[list[Any]]:
    with servers.closing_all([]) as things:
        yield things


@pytest.fixture(scope="module")
def memcacheds(
    things: list[Any], good_pair: authority.Pair, tmp_path_factory: pytest.TempPathFactory
) -> list[servers.Memcached]:
    for _ in range(3):
        folder = tmp_path_factory.mktemp("memcached")
        memcached = servers.Memcached(folder, pair=good_pair, sasl=True)
        things.append(memcached)
        memcached.add_login(*OTHER)
        memcached.start()
    return list(things)


@pytest.fixture(scope="module", params=[1, 2])
def files(
    request: pytest.FixtureRequest,
    memcacheds: list[servers.Memcached],
    root: authority.Pair,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Files]:
    files = Files(tmp_path_factory.mktemp("files"), memcacheds, root, request.param)
    with servers.closing_all([files.tunnel]):
        files.tunnel.start().wait_ready()
        yield files


@pytest.fixture
def start_with(
    files: Files, root: authority.Pair, started: list[Any], tmp_path: Path
) -> Callable[..., Files]:
    """Starts another tunnel, with settings that are its own from the start."""

    def start(**settings: Any) -> Files:
        mine = Files(tmp_path, files.memcacheds, root, files.workers)
        mine.settings |= {name.replace("_", "-"): value for name, value in settings.items()}
        mine.write()
        started.append(mine.tunnel)
        mine.tunnel.start().wait_ready()
        return mine

    return start


@pytest.fixture
def usual(files: Files) -> Iterator[Files]:
    """The tunnel with the usual settings, which it has again in the end."""
    yield files
    files.reload()
    files.wait_until_in_use()
    for place, size in enumerate((POOL, POOL, 0)):
        files.wait_for(place, size)


@pytest.fixture
def tunnel(usual: Files) -> servers.Tunnel:
    return usual.tunnel


@pytest.fixture
def regulars(usual: Files, connect: Connect) -> Iterator[servers.Regulars]:
    """Clients at work, none of whom gets anything but the right answers from the servers."""
    clients = [connect(usual.tunnel, kind) for kind in (servers.Binary, servers.Text) * 2]
    before = usual.tunnel.metric("memtunnel_degraded_replies_total")
    with servers.Regulars(clients) as regulars:
        yield regulars
    assert usual.tunnel.metric("memtunnel_degraded_replies_total") == before


# What is followed


def test_pools_grow_and_shrink(usual: Files, regulars: servers.Regulars) -> None:
    for size in (4, 1, 3):
        before = usual.peers(0, 1)
        usual.reload(pool_size=size)
        for place in (0, 1):
            usual.wait_for(place, size)
            now = usual.memcacheds[place].peers()
            assert now <= before[place] or now >= before[place]
        regulars.go_on()
    usual.wait_until_in_use()


def test_servers_come_and_go_and_the_others_keep_their_connections(
    usual: Files, regulars: servers.Regulars
) -> None:
    def asked(name: str) -> float:
        return usual.tunnel.metric("memtunnel_commands_total", server=name, command="set")

    before = usual.peers(0, 1)
    usual.reload(server=usual.servers(0, 1, 2))
    usual.wait_for(2, POOL)
    servers.wait_until(lambda: asked("server2") > 0, "keys have moved to it")
    regulars.go_on()
    usual.wait_until_in_use()
    assert usual.peers(0, 1) == before
    third = usual.memcacheds[2].peers()
    usual.reload(server=usual.servers(2, 0))
    usual.wait_for(1, 0)
    regulars.go_on()
    assert usual.peers(0, 2) == [before[0], third]
    usual.reload(server=usual.servers(2))
    usual.wait_for(0, 0)
    regulars.go_on()
    assert usual.memcacheds[2].peers() == third


def test_another_login_is_used_once_it_is_proven(usual: Files, regulars: servers.Regulars) -> None:
    before = usual.peers(0, 1)
    usual.reload(username=OTHER[0], password=OTHER[1])
    for place in (0, 1):
        usual.wait_for(place, POOL)
        servers.wait_until(
            lambda place=place: usual.memcacheds[place].peers().isdisjoint(before[place]),
            "all connections are others",
        )
    usual.wait_until_in_use()
    regulars.go_on()


def test_while_a_new_login_is_refused_the_former_connections_serve(
    usual: Files, regulars: servers.Regulars
) -> None:
    before = usual.peers(0, 1)
    usual.reload(password=OTHER[1])
    servers.wait_until(lambda: "login_refused" in usual.tunnel.log(), "the log says why")
    usual.wait_until_in_use(False)
    regulars.go_on()
    assert usual.tunnel.get("/readyz")[0] == 200
    for former, now in zip(before, usual.peers(0, 1), strict=True):
        assert former <= now
    usual.reload()
    usual.wait_until_in_use()
    regulars.go_on()


def test_while_new_roots_do_not_fit_the_former_connections_serve(
    usual: Files, regulars: servers.Regulars
) -> None:
    before = usual.peers(0, 1)
    other = authority.authority("another authority").pem
    usual.reload(ca=other)
    servers.wait_until(lambda: "certificate_chain" in usual.tunnel.log(), "the log says why")
    usual.wait_until_in_use(False)
    regulars.go_on()
    assert usual.tunnel.get("/readyz")[0] == 200
    for former, now in zip(before, usual.peers(0, 1), strict=True):
        assert former <= now
    usual.reload(ca=other + usual.root)
    usual.wait_until_in_use()
    for place in (0, 1):
        servers.wait_until(
            lambda place=place: usual.memcacheds[place].peers().isdisjoint(before[place]),
            "all connections are others",
        )
    regulars.go_on()


def test_other_deadlines_and_bounds_hold(usual: Files, connect: Connect) -> None:
    tunnel = usual.tunnel
    servers.wait_until(
        lambda: tunnel.metric("memtunnel_client_connections") == 0, "all clients have left"
    )
    usual.reload(request_timeout=0.1, max_clients=usual.workers)
    servers.wait_until(
        lambda: tunnel.metric("memtunnel_client_connections_max") == usual.workers,
        "it has followed",
    )
    before = tunnel.metric("memtunnel_degraded_replies_total")
    clients = [connect(tunnel, servers.Binary) for _ in range(usual.workers)]
    assert [client.ask(Opcode.NOOP).status for client in clients] == [Status.OK] * usual.workers
    assert connect(tunnel, servers.Binary).at_end()
    with contextlib.ExitStack() as stack:
        for memcached in usual.memcacheds:
            stack.enter_context(memcached.standing())
        # With the usual deadline the connection would be given up before.
        assert clients[0].say(clients[0].store(b"k", b"v")) == [False]
    assert tunnel.metric("memtunnel_degraded_replies_total") == before + 1
    assert tunnel.metric("memtunnel_degraded_replies_total", reason="timeout") >= 1
    usual.reload()
    servers.wait_until(
        lambda: tunnel.metric("memtunnel_client_connections_max") > usual.workers,
        "it has followed",
    )
    late = connect(tunnel, servers.Binary)
    assert late.ask(Opcode.NOOP).status == Status.OK


def test_many_signals_at_once(usual: Files, regulars: servers.Regulars) -> None:
    before = len(usual.tunnel.log())
    for number in range(20):
        usual.write(pool_size=1 + number % 4, server=usual.servers(0, 1, *[2] * (number % 2)))
        usual.tunnel.signal(signal.SIGHUP)
    usual.write(pool_size=3)
    usual.tunnel.signal(signal.SIGHUP)
    for place, size in enumerate((3, 3, 0)):
        usual.wait_for(place, size)
    usual.wait_until_in_use()
    regulars.go_on()
    assert "settings reloaded" in usual.tunnel.log()[before:]
    assert "Traceback" not in usual.tunnel.log()


# What is not


BROKEN = {
    "no TOML": ({}, "expected TOML"),
    "no roots": ({"ca-file": "/nowhere/ca.pem"}, "ca-file in "),
    "empty roots": ({"ca": b"nothing"}, "cannot be used"),
    "unknown": ({"pool-sise": 3}, "pool-sise in "),
    "no password": ({"password-file": "/nowhere/password"}, "password-file in "),
}


@pytest.mark.parametrize("how", BROKEN)
def test_of_files_with_a_mistake_nothing_is_followed(
    how: str, usual: Files, regulars: servers.Regulars
) -> None:
    changes, words = BROKEN[how]
    before = usual.peers(0, 1)
    usual.write(pool_size=4, **changes)
    if how == "no TOML":
        usual.config.write_text("pool-size = \n")
    (line,) = usual.read_again().splitlines()
    assert "settings not reloaded, the former ones go on: " in line
    assert words in line
    usual.wait_until_in_use(False)
    regulars.go_on()
    assert usual.peers(0, 1) == before
    assert usual.tunnel.get("/readyz")[0] == 200
    usual.reload()
    usual.wait_until_in_use()
    assert usual.peers(0, 1) == before


def test_what_waits_for_a_restart_is_named(usual: Files, regulars: servers.Regulars) -> None:
    said = usual.reload(
        listen=f"127.0.0.1:{servers.free_port()}",
        metrics=f"127.0.0.1:{servers.free_port()}",
        workers=3 - usual.workers,
        client_auth="required",
        allow_remote=True,
        exit_with_pid=1,
        pool_size=4,
    )
    words = "--listen, --metrics, --workers, --client-auth, --allow-remote, --exit-with-pid"
    assert f"not before a restart: {words}\n" in said
    for place in (0, 1):
        usual.wait_for(place, 4)
    regulars.go_on()
    usual.wait_until_in_use()
    assert "not before a restart" not in usual.reload()


def test_while_it_drains_nothing_is_followed(
    files: Files, start_with: Callable[..., Files], connect: Connect
) -> None:
    others = files.peers(0, 1)
    mine = start_with(drain_timeout=60)

    def grown() -> bool:
        return all(
            len(now - before) == POOL * mine.workers
            for before, now in zip(others, mine.peers(0, 1), strict=True)
        )

    servers.wait_until(grown, "its pools are warm")
    client = connect(mine.tunnel, servers.Binary)
    assert client.say(client.store(b"k", b"v")) == [True]
    mine.tunnel.signal(signal.SIGTERM)
    mine.tunnel.wait_ready(False)
    mine.write(pool_size=POOL + 1)
    mine.tunnel.signal(signal.SIGHUP)
    for _ in range(10):
        assert client.say(client.fetch(b"k")) == [b"v"]
        assert mine.tunnel.get("/readyz")[0] == 503
    # Who has no client is gone already.
    for before, now in zip(others, mine.peers(0, 1), strict=True):
        assert len(now - before) in (POOL, POOL * mine.workers)
    client.close()
    assert mine.tunnel.wait() == 0
    assert "reloaded" not in mine.tunnel.log()


# Its own server


@pytest.fixture(scope="module")
def demo(
    files: Files, root: authority.Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Files]:
    folder = tmp_path_factory.mktemp("demo")
    demo = Files(folder, files.memcacheds, root, files.workers, "--demo")
    for name in ("server", "ca-file", "username", "password-file"):
        del demo.settings[name]
    demo.write()
    with servers.closing_all([demo.tunnel]):
        demo.tunnel.start().wait_ready()
        yield demo


def test_the_embedded_server_stays(demo: Files, connect: Connect) -> None:
    tunnel = demo.tunnel
    clients = [connect(tunnel, kind) for kind in (servers.Binary, servers.Text)]
    assert [each.say(each.store(b"k", b"v")) for each in clients] == [[True], [True]]
    with servers.Regulars([connect(tunnel, servers.Binary)]) as regulars:
        for size in (POOL + 1, POOL):
            assert "not before a restart" not in demo.reload(pool_size=size)
            servers.wait_until(
                lambda size=size: (
                    tunnel.metric("memtunnel_upstream_connections", state="warm")
                    == size * demo.workers
                ),
                "it has followed",
            )
            regulars.go_on()
    demo.wait_until_in_use()
    assert [each.say(each.fetch(b"k")) for each in clients] == [[b"v"], [b"v"]]
    assert tunnel.metric("memtunnel_degraded_replies_total") == 0
    demo.config.write_text("unknown = 1\n")
    assert "not reloaded" in demo.read_again()
    demo.wait_until_in_use(False)
    demo.reload()
    demo.wait_until_in_use()


def test_what_waits_for_a_restart_is_named_with_the_embedded_server_too(demo: Files) -> None:
    said = demo.reload(listen=f"127.0.0.1:{servers.free_port()}")
    assert "not before a restart: --listen\n" in said


# Who is let in


def test_while_a_new_login_is_refused_clients_log_in_with_the_former(
    usual: Files, connect: Connect
) -> None:
    usual.reload(password=OTHER[1])
    usual.wait_until_in_use(False)
    client = connect(usual.tunnel, servers.Binary)
    said = client.say(client.log_in(servers.USERNAME, servers.PASSWORD), client.fetch(b"absent"))
    assert said == [True, None]


def test_where_a_login_is_required_none_in_the_files_lets_nobody_in(
    start_with: Callable[..., Files], connect: Connect
) -> None:
    mine = start_with(client_auth="required")
    said = mine.reload(client_auth="open", username=None, password_file=None)
    assert "--client-auth" in said
    client = connect(mine.tunnel, servers.Binary)
    # Those of the former login still serve.
    said = client.say(client.log_in("anybody", "anything"), client.fetch(b"k"))
    assert said == [servers.REFUSED] * 2


@pytest.mark.full
def test_P9_a_configured_login_that_is_refused_lets_no_client_in(
    start_with: Callable[..., Files], connect: Connect
) -> None:
    mine = start_with(client_auth="passthrough")
    mine.reload(password=OTHER[1])
    mine.wait_until_in_use(False)
    client = connect(mine.tunnel, servers.Binary)
    said = client.say(client.log_in(servers.USERNAME, servers.PASSWORD), client.fetch(b"absent"))
    assert said == [True, None]
    client = connect(mine.tunnel, servers.Binary)
    said = client.say(client.log_in(servers.USERNAME, OTHER[1]), client.fetch(b"absent"))
    assert said == [servers.REFUSED]
