"""The provider for every endpoint that speaks OpenAI's Chat Completions.

Deliberate leniency, each point for servers that exist:

1. Usage is taken from wherever it comes (finish chunk, every chunk, a chunk of its own); the last one
   counts, nothing is summed. Numbers that cannot be true are ignored.
2. The end is ``[DONE]`` or a finish reason followed by a clean end of the answer. Anything else is a cut.
3. Of several choices only the first is taken: neither a request nor the settings can ask for more.
4. Tool calls may come without an index; then a new id starts a new call. An index that cannot be is not
   mended: it may mean any call.
5. ``content`` may be a list of parts, as Mistral's reasoning models have it.
6. A lone surrogate (half of a character, by a server that cuts UTF-16) becomes U+FFFD.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from msgspec import Struct

from millstream.errors import UpstreamError
from millstream.events import FinishReason, ReasoningDelta, RefusalDelta, TextDelta
from millstream.messages import ChatRequest
from millstream.providers import MAX_TOOL_CALLS, Finish, Produced, ToolCallPiece
from millstream.providers.upstream import Upstream, refusal
from millstream.usage import Usage

_DRAIN_SECONDS = 0.2
_MAX_TOKENS = 10_000_000  # no answer is longer; a larger count is nonsense

_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(Struct):
    content: str | list[Any] | None = None
    reasoning_content: str | None = None  # DeepSeek, llama.cpp, older vLLM
    reasoning: str | None = None  # OpenRouter, Ollama, newer vLLM
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(Struct):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: Any = None
    timings: Any = None  # llama.cpp's running count, where asked for
    error: Any = None


_decode_strictly = msgspec.json.Decoder(_Chunk).decode


def _decode(data: bytes) -> _Chunk:
    """Raises ``msgspec.DecodeError`` or ``ValueError``."""
    try:
        return _decode_strictly(data)
    except msgspec.DecodeError:
        if rb"\ud" not in data.lower():
            raise
        # A string with a lone surrogate cannot be UTF-8; msgspec refuses it and Python's own reader does not.
        whole = json.dumps(json.loads(data), ensure_ascii=False)
        return _decode_strictly(whole.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))


class OpenAIProvider:
    """``max_tokens_field`` is the request's field for the longest answer, which OpenAI has renamed.
    ``extra`` is merged into every request.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        upstream: Upstream,
        *,
        max_tokens_field: str = "max_tokens",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self._name = name
        self._base_url = base_url.rstrip("/")
        self._upstream = upstream
        self._max_tokens_field = max_tokens_field
        self._extra = dict(extra or {})

    async def stream(self, request: ChatRequest, model: str) -> AsyncGenerator[Sequence[Produced]]:
        url = f"{self._base_url}/chat/completions"
        answer = _Answer(self._name)
        async with aclosing(self._upstream.events(url, self._body(request, model))) as batches:
            async for messages in batches:
                produced: list[Produced] = []
                for message in messages:
                    if message.data.startswith(b"[DONE]"):
                        answer.done = True
                        break
                    answer.chunk(message.data, produced)
                if answer.done:
                    yield [*produced, answer.finish()]
                    await _read_to_end(batches)
                    return
                if produced:
                    yield produced
        yield [answer.finish()]

    async def models(self) -> list[str]:
        listing = await self._upstream.get_json(f"{self._base_url}/models", timeout_seconds=3)
        try:
            return [str(model["id"]) for model in listing["data"]]
        except (KeyError, TypeError) as error:
            raise UpstreamError(f"provider '{self._name}' answered GET /models in an unknown form") from error

    async def close(self) -> None:
        await self._upstream.close()

    def _body(self, request: ChatRequest, model: str) -> bytes:
        body = request.for_provider()
        if "max_tokens" in body:
            body[self._max_tokens_field] = body.pop("max_tokens")
        body |= self._extra
        body |= {"model": model, "stream": True, "stream_options": {"include_usage": True}}
        return msgspec.json.encode(body)


