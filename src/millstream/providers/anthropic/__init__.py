"""The provider for Anthropic's Messages, and for every server that speaks that API.

What holds for all of them:

1. The end is ``message_stop``. An answer that ends without it was cut.
2. Usage is a running total: every count takes the place of the one before, none is added up. Tokens that were
   read from a cache or written to one stand beside ``input_tokens`` there, and are part of the prompt here.
3. Pings are signs of life. Events, blocks and deltas that nobody here knows are passed over.
4. What was understood before a fault is yielded before the fault is raised.
5. An answer that is whole JSON, though a stream was asked for, is an answer.
"""

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec

from millstream.errors import UpstreamError
from millstream.events import AnswerStart, FinishReason, Reasoning, ReasoningDelta, Source, Text, TextDelta
from millstream.prompt import BETAS, Prompt
from millstream.providers import (
    MAX_TOOL_CALLS,
    Finish,
    PartBreak,
    PartOpen,
    Produced,
    ToolCallPiece,
    UsageReport,
    reading,
)
from millstream.providers.anthropic import models, request
from millstream.providers.endings import failure, finish_reason, reported_error
from millstream.providers.extra import merged
from millstream.providers.upstream import Upstream
from millstream.sse import Message
from millstream.usage import Usage

BETA_HEADER = "anthropic-beta"
VERSION = "2023-06-01"  # the newer one refuses temperature, top_p and top_k of every model

_MAX_TOKENS = 10_000_000
_MAX_PAGES = 10

# Ends that only this API has -> those that all know.
_ENDS = {"pause_turn": "end_turn", "compaction": "end_turn"}

# Of the message that an answer begins with: what is said elsewhere, or is the same in all.
_KNOWN_OF_ANSWER = ("id", "type", "role", "model", "content", "stop_reason", "stop_sequence")
_KNOWN_OF_CALL = ("type", "id", "name", "input")
_BESIDE_END = ("context_management", "input_transformations")  # what is said with the end, and not of it


class AnthropicProvider:
    """``base_url`` may end with ``/v1``, or not. ``extra`` is merged into every request; ``betas`` are tried
    with every one, besides those that its client names.
    """

    api = request.API
    refused = ("seed",)

    def __init__(
        self,
        name: str,
        base_url: str,
        upstream: Upstream,
        *,
        extra: Mapping[str, Any] | None = None,
        betas: Sequence[str] = (),
    ) -> None:
        self._name = name
        self._base_url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self._upstream = upstream
        self._extra = dict(extra or {})
        self._betas = betas
        self._listed: dict[str, models.Traits] = {}

    def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        url = f"{self._base_url}/messages"
        body = partial(self._body, prompt, model)
        return reading.answer(Reading(self._name), self._upstream, url, body, self._tried(prompt))

    async def models(self) -> list[str]:
        listed: dict[str, models.Traits] = {}
        after = ""
        for _ in range(_MAX_PAGES):
            url = f"{self._base_url}/models?limit=1000{after}"
            page = await self._upstream.get_json(url, timeout_seconds=3)
            entries = page.get("data") if isinstance(page, dict) else None
            if not isinstance(entries, list):
                raise UpstreamError(f"provider '{self._name}' answered GET /models in an unknown form")
            for entry in entries:
                if isinstance(entry, dict) and isinstance(name := entry.get("id"), str) and name:
                    listed[name] = models.of_listing(entry)
            last = page.get("last_id")
            if page.get("has_more") is not True or not isinstance(last, str):
                break
            after = f"&after_id={quote(last, safe='')}"
        self._listed = listed
        return list(listed)

    async def close(self) -> None:
        await self._upstream.close()

    def _tried(self, prompt: Prompt) -> dict[str, str]:
        names = dict.fromkeys((*self._betas, *prompt.extra_of(request.API).get(BETAS, ())))
        return {BETA_HEADER: ", ".join(names)} if names else {}

    def _body(self, prompt: Prompt, model: str) -> bytes:
        traits = self._listed.get(model) or models.of_name(model)
        sent = merged(request.body(self._name, prompt, traits), self._extra)
        return msgspec.json.encode(sent | {"model": model, "stream": True})


