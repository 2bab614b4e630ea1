"""HTTP to providers: a POST -> batches of Server-Sent Events, with four clocks and every size bounded.

The only provider module that knows the HTTP client. Whatever goes wrong leaves it as a ``ProviderError``.
"""

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from millstream.errors import (
    OutOfDescriptors,
    ProviderError,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
    out_of_descriptors,
)
from millstream.sse import Decoder, Message, SSELimitExceeded
from millstream.version import __version__

log = logging.getLogger("millstream.providers")

# What is decoded at a time, and how long until other streams have their turn.
_SLICE_BYTES = 32 << 10
_SLICE_SECONDS = 0.004
_MAX_EVENT_BYTES = 1 << 20
_MAX_STREAM_BYTES = 64 << 20
_MAX_ANSWER_BYTES = 4 << 20
_MAX_ERROR_BYTES = 64 << 10
_MAX_RETRY_AFTER_SECONDS = 3600

# Servers on uvicorn close an idle connection after 5 s. We let go earlier, so that a request never goes
# out on a connection that is being closed: it could not be retried without the risk of a second bill.
_KEEPALIVE_SECONDS = 4

# Codes that say why a provider refused, in words of ours. A provider's own text is never passed on.
_REASONS = {
    "context_length_exceeded": "the conversation is longer than the model's context",
    "content_filter": "its content filter refused the prompt",
    "content_policy_violation": "its content policy refuses the prompt",
    "insufficient_quota": "the account's quota is used up",
    "invalid_api_key": "it does not accept the configured key",
    "invalid_value": "a parameter has a value it does not accept",
    "unsupported_parameter": "it does not support one of the parameters",
    "unsupported_value": "it does not support a parameter's value",
    "rate_limit_exceeded": "its rate limit is reached",
}


class Clocks(Struct, frozen=True):
    """How long to wait for a provider, in seconds.

    ``connect`` to have a connection; ``first_byte`` from sending the request to the first byte of
    the answer's body; ``idle`` between two reads; the total is the stream's own and lies with its
    producer, since it holds for every provider.
    """

    connect: float = 10
    first_byte: float = 120
    idle: float = 60


