"""How long a provider's connection outlives the client it is read for, by how busy the worker is.

    python benchmarks/leaving.py [LEVEL ...]

Levels are idle, 85 (percent of the worker's time) and saturated; without any, all. Prints one line of JSON
each. A level first opens the streams that will be left, then adds others of 20 events a second until the
worker is as busy as it says; saturated has half as many again as fill it. Then a client leaves every 40 ms:
half of them in the middle of an answer, half while their provider is silent.

Whoever is measured is apart from whoever makes the load: the clients that leave, and the provider that notes
when it was closed, are processes with nothing else to do. On two cores the worker has one and all others the
second; as root, none of them waits for whatever else the machine does, and these two for nobody. The worker
takes starts whatever its lag is, else it could not be filled so far.
"""

import asyncio
import json
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from load import Load
from measure import free_port

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from live.conftest import Server, answers, running  # the path is set above
from services import wait_for

HERE = Path(__file__).resolve().parent
LEAVERS = 300
PAUSE_SECONDS = 0.04  # between two that leave
STEP = 20  # streams that are added at a time, or more
MOST_STREAMS = 2000
TRIES, NEAR = 25, 0.05
LEVELS = {"idle": 0.0, "85": 0.85, "saturated": 0.97}
MODELS = ("mock-9000x100", "mock-9x600000")  # of the quiet provider


def pin(cores: set[int]) -> None:
    """Only here; processes that are started from now on inherit it."""
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, cores)


def put_first(pid: int, priority: int = 1) -> None:
    with suppress(PermissionError):
        for thread in psutil.Process(pid).threads():
            os.sched_setscheduler(thread.id, os.SCHED_FIFO, os.sched_param(priority))


@contextmanager
def provider(priority: int = 1) -> Generator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, HERE / "upstream.py", "--port", str(port)])
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/v1/models"), process)
        put_first(process.pid, priority)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def fill(url: str, key: str, pipe: Connection) -> None:
    """Opens as many streams more as the pipe says; ends those that came last where it says -1, all for 0."""

    async def fill() -> None:
        loads: list[tuple[Load, asyncio.Task[Load]]] = []
        while count := await asyncio.to_thread(pipe.recv):
            if count < 0:
                load, _ = loads.pop()
                load.leave_all()
                continue
            load = Load(
                f"{url}/v1/chat/stream",
                model="load/mock-90000x50",
                body='{"model":"%MODEL%","messages":[{"role":"user","content":"x"}]}',
                headers={"Authorization": f"Bearer {key}"},
                streams=count,
                ramp=0.5,
                timeout=1000,
            )
            loads.append((load, asyncio.create_task(load.run())))
        for load, task in loads:
            load.leave_all()
            await task

    import uvloop

    uvloop.run(fill())


def opened(port: int, key: str, tag: int) -> socket.socket:
    """A stream whose first words have come."""
    body = {
        "model": f"quiet/{MODELS[tag % len(MODELS)]}",
        "messages": [{"role": "user", "content": f"tag={tag} x"}],
    }
    content = json.dumps(body).encode()
    client = socket.create_connection(("127.0.0.1", port))
    client.settimeout(60)
    head = f"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    received = b""
    while b'"delta":" ' not in received:
        more = client.recv(65_536)
        assert more, received
        received += more
    return client


