"""The provider for Gemini's own API, ``streamGenerateContent``.

Facts: the types and converters of google-genai 3.6, https://ai.google.dev/api/generate-content and
https://ai.google.dev/gemini-api/docs/thought-signatures. What holds for every answer:

1. The end is a finish reason and then a clean end of the connection. There is no ``[DONE]``.
2. Counts are running totals, of which the last one counts. Thoughts are counted beside the candidates, what
   hosted tools have read beside the prompt.
3. A function call comes whole and mostly without an id: it gets one of ours.
4. A thought signature goes back to where it came from. With a call it travels in ``extra_content``, in the
   form that Gemini's OpenAI-compatible endpoint has for it; with thoughts as their signature, which says
   whose it is, because Gemini refuses a request with another vendor's.
5. What was understood before a fault, in the same read or the same event, is yielded before the fault is
   raised.
"""

import mimetypes
import re
import secrets
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec

from millstream import data_urls
from millstream import prompt as asked
from millstream.errors import RequestRefused, UpstreamError
from millstream.events import (
    AnswerStart,
    File,
    FinishReason,
    Reasoning,
    ReasoningDelta,
    Source,
    Text,
    TextDelta,
)
from millstream.prompt import Effort, Message, Prompt
from millstream.providers import (
    MAX_CHOICES,
    MAX_TOOL_CALLS,
    SAID,
    Finish,
    InChoice,
    PartBreak,
    Produced,
    ToolCallPiece,
    UsageReport,
    reading,
)
from millstream.providers.endings import failure, finish_reason, reported_error
from millstream.providers.extra import merged
from millstream.providers.upstream import Upstream
from millstream.sse import Message as Event
from millstream.usage import Usage

API = "gemini"

_LIST_SECONDS = 3
_VERSION = re.compile(r"/v1(alpha|beta)?$")
_PAGE = 1000  # models, which is the most
_MAX_PAGES = 10
_MAX_TOKENS = 10_000_000  # no answer is longer; a larger count is nonsense


class GeminiProvider:
    """``base_url`` may end with a version of the API; without one it is ``v1beta``, which has every field.
    ``extra`` is merged into every request.
    """

    api = API

    def __init__(
        self, name: str, base_url: str, upstream: Upstream, *, extra: Mapping[str, Any] | None = None
    ) -> None:
        self._name = name
        url = base_url.rstrip("/")
        self._url = url if _VERSION.search(url) else f"{url}/v1beta"
        self._upstream = upstream
        self._extra = dict(extra or {})

    def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        # Names come from callers; tuned models have a folder of their own.
        folder, name = ("tunedModels", model[12:]) if model.startswith("tunedModels/") else ("models", model)
        url = f"{self._url}/{folder}/{quote(name, safe='')}:streamGenerateContent?alt=sse"
        return reading.answer(Reading(self._name), self._upstream, url, partial(self._body, prompt, model))

    async def models(self) -> list[str]:
        names: list[str] = []
        token = ""
        for _ in range(_MAX_PAGES):
            url = f"{self._url}/models?pageSize={_PAGE}{token}"
            page = await self._upstream.get_json(url, timeout_seconds=_LIST_SECONDS)
            if not isinstance(page, dict) or not isinstance(page.get("models", []), list):
                raise UpstreamError(f"provider '{self._name}' answered GET /models in an unknown form")
            names += _names(page.get("models", []))
            following = page.get("nextPageToken")
            if not isinstance(following, str) or not following:
                break
            token = f"&pageToken={quote(following, safe='')}"
        return names

    async def close(self) -> None:
        await self._upstream.close()

    def _body(self, prompt: Prompt, model: str) -> bytes:
        return msgspec.json.encode(merged(body(prompt, model), self._extra))


def _names(models: Iterable[object]) -> Iterator[str]:
    """Of those that answer a prompt."""
    for model in models:
        match model:
            case {"name": str(name), "supportedGenerationMethods": list(methods)}:
                if "generateContent" in methods:
                    yield name.removeprefix("models/")
            case {"name": str(name)}:
                yield name.removeprefix("models/")
            case _:
                pass


