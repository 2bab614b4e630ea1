"""What a caller may ask for: the body of a chat request, checked at the door.

Unknown fields are refused at every depth: a misspelt ``max_token`` must not become a longer bill, and nothing
in a body can name an endpoint or a key. The exceptions are JSON Schemas (``parameters`` of a tool, ``schema``
of a response format), which are the caller's own and are passed on as they are. A list gives up at its first
fault (``fail_fast``): a body may have thousands of them.

History is taken as SDKs return it, with the fields that answers have. Of those a provider is sent what some
want back (reasoning, ``extra_content``); the others are left out, because most refuse them.
"""

import math
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from millstream import prompt
from millstream.prompt import Effort, Prompt

_MAX_METADATA = 16
MAX_GRACE_SECONDS = 600

StopWord: TypeAlias = Annotated[str, Field(max_length=1024)]
Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("has to be a number")
    return value


# JSON's ``true`` would be 1.
Whole: TypeAlias = Annotated[int, BeforeValidator(_no_flag)]
Number: TypeAlias = Annotated[float, BeforeValidator(_no_flag)]


def _finite(value: JsonValue) -> JsonValue:
    """JSON has no NaN and no infinities, but Python's readers make them of ``NaN`` and ``1e999``."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError("numbers have to be finite")
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return value


JsonObject: TypeAlias = Annotated[dict[str, JsonValue], AfterValidator(_finite)]


JsonList: TypeAlias = Annotated[list[JsonValue], AfterValidator(_finite)]


def _left_out(value: JsonValue) -> None:
    _finite(value)


# A field of answers that no provider wants back.
LeftOut: TypeAlias = Annotated[JsonValue, AfterValidator(_left_out)]


def _few(value: object) -> object:
    if isinstance(value, dict) and len(value) > _MAX_METADATA:
        raise ValueError(f"at most {_MAX_METADATA} entries")
    return value


class TextPart(_Strict):
    type: Literal["text"]
    text: str
    annotations: LeftOut = None
    logprobs: LeftOut = None


class ImageUrl(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class RefusalPart(_Strict):
    type: Literal["refusal"]
    refusal: str


ContentPart: TypeAlias = Annotated[TextPart | ImagePart | RefusalPart, Field(discriminator="type")]


class FunctionCall(_Strict):
    name: Annotated[str, Field(max_length=128)]
    arguments: str
    parsed_arguments: LeftOut = None


class ToolCall(_Strict):
    id: Annotated[str, Field(max_length=512)]
    type: Literal["function"] | None = "function"
    function: FunctionCall
    index: LeftOut = None
    extra_content: JsonObject | None = None  # Gemini's thought signature


class ChatMessage(_Strict):
    """One message of the conversation."""

    role: Role
    content: str | Annotated[list[ContentPart], Field(max_length=1024, fail_fast=True)] | None = None
    name: Annotated[str, Field(max_length=128)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=512, fail_fast=True)] | None = None
    tool_call_id: Annotated[str, Field(max_length=512)] | None = None

    # What answers have besides. Only an assistant's are passed on.
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same by another name
    reasoning_details: JsonList | None = None
    extra_content: JsonObject | None = None
    audio: None = None
    function_call: None = None
    annotations: LeftOut = None
    context: LeftOut = None
    end_turn: LeftOut = None
    executed_tools: LeftOut = None
    id: LeftOut = None
    parsed: LeftOut = None
    provider_specific_fields: LeftOut = None
    thinking_blocks: LeftOut = None

    @model_validator(mode="after")
    def _complete(self) -> "ChatMessage":
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a message of role 'tool' needs a tool_call_id")
        if self.content is None and self.role != "assistant":
            raise ValueError("content is missing")
        return self

    @property
    def text(self) -> str:
        """The message's words; images have none."""
        return _message(self).text


class Function(_Strict):
    name: Annotated[str, Field(max_length=128)]
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(_Strict):
    type: Literal["function"] = "function"
    function: Function


