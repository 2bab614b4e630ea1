"""Addresses: a URL -> where to connect to, what to ask for there, and which proxy leads there."""

import base64
import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from msgspec import Struct

_PORTS = {"http": 80, "https": 443}
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?", re.IGNORECASE | re.ASCII)
_PATH = "/:@!$&'()*+,;=~-._%?"  # what may stand in a path with its query as it is (RFC 3986, §3.3 and §3.4)


class InvalidURL(ValueError):
    """A URL that nothing can be asked for. Its text never has the URL, which may have a password."""


class Address(Struct, frozen=True):
    """Where an http or https URL leads. ``authority`` is what the Host header says, ``path`` has the query,
    and ``credentials`` are those of the URL, as an Authorization header has them.
    """

    secure: bool
    host: str
    port: int
    authority: str
    path: str
    credentials: str = ""

    @classmethod
    def of(cls, url: str) -> "Address":
        """Raises ``InvalidURL``."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise InvalidURL("the URL cannot be read") from error
        if parts.scheme not in _PORTS:
            raise InvalidURL("the URL has to begin with http:// or https://")
        host = _host(host)
        default = _PORTS[parts.scheme]
        authority = f"[{host}]" if ":" in host else host
        path = quote(parts.path or "/", _PATH)
        return cls(
            parts.scheme == "https",
            host,
            default if port is None else port,
            authority if port in (None, default) else f"{authority}:{port}",
            f"{path}?{quote(parts.query, _PATH)}" if parts.query else path,
            _basic(parts.username, parts.password),
        )

    @property
    def absolute(self) -> str:
        """The URL again, without credentials: what a proxy is asked for."""
        return f"http{'s' if self.secure else ''}://{self.authority}{self.path}"


class Proxies:
    """Which proxy leads to an address: always the one at ``url``, or, with ``from_environment``, what
    ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` say now; without either, none.
    """

    def __init__(self, url: str | None = None, *, from_environment: bool = False) -> None:
        self._always = None if url is None else Address.of(url)
        self._from_environment = from_environment

    def to(self, address: Address) -> Address | None:
        """Raises ``InvalidURL`` where the environment names what is none."""
        if not self._from_environment:
            return self._always
        named: Mapping[str, str] = getproxies_environment()
        url = named.get("https" if address.secure else "http") or named.get("all")
        if not url or proxy_bypass(f"{address.host}:{address.port}"):
            return None
        return Address.of(url if "://" in url else f"http://{url}")


def _host(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise InvalidURL("the URL's host is no name") from error
    if not _NAME.fullmatch(name):
        raise InvalidURL("the URL's host is no name")
    return name


def _basic(user: str | None, password: str | None) -> str:
    if user is None and password is None:
        return ""
    pair = f"{unquote(user or '')}:{unquote(password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"
