"""HTTP to providers: a POST -> batches of Server-Sent Events, with clocks and every size bounded.

The only provider module that knows the HTTP client. Whatever goes wrong leaves it as a ``ProviderError``.
"""

import asyncio
import json
import math
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import msgspec

from millstream.errors import (
    OutOfDescriptors,
    ProviderError,
    UpstreamError,
    UpstreamTimeout,
    out_of_descriptors,
)
from millstream.http import (
    UNREACHABLE,
    CannotConnect,
    Client,
    Connection,
    ConnectTimeout,
    NotHTTP,
    Proxies,
    headers_of,
    in_words,
    retry_after,
)
from millstream.providers.clocks import Clocks, Silence
from millstream.providers.endings import MAX_RETRY_AFTER_SECONDS, failure, reported_error
from millstream.sse import Decoder, Message, SSELimitExceeded, valid
from millstream.version import __version__

PROXY_OF_ENVIRONMENT = "environment"  # HTTPS_PROXY, HTTP_PROXY and NO_PROXY decide

# What is decoded at a time, and how long until other streams have their turn.
_SLICE_BYTES = 32 << 10
_SLICE_SECONDS = 0.004
_MAX_EVENT_BYTES = 8 << 20  # an image in one event has megabytes
_MAX_STREAM_BYTES = 64 << 20
_MAX_ANSWER_BYTES = 4 << 20
_MAX_ERROR_BYTES = 64 << 10
_REFUSAL_SECONDS = 2.0  # for the words of a refusal
_DRAIN_SECONDS = 0.2  # for the end of a connection that has said everything

# In front of what is no stream: its first character tells, since servers label streams as anything.
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"

_POST = headers_of({"Content-Type": "application/json", "Accept": "text/event-stream"})
_GET = headers_of({"Accept": "application/json"})

# How many contents the caller has read from what it was given, and for how many seconds at most the next is
# waited for, where that is less than usual.
Patience: TypeAlias = Callable[[], tuple[int, float | None]]


