"""Chunks: the data of one event, or a whole JSON answer -> what a model said, in one form.

Nearly every chunk is read by msgspec into the structs below. One that is not as they say is read again by
Python's own reader and put right field by field: a chunk is refused only where text, arguments of a tool
call, an end or money would be wrong, so a field that nobody here needs may be anything.
"""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from millstream.events import File, ReasoningDelta, RefusalDelta, Source, TextDelta
from millstream.providers.upstream import tolerant_json


class Function(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class CallPiece(Struct, gc=False):
    """A piece of a tool call as it came: any field may be missing."""

    index: int | None = None
    id: str | None = None
    function: Function | None = None
    extra_content: Any = None  # Gemini's thought signature


class Delta(Struct, gc=False):
    content: str | list[Any] | None = None
    reasoning_content: str | None = None  # DeepSeek, llama.cpp, older vLLM
    reasoning: str | None = None  # OpenRouter, Ollama, newer vLLM
    reasoning_details: Any = None  # MiniMax, OpenRouter
    refusal: str | None = None
    tool_calls: list[CallPiece] | None = None
    function_call: Function | None = None  # OpenAI before tools
    images: Any = None  # OpenRouter
    annotations: Any = None  # the pages that the text rests on


class Choice(Struct, gc=False):
    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None  # of an answer that is whole
    finish_reason: str | None = None
    native_finish_reason: Any = None  # OpenRouter
    error: Any = None
    usage: Any = None  # Moonshot
    logprobs: Any = None


class Chunk(Struct, gc=False):
    choices: list[Choice] | None = None
    usage: Any = None
    timings: Any = None  # llama.cpp's running count, where asked for
    error: Any = None
    x_groq: Any = None


_LONGEST_TEXT = 2**31

_decode = msgspec.json.Decoder(Chunk).decode
decode_anything = msgspec.json.Decoder().decode


class Unreadable(ValueError):
    """A chunk that is not JSON, or says what was written in it in a way that nobody knows."""


def read(data: bytes) -> tuple[Chunk, object]:
    """The chunk, and all of it as plain values where it is no usual one: who sent it may have said there that
    it failed. Raises ``Unreadable``.
    """
    try:
        chunk = _decode(data)
    except (msgspec.DecodeError, RecursionError):
        try:
            value = tolerant_json(data)
        except ValueError as error:
            raise Unreadable("no JSON") from error
        return _chunk(value), value
    if chunk.choices and chunk.error is None and chunk.x_groq is None:
        return chunk, None
    return chunk, decode_anything(data)


def _chunk(value: object) -> Chunk:
    """Raises ``Unreadable``."""
    if isinstance(value, list):  # Gemini wraps its errors so
        return Chunk()
    if not isinstance(value, dict):
        raise Unreadable("no object")
    choices = value.get("choices")
    return Chunk(
        [_choice(choice) for choice in choices if isinstance(choice, dict)]
        if isinstance(choices, list)
        else None,
        *(value.get(name) for name in ("usage", "timings", "error", "x_groq")),
    )


def _choice(value: dict[str, Any]) -> Choice:
    finish = value.get("finish_reason")
    return Choice(
        _number(value.get("index")) or 0,
        _delta(value.get("delta")),
        _delta(value.get("message")),
        finish if isinstance(finish, str) else None,
        *(value.get(name) for name in ("native_finish_reason", "error", "usage", "logprobs")),
    )


def _delta(value: object) -> Delta | None:
    if not isinstance(value, dict):
        return None
    content = value.get("content")
    calls = value.get("tool_calls")
    if isinstance(calls, dict):
        calls = [calls]
    return Delta(
        content if isinstance(content, (str, list)) else _words(content, strictly=True),
        _words(value.get("reasoning_content")),
        _words(value.get("reasoning")),
        value.get("reasoning_details"),
        _words(value.get("refusal")),
        [_piece(call) for call in calls if isinstance(call, dict)] if isinstance(calls, list) else None,
        _function(value.get("function_call")),
        value.get("images"),
        value.get("annotations"),
    )


def _piece(value: dict[str, Any]) -> CallPiece:
    identity = value.get("id")
    if isinstance(identity, int) and not isinstance(identity, bool):
        identity = str(identity)
    index = _number(value.get("index"))
    if index is None and value.get("index") is not None:
        raise Unreadable("a tool call's index that is no number")  # it may mean any call
    return CallPiece(
        index,
        identity if isinstance(identity, str) else None,
        _function(value.get("function")),
        value.get("extra_content"),
    )


def _function(value: object) -> Function | None:
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    return Function(name if isinstance(name, str) else None, arguments)


def _words(value: object, *, strictly: bool = False) -> str | None:
    """Text, or an object that has it. ``strictly`` raises ``Unreadable`` where there may be text all the
    same.
    """
    if isinstance(value, dict):
        value = value.get("text", value.get("content"))
    if isinstance(value, str):
        return value
    if strictly and value:
        raise Unreadable("content that is no text")
    return None


def _number(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.lstrip("-").isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def details_of(delta: Delta) -> list[Any]:
    """Its reasoning in parts, which some servers want back with the history."""
    return delta.reasoning_details if isinstance(delta.reasoning_details, list) else []


def words_of_details(delta: Delta) -> str:
    """Of a server that says its reasoning nowhere else."""
    return _joined(details_of(delta))


def _joined(parts: list[Any]) -> str:
    return "".join(text for part in parts if (text := _words(part)))


def prose(content: list[Any]) -> Iterator[TextDelta | ReasoningDelta | RefusalDelta | File]:
    """Content in parts: ``{"type": "text", "text": …}``, ``{"type": "thinking", "thinking": text or text
    parts}``, images; others, such as references, have no words."""
    for part in content:
        match part:
            case str(text) if text:
                yield TextDelta(text)
            case {"type": "text" | "output_text", "text": str(text)} if text:
                yield TextDelta(text)
            case {"type": "thinking", "thinking": list(inner)}:
                yield from (ReasoningDelta(item.text) for item in prose(inner) if isinstance(item, TextDelta))
            case {"type": "thinking", "thinking": str(text)} if text:
                yield ReasoningDelta(text)
            case {"type": "reasoning", "summary": list(inner)} if text := _joined(inner):  # Databricks
                yield ReasoningDelta(text)
            case {"type": "refusal", "refusal": str(text)} if text:
                yield RefusalDelta(text)
            case {"type": "image_url"}:
                yield from images([part])
            case _:
                pass


def images(value: object) -> Iterator[File]:
    """``[{"type": "image_url", "image_url": {"url": …}}]``."""
    for image in value if isinstance(value, list) else ():
        match image:
            case {"image_url": {"url": str(url)}} | {"image_url": str(url)} if url:
                yield File(_media_type(url), url)
            case _:
                pass


def sources(value: object) -> Iterator[Source]:
    """``[{"type": "url_citation", "url_citation": {"url": …, "title": …}}]``, with ``start_index`` and
    ``end_index`` of the text that rests on it.
    """
    for annotation in value if isinstance(value, list) else ():
        match annotation:
            case {"url_citation": {"url": str(url), **rest}} if url:
                title = rest.get("title")
                start, end = (_place(rest.get(name)) for name in ("start_index", "end_index"))
                yield Source(url, title if isinstance(title, str) else "", start, end)
            case _:
                pass


def _place(value: object) -> int | None:
    place = _number(value)
    return place if place is not None and 0 <= place <= _LONGEST_TEXT else None


def _media_type(url: str) -> str:
    """Of a data URL; any image elsewhere."""
    if not url.startswith("data:"):
        return "image/*"
    return url[5 : url.find(",", 5, 200)].partition(";")[0] or "image/*"
