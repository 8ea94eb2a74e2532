"""README and docs as a stranger follows them: commands, links, and the names of things.

Each `sh` block is run as it stands, but for its ports, beside a tunnel to the embedded server; what
would start another tunnel is run with `--check-config`. Each `console` block is run, too, and
prints what stands below its command. Numbers may be others there, but for a line that is nothing
else; `...` stands for any lines. What is not run is on a list, line by line, with the reason.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import authority
import pages
import pytest
import servers

from memtunnel.config import SETTINGS, Source
from memtunnel.ops.exposition import FAMILIES

ROOT = pages.ROOT
#: Pages about other places than this one.
PAGES_NOT_RUN = {
    "docs/containers.md": "needs an engine for containers; test_containers_itself.py",
    "docs/heroku.md": "needs Heroku",
    "docs/kubernetes.md": "needs a cluster",
    "docs/releasing.md": "makes a release; test_packaging.py has its parts",
    "docs/systemd.md": "needs root and systemd; test_systemd_itself.py",
}
INSTALLS = "asks a package index; test_packaging.py installs what is built"
LINES_NOT_RUN = {
    "python3 -m venv .venv": INSTALLS,
    ".venv/bin/pip install .": INSTALLS,
    ". .venv/bin/activate": INSTALLS,
    ".venv/bin/pip install '.[top]'": INSTALLS,
    "MEMTUNNEL_COMPILE=1 pip install .": "takes a minute; `make test-compiled` has it",
    "memtunnel ca MemCachierRootCA.pem": "asks MemCachier; test_ca.py has a server of its own",
    "memtunnel top": "needs a terminal; test_top.py has one",
    "aws elasticache describe-cache-clusters --cache-cluster-id mycache --show-cache-node-info": (
        "needs ElastiCache"
    ),
    "memcached -u memcache -Z -o "
    "ssl_chain_cert=/etc/memcached/cert.pem,ssl_key=/etc/memcached/key.pem": (
        "serves until it is stopped; test_public_ca.py has such servers"
    ),
    "make run": "installs, and serves until it is stopped; test_demo.py has what it runs",
}
#: What starts a tunnel and stays.
SERVES = re.compile(r"(?m)^((?:\w+=\S+ )*memtunnel(?: --.*| \\\n(?:.*\\\n)*.*)?)$")
#: Flags of other programs, and of the project's own tools.
FOREIGN = {"--nodaemon", "--pidfile", "--retry", "--retry-connrefused", "--retry-delay"}
FOREIGN |= {"--contenders", "--from", "--help", "--once", "--quick", "--rounds", "--shapes"}
FOREIGN |= {"--version", "--minutes", "--only", "--read-only", "--workers"}

BLOCKS = [block for page in pages.PAGES for block in pages.blocks(page)]
NAMES = [str(page.relative_to(ROOT)) for page in pages.PAGES]


def those(language: str) -> list[Any]:
    return [
        pytest.param(block, id=f"{block.page}:{block.line}")
        for block in BLOCKS
        if block.language == language and block.page not in PAGES_NOT_RUN
    ]


class Place:
    """Where commands are run: a folder, a tunnel to the embedded server, and real servers."""

    def __init__(self, folder: Path, tunnel: servers.Tunnel, hosted: servers.Memcached) -> None:
        self.tunnel = tunnel
        self._folder = folder
        tools = Path(sys.executable).parent
        keep = {"HOME": str(folder), "PATH": f"{tools}:{os.environ['PATH']}"}
        # As an add-on sets them.
        self._addon = keep | {
            "MEMCACHIER_SERVERS": "localhost:11211",
            "MEMCACHIER_USERNAME": servers.USERNAME,
            "MEMCACHIER_PASSWORD": servers.PASSWORD,
            "MEMTUNNEL_TLS_PORT": str(hosted.port),
            "MEMTUNNEL_CA_FILE": "MemCachierRootCA.pem",
        }
        self._own = keep | {"MEMTUNNEL_PASSWORD": servers.PASSWORD}
        self._none = keep
        self.ports = {"11211": tunnel.port, "11212": tunnel.port}
        self.ports |= {"9152": tunnel.admin, "9153": tunnel.admin}

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        environ = self._addon
        if "--username" in text:
            environ = self._own
        elif "--server" in text or "--demo" in text:
            environ = self._none
        for port, there in self.ports.items():
            text = re.sub(rf"(?<=[:. ]){port}\b", str(there), text)
        command = ["bash", "-e", "-o", "pipefail", "-c", text]
        return subprocess.run(
            command, cwd=self._folder, env=environ, capture_output=True, text=True, timeout=60
        )


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, root: authority.Pair, good_pair: authority.Pair
) -> Iterator[Place]:
    for program in ("bash", "curl", "nc"):
        servers.need(program)
    folder = tmp_path_factory.mktemp("docs")
    for name in ("MemCachierRootCA.pem", "ca.pem"):
        (folder / name).write_bytes(root.pem)
    with servers.closing_all([]) as things:
        tunnel = servers.Tunnel("--demo", servers.PATIENT)
        things.append(tunnel)
        tunnel.start().wait_ready()
        # One whose certificate is right, and one with a certificate for another name.
        hosted = servers.Memcached(folder / "hosted", pair=good_pair, sasl=True)
        names = ("cache-1.example.net", "*.example.net")
        pair = authority.issue(*names, issuer=root)
        other = servers.Memcached(folder / "other", pair=pair, sasl=True)
        things += [hosted, other]
        hosted.start()
        other.start()
        place = Place(folder, tunnel, hosted)
        place.ports["34455"] = other.port
        yield place


def commands(text: str) -> str:
    """What of a block is run."""
    lines = [line for line in text.splitlines() if line not in LINES_NOT_RUN]
    return SERVES.sub(r"\1 --check-config", "\n".join(lines))


@pytest.mark.parametrize("block", those("sh"))
def test_every_command_runs(place: Place, block: pages.Block) -> None:
    done = place.run(commands(block.text))
    assert done.returncode == 0, done.stdout + done.stderr


def pattern(expected: str) -> str:
    """An expression for what was printed, whatever its numbers, keys and left out lines are."""
    lines = []
    for line in expected.splitlines():
        if line == "...":
            lines.append(r"(?:.*\n)*?")
            continue
        if line.isdigit():
            # What a command was asked for, not what came along.
            lines.append(rf"{line}\n")
            continue
        line = re.sub(r"sha256/[\w+/=]+", "KEY", line)
        line = re.sub(r"\d+(?:\\?\.\d+)?", r"\\d+(?:\\.\\d+)?", re.escape(line))
        lines.append(line.replace("KEY", r"sha256/[\w+/=]+") + r"\n")
    return "".join(lines)


def test_what_is_printed_is_compared() -> None:
    assert re.fullmatch(pattern("a 1.5 ms\n...\nz\n"), "a 20 ms\nb\nc\nz\n")
    assert not re.fullmatch(pattern("a 1.5 ms\nz\n"), "a 20 ms\nb\nz\n")
    assert not re.fullmatch(pattern("a 1.5 ms\n"), "a few ms\n")
    assert not re.fullmatch(pattern("200\n"), "503\n")


@pytest.fixture
def probes(place: Place) -> None:
    """What docs/from-stunnel.md lets the app store."""
    from pymemcache.client.base import Client

    script = pages.block("from-stunnel.md", "python", "probe-")
    exec(script, {"cache": Client(("127.0.0.1", place.tunnel.port))})


@pytest.mark.usefixtures("probes")
@pytest.mark.parametrize("block", those("console"))
def test_every_command_prints_what_stands_below_it(place: Place, block: pages.Block) -> None:
    found = re.findall(r"(?m)^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text)
    assert found
    for command, expected in found:
        done = place.run(command)
        said = "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())
        assert re.fullmatch(pattern(expected), said), said + done.stderr


@pytest.mark.parametrize("block", those("toml"))
def test_every_file_of_settings_is_read(place: Place, block: pages.Block, tmp_path: Path) -> None:
    (tmp_path / "memtunnel.toml").write_text(block.text)
    done = place.run(f"memtunnel --check-config --config {tmp_path}/memtunnel.toml")
    assert done.returncode == 0, done.stderr


def test_the_demo_says_what_the_page_shows(place: Place) -> None:
    (shown,) = [
        block.text
        for block in BLOCKS
        if (block.page, block.language) == ("docs/getting-started.md", "")
    ]
    for line in shown.splitlines():
        assert re.search(pattern(line), place.tunnel.log()), line


def test_what_is_not_run_is_there() -> None:
    lines = {line for block in BLOCKS if block.language == "sh" for line in block.text.splitlines()}
    assert set(LINES_NOT_RUN) <= lines
    assert set(PAGES_NOT_RUN) <= set(NAMES)


def test_the_shortest_client_stores_and_fetches(place: Place) -> None:
    (script,) = [
        block.text for block in BLOCKS if (block.page, block.language) == ("README.md", "python")
    ]
    named: dict[str, Any] = {}
    exec(pages.on(place.tunnel.port, script), named)
    named["cache"].set("shortest", "one", noreply=False)
    assert named["cache"].get("shortest") == b"one"


def test_the_tree_of_pages_has_no_other_name_for_code() -> None:
    # A block without a language is for what is shown, and is not run.
    known = {"", "sh", "console", "toml", "python", "ruby", "php", "js", "java", "properties"}
    known |= {"yaml", "ini", "dockerfile", "json"}
    assert {block.language for block in BLOCKS} <= known


def prose(page: str) -> str:
    """A page without its blocks."""
    return re.sub(r"(?ms)^ *```.*?^ *```$", "", (ROOT / page).read_text())


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have for links, as GitHub makes them."""
    text = re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text())
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", NAMES)
def test_every_link_points_to_something(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    linked = set(re.findall(r"\]\(([^)#\s]+)", index))
    docs = {name.removeprefix("docs/") for name in NAMES if name.startswith("docs/")}
    assert docs - {"README.md"} <= linked


def flags_of(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text))


