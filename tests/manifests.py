"""Files for container engines and Kubernetes, and the schemas that registries have of them."""

import functools
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import servers
import yaml

#: A wheel with Kubernetes' own schemas, in which no unknown field passes.
KUBERNETES = "kubernetes-validate==1.37.0"
RELEASE = "v1.33.0-local-strict"
#: An npm package with the schema of the Compose Specification.
COMPOSE = "dclint@3.1.0"


def documents(path: Path) -> list[Any]:
    """The YAML documents in a file."""
    return [each for each in yaml.safe_load_all(path.read_text()) if each is not None]


def _fetch(command: list[str], pattern: str) -> io.BytesIO:
    """A registry's package, by the registry's own client; without it the test is skipped."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        if done.returncode:
            servers.skip(f"{command[-1]} cannot be had: {done.stderr}")
        (package,) = Path(folder).glob(pattern)
        return io.BytesIO(package.read_bytes())


@functools.cache
def compose_schema() -> Any:
    package = _fetch([servers.need("npm"), "pack", "--silent", COMPOSE], "*.tgz")
    with tarfile.open(fileobj=package) as archive:
        member = archive.extractfile("package/schemas/compose.schema.json")
        assert member is not None
        return json.load(member)


@functools.cache
def _kubernetes() -> zipfile.ZipFile:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    return zipfile.ZipFile(_fetch([*pip, "--no-deps", KUBERNETES], "*.whl"))


@functools.cache
def kubernetes_schema(kind: str, version: str) -> Any:
    """Of a kind and its ``apiVersion``, with all that it refers to in it."""
    folder = f"kubernetes_validate/kubernetes-json-schema/{RELEASE}"
    name = f"{kind}-{version.replace('/', '-')}".lower()
    archive = _kubernetes()
    schema, definitions = (
        json.loads(archive.read(f"{folder}/{each}.json").replace(b"/api/_definitions.json#", b"#"))
        for each in (name, "_definitions")
    )
    return {**schema, "$defs": definitions["$defs"]}


def mistakes(schema: Any, document: Any) -> Iterator[str]:
    """What a schema has against a document."""
    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        yield f"{error.json_path}: {error.message}"
