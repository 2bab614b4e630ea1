"""Where the processor time of an event and of a request goes, line by line.

    python benchmarks/hot_lines.py [TARGET ...]

Runs Millstream, or other targets in Python, as measure.py does, under three loads: 100 streams of 20 events a
second, 8 clients that start streams of one word, and one client that does. First the kernel counts the
processor time of each thread. Then py-spy looks at the worker, for as long, 500 times a second, at threads
that are on a processor; a thread's time is shared out among the lines at which it was found.

A look finds the innermost line of ours, and what runs below it: a library's line, or what is in C, which
counts for the line that called it (a write to a socket, a decoder, a step of the event loop). Some looks find
a thread that has just begun to wait, so lines that wait for work get too much, and all others too little.
"""

import argparse
import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import uvloop

from load import Load
from measure import Row, Run, markdown, measure, tree

RATE = 500  # looks a second
LINES, MODULES = 30, 20  # of each table
SECONDS = 15.0

_WARM_UP_SECONDS = 3.0
_AROUND_SECONDS = 18.0  # the warm-up, and what py-spy needs until it looks
_LEAST_US = 0.1
_THREAD = re.compile(r"thread \((?P<id>\d+)\)")
_OURS = re.compile(r"/src/millstream/|/bench-[\w-]+/|/benchmarks/targets/")
_FRAME = re.compile(r"(?P<name>.+) \((?P<file>[^()]*):(?P<line>\d+)\)")


Place: TypeAlias = tuple[str, str]  # a line of ours, and what it was in


class Spent(NamedTuple):
    """Processor time of one event or request, in µs, by the thread and the place where it went."""

    by: dict[str, Counter[Place]]

    @property
    def us(self) -> float:
        return sum(places.total() for places in self.by.values())

    def table(self, name: Callable[[str], str], most: int) -> str:
        """By what ``name`` makes of a line, the ``most`` of all."""
        places: Counter[str] = Counter()
        below: dict[str, Counter[str]] = {}
        for looks in self.by.values():
            for (line, inside), us in looks.items():
                places[name(line)] += us
                below.setdefault(name(line), Counter())[inside] += us
        shown = places.most_common(most)
        rows = [_row(us, place, below[place]) for place, us in shown]
        rest = places.total() - sum(us for _, us in shown)
        rows.append(_row(rest, f"{len(places) - len(shown)} more", Counter()))
        threads = Counter({thread: looks.total() for thread, looks in self.by.items()})
        rows.append(_row(self.us, "all", threads))
        return markdown(rows, {column: itemgetter(column) for column in ("us", "where", "of which")})


def _line(line: str) -> str:
    return line


def _module(line: str) -> str:
    return line.partition(":")[0]


def _row(us: float, where: str, shares: Counter[str]) -> Row:
    return {"us": f"{us:.1f}", "where": where, "of which": _list(shares)}


def _list(shares: Counter[str]) -> str:
    return ", ".join(f"{name} {us:.1f}" for name, us in shares.most_common(3) if name and us >= _LEAST_US)


def _read(stacks: Iterable[str]) -> dict[int, Counter[Place]]:
    """py-spy's stacks, outermost frame first, each with how often it was seen: of each thread."""
    looks: dict[int, Counter[Place]] = {}
    for stack in stacks:
        frames, _, count = stack.rpartition(" ")
        thread, _, frames = frames.partition(";")
        found = [match for frame in frames.split(";") if (match := _FRAME.fullmatch(frame))]
        numbered = _THREAD.match(thread)
        if numbered is None or not found:
            continue
        ours = next((frame for frame in reversed(found) if _OURS.search(frame["file"])), None)
        inside = "" if found[-1] is ours else _shown(found[-1])
        place = ("no line of ours" if ours is None else _shown(ours), inside)
        looks.setdefault(int(numbered["id"]), Counter())[place] += int(count)
    return looks


def _shown(frame: re.Match[str]) -> str:
    file = frame["file"]
    for root in ("/src/", "/site-packages/", "/lib/python"):
        if root in file:
            file = file.partition(root)[2]
    return f"{file}:{frame['line']} {frame['name']}"


def _threads(pid: int) -> dict[int, float]:
    """Processor time of each thread so far, in µs."""
    return {
        int(task.name): int((task / "schedstat").read_text().split()[0]) / 1e3
        for task in Path(f"/proc/{pid}/task").iterdir()
    }


def _spent(took: dict[int, float], stacks: Iterable[str]) -> Spent:
    looks, unseen = _read(stacks), Counter({("no line was seen", ""): 1})
    by: dict[str, Counter[Place]] = {}
    for thread, us in took.items():
        seen = looks.get(thread, unseen)
        shares = by.setdefault("event loop" if thread == min(took) else "other threads", Counter())
        for place, count in seen.items():
            shares[place] += us * count / seen.total()  # type: ignore[assignment]
    return Spent(by)


class Watched(Run):
    """A run that is looked at."""

    async def look(self, load: Load, counted: str) -> Spent:
        worker = max(tree(self.pid), key=lambda process: sum(process.cpu_times()[:2]))
        with tempfile.NamedTemporaryFile(mode="r") as stacks:
            task = asyncio.create_task(load.run())
            await asyncio.sleep(_WARM_UP_SECONDS)
            before, had = _threads(worker.pid), _count(load, counted)
            await asyncio.sleep(SECONDS)
            after, many = _threads(worker.pid), _count(load, counted) - had
            spy = await asyncio.create_subprocess_exec(
                *(_spy(), "record", "--pid", str(worker.pid), "--rate", str(RATE)),
                *("--duration", f"{SECONDS:g}", "--threads", "--format", "raw", "--full-filenames"),
                *("--output", stacks.name),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            await spy.wait()
            await task
            return _spent({n: (us - before.get(n, 0.0)) / many for n, us in after.items()}, stacks)

    async def all(self, only: list[str] | None) -> None:
        whole = 2 * SECONDS + _AROUND_SECONDS
        events = self.load(f"mock-{round(whole * 20)}x50-ts", streams=100, ramp=1.5, timeout=whole + 9)
        self.got["an event, 100 streams of 20 a second"] = await self.look(events, "latency")
        for clients in (8, 1):
            load = self.load("mock-1x0", streams=clients, seconds=whole, timeout=whole + 9)
            self.got[f"a request, {clients} at a time"] = await self.look(load, "ok")


def _count(load: Load, counted: str) -> int:
    value: Any = getattr(load, counted)
    return value if isinstance(value, int) else len(value)


def _spy() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise SystemExit("py-spy is not installed; run: make test-deps")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", default=["millstream"], metavar="TARGET")
    args = parser.parse_args()
    _spy()
    for target in args.targets:
        got = uvloop.run(measure(target, argparse.Namespace(only=None), Watched))
        for name, spent in got.items():
            if isinstance(spent, Spent):
                print(f"## {target}: {name}, {spent.us:.0f} µs\n")
                print(f"{spent.table(_module, MODULES)}\n\n{spent.table(_line, LINES)}\n", flush=True)


if __name__ == "__main__":
    main()
