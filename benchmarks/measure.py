"""Measure streaming gateways against the mock upstream; targets.py has the table of them.

    python measure.py naive [litellm ...] [--out results.jsonl] [--only ladder,leave]
    python measure.py --table results.jsonl

Starts upstream.py and the gateway, runs the scenarios below for at most about three minutes
per target, appends one JSON line per target to --out and prints a table. "direct" runs the
load straight against the upstream and is the floor of the harness itself.

    start     process start -> first complete stream answered
    idle      RSS of the process tree after warm-up, and CPU while nobody asks anything
    ttft      one client, one stream after another: time to the first event
    request   8 keep-alive clients, streams of one content chunk: CPU per request, requests/s
    memory    RSS per open stream that has had its first event and waits for the next; then all
              1000 clients go at once: time until it is idle and serves again, and how many
              streams it still holds open upstream
    ladder    25/100/500/1000 streams x 20 events/s: CPU per event and the delay each event
              picked up on the way; stops at the first level that is saturated
    burst     16 clients, streams of 2000 chunks as fast as sockets take them: events/s
    leave     client leaves -> upstream sees its connection closed:
                streaming  an event every 100 ms;  silent  nothing to relay for 7 s;
                waiting    the upstream has not answered at all yet
    broken    the upstream cuts a stream in the middle: what the client is told

CPU is user+sys of every thread of the gateway's process tree, from /proc/*/task/*/schedstat
(the same clock as /proc/PID/stat, in ns), over a window in the middle of a scenario, so
neither process start nor connection set-up is in the per-event numbers.
"Saturated": the gateway used over 90% of the CPU it can use, or passed on under 90% of the
events it should, or its p99 delay passed a second. Latencies of such levels say nothing.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import psutil
import uvloop

from load import BODY, Load
from targets import TARGETS

Row: TypeAlias = dict[str, Any]  # one JSON object: what was measured of a target, or a part of that
Column: TypeAlias = Callable[[Row], object]  # what a row has in a column of the table

HERE = Path(__file__).resolve().parent


def free_port() -> int:
    """Never a fixed one: another program's server on it would get our load."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


UPSTREAM_PORT, PORT = free_port(), free_port()
STATS = f"http://127.0.0.1:{UPSTREAM_PORT}"


# -- processes ------------------------------------------------------------------------------
def tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_s(pid: int) -> float:
    """CPU seconds used so far by the live threads of the process tree."""
    total = 0
    for process in tree(pid):
        try:
            for task in os.scandir(f"/proc/{process.pid}/task"):
                total += int(Path(task.path, "schedstat").read_bytes().split()[0])
        except OSError:
            pass
    return total / 1e9


