"""Writes the files that are made from the code; ``--check`` only says whether they are up to date.

python tools/generate.py [--check]
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from millstream.providers.known import KnownProvider, Quirks

ROOT = Path(__file__).resolve().parent.parent


def event_schema() -> str:
    from millstream.events import json_schema

    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def command_line() -> str:
    """Every command's own help."""
    pages: list[str] = ["# Command line\n\nMade from the program's own help by `make docs`.\n"]
    commands: list[list[str]] = [
        [],
        ["serve"],
        ["chat"],
        ["record"],
        ["keys"],
        ["keys", "create"],
        ["keys", "list"],
        ["keys", "change"],
        ["keys", "rotate"],
        ["keys", "revoke"],
        ["keys", "limit"],
        ["secret"],
        ["secret", "rotate"],
        ["prices"],
        ["prices", "check"],
        ["usage"],
        ["usage", "export"],
        ["usage", "verify"],
        ["exports"],
        ["exports", "retry"],
        ["exports", "drop"],
    ]
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}
    for command in commands:
        shown = subprocess.run(
            [sys.executable, "-m", "millstream", *command, "--help"],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        text = "\n".join(line.rstrip() for line in shown.splitlines()).strip("\n")
        text = text.replace("python -m millstream", "millstream")
        pages.append(f"## millstream {' '.join(command)}".rstrip() + f"\n\n```\n{text}\n```\n")
    return "\n".join(pages)


def settings_reference() -> str:
    from millstream.providers.known import KNOWN
    from millstream.settings import (
        ExporterSettings,
        ModelSettings,
        PriceSettings,
        ProviderSettings,
        QuirkSettings,
        RateSettings,
        Settings,
    )

    def table(model: type[BaseModel], name: Callable[[str], str]) -> str:
        rows = ["| setting | default | meaning |", "|---|---|---|"]
        for field, info in model.model_fields.items():
            if info.exclude:
                continue
            default = "required" if info.is_required() else f"`{_plain(info.default)}`"
            rows.append(f"| `{name(field)}` | {default} | {info.description or ''} |")
        return "\n".join(rows)

    return (
        "# Settings\n\nMade from the code by `make docs`. An environment variable wins over "
        "`millstream.toml` in the working folder, where the same names are written small and without "
        "`MILLSTREAM_`. Paths may begin with `~/`. What Kubernetes sets in each pod beside a service that is "
        "called `millstream` (`MILLSTREAM_PORT=tcp://…`) is no setting.\n\n"
        + table(Settings, lambda field: f"MILLSTREAM_{field.upper()}")
        + "\n\n## Providers\n\nThese variables make a provider ready by themselves: `OPENAI_API_KEY` (with "
        "`OPENAI_BASE_URL` for any other server that speaks its protocol; then the key may be left out), "
        + "".join(f"`{known.variable}`, " for known in KNOWN if known.name != "openai")
        + "and `AZURE_OPENAI_ENDPOINT` with `AZURE_OPENAI_API_KEY`. Others are sections "
        "`[providers.<name>]` of the file:\n\n"
        + table(ProviderSettings, str)
        + "\n\n### Quirks\n\nSections `[providers.<name>.quirks]`, for a server that nobody here knows; what "
        "is known of the others is in [providers](providers.md):\n\n"
        + table(QuirkSettings, str)
        + "\n\n## Models\n\nSections `[models.<name>]`, for names of your own "
        "([several deployments](../guides/routing.md)):\n\n"
        + table(ModelSettings, str)
        + '\n\n## Prices\n\nSections `[prices."<model>"]`, in US dollars per million tokens; they win '
        "over the list prices that ship with Millstream ([billing](../guides/billing.md)):\n\n"
        + table(PriceSettings, str)
        + "\n\nWhat is `charged`, and a tier, has these:\n\n"
        + table(RateSettings, str)
        + "\n\n## Exporters\n\nSections `[exporters.<name>]` ([exporters](../guides/exporters.md)):\n\n"
        + table(ExporterSettings, str)
        + "\n"
    )


def providers_reference() -> str:
    """What is known of providers, and what each word of theirs means."""
    from millstream.providers.endings import ERRORS, FAILED_FINISHES, FINISH_REASONS
    from millstream.providers.known import KNOWN

    def words(text: str) -> str:
        return " ".join(f"`{word}`" for word in text.split())

    rows = ["| provider | ready by | asked at | does differently |", "|---|---|---|---|"]
    for known in KNOWN:
        variables = " or ".join(f"`{name}`" for name in (known.variable, known.url_variable) if name)
        rows.append(f"| {known.name} | {variables} | `{known.base_url}` | {_differently(known)} |")
    ends = ["| finish reason | the provider's words |", "|---|---|"]
    ends += [f"| `{reason}` | {words(text)} |" for reason, text in FINISH_REASONS.items()]
    ends += [f"| failed: {why} | {words(text)} |" for why, text in FAILED_FINISHES.items()]
    errors = ["| error | why | the provider's words |", "|---|---|---|"]
    for failure, text in ERRORS.items():
        errors.append(f"| `{failure.error.code}` | {failure.why} | {words(text)} |")
    return (
        "# Providers\n\nMade from the code by `make docs`. A server that is not listed is a section "
        "`[providers.<name>]` of `millstream.toml`, and what it does differently a section "
        "`[providers.<name>.quirks]` ([settings](settings.md)).\n\n"
        + "\n".join(rows)
        + "\n\n## How answers end\n\nWords are compared in small letters, with `_` for every run of other "
        "characters. A finish reason that is not here counts as `stop`; the receipt has its word, and the "
        "log says so once.\n\n"
        + "\n".join(ends)
        + "\n\n## How they fail\n\nA word that says why wins over an HTTP status, and a status over a word "
        "that does not. An error without either is `upstream_error`. That a conversation is too long, or "
        "that credit is used up, is known by some messages as well.\n\n" + "\n".join(errors) + "\n"
    )


def _differently(known: "KnownProvider") -> str:
    differences = _quirks(known.quirks)
    if known.type == "openai":
        return differences
    there = f"; at `{known.openai_url}` OpenAI's, and there {differences}" if known.openai_url else ""
    return f"speaks its own protocol{there}"


def _quirks(quirks: "Quirks") -> str:
    """What differs from the defaults, in words."""
    from millstream.providers.known import Quirks

    said = []
    if not quirks.stream_options:
        said.append("takes no `stream_options`")
    said += [f"calls `{field}` `{theirs}`" for field, theirs in quirks.renamed.items()]
    if quirks.refused:
        said.append("refuses " + ", ".join(f"`{field}`" for field in quirks.refused))
    if quirks.developer_role:
        said.append("knows the role `developer`")
    if not quirks.text_parts:
        said.append("takes a message's text whole, not in parts")
    if not quirks.user_after_tool:
        said.append("takes no user behind results of tools")
    if quirks.short_call_ids:
        said.append("takes ids of tool calls of nine letters and digits only")
    if quirks.longest_call_id is not None:
        said.append(f"takes ids of tool calls of up to {quirks.longest_call_id} characters")
    if quirks.reasoning_field is None:
        said.append("refuses the reasoning of earlier answers")
    elif quirks.reasoning_field != Quirks().reasoning_field:
        said.append(f"takes the reasoning of earlier answers as `{quirks.reasoning_field}`")
    if not quirks.extra_content:
        said.append("takes no `extra_content` back")
    if quirks.reasoning_beside:
        said.append("counts reasoning beside the completion")
    said += [f"ends with `{word}` for {meaning}" for word, meaning in quirks.ends.items()]
    if quirks.pings:
        said.append("sends signs of life")
    return "; ".join(said)


def nextjs_guide() -> str:
    """The guide with the example's files as they are: what it tells to write is what the tests use."""
    guide = (ROOT / "docs/guides/nextjs.md").read_text(encoding="utf-8")

    def block(found: re.Match[str]) -> str:
        path = f"examples/nextjs/{found['path']}"
        code = (ROOT / path).read_text(encoding="utf-8").strip("\n")
        return f"`{found['path']}`:\n\n```{found['language']}\n{code}\n```\n"

    pattern = r"^`(?P<path>app/[\w./]+)`:\n\n```(?P<language>\w+)\n.*?^```\n"
    return re.sub(pattern, block, guide, flags=re.MULTILINE | re.DOTALL)


SOURCE = ROOT / "src" / "millstream"

# From the outside in, as the layers of pyproject.toml.
ROOMS = (
    ("outside", ("cli", "terminal", "testing")),
    ("the server, the only package that knows FastAPI", ("server",)),
    ("settings, and everything that runs", ("runtime", "settings")),
    ("streams", ("streams",)),
    (
        "models and their metering",
        ("catalog", "listings", "routing", "model_names", "meter", "exporters", "traces"),
    ),
    ("providers", ("providers", "http")),
    ("wire formats", ("dialects", "messages", "bodies")),
    ("journals", ("journals",)),
    ("the ledger", ("ledger", "limits", "prices", "tokens")),
    ("who is asking", ("auth", "api_keys", "signing", "tickets")),
    ("the database", ("database", "schema", "driver", "driver_words", "private_files", "threads")),
    ("for programs that call a server", ("client",)),
    (
        "words",
        (
            "answer",
            "events",
            "prompt",
            "crossing",
            "usage",
            "errors",
            "log_ids",
            "deadlines",
            "data_urls",
            "sse",
        ),
    ),
)
_NOT_LISTED = ("__main__", "version", "migrations")


def architecture() -> str:
    """The page with its list of modules, each with the first sentence of its own docstring."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = {name for _, names in ROOMS for name in names}
    found = {
        path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    if missing := sorted(found - listed - {"__init__", *_NOT_LISTED}):
        raise SystemExit(f"ROOMS of tools/generate.py has no place for {', '.join(missing)}")
    lines = []
    for title, names in ROOMS:
        lines += [f"**{title}**", "", "| module | what it does |", "|---|---|"]
        for name in names:
            folder = SOURCE / name
            modules = sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCE / f"{name}.py"]
            lines += [f"| `{_module(path)}` | {_first_sentence(path)} |" for path in modules]
        lines.append("")
    made = "\n".join(lines).strip()
    pattern = r"(?<=<!-- modules -->\n).*(?=<!-- /modules -->)"
    return re.sub(pattern, lambda _: f"\n{made}\n\n", page, flags=re.DOTALL)


def _module(path: Path) -> str:
    name = path.relative_to(SOURCE).as_posix()
    return name.removesuffix("__init__.py") if name.endswith("__init__.py") else name


def _first_sentence(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(doc.partition("\n\n")[0].split())
    sentence = re.match(r".*?[.:](?=\s+[A-Z])|.*", paragraph)
    assert sentence is not None
    return sentence[0].rstrip(".:").replace("``", "`").replace("|", "\\|")


# What the reference of the Python API shows: modules, and of each the names.
PUBLIC = {
    "millstream": (
        "Millstream", "create_app", "EXPOSED_HEADERS", "Settings", "require_api_key", "require_principal",
        "get_api_key", "get_llm_service", "get_meter", "Principal", "ChatRequest", "ChatMessage",
        "LLMService", "ChunkResponse", "Meter",
    ),
    "millstream.runtime": ("Runtime",),
    "millstream.auth": ("Keys",),
    "millstream.api_keys": ("ApiKey", "Changes"),
    "millstream.client": ("AsyncClient", "Frame", "Failure", "ToolCallPiece", "Unreachable"),
    "millstream.prompt": ("Prompt", "Message", "Tool", "OutputFormat"),
    "millstream.providers": (
        "Provider", "Produced", "Said", "Finish", "ToolCallPiece", "PartOpen", "PartBreak", "InChoice",
        "UsageReport",
    ),
    "millstream.events": ("TextDelta", "ReasoningDelta", "RefusalDelta", "AnswerStart"),
    "millstream.errors": (
        "MillstreamError", "Unauthorized", "Forbidden", "ProviderError", "UpstreamError", "UpstreamRefused",
        "RequestRefused", "PromptTooLong", "UpstreamRateLimited", "UpstreamTimeout", "UpstreamModelNotFound",
        "ConfigurationError", "Misuse",
    ),
    "millstream.testing": ("answering", "create_key"),
    "millstream.journals": ("Journal",),
    "millstream.dialects": ("Dialect",),
    "millstream.usage": ("Usage", "Bill"),
}  # fmt: skip


def python_reference() -> str:
    """The public names, from their own docstrings."""
    import millstream

    pages = [
        "# Python\n\nMade from the code's own docstrings by `make docs`. What is not here is internal, and "
        "may change with any version. Errors are in [spec/protocol.md](../../spec/protocol.md) §8.\n"
    ]
    for module, names in PUBLIC.items():
        pages.append(f"## {module}\n")
        for name in names:
            home = getattr(millstream, "_HOMES")[name] if module == "millstream" else module[11:]  # noqa: B009
            pages.append(_described(_file(home), name))
    return "\n".join(pages)


def _file(module: str) -> Path:
    path = SOURCE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _described(path: Path, name: str) -> str:
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
            return _class(text, node) if isinstance(node, ast.ClassDef) else _function(text, node, "### ")
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return _value(text, node, name)
    raise SystemExit(f"{path.name} has no {name}")


def _value(text: str, node: ast.AnnAssign, name: str) -> str:
    """What it stands for or its type, and the comment above it."""
    above = reversed(text.splitlines()[: node.lineno - 1])
    comment = [line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("# "), above)]
    kind = ast.unparse(node.annotation)
    code = f"{name}: {kind}"
    if kind == "TypeAlias" and node.value is not None:
        code = f"{name} = {ast.unparse(node.value)}"
    prose = _prose("\n".join(reversed(comment))) + "\n" if comment else ""
    return f"### `{name}`\n\n{prose}```python\n{code}\n```\n"


def _class(text: str, node: ast.ClassDef) -> str:
    bases = [ast.get_source_segment(text, base) or "" for base in node.bases]
    shown = ", ".join(base for base in bases if not base.startswith("_") and base != "Struct")
    parts = [f"### `{node.name}`" + (f" ({shown})" if shown else "") + "\n"]
    if doc := ast.get_docstring(node):
        parts.append(_prose(doc))
    fields = [
        re.sub(r"\s+", " ", ast.get_source_segment(text, item) or "")
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.target.id[0] != "_"
    ]
    if node.name == "Settings":
        parts.append("Its fields are the [settings](settings.md).\n")
    elif fields:
        parts.append("```python\n" + "\n".join(fields) + "\n```\n")
    parts += [
        _function(text, item, "#### ")
        for item in node.body
        if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (item.name == "__init__" or (item.name[0] != "_" and ast.get_docstring(item)))
    ]
    return "\n".join(parts)


def _function(text: str, node: ast.FunctionDef | ast.AsyncFunctionDef, heading: str) -> str:
    """The signature as it is written, and the docstring."""
    lines = text.splitlines()[node.lineno - 1 : node.body[0].lineno]
    signature = ""
    for line in lines:
        signature += line.strip() + " "
        if line.rstrip().endswith((":", ": ...")):
            break
    signature = re.sub(r"\(\s+", "(", re.sub(r",?\s+\)", ")", signature.strip()))
    signature = signature.removesuffix(" ...").removesuffix(":")
    if any(isinstance(item, ast.Name) and item.id == "property" for item in node.decorator_list):
        signature = signature.removeprefix("def ").replace("(self) ->", ":")
    doc = ast.get_docstring(node)
    return f"{heading}`{signature}`\n" + (f"\n{_prose(doc)}" if doc else "")


def _prose(doc: str) -> str:
    """A docstring as Markdown: names in single quotes of code, indented text as code."""
    blocks = []
    for block in doc.split("\n\n"):
        if block.startswith("    "):
            code = "\n".join(line[4:] for line in block.splitlines())
            blocks.append(f"```python\n{code}\n```")
        else:
            blocks.append(block.replace("``", "`"))
    return "\n\n".join(blocks) + "\n"


def _plain(value: object) -> str:
    return "none" if value is None or isinstance(value, (dict, tuple)) else str(value)


FILES = {
    "ARCHITECTURE.md": architecture,
    "spec/events.schema.json": event_schema,
    "docs/guides/nextjs.md": nextjs_guide,
    "docs/reference/command-line.md": command_line,
    "docs/reference/providers.md": providers_reference,
    "docs/reference/python.md": python_reference,
    "docs/reference/settings.md": settings_reference,
}


def main() -> int:
    stale = []
    for name, make in FILES.items():
        path, text = ROOT / name, make()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"out of date: {', '.join(stale)}; run: make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
