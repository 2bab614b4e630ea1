"""A body of Messages -> the prompt in it."""

import base64
from collections.abc import Iterator
from typing import Any

import msgspec

from millstream import prompt as asked
from millstream.dialects import fields as read
from millstream.dialects.fields import Fields
from millstream.errors import InvalidRequest
from millstream.prompt import Message, OutputFormat, Prompt

API = "anthropic"

_json = msgspec.json.Encoder().encode

# What is passed on as it is to providers of this API. Nothing in it runs anything or sends data elsewhere.
_PASSED_ON = (
    "cache_control",
    "compaction",
    "context_management",
    "diagnostics",
    "inference_geo",
    "output_config",
    "service_tier",
    "speed",
    "thinking",
)


class ThreadsUnsupported(InvalidRequest):
    """A body with ``thread`` has only the newest messages of a conversation. Told so in this form, the tool
    runner of both SDKs goes on with all of them.
    """

    status = 400

    def __init__(self) -> None:
        super().__init__("thread: message threads are not kept here; send the whole conversation")


def prompt_of(fields: Fields) -> Prompt:
    """Raises ``InvalidRequest``."""
    if fields.any("thread"):
        raise ThreadsUnsupported
    fields.refuse("container", because="code is not run here")
    fields.refuse("mcp_servers", because="servers of tools are not called here; call them yourself")
    fields.refuse("fallbacks", because="an answer is of the model that was asked")
    for name in ("user_profile_id", "workspace_id"):
        fields.refuse(name, because="the provider's account is the server's")
    thinking = fields.inner("thinking") or Fields({})
    if "thinking" in fields and thinking.one_of("type", "enabled", "disabled", "adaptive") is None:
        raise thinking.fault("type", "is missing")
    budget = thinking.count("budget_tokens", 1, read.MAX_TOKENS)
    choice, parallel = _tool_choice(fields)
    effort, output = _output(fields)
    user = fields.inner("metadata")
    extra = fields.these(*_PASSED_ON)
    said = [one for given in fields.objects("messages", read.MAX_MESSAGES) for one in _messages(given)]
    if not said:
        raise fields.fault("messages", "is missing")
    return Prompt(
        (*_system(fields), *said),
        read.model(fields),
        tuple(_tool(tool) for tool in fields.objects("tools", read.MAX_TOOLS)),
        choice,
        parallel,
        fields.count("max_tokens", 0, read.MAX_TOKENS),
        fields.number("temperature", 0, 1),
        fields.number("top_p", 0, 1),
        fields.count("top_k", 0, 1_000_000),
        fields.texts("stop_sequences", 16),
        output=output,
        reasoning_effort=effort,  # type: ignore[arg-type]
        reasoning_tokens=budget,
        user=read.user(user, "user_id") if user is not None else None,
        extra={API: extra} if extra else {},
    )


def _system(fields: Fields) -> Iterator[Message]:
    value = fields.any("system")
    if value:
        parts = tuple(_content(fields, "system", ("text",)))
        yield Message("system", parts)


def _messages(fields: Fields) -> Iterator[Message]:
    """A message -> those of a conversation: the results of tools, which users give, are one of their own."""
    role = fields.one_of("role", "user", "assistant", "system")
    if role is None:
        raise fields.fault("role", "is missing")
    if "content" not in fields:
        raise fields.fault("content", "is missing")
    if role == "system":  # in the middle of a conversation, where it stays
        extra = {API: {"role": role}}
        yield Message("system", tuple(_content(fields, "content", ("text",))), extra=extra)
        return
    if role == "assistant":
        yield Message("assistant", tuple(_content(fields, "content", _OF_ASSISTANT)))
        return
    run: list[asked.Part] = []
    for part in _content(fields, "content", _OF_USER):
        if run and isinstance(part, asked.ToolResult) is not isinstance(run[0], asked.ToolResult):
            yield _of_user(run)
            run = []
        run.append(part)
    if run:
        yield _of_user(run)


def _of_user(parts: list[asked.Part]) -> Message:
    return Message("tool" if isinstance(parts[0], asked.ToolResult) else "user", tuple(parts))


_OF_USER = ("text", "image", "document", "search_result", "tool_result", "compaction")
_OF_ASSISTANT = ("text", "thinking", "redacted_thinking", "tool_use", "compaction")
_OF_DOCUMENT = ("text", "image")
_OF_RESULT = ("text", "image", "document", "search_result", "tool_reference")


def _content(fields: Fields, name: str, allowed: tuple[str, ...]) -> Iterator[asked.Part]:
    """A text, or a list of blocks of the ``allowed`` types."""
    value = fields.any(name)
    if isinstance(value, str):
        yield asked.Text(value)
        return
    for block in fields.objects(name, read.MAX_PARTS):
        kind = block.text("type", most=256)
        if kind is not None and (kind.startswith("server_tool") or kind.endswith("_tool_result")):
            raise block.fault("type", "tools of the provider are not run here, nor what they gave carried")
        if kind not in allowed:
            raise block.fault("type", f"is none of {', '.join(allowed)}")
        yield _block(block, kind)
        if kind == "document":
            yield from _pictures_in(block)


