"""Connections over real sockets: kept and not, secured, through proxies, and given up."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from millstream.http import Broken, CannotConnect, Client, ConnectTimeout, InvalidURL, Proxies, headers_of
from millstream.http import opening as opening_module
from oracle import Request, oracle


async def hello(request: Request) -> None:
    await request.answer(200, {"path": request.path})


@asynccontextmanager
async def using(**options: Any) -> AsyncGenerator[Client]:
    client = Client({}, **options)
    try:
        yield client
    finally:
        client.close()


async def asked(client: Client, url: str) -> bytes:
    connection = await client.connect(url)
    try:
        await connection.ask(client.head("GET", url))
        return await connection.read_all(1 << 20)
    finally:
        connection.release()


# -- kept connections ---------------------------------------------------------------------------


async def test_a_connection_is_used_again() -> None:
    async with oracle(hello) as server, using() as client:
        for _ in range(3):
            assert await asked(client, server.base_url + "/a?b=1") == b'{"path": "/v1/a?b=1"}'
        assert server.connections == 1


async def test_at_the_same_time_there_are_as_many_as_it_takes() -> None:
    async with oracle(hello) as server, using() as client:
        await asyncio.gather(*(asked(client, server.base_url) for _ in range(20)))
        await asyncio.gather(*(asked(client, server.base_url) for _ in range(20)))
        assert server.connections == 20


@pytest.mark.parametrize(
    ("announced", "after", "connections"),
    [("", 3.9, 1), ("", 4.1, 2), ("Keep-Alive: timeout=3", 1.9, 1), ("Keep-Alive: timeout=3, max=9", 2.1, 2)],
)
async def test_one_is_kept_for_four_seconds_or_what_its_server_says(
    announced: str, after: float, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(request: Request) -> None:
        await request.answer(200, {}, [announced] if announced else [])

    async with oracle(handler) as server, using() as client:
        connection = await client.connect(server.base_url)
        await connection.ask(client.head("GET", server.base_url))
        await connection.read_all(100)
        connection.release()
        connection.idle_since -= after
        await asked(client, server.base_url)
        assert server.connections == connections


async def test_how_long_it_is_kept_is_known_without_the_other_headers() -> None:
    async def handler(request: Request) -> None:
        await request.answer(200, {}, ["Keep-Alive: timeout=3"])

    async with oracle(handler) as server, using() as client:
        connection = await client.connect(server.base_url)
        await connection.ask(client.head("GET", server.base_url))
        connection.forget_headers()
        await connection.read_all(100)
        connection.release()
        assert connection.headers == {"keep-alive": "timeout=3"}
        connection.idle_since -= 2.1
        await asked(client, server.base_url)
        assert server.connections == 2


async def test_one_that_is_released_to_a_closed_client_is_cut() -> None:
    async with oracle(hello) as server, using() as client:
        connection = await client.connect(server.base_url)
        await connection.ask(client.head("GET", server.base_url))
        await connection.read_all(100)
        client.close()
        connection.release()
        assert not connection.is_quiet


async def test_one_whose_server_has_closed_it_is_not_asked() -> None:
    """Also before the event loop has seen that."""
    async with oracle(hello) as server, using() as client:
        await asked(client, server.base_url)
        for writer in server.writers:  # ours: the end is in the socket before the loop turns
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as sock:
                sock.shutdown(socket.SHUT_RDWR)
        assert await asked(client, server.base_url)
        assert server.connections == 2


async def test_one_that_was_not_read_to_its_end_is_cut() -> None:
    async def endless(request: Request) -> None:
        await request.head()
        await request.say("Hello")
        await request.gone.wait()

    async with oracle(endless) as server, using() as client:
        connection = await client.connect(server.base_url)
        await connection.ask(client.head("GET", server.base_url))
        assert b"Hello" in await connection.read()
        connection.release()
        async with asyncio.timeout(5):
            await server.requests[0].gone.wait()


async def test_what_came_before_a_reset_is_read_first() -> None:
    async def cut(request: Request) -> None:
        await request.head()
        await request.say("Hello")
        request.cut()

    async with oracle(cut) as server, using() as client:
        connection = await client.connect(server.base_url)
        await connection.ask(client.head("GET", server.base_url))
        body = b""
        with pytest.raises(Broken):
            while data := await connection.read():
                body += data
        assert b"Hello" in body
        connection.release()


# -- given up -----------------------------------------------------------------------------------


@asynccontextmanager
async def babbling() -> AsyncGenerator[tuple[str, set[asyncio.StreamWriter]]]:
    """A server that answers /silent never and all else without an end, and who it is talking to."""
    talking: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talking.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"/silent" not in head:
                writer.write(b"HTTP/1.1 200 OK\r\n\r\nx")
            await reader.read()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            talking.discard(writer)
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, backlog=100) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", talking


async def many_cancels(count: int) -> None:
    """Asks, and is cancelled: while it connects, before the answer, in the middle of it."""

    async def follow(client: Client, url: str) -> None:
        connection = await client.connect(url)
        try:
            await connection.ask(client.head("GET", url))
            while await connection.read():
                pass
        finally:
            connection.release()

    async with babbling() as (url, talking), using() as client:
        open_before = len(os.listdir("/proc/self/fd"))
        for number in range(count // 20):
            path = "/silent" if number % 2 else "/loud"
            tasks = [asyncio.create_task(follow(client, url + path)) for _ in range(20)]
            for turns, task in enumerate(tasks):
                for _ in range(turns % 8):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(30):
            while talking or len(os.listdir("/proc/self/fd")) > open_before:
                await asyncio.sleep(0)  # whatever closes them takes turns of the loop


async def test_whoever_gives_up_leaves_no_socket() -> None:
    await many_cancels(1000)


@pytest.mark.faults
@pytest.mark.timeout(600)
async def test_20000_who_give_up_leave_no_socket() -> None:
    await many_cancels(20_000)


# -- where it connects to -----------------------------------------------------------------------


async def test_an_address_that_refuses_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As localhost, which is ::1 first, where a server listens on 127.0.0.1 alone."""
    loop = asyncio.get_running_loop()

    async def both(host: str, port: int, **_: Any) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    opener = Client({}, connect_seconds=5)
    monkeypatch.setattr(opener._opener, "_resolve", both)  # noqa: SLF001
    async with oracle(hello) as server:
        assert await asked(opener, f"http://two.example:{server.port}/v1")
        assert loop.is_running()
    opener.close()