# -- answers ---------------------------------------------------------------------------------------


class _Choice:
    """One of the answers. ``thinks`` is whether the last words of it were thoughts."""

    __slots__ = ("calls", "reason", "sources", "thinks", "word")

    def __init__(self) -> None:
        self.calls = 0
        self.reason: FinishReason | None = None
        self.word = ""
        self.thinks = False
        self.sources: set[str] = set()  # which are repeated

    @property
    def finish_reason(self) -> FinishReason:
        """Gemini calls an answer that asks for tools complete."""
        return "tool_calls" if self.calls and self.reason in (None, "stop") else self.reason or "stop"


class Reading(reading.Reading):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._choices: dict[int, _Choice] = {0: _Choice()}
        self._report: UsageReport | None = None
        self._report_is_stale = False  # something came after it
        self._has_begun = False

    @property
    def is_complete(self) -> bool:
        """Whether the answer has its finish reason and its final usage."""
        first = self._choices[0]
        return first.reason is not None and self._report is not None and not self._report_is_stale

    def _message(self, message: Event, produced: list[Produced]) -> None:
        for chunk in self._chunks(message.data):
            self._read(chunk, produced)

    def end(self) -> list[Produced]:
        first = self._choices[0]
        if first.reason is None:
            return super().end()
        others = [(index, choice) for index, choice in sorted(self._choices.items()) if index]
        produced: list[Produced] = [
            InChoice(index, Finish(choice.finish_reason, None)) for index, choice in others
        ]
        usage = None if self._report is None or self._report_is_stale else self._report.usage
        if usage is not None:
            usage = usage.sourced("provider_final")
        return [*produced, Finish(first.finish_reason, usage, first.word)]

    def _chunks(self, data: bytes) -> list[dict[str, Any]]:
        """One, or all of an answer that came as one list."""
        if not data.strip():
            return []
        try:
            value = reading.decoded(data)
        except ValueError as error:
            raise UpstreamError(f"provider '{self._name}' sent a chunk that cannot be read") from error
        chunks = value if isinstance(value, list) else [value]
        if not all(isinstance(chunk, dict) for chunk in chunks):
            raise UpstreamError(f"provider '{self._name}' sent a chunk that cannot be read")
        return chunks

    def _read(self, chunk: dict[str, Any], produced: list[Produced]) -> None:
        candidates = [one for one in _list(chunk, "candidates") if isinstance(one, dict)]
        if candidates and not self._has_begun:
            self._has_begun = True
            produced.append(AnswerStart(API, _text(chunk, "responseId"), _text(chunk, "modelVersion")))
        for candidate in candidates:
            self._candidate(candidate, produced)
        # Before the end is looked at: an answer that failed has used tokens too.
        if (report := usage_report(chunk.get("usageMetadata"))) is not None:
            self._report, self._report_is_stale = report, False
            produced.append(report)
        if (failed := reported_error(chunk)) is not None:
            raise failure(self._name, failed)
        match chunk:
            case {"promptFeedback": {"blockReason": str(blocked)}} if blocked and not candidates:
                raise failure(self._name, {"code": "prompt_blocked"})
        for candidate in candidates:
            if (choice := self._choice(candidate)) and (word := _text(candidate, "finishReason")):
                reason = finish_reason(self._name, word, {})
                choice.reason, choice.word = reason or choice.reason, word if reason else choice.word

    def _choice(self, candidate: dict[str, Any]) -> _Choice | None:
        """The answer that it belongs to; None for one that nobody can have asked for."""
        index = _index(candidate)
        return self._choices.setdefault(index, _Choice()) if 0 <= index < MAX_CHOICES else None

    def _candidate(self, candidate: dict[str, Any], produced: list[Produced]) -> None:
        choice = self._choice(candidate)
        if choice is None:
            return
        said: list[Produced] = []
        for part in _list(candidate.get("content"), "parts"):
            if isinstance(part, dict):
                said += self._part(part, choice)
        for chunk in _list(candidate.get("groundingMetadata"), "groundingChunks"):
            match chunk:
                case {"web": {"uri": str(uri)}} if uri and uri not in choice.sources:
                    choice.sources.add(uri)
                    said.append(Source(uri, _text(chunk["web"], "title")))
        if said:
            self.contents += len(said)
            self._report_is_stale = True
        if index := _index(candidate):
            said = [InChoice(index, item) for item in said if isinstance(item, SAID)]
        produced += said

    def _part(self, part: dict[str, Any], choice: _Choice) -> Iterator[Produced]:
        signature = _text(part, "thoughtSignature")
        match part:
            case {"functionCall": dict(call)}:
                yield from self._call(call, signature, choice)
            case {"inlineData": {"mimeType": str(media_type), "data": str(data)}} if not part.get("thought"):
                yield File(media_type, f"data:{media_type};base64,{data}")
            case {"fileData": {"mimeType": str(media_type), "fileUri": str(url)}}:
                yield File(media_type, url)
            case {"text": str(text)}:
                if text:
                    choice.thinks = part.get("thought") is True
                    yield ReasoningDelta(text) if choice.thinks else TextDelta(text)
                if signature and choice.thinks:
                    yield PartBreak(Reasoning(signature=f"{_OURS}{signature}"))
                elif signature:
                    yield PartBreak(Text(_signed(signature)))
            case _:
                pass

    def _call(self, call: dict[str, Any], signature: str, choice: _Choice) -> Iterator[Produced]:
        name, arguments = _text(call, "name"), call.get("args")
        if not name or not isinstance(arguments, (dict, type(None))):
            raise UpstreamError(f"provider '{self._name}' sent a tool call that cannot be read")
        if choice.calls == MAX_TOOL_CALLS:
            raise UpstreamError(f"provider '{self._name}' sent over {MAX_TOOL_CALLS} tool calls")
        index, choice.calls = choice.calls, choice.calls + 1
        identity = _text(call, "id") or f"call_{secrets.token_hex(12)}"
        written = msgspec.json.encode(arguments or {}).decode()
        yield ToolCallPiece(index, written, identity, name, _signed(signature) if signature else None)
        yield PartBreak(index=index)


