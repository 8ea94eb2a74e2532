"""What is built: the plugin is in it, what would break Twisted is not."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.full

HOUSE = Path(__file__).parent.parent
PLUGIN = "twisted/plugins/memtunnel_plugin.py"
UNWANTED = ("twisted/__init__.py", "twisted/plugins/__init__.py", "twisted/plugins/dropin.cache")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel of this tree, in which twistd has run."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    for name in ("memtunnel", "twisted"):
        shutil.copytree(HOUSE / name, source / name)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(HOUSE / name, source / name)
    (source / "twisted" / "plugins" / "dropin.cache").write_bytes(b"twistd was here")
    build = [sys.executable, "-m", "build", "--outdir", str(folder), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_wheel_has_the_plugin_and_the_commands(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entries,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        assert "memtunnel = memtunnel.__main__:main" in archive.read(entries).decode()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        assert "Requires-Dist: rich>=13; extra == 'top'\n" in archive.read(metadata).decode()
    assert PLUGIN in names
    assert {"memtunnel/service.py", "memtunnel/wire/binary.py"} <= set(names)
    assert not set(UNWANTED) & set(names)
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
        "memtunnel",
        "twisted",
    }


def test_the_sdist_has_the_plugin(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert PLUGIN in names
    assert not set(UNWANTED) & names
