"""Freezes memtunnel: a folder with the program and all that it needs, Python included.

For machines without Python, such as Heroku's dynos. The core is compiled. The result is one
tarball, `memtunnel-VERSION-linux-ARCH.tar.gz`, whose SHA-256 is printed. It runs where the C
library is as new as here, or newer. Python has to be one with a shared library, and there has to
be a C compiler.
"""

import argparse
import gzip
import hashlib
import os
import platform
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOUSE = HERE.parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("folder", type=Path, help="where to put the tarball")
    parser.add_argument("--package", type=Path, help="the compiled package, where there is one")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        tree = freeze(Path(scratch), options.package)
        version = output(tree / "memtunnel", "--version").split()[1]
        tarball = folder / f"memtunnel-{version}-linux-{platform.machine()}.tar.gz"
        pack(tree, tarball)
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    print(f"{digest}  {tarball}")


def freeze(scratch: Path, package: Path | None) -> Path:
    """The folder with the program `memtunnel` in it."""
    venv.create(scratch / "venv", with_pip=True)
    python = scratch / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--requirement", HERE / "requirements.txt")
    if package is None:
        package = scratch / "package"
        run(*pip, "--no-deps", "--target", package, HOUSE, MEMTUNNEL_COMPILE="1")
    # Without -P, the package of the working directory would be frozen, which is not compiled.
    # What the compiled modules have in common is found by no import that PyInstaller could see.
    (shared,) = package.glob("*__mypyc*.so")
    run(
        *(python, "-P", "-m", "PyInstaller", "--onedir", "--name", "memtunnel"),
        *("--log-level", "ERROR"),
        *("--collect-submodules", "memtunnel", "--collect-data", "memtunnel"),
        # With the licences of all that is in it.
        *("--recursive-copy-metadata", "memtunnel", "--recursive-copy-metadata", "rich"),
        *("--add-data", f"{Path(sysconfig.get_path('stdlib'), 'LICENSE.txt')}:."),
        *("--exclude-module", "readline"),  # nobody types here
        *("--hidden-import", shared.name.partition(".")[0]),
        *("--distpath", scratch, "--workpath", scratch / "work", "--specpath", scratch / "work"),
        HERE / "entry.py",
        PYTHONPATH=str(package.resolve()),
        PYTHONHASHSEED="0",  # or else the order of what is in it would be another one each time
    )
    tree = scratch / "memtunnel"
    for record in tree.rglob("*.dist-info/RECORD"):
        record.unlink()  # it has hashes of scripts, and these the name of `scratch`
    return tree


def pack(tree: Path, tarball: Path) -> None:
    """The same for the same files: names in order, no times, nobody's, for all to read."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
        member.mode = 0o755 if member.mode & 0o100 else 0o644
        return member

    with (
        open(tarball, "wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in sorted(tree.rglob("*")):
            archive.add(path, path.relative_to(tree), recursive=False, filter=plain)


def run(*command: str | Path, **environ: str) -> None:
    subprocess.run(command, env={**os.environ, **environ}, check=True, stdout=sys.stderr)


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
