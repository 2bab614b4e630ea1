"""Through a real nginx, with its defaults and as the guide sets it up: frames arrive one by one, leaving is passed on."""

import asyncio
import json
import os
import re
import socket
import subprocess
import urllib.request
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from playwright.async_api import expect

from guides import Block, all_blocks, blocks
from live.browser import chromium, watched_page
from live.conftest import Ask, Serve, Server
from live.site import Model, answer
from live.site import ask as ask_in_page
from millstream.client import AsyncClient
from millstream.errors import MillstreamError
from millstream.settings import Settings
from oracle import Oracle, Request, oracle
from services import needed, wait_for

CONFIGURATION = """
daemon off;
{user}
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
    {site}
}}
"""
DEFAULTS = "server { listen 80; location / { proxy_pass http://millstream; } }"


@contextmanager
def nginx(folder: Path, *ports: int, site: str = DEFAULTS) -> Generator["Proxy"]:
    """An nginx before the servers on ``ports``, which take turns. ``site`` is a server or a location, as a guide
    has it: only its addresses and the folder of its certificate are those of the test."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = folder / "nginx.conf"
    path.write_text(configuration(folder, port, ports, site), encoding="utf-8")
    proxy = Proxy([needed("nginx"), "-c", str(path), "-e", str(folder / "error.log")], port)
    try:
        proxy.start()
        yield proxy
    finally:
        proxy.stop()


def configuration(folder: Path, port: int, ports: Sequence[int], site: str) -> str:
    if not site.startswith("server"):
        site = f"server {{ listen 80; {site} }}"
    site = re.sub(r"listen \d+", f"listen 127.0.0.1:{port}", site)
    site = site.replace("http://127.0.0.1:8000", "http://millstream").replace("/etc/ssl/", f"{folder}/")
    servers = " ".join(f"server 127.0.0.1:{port};" for port in ports)
    # As root it would keep long bodies as another user, who may not write into the test's folder.
    user = "user root;" if os.geteuid() == 0 else ""
    return CONFIGURATION.format(user=user, folder=folder, servers=servers, site=site)


def certify(folder: Path) -> Path:
    """Makes the certificate of the guide's server. The path of what says that it is to be believed."""
    folder.mkdir(exist_ok=True)
    authority = trustme.CA()
    certificate = authority.issue_cert("llm.example.com")
    certificate.private_key_pem.write_to_path(folder / "llm.example.com.key")
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(folder / "llm.example.com.pem", append=True)
    authority.cert_pem.write_to_path(folder / "authority.pem")
    return folder / "authority.pem"


class Proxy:
    def __init__(self, command: Sequence[str], port: int) -> None:
        self.command, self.port = command, port

    def start(self) -> None:
        self._process = subprocess.Popen(self.command)
        wait_for(self._listens, self._process)

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

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


# -- the guide --------------------------------------------------------------------------------------

PLAIN, TLS, BELOW = blocks("behind-nginx", "nginx")