def leave(port: int, key: str, pipe: Connection) -> None:
    """Opens the streams, and leaves them one after the other when it is told to; when each was left."""
    clients = {tag: opened(port, key, tag) for tag in range(1, LEAVERS + 1)}
    pipe.send("opened")
    pipe.recv()
    left = {}
    for tag, client in clients.items():
        time.sleep(PAUSE_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
        left[tag] = time.monotonic_ns()
        client.close()
    pipe.send(left)


def busy(server: Server, seconds: float) -> float:
    """How much of the time the worker's event loop runs, or would if nobody else had its core."""

    def ran() -> int:
        ran, waited, _ = Path(f"/proc/{server.pid}/task/{server.pid}/schedstat").read_text().split()
        return int(ran) + int(waited)

    began, before = time.monotonic(), ran()
    time.sleep(seconds)
    return (ran() - before) / 1e9 / (time.monotonic() - began)


def closed(quiet: str) -> dict[int, int]:
    """When the provider's connections were closed, by tag."""
    with urllib.request.urlopen(f"{quiet}/stats", timeout=10) as answer:
        rows = json.load(answer)["tags"]
    return {row["tag"]: row["end_ns"] for row in rows if row["state"] == "aborted"}


def make_busy(server: Server, load: Connection, wanted: float) -> int:
    """Adds streams until the worker is as busy, and takes the last ones away where that was too much. How
    many there are then.
    """
    added: list[int] = []
    for _ in range(TRIES):
        now = busy(server, 2)
        if sum(added) > MOST_STREAMS:
            break
        if abs(now - wanted) < NEAR and abs(busy(server, 2) - wanted) < NEAR:
            break
        if now < wanted:
            step = sum(added) * min(0.5, (wanted - now) / 2 / max(now, 0.2))
            added.append(max(STEP, int(step)))
            load.send(added[-1])
        else:
            added.pop()
            load.send(-1)
        time.sleep(1)
    return sum(added)


def measure(server: Server, quiet: str, level: str) -> dict[str, Any]:
    urllib.request.urlopen(f"{quiet}/reset", data=b"", timeout=10).close()
    ours, theirs = multiprocessing.Pipe()
    leaver = multiprocessing.Process(target=leave, args=(server.port, server.key, theirs))
    leaver.start()
    ours.recv()
    assert leaver.pid is not None
    put_first(leaver.pid, 2)
    load, end = multiprocessing.Pipe()
    filler = multiprocessing.Process(target=fill, args=(server.url, server.key, end))
    filler.start()
    assert filler.pid is not None
    put_first(filler.pid)
    streams = make_busy(server, load, LEVELS[level]) if LEVELS[level] else 0
    if level == "saturated":
        load.send(streams // 2)
        streams += streams // 2
        time.sleep(3)
    ours.send("leave")
    now = busy(server, LEAVERS * PAUSE_SECONDS * 0.9)
    left = ours.recv()
    leaver.join()
    ends = wait_for(lambda: found if len(found := closed(quiet)) == LEAVERS else None, seconds=30)
    load.send(0)
    filler.join()
    took = [(ends[tag] - left[tag]) / 1e6 for tag in left]
    assert min(took) > 0, "a stream ended by itself"
    cut = statistics.quantiles(took, n=100)
    return {
        "level": level,
        "busy": round(now, 2),
        "streams beside": streams,
        "left": len(left),
        "p50 ms": round(cut[49], 1),
        "p99 ms": round(cut[98], 1),
        "max ms": round(max(took), 1),
        "load of the machine": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    levels = sys.argv[1:] or list(LEVELS)
    cores = sorted(os.sched_getaffinity(0))
    pin(set(cores[1:]))
    with provider() as load, provider(2) as quiet, tempfile.TemporaryDirectory() as folder:
        providers = {
            "load": {"base_url": f"{load}/v1", "api_key": "x", "models": ["mock-90000x50"]},
            "quiet": {"base_url": f"{quiet}/v1", "api_key": "x", "models": list(MODELS)},
        }
        settings = {
            "MILLSTREAM_PROVIDERS": json.dumps(providers),
            "MILLSTREAM_MAX_LAG_SECONDS": "3600",
            "MILLSTREAM_IDLE_SECONDS": "3600",  # the silent ones wait until the worker is busy
        }
        with running(Path(folder), **settings) as server:
            if len(cores) > 1:
                for thread in psutil.Process(server.pid).threads():
                    os.sched_setaffinity(thread.id, {cores[0]})
            put_first(server.pid)
            for level in levels:
                print(json.dumps(measure(server, quiet, level)), flush=True)
                wait_for(lambda: busy(server, 1) < 0.1, seconds=60)


if __name__ == "__main__":
    main()
