"""The client for Python: one answer over as many connections as it takes.

async with AsyncClient("http://localhost:8000", key) as client:
    async for frame in client.stream([{"role": "user", "content": "Hello"}]):
        print(frame.delta, end="")
"""

import asyncio
import json
import random
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from typing import Any

import msgspec
from msgspec import Struct

from millstream.errors import Interrupted, MillstreamError, ReportedError
from millstream.events import Position
from millstream.http import Client, Connection, InvalidURL, headers_of
from millstream.sse import Decoder, SSELimitExceeded

_BACKOFF_SECONDS = (0.4, 10.0)
# The server says something at least every 15 s. After twice that, and some, nobody is there.
_SILENCE_SECONDS = 35.0
_CONNECT_SECONDS = 10.0
_MAX_ANSWER_BYTES = 16 << 20
_MAX_EVENT_BYTES = 16 << 20  # an image that a model made is one event
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
_GRACE = {"grace_seconds": 15}


class Unreachable(MillstreamError):
    """No answer after all attempts."""

    code = "unreachable"
    retryable = True


class ToolCallPiece(Struct, frozen=True):
    """Of a tool call: its start has an id and a name, the rest pieces of its arguments. ``extra_content``
    has to go back to the provider with the call.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str | None = None
    extra_content: dict[str, Any] | None = None  # what the provider wants back with the call


class Failure(Struct, frozen=True):
    """Why an answer broke: a code of spec/protocol.md §8."""

    code: str
    message: str
    retryable: bool = False


class Frame(Struct, frozen=True):
    """A native frame (spec/protocol.md §4) with its position, ``<epoch>-<seq>``."""

    position: str = ""
    delta: str = ""
    finish_reason: str | None = None
    stream_id: str | None = None
    model: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_call: ToolCallPiece | None = None
    file: dict[str, str] | None = None  # its media_type and url
    usage: dict[str, Any] | None = None
    error: Failure | None = None

    @property
    def is_last(self) -> bool:
        return self.error is not None or self.finish_reason is not None


class AsyncClient:
    """Has to be entered (``async with``). ``key`` is an API key or a browser token."""

    def __init__(self, url: str, key: str, *, attempts: int = 10) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}
        self._attempts = attempts

    async def __aenter__(self) -> "AsyncClient":
        self._client = Client(self._headers, connect_seconds=_CONNECT_SECONDS)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.close()

    async def stream(
        self,
        messages: Sequence[Mapping[str, Any]] = (),
        *,
        stream_id: str | None = None,
        after: str | None = None,
        **request: Any,
    ) -> AsyncGenerator[Frame]:
        """The frames of an answer, each once and in order; the last has a ``finish_reason`` or an ``error``.

        Starts a stream with ``messages`` and whatever else ``POST /v1/chat/stream`` takes, or follows
        ``stream_id``. Leaving early leaves the stream to its ``on_disconnect`` (15 s to come back, unless
        given), and stops it before its first frame; ``cancel`` stops it later. Raises ``MillstreamError``
        with the server's code, or ``Unreachable``.
        """
        body = {"messages": list(messages), "on_disconnect": _GRACE} | request
        key = secrets.token_urlsafe(18)
        last = None if after is None else Position.parse(after)
        try:
            async with aclosing(self._connections(body, key, stream_id, last)) as frames:
                async for frame in frames:
                    stream_id = frame.stream_id or stream_id
                    yield frame
        except (asyncio.CancelledError, GeneratorExit):
            if stream_id is None:
                await self._cancel_start(body, key)
            raise

    async def _connections(
        self, body: Mapping[str, Any], key: str, stream_id: str | None, last: Position | None
    ) -> AsyncGenerator[Frame]:
        failures = 0
        while True:
            floor = 0.0
            try:
                async with self._open(body, key, stream_id, last) as response:
                    if response.status == 204:
                        raise Interrupted
                    if response.status != 200:
                        raise await _refusal(response)
                    stream_id = response.headers.get("x-stream-id", stream_id)
                    async with aclosing(_frames(response)) as frames:
                        async for frame in frames:
                            position = Position.parse(frame.position)
                            place = _place(last, position)
                            if place > 1:
                                break  # something is missing: asked for again from where we are
                            if place < 1:
                                continue
                            failures, last = 0, position
                            yield frame
                            if frame.is_last:
                                return
                error: MillstreamError = Unreachable("the connection ended before the answer did")
            except MillstreamError as refused:
                if not refused.retryable:
                    raise
                error, floor = refused, float(refused.retry_after_seconds or 0)
            except (OSError, InvalidURL):
                error = Unreachable(f"{self._url} cannot be reached")
            failures += 1
            if failures >= self._attempts:
                raise error
            first, most = _BACKOFF_SECONDS
            # Full jitter, so that clients that were cut together do not come back together.
            jitter = random.uniform(0, min(most, first * 2 ** (failures - 1)))  # noqa: S311  # no secret
            await asyncio.sleep(max(floor, jitter))

    async def _cancel_start(self, body: Mapping[str, Any], key: str) -> None:
        """Stops a stream whose id never came: the same start finds it again."""
        with suppress(MillstreamError, OSError):
            async with asyncio.timeout(_CONNECT_SECONDS):
                async with self._ask("POST", "/v1/streams", {"Idempotency-Key": key}, body) as response:
                    if response.status == 201:
                        await self.cancel(json.loads(await _whole(response))["stream_id"])

    async def reach(self, seconds: float = 2) -> None:
        """Raises ``Unreachable`` where nobody answers within so long. A stream tries for longer: its server
        may be starting again. Any answer will do.
        """
        try:
            async with asyncio.timeout(seconds), self._ask("GET", "/healthz"):
                pass
        except (OSError, InvalidURL) as error:
            raise Unreachable(f"{self._url} cannot be reached") from error

    async def cancel(self, stream_id: str) -> dict[str, Any]:
        """Stops a stream, wherever it runs; its receipt so far. Raises ``MillstreamError``."""
        return await self._json("POST", f"/v1/streams/{stream_id}/cancel")

    async def receipt(self, stream_id: str) -> dict[str, Any]:
        """Raises ``MillstreamError``."""
        return await self._json("GET", f"/v1/streams/{stream_id}")

    def _open(
        self, body: Mapping[str, Any], key: str, stream_id: str | None, last: Position | None
    ) -> AbstractAsyncContextManager[Connection]:
        if stream_id is None:
            # A start whose answer was lost is not a second one.
            return self._ask("POST", "/v1/chat/stream", {"Idempotency-Key": key}, body)
        headers = {} if last is None else {"Last-Event-ID": str(last)}
        return self._ask("GET", f"/v1/streams/{stream_id}/events", headers)

    async def _json(self, method: str, path: str) -> dict[str, Any]:
        try:
            async with self._ask(method, path) as response:
                if response.status != 200:
                    raise await _refusal(response)
                found: dict[str, Any] = json.loads(await _whole(response))
                return found
        except (OSError, InvalidURL) as error:
            raise Unreachable(f"{self._url} cannot be reached") from error

    @asynccontextmanager
    async def _ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Connection]:
        """The answer, once its head is there."""
        url, more, data = self._url + path, dict(headers or {}), b""
        if body is not None:
            more["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        length = len(data) if method == "POST" else None
        connection = await self._client.connect(url)
        try:
            async with asyncio.timeout(_SILENCE_SECONDS):
                await connection.ask(self._client.head(method, url, headers_of(more), length=length), data)
            yield connection
        finally:
            connection.release()


async def _frames(response: Connection) -> AsyncGenerator[Frame]:
    decoder = Decoder(max_event_bytes=_MAX_EVENT_BYTES)
    while chunk := await _read(response):
        try:
            for message in decoder.feed(chunk):
                if message.data != b"[DONE]":
                    yield msgspec.structs.replace(_decode(message.data), position=message.id)
        except (SSELimitExceeded, ValueError, msgspec.MsgspecError) as error:
            raise _not_ours(response.status, retryable=False) from error


async def _read(response: Connection) -> bytes:
    async with asyncio.timeout(_SILENCE_SECONDS):
        return await response.read()


async def _whole(response: Connection) -> bytes:
    async with asyncio.timeout(_SILENCE_SECONDS):
        return await response.read_all(_MAX_ANSWER_BYTES)


_decode = msgspec.json.Decoder(Frame).decode


def _place(last: Position | None, position: Position) -> int:
    """1 for what follows ``last``, less for what was seen, more where something is missing."""
    epoch, seq = last or Position(1, 0)
    if position.epoch == epoch:
        return position.seq - seq
    if position.epoch < epoch:
        return 0
    return 1 if position == (epoch + 1, 1) else 2


async def _refusal(response: Connection) -> MillstreamError:
    try:
        error = json.loads(await _whole(response))["error"]
        seconds = response.headers.get("retry-after", "")
        return ReportedError(
            error["code"],
            error["message"],
            status=response.status,
            retryable=error.get("retryable") is True or error["code"] in ("overloaded", "draining"),
            retry_after_seconds=int(seconds) if seconds.isdecimal() else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return _not_ours(response.status, retryable=response.status in _RETRYABLE)


def _not_ours(status: int, *, retryable: bool) -> MillstreamError:
    if status == 413:
        message = "a proxy before Millstream takes no request of this length"
        return ReportedError("too_large", message, status=status, retryable=False)
    message = f"the answer (HTTP {status}) did not come from Millstream"
    return ReportedError("bad_response", message, status=status, retryable=retryable)
