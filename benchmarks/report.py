"""Measures Millstream beside nginx and the tutorial's code in one run and writes the top of RESULTS.md.

    python benchmarks/report.py [--peers] [TARGET ...]

With ``--peers`` also beside the other gateways that `make peers` has installed.

Takes about eight minutes. CPU figures hold on a noisy machine, since they do not count waiting; compare them
with those of nginx and lean-asgi in the same table, which tell how fast the machine was at the time.
"""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from targets import PEERS

HERE = Path(__file__).resolve().parent
PACKAGES = ["millstream", "fastapi", "uvicorn", "uvloop", "httptools", "msgspec", "sqlalchemy", "openai"]


def main() -> None:
    targets = [name for name in sys.argv[1:] if name != "--peers"] or [
        "direct",
        "nginx",
        "lean-asgi",
        "tutorial",
        "millstream",
    ]
    if "--peers" in sys.argv:
        targets += [name for name in PEERS if (HERE.parent / ".venv-peers" / name).exists()]
    rows = HERE / "results.jsonl"
    rows.unlink(missing_ok=True)
    subprocess.run([sys.executable, "measure.py", *targets, "--out", str(rows)], cwd=HERE, check=True)
    table = subprocess.run(
        [sys.executable, "measure.py", "--table", str(rows)],
        cwd=HERE,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    processor = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    loads = [json.loads(line)["host_load"] for line in rows.read_text().splitlines()]
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    results = HERE / "RESULTS.md"
    _, heading, kept = results.read_text().partition("\n## Under attack")
    held = subprocess.run(
        [sys.executable, "memory.py"], cwd=HERE, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    results.write_text(
        f"# Results\n\nWritten by `make bench` on {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores of "
        f"{processor}, shared with the load and the provider; Python {platform.python_version()}, "
        f"{versions}. One worker process each. Load of the machine at the ends: {min(loads):.1f} to "
        f"{max(loads):.1f}.\n\n`millstream` runs on its defaults: with a key checked, a durable ledger row, "
        "the journal and its positions. `lean-asgi` relays bytes and does nothing else: the floor of this "
        "server in Python. `tutorial` is the widely copied endpoint. `direct` is the load straight at the "
        f"provider: the floor of the harness itself.\n\n{table}\n"
        f"## What an open silent stream holds\n\nKB (1000 bytes) a stream of `millstream`, "
        "which `benchmarks/memory.py` finds inside the process: by the module whose line asked for it, "
        "and by type.\n\n"
        f"{held}{heading}{kept}"
    )
    print(table)


if __name__ == "__main__":
    main()
