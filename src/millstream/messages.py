"""What a caller may ask for: the body of a chat request, checked at the door.

Unknown fields are refused at every depth: a misspelt ``max_token`` must not become a longer bill, and nothing
in a body can name an endpoint or a key. The exceptions are JSON Schemas (``parameters`` of a tool, ``schema``
of a response format), which are the caller's own and are passed on as they are. A list gives up at its first
fault (``fail_fast``): a body may have thousands of them.
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


def _few(value: object) -> object:
    if isinstance(value, dict) and len(value) > _MAX_METADATA:
        raise ValueError(f"at most {_MAX_METADATA} entries")
    return value


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


ContentPart: TypeAlias = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class FunctionCall(_Strict):
    name: Annotated[str, Field(max_length=128)]
    arguments: str


class ToolCall(_Strict):
    id: Annotated[str, Field(max_length=512)]
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(_Strict):
    """One message of the conversation."""

    role: Role
    content: str | Annotated[list[ContentPart], Field(max_length=1024, fail_fast=True)] | None = None
    name: Annotated[str, Field(max_length=128)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=512, fail_fast=True)] | None = None
    tool_call_id: Annotated[str, Field(max_length=512)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> "ChatMessage":
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a message of role 'tool' needs a tool_call_id")
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content is missing")
        return self

    @property
    def text(self) -> str:
        """The message's words; images have none."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


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
    model: Annotated[str, Field(pattern=r"^[!-~]{1,256}$")] | None = None
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

    def for_provider(self) -> dict[str, Any]:
        """What was asked of the model, in OpenAI's words, without what only concerns us."""
        return self.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude={"model", "on_disconnect"}
        )
