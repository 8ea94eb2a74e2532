"""The version of memtunnel, and the log of changes."""

import re
from datetime import date
from pathlib import Path

from memtunnel import __version__

HOUSE = Path(__file__).parent.parent
CHANGES = (HOUSE / "CHANGELOG.md").read_text()


def test_the_version_stands_in_one_place_only() -> None:
    """Elsewhere it is only told: in the log of changes, and as the name of an image."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert 'dynamic = ["version"]' in (HOUSE / "pyproject.toml").read_text()
    found = [
        path
        for folder in ("memtunnel", "twisted")
        for path in (HOUSE / folder).rglob("*.py")
        if __version__ in path.read_text()
    ]
    assert found == [HOUSE / "memtunnel" / "__init__.py"]
    manifests = "".join(path.read_text() for path in (HOUSE / "deploy/kubernetes").glob("*.yaml"))
    assert set(re.findall(r"/memtunnel:(\S+)", manifests)) == {__version__}


def test_the_log_of_changes_tells_of_this_version() -> None:
    headings = re.findall(r"^## (.*)$", CHANGES, re.MULTILINE)
    dated = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\S+)", each) for each in headings]
    if headings[0] == "[Unreleased]":
        dated = dated[1:]
    assert None not in dated
    versions = [each[1] for each in dated if each]
    # Before the first release there is none.
    assert versions[:1] in ([], [__version__])
    numbers = [tuple(map(int, each.split("."))) for each in versions]
    assert numbers == sorted(set(numbers), reverse=True)
    days = [date.fromisoformat(each[2]) for each in dated if each]
    assert days == sorted(days, reverse=True)
    kinds = set(re.findall(r"^### (.*)$", CHANGES, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