@pytest.mark.parametrize("block", all_blocks("nginx"), ids=str)
def test_nginx_takes_every_configuration_of_the_documents(tmp_path: Path, block: Block) -> None:
    certify(tmp_path)
    path = tmp_path / "nginx.conf"
    path.write_text(configuration(tmp_path, 8080, [8000], block.text), encoding="utf-8")
    command = [needed("nginx"), "-t", "-c", str(path), "-e", str(tmp_path / "error.log")]
    tested = subprocess.run(command, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr
    assert "[warn]" not in tested.stderr


def test_the_guides_limit_is_that_of_the_setting() -> None:
    limit = Settings.model_fields["max_body_bytes"].default
    assert f"client_max_body_size {limit >> 20}m;" in PLAIN.text
    assert f"client_max_body_size {limit >> 20}m;" in TLS.text


class Behind(NamedTuple):
    """A server behind an nginx, with a model that says what the test lets it say."""

    server: Server
    port: int
    model: Model
    upstream: Oracle


@asynccontextmanager
async def behind(
    serve: Serve, folder: Path, site: str, root_path: str | None = None
) -> AsyncGenerator[Behind]:
    model = Model()
    environment = {"MILLSTREAM_ROOT_PATH": root_path} if root_path else {}
    async with oracle(model) as upstream:
        context = serve(openai=upstream.base_url, **environment)
        server = await asyncio.to_thread(context.__enter__)
        proxy = nginx(folder, server.port, site=site)
        port = (await asyncio.to_thread(proxy.__enter__)).port
        try:
            yield Behind(server, port, model, upstream)
        finally:
            await asyncio.to_thread(proxy.__exit__, None, None, None)
            await asyncio.to_thread(context.__exit__, None, None, None)


async def test_frames_arrive_one_by_one_over_tls_and_http_2(serve: Serve, tmp_path: Path) -> None:
    authority = certify(tmp_path / "nginx")
    (command,) = [b.text for b in blocks("behind-nginx", "sh") if "--http2" in b.text]
    async with behind(serve, tmp_path / "nginx", TLS.text) as it:
        port = it.port
        # As the guide has it, on the test's port.
        asked = command.replace("https://llm.example.com/", f"https://llm.example.com:{port}/").strip()
        options = f"--resolve llm.example.com:{port}:127.0.0.1 --cacert {authority} --silent --include"
        process = await asyncio.create_subprocess_shell(
            f"KEY={it.server.key}; exec {asked} {options}",
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 20,
        )
        assert process.stdout is not None
        for i in range(3):
            # The next word is not sent before this one has come through.
            await it.model.words.put(f"word{i} ")
            read = await asyncio.wait_for(process.stdout.readuntil(b"word%d" % i), 10)
            assert i > 0 or read.startswith(b"HTTP/2 200")
        process.terminate()
        async with asyncio.timeout(2):
            await it.model.request.gone.wait()
        await process.wait()


def fetched(url: str, key: str, body: object = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.status, json.load(response)


@pytest.mark.parametrize("root_path", [None, "/ai"])
async def test_everything_is_below_a_path(serve: Serve, tmp_path: Path, root_path: str | None) -> None:
    async with behind(serve, tmp_path / "nginx", BELOW.text, root_path) as it, chromium() as browser:
        base = f"http://127.0.0.1:{it.port}"
        page, complaints = await watched_page(browser)
        await page.goto(f"{base}/ai/#key={it.server.key}")
        await ask_in_page(page)
        await it.model.words.put("One ")
        await expect(answer(page)).to_contain_text("One")
        await page.reload()
        await it.model.words.put("two")
        await expect(answer(page)).to_contain_text("One two")
        await page.get_by_test_id("stop").click()
        await expect(answer(page)).to_have_attribute("data-status", "stopped")
        async with asyncio.timeout(2):
            await it.model.request.gone.wait()

        await page.goto(f"{base}/ai/docs")
        await expect(page.locator(".opblock").filter(has_text="/v1/chat/stream")).to_be_visible()
        assert complaints == []

        question = {"messages": [{"role": "user", "content": "Why?"}]}
        _, made = await asyncio.to_thread(fetched, f"{base}/ai/v1/streams", it.server.key, question)
        before = root_path or ""
        assert made["events_url"].startswith(f"{before}/v1/streams/")
        assert made["cancel_url"].startswith(f"{before}/v1/streams/")
        # Only with the setting are they right as they are, for a page of the same host.
        cancel_url = base + ("" if root_path else "/ai") + made["cancel_url"]
        assert (await asyncio.to_thread(fetched, cancel_url, "", {}))[0] == 200

        async with AsyncClient(f"{base}/ai", it.server.key) as client:
            await it.model.words.put("whole")
            await it.model.words.put(None)
            text = [frame.delta async for frame in client.stream(question["messages"])]
            assert "".join(text) == "whole"


async def test_a_proxy_that_takes_no_long_request_is_named(serve: Serve, tmp_path: Path) -> None:
    long = "word " * 250_000  # over nginx's own limit, below ours
    async with behind(serve, tmp_path / "nginx", DEFAULTS) as it, chromium() as browser:
        page, _ = await watched_page(browser)
        await page.goto(f"http://127.0.0.1:{it.port}/#key={it.server.key}")
        await ask_in_page(page, long)
        error = page.get_by_test_id("error")
        await expect(error).to_contain_text("This is too long to be sent.")
        await expect(error).to_contain_text("A proxy before Millstream takes no request of this length.")
        async with AsyncClient(f"http://127.0.0.1:{it.port}", it.server.key) as client:
            with pytest.raises(MillstreamError, match="a proxy before Millstream") as refused:
                async for _ in client.stream([{"role": "user", "content": long}]):
                    pass
        assert (refused.value.code, refused.value.status) == ("too_large", 413)
        assert [r for r in it.upstream.requests if r.path.endswith("completions")] == []
        # As the guide has it, the same request goes through.
        second = nginx(tmp_path / "second", it.server.port, site=PLAIN.text)
        port = (await asyncio.to_thread(second.__enter__)).port
        try:
            await it.model.words.put("short")
            await it.model.words.put(None)
            async with AsyncClient(f"http://127.0.0.1:{port}", it.server.key) as client:
                text = [frame.delta async for frame in client.stream([{"role": "user", "content": long}])]
            assert "".join(text) == "short"
        finally:
            await asyncio.to_thread(second.__exit__, None, None, None)
