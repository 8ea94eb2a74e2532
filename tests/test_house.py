"""The house has four rooms by what they may know, and imports only go down.

`wire` is the ground, `core` uses it, `net` and `ops` use both and not each other, the
configuration knows none of them but `wire`, and `service` on top wires them together. The two
pure rooms know no network and no clock. And `twistd` finds exactly one plugin, for which the
folder `twisted` has to stay a folder without a package.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted((ROOT / "memtunnel").rglob("*.py"))
}
ROOMS = {
    "wire": {"wire"},
    "core": {"wire", "core"},
    "net": {"wire", "core", "net"},
    "ops": {"wire", "core", "ops"},
    "addresses": {"wire"},
    "settings": {"wire", "addresses"},
    "config": {"wire", "addresses", "settings"},
}
#: What the package itself has, for all.
PUBLIC = {"memtunnel.__version__"}
IMPURE = {"twisted", "socket", "ssl", "OpenSSL", "time"}
ABOVE_SERVICE = {"memtunnel.__main__", "memtunnel.check"}
ENTRIES = {"memtunnel.service", "memtunnel.worker_process", "memtunnel.demo", "memtunnel.check"}


def imports(source: str) -> Iterator[str]:
    """The full names of all that a module imports, anywhere in it, as if each were a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{a.name}" for a in node.names)


def room(module: str) -> str:
    """`core` of `memtunnel.core.mux`, and `config` of `memtunnel.config`."""
    return module.partition("memtunnel.")[2].partition(".")[0]


def within(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def those_of(where: str) -> list[str]:
    return [module for module in MODULES if room(module) == where]


def test_imports_are_found_wherever_they_stand() -> None:
    source = (
        "import a.b\n"
        "from c import d as e\n"
        "if TYPE_CHECKING:\n    from f.g import h\n"
        "def function():\n    from . import i\n    import j as k\n"
    )
    assert sorted(imports(source)) == ["..i", "a.b", "c.d", "f.g.h", "j"]


def test_all_rooms_are_there() -> None:
    for where in ROOMS:
        assert those_of(where), where


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_absolute(module: str) -> None:
    assert not [name for name in imports(MODULES[module].read_text()) if name.startswith(".")]


@pytest.mark.parametrize("where", ROOMS)
def test_no_import_runs_upward(where: str) -> None:
    wrong = [
        (module, name)
        for module in those_of(where)
        for name in imports(MODULES[module].read_text())
        if within(name, "memtunnel") and name not in PUBLIC and room(name) not in ROOMS[where]
    ]
    assert wrong == []


@pytest.mark.parametrize("where", ["wire", "core"])
def test_the_pure_rooms_know_no_network_and_no_clock(where: str) -> None:
    wrong = [
        (module, name)
        for module in those_of(where)
        for name in imports(MODULES[module].read_text())
        if within(name, *IMPURE)
    ]
    assert wrong == []


def test_only_the_entry_points_import_the_service() -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(within(name, "memtunnel.service") for name in imports(path.read_text()))
    }
    assert users <= ABOVE_SERVICE


def test_only_the_entry_points_import_the_global_reactor() -> None:
    users = {
        module
        for module, path in MODULES.items()
        if any(within(name, "twisted.internet.reactor") for name in imports(path.read_text()))
    }
    assert "memtunnel.service" in users
    assert users <= ENTRIES


def test_only_top_needs_what_is_not_installed_with_the_package() -> None:
    """And says so in words: it imports the rest, which needs `rich`, only where it is called."""
    users = {
        module
        for module, path in MODULES.items()
        if any(within(name, "rich", "memtunnel.picture") for name in imports(path.read_text()))
    }
    assert users == {"memtunnel.picture", "memtunnel.top"}
    at_once = subprocess.run(
        [sys.executable, "-c", "import sys, memtunnel.top; print('rich' in sys.modules)"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert at_once.stdout == "False\n"


# --- the plugin


def test_the_folder_of_plugins_is_no_package() -> None:
    """Or it would hide Twisted from all who run in this folder."""
    assert list((ROOT / "twisted").rglob("__init__.py")) == []


def test_the_plugin_is_a_few_lines_that_import_nothing_of_ours() -> None:
    source = (ROOT / "twisted" / "plugins" / "memtunnel_plugin.py").read_text()
    assert len(source.splitlines()) <= 12
    assert list(imports(source)) == ["twisted.application.service.ServiceMaker"]


def test_twistd_finds_exactly_one_plugin() -> None:
    (found,) = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "memtunnel"]
    assert found.module == "memtunnel.service"
