"""The documents tell the truth about the tree: what they link to and cite is there."""

import re
from pathlib import Path

import pytest

from guides import PAGES, ROOT
from millstream.version import REPOSITORY


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    ours = [  # a README that is shown elsewhere names the repository
        ROOT / link.removeprefix(REPOSITORY).lstrip("/").removeprefix("blob/main/").removeprefix("tree/main/")
        for link in links
        if link == REPOSITORY or link.startswith(f"{REPOSITORY}/")
    ]
    missing = [path for path in ours if not path.exists()]
    missing += [
        page.parent / link for link in links if "://" not in link and not (page.parent / link).exists()
    ]
    assert missing == []


def test_every_test_that_the_faults_cite_is_there() -> None:
    cited = re.findall(
        r"`(tests/[\w/]+\.py)::(\w+)", (ROOT / "spec" / "faults.md").read_text(encoding="utf-8")
    )
    assert len(cited) > 100
    missing = [
        f"{path}::{name}"
        for path, name in cited
        if not re.search(rf"\bdef {name}\(", (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert missing == []


def test_every_file_that_code_and_tests_cite_is_there() -> None:
    files = [
        path for folder in ("src", "tests", "benchmarks", "tools") for path in (ROOT / folder).rglob("*.py")
    ]
    missing = {
        cited
        for path in files
        for cited in re.findall(r"\b(?:docs|spec)/[\w/.-]+\.(?:md|json)\b", path.read_text(encoding="utf-8"))
        if not (ROOT / cited).exists()
    }
    assert missing == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_installs_by_name_what_no_index_has(page: Path) -> None:
    """``docs/guides/install.md`` says how, and the others link to it."""
    by_name = r"(?:pip|uv|npm|pnpm|yarn) (?:install|add|i) [^\n]*(?<![\w./-])'?millstream(?:\[|'|\s|$)"
    assert re.findall(by_name, page.read_text(encoding="utf-8"), re.MULTILINE) == []


def test_a_readme_that_a_registry_shows_has_no_links_that_only_work_here() -> None:
    text = (ROOT / "clients" / "ts" / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
