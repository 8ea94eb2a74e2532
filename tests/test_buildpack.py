"""The buildpack: what it puts into an app, and a dyno that starts with it, where no Python is.

The program in the tarball is the real one, as `make frozen` makes it.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import authority
import pytest
import servers
from cryptography.hazmat.primitives.hashes import SHA256
from website import Page, Site

from memtunnel.config import SETTINGS

pytestmark = pytest.mark.full

HOUSE = Path(__file__).parent.parent
#: What there is on the platform, as far as it is needed.
TOOLS = (
    "bash", "cat", "cp", "curl", "cut", "dirname", "env", "grep", "gzip", "ln", "mkdir", "mv", "rm",
    "sed", "sh", "sha256sum", "sleep", "tar", "uname",
)  # fmt: skip
#: What a dyno runs: its profile first. The app speaks to the tunnel, and waits for a line.
DYNO = """
for file in .profile.d/*.sh; do . "$file"; done
exec bash -c "$0"
"""
APP = """
exec 3<> "/dev/tcp/127.0.0.1/$PORT"
printf 'set a 0 0 1\\r\\nx\\r\\nget a\\r\\nquit\\r\\n' >&3
cat <&3
read line
exit 7
"""
#: The same, but it says when it is told to end, and asks once more before it does.
STUBBORN = f"trap 'echo told' TERM\n{APP.replace('exit 7', '')}{APP}"
#: What an app is: its variables, its open files, its children.
SELF = """
env
for file in /proc/$$/fd/*; do echo "file $file"; done
read children < /proc/$$/task/$$/children
echo "children $children"
"""


@pytest.fixture(scope="session")
def tarball() -> Path:
    found = sorted((HOUSE / "build" / "frozen").glob("memtunnel-*.tar.gz"))
    if len(found) != 1:
        servers.skip("there is no frozen program: `make frozen` makes it")
    return found[0]


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    for name in TOOLS:
        (folder / name).symlink_to(servers.need(name))
    assert not shutil.which("python3", path=str(folder))
    return folder


class App:
    """An app, its variables, and the cache of its builds."""

    def __init__(self, folder: Path, tools: Path, tarball: Path) -> None:
        self.build, self.cache, self.variables = (folder / name for name in ("app", "cache", "env"))
        for each in (self.build, self.cache, self.variables):
            each.mkdir()
        self.environ = {"PATH": str(tools), "HOME": str(self.build)}
        digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
        self.set(MEMTUNNEL_BUILD_URL=f"file://{tarball}", MEMTUNNEL_BUILD_SHA256=digest)

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            (self.variables / name).write_text(value)

    def run(self, script: str, *more: Path, **environ: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [HOUSE / "bin" / script, self.build, *more],
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def compile(self, **environ: str) -> str:
        done = self.run("compile", self.cache, self.variables, **environ)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        return done.stdout

    def refuse(self, **environ: str) -> str:
        """Compile what cannot be; what is said about it."""
        done = self.run("compile", self.cache, self.variables, **environ)
        assert done.returncode == 1, done.stdout
        assert not (self.build / ".profile.d").exists()
        assert not (self.build / ".memtunnel" / "ca.pem").exists()
        assert all(line.startswith(" !     ") for line in done.stderr.splitlines())
        return done.stdout + done.stderr

    def dyno(self, command: str, **environ: str) -> "subprocess.Popen[str]":
        variables = {each.name: each.read_text() for each in self.variables.iterdir()}
        return subprocess.Popen(
            [servers.need("bash"), "-c", DYNO, command],
            cwd=self.build,
            env={**self.environ, **variables, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def app(tmp_path: Path, tools: Path, tarball: Path, ca_file: Path) -> App:
    app = App(tmp_path, tools, tarball)
    (app.build / "certs").mkdir()
    shutil.copy(ca_file, app.build / "certs" / "root.pem")
    app.set(MEMTUNNEL_CA_FILE="certs/root.pem")
    return app


@pytest.fixture
def memcached(app: App, make_memcached: Callable[..., servers.Memcached]) -> servers.Memcached:
    """One that the add-on's variables name."""
    memcached = make_memcached()
    app.set(
        MEMCACHIER_SERVERS="127.0.0.1:11211",
        MEMCACHIER_USERNAME=servers.USERNAME,
        MEMCACHIER_PASSWORD=servers.PASSWORD,
        MEMTUNNEL_TLS_PORT=str(memcached.port),
    )
    return memcached


@pytest.fixture(scope="session")
def made(
    tools: Path, tarball: Path, ca_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> App:
    """One that was compiled, without servers."""
    app = App(tmp_path_factory.mktemp("made"), tools, tarball)
    app.set(MEMTUNNEL_CA_FILE=str(ca_file))
    assert "No servers are configured yet" in app.compile()
    return app


@pytest.fixture
def compiled(app: App, made: App) -> App:
    """The same in a folder of its own: for what a dyno does."""
    for name, copy in ((".memtunnel", os.link), (".profile.d", shutil.copy2)):
        shutil.copytree(made.build / name, app.build / name, symlinks=True, copy_function=copy)
    return app


def test_any_app_that_lists_it_has_it(app: App) -> None:
    assert app.run("detect").stdout == "memtunnel\n"
    assert app.run("release").stdout == "--- {}\n"


def test_a_dyno_has_the_tunnel(app: App, memcached: servers.Memcached) -> None:
    (app.build / "bin").mkdir()
    (app.build / "bin" / "with_memtunnel").write_text("the app's own")
    told = app.compile(STACK="heroku-24")
    assert (app.build / "bin" / "with_memtunnel").read_text() == "the app's own"
    new = {".memtunnel", ".profile.d"}
    assert {each.name for each in app.build.iterdir()} == {"bin", "certs", *new}
    assert "memtunnel 0." in told
    assert "full and chain would pass" in told
    assert f"{servers.USERNAME}: accepted" in told
    assert servers.PASSWORD not in told
    tunnel = servers.Tunnel()
    process = app.dyno(
        APP,
        PORT=str(tunnel.port),
        MEMTUNNEL_LISTEN=f"127.0.0.1:{tunnel.port}",
        MEMTUNNEL_METRICS=f"127.0.0.1:{tunnel.admin}",
    )
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(4)] == [
            "STORED\n", "VALUE a 0 1\n", "x\n", "END\n",
        ]  # fmt: skip
        assert tunnel.get("/readyz")[0] == 200
        assert memcached.established() == 2, "a warm pool"
        _, errors = process.communicate("\n", timeout=servers.PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 7
    assert "compiled" in errors, "the core"
    assert servers.PASSWORD not in errors
    servers.wait_until(lambda: not servers.connects(tunnel.port), "the tunnel ends")


def test_the_app_is_asked_for_nothing_and_finds_itself_as_it_was(
    compiled: App, memcached: servers.Memcached
) -> None:
    before = written(compiled.build / ".memtunnel")
    listen, metrics = (f"127.0.0.1:{servers.free_port()}" for _ in "12")
    variables = {"MEMTUNNEL_LISTEN": listen, "MEMTUNNEL_METRICS": metrics}
    with_tunnel, _ = compiled.dyno(SELF, **variables).communicate(timeout=servers.PATIENCE)
    (compiled.build / ".profile.d" / "memtunnel.sh").write_text("")
    without, _ = compiled.dyno(SELF, **variables).communicate(timeout=servers.PATIENCE)
    path = f"PATH={compiled.build}/.memtunnel/bin:{compiled.environ['PATH']}\n"
    assert path in with_tunnel
    assert same(with_tunnel.replace(path, f"PATH={compiled.environ['PATH']}\n")) == same(without)
    assert "MEMCACHIER_SERVERS=127.0.0.1:11211\n" in without
    assert "children \n" in without
    assert written(compiled.build / ".memtunnel") == before, "it may be read-only"


def test_the_tunnel_serves_on_when_the_platform_ends_all(
    compiled: App, memcached: servers.Memcached
) -> None:
    tunnel = servers.Tunnel()
    where = {
        "PORT": str(tunnel.port),
        "MEMTUNNEL_LISTEN": f"127.0.0.1:{tunnel.port}",
        "MEMTUNNEL_METRICS": f"127.0.0.1:{tunnel.admin}",
        "MEMTUNNEL_WORKERS": "2",
    }
    process = compiled.dyno(STUBBORN, **where)
    try:
        assert process.stdout is not None
        answers = [process.stdout.readline() for _ in range(4)]
        assert answers[0] == "STORED\n"
        pid = tunnel.state()["pid"]
        workers = servers.children(pid)
        assert len(workers) == 2
        # Somebody who looks into the dyno: there is a tunnel, and it stays the one that there is.
        second = compiled.dyno("echo here", **where)
        out, errors = second.communicate(timeout=servers.PATIENCE)
        assert (second.returncode, out) == (0, "here\n")
        assert "cannot listen" in errors
        assert tunnel.state()["pid"] == pid
        for each in (*workers, pid, process.pid):
            os.kill(each, signal.SIGTERM)
        assert process.stdout.readline() == "told\n"
        servers.wait_until(lambda: tunnel.state()["draining"], "the tunnel was told")
        rest, _ = process.communicate("\n\n", timeout=servers.PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 7
    assert rest.splitlines() == ["STORED", "VALUE a 0 1", "x", "END"]
    servers.wait_until(lambda: not any(map(servers.runs, (pid, *workers))), "all of it ends")


def test_servers_with_public_certificates_need_no_file(
    app: App, memcached: servers.Memcached, ca_file: Path
) -> None:
    """The system's roots are found, by their variable and where they usually are."""
    app.set(MEMTUNNEL_CA_FILE=str(ca_file))  # as /etc/ssl/certs/ca-certificates.crt would be
    assert "full and chain would pass" in app.compile()
    check = "unset MEMTUNNEL_CA_FILE; memtunnel check"
    listen, metrics = (f"127.0.0.1:{servers.free_port()}" for _ in "12")
    process = app.dyno(
        check, SSL_CERT_FILE=str(ca_file), MEMTUNNEL_LISTEN=listen, MEMTUNNEL_METRICS=metrics
    )
    out, errors = process.communicate(timeout=servers.PATIENCE)
    assert process.returncode == 0, errors
    assert "full and chain would pass" in out


def written(folder: Path) -> dict[Path, int]:
    """When each file in it, and each folder, was written."""
    return {each: each.lstat().st_mtime_ns for each in folder.rglob("*")}


def same(told: str) -> list[str]:
    """What an app has told of itself, but for its number."""
    lines = [re.sub(r"^file /proc/\d+", "file", line) for line in told.splitlines()]
    assert any(line.startswith("file/fd/") for line in lines)
    return sorted(lines)


def test_a_dyno_starts_where_the_tunnel_cannot(compiled: App, memcached: servers.Memcached) -> None:
    listen = f"127.0.0.1:{memcached.port}"  # which is taken
    process = compiled.dyno("echo here; exit 7", MEMTUNNEL_LISTEN=listen)
    out, errors = process.communicate(timeout=servers.PATIENCE)
    assert (process.returncode, out) == (7, "here\n")
    assert "cannot listen" in errors
    assert errors.endswith("memtunnel: the dyno starts all the same\n")


def test_a_dyno_without_servers_starts_without_the_tunnel(compiled: App) -> None:
    process = compiled.dyno("memtunnel --version; with_memtunnel; exit 7")
    out, errors = process.communicate(timeout=servers.PATIENCE)
    assert process.returncode == 7
    assert out.startswith("memtunnel 0.")
    assert errors == (
        "memtunnel: --server: expected a server: set MEMCACHIER_SERVERS, or give --server or"
        " --demo\n"
        "memtunnel start: the tunnel has ended, with status 1\n"
        "memtunnel: the dyno starts all the same\n"
        "usage: with_memtunnel COMMAND [ARGUMENT ...]\n"
    )


def test_what_is_cached_is_not_fetched_again(app: App) -> None:
    assert "-----> memtunnel from file://" in app.compile()
    app.set(MEMTUNNEL_BUILD_URL="file:///no/longer/there")
    assert "-----> memtunnel from the cache" in app.compile()
    (cached,) = app.cache.iterdir()
    cached.write_bytes(b"broken")
    shutil.rmtree(app.build / ".profile.d")
    assert "could not be fetched" in app.refuse()


def test_another_tarball_than_the_expected_one_is_not_unpacked(app: App, tmp_path: Path) -> None:
    other = tmp_path / "other.tar.gz"
    other.write_bytes(b"something else")
    app.set(MEMTUNNEL_BUILD_URL=f"file://{other}")
    told = app.refuse()
    assert "is not the tarball that was expected" in told
    assert hashlib.sha256(b"something else").hexdigest() in told
    assert not (app.build / ".memtunnel").exists()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"MEMTUNNEL_BUILD_SHA256": ""}, "belong together"),
        ({"MEMTUNNEL_BUILD_SHA256": "abc"}, "belong together"),
        ({"MEMTUNNEL_BUILD_SHA256": "", "MEMTUNNEL_BUILD_URL": ""}, "There is no release"),
        ({"MEMTUNNEL_BUILD_URL": "file:///not/there"}, "could not be fetched"),
        ({"MEMTUNNEL_CA_FILE": "certs/other.pem"}, "MEMTUNNEL_CA_FILE: expected a file"),
        ({"MEMTUNNEL_BUILD_CA_SHA265": "0" * 64}, "MEMTUNNEL_BUILD_CA_SHA265 is no variable"),
        ({"MEMTUNNEL_POOL_SIZE": "many", "MEMTUNNEL_SERVER": "x:1"}, "MEMTUNNEL_POOL_SIZE"),
        ({"MEMTUNNEL_CA_FILE": "certs/none.pem", "MEMTUNNEL_SERVER": "x:1"}, "certs/none.pem"),
        ({"MEMTUNNEL_CA_FILE": "certs/none.pem"}, "certs/none.pem"),
    ],
    ids=[
        "no digest",
        "half a digest",
        "no release",
        "no tarball",
        "no CA",
        "a variable that is none",
        "a mistake",
        "no PEM",
        "no PEM and no servers yet",
    ],
)
def test_what_cannot_be_fails_the_build_in_words(
    variables: dict[str, str], words: str, app: App
) -> None:
    (app.build / "certs" / "none.pem").write_text("<html>Not here</html>")
    app.set(**variables)
    assert words in app.refuse()


@pytest.mark.parametrize(
    "variables",
    [
        {"MEMTUNNEL_TLS_NAME": "cache.example.com=other.example.com"},
        {"MEMTUNNEL_DEMO": "off"},
        {"MEMTUNNEL_CONFIG": "memtunnel.toml"},
        {"MEMTUNNEL_CONFIG": "names.toml"},
    ],
    ids=["TLS name", "no demo", "file", "TLS name in a file"],
)
def test_servers_may_come_later(variables: dict[str, str], app: App) -> None:
    (app.build / "memtunnel.toml").write_text("pool-size = 3\n")
    (app.build / "names.toml").write_text('tls-name = ["cache.example.com=other.example.com"]\n')
    app.set(**variables)
    assert "No servers are configured yet" in app.compile()


def test_servers_that_cannot_be_reached_do_not_fail_the_build(
    app: App, memcached: servers.Memcached
) -> None:
    memcached.stop()
    told = app.compile()
    assert "refused" in told
    assert (app.build / ".profile.d" / "memtunnel.sh").exists()


def test_a_certificate_that_does_not_fit_is_told_and_does_not_fail_the_build(
    app: App, memcached: servers.Memcached
) -> None:
    (app.build / "certs" / "root.pem").write_bytes(authority.authority().pem)
    assert "neither full nor chain would pass" in app.compile()


def test_the_docs_tell_of_each_variable() -> None:
    told = set(re.findall(r"\bMEMTUNNEL_[A-Z0-9_]+", (HOUSE / "docs" / "heroku.md").read_text()))
    script = (HOUSE / "bin" / "compile").read_text()
    building = set(re.findall(r"\bMEMTUNNEL_BUILD_[A-Z0-9_]+", script))
    assert len(building) == 4
    assert {each for each in told if each.startswith("MEMTUNNEL_BUILD_")} == building
    assert told - building <= {setting.variable for setting in SETTINGS}


# MemCachier's root


@pytest.fixture
def fetching(app: App, site: Site, ca_file: Path) -> App:
    """Without a root of its own."""
    app.set(MEMTUNNEL_CA_FILE="", MEMTUNNEL_BUILD_CA_URL=f"{site.url}/ca.pem")
    app.environ |= {"SSL_CERT_FILE": str(ca_file), "no_proxy": "*"}
    return app


def test_the_root_is_fetched_and_used(
    fetching: App, site: Site, memcached: servers.Memcached, root: authority.Pair
) -> None:
    site.pages["/ca.pem"] = Page(root.pem)
    digits = root.certificate.fingerprint(SHA256()).hex(":").upper()
    fetching.set(MEMTUNNEL_BUILD_CA_SHA256=digits)
    told = fetching.compile()
    assert "subject  CN=memtunnel test authority" in told
    assert digits in told
    assert "full and chain would pass" in told
    assert (fetching.build / ".memtunnel" / "ca.pem").read_bytes() == root.pem
    # A dyno finds it.
    listen, metrics = (f"127.0.0.1:{servers.free_port()}" for _ in "12")
    process = fetching.dyno("memtunnel check", MEMTUNNEL_LISTEN=listen, MEMTUNNEL_METRICS=metrics)
    out, errors = process.communicate(timeout=servers.PATIENCE)
    assert process.returncode == 0, errors
    assert "full and chain would pass" in out


def test_what_the_apps_own_file_trusts_is_trusted(
    fetching: App, site: Site, memcached: servers.Memcached
) -> None:
    (fetching.build / "memtunnel.toml").write_text('ca-file = "certs/root.pem"\n')
    fetching.set(MEMTUNNEL_CONFIG="memtunnel.toml", MEMTUNNEL_BUILD_CA_SHA256="0" * 64)
    told = fetching.compile()
    assert 'Trusting the certificates of "certs/root.pem"' in told
    assert "MEMTUNNEL_BUILD_CA_SHA256 are not looked at" in told
    assert "full and chain would pass" in told
    assert site.asked == []
    assert not (fetching.build / ".memtunnel" / "ca.pem").exists()


def test_what_may_be_secret_in_an_address_is_not_told(
    fetching: App, site: Site, root: authority.Pair
) -> None:
    site.pages["/ca.pem?token=canary"] = Page(root.pem)
    (real,) = (fetching.variables / "MEMTUNNEL_BUILD_URL").read_text().splitlines()
    fetching.set(
        MEMTUNNEL_BUILD_URL=f"{real}?token=canary",
        MEMTUNNEL_BUILD_CA_URL=f"{site.url}/ca.pem?token=canary",
    )
    assert "canary" not in fetching.compile()
    fetching.set(MEMTUNNEL_BUILD_URL="https://user:canary@127.0.0.1:1/x?token=canary")
    shutil.rmtree(fetching.cache)
    shutil.rmtree(fetching.build / ".profile.d")
    shutil.rmtree(fetching.build / ".memtunnel")
    told = fetching.refuse()
    assert "could not be fetched from https://127.0.0.1:1/x" in told
    assert "canary" not in told


@pytest.mark.parametrize(
    "page",
    [Page(b"<html>Not here</html>", 404), Page(b"<html>Come back later</html>")],
    ids=["error", "error page"],
)
def test_an_error_page_never_becomes_the_root(page: Page, fetching: App, site: Site) -> None:
    site.pages["/ca.pem"] = page
    assert "Without it no server can be verified." in fetching.refuse()


def test_another_root_than_the_expected_one_is_not_used(
    fetching: App, site: Site, root: authority.Pair
) -> None:
    site.pages["/ca.pem"] = Page(root.pem)
    fetching.set(MEMTUNNEL_BUILD_CA_SHA256="0" * 64)
    assert "what came is another certificate" in fetching.refuse()