class Upstream:
    """One provider's HTTP endpoint. Has to be used and closed in one event loop."""

    def __init__(self, name: str, headers: Mapping[str, str], clocks: Clocks | None = None) -> None:
        self._name = name
        self._headers = {
            "User-Agent": f"millstream/{__version__}",
            # We do not unpack answers, so a small answer cannot become a large one.
            "Accept-Encoding": "identity",
            **headers,
        }
        self._clocks = clocks or Clocks()
        self._session: aiohttp.ClientSession | None = None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # The number of streams is bounded where they start, not by waiting here.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_SECONDS),
                timeout=aiohttp.ClientTimeout(sock_connect=self._clocks.connect),
                headers=self._headers,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def events(self, url: str, body: bytes) -> AsyncGenerator[list[Message]]:
        """POSTs ``body`` as JSON and yields the events of the answer, one list for each read.

        Closing the generator closes the connection, unless the answer has been read to its end.
        """
        with self._translated():
            loop = asyncio.get_running_loop()
            due = loop.time() + self._clocks.first_byte
            response = await self._send("POST", url, body, accept="text/event-stream")
            clock: _Clock | None = None
            try:
                await self._check(response, "text/event-stream")
                clock = _Clock(self._clocks.first_byte, response.close, due)
                decoder = Decoder(max_event_bytes=_MAX_EVENT_BYTES)
                received = 0
                while chunk := await response.content.readany():
                    clock.restart(self._clocks.idle)
                    received += len(chunk)
                    if received > _MAX_STREAM_BYTES:
                        raise UpstreamError(
                            f"provider '{self._name}' sent over {_MAX_STREAM_BYTES >> 20} MiB"
                        )
                    messages: list[Message] = []
                    began = loop.time()
                    for start in range(0, len(chunk), _SLICE_BYTES):
                        messages += decoder.feed(chunk[start : start + _SLICE_BYTES])
                        if loop.time() - began > _SLICE_SECONDS:
                            await asyncio.sleep(0)
                            began = loop.time()
                    if messages:
                        clock.paused = True  # the provider is not to blame for how long this takes
                        yield messages
                        messages.clear()
                        clock.paused = False
                        clock.restart(self._clocks.idle)
                    chunk = b""
            except (aiohttp.ClientError, OSError) as error:
                if clock is not None and clock.rang:
                    raise UpstreamTimeout(
                        f"provider '{self._name}' was silent for {clock.seconds:g} s"
                    ) from error
                raise
            finally:
                if clock is not None:
                    clock.stop()
                response.close()

    async def get_json(self, url: str, *, timeout_seconds: float) -> Any:
        """The JSON that a GET answers."""
        with self._translated():
            async with asyncio.timeout(timeout_seconds):
                response = await self._send("GET", url, None, accept="application/json")
                try:
                    await self._check(response, "application/json")
                    answer = await _read(response, _MAX_ANSWER_BYTES)
                    return await asyncio.to_thread(msgspec.json.decode, answer)
                finally:
                    response.close()

    async def _send(
        self, method: str, url: str, body: bytes | None, *, accept: str
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = "application/json"
        async with asyncio.timeout(self._clocks.first_byte):
            # No redirects: they could carry the key to another host.
            return await self._client().request(
                method, url, data=body, headers=headers, allow_redirects=False
            )

    async def _check(self, response: aiohttp.ClientResponse, content_type: str) -> None:
        if response.status != 200:
            raise await self._refusal(response)
        if response.content_type != content_type:
            raise UpstreamError(
                f"provider '{self._name}' answered with another content type than {content_type}"
            )
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise UpstreamError(f"provider '{self._name}' compressed its answer unasked")

    async def _refusal(self, response: aiohttp.ClientResponse) -> ProviderError:
        status = response.status
        try:
            async with asyncio.timeout(2):
                body = msgspec.json.decode(await _read(response, _MAX_ERROR_BYTES))
        except (
            aiohttp.ClientError,
            OSError,
            TimeoutError,
            msgspec.DecodeError,
            RecursionError,
            UnicodeDecodeError,
        ):
            body = None
        return refusal(
            self._name,
            status,
            body.get("error") if isinstance(body, dict) else None,
            _retry_after(response.headers.get("Retry-After")),
        )

    @contextmanager
    def _translated(self) -> Generator[None]:
        """Foreign exceptions become ``ProviderError`` here and nowhere else."""
        name = self._name
        try:
            yield
        except ProviderError:
            raise
        except aiohttp.ClientConnectorDNSError as error:
            if out_of_descriptors():  # which the C library needs to look a name up
                raise OutOfDescriptors from error
            raise _unreachable(name, "its host name does not resolve") from error
        except (aiohttp.ClientSSLError, ssl.SSLError, aiohttp.ServerFingerprintMismatch) as error:
            raise _unreachable(name, "its TLS certificate was not accepted") from error
        except aiohttp.ConnectionTimeoutError as error:
            message = f"provider '{name}' did not accept a connection in time"
            raise UpstreamTimeout(message, accepted=False) from error
        except aiohttp.ClientConnectorError as error:
            if out_of_descriptors(error):
                raise OutOfDescriptors from error
            raise _unreachable(name, "the connection was refused") from error
        except aiohttp.InvalidURL as error:
            raise _unreachable(name, "its base URL is not valid") from error
        except TimeoutError as error:
            raise UpstreamTimeout(f"provider '{name}' did not answer in time") from error
        except SSELimitExceeded as error:
            raise UpstreamError(f"provider '{name}' sent an event over the size limit") from error
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise UpstreamError(f"provider '{name}' sent broken JSON") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(f"provider '{name}' broke the connection") from error


def refusal(name: str, status: int, detail: Any, retry_after_seconds: int | None = None) -> ProviderError:
    """The error for a status and a provider's error object, be it a response or an event."""
    code = detail.get("code") if isinstance(detail, dict) else None
    reason = _REASONS.get(code) if isinstance(code, str) else None
    because = f": {reason}" if reason else ""
    log.info("provider %s refused: HTTP %s%s", name, status, because)
    if status == 429 or code == "rate_limit_exceeded":
        message = f"provider '{name}' limits our rate{because}"
        return UpstreamRateLimited(message, retry_after_seconds=retry_after_seconds)
    if status == 404 or code == "model_not_found":
        return UpstreamModelNotFound(f"provider '{name}' has no such model; see GET /v1/models")
    if status in (401, 403):
        return UpstreamRefused(f"provider '{name}' does not accept the configured key")
    if status in (408, 504):
        return UpstreamTimeout(f"provider '{name}' timed out (HTTP {status})")
    if 400 <= status < 500:
        return UpstreamRefused(f"provider '{name}' refused the request (HTTP {status}){because}")
    return UpstreamError(f"provider '{name}' failed (HTTP {status}){because}", accepted=False)


def _unreachable(name: str, why: str) -> UpstreamError:
    return UpstreamError(f"provider '{name}' cannot be reached: {why}", accepted=False)


def _retry_after(value: str | None) -> int | None:
    """Seconds, where the provider gave seconds. A date says nothing that a client needs."""
    if value is None or not re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return None
    return min(int(float(value)) + (1 if "." in value else 0), _MAX_RETRY_AFTER_SECONDS)


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, up to ``limit`` bytes: JSON that is cut there fails to decode."""
    body = bytearray()
    while len(body) < limit and (chunk := await response.content.readany()):
        body += chunk
    return bytes(body[:limit])


class _Clock:
    """Calls ``ring`` once after a silence, the first of which ends at ``due``. Restarting it costs nothing:
    its one timer, when it fires, looks whether it is due and otherwise sets itself to when it will be.
    """

    def __init__(self, seconds: float, ring: Callable[[], None], due: float) -> None:
        self.seconds = seconds
        self.rang = False
        self.paused = False
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._due = due
        self._timer = self._loop.call_at(due, self._check_silence)

    def restart(self, seconds: float) -> None:
        now = self._loop.time()
        self._due = now + seconds
        if seconds < self.seconds:
            # The timer was set for a longer silence; it has to look earlier.
            self._timer.cancel()
            self._timer = self._loop.call_at(self._due, self._check_silence)
        self.seconds = seconds

    def stop(self) -> None:
        self._timer.cancel()

    def _check_silence(self) -> None:
        now = self._loop.time()
        if now >= self._due and not self.paused:
            self.rang = True
            self._ring()
        else:
            due = self._due if now < self._due else now + self.seconds
            self._timer = self._loop.call_at(due, self._check_silence)
