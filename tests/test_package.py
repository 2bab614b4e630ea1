"""What is installed: a package with its page and a README that reads elsewhere, and words that lead somewhere."""

import ast
import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
from readme_renderer import markdown

from millstream.cli import app as command_line
from millstream.version import DOCS, REPOSITORY, __version__

ROOT = Path(__file__).parent.parent
PAGES = Path("src", "millstream", "server", "pages")


def build(folder: Path, target: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target], cwd=folder, capture_output=True, text=True
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a clone has that a package is made of, with pages that are quick to build."""
    tree = tmp_path / "tree"
    for name in ("src", "spec"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "pages"))
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "hatch_build.py"):
        shutil.copy(ROOT / name, tree)
    (tree / PAGES / "assets").mkdir(parents=True)
    for name in ("index.html", "docs.html", "assets/index-12345678.js"):
        (tree / PAGES / name).write_text(name, encoding="utf-8")
    return tree


def test_a_wheel_has_the_page_also_when_it_is_built_from_the_source_distribution(tree: Path) -> None:
    made = build(tree, "sdist")
    assert made.returncode == 0, made.stderr
    with tarfile.open(tree / "dist" / f"millstream-{__version__}.tar.gz") as archive:
        archive.extractall(tree / "unpacked", filter="data")
    source = tree / "unpacked" / f"millstream-{__version__}"
    made = build(source, "wheel")
    assert made.returncode == 0, made.stderr
    (path,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        described = email.message_from_bytes(wheel.read(f"millstream-{__version__}.dist-info/METADATA"))
    pages = "millstream/server/pages"
    assert {f"{pages}/index.html", f"{pages}/docs.html", f"{pages}/assets/index-12345678.js"} <= names
    assert {f"millstream/{file.relative_to(ROOT / 'src/millstream')}" for file in sources()} <= names
    assert "The Millstream authors" in (described["Author"] or described["Author-email"])
    urls = dict(url.split(", ") for url in described.get_all("Project-URL") or [])
    assert urls["Repository"] == REPOSITORY
    # As an index shows it: every link and image leads somewhere from there, and to a file that is here.
    warnings = StringIO()
    assert described["Description-Content-Type"] == "text/markdown"
    shown = markdown.render(str(described.get_payload()), stream=warnings)
    assert shown is not None
    assert warnings.getvalue() == ""
    links = re.findall(r'(?:href|src)="([^"]*)"', shown)
    assert len(links) > 10
    for link in links:
        assert link.startswith(("https://", "#")), link
        if path_of := re.match(rf"{REPOSITORY}/(?:blob|raw)/main/([^#]*)", link):
            assert (ROOT / path_of[1]).exists(), link


@pytest.mark.parametrize("target", ["wheel", "sdist"])
@pytest.mark.parametrize("page", ["index.html", "docs.html"])
def test_nothing_is_built_without_the_page(tree: Path, target: str, page: str) -> None:
    (tree / PAGES / page).unlink()
    made = build(tree, target)
    assert made.returncode != 0
    assert f"{page} in src/millstream/server/pages would be missing from the package" in made.stderr
    assert "Traceback" not in made.stderr
    assert not list(tree.glob("dist/*.*"))


def test_every_description_of_the_project_says_the_same() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    client = json.loads((ROOT / "clients/ts/package.json").read_text(encoding="utf-8"))
    assert project["urls"]["Repository"] == REPOSITORY
    assert all(url.startswith(REPOSITORY) for url in project["urls"].values())
    assert client["repository"] == {
        "type": "git",
        "url": f"git+{REPOSITORY}.git",
        "directory": "clients/ts",
    }
    assert client["homepage"] == f"{REPOSITORY}/tree/main/clients/ts"
    assert client["bugs"] == project["urls"]["Issues"]
    (author,) = project["authors"]
    assert client["author"] == author["name"]
    assert author["name"] in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert client["version"] == __version__


def sources() -> list[Path]:
    return sorted((ROOT / "src" / "millstream").rglob("*.py"))


def words(file: Path) -> Iterator[str]:
    """What users can see of a file's words: its strings, and the docstrings that become help or OpenAPI."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    unseen = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        decorated = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.decorator_list
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and not decorated:
            unseen.add(first.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):  # with the constants that name a place on the web
            yield ast.unparse(node)
            unseen.update(node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in unseen:
            yield node.value


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT / "src")))
def test_no_message_points_to_a_file_that_is_not_installed(file: Path) -> None:
    pointed = re.compile(r"(?<![\w/}])(?:[\w.-]+/)*[\w-]+\.(?:md|html)\b|\b(?:docs|spec|examples)/\w")
    served = {"index.html", "docs.html"}  # names of pages, not of places to read
    found = [
        (match[0], text) for text in words(file) for match in pointed.finditer(text) if match[0] not in served
    ]
    assert found == []


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT / "src")))
def test_no_message_installs_by_name_what_no_index_has(file: Path) -> None:
    assert [text for text in words(file) if re.search(r"pip install \W?millstream", text)] == []


def test_every_command_that_a_message_names_works_as_it_stands() -> None:
    named = re.compile(r"(?:^f?['\"]?|with: |run: )(millstream [\w {}-]+)")
    hints = [match[1] for file in sources() for text in words(file) for match in named.finditer(text)]
    form = (ROOT / "web" / "src" / "KeyForm.tsx").read_text(encoding="utf-8")
    hints += re.findall(r">(millstream .*)<", form)
    assert len(hints) > 5
    for hint in hints:
        command: Any = typer.main.get_command(command_line)
        rest = re.sub(r"\{elsewhere\}", " --data-dir x", hint).split()[1:]
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        command.make_context(hint, rest)  # refuses what lacks something, or has what is not known


def test_what_a_message_points_to_is_there() -> None:
    assert DOCS.removeprefix(REPOSITORY) == "/blob/main/docs"
    pages = {
        page for file in sources() for page in re.findall(r"\{DOCS\}(/[\w/.-]+\.md)", file.read_text("utf-8"))
    }
    assert pages
    assert [page for page in pages if not (ROOT / f"docs{page}").is_file()] == []


def test_its_types_need_no_plugin(tmp_path: Path) -> None:
    """As those see them who have mypy or pyright without pydantic's plug-in, which our own check has."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    checked = subprocess.run(
        [*command, f"--cache-dir={tmp_path}", "tests/typing/public_names.py"],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": "src"},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