def rss_mb(pid: int) -> float:
    total = 0
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 1e6


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the processes we started, by id."""
    ours = tree(process.pid)
    for p in ours:
        with contextlib.suppress(psutil.NoSuchProcess):
            p.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(ours, timeout=5)
    for p in alive:
        p.kill()
    process.wait()


async def stats() -> Row:
    def get() -> Row:
        with urllib.request.urlopen(STATS + "/stats", timeout=10) as answer:
            row: Row = json.load(answer)
            return row

    return await asyncio.to_thread(get)


# -- scenarios ------------------------------------------------------------------------------
class Fill(Protocol):
    def __call__(self, text: str, **more: str) -> str: ...


class Run:
    work: Path  # the scratch folder of a gateway

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.target, self.pid = name, TARGETS[name], pid
        self.cores = self.target.get("cores", 1)
        self.port = UPSTREAM_PORT if name == "direct" else PORT
        self.fill: Callable[[str], str] = lambda text: text
        self.got: Row = {"target": name}

    def load(self, model: str, **options: Any) -> Load:
        t = self.target
        headers = {k: self.fill(v) for k, v in t["headers"].items()}
        return Load(
            f"http://127.0.0.1:{self.port}{t['path']}",
            model=t.get("model", "%s") % model,
            headers=headers,
            body=t.get("body", BODY),
            **options,
        )

    async def window(self, load: Load, begin: float, length: float) -> dict[str, float]:
        """Runs the load; CPU, events and latencies of the given part of it."""
        task = asyncio.create_task(load.run())
        await asyncio.sleep(begin)
        t0, cpu0, e0, l0, ok0 = (time.monotonic(), cpu_s(self.pid), load.events, len(load.latency), load.ok)
        await asyncio.sleep(length)
        t1, cpu1, e1, l1, ok1 = (time.monotonic(), cpu_s(self.pid), load.events, len(load.latency), load.ok)
        active = load.active
        await task
        load.latency = load.latency[l0:l1]
        return {
            "seconds": t1 - t0,
            "cpu": cpu1 - cpu0,
            "events": e1 - e0,
            "contents": l1 - l0,
            "ok": ok1 - ok0,
            "active": active,
        }

    async def ready(self, gateway: subprocess.Popen[bytes], started: float) -> None:
        """Waits for the first stream that comes through whole."""
        limit = started + self.target.get("ready_s", 60)
        setup = self.target.get("setup")  # (path, JSON) of one request to send first
        while time.monotonic() < limit:
            if gateway.poll() is not None:
                break
            try:
                if (self.work / "port").exists():  # a gateway that picks its own
                    self.port = int((self.work / "port").read_text())
                _, w = await asyncio.open_connection("127.0.0.1", self.port)
                w.close()
                if setup:
                    await asyncio.to_thread(self.post, *setup)
                    setup = None
                load = self.load("mock-1x0", min_events=2, timeout=5, sample=True)
                await load.run()
                if load.ok:
                    self.got["ready_s"] = round(time.monotonic() - started, 2)
                    return
                self.got["not_ready"] = [dict(load.errors), load.sample[:300].decode()]
            except OSError:
                pass
            await asyncio.sleep(0.05)
        raise SystemExit(f"{self.name}: not ready: {self.got.get('not_ready')}")

    def post(self, path: str, body: Row) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", **self.target["headers"]},
        )
        urllib.request.urlopen(request, timeout=10).close()

    async def wire(self) -> None:
        load = self.load("mock-3x0", sample=True)
        await load.run()
        text = load.sample.decode()
        self.got["wire"] = {
            "head": text[:420],
            "tail": text[-700:],
            "events": load.events,
            "usage": "completion_tokens" in text,
            "done": "[DONE]" in text,
        }
        load = self.load("mock-100x5-die50", sample=True, timeout=10)
        await load.run()
        self.got["broken"] = {
            "events": load.events,
            "ok": load.ok,
            "errors": dict(load.errors),
            "tail": load.sample[-400:].decode(),
        }

    async def idle(self) -> None:
        await self.load("mock-5x0", streams=8, seconds=2, cut_at_end=True).run()
        await asyncio.sleep(1)
        cpu, self.rss_idle = cpu_s(self.pid), rss_mb(self.pid)
        await asyncio.sleep(2)
        self.got["idle"] = {
            "rss_mb": round(self.rss_idle, 1),
            "cpu_percent": round((cpu_s(self.pid) - cpu) / 2 * 100, 2),
        }

    async def ttft(self) -> None:
        load = self.load("mock-3x5-ts", seconds=3)
        await load.run()
        self.got["ttft"] = load.report()["ttft_ms"]

    async def request(self) -> None:
        load = self.load("mock-1x0", streams=8, seconds=5, timeout=15)
        w = await self.window(load, 1, 3.5)
        r = load.report()
        self.got["request"] = {
            "cpu_us": round(w["cpu"] / w["ok"] * 1e6, 1) if w["ok"] else None,
            "per_s": round(w["ok"] / w["seconds"], 1),
            "ttft_ms": r["ttft_ms"],
            "busy": round(w["cpu"] / w["seconds"], 2),
            "failed": r["failed"],
            "errors": r["errors"],
        }

    async def ladder(self) -> None:
        self.got["ladder"] = []
        for streams in (25, 100, 500, 1000):
            load = self.load("mock-120x50-ts", streams=streams, ramp=1.5, timeout=12)
            w = await self.window(load, 2, 3.5)
            r = load.report()
            level: Row = {
                "streams": streams,
                "nominal": streams * 20,
                "events_per_s": round(w["contents"] / w["seconds"]),
                "cpu_us_per_event": round(w["cpu"] / max(1, w["contents"]) * 1e6, 2),
                "busy": round(w["cpu"] / w["seconds"], 2),
                "latency_ms": r["latency_ms"],
                "ttft_ms": r["ttft_ms"],
                "ok": r["ok"],
                "failed": r["failed"],
                "errors": r["errors"],
            }
            late = r["latency_ms"] is None or r["latency_ms"]["p99"] > 1000
            level["saturated"] = bool(
                level["busy"] > 0.9 * self.cores or late or level["events_per_s"] < 0.9 * level["nominal"]
            )
            self.got["ladder"].append(level)
            if level["saturated"]:
                break
            await asyncio.sleep(0.5)
        await asyncio.sleep(1)

    async def burst(self) -> None:
        load = self.load("mock-2000x0", streams=16, seconds=5.5, cut_at_end=True)
        w = await self.window(load, 1.5, 3.5)
        self.got["burst"] = {
            "events_per_s": round(w["events"] / w["seconds"]),
            "cpu_us_per_event": round(w["cpu"] / max(1, w["events"]) * 1e6, 2),
            "busy": round(w["cpu"] / w["seconds"], 2),
            "failed": load.failed,
            "errors": dict(load.errors),
        }
        await asyncio.sleep(1.5)

    async def memory(self) -> None:
        before = rss_mb(self.pid)
        load = self.load("mock-9x30000", streams=1000, ramp=5, timeout=60)
        task = asyncio.create_task(load.run())
        for _ in range(150):
            await asyncio.sleep(0.1)
            if len(load.ttft) + load.failed >= 1000:
                break
        await asyncio.sleep(0.5)
        after, opened = rss_mb(self.pid), len(load.ttft)
        cpu = cpu_s(self.pid)
        await asyncio.sleep(1)
        cpu = cpu_s(self.pid) - cpu
        load.leave_all()
        await task
        left = time.monotonic()  # all went at once: how long until it serves as before?
        while time.monotonic() < left + 30:
            probe = self.load("mock-1x0", min_events=2, timeout=5)
            await probe.run()
            used = cpu_s(self.pid)
            await asyncio.sleep(0.3)
            if probe.ok and probe.wall < 0.5 and cpu_s(self.pid) - used < 0.06:
                break
        left = time.monotonic() - left
        await asyncio.sleep(2)
        self.got["memory"] = {
            "recovery_s": round(left, 1),
            "still_upstream": len([r for r in (await stats())["tags"] if r["state"] == "open"]),
            "opened": opened,
            "errors": dict(load.errors),
            "kb_per_stream": round((after - before) * 1000 / max(1, opened), 1),
            "rss_mb": round(after, 1),
            "rss_after_mb": round(rss_mb(self.pid), 1),
            "cpu_percent_1000_silent": round(cpu * 100, 1),
        }

    async def leave(self) -> None:
        self.got["leave"] = {
            "streaming": await self.leaving("mock-80x100", 50, 5, {"close_after": 5}),
            "silent": await self.leaving("mock-3x7000", 20, 2, {"close_at": 0.5}),
            "waiting": await self.leaving("mock-3x20-ttft7000-noheaders", 20, 2, {"close_at": 0.5}),
        }

    async def leaving(self, model: str, n: int, ramp: float, how: Row) -> Row:
        """About ten clients a second come and go: little enough that no peer is saturated."""
        load = self.load(model, streams=n, ramp=ramp, timeout=30, **how)
        await load.run()
        rows: list[Row] = []
        for _ in range(90):
            rows = [r for r in (await stats())["tags"] if r["tag"] in load.closed]
            if len(rows) == n and all(r["state"] != "open" for r in rows):
                break
            await asyncio.sleep(0.1)
        took = sorted((r["end_ns"] - load.closed[r["tag"]]) / 1e6 for r in rows if r["state"] == "aborted")
        return {
            "n": n,
            "left": load.cut,
            "seen_upstream": len(rows),
            "aborted": len(took),
            "ran_to_end": sum(r["state"] == "finished" for r in rows),
            "p50_ms": round(took[len(took) // 2], 1) if took else None,
            "max_ms": round(took[-1], 1) if took else None,
        }

    async def all(self, only: list[str] | None) -> None:
        for step in (
            self.wire,
            self.idle,
            self.ttft,
            self.request,
            self.memory,
            self.ladder,
            self.burst,
            self.leave,
        ):
            if only and step.__name__ not in only:
                continue
            started = time.monotonic()
            try:
                await step()
            except Exception as error:  # a broken peer must not end the run
                self.got[step.__name__] = {"error": repr(error)}
            print(
                f"  {self.name} {step.__name__}: {time.monotonic() - started:.1f}s "
                f"{json.dumps(self.got.get(step.__name__))[:400]}",
                file=sys.stderr,
            )


def filler(work: Path) -> Fill:
    """The function that fills in the @NAMES@ of targets.py."""
    names = {
        "@UP@": f"127.0.0.1:{UPSTREAM_PORT}",
        "@PORT@": str(PORT),
        "@WORK@": str(work),
        "@HERE@": str(HERE / "targets"),
        "@BENCH@": str(HERE),
        "@PEERS@": str(HERE.parent / ".venv-peers"),
        "@PYTHON@": sys.executable,
    }

    def fill(text: str, **more: str) -> str:
        names.update({f"@{name}@": value for name, value in more.items()})
        return re.sub(r"@[A-Z]+@", lambda m: names[m[0]], text)

    return fill


async def measure(name: str, args: argparse.Namespace, kind: type[Run] = Run) -> Row:
    target = TARGETS[name]
    upstream = subprocess.Popen([sys.executable, HERE / "upstream.py", "--port", str(UPSTREAM_PORT)])
    await asyncio.sleep(0.7)
    if upstream.poll() is not None:
        raise SystemExit("the mock upstream did not start")
    gateway = None
    began = time.monotonic()
    try:
        run = kind(name, upstream.pid)
        if target.get("cmd"):
            work = Path(tempfile.mkdtemp(prefix=f"bench-{name}-"))

            fill = run.fill = filler(work)
            for file in target.get("files", ()):
                found = next(
                    path for path in (HERE / "targets" / file, HERE / "peers" / file) if path.exists()
                )
                (work / file).write_text(fill(found.read_text()))
            env = {**os.environ, "NO_PROXY": "*", **{k: fill(v) for k, v in target.get("env", {}).items()}}
            if prepare := target.get("prepare"):
                key = subprocess.check_output(fill(prepare).split(), cwd=work, env=env, text=True)
                fill("", KEY=key.strip())
            command = fill(target["cmd"]).split()
            with (work / "log").open("wb") as log:
                started = time.monotonic()
                gateway = subprocess.Popen(command, cwd=work, env=env, stdout=log, stderr=log)
            run.pid = gateway.pid
            run.got["log"] = str(work / "log")
            run.work = work
            await run.ready(gateway, started)
        await run.all(args.only and args.only.split(","))
        run.got["took_s"] = round(time.monotonic() - began, 1)
        run.got["host_load"] = os.getloadavg()[0]
        return run.got
    finally:
        if gateway:
            stop(gateway)
        stop(upstream)


# -- table ----------------------------------------------------------------------------------
def get(row: Row, path: str) -> Any:
    found: Any = row
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def table(rows: list[Row]) -> str:
    def level(row: Row, streams: int) -> Row | None:
        return next((x for x in get(row, "ladder") or [] if x["streams"] == streams), None)

    def event_us(row: Row) -> Any:
        """CPU per event at 100 streams, or the highest level below it that ran."""
        levels = get(row, "ladder") or []
        best = level(row, 100) or (levels[-1] if levels else None)
        return best and best["cpu_us_per_event"]

    def top_us(row: Row) -> Any:
        levels = get(row, "ladder") or []
        return levels and f"{levels[-1]['cpu_us_per_event']} @{levels[-1]['events_per_s']}/s"

    def delays(row: Row, streams: int) -> str:
        x = level(row, streams)
        if not x or not x["latency_ms"]:
            return "-"
        return "saturated" if x["saturated"] else f"{x['latency_ms']['p50']}/{x['latency_ms']['p99']}"

    def gone(row: Row, kind: str) -> str:
        x = get(row, f"leave.{kind}") or {}
        if not x:
            return "-"
        if not x["aborted"]:
            return f"never (0/{x['n']})"
        note = "" if x["aborted"] == x["n"] else f" ({x['aborted']}/{x['n']})"
        return f"{x['p50_ms']}/{x['max_ms']}{note}"

    def broken(row: Row) -> str:
        """What a client is told when the upstream dies in the middle."""
        x = row.get("broken") or {}
        if not x:
            return "-"
        if "error" in x["tail"].split("data:")[-1] or '"error"' in x["tail"]:
            return "error event"
        return "cut connection" if x["errors"] else "nothing: a clean end"

    def pair(row: Row, path: str, first: str, second: str) -> str:
        x = get(row, path) or {}
        return f"{x[first]}/{x[second]}" if first in x and second in x else "-"

    speed: dict[str, Column] = {
        "target": lambda r: r["target"],
        "CPU us/event, 100 streams": event_us,
        "CPU us/event at the highest level": top_us,
        "CPU us/request": lambda r: get(r, "request.cpu_us"),
        "requests/s": lambda r: get(r, "request.per_s"),
        "burst events/s": lambda r: get(r, "burst.events_per_s"),
        "TTFT p50/p99 ms": lambda r: pair(r, "ttft", "p50", "p99"),
        **{f"delay {n} p50/p99 ms": partial(delays, streams=n) for n in (25, 100, 500, 1000)},
    }
    behaviour: dict[str, Column] = {
        "target": lambda r: r["target"],
        "ready s": lambda r: r.get("ready_s"),
        "RSS MB": lambda r: get(r, "idle.rss_mb"),
        "KB/stream": lambda r: get(r, "memory.kb_per_stream"),
        "1000 opened in 15 s": lambda r: get(r, "memory.opened"),
        "after they leave: s to recover/still upstream": lambda r: pair(
            r, "memory", "recovery_s", "still_upstream"
        ),
        "leave streaming p50/max ms": lambda r: gone(r, "streaming"),
        "leave silent": lambda r: gone(r, "silent"),
        "leave waiting": lambda r: gone(r, "waiting"),
        "upstream cut mid-stream": broken,
    }
    return "\n\n".join(markdown(rows, columns) for columns in (speed, behaviour))


FIGURES: dict[str, Column] = {
    "burst µs/event": lambda r: get(r, "burst.cpu_us_per_event"),
    "100 streams, 20/s, µs/event": lambda r: next(
        (x["cpu_us_per_event"] for x in get(r, "ladder") or [] if x["streams"] == 100), None
    ),
    "µs/request": lambda r: get(r, "request.cpu_us"),
    "first token p50 ms": lambda r: get(r, "ttft.p50"),
    "KB/stream": lambda r: get(r, "memory.kb_per_stream"),
}


def ratios(rows: list[Row], base: str = "millstream") -> str:
    """What others take, and in brackets how many times what ``base`` takes: over 1 is more."""
    own = next((row for row in rows if row["target"] == base), {})

    def cell(row: Row, figure: Column) -> str | None:
        value, ours = figure(row), figure(own)
        if not isinstance(value, int | float):
            return None
        return f"{value} ({value / ours:.2g}x)" if isinstance(ours, int | float) and ours else f"{value}"

    columns: dict[str, Column] = {"target": lambda r: r["target"]}
    columns |= {name: partial(cell, figure=figure) for name, figure in FIGURES.items()}
    return markdown(rows, columns)


def markdown(rows: list[Row], columns: dict[str, Column]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [f(row) for f in columns.values()]
        lines.append("| " + " | ".join("-" if c is None else str(c) for c in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--out", default="results.jsonl")
    parser.add_argument("--only", help="comma-separated scenarios")
    parser.add_argument("--table", metavar="FILE", help="print FILE's table, measure nothing")
    args = parser.parse_args()
    if args.table:
        last: dict[str, Row] = {}
        for line in Path(args.table).read_text().splitlines():
            row = json.loads(line)
            last.setdefault(row["target"], {}).update(row)
        print(table(list(last.values())))
        print(f"\nBeside `millstream`, which is 1x:\n\n{ratios(list(last.values()))}")
        return
    rows = []
    for name in args.targets:
        try:
            rows.append(uvloop.run(measure(name, args)))
        except SystemExit as error:
            print(error, file=sys.stderr)
            continue
        with Path(args.out).open("a") as out:
            out.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
