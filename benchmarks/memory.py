"""What an open silent stream holds, by module and by type.

    python benchmarks/memory.py [STREAMS] [--lines]

Runs Millstream in this process, on its defaults, and opens streams to it over sockets, whose provider has
said its first words and waits. Prints two tables, in KB (1000 bytes) a stream: what Python allocated, by the
module whose line asked for it (tracemalloc; with ``--lines``, by line), and how many objects of which type
there are and what they take (the collector's list, and what the objects on it refer to).

What C libraries allocate by themselves is in neither, such as the handles of libuv. Tracing makes everything
slower; ``measure.py --only memory`` has the figure that counts, as the system sees it.
"""

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import urllib.request
from collections import Counter
from contextlib import redirect_stdout, suppress
from pathlib import Path

from measure import free_port, markdown
from targets import BODY

HERE = Path(__file__).resolve().parent
STREAMS = 500
SHOWN = 24
WARM_UP = 50  # streams that come and go before the first look
PATIENCE_SECONDS = 20.0

Sizes = Counter[str]


def modules(before: tracemalloc.Snapshot, after: tracemalloc.Snapshot, *, lines: bool) -> Sizes:
    """Bytes allocated between the two that are still there."""
    grown: Sizes = Counter()
    for change in after.compare_to(before, "lineno" if lines else "filename"):
        frame = change.traceback[0]
        name = frame.filename.partition("site-packages/")[2] or frame.filename.partition("src/")[2]
        name = name or frame.filename.rpartition("lib/")[2]
        grown[f"{name}:{frame.lineno}" if lines else name] += change.size_diff
    return grown


def types() -> tuple[Sizes, Sizes]:
    """How many objects of each type there are, and their bytes."""
    seen: set[int] = set()
    count: Sizes = Counter()
    size: Sizes = Counter()
    tracked = gc.get_objects()
    for item in tracked + gc.get_referents(*tracked):
        if id(item) not in seen:
            seen.add(id(item))
            name = f"{type(item).__module__}.{type(item).__qualname__}".removeprefix("builtins.")
            count[name] += 1
            size[name] += sys.getsizeof(item)
    return count, size


class Streams:
    """Streams of a client in another process, opened and closed."""

    def __init__(self, url: str, key: str, provider: str, count: int) -> None:
        self._stats = f"{provider}/stats"
        self._count = count
        self._before = self._open()
        command = [sys.executable, str(HERE / "load.py"), f"{url}/v1/chat/stream"]
        command += ["--model", "mock-9x600000", "--body", BODY, "--streams", str(count), "--ramp", "3"]
        command += ["-H", f"Authorization: Bearer {key}", "--timeout", "600"]
        self._load = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def _open(self) -> int:
        with urllib.request.urlopen(self._stats, timeout=10) as answer:
            return sum(row["state"] == "open" for row in json.load(answer)["tags"])

    def opened(self) -> None:
        """Returns when all are, and have had their first words."""
        self._wait(self._before + self._count)

    def close(self) -> None:
        self._load.kill()
        self._load.wait()
        self._wait(self._before)

    def _wait(self, count: int) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while self._open() != count:
            if time.monotonic() > until:
                raise RuntimeError(f"{self._open()} streams are open, not {count}")
            time.sleep(0.1)
        time.sleep(1)


def look(url: str, key: str, provider: str, count: int, *, lines: bool) -> str:
    """The tables."""
    while True:
        with suppress(OSError), urllib.request.urlopen(f"{url}/healthz", timeout=5):
            break
        time.sleep(0.1)
    few = Streams(url, key, provider, WARM_UP)
    few.opened()
    few.close()
    gc.collect()
    before, (counts, sizes) = tracemalloc.take_snapshot(), types()
    many = Streams(url, key, provider, count)
    many.opened()
    gc.collect()
    after = tracemalloc.take_snapshot()
    by_module = modules(before, after, lines=lines)
    del before, after
    now_counts, now_sizes = types()
    many.close()
    by_type = table("type", now_sizes - sizes, count, now_counts - counts)
    return f"{table('line' if lines else 'module', by_module, count)}\n\n{by_type}"


def table(what: str, sizes: Sizes, streams: int, counts: Sizes | None = None) -> str:
    rows = [
        {"name": name, "size": size / streams, "count": (counts or Counter())[name] / streams}
        for name, size in sizes.most_common(SHOWN)
    ]
    rows.append({"name": "all", "size": sum(sizes.values()) / streams, "count": 0})
    columns = {what: lambda r: r["name"], "KB a stream": lambda r: f"{r['size'] / 1000:.2f}"}
    if counts:
        columns["objects a stream"] = lambda r: f"{r['count']:.1f}" if r["count"] else ""
    return markdown(rows, columns)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("streams", nargs="?", type=int, default=STREAMS)
    parser.add_argument("--lines", action="store_true")
    args = parser.parse_args()
    port, upstream_port = free_port(), free_port()
    provider = f"http://127.0.0.1:{upstream_port}"
    os.environ |= {"OPENAI_BASE_URL": f"{provider}/v1", "OPENAI_API_KEY": "x", "NO_PROXY": "*"}
    from millstream.server.process.serve import serve
    from millstream.settings import Settings

    tables: list[str] = []
    upstream = subprocess.Popen([sys.executable, HERE / "upstream.py", "--port", str(upstream_port)])
    try:
        with tempfile.TemporaryDirectory() as folder:
            create = [sys.executable, "-m", "millstream", "keys", "create", "--name", "bench"]
            key = subprocess.check_output([*create, "--data-dir", folder], text=True).strip()
            url = f"http://127.0.0.1:{port}"

            def look_and_leave() -> None:
                try:
                    tables.append(look(url, key, provider, args.streams, lines=args.lines))
                finally:
                    os.kill(os.getpid(), signal.SIGTERM)  # as whoever stops a server

            tracemalloc.start()
            looking = threading.Thread(target=look_and_leave)
            looking.start()
            with redirect_stdout(sys.stderr):
                serve(Settings(port=port, data_dir=Path(folder), log_level="error"))
            looking.join()
            print("".join(tables))
    finally:
        upstream.terminate()
        upstream.wait()


if __name__ == "__main__":
    main()
