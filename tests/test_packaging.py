"""What is released: what is in it, and that it starts however it was installed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import servers

from memtunnel import __version__

pytestmark = pytest.mark.full

HOUSE = Path(__file__).parent.parent
PLUGIN = "twisted/plugins/memtunnel_plugin.py"
UNWANTED = ("twisted/__init__.py", "twisted/plugins/__init__.py", "twisted/plugins/dropin.cache")
#: As twistd itself, which pip puts only into environments with all that memtunnel needs.
TWISTD = "from twisted.scripts.twistd import run; run()"


def run(*command: str | Path, **more: Any) -> str:
    """What a command has printed; it may not fail."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# What is in it


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel of this tree, in which twistd has run."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in run(servers.need("git"), *listing[1:], cwd=HOUSE).split("\0"):
        if name and (HOUSE / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HOUSE / name, source / name)
    (source / "twisted" / "plugins" / "dropin.cache").write_bytes(b"twistd was here")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    (path,) = built.glob("*.tar.gz")
    return path


def test_the_wheel_has_the_plugin_and_the_commands(wheel: Path) -> None:
    assert wheel.name == f"memtunnel-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entries,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        assert "memtunnel = memtunnel.__main__:main" in archive.read(entries).decode()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        assert "Requires-Dist: rich>=13; extra == 'top'\n" in archive.read(metadata).decode()
    assert PLUGIN in names
    wanted = {path.relative_to(HOUSE) for path in (HOUSE / "memtunnel").rglob("*.py")}
    assert {*map(str, wanted), "memtunnel/ops/page.html"} <= set(names)
    assert not set(UNWANTED) & set(names)
    others = {
        name for name in names if not re.match(r"memtunnel/|twisted/|[^/]*\.dist-info/", name)
    }
    assert others == {f"memtunnel-{__version__}.data/scripts/with_memtunnel"}


def test_the_sdist_has_all_that_is_in_the_repository_and_nothing_else(
    built: Path, sdist: Path
) -> None:
    assert sdist.name == f"memtunnel-{__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {each.name.partition("/")[2] for each in archive.getmembers() if each.isfile()}
    assert not set(UNWANTED) & names
    source = built / "source"
    files = {str(each.relative_to(source)) for each in source.rglob("*") if each.is_file()}
    assert names == files - set(UNWANTED) | {"PKG-INFO"}
    assert {PLUGIN, "tests/test_packaging.py", "docs/systemd.md", "CHANGELOG.md"} <= names


# That it starts


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Path]:
    """Installs the package into an environment of its own, which has the rest from this one."""

    def install(*what: str | Path) -> Path:
        home = tmp_path / "venv"
        run(sys.executable, "-m", "venv", "--without-pip", home)
        python = home / "bin" / "python"
        names = {"base": str(home), "platbase": str(home)}
        # No file of this kind is followed from there: the package itself is not found in it.
        Path(sysconfig.get_path("purelib", "venv", names), "rest.pth").write_text(
            sysconfig.get_path("purelib")
        )
        pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
        pip += ["install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        run(*pip, *what)
        return python

    return install


def starts(*command: str | Path, folder: Path) -> None:
    """Run the tunnel on its own server until it is healthy; it ends in order when told to."""
    tunnel = servers.Tunnel()
    ports = (f"--listen=127.0.0.1:{tunnel.port}", f"--metrics=127.0.0.1:{tunnel.admin}")
    tunnel.command = [*map(str, command), "--demo", *ports]
    tunnel.environ.pop("VIRTUAL_ENV", None)
    tunnel.environ.pop("PYTHONPATH", None)
    tunnel.folder = folder
    with servers.closing_all([tunnel]):
        tunnel.start()
        assert tunnel.get("/healthz")[0] == 200
        tunnel.signal(signal.SIGTERM)
        assert tunnel.wait() == 0, tunnel.log()


def begins(programs: Path, folder: Path) -> None:
    """`with_memtunnel` finds the tunnel that was installed with it."""
    environ = {"PATH": "/usr/bin:/bin", "MEMTUNNEL_DEMO": "on"}
    for name in ("LISTEN", "METRICS"):
        environ[f"MEMTUNNEL_{name}"] = f"127.0.0.1:{servers.free_port()}"
    command = [programs / "with_memtunnel", "sh", "-c", "echo here; exit 7"]
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (7, "here\n"), done.stderr
    assert "demo: warm" in done.stderr


def where(python: Path, folder: Path) -> Path:
    """From where this interpreter has the package."""
    script = "import memtunnel; print(memtunnel.__file__)"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return Path(run(python, "-P", "-c", script, cwd=folder, env=environ).strip()).parent.parent


WAYS = ("wheel", "sdist", "editable")


@pytest.mark.parametrize("way", WAYS)
def test_it_starts_when_pip_has_installed_it(
    way: str, built: Path, wheel: Path, sdist: Path, install: Callable[..., Path], tmp_path: Path
) -> None:
    what = {"wheel": (wheel,), "sdist": (sdist,), "editable": ("--editable", built / "source")}
    python = install(*what[way])
    home = built / "source" if way == "editable" else tmp_path / "venv"
    assert where(python, tmp_path).is_relative_to(home)
    arguments = ("--nodaemon", "--pidfile=", "memtunnel")
    starts(python, "-P", "-c", TWISTD, *arguments, folder=tmp_path)
    begins(python.parent, tmp_path)


def test_it_starts_when_pipx_has_installed_it_with_all_it_needs(
    wheel: Path, tmp_path: Path
) -> None:
    pipx = Path(sys.executable).with_name("pipx")
    home, programs = tmp_path / "pipx", tmp_path / "bin"
    environ = os.environ | {"PIPX_HOME": str(home), "PIPX_BIN_DIR": str(programs)}
    run(pipx, "install", "--python", sys.executable, wheel, env=environ)
    starts(programs / "memtunnel", folder=tmp_path)
    begins(programs, tmp_path)
    twistd = home / "venvs" / "memtunnel" / "bin" / "twistd"
    starts(twistd, "--nodaemon", "--pidfile=", "memtunnel", folder=tmp_path)
