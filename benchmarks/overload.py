"""What a worker does with more than it can: starts at a fixed rate, whatever becomes of them.

    python benchmarks/overload.py [RATE ...]

Starts a worker and, for each rate (starts a second), offers it for ten seconds from a process of its own;
prints one line of JSON each. The model is a script of 100 words at 100 a second.
"""

import asyncio
import json
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from live.conftest import Server, running  # the path is set above

SECONDS = 10.0
BODY = json.dumps({"model": "scripted/100x10", "messages": [{"role": "user", "content": "x"}]}).encode()
PATIENCE_SECONDS = 30.0
SETTINGS = {
    "MILLSTREAM_PROVIDERS": '{"scripted": {"type": "scripted"}}',
    "MILLSTREAM_MAX_LAG_SECONDS": "0.1",  # the default
}


async def ask(port: int, key: str, found: list[tuple[int, float, bool]]) -> None:
    """The status of one start, when its first byte came, and whether it got its end. Reads seldom, so that
    the load costs little of the machine.
    """
    began, loop = time.monotonic(), asyncio.get_running_loop()
    status, first, whole = 0, 0.0, False
    end = socket.socket()
    end.setblocking(False)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await loop.sock_connect(end, ("127.0.0.1", port))
            head = f"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            request = f"{head}Connection: close\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
            await loop.sock_sendall(end, request)
            received = await loop.sock_recv(end, 65_536)
            status, first = int(received.split()[1]), time.monotonic() - began
            await asyncio.sleep(1.2 if status == 200 else 0)
            while more := await loop.sock_recv(end, 65_536):
                received = received[-100:] + more
                await asyncio.sleep(0.2)
            whole = b"[DONE]" in received
    except (TimeoutError, OSError, IndexError):
        pass
    finally:
        end.close()
    found.append((status, first, whole))


async def offer(port: int, key: str, rate: float) -> list[tuple[int, float, bool]]:
    found: list[tuple[int, float, bool]] = []
    tasks = set()
    begin = time.monotonic()
    for i in range(int(rate * SECONDS)):
        await asyncio.sleep(max(0, begin + i / rate - time.monotonic()))
        task = asyncio.create_task(ask(port, key, found))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.wait(tasks)
    return found


def load(port: int, key: str, rate: float, pipe: "multiprocessing.connection.Connection") -> None:
    pipe.send(asyncio.run(offer(port, key, rate)))


def percentiles(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    cut = statistics.quantiles(seconds, n=100)
    return {"p50 ms": round(1000 * cut[49]), "p99 ms": round(1000 * cut[98])}


def measure(server: Server, rate: float) -> None:
    process = psutil.Process(server.pid)
    before, began = sum(process.cpu_times()[:2]), time.monotonic()
    ours, theirs = multiprocessing.Pipe()
    client = multiprocessing.Process(target=load, args=(server.port, server.key, rate, theirs))
    client.start()
    found = ours.recv()
    client.join()
    taken = [first for status, first, _ in found if status == 200]
    refused = [first for status, first, _ in found if status == 503]
    print(
        json.dumps(
            {
                "starts a second": rate,
                "answered whole": sum(whole for *_, whole in found),
                "taken": len(taken),
                "first byte of those": percentiles(taken),
                "refused": len(refused),
                "refusal after": percentiles(refused),
                "neither": len(found) - len(taken) - len(refused),
                "busy": round((sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began), 2),
            }
        ),
        flush=True,
    )


def main() -> None:
    rates = [float(rate) for rate in sys.argv[1:]] or [20.0, 40.0, 80.0, 160.0, 320.0]
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder) / "server", **SETTINGS) as server,
    ):
        for rate in rates:
            measure(server, rate)


if __name__ == "__main__":
    main()