@pytest.mark.parametrize("page", NAMES)
def test_every_flag_exists(page: str) -> None:
    known = {setting.flag for setting in SETTINGS if Source.FLAG in setting.sources}
    if page not in PAGES_NOT_RUN:
        # Those speak of other programs' flags as well.
        assert flags_of(prose(page)) <= known | FOREIGN
    for block in pages.blocks(ROOT / page):
        for line in block.text.replace("\\\n", " ").splitlines():
            # What stands behind our name, up to the next command.
            _, ours, rest = line.partition("memtunnel ")
            if ours and block.language in ("sh", "console"):
                assert flags_of(re.split("[|;&]", rest)[0]) <= known | FOREIGN, line


def test_every_setting_is_told() -> None:
    told = (ROOT / "docs" / "settings.md").read_text()
    for setting in SETTINGS:
        assert setting.flag in told or setting.variable in told, setting.name


@pytest.mark.parametrize("page", NAMES)
def test_every_variable_exists(page: str) -> None:
    known = {setting.variable for setting in SETTINGS}
    known |= set(re.findall(r"\bMEMTUNNEL_[A-Z_]+", (ROOT / "hatch_build.py").read_text()))
    known |= set(re.findall(r"\bMEMTUNNEL_[A-Z_]+", (ROOT / "Makefile").read_text()))
    known |= set(re.findall(r"\bMEMTUNNEL_[A-Z_]+", (ROOT / "bin" / "compile").read_text()))
    assert set(re.findall(r"\bMEMTUNNEL_[A-Z_]+", (ROOT / page).read_text())) <= known


@pytest.mark.parametrize("page", NAMES)
def test_every_metric_exists(page: str) -> None:
    known = {family.name for family in FAMILIES}
    # And the project's own files that begin like one.
    known |= {path.stem for path in ROOT.glob("twisted/plugins/*.py")}
    told = set(re.findall(r"\bmemtunnel_\w+", (ROOT / page).read_text()))
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in told} <= known


@pytest.mark.parametrize("page", NAMES)
def test_every_target_of_make_exists(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = (ROOT / page).read_text()
    targets = set(re.findall(r"`make ([a-z-]+)", text))
    targets |= set(re.findall(r"(?m)^ *(?:\$ )?make ([a-z-]+)", text))
    for target in targets:
        assert re.search(rf"(?m)^{target}:", makefile), target


@pytest.mark.parametrize("page", NAMES)
def test_every_test_that_is_named_exists(page: str) -> None:
    for name in re.findall(r"\btests/\w+\.py\b", (ROOT / page).read_text()):
        assert (ROOT / name).exists(), name