class _Answer:
    """What has come of one answer so far."""

    def __init__(self, name: str) -> None:
        self.done = False
        self._name = name
        self._reason: FinishReason | None = None
        self._usage: Usage | None = None
        self._usage_is_stale = False  # text came after it
        self._call = -1  # index of the last tool call, for servers that leave it out

    def chunk(self, data: bytes, produced: list[Produced]) -> None:
        """Adds what the chunk says to ``produced``."""
        try:
            chunk = _decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise UpstreamError(f"provider '{self._name}' sent a chunk that cannot be read") from error
        if chunk.error:
            detail = chunk.error if isinstance(chunk.error, dict) else {}
            status = detail.get("code")
            raise refusal(self._name, status if isinstance(status, int) else 500, detail)
        for choice in chunk.choices or ():
            if choice.index != 0:
                continue
            if choice.delta is not None:
                before = len(produced)
                self._delta(choice.delta, produced)
                if len(produced) > before:
                    self._usage_is_stale = True
            if choice.finish_reason:
                if choice.finish_reason == "error":  # OpenRouter
                    raise UpstreamError(f"provider '{self._name}' failed in the middle of its answer")
                self._reason = _FINISH_REASONS.get(choice.finish_reason, "stop")
        if chunk.usage is not None or chunk.timings is not None:
            usage = _usage(chunk.usage) or _timings(chunk.timings)
            if usage is not None:
                self._usage = usage
                self._usage_is_stale = False
                produced.append(usage)

    def finish(self) -> Finish:
        if self._reason is None and not self.done:
            raise UpstreamError(f"provider '{self._name}' cut its answer off")
        usage = None if self._usage_is_stale else self._usage
        if usage is not None:
            usage = usage.sourced("provider_final")
        return Finish(self._reason or "stop", usage)

    def _delta(self, delta: _Delta, produced: list[Produced]) -> None:
        if reasoning := delta.reasoning_content or delta.reasoning:
            produced.append(ReasoningDelta(reasoning))
        if isinstance(delta.content, list):
            produced += _parts(delta.content)
        elif delta.content:
            produced.append(TextDelta(delta.content))
        if delta.refusal:
            produced.append(RefusalDelta(delta.refusal))
        for call in delta.tool_calls or ():
            if call.index is not None:
                self._call = call.index
            elif call.id:
                self._call += 1
            index = self._call if call.index is not None else max(self._call, 0)
            if not 0 <= index < MAX_TOOL_CALLS:
                raise UpstreamError(
                    f"provider '{self._name}' sent a tool call whose index is not 0 to {MAX_TOOL_CALLS - 1}"
                )
            function = call.function or _Function()
            produced.append(
                ToolCallPiece(index, function.arguments or "", call.id or "", function.name or "")
            )


def _parts(content: Iterable[Any]) -> Iterator[TextDelta | ReasoningDelta]:
    """``{"type": "text", "text": …}`` and ``{"type": "thinking", "thinking": text or text parts}``; others,
    such as references, have no words."""
    for part in content:
        match part:
            case {"type": "text", "text": str(text)} if text:
                yield TextDelta(text)
            case {"type": "thinking", "thinking": list(inner)}:
                yield from (ReasoningDelta(thought.text) for thought in _parts(inner))
            case {"type": "thinking", "thinking": str(text)} if text:
                yield ReasoningDelta(text)
            case _:
                pass


async def _read_to_end(batches: AsyncGenerator[object]) -> None:
    """Reads on to the end, which gives the connection back to the pool, unless that takes long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in batches:
                pass


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    cached = _detail(usage, "prompt_tokens_details", "cached_tokens")
    reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens")
    return Usage(prompt, completion, "provider_partial", min(cached, prompt), min(reasoning, completion))


def _timings(timings: Any) -> Usage | None:
    """llama.cpp: ``prompt_n`` tokens were read anew, ``cache_n`` came from its cache."""
    if not isinstance(timings, dict):
        return None
    read, completion = _count(timings.get("prompt_n")), _count(timings.get("predicted_n"))
    if read is None or completion is None:
        return None
    cached = _count(timings.get("cache_n")) or 0
    return Usage(read + cached, completion, "provider_partial", cached)


def _detail(usage: dict[str, Any], group: str, name: str) -> int:
    details = usage.get(group)
    return (_count(details.get(name)) or 0) if isinstance(details, dict) else 0


def _count(value: Any) -> int | None:
    """``value`` where it can be a number of tokens."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKENS:
        return value
    return None
