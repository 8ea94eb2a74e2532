"""The optional compiled core: ``MEMTUNNEL_COMPILE=1 pip install .``

The same sources, type annotations and all, go through mypyc and a C compiler. Only a wheel is
compiled: in an editable install the sources are what runs.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: What every request passes through, and what is pure.
COMPILED = (
    "memtunnel/wire/binary.py",
    "memtunnel/wire/classic.py",
    "memtunnel/wire/command.py",
    "memtunnel/wire/meta.py",
    "memtunnel/wire/numbers.py",
    "memtunnel/wire/text.py",
    "memtunnel/core/[a-z]*.py",
    "memtunnel/ops/metrics.py",
)


class CompiledCore(BuildHookInterface):
    def _wanted(self, version: str) -> bool:
        return os.environ.get("MEMTUNNEL_COMPILE") == "1" and version != "editable"

    def dependencies(self) -> list[str]:
        return ["mypy>=1.15", "setuptools>=77"] if self._wanted("standard") else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not self._wanted(version):
            return
        from mypyc.build import mypycify
        from setuptools import Distribution
        from setuptools.command.build_ext import build_ext

        root = Path(self.root)
        self._scratch = TemporaryDirectory(prefix="memtunnel-")
        scratch = Path(self._scratch.name)
        sources = [
            str(path.relative_to(root)) for each in COMPILED for path in sorted(root.glob(each))
        ]
        extensions = mypycify(
            ["--config-file=", "--cache-dir", str(scratch / "mypy"), *sources],
            opt_level="3",
            debug_level="0",
            target_dir=str(scratch / "c"),
        )
        command = build_ext(Distribution({"name": "memtunnel", "ext_modules": extensions}))
        command.build_lib = str(scratch / "lib")
        command.build_temp = str(scratch / "temp")
        command.ensure_finalized()
        command.run()
        for built in (scratch / "lib").rglob("*.so"):
            build_data["force_include"][str(built)] = str(built.relative_to(scratch / "lib"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._wanted(version):
            self._scratch.cleanup()