async def test_a_slow_resolver_is_asked_once_and_waited_for_no_longer_than_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    questions = 0

    async def never(host: str, port: int, **_: Any) -> list[Any]:
        nonlocal questions
        questions += 1
        await asyncio.Event().wait()
        raise AssertionError

    async with using() as client, oracle(hello) as server:
        with monkeypatch.context() as patched:
            patched.setattr(client._opener, "_resolve", never)  # noqa: SLF001
            patched.setattr(client, "_connect_seconds", 0.05)
            url = "http://slow.example/v1"
            found = await asyncio.gather(*(client.connect(url) for _ in range(50)), return_exceptions=True)
        assert {type(one) for one in found} == {ConnectTimeout}
        assert questions == 1
        assert await asked(client, server.base_url)  # others do not wait with it


async def test_an_answer_of_the_resolver_is_used_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = 0
    async with oracle(hello) as server, using() as client:

        async def here(host: str, port: int, **_: Any) -> list[Any]:
            nonlocal questions
            questions += 1
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(client._opener, "_resolve", here)  # noqa: SLF001
        url = f"http://known.example:{server.port}/v1"
        await asyncio.gather(*(asked(client, url) for _ in range(5)))
        await asyncio.gather(*(asked(client, url) for _ in range(9)))
        assert questions == 1


async def test_a_name_that_is_none_and_a_port_where_nobody_listens() -> None:
    async with using() as client:
        with pytest.raises(socket.gaierror):
            await client.connect("http://nobody.invalid/v1")
        async with oracle(hello) as server:
            gone = server.base_url
        with pytest.raises(CannotConnect, match="refused"):
            await client.connect(gone)


