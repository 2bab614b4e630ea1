"""What a build of the package does itself: the page has to be there, and the README links from anywhere."""

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

PAGES = Path("src", "millstream", "server", "pages")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r'(!?\[[^\]]*\]\(|\bsrc="|\bhref=")(?![a-z][a-z0-9+.-]*:|#|/)([^)"\s]+)')


def absolute(text: str, repository: str) -> str:
    """Markdown whose links into the repository at ``repository`` work on a page that is elsewhere."""

    def link(match: re.Match[str]) -> str:
        opening, path = match.groups()
        shown = opening.startswith(("!", "src"))  # an image is fetched as it is
        return f"{opening}{repository}/{'raw' if shown else 'blob'}/main/{path}"

    pieces, end = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [_LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, _LINK.sub(link, text[end:])])


class Readme(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, metadata["urls"]["Repository"]),
        }


class Page(BuildHookInterface):  # type: ignore[type-arg]  # of no configuration
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # where one works on the page, it may be built later
            return
        missing = [name for name in ("index.html", "docs.html") if not Path(self.root, PAGES, name).is_file()]
        if missing:
            self.app.abort(
                f"{' and '.join(missing)} in {PAGES.as_posix()} would be missing from the package: "
                "build the chat page first, with: make web"
            )
