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

_MAX_METADATA = 16

StopWord: TypeAlias = Annotated[str, Field(max_length=1024)]
Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


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
        if self.content is None or isinstance(self.content, str):
            return self.content or self.refusal or ""
        parts = (part for part in self.content if not isinstance(part, ImagePart))
        return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in parts)


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
    schema_: Annotated[JsonObject | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Grace(_Strict):
    """How long a stream waits for a reader to come back, in seconds."""

    grace_seconds: Annotated[float, Field(ge=0, le=600)]


OnDisconnect: TypeAlias = Literal["cancel", "continue"] | Grace


class ChatRequest(_Strict):
    """The body of ``POST /v1/chat/stream`` and ``POST /v1/chat``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    model: Annotated[str, Field(pattern=r"^[!-~]([ -~]{0,254}[!-~])?$")] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: StopWord | Annotated[list[StopWord], Field(max_length=16, fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    tools: Annotated[list[Tool], Field(max_length=512, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
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

    def for_provider(
        self, *, reasoning_field: str | None = "reasoning_content", extra_content: bool = True
    ) -> dict[str, Any]:
        """What was asked of the model, in OpenAI's words, without what only concerns us.

        ``reasoning_field`` is the provider's name for the reasoning of earlier answers; None, and
        ``extra_content=False``, are for one that refuses such fields.
        """
        left_out = {"messages", "model", "on_disconnect"}
        body = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=left_out)
        sent = [_sent(message, reasoning_field, extra_content) for message in self.messages]
        return {"messages": sent, **body}


def _sent(message: ChatMessage, reasoning_field: str | None, extra_content: bool) -> dict[str, Any]:
    """A message as a provider takes it. By hand: there may be thousands, most with few of their fields."""
    content: Any = message.content
    if isinstance(content, list):
        content = [_sent_part(part) for part in content]
    sent: dict[str, Any] = {"role": message.role, "content": content}
    if message.name is not None:
        sent["name"] = message.name
    if message.tool_call_id is not None:
        sent["tool_call_id"] = message.tool_call_id
    if message.role != "assistant":
        return sent
    if message.tool_calls:  # some refuse an empty list
        sent["tool_calls"] = [_sent_call(call, extra_content) for call in message.tool_calls]
    if content is None and not message.tool_calls:
        sent["content"] = message.refusal or ""
    if extra_content and message.extra_content is not None:
        sent["extra_content"] = message.extra_content
    if reasoning_field is not None:
        if message.reasoning_content is not None or message.reasoning is not None:
            sent[reasoning_field] = message.reasoning_content or message.reasoning or ""
        if message.reasoning_details is not None:
            sent["reasoning_details"] = message.reasoning_details
    return sent


def _sent_call(call: ToolCall, extra_content: bool) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    sent = {"id": call.id, "type": "function", "function": function}
    if extra_content and call.extra_content is not None:
        sent["extra_content"] = call.extra_content
    return sent


def _sent_part(part: ContentPart) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case RefusalPart():  # of which only OpenAI knows
            return {"type": "text", "text": part.refusal}
        case ImagePart():
            detail = {} if part.image_url.detail is None else {"detail": part.image_url.detail}
            return {"type": "image_url", "image_url": {"url": part.image_url.url, **detail}}
