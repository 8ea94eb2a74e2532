"""What the pages have in their code blocks, for tests that run it as it stands there."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Block(NamedTuple):
    """A fenced block: `page` is its file's path in the repository, `line` that of the fence."""

    page: str
    line: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in their order; those in lists without their indentation."""
    page = page.resolve()
    whole = page.read_text()
    name = str(page.relative_to(ROOT))
    found = []
    for match in re.finditer(r"(?ms)^( *)```(\w*)\n(.*?)^\1```$", whole):
        indent, language, text = match.groups()
        line = whole.count("\n", 0, match.start()) + 1
        found.append(Block(name, line, language, re.sub(rf"(?m)^{indent}", "", text)))
    return found


def block(page: str, language: str, having: str = "") -> str:
    """The one block in this language that has these words, of a page in docs/."""
    (found,) = [
        each.text
        for each in blocks(ROOT / "docs" / page)
        if each.language == language and having in each.text
    ]
    return found


def on(port: int, text: str) -> str:
    """The same where the tunnel listens on another port than 11211."""
    assert "11211" in text
    return text.replace("11211", str(port))