async def test_a_server_that_never_accepts_is_waited_for_as_long_as_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        async with using(connect_seconds=0.1) as client:
            with pytest.raises(ConnectTimeout):
                await client.connect(f"http://127.0.0.1:{port}/")
        for one in waiting:
            one.close()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example",
        "a.example/v1",
        "http://",
        "http://a b/",
        "http://a.example:x/",
        "http://-/",
        "http://a..example/",
        f"http://{'a' * 64}.example/",
        "http://[::1/",
    ],
)
async def test_a_url_that_is_none(url: str) -> None:
    async with using() as client:
        with pytest.raises(InvalidURL):
            await client.connect(url)


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://a.example", b"GET / HTTP/1.1", b"a.example"),
        ("http://A.example:80/x?y=%2F z", b"GET /x?y=%2F%20z HTTP/1.1", b"a.example"),
        ("https://a.example:443/ü", b"GET /%C3%BC HTTP/1.1", b"a.example"),
        ("http://[::1]:8080/x#y", b"GET /x HTTP/1.1", b"[::1]:8080"),
        ("http://münchen.example/", b"GET / HTTP/1.1", b"xn--mnchen-3ya.example"),
        ("http://a.example/x\r\nEvil: 1", b"GET /xEvil:%201 HTTP/1.1", b"a.example"),
    ],
)
async def test_what_is_asked_for(url: str, line: bytes, host: bytes) -> None:
    async with using() as client:
        assert client.head("GET", url) == b"%b\r\nHost: %b\r\n\r\n" % (line, host)


async def test_the_credentials_of_a_url_are_sent_where_there_are_no_others() -> None:
    async with using() as client:
        assert b"Authorization: Basic dTpw\r\n" in client.head("GET", "http://u:p@a.example/")
    other = Client({"authorization": "Bearer x"})
    assert b"Basic" not in other.head("GET", "http://u:p@a.example/")


@pytest.mark.parametrize(
    "header", [("X", "a\r\nEvil: 1"), ("X\n", "a"), ("", "a"), ("X:", "a"), ("X", "a\0")]
)
def test_a_header_that_would_be_two_is_refused(header: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        headers_of(dict([header]))


# -- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def identity(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(autouse=True)
def _local_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """*.test is this machine."""
    resolve = opening_module.Opener._resolve  # noqa: SLF001

    async def here(self: Any, host: str, port: int) -> Any:
        return await resolve(self, "127.0.0.1" if host.endswith(".test") else host, port)

    monkeypatch.setattr(opening_module.Opener, "_resolve", here)


async def test_a_certificate_of_the_file_is_trusted_and_the_name_is_sent(
    authority: trustme.CA, ca_file: Path
) -> None:
    context, names = identity(authority, "provider.test"), []
    context.sni_callback = lambda _sock, name, _context: names.append(name)
    async with oracle(hello, context) as server, using(ca_file=ca_file) as client:
        for _ in range(2):
            assert await asked(client, f"https://provider.test:{server.port}/x")
        assert server.connections == 1
    assert names == ["provider.test"]


async def test_one_of_nobody_known_and_one_of_another_name_are_not(
    authority: trustme.CA, ca_file: Path
) -> None:
    async with oracle(hello, identity(authority, "other.test")) as server:
        url = f"https://provider.test:{server.port}/x"
        for options in ({}, {"ca_file": ca_file}):
            async with using(**options) as client:
                with pytest.raises(ssl.SSLCertVerificationError):
                    await client.connect(url)
        assert not server.requests


async def test_whoever_gives_up_leaves_no_socket_with_tls(authority: trustme.CA, ca_file: Path) -> None:
    async def silent(request: Request) -> None:
        await request.head()
        await request.gone.wait()

    async with (
        oracle(silent, identity(authority, "provider.test")) as server,
        using(ca_file=ca_file) as client,
    ):
        url = f"https://provider.test:{server.port}/x"
        connection = await client.connect(url)
        await connection.ask(client.head("GET", url))
        connection.release()
        async with asyncio.timeout(5):
            await server.requests[0].gone.wait()


async def test_a_server_without_tls_is_told_from_one_with_it() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server, using() as client:
        with pytest.raises(ssl.SSLError):
            await client.connect(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")


# -- proxies ------------------------------------------------------------------------------------


@asynccontextmanager
async def relaying(
    tls: ssl.SSLContext | None = None, refusal: bytes = b""
) -> AsyncGenerator[tuple[int, list[bytes]]]:
    """A proxy that makes tunnels, and the heads that it was sent."""
    heads: list[bytes] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        if refusal:
            writer.write(refusal)
            writer.close()
            return
        port = int(heads[-1].split(b" ")[1].rpartition(b":")[2])
        there, to_there = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")
        await asyncio.gather(pipe(reader, to_there), pipe(there, writer), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1], heads


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_tunnel_through_a_proxy(authority: trustme.CA, ca_file: Path, scheme: str) -> None:
    tls = identity(authority, "proxy.test") if scheme == "https" else None
    async with oracle(hello, identity(authority, "provider.test")) as server, relaying(tls) as (port, heads):
        proxies = Proxies(f"{scheme}://us%20er:pass@proxy.test:{port}")
        async with using(proxies=proxies, ca_file=ca_file) as client:
            url = f"https://provider.test:{server.port}/x"
            for _ in range(2):
                assert await asked(client, url) == b'{"path": "/x"}'
    (head,) = heads
    assert head.startswith(b"CONNECT provider.test:%d HTTP/1.1\r\n" % server.port)
    assert b"\r\nProxy-Authorization: Basic dXMgZXI6cGFzcw==\r\n" in head
    assert "proxy-authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("refusal", "why"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "the proxy answered 407"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\nx", "the proxy answered 502"),
        (b"SSH-2.0\r\n\r\n", "the proxy answered"),
        (b"HTTP/1.1 2", "the proxy ended the connection"),
        (b"x" * 70_000, "the proxy answered"),
    ],
)
async def test_a_proxy_that_refuses_is_said(refusal: bytes, why: str) -> None:
    async with relaying(refusal=refusal) as (port, _):
        async with using(proxies=Proxies(f"http://127.0.0.1:{port}")) as client:
            with pytest.raises(CannotConnect, match=why):
                await client.connect("https://provider.test/x")


