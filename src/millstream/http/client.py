"""The client: requests to a few hosts, over connections that are kept for a moment."""

import asyncio
import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeAlias

from millstream.http.addresses import Address, Proxies
from millstream.http.connection import Connection
from millstream.http.opening import ConnectTimeout, Opener

# Servers on uvicorn close an idle connection after 5 s. We let go earlier, so that a request never goes
# out on a connection that is being closed: it could not be sent again without the risk of a second bill.
_KEEP_SECONDS = 4.0
_MAX_KEPT = 1024  # to one host

_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_KEEP_ALIVE = re.compile(r"(?:^|[\s,;])timeout\s*=\s*(\d{1,6})", re.IGNORECASE | re.ASCII)

_Origin: TypeAlias = tuple[bool, str, int]


class Client:
    """``headers`` go with every request. Has to be used and closed in one event loop. Raises ``ValueError``
    of a header that is none and of a ``ca_file`` that cannot be read, and ``InvalidURL`` of a proxy.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        *,
        connect_seconds: float = 10,
        proxies: Proxies | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._headers = headers_of(headers)
        self._named = {name.lower() for name in headers}
        self._connect_seconds = connect_seconds
        self._proxies = proxies or Proxies()
        self._opener = Opener(ca_file)
        self._kept: dict[_Origin, list[Connection]] = {}
        self._keepers: dict[_Origin, Callable[[Connection], None]] = {}  # one for all connections to a host
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def connect(self, url: str) -> Connection:
        """A connection to what is at ``url``, to be asked once and released. Raises ``InvalidURL``,
        ``CannotConnect``, ``ConnectTimeout``, ``socket.gaierror`` and ``ssl.SSLError``.
        """
        address = address_of(url)
        if (kept := self._take(_origin(address))) is not None:
            return kept
        proxy = self._proxies.to(address)
        connection = Connection(self._keeper(_origin(address)))
        try:
            async with asyncio.timeout(self._connect_seconds):
                await self._opener.open(connection, address, proxy)
        except TimeoutError as error:
            connection.abort()
            raise ConnectTimeout("no connection in time") from error
        except BaseException:
            connection.abort()
            raise
        return connection

    def head(self, method: str, url: str, more: bytes = b"", *, length: int | None = None) -> bytes:
        """The head of a request, with ``more`` headers in the form that they are sent in, and a body of
        ``length`` bytes. Raises ``InvalidURL``.
        """
        address = address_of(url)
        target = address.path
        if not address.secure and (proxy := self._proxies.to(address)) is not None:
            target = address.absolute
            if proxy.credentials:
                more += b"Proxy-Authorization: %b\r\n" % proxy.credentials.encode()
        if address.credentials and "authorization" not in self._named:
            more += b"Authorization: %b\r\n" % address.credentials.encode()
        if length is not None:
            more += b"Content-Length: %d\r\n" % length
        return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b%b\r\n" % (
            method.encode(),
            target.encode(),
            address.authority.encode(),
            self._headers,
            more,
        )

    def close(self) -> None:
        """Cuts the connections that nobody uses, and from now on those that are released."""
        self._is_closed = True
        for connections in self._kept.values():
            for connection in connections:
                connection.abort()
        self._kept.clear()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._opener.close()

    def _take(self, origin: _Origin) -> Connection | None:
        kept = self._kept.get(origin)
        while kept:
            connection = kept.pop()
            if connection.is_quiet and _age(connection) < _keep_seconds(connection):
                return connection
            connection.abort()
        return None

    def _keeper(self, origin: _Origin) -> Callable[[Connection], None]:
        if origin not in self._keepers:
            self._keepers[origin] = partial(self._keep, origin)
        return self._keepers[origin]

    def _keep(self, origin: _Origin, connection: Connection) -> None:
        kept = self._kept.setdefault(origin, [])
        if self._is_closed or len(kept) >= _MAX_KEPT:
            connection.abort()
            return
        kept.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(_KEEP_SECONDS, self._let_go)

    def _let_go(self) -> None:
        """Cuts what was kept for long enough."""
        self._sweep = None
        for origin, kept in list(self._kept.items()):
            fresh = [c for c in kept if c.is_quiet and _age(c) < _keep_seconds(c)]
            for connection in set(kept).difference(fresh):
                connection.abort()
            if fresh:
                self._kept[origin] = fresh
            else:
                del self._kept[origin]
        if self._kept:
            self._sweep = asyncio.get_running_loop().call_later(1, self._let_go)


@lru_cache(256)
def address_of(url: str) -> Address:
    return Address.of(url)


def headers_of(headers: Mapping[str, str]) -> bytes:
    """As they are sent. Raises ``ValueError``."""
    for name, value in headers.items():
        if _FORBIDDEN.search(value) or _FORBIDDEN.search(name) or ":" in name or not name:
            raise ValueError(f"the header {name!r} has a character that none may have")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()


def _origin(address: Address) -> _Origin:
    return address.secure, address.host, address.port


def _age(connection: Connection) -> float:
    return asyncio.get_running_loop().time() - connection.idle_since


def _keep_seconds(connection: Connection) -> float:
    """By our rule, and by what the server has announced, with a second for the way."""
    found = _KEEP_ALIVE.search(connection.headers.get("keep-alive", ""))
    return _KEEP_SECONDS if found is None else min(_KEEP_SECONDS, int(found[1]) - 1)
