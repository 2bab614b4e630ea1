"""Writes the files that are made from the code; ``--check`` only says whether they are up to date.

python tools/generate.py [--check]
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

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
        ["keys"],
        ["keys", "create"],
        ["keys", "list"],
        ["keys", "revoke"],
        ["usage"],
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
    from millstream.settings import PriceSettings, ProviderSettings, Settings

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
        "`MILLSTREAM_`.\n\n"
        + table(Settings, lambda field: f"MILLSTREAM_{field.upper()}")
        + "\n\n## Providers\n\nThese variables make a provider ready by themselves: `OPENAI_API_KEY` (with "
        "`OPENAI_BASE_URL` for any other server that speaks its protocol; then the key may be left out), "
        "`GROQ_API_KEY`, `OPENROUTER_API_KEY`, `MISTRAL_API_KEY`, `DEEPSEEK_API_KEY`, `TOGETHER_API_KEY`, "
        "`XAI_API_KEY`, and `AZURE_OPENAI_ENDPOINT` with `AZURE_OPENAI_API_KEY`. Others are sections "
        "`[providers.<name>]` of the file:\n\n"
        + table(ProviderSettings, str)
        + '\n\n## Prices\n\nSections `[prices."<model>"]`, in US dollars per million tokens; they win '
        "over the list prices that ship with Millstream:\n\n" + table(PriceSettings, str) + "\n"
    )


def nextjs_guide() -> str:
    """The guide with the example's files as they are: what it tells to write is what the tests use."""
    guide = (ROOT / "docs/guides/nextjs.md").read_text(encoding="utf-8")

    def block(found: re.Match[str]) -> str:
        path = f"examples/nextjs/{found['path']}"
        code = (ROOT / path).read_text(encoding="utf-8").strip("\n")
        return f"`{found['path']}`:\n\n```{found['language']}\n{code}\n```\n"

    pattern = r"^`(?P<path>app/[\w./]+)`:\n\n```(?P<language>\w+)\n.*?^```\n"
    return re.sub(pattern, block, guide, flags=re.MULTILINE | re.DOTALL)


def _plain(value: object) -> str:
    return "none" if value is None or isinstance(value, (dict, tuple)) else str(value)


FILES = {
    "spec/events.schema.json": event_schema,
    "docs/guides/nextjs.md": nextjs_guide,
    "docs/reference/command-line.md": command_line,
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
