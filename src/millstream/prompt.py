"""The prompt: what is asked of a model, in no vendor's words.

Every body that a dialect understands becomes one, and every provider makes its request of one. ``extra`` is
what only one vendor's API knows, by that API's name (``openai``, ``anthropic``, ``responses``, ``gemini``): a
provider of the same API sends it as it came, any other leaves it out. So nothing is lost between a client
and a provider that speak the same.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from msgspec import Struct

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]
Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Extra: TypeAlias = Mapping[str, Mapping[str, Any]]

EFFORTS: tuple[Effort, ...] = get_args(Effort)
NO_EXTRA: Extra = {}
WITHIN = "within"  # in ``extra`` of a picture: that API has it in a part before
BETAS = "betas"  # in ``extra`` of a prompt: what its client wants to try, as that API names it
RESPONSES_SEAL = "responses:"  # before a signature of that API, because any other would refuse it
RAW_THOUGHT = "reasoning_text"  # the type of a thought of that API that is no summary
_LONGEST_USER = 64  # characters


class Text(Struct, frozen=True, tag="text", omit_defaults=True):
    text: str
    extra: Extra = NO_EXTRA


class Image(Struct, frozen=True, tag="image", omit_defaults=True):
    """A picture: a ``data:`` URL or an address. ``detail`` is how closely to look (low, high, auto)."""

    url: str
    detail: str | None = None
    extra: Extra = NO_EXTRA


class File(Struct, frozen=True, tag="file", omit_defaults=True):
    """A document or a recording: a ``data:`` URL or an address."""

    media_type: str
    url: str
    name: str | None = None
    extra: Extra = NO_EXTRA


class Reasoning(Struct, frozen=True, tag="reasoning", omit_defaults=True):
    """What a model thought earlier, with its provider's signature; or ``redacted``, as data that only the
    provider can read.
    """

    text: str = ""
    signature: str = ""
    redacted: str = ""
    extra: Extra = NO_EXTRA


class Refusal(Struct, frozen=True, tag="refusal", omit_defaults=True):
    text: str


class ToolCall(Struct, frozen=True, tag="tool-call", omit_defaults=True):
    """``arguments`` are JSON, as the model wrote them. ``extra_content`` goes back to the provider."""

    call_id: str
    name: str
    arguments: str
    extra_content: Mapping[str, Any] | None = None
    extra: Extra = NO_EXTRA


class ToolResult(Struct, frozen=True, tag="tool-result", omit_defaults=True):
    """What a tool answered. ``name`` is the tool's, where it is known."""

    call_id: str
    parts: tuple[Text | Image | File, ...]
    is_error: bool = False
    name: str | None = None
    extra: Extra = NO_EXTRA


Part: TypeAlias = Text | Image | File | Reasoning | Refusal | ToolCall | ToolResult


class Message(Struct, frozen=True, omit_defaults=True):
    """One message of the conversation. A message of role ``tool`` has tool results and nothing else."""

    role: Role
    parts: tuple[Part, ...]
    name: str | None = None
    extra: Extra = NO_EXTRA

    @property
    def text(self) -> str:
        """Its words; images and calls have none."""
        return "".join(_words(self.parts))

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [part for part in self.parts if isinstance(part, ToolCall)]


class Tool(Struct, frozen=True, omit_defaults=True):
    """A function that the model may ask for. ``parameters`` is a JSON Schema."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool | None = None
    extra: Extra = NO_EXTRA


class NamedTool(Struct, frozen=True):
    """The choice of one tool."""

    name: str


class OutputFormat(Struct, frozen=True, omit_defaults=True):
    """What the answer has to be: any JSON, or JSON of a ``schema``."""

    schema: Mapping[str, Any] | None = None
    name: str = "answer"
    description: str | None = None
    strict: bool | None = None


class Prompt(Struct, frozen=True, omit_defaults=True):
    """``model`` is the name that was asked for; None is the default. ``choices`` is how many answers are
    wanted, ``reasoning_tokens`` the most that the model may think, where it was said in tokens.
    """

    messages: tuple[Message, ...]
    model: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    output: OutputFormat | None = None
    reasoning_effort: Effort | None = None
    reasoning_tokens: int | None = None
    choices: int = 1
    user: str | None = None
    metadata: Mapping[str, str] | None = None
    extra: Extra = NO_EXTRA

    def extra_of(self, api: str) -> Mapping[str, Any]:
        """What only that API knows of the prompt as a whole."""
        return self.extra.get(api, {})


def short_id(kind: str, given: str) -> str:
    """In place of an id of a call that an API would refuse: the same one for the call and its result, and in
    every request. It has 32 characters behind its kind.
    """
    return f"{kind}_{hashlib.sha256(given.encode(errors='replace')).hexdigest()[:32]}"


def short_user(user: str) -> str:
    """The end user as OpenAI's APIs take one: in place of over 64 characters, always the same name."""
    return user if len(user) <= _LONGEST_USER else short_id("user", user)


def _words(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, (Text, Refusal)):
            yield part.text
        elif isinstance(part, ToolResult):
            yield from _words(part.parts)
