"""The documents' blocks of code, which tests run as they are written."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "spec/*.md", "clients/ts/*.md", "examples/*/*.md")
    for page in ROOT.glob(pattern)
    if "node_modules" not in page.parts
)
_BLOCK = re.compile(
    r"(?:^`(?P<name>[^`\n]+)`:\n\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A block of ``page``. ``name`` is that of the file that it is, where the line before says one."""

    page: Path
    line: int
    language: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path | str, language: str | None = None) -> list[Block]:
    """The blocks of a page, or of one of ``docs/guides`` by its name, in their order."""
    path = page if isinstance(page, Path) else ROOT / "docs" / "guides" / f"{page}.md"
    text = path.read_text(encoding="utf-8")
    found = [
        Block(path, text.count("\n", 0, m.start("text")), m["language"], m["name"] or "", m["text"])
        for m in _BLOCK.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def all_blocks(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, language)]
