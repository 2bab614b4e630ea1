"""Through a real nginx with its default buffering: frames arrive one by one, leaving is passed on."""

import asyncio
import json
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from live.conftest import Ask, Serve, answers
from oracle import Request, oracle
from services import needed, wait_for

CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    gzip on;
    upstream millstream {{ {servers} }}
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://millstream; }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, *ports: int) -> Generator["Proxy"]:
    """An nginx before the servers on ``ports``, which take turns."""
    import socket

    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = folder / "nginx.conf"
    path.write_text(
        CONFIGURATION.format(
            folder=folder, port=port, servers=" ".join(f"server 127.0.0.1:{port};" for port in ports)
        )
    )
    proxy = Proxy([needed("nginx"), "-c", str(path), "-e", str(folder / "error.log")], port)
    try:
        proxy.start()
        yield proxy
    finally:
        proxy.stop()


class Proxy:
    def __init__(self, command: Sequence[str], port: int) -> None:
        self.command, self.port = command, port

    def start(self) -> None:
        self._process = subprocess.Popen(self.command)
        wait_for(lambda: answers(f"http://127.0.0.1:{self.port}/healthz"), self._process)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def restart(self) -> None:
        """Cuts every connection through it."""
        self.stop()
        self.start()


async def test_frames_arrive_one_by_one_and_leaving_reaches_the_provider(
    serve: Serve, ask: Ask, tmp_path: Path
) -> None:
    gates = [asyncio.Event() for _ in range(5)]

    async def provider(request: Request) -> None:
        if request.path.endswith("/models"):
            return await request.answer(200, {"data": [{"id": "m"}]})
        await request.head()
        for i, gate in enumerate(gates):
            await request.say(f"word{i} ")
            await gate.wait()
        await asyncio.Event().wait()

    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()
    async with oracle(provider) as upstream:
        context = serve(openai=upstream.base_url)
        server = await asyncio.to_thread(context.__enter__)
        proxy = nginx(tmp_path / "nginx", server.port)
        port = (await asyncio.to_thread(proxy.__enter__)).port
        try:
            headers = {"Authorization": f"Bearer {server.key}", "Accept-Encoding": "gzip"}
            reader, writer = await ask(port, "POST", "/v1/chat/stream", body, **headers)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert b"200 OK" in head
            assert b"gzip" not in head.lower()
            for i, gate in enumerate(gates):
                # The next word is not sent before this one has come through.
                await asyncio.wait_for(reader.readuntil(b"word%d" % i), 5)
                gate.set()
            writer.close()
            async with asyncio.timeout(2):
                await upstream.requests[-1].gone.wait()
        finally:
            await asyncio.to_thread(proxy.__exit__, None, None, None)
            await asyncio.to_thread(context.__exit__, None, None, None)
