"""Opening a connection: a name -> addresses -> a socket, through a proxy where there is one, with TLS."""

import asyncio
import errno
import os
import socket
import ssl
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypeAlias, cast

import aiohappyeyeballs

from millstream.http.addresses import Address
from millstream.http.connection import Connection

_KNOWN_SECONDS = 10.0  # how long the addresses of a name are used without asking again
_NEXT_ADDRESS_SECONDS = 0.25  # RFC 8305, §5: how long one is tried before the next one is, too
_HEAD_BYTES = 64 << 10

Addresses: TypeAlias = list[aiohappyeyeballs.AddrInfoType]


_WHY = {errno.ECONNREFUSED: "the connection was refused", 0: "it ended the connection at once"}


class CannotConnect(OSError):
    """No connection could be had; nothing was asked. ``strerror`` says why."""


class ConnectTimeout(TimeoutError):
    """No connection could be had in time; nothing was asked."""


class Opener:
    """Makes connections. ``ca_file`` has certificates, as PEM, that are trusted besides the system's. Raises
    ``ValueError`` where it cannot be read.
    """

    def __init__(self, ca_file: Path | None = None) -> None:
        if ca_file is not None:
            try:
                _trusted(ca_file)
            except OSError as error:
                broken = isinstance(error, ssl.SSLError)
                why = "it has no certificate that can be read" if broken else error.strerror
                raise ValueError(f"the ca_file {ca_file}: {why}") from error
        self._ca_file = ca_file
        self._context: ssl.SSLContext | None = None
        self._known: dict[tuple[str, int], tuple[float, Addresses]] = {}
        self._asked: dict[tuple[str, int], asyncio.Task[Addresses]] = {}

    async def open(self, connection: Connection, address: Address, proxy: Address | None) -> None:
        """Opens ``connection`` to what is at ``address``. Raises ``CannotConnect``, ``socket.gaierror``,
        ``ssl.SSLError``.
        """
        try:
            if proxy is None:
                await self._connect(connection, address, tls=address.secure)
            elif address.secure:
                await self._through(proxy, connection, address)
            else:
                await self._connect(connection, proxy, tls=proxy.secure)
        except (socket.gaierror, ssl.SSLError):
            raise
        except CannotConnect:
            raise
        except OSError as error:
            number = error.errno or 0
            raise CannotConnect(number, _WHY.get(number) or os.strerror(number).lower()) from error

    async def _connect(self, protocol: asyncio.Protocol, address: Address, *, tls: bool) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        context = await self._trust() if tls else None
        addresses = await self._addresses(address.host, address.port)
        sock = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS, interleave=1
        )
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, sock=sock, ssl=context, server_hostname=address.host if tls else None
            )
        except BaseException:
            sock.close()
            raise
        return transport

    async def _through(self, proxy: Address, connection: Connection, address: Address) -> None:
        """A tunnel through ``proxy``, and TLS in it (RFC 9110, §9.3.6)."""
        loop = asyncio.get_running_loop()
        context = await self._trust()
        tunnel = _Tunnel(address, proxy.credentials)
        transport = await self._connect(tunnel, proxy, tls=proxy.secure)
        try:
            await tunnel.opened
            inner = await loop.start_tls(transport, connection, context, server_hostname=address.host)
        except BaseException:
            transport.abort()
            raise
        assert inner is not None
        connection.connection_made(inner)

    async def _trust(self) -> ssl.SSLContext:
        """Whom to trust. Reading the system's certificates takes tens of milliseconds."""
        if self._context is None:
            self._context = await asyncio.to_thread(_trusted, self._ca_file)
        return self._context

    async def _addresses(self, host: str, port: int) -> Addresses:
        """Asked for once at a time, however many wait: a slow resolver has few threads."""
        loop = asyncio.get_running_loop()
        key = (host, port)
        known = self._known.get(key)
        if known is not None and loop.time() < known[0]:
            return known[1]
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = loop.create_task(self._resolve(host, port))
            task.add_done_callback(lambda task: self._looked_up(key, task))
        return await asyncio.shield(task)

    async def _resolve(self, host: str, port: int) -> Addresses:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        return cast("Addresses", found)

    def _looked_up(self, key: tuple[str, int], task: asyncio.Task[Addresses]) -> None:
        del self._asked[key]
        if not task.cancelled() and task.exception() is None:
            self._known[key] = (asyncio.get_running_loop().time() + _KNOWN_SECONDS, task.result())

    def close(self) -> None:
        for task in self._asked.values():
            task.cancel()


@cache
def _trusted(ca_file: Path | None = None) -> ssl.SSLContext:
    """The system's certificates, and those of ``ca_file``. Raises ``OSError``."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Tunnel(asyncio.Protocol):
    """Asks a proxy for a way to ``address``; ``opened`` when there is one."""

    def __init__(self, address: Address, credentials: str) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        host = f"[{address.host}]" if ":" in address.host else address.host
        lines = [f"CONNECT {host}:{address.port} HTTP/1.1", f"Host: {host}:{address.port}"]
        if credentials:
            lines.append(f"Proxy-Authorization: {credentials}")
        self._request = "\r\n".join((*lines, "", "")).encode()
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        if self.opened.done():
            return
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end and len(head) < _HEAD_BYTES:
            return
        version, _, status = head.partition(b"\r\n")[0].partition(b" ")
        if version.startswith(b"HTTP/1.") and status[:1] == b"2" and end and not rest:
            self.opened.set_result(None)
        else:
            self.opened.set_exception(
                CannotConnect(None, f"the proxy answered {status[:3].decode('latin-1')}")
            )

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(CannotConnect(None, "the proxy ended the connection"))
        with suppress(asyncio.CancelledError, OSError):
            self.opened.exception()  # seen, if nobody waits for it any more
