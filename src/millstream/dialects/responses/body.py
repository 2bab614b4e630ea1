"""A body of the Responses API -> what it asks for."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from millstream import prompt as asked
from millstream.bodies import read_object
from millstream.dialects import Ask, Dialect
from millstream.dialects import fields as read
from millstream.dialects.fields import Fields
from millstream.prompt import RESPONSES_SEAL, Message, NamedTool, OutputFormat, Prompt

API = "responses"
_MAX_ITEMS = 4096
_MAX_ECHO_BYTES = 2048  # of one field


_json = msgspec.json.Encoder().encode

# What is passed on as it is to providers of this API. Nothing in it runs anything or sends data elsewhere.
_PASSED_ON = (
    "image",
    "include",
    "max_tool_calls",
    "moderation",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "top_logprobs",
    "truncation",
)

# What a response says of the body that it answers, and what it says where that said nothing.
ECHO: Mapping[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": None,  # which the provider says
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": None,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}

# A thought's signature is shown with the name of its API in front, but for those of this one. A prompt has no
# name before Anthropic's.
ANTHROPIC_SEAL = "anthropic:"
NAMED = (ANTHROPIC_SEAL, "gemini:", RESPONSES_SEAL)


def ask_of(body: bytes, dialect: Dialect) -> Ask:
    """What a body asks for, to be answered in this ``dialect``. Raises ``InvalidRequest``."""
    fields = Fields(read_object(body))
    fields.refuse("previous_response_id", "conversation", because="no history is kept here; send it in input")
    fields.refuse("prompt", because="prompts are not kept here; send what it says in input")
    fields.refuse("context_management", because="a conversation is not changed here; leave it out")
    (fields.inner("stream_options") or Fields({})).flag("include_obfuscation")
    background, stream = bool(fields.flag("background")), bool(fields.flag("stream"))
    fields.flag("store")  # either way an answer is kept for as long as it can be resumed
    reasoning = fields.inner("reasoning") or Fields({})
    text = fields.inner("text") or Fields({})
    tools, choice, left_out = _tools(fields)
    prompt = Prompt(
        tuple(_messages(fields)),
        read.model(fields),
        tools,
        choice,
        fields.flag("parallel_tool_calls"),
        fields.count("max_output_tokens", 1, read.MAX_TOKENS),
        fields.number("temperature", 0, 2),
        fields.number("top_p", 0, 1),
        output=_output(text),
        reasoning_effort=reasoning.one_of("effort", *asked.EFFORTS),  # type: ignore[arg-type]
        user=read.user(fields, "safety_identifier") or read.user(fields),
        metadata=read.metadata(fields),
        extra=_extra(fields, reasoning, text),
    )
    policy = read.on_disconnect(fields)
    if background and "on_disconnect" not in fields:
        policy = "continue"
    ignored = (*fields.ignored(), *left_out)
    said = fields.these(*(name for name in ECHO if name != "service_tier"))
    echo = {name: value for name, value in said.items() if _is_short(value)}
    return Ask(prompt, policy, not stream, ignored, dialect, background=background, echo=echo)


def _is_short(value: object) -> bool:
    """Whether a field is said back: every response has it several times."""
    return len(_json(value)) <= _MAX_ECHO_BYTES


def _extra(fields: Fields, reasoning: Fields, text: Fields) -> dict[str, dict[str, Any]]:
    extra = fields.these(*_PASSED_ON)
    if "safety_identifier" in fields and (user := read.user(fields)):
        extra["user"] = user  # the older name, which may say something else
    if more := reasoning.these("summary", "generate_summary", "mode", "context"):
        extra["reasoning"] = more
    if more := text.these("verbosity"):
        extra["text"] = more
    return {API: extra} if extra else {}


def _messages(fields: Fields) -> Iterator[Message]:
    """The conversation. What an assistant has said, thought and called in one turn is one message."""
    if instructions := fields.text("instructions"):
        yield Message("system", (asked.Text(instructions),))
    given = fields.any("input")
    if isinstance(given, str):
        yield Message("user", (asked.Text(given),))
        return
    if not given:
        raise fields.fault("input", "is missing")
    turn: list[asked.Part] = []
    for item in fields.objects("input", _MAX_ITEMS):
        message = _item(item)
        if message.role == "assistant":
            turn += message.parts
            continue
        if turn:
            yield Message("assistant", tuple(turn))
            turn = []
        yield message
    if turn:
        yield Message("assistant", tuple(turn))


def _item(fields: Fields) -> Message:
    match fields.text("type"):
        case None | "message":
            return _message(fields)
        case "reasoning":
            return Message("assistant", (_reasoning(fields),))
        case "function_call":
            call = asked.ToolCall(
                fields.needed("call_id", most=512),
                fields.needed("name", most=128),
                fields.text("arguments") or "",
                fields.mapping("extra_content"),
            )
            return Message("assistant", (call,))
        case "function_call_output":
            parts = [part for part in _content(fields, "output") if not isinstance(part, asked.Refusal)]
            result = asked.ToolResult(fields.needed("call_id", most=512), tuple(parts))
            return Message("tool", (result,))
        case "image_generation_call":
            return Message("assistant", (_picture(fields),))
        case "item_reference":
            raise fields.fault("type", "items are not kept here; send the item, as SDKs do with store false")
        case _:
            raise fields.fault(
                "type",
                "is none of message, reasoning, function_call, function_call_output and "
                "image_generation_call; hosted and custom tools are not run here",
            )


def _message(fields: Fields) -> Message:
    role = fields.one_of("role", "system", "developer", "user", "assistant")
    if role is None:
        raise fields.fault("role", "is missing")
    if "content" not in fields:
        raise fields.fault("content", "is missing")
    parts = _content(fields, "content")
    if role == "assistant" and (phase := fields.text("phase", most=64)):
        extra = {API: {"phase": phase}}
        parts = [asked.Text(part.text, extra) if isinstance(part, asked.Text) else part for part in parts]
    return Message(role, tuple(parts))  # type: ignore[arg-type]


def _reasoning(fields: Fields) -> asked.Reasoning:
    """A thought, which a provider of its API gets back as it is, and no other. A signature without a name in
    front is of this API.
    """
    texts = [part.needed("text") for part in fields.objects("summary", read.MAX_PARTS)]
    if not texts:
        texts = [part.needed("text") for part in fields.objects("content", read.MAX_PARTS)]
    sealed, text = fields.text("encrypted_content") or "", "\n\n".join(texts)
    kept = {"summary": [], **fields.these("id", "summary", "content", "encrypted_content")}
    if sealed and not sealed.startswith(NAMED):
        sealed = f"{RESPONSES_SEAL}{sealed}"
    is_ours = not sealed or sealed.startswith(RESPONSES_SEAL)
    sealed = sealed.removeprefix(ANTHROPIC_SEAL)
    extra = {API: {"type": "reasoning", **kept}} if is_ours else {}
    return asked.Reasoning(text, sealed if text else "", "" if text else sealed, extra)


# How pictures of other types than PNG begin, in base64: an item need not say its type.
_BEGINNINGS = {"/9j/": "jpeg", "UklGR": "webp", "R0lGOD": "gif"}


def _picture(fields: Fields) -> asked.Image:
    """One that the model made."""
    data = fields.needed("result")
    seen = (kind for beginning, kind in _BEGINNINGS.items() if data.startswith(beginning))
    kind = fields.text("output_format", most=32) or next(seen, "png")
    return asked.Image(f"data:image/{kind};base64,{data}")


_InputPart: TypeAlias = asked.Text | asked.Image | asked.File | asked.Refusal


def _content(fields: Fields, name: str) -> list[_InputPart]:
    value = fields.any(name)
    if value is None:
        return []
    if isinstance(value, str):
        return [asked.Text(value)]
    if not isinstance(value, list):
        raise fields.fault(name, "has to be text or a list of parts")
    return [_part(part) for part in fields.objects(name, read.MAX_PARTS)]


def _part(fields: Fields) -> _InputPart:
    extra = fields.these("prompt_cache_breakpoint")
    kept: asked.Extra = {API: extra} if extra else {}
    match fields.text("type"):
        case "input_text" | "output_text" | "text":
            return asked.Text(fields.needed("text"), kept)
        case "refusal":
            return asked.Refusal(fields.needed("refusal"))
        case "input_image":
            _no_file_id(fields, "image_url")
            return asked.Image(fields.needed("image_url"), fields.text("detail", most=32), kept)
        case "input_file":
            _no_file_id(fields, "file_data or file_url")
            return msgspec.structs.replace(_file(fields), extra=kept)
        case "input_audio":
            audio = fields.inner("input_audio") or Fields({})
            media_type = f"audio/{audio.needed('format', most=32)}"
            return asked.File(media_type, f"data:{media_type};base64,{audio.needed('data')}")
        case _:
            raise fields.fault("type", "is none of input_text, input_image, input_file, output_text, refusal")


def _no_file_id(fields: Fields, instead: str) -> None:
    fields.refuse("file_id", because=f"files are not kept here; send {instead}")


def _file(fields: Fields) -> asked.File:
    url = fields.text("file_url")
    if not url:
        return read.document(fields)
    name = fields.text("filename", most=512)
    return asked.File(read.document_type(name or url), url, name)


_Choice: TypeAlias = Literal["none", "auto", "required"] | NamedTool | None


def _tools(fields: Fields) -> tuple[tuple[asked.Tool, ...], _Choice, tuple[str, ...]]:
    """The functions that may be called, the choice among them, and what is left out of the body."""
    offered = list(fields.objects("tools", read.MAX_TOOLS))
    tools = tuple(_tool(tool) for tool in offered if not _is_only_offered(tool))
    left_out = tuple(dict.fromkeys(f"tools.{tool.any('type')}" for tool in offered if _is_only_offered(tool)))
    if not isinstance(fields.any("tool_choice"), dict):
        said: Any = fields.one_of("tool_choice", "none", "auto", "required")
        if said == "required" and left_out and not tools:
            raise fields.fault("tool_choice", "asks for a tool, and none of the tools is a function")
        return tools, said, left_out
    choice = fields.inner("tool_choice") or Fields({})
    match choice.text("type"):
        case "function":
            return tools, NamedTool(choice.needed("name", most=128)), left_out
        case "allowed_tools":
            allowed = {_allowed(tool) for tool in choice.objects("tools", read.MAX_TOOLS)}
            mode: Any = choice.one_of("mode", "auto", "required")
            return tuple(tool for tool in tools if tool.name in allowed), mode, left_out
        case _:
            raise fields.fault("tool_choice", "has to be none, auto, required, a function or allowed_tools")


def _is_only_offered(tool: Fields) -> bool:
    """Whether it is a tool that is not run here, but that clients send by default: without it they go on."""
    kind = tool.text("type") or ""
    return kind.startswith("web_search") or kind in ("custom", "namespace")


def _allowed(tool: Fields) -> str:
    """The name of one of the tools that the model is to choose among."""
    if _is_only_offered(tool):
        raise tool.fault("type", _FUNCTIONS)
    return tool.needed("name", most=128)


_FUNCTIONS = "only functions are passed on; hosted tools, such as mcp, and custom tools are not"


def _tool(fields: Fields) -> asked.Tool:
    if fields.text("type") != "function":
        raise fields.fault("type", _FUNCTIONS)
    name, description = fields.needed("name", most=128), fields.text("description")
    parameters, strict = fields.mapping("parameters"), fields.flag("strict")
    extra: dict[str, Any] = fields.these(*fields.left_over())
    if strict is None:
        extra["strict"] = None  # which is true here, and false elsewhere
    return asked.Tool(name, description, parameters, strict, {API: extra} if extra else {})


def _output(text: Fields) -> OutputFormat | None:
    given = text.inner("format")
    if given is None:
        return None
    kind = given.one_of("type", "text", "json_object", "json_schema")
    if kind != "json_schema":
        return OutputFormat() if kind == "json_object" else None
    return OutputFormat(
        given.needed_mapping("schema"),
        given.text("name", most=128) or "answer",
        given.text("description"),
        given.flag("strict"),
    )