async def test_without_tls_a_proxy_is_asked_for_the_whole_url() -> None:
    async with oracle(hello) as proxy:
        async with using(proxies=Proxies(f"http://u:p@127.0.0.1:{proxy.port}")) as client:
            assert (
                await asked(client, "http://u2:p2@provider.test/x?y")
                == b'{"path": "http://provider.test/x?y"}'
            )
        sent = proxy.requests[0].headers
        assert (sent["host"], sent["proxy-authorization"]) == ("provider.test", "Basic dTpw")


@pytest.mark.parametrize(
    ("variables", "url", "proxied"),
    [
        ({"HTTP_PROXY": "@"}, "http://a.example/", True),
        ({"http_proxy": "@"}, "http://a.example/", True),
        ({"HTTPS_PROXY": "@"}, "http://a.example/", False),
        ({"HTTPS_PROXY": "@"}, "https://a.example/", True),
        ({"ALL_PROXY": "@"}, "https://a.example/", True),
        ({"HTTP_PROXY": "proxy.example:3128"}, "http://a.example/", True),
        ({"HTTP_PROXY": "@", "NO_PROXY": "b.example,.a.example"}, "http://x.a.example/", False),
        ({"HTTP_PROXY": "@", "NO_PROXY": "a.example:80"}, "http://a.example/", False),
        ({"HTTP_PROXY": "@", "NO_PROXY": "*"}, "http://a.example/", False),
        ({"HTTP_PROXY": "@", "NO_PROXY": "b.example"}, "http://a.example/", True),
    ],
)
def test_the_environment_says_which_proxy(
    variables: dict[str, str], url: str, *, proxied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from millstream.http import Address

    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("@", "http://proxy.example:3128"))
    found = Proxies(from_environment=True).to(Address.of(url))
    assert (found is not None and (found.host, found.port) == ("proxy.example", 3128)) == proxied
    assert Proxies().to(Address.of(url)) is None