class _Block:
    """A block of content that is open. ``call`` is the index of its tool call."""

    __slots__ = ("call", "kind", "said", "signature", "sources", "summary", "whole")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.call = -1
        self.said = False  # whether any arguments of its call have come
        self.whole = ""  # arguments that were there at its start
        self.signature = ""
        self.sources: dict[str, Source] = {}
        self.summary: dict[str, Any] = {}  # of the conversation, as the block itself


class Reading(reading.Reading):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._blocks: dict[int, _Block] = {}
        self._current: int | None = None  # the block of prose that is being written
        self._calls = 0
        self._usage: dict[str, Any] = {}  # every count, as it was said last
        self._last_usage: dict[str, Any] | None = None  # of the end
        self._reason: FinishReason | None = None
        self._word = ""
        self._stop_sequence: str | None = None
        self._extra: dict[str, Any] = {}

    def patience(self) -> tuple[int, float | None]:
        return self.contents, reading.AFTERTHOUGHT_SECONDS if self._reason is not None else None

    def _message(self, message: Message, produced: list[Produced]) -> None:
        if message.event == "ping" or not message.data.strip():
            return
        try:
            said = reading.decoded(message.data)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            if message.event not in _EVENTS:
                return  # an event that nobody here knows
            raise UpstreamError(f"provider '{self._name}' sent an event that cannot be read")
        match said.get("type") or message.event:
            case "content_block_delta":
                self._delta(_index(said), _object(said, "delta"), produced)
            case "content_block_start":
                self._start(_index(said), _object(said, "content_block"), produced)
            case "content_block_stop":
                self._stop(_index(said), produced)
            case "message_start":
                self._begin(_object(said, "message"), produced)
            case "message_delta":
                self._end(_object(said, "delta"), said, produced)
            case "message_stop":
                self._finish(produced)
            case "error":
                raise failure(self._name, said.get("error") or said)
            case "message" if "content" in said:
                self._whole(said, produced)
            case _:
                if message.event == "message" and (error := reported_error(said)) is not None:
                    raise failure(self._name, error)

    def _begin(self, message: dict[str, Any], produced: list[Produced]) -> None:
        report = self._count(message.get("usage"))
        extra = {name: value for name, value in message.items() if name not in _KNOWN_OF_ANSWER}
        usage = report.usage if report is not None else None
        identity, model = _text(message, "id"), _text(message, "model")
        produced.append(AnswerStart(request.API, identity, model, usage, extra or None))
        if report is not None:
            produced.append(report)

    def _start(self, index: int, block: dict[str, Any], produced: list[Produced]) -> None:
        kind = _text(block, "type")
        opened = self._blocks[index] = _Block(kind)
        match kind:
            case "text":
                extra = {name: value for name, value in block.items() if name not in ("type", "text")}
                self._open(index, Text(extra or None), produced)
                self._say(TextDelta(_text(block, "text")), produced)
            case "thinking":
                self._open(index, Reasoning(), produced)
                self._say(ReasoningDelta(_text(block, "thinking")), produced)
                opened.signature = _text(block, "signature")
            case "redacted_thinking":
                self.contents += 1
                produced.append(Reasoning(redacted=_text(block, "data")))
            case "compaction":
                opened.summary = dict(block)
            case "tool_use":
                opened.call = self._call(block, produced)
                if isinstance(given := block.get("input"), dict) and given:
                    opened.whole = msgspec.json.encode(given).decode()
            case _:
                pass  # of tools that the provider runs

    def _open(self, index: int, content: Text | Reasoning, produced: list[Produced]) -> None:
        self._current = index
        self.contents += 1
        produced.append(PartOpen(content))

    def _call(self, block: dict[str, Any], produced: list[Produced]) -> int:
        name, index = _text(block, "name"), self._calls
        if not name:
            raise UpstreamError(f"provider '{self._name}' sent a tool call without a name")
        if index == MAX_TOOL_CALLS:
            raise UpstreamError(f"provider '{self._name}' sent over {MAX_TOOL_CALLS} tool calls")
        self._calls += 1
        self.contents += 1
        extra = {key: value for key, value in block.items() if key not in _KNOWN_OF_CALL}
        kept = {request.API: extra} if extra else None
        produced.append(
            ToolCallPiece(index, "", _text(block, "id") or f"toolu_{secrets.token_hex(12)}", name, kept)
        )
        return index

    def _delta(self, index: int, delta: dict[str, Any], produced: list[Produced]) -> None:
        kind = _text(delta, "type")
        block = self._blocks.get(index)
        if block is None:
            block = self._blocks[index] = _Block(_KIND_OF.get(kind, ""))
        match kind:
            case "text_delta" if block.kind == "text":
                self._go_on(index, Text(), produced)
                self._say(TextDelta(_text(delta, "text")), produced)
            case "thinking_delta" if block.kind == "thinking":
                self._go_on(index, Reasoning(), produced)
                self._say(ReasoningDelta(_text(delta, "thinking")), produced)
            case "signature_delta":
                block.signature += _text(delta, "signature")
            case "input_json_delta" if block.call >= 0:
                if arguments := _text(delta, "partial_json"):
                    block.said = True
                    self.contents += 1
                    produced.append(ToolCallPiece(block.call, arguments))
            case "citations_delta" if block.kind == "text":
                if isinstance(cited := delta.get("citation"), dict):
                    self._go_on(index, Text(), produced)
                    produced.append(TextDelta("", extra={"citation": cited}))
                    if url := _text(cited, "url"):
                        block.sources.setdefault(url, Source(url, _text(cited, "title")))
            case "compaction_delta" if block.summary:
                block.summary |= {name: value for name, value in delta.items() if name != "type"}
            case "input_json_delta" if not block.kind:
                raise UpstreamError(f"provider '{self._name}' sent a piece of a tool call that has no start")
            case _:
                pass

    def _go_on(self, index: int, content: Text | Reasoning, produced: list[Produced]) -> None:
        """Blocks come one after the other; should they not, each turn is a part of its own."""
        if self._current != index:
            self._open(index, content, produced)

    def _say(self, delta: TextDelta | ReasoningDelta, produced: list[Produced]) -> None:
        if delta.text:
            self.contents += 1
            produced.append(delta)

    def _stop(self, index: int, produced: list[Produced]) -> None:
        block = self._blocks.pop(index, None)
        if block is None:
            return
        if block.call >= 0:
            if not block.said:  # a call without arguments has none written, which is no JSON
                produced.append(ToolCallPiece(block.call, block.whole or "{}"))
            produced.append(PartBreak(index=block.call))
        elif block.summary:
            self.contents += 1
            produced.append(Reasoning(extra=block.summary))
        elif self._current == index:
            self._current = None
            produced.append(PartBreak(Reasoning(block.signature) if block.kind == "thinking" else None))
            produced += block.sources.values()

    def _end(self, delta: dict[str, Any], said: dict[str, Any], produced: list[Produced]) -> None:
        """The answer is over, for what ``delta`` tells. What it has used is beside that, in ``said``."""
        usage = said.get("usage")
        if (report := self._count(usage)) is not None:
            self._last_usage = usage if isinstance(usage, dict) else None
            produced.append(report)
        known = ("stop_reason", "stop_sequence")
        self._extra |= {name: value for name, value in delta.items() if name not in known}
        self._extra |= {name: said[name] for name in _BESIDE_END if name in said}
        if isinstance(sequence := delta.get("stop_sequence"), str):
            self._stop_sequence = sequence
        if word := _text(delta, "stop_reason"):
            self._word = word
            self._reason = finish_reason(self._name, word, _ENDS)

    def _count(self, usage: object) -> UsageReport | None:
        """Takes the usage object ``usage``; None where it counts nothing."""
        if not isinstance(usage, dict):
            return None
        told = {name: value for name, value in usage.items() if not _is_no_count(name, value)}
        # Of later counts only what they say, which a zero behind a number is not (gateways send some); the
        # first one is kept with its nulls, as it came.
        self._usage |= {name: value for name, value in told.items() if _says(value) or not self._usage}
        read, written = _tokens(self._usage, "input_tokens"), _tokens(self._usage, "output_tokens")
        cached = _tokens(self._usage, "cache_read_input_tokens")
        cache_write = _tokens(self._usage, "cache_creation_input_tokens")
        hour = _tokens(_object(self._usage, "cache_creation"), "ephemeral_1h_input_tokens")
        reasoning = _tokens(_object(self._usage, "output_tokens_details"), "thinking_tokens")
        prompt = read + cached + cache_write
        if not prompt + written:
            return None
        counts = Usage(
            prompt,
            written,
            "provider_partial",
            cached,
            min(reasoning, written),
            cache_write,
            min(hour, cache_write),
        )
        return UsageReport(counts, dict(self._usage))

    def _finish(self, produced: list[Produced]) -> None:
        if self._reason is None:
            raise UpstreamError(f"provider '{self._name}' ended its answer without a reason")
        for index in sorted(self._blocks):
            self._stop(index, produced)
        usage = None
        if self._last_usage is not None and (report := self._count({})) is not None:
            usage = report.usage.sourced("provider_final")
            self._extra["usage"] = self._last_usage
        self.is_done = True
        produced.append(
            Finish(self._reason, usage, self._word, self._stop_sequence, extra=self._extra or None)
        )

    def _whole(self, message: dict[str, Any], produced: list[Produced]) -> None:
        """An answer in one object, as what it would be in events."""
        blocks = message.get("content")
        self._begin(message, produced)
        for index, block in enumerate(blocks if isinstance(blocks, list) else ()):
            if isinstance(block, dict):
                cited = block.get("citations")
                known = {name: value for name, value in block.items() if name != "citations"}
                self._start(index, known, produced)
                for citation in cited if isinstance(cited, list) else ():
                    self._delta(index, {"type": "citations_delta", "citation": citation}, produced)
                self._stop(index, produced)
        ends = ("stop_reason", "stop_sequence", "stop_details")
        self._end({name: message[name] for name in ends if name in message}, message, produced)
        self._finish(produced)


_EVENTS = frozenset(
    (
        "message", "message_start", "message_delta", "message_stop", "content_block_start",
        "content_block_delta", "content_block_stop", "error",
    )
)  # fmt: skip
_KIND_OF = {"text_delta": "text", "citations_delta": "text", "thinking_delta": "thinking"}


def _object(said: dict[str, Any], name: str) -> dict[str, Any]:
    value = said.get(name)
    return value if isinstance(value, dict) else {}


def _text(said: dict[str, Any], name: str) -> str:
    value = said.get(name)
    return value if isinstance(value, str) else ""


def _index(said: dict[str, Any]) -> int:
    value = said.get("index")
    return value if isinstance(value, int) else 0


def _says(value: object) -> bool:
    """Whether it is a number but 0, or has one in it."""
    return any(value.values()) if isinstance(value, dict) else bool(value)


def _is_no_count(name: str, value: object) -> bool:
    """Whether ``value`` should be a number of tokens and is none."""
    if not name.endswith("_tokens") or value is None:
        return False
    return not isinstance(value, (int, float)) or not 0 <= value <= _MAX_TOKENS


def _tokens(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_TOKENS:
        return 0
    return value