class Upstream:
    """One provider's HTTP endpoint. Has to be used and closed in one event loop."""

    def __init__(
        self,
        name: str,
        headers: Mapping[str, str],
        clocks: Clocks | None = None,
        *,
        pings: bool = False,
        proxy: str | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._name = name
        self._clocks = clocks or Clocks()
        self._pings = pings
        from_environment = proxy == PROXY_OF_ENVIRONMENT
        self._client = Client(
            {
                "User-Agent": f"millstream/{__version__}",
                # We do not unpack answers, so a small answer cannot become a large one.
                "Accept-Encoding": "identity",
                **headers,
            },
            connect_seconds=min(self._clocks.connect, self._clocks.first_byte),
            proxies=Proxies(None if from_environment else proxy, from_environment=from_environment),
            ca_file=ca_file,
        )

    async def close(self) -> None:
        self._client.close()

    async def events(
        self, url: str, body: bytes, patience: Patience, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[list[Message]]:
        """POSTs ``body`` as JSON, with more ``headers``, and yields the events of the answer, one list for
        each read. An answer that is JSON is one event.

        Closing the generator closes the connection, unless the answer has been read to its end. What was
        complete before a fault is yielded before the fault is raised.
        """
        try:
            due = asyncio.get_running_loop().time() + self._clocks.first_byte
            connection = await self._client.connect(url)
            clock = Silence(self._clocks, due, connection.abort)
            try:
                more = _POST + headers_of(headers) if headers else _POST
                await connection.ask(self._client.head("POST", url, more, length=len(body)), body)
                del body  # which is as long as the prompt
                await self._check(connection)
                connection.forget_headers()
                answer = _Body(self._name)
                contents = 0
                while chunk := await connection.read():
                    if not answer.received:
                        clock.first_byte()
                    elif self._pings:
                        clock.sign_of_life()
                    messages = await answer.read(chunk)
                    del chunk  # which may be long, while the next one is waited for
                    if messages:
                        clock.pause()
                        yield messages
                        messages.clear()
                        clock.resume()
                        before, (contents, within) = contents, patience()
                        if contents > before or within is not None:
                            clock.content(within)
                    answer.check()
                if rest := answer.rest():
                    yield rest
            except OSError as error:
                if clock.broken is not None:
                    raise UpstreamTimeout(f"provider '{self._name}' {clock.broken}") from error
                raise
            finally:
                clock.stop()
                connection.release()
        except Exception as error:
            self._raise(error)

    async def get_json(self, url: str, *, timeout_seconds: float) -> Any:
        """The JSON that a GET answers."""
        try:
            async with asyncio.timeout(timeout_seconds):
                connection = await self._client.connect(url)
                try:
                    await connection.ask(self._client.head("GET", url, _GET))
                    await self._check(connection)
                    answer = await connection.read_all(_MAX_ANSWER_BYTES)
                    return await asyncio.to_thread(msgspec.json.decode, answer)
                finally:
                    connection.release()
        except Exception as error:
            self._raise(error)

    async def _check(self, connection: Connection) -> None:
        if not 200 <= connection.status < 300:
            raise await self._refusal(connection)
        encoding = connection.headers.get("content-encoding", "").lower()
        if encoding not in ("", "identity", "none"):
            raise UpstreamError(f"provider '{self._name}' compressed its answer unasked")

    async def _refusal(self, connection: Connection) -> ProviderError:
        try:
            async with asyncio.timeout(_REFUSAL_SECONDS):
                body: object = msgspec.json.decode(await connection.read_all(_MAX_ERROR_BYTES))
        except (OSError, TimeoutError, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            body = None
        pause = retry_after(connection.headers)
        return failure(
            self._name,
            reported_error(body) or (body if isinstance(body, dict) else None),
            status=connection.status,
            retry_after_seconds=None if pause is None else min(math.ceil(pause), MAX_RETRY_AFTER_SECONDS),
        )

    def _raise(self, error: Exception) -> NoReturn:
        translated = self._translated(error)
        if translated is error:
            raise error
        raise translated from error

    def _translated(self, error: Exception) -> Exception:
        """Foreign exceptions become a ``ProviderError`` here and nowhere else; others stay what they are."""
        name = self._name
        match error:
            case ProviderError():
                return error
            # The C library needs a descriptor to look a name up, too.
            case socket.gaierror() if out_of_descriptors():
                return OutOfDescriptors()
            case CannotConnect() if out_of_descriptors(error):
                return OutOfDescriptors()
            case ConnectTimeout():
                message = f"provider '{name}' did not accept a connection in time"
                return UpstreamTimeout(message, accepted=False)
            case _ if isinstance(error, UNREACHABLE):
                return UpstreamError(
                    f"provider '{name}' cannot be reached: {in_words(error)}", accepted=False
                )
            case TimeoutError():
                return UpstreamTimeout(f"provider '{name}' did not answer in time")
            case msgspec.DecodeError() | RecursionError() | UnicodeDecodeError():
                return UpstreamError(f"provider '{name}' sent broken JSON")
            case NotHTTP():
                return UpstreamError(f"provider '{name}' sent what is no HTTP answer")
            case OSError():
                return UpstreamError(f"provider '{name}' broke the connection")
        return error


def tolerant_json(data: bytes) -> Any:
    """What Python's reader makes of JSON that msgspec does not read: it takes NaN and half characters. Those
    become U+FFFD, and whole numbers of over 64 bits floats, as msgspec has them: it could not write them
    again. Raises ``ValueError`` where it is none.
    """
    try:
        value = json.loads(data, parse_int=_whole_number)
        if rb"\ud" in data.lower():
            whole = json.dumps(value, ensure_ascii=False)
            mended = whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            value = json.loads(mended, parse_int=_whole_number)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return value


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else float(digits)


async def read_to_end(batches: AsyncGenerator[object]) -> None:
    """Reads on to the end, which gives the connection back to the pool, unless that takes long."""
    with suppress(TimeoutError, ProviderError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in batches:
                pass


def _is_error(data: bytes) -> bool:
    """Whether ``data`` is JSON that says what went wrong."""
    try:
        return reported_error(tolerant_json(data)) is not None
    except ValueError:
        return False


class _Body:
    """The body of an answer: bytes -> events, with every size bounded. What it is, a stream of events or
    JSON, its first character says.
    """

    __slots__ = (
        "_decoder",
        "_fault",
        "_json",
        "_name",
        "received",
    )

    def __init__(self, name: str) -> None:
        self.received = 0  # bytes
        self._name = name
        self._decoder: Decoder | None = None
        self._json: bytearray | None = None
        self._fault: UpstreamError | None = None

    async def read(self, chunk: bytes) -> list[Message]:
        """The events that are complete with ``chunk``, or were before the fault that ``check`` raises."""
        self.received += len(chunk)
        if self.received > _MAX_STREAM_BYTES:
            self._fault = UpstreamError(f"provider '{self._name}' sent over {_MAX_STREAM_BYTES >> 20} MiB")
            return []
        if self._decoder is None and self._json is None:
            self._begin(chunk)
        if self._json is not None:
            self._json += chunk
            if len(self._json) > _MAX_EVENT_BYTES:
                self._fault = UpstreamError(f"provider '{self._name}' sent an answer over the size limit")
        if self._decoder is None:
            return []
        messages: list[Message] = []
        began = time.monotonic()
        try:
            for start in range(0, len(chunk), _SLICE_BYTES):
                messages += self._decoder.feed(chunk[start : start + _SLICE_BYTES])
                if time.monotonic() - began > _SLICE_SECONDS:
                    await asyncio.sleep(0)
                    began = time.monotonic()
        except SSELimitExceeded as error:
            messages += error.before
            self._fault = UpstreamError(f"provider '{self._name}' sent an event over the size limit")
        return messages

    def check(self) -> None:
        """Raises ``UpstreamError`` where something was too long, or no answer."""
        if self._fault is not None:
            raise self._fault

    def rest(self) -> list[Message]:
        """What the end of the body completes."""
        if self._json is None:
            stray = self._decoder.stray if self._decoder is not None else b""
            return [Message(valid(stray))] if stray and _is_error(stray) else []
        return [Message(valid(bytes(self._json.removeprefix(_BOM).lstrip(_SPACE))))]

    def _begin(self, chunk: bytes) -> None:
        first = chunk.removeprefix(_BOM).lstrip(_SPACE)[:1]
        if first == b"<":
            self._fault = UpstreamError(
                f"provider '{self._name}' answered with a web page; its base URL is up to and with /v1"
            )
        elif first in (b"{", b"["):
            self._json = bytearray()
        elif first:
            self._decoder = Decoder(max_event_bytes=_MAX_EVENT_BYTES)
