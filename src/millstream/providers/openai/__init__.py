"""The provider for every endpoint that speaks OpenAI's Chat Completions.

What servers do differently is put right in one place each: the form of a chunk in ``chunks``, tool calls in
``tool_calls``, usage in ``counts``, the words of ends and errors in ``endings``. What only one vendor does is
data (``known.Quirks``). What holds for all of them:

1. The end is ``[DONE]``, or a finish reason that either a clean end of the connection or the final usage
   follows. Anything else is a cut.
2. Usage is taken from wherever it comes (finish chunk, every chunk, a chunk of its own); the last one counts,
   nothing is summed.
3. Of several choices the first one's end is the stream's; of what was not asked for nothing is taken.
4. What was understood before a fault, in the same read or the same event, is yielded before the fault is
   raised.
5. An answer that is whole JSON, though a stream was asked for, is an answer.
6. ``reasoning_details`` are ``extra`` of words: of those that come with them, else of those that come next,
   at the end of an empty piece of what was said last. So other formats need not show that they are there.
"""

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from millstream.errors import ProviderError, UpstreamError
from millstream.events import AnswerStart, FinishReason, ReasoningDelta, RefusalDelta, Source, TextDelta
from millstream.prompt import Prompt
from millstream.providers import (
    MAX_CHOICES,
    SAID,
    Finish,
    InChoice,
    Produced,
    ToolCallPiece,
    UsageReport,
    reading,
)
from millstream.providers.endings import failure, finish_reason, reported_error
from millstream.providers.extra import merged
from millstream.providers.known import Quirks
from millstream.providers.openai import chunks, request
from millstream.providers.openai.counts import timings_report, usage_report
from millstream.providers.openai.tool_calls import ToolCalls
from millstream.providers.upstream import Upstream
from millstream.sse import Message

_OF_ANSWER = (
    "created",
    "system_fingerprint",
    "service_tier",
)  # fields of every chunk that are the same in all

# As OpenAI has it, and as what rewrites streams makes of it.
_DONE = re.compile(rb'\s*"?\[DONE\]"?\s*', re.IGNORECASE)
_PING_EVENTS = frozenset(("ping", "heartbeat", "keepalive", "keep-alive"))
_MAX_SOURCES = 500  # of an answer
_WORDS = (TextDelta, ReasoningDelta, RefusalDelta, ToolCallPiece)
_PINGS = frozenset((b"", b"ping", b"heartbeat", b"keepalive", b"keep-alive", b"null"))