def _block(block: Fields, kind: str) -> asked.Part:
    match kind:
        case "text":
            text = block.needed("text")
            return asked.Text(text, _extra(block))
        case "image":
            source = _source(block)
            url = _url_of(source, source.text("media_type", most=128))
            return asked.Image(url, extra=_extra(block))
        case "document":
            return _document(block)
        case "search_result":
            text = _words(_content(block, "content", ("text",)))
            given = block.these("type", "source", "title", "content")
            return asked.Text(text, {API: {**given, **_more(block)}})
        case "compaction":  # what was said so far, which other models want to know as well
            said = {"type": kind, "content": block.text("content")}
            return asked.Text(said["content"] or "", {API: {**said, **_more(block)}})
        case "tool_reference":
            return asked.Text("", {API: {**block.these("type"), **_more(block)}})
        case "thinking":
            thought, signature = block.needed("thinking"), block.text("signature") or ""
            return asked.Reasoning(thought, signature, extra=_extra(block))
        case "redacted_thinking":
            return asked.Reasoning(redacted=block.needed("data"))
        case "tool_use":
            call_id, name = block.needed("id", most=512), block.needed("name", most=128)
            arguments = _json(block.mapping("input") or {}).decode()
            return asked.ToolCall(call_id, name, arguments, extra=_extra(block))
        case _:
            call_id = block.needed("tool_use_id", most=512)
            parts = tuple(_content(block, "content", _OF_RESULT))
            failed = block.flag("is_error") or False
            return asked.ToolResult(call_id, parts, failed, extra=_extra(block))  # type: ignore[arg-type]


def _source(block: Fields) -> Fields:
    source = block.inner("source")
    if source is None:
        raise block.fault("source", "is missing")
    if source.text("type", most=64) == "file":
        raise source.fault("type", "files are not kept here; send base64 or url")
    return source


def _url_of(source: Fields, media_type: str | None) -> str:
    kind = source.one_of("type", "base64", "url")
    if kind == "url":
        return source.needed("url")
    if kind is None or media_type is None:
        raise source.fault("type" if kind is None else "media_type", "is missing")
    return f"data:{media_type};base64,{source.needed('data')}"


def _document(block: Fields) -> asked.File:
    source = _source(block)
    title, kept = block.text("title", most=512), {}
    match source.text("type"):
        case "text":
            media_type = source.text("media_type", most=128) or "text/plain"
            url = _as_data(media_type, source.needed("data"))
        case "content":  # blocks that citations count: they go on as they are
            media_type = "text/plain"
            words = _words(_content(source, "content", _OF_DOCUMENT))
            url = _as_data(media_type, words or "See the pictures below.")
            kept = block.these("source")
        case _:
            media_type = source.text("media_type", most=128) or "application/pdf"
            url = _url_of(source, media_type)
    extra = {**kept, **_more(block)}
    return asked.File(media_type, url, title, {API: extra} if extra else {})


def _pictures_in(document: Fields) -> Iterator[asked.Image]:
    """Those among the blocks of a document: providers of this API get them with it, others beside it."""
    source = _source(document)
    if source.text("type") == "content":
        for part in _content(source, "content", _OF_DOCUMENT):
            if isinstance(part, asked.Image):
                yield asked.Image(part.url, extra={API: {asked.WITHIN: "document"}})


def _as_data(media_type: str, text: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(text.encode()).decode()}"


def _words(parts: Iterator[asked.Part]) -> str:
    return "\n".join(part.text for part in parts if isinstance(part, asked.Text))


def _more(block: Fields) -> dict[str, Any]:
    """What nobody has asked for of a block, such as marks of the cache, which goes on as it is."""
    return block.these(*block.left_over())


def _extra(block: Fields) -> asked.Extra:
    extra = _more(block)
    return {API: extra} if extra else {}


def _tool(fields: Fields) -> asked.Tool:
    kind = fields.these("type")
    if kind.get("type", "custom") != "custom":
        because = "only tools of type custom are passed on; those that a provider runs or defines are not"
        raise fields.fault("type", because)
    name, description = fields.needed("name", most=128), fields.text("description")
    schema, strict = fields.needed_mapping("input_schema"), fields.flag("strict")
    extra = {**kind, **_more(fields)}
    return asked.Tool(name, description, schema, strict, {API: extra} if extra else {})


def _tool_choice(fields: Fields) -> tuple[Any, bool | None]:
    """The choice, and whether several calls at a time are welcome."""
    choice = fields.inner("tool_choice")
    if choice is None:
        return None, None
    kind = choice.one_of("type", "auto", "any", "tool", "none")
    if kind is None:
        raise choice.fault("type", "is missing")
    one_at_a_time = choice.flag("disable_parallel_tool_use")
    parallel = None if one_at_a_time is None else not one_at_a_time
    if kind == "tool":
        return asked.NamedTool(choice.needed("name", most=128)), parallel
    return "required" if kind == "any" else kind, parallel


def _output(fields: Fields) -> tuple[str | None, OutputFormat | None]:
    """How hard the model is to try, and what the answer has to be."""
    config = fields.inner("output_config") or Fields({})
    effort = config.one_of("effort", "low", "medium", "high", "xhigh", "max")
    given = config.inner("format") or fields.inner("output_format")
    if given is not None and given.one_of("type", "json_schema") is None:
        raise given.fault("type", "is missing")
    output = None if given is None else OutputFormat(given.needed_mapping("schema"))
    return effort, output