_OURS = "gemini:"  # before the signature of thoughts


def _signed(signature: str) -> dict[str, Any]:
    return {"google": {"thought_signature": signature}}


def usage_report(raw: object) -> UsageReport | None:
    """What ``usageMetadata`` counts; None where it counts nothing."""
    if not isinstance(raw, dict):
        return None
    prompt = (_count(raw, "promptTokenCount") or 0) + (_count(raw, "toolUsePromptTokenCount") or 0)
    thoughts = _count(raw, "thoughtsTokenCount") or 0
    written = (_count(raw, "candidatesTokenCount") or 0) + thoughts
    written = max(written, (_count(raw, "totalTokenCount") or 0) - prompt)  # early chunks may only have that
    if not (prompt or written):
        return None
    cached = min(_count(raw, "cachedContentTokenCount") or 0, prompt)
    usage = Usage(prompt, written, "provider_partial", cached, thoughts)
    media = _media(raw, "promptTokensDetails"), _media(raw, "candidatesTokensDetails")
    return UsageReport(usage.with_media(*media), raw)


def _media(raw: dict[str, Any], details: str) -> tuple[int, int]:
    """Tokens of sound and of pictures."""
    told = [one for one in _list(raw, details) if isinstance(one, dict)]
    counts = {str(one.get("modality")): _count(one, "tokenCount") or 0 for one in told}
    return counts.get("AUDIO", 0), counts.get("IMAGE", 0)


def _count(raw: dict[str, Any], name: str) -> int | None:
    value = raw.get(name)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        value = int(value)
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKENS
    return value if whole else None