class OpenAIProvider:
    """``extra`` is merged into every request."""

    api = request.API

    def __init__(
        self,
        name: str,
        base_url: str,
        upstream: Upstream,
        *,
        quirks: Quirks | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self._name = name
        self._base_url = base_url.rstrip("/")
        self._upstream = upstream
        self._quirks = quirks or Quirks()
        self._extra = dict(extra or {})

    def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        url = f"{self._base_url}/chat/completions"
        names = {sent: one.name for one in prompt.tools if (sent := request.tool_name(one.name)) != one.name}
        of_answer = Reading(self._name, self._quirks, prompt.choices, names)
        return reading.answer(of_answer, self._upstream, url, partial(self._body, prompt, model))

    @property
    def refused(self) -> tuple[str, ...]:
        return self._quirks.refused

    async def models(self) -> list[str]:
        url = f"{self._base_url}/{self._quirks.models_path}"
        names = model_names(await self._upstream.get_json(url, timeout_seconds=3))
        if names is None:
            raise UpstreamError(f"provider '{self._name}' answered GET /models in an unknown form")
        return names

    async def close(self) -> None:
        await self._upstream.close()

    def _body(self, prompt: Prompt, model: str) -> bytes:
        body = merged(request.body(prompt, self._quirks), self._extra)
        body |= {"model": model, "stream": True}
        if self._quirks.stream_options:
            body["stream_options"] = {"include_usage": True}
        return msgspec.json.encode(body)


class Reading(reading.Reading):
    """``choices`` is how many answers were asked for; ``names`` those of tools, by what was sent."""

    def __init__(self, name: str, quirks: Quirks, choices: int = 1, names: Mapping[str, str] = {}) -> None:
        super().__init__(name)
        self._names = names
        self._quirks = quirks
        self._choices = choices
        self._reason: FinishReason | None = None
        self._word = ""
        self._details: dict[int, list[Any]] = {}  # of a choice's reasoning, that wait for words to go with
        self._report: UsageReport | None = None
        self._report_is_stale = False  # something came after it
        self._is_whole = False  # the answer came as one JSON object
        self._known_calls: ToolCalls | None = None  # from the first on
        self._others: dict[int, _Other] = {}  # the answers behind the first one
        self._has_begun = False
        self._told: set[tuple[int, Source]] | None = None  # from the first on; some servers repeat them
        self._begun: dict[int, Produced] = {}  # the answers of which there is something, and the last of that

    @property
    def _calls(self) -> ToolCalls:
        if self._known_calls is None:
            self._known_calls = ToolCalls(self._name, self._names)
        return self._known_calls

    @property
    def is_complete(self) -> bool:
        """Whether the answer has its finish reason and its final usage, and every other one its reason."""
        known = self._reason is not None and self._report is not None and not self._report_is_stale
        ended = sum(other.reason is not None for other in self._others.values())
        return known and ended == self._choices - 1

    def end(self) -> list[Produced]:
        """What follows from the end of the connection, which is the end of the answer or a ``fault``."""
        produced: list[Produced] = []
        try:
            if self._reason is None and not self._is_whole:
                raise UpstreamError(f"provider '{self._name}' cut its answer off")
            self._finish(produced)
        except ProviderError as error:
            self._fail(error, produced)
        return produced

    def _finish(self, produced: list[Produced]) -> None:
        if self._reason is None and not self.contents and self._report is None:
            raise UpstreamError(f"provider '{self._name}' ended its answer without a word")
        for index, other in self._others.items():
            rest: list[Produced] = [*other.calls.end()]
            self._tell_rest(index, rest)
            produced += [InChoice(index, item) for item in rest if isinstance(item, SAID)]
            produced.append(InChoice(index, Finish(_with_calls(other.reason, other.calls), None)))
        produced += self._calls.end()
        self._tell_rest(0, produced)
        reason = _with_calls(self._reason, self._calls)
        usage = None if self._report_is_stale or self._report is None else self._report.usage
        if usage is not None:
            usage = usage.sourced("provider_final")
        produced.append(Finish(reason, usage, self._word))

    def _fail(self, error: ProviderError, produced: list[Produced]) -> None:
        super()._fail(error, produced)
        with suppress(UpstreamError):
            produced.extend(self._calls.end())

    def _message(self, message: Message, produced: list[Produced]) -> None:
        data, event = message.data, message.event
        if event != "message" or not data.startswith(b"{"):
            if _DONE.fullmatch(data):
                self.is_done = True
                self._finish(produced)
                return
            if _is_ping(message):
                return
        try:
            chunk, whole = chunks.read(data)
        except chunks.Unreadable as error:
            if event not in ("message", "error"):
                return  # an event that nobody here knows
            raise UpstreamError(f"provider '{self._name}' sent a chunk that cannot be read") from error
        failed = None if whole is None else reported_error(whole)
        if event == "error" and failed is None:
            failed = whole or {}
        if not self._has_begun and chunk.choices:
            self._has_begun = True
            produced.append(_answer_start(data))
        word: str | None = None
        for choice in chunk.choices or ():
            if choice.index:
                self._say_other(choice, produced)
            else:
                self._say(choice, None, produced)
                if failed is None and choice.error:
                    failed = choice.error
                if choice.finish_reason or choice.native_finish_reason:
                    word = _finish_word(choice) or word
                if choice.usage is not None:
                    self._count(choice.usage, produced)
        # Before the end is looked at: an answer that failed has used tokens too.
        if chunk.usage is not None or chunk.timings is not None or chunk.x_groq is not None:
            for raw in (chunk.timings, _at_groq(chunk), chunk.usage):  # the last counts
                self._count(raw, produced)
        if failed is not None:
            raise failure(self._name, failed)
        if word and (reason := finish_reason(self._name, word, self._quirks.ends)):
            self._end(reason, word)

    def _end(self, reason: FinishReason, word: str) -> None:
        # "stop" is what some servers add to any other end.
        if self._reason is None or reason != "stop":
            self._reason, self._word = reason, word

    def _say_other(self, choice: chunks.Choice, produced: list[Produced]) -> None:
        """What an answer behind the first one says, of which there are few."""
        if not 0 < choice.index < min(self._choices, MAX_CHOICES):
            return
        other = self._others.setdefault(choice.index, _Other(ToolCalls(self._name, self._names)))
        said: list[Produced] = []
        self._say(choice, other.calls, said)
        produced += [InChoice(choice.index, item) for item in said if isinstance(item, SAID)]
        if (word := _finish_word(choice)) and (reason := finish_reason(self._name, word, self._quirks.ends)):
            other.reason = reason

    def _say(self, choice: chunks.Choice, calls: ToolCalls | None, produced: list[Produced]) -> None:
        delta = choice.delta
        if delta is None:
            if choice.message is None or choice.index in self._begun:
                return
            delta = choice.message
            self._is_whole = True
        before = len(produced)
        reasoning = delta.reasoning_content or delta.reasoning
        if not reasoning and delta.reasoning_details:
            reasoning = chunks.words_of_details(delta)
        if reasoning:
            produced.append(ReasoningDelta(reasoning))
        if content := delta.content:
            if isinstance(content, str):
                produced.append(TextDelta(content))
            else:
                produced += chunks.prose(content)
        if delta.refusal:
            produced.append(RefusalDelta(delta.refusal))
        if delta.images:
            produced += chunks.images(delta.images)
        if delta.tool_calls:
            produced += (self._calls if calls is None else calls).add(delta.tool_calls)
        elif delta.function_call:
            calls = self._calls if calls is None else calls
            produced += calls.add([chunks.CallPiece(0, function=delta.function_call)])
        if delta.annotations:
            self._tell_sources(choice.index, delta.annotations, produced)
        if delta.reasoning_details or self._details:
            self._tell_details(choice.index, chunks.details_of(delta), produced, before)
        if choice.logprobs is not None:
            _attach(choice.logprobs, produced, before)
        if said := len(produced) - before:
            self.contents += said
            self._begun[choice.index] = produced[-1]
            self._report_is_stale = True

    def _tell_sources(self, index: int, annotations: object, produced: list[Produced]) -> None:
        for source in chunks.sources(annotations):
            self._told = told = self._told or set()
            if (index, source) not in told and len(told) < _MAX_SOURCES:
                told.add((index, source))
                produced.append(source)

    def _tell_details(self, index: int, details: list[Any], produced: list[Produced], before: int) -> None:
        """Has the first words from ``before`` on tell them, and what waits."""
        details = [*self._details.pop(index, ()), *details]
        if not details:
            return
        for at in range(before, len(produced)):
            item = produced[at]
            if isinstance(item, _WORDS) and (
                item.arguments if isinstance(item, ToolCallPiece) else item.text
            ):
                produced[at] = msgspec.structs.replace(item, extra={"reasoning_details": details})
                return
        self._details[index] = details

    def _tell_rest(self, index: int, produced: list[Produced]) -> None:
        details = self._details.pop(index, None)
        if details is None:
            return
        last = produced[-1] if produced and isinstance(produced[-1], _WORDS) else self._begun.get(index)
        extra = {"reasoning_details": details}
        if isinstance(last, ToolCallPiece):
            produced.append(ToolCallPiece(last.index, "", extra=extra))
        else:
            kind = type(last) if isinstance(last, (TextDelta, RefusalDelta)) else ReasoningDelta
            produced.append(kind("", extra=extra))

    def _count(self, raw: object, produced: list[Produced]) -> None:
        """Takes the usage object ``raw``, unless it counts nothing after something was counted."""
        report = usage_report(raw, self._quirks) or timings_report(raw)
        if report is None or (self._report is not None and not report.usage.completion_tokens):
            return
        self._report = report
        self._report_is_stale = False
        produced.append(report)


def _attach(logprobs: Any, produced: list[Produced], before: int) -> None:
    """Logprobs go with the last of the words that they are of. Those of half a character, or of the end, have
    none.
    """
    extra = {"logprobs": logprobs}
    for at in reversed(range(before, len(produced))):
        item = produced[at]
        if isinstance(item, _WORDS):
            produced[at] = msgspec.structs.replace(item, extra={**(item.extra or {}), **extra})
            return
    if len(produced) == before and isinstance(logprobs, dict) and any(logprobs.values()):
        produced.append(TextDelta("", extra=extra))


class _Other:
    """An answer behind the first one."""

    __slots__ = ("calls", "reason")

    def __init__(self, calls: ToolCalls) -> None:
        self.calls = calls
        self.reason: FinishReason | None = None


def _with_calls(reason: FinishReason | None, calls: ToolCalls) -> FinishReason:
    return "tool_calls" if calls and reason in (None, "stop") else reason or "stop"


def _answer_start(data: bytes) -> AnswerStart:
    """What the first chunk says of the answer as a whole."""
    try:
        said = chunks.decode_anything(data)
    except (msgspec.DecodeError, RecursionError):
        said = None
    said = said if isinstance(said, dict) else {}
    identity, model = said.get("id"), said.get("model")
    extra = {name: said[name] for name in _OF_ANSWER if said.get(name) is not None}
    return AnswerStart(
        request.API,
        identity if isinstance(identity, str) else "",
        model if isinstance(model, str) else "",
        extra=extra or None,
    )


def _is_ping(message: Message) -> bool:
    return message.event in _PING_EVENTS or message.data.strip().lower() in _PINGS


def _at_groq(chunk: chunks.Chunk) -> object:
    return chunk.x_groq.get("usage") if isinstance(chunk.x_groq, dict) else None


def _finish_word(choice: chunks.Choice) -> str | None:
    native = choice.native_finish_reason
    if isinstance(native, str) and native.lower() == "error":
        return native  # OpenRouter calls some of them "stop"
    return choice.finish_reason


def model_names(listing: object) -> list[str] | None:
    """The models of a listing, in any of the forms that servers have for one; None where it is in none."""
    if isinstance(listing, dict):
        listing = listing.get("data", listing.get("models", listing.get("result")))
    if not isinstance(listing, list):
        return None
    names: list[str] = []
    for model in listing:
        name = model
        if isinstance(model, dict):
            name = model.get("id") or model.get("name") or model.get("model")
        if isinstance(name, str) and name:
            names.append(name.removeprefix("models/"))  # Gemini
    return names