class FunctionName(_Strict):
    name: Annotated[str, Field(max_length=128)]


class ToolChoice(_Strict):
    type: Literal["function"] = "function"
    function: FunctionName


class JsonSchema(_Strict):
    name: Annotated[str, Field(max_length=128)]
    description: str | None = None
    schema_: Annotated[JsonObject, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing")
        return self


class Grace(_Strict):
    """How long a stream waits for a reader to come back, in seconds."""

    grace_seconds: Annotated[Number, Field(ge=0, le=MAX_GRACE_SECONDS)]


OnDisconnect: TypeAlias = Literal["cancel", "continue"] | Grace


class ChatRequest(_Strict):
    """The body of ``POST /v1/chat/stream`` and ``POST /v1/chat``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    model: Annotated[str, Field(pattern=r"^[!-~]([ -~]{0,254}[!-~])?$")] | None = None
    max_tokens: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    stop: StopWord | Annotated[list[StopWord], Field(max_length=16, fail_fast=True)] | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = None
    tools: Annotated[list[Tool], Field(max_length=512, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    user: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,256}$")] | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=64)],
                Annotated[str, Field(max_length=512)],
            ],
            Field(max_length=_MAX_METADATA),
            BeforeValidator(_few),
        ]
        | None
    ) = None
    on_disconnect: OnDisconnect = "cancel"

    def to_prompt(self) -> Prompt:
        """What was asked of the model, in no vendor's words."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        choice = self.tool_choice
        return Prompt(
            tuple(map(_message, self.messages)),
            self.model,
            tuple(map(_tool, self.tools or ())),
            prompt.NamedTool(choice.function.name) if isinstance(choice, ToolChoice) else choice,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=stop,
            seed=self.seed,
            output=_output(self.response_format),
            reasoning_effort=self.reasoning_effort,
            user=self.user,
            metadata=self.metadata,
        )


# By hand, not by a dump: there may be thousands of messages, most with few of their fields.


def _message(message: ChatMessage) -> prompt.Message:
    content = message.content
    parts: list[prompt.Part] = []
    extra: dict[str, Any] = {}
    if message.role == "assistant":
        if message.reasoning_content is not None or message.reasoning is not None:
            parts.append(prompt.Reasoning(message.reasoning_content or message.reasoning or ""))
        for name in ("reasoning_details", "extra_content"):
            if (given := getattr(message, name)) is not None:
                extra[name] = given
    if isinstance(content, str):
        parts.append(prompt.Text(content))
    else:
        parts += map(_part, content or ())
    if message.role == "tool":
        result = prompt.ToolResult(message.tool_call_id or "", tuple(parts), name=message.name)  # type: ignore[arg-type]
        return prompt.Message("tool", (result,), message.name)
    if message.role == "assistant":
        if content is None and message.refusal:
            parts.append(prompt.Refusal(message.refusal))
        parts += [
            prompt.ToolCall(call.id, call.function.name, call.function.arguments, call.extra_content)
            for call in message.tool_calls or ()
        ]
    return prompt.Message(
        message.role, tuple(parts), message.name, {"openai": extra} if extra else prompt.NO_EXTRA
    )


def _part(part: ContentPart) -> prompt.Part:
    match part:
        case TextPart():
            return prompt.Text(part.text)
        case RefusalPart():
            return prompt.Refusal(part.refusal)
        case ImagePart():
            return prompt.Image(part.image_url.url, part.image_url.detail)


def _tool(tool: Tool) -> prompt.Tool:
    function = tool.function
    return prompt.Tool(function.name, function.description, function.parameters, function.strict)


def _output(given: ResponseFormat | None) -> prompt.OutputFormat | None:
    if given is None or given.type == "text":
        return None
    schema = given.json_schema
    if schema is None:
        return prompt.OutputFormat()
    return prompt.OutputFormat(schema.schema_, schema.name, schema.description, schema.strict)