def _index(candidate: dict[str, Any]) -> int:
    index = candidate.get("index")
    return index if isinstance(index, int) and not isinstance(index, bool) else 0


def _list(value: object, name: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _text(value: dict[str, Any], name: str) -> str:
    found = value.get(name)
    return found if isinstance(found, str) else ""


# -- requests --------------------------------------------------------------------------------------

# Our field -> theirs.
_SAMPLING = {
    "max_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
}
_MODES = {"none": "NONE", "auto": "AUTO", "required": "ANY"}

# How much the models before Gemini 3 think, in tokens, as Gemini's OpenAI-compatible endpoint has it. Later
# ones have levels, of which the least is not none.
_BUDGETS: dict[Effort, int] = {
    "none": 0,
    "minimal": 1024,
    "low": 1024,
    "medium": 8192,
    "high": 24_576,
    "xhigh": 24_576,
    "max": 24_576,
}
# Every other level has our word for it.
_LEVELS: dict[Effort, str] = {"none": "MINIMAL", "xhigh": "HIGH", "max": "HIGH"}
_BEFORE_GEMINI_3 = ("gemini-1", "gemini-2")

# From Gemini 3 on the first call of an answer needs a signature. This one says that another model made it.
_NOT_ITS_OWN = "skip_thought_signature_validator"


def body(prompt: Prompt, model: str) -> dict[str, Any]:
    """What ``model`` is sent for the prompt."""
    signs = not model.startswith(_BEFORE_GEMINI_3)
    sent: dict[str, Any] = {"contents": _contents(prompt.messages, signs)}
    told = [_part(part) for message in prompt.messages if _is_system(message) for part in _content(message)]
    if told:
        sent["systemInstruction"] = {"parts": told}
    if prompt.tools:
        sent["tools"] = [{"functionDeclarations": list(map(_tool, prompt.tools))}]
    if isinstance(prompt.tool_choice, asked.NamedTool):
        choice = {"mode": "ANY", "allowedFunctionNames": [prompt.tool_choice.name]}
        sent["toolConfig"] = {"functionCallingConfig": choice}
    elif prompt.tool_choice is not None and prompt.tools:
        sent["toolConfig"] = {"functionCallingConfig": {"mode": _MODES[prompt.tool_choice]}}
    if config := _generation(prompt, model):
        sent["generationConfig"] = config
    return merged(sent, prompt.extra_of(API))


def _generation(prompt: Prompt, model: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        theirs: value for ours, theirs in _SAMPLING.items() if (value := getattr(prompt, ours)) is not None
    }
    if prompt.stop:
        config["stopSequences"] = list(prompt.stop)
    if prompt.choices > 1:
        config["candidateCount"] = prompt.choices
    if prompt.output is not None:
        config["responseMimeType"] = "application/json"
        if prompt.output.schema is not None:
            config["responseJsonSchema"] = prompt.output.schema
    effort, budget = prompt.reasoning_effort, prompt.reasoning_tokens
    if budget is None and effort is not None and model.startswith(_BEFORE_GEMINI_3):
        budget = _BUDGETS[effort]
    if budget is not None:
        config["thinkingConfig"] = {"includeThoughts": budget != 0, "thinkingBudget": budget}
    elif effort is not None:
        config["thinkingConfig"] = {
            "includeThoughts": effort != "none",
            "thinkingLevel": _LEVELS.get(effort, effort.upper()),
        }
    return config


def _is_system(message: Message) -> bool:
    return message.role in ("system", "developer")


def _contents(messages: Sequence[Message], signs: bool) -> list[dict[str, Any]]:
    """The conversation without what the system says. Results that follow each other are one content, as
    Gemini wants those of parallel calls.
    """
    contents: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of the tools that were called, by the call's id
    before = ""
    for message in messages:
        if _is_system(message):
            continue
        parts = [_result(part, names) for part in message.parts if isinstance(part, asked.ToolResult)]
        if message.role == "assistant":
            names |= {call.call_id: call.name for call in message.tool_calls}
            parts += _said(message, signs)
        else:
            parts += map(_part, _content(message))
        if message.role == before == "tool":
            contents[-1]["parts"] += parts
        elif parts:  # a content without any is refused
            contents.append({"role": "model" if message.role == "assistant" else "user", "parts": parts})
        else:
            continue
        before = message.role
    return contents


def _said(message: Message, signs: bool) -> list[dict[str, Any]]:
    """What a model said earlier. ``signs`` is whether calls need a signature."""
    parts: list[dict[str, Any]] = []
    is_first = True
    for part in message.parts:
        match part:
            case asked.Reasoning() if part.signature.startswith(_OURS):
                signature = part.signature.removeprefix(_OURS)
                parts.append({"text": part.text, "thought": True, "thoughtSignature": signature})
            case asked.ToolCall():
                signature = _signature(part.extra_content) or (_NOT_ITS_OWN if signs and is_first else "")
                call: dict[str, Any] = {"id": part.call_id, "name": part.name, "args": _arguments(part)}
                signed = {"thoughtSignature": signature} if signature else {}
                parts.append({"functionCall": call, **signed})
                is_first = False
            case asked.Text() | asked.Refusal() if part.text:
                parts.append({"text": part.text})
            case asked.Image() | asked.File():
                parts.append(_part(part))
            case _:
                pass
    # The form of the OpenAI-compatible endpoint for the signature of an answer in words.
    if signature := _signature(message.extra.get("openai", {}).get("extra_content")):
        for said in reversed(parts):
            if said.keys() == {"text"}:
                said["thoughtSignature"] = signature
                break
    return parts


def _signature(extra_content: object) -> str:
    match extra_content:
        case {"google": {"thought_signature": str(signature)}}:
            return signature
        case _:
            return ""


def _content(message: Message) -> Iterator[asked.Text | asked.Image | asked.File]:
    for part in message.parts:
        if isinstance(part, (asked.Image, asked.File)) or (isinstance(part, asked.Text) and part.text):
            yield part


def _part(part: asked.Text | asked.Image | asked.File) -> dict[str, Any]:
    if isinstance(part, asked.Text):
        return {"text": part.text}
    media_type = part.media_type if isinstance(part, asked.File) else None
    held = data_urls.held_by(part.url)
    if held is None:
        media_type = media_type or mimetypes.guess_type(part.url.partition("?")[0])[0] or "image/*"
        return {"fileData": {"mimeType": media_type, "fileUri": part.url}}
    media_type = media_type or held.media_type or "image/*"
    return {"inlineData": {"mimeType": media_type, "data": held.data}}


def _result(result: asked.ToolResult, names: Mapping[str, str]) -> dict[str, Any]:
    text = "".join(part.text for part in result.parts if isinstance(part, asked.Text))
    response = None if result.is_error else _object(text)
    shown: dict[str, Any] = {
        "id": result.call_id,
        "name": result.name or names.get(result.call_id) or "unknown",
        "response": response or {"error" if result.is_error else "output": text},
    }
    media = [_part(part) for part in result.parts if not isinstance(part, asked.Text)]
    return {"functionResponse": shown | ({"parts": media} if media else {})}


def _arguments(call: asked.ToolCall) -> msgspec.Raw | dict[str, Any]:
    if not call.arguments.strip():
        return {}
    if (arguments := _object(call.arguments)) is None:
        raise RequestRefused("this model's provider takes tool calls whose arguments are a JSON object")
    return arguments


def _object(text: str) -> msgspec.Raw | None:
    """``text`` as it is, where it is a JSON object."""
    try:
        value = msgspec.json.decode(text) if text.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        value = None
    return msgspec.Raw(text.encode()) if isinstance(value, dict) else None


def _tool(tool: asked.Tool) -> dict[str, Any]:
    given = {"description": tool.description, "parametersJsonSchema": tool.parameters}
    return {"name": tool.name, **{name: value for name, value in given.items() if value is not None}}
