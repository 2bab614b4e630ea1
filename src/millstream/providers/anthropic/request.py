"""Requests: a prompt -> the body that a server of Anthropic's Messages is sent.

What this API does not have is refused where it is about what is answered, and left out where it only tunes
the answer: ``seed``, penalties, a temperature over 1.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from millstream import data_urls
from millstream import prompt as asked
from millstream.errors import RequestRefused
from millstream.prompt import BETAS, Effort, Message, Prompt
from millstream.providers import media
from millstream.providers.anthropic.models import Traits

API = "anthropic"

_LEAST_BUDGET = 1024  # tokens; the API refuses less

# How hard to think -> how many tokens it may take, for models that want to be told in tokens.
BUDGETS: dict[Effort, int] = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16_384,
    "xhigh": 32_768,
    "max": 65_536,
}
# And for those that take an effort: the names that they have.
_EFFORTS = {"minimal": "low"}
_EFFORTS_WITHOUT_XHIGH = {**_EFFORTS, "xhigh": "max"}

_MEDIA_TYPES = {"image/jpg": "image/jpeg"}  # those that clients write -> those that the API takes
_CALL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def body(name: str, prompt: Prompt, traits: Traits) -> dict[str, Any]:
    """Without the model, and without what says that a stream is wanted. Raises ``RequestRefused``."""
    if prompt.choices > 1:
        raise RequestRefused(f"provider '{name}' gives one answer to a prompt; n has to be 1")
    head = _leading(prompt.messages)
    messages = _merged(name, prompt.messages)
    sent: dict[str, Any] = {
        "messages": messages,
        "max_tokens": traits.max_tokens if prompt.max_tokens is None else prompt.max_tokens,
    }
    if head:
        sent["system"] = _as_text([_part(name, part) for part in head])
    if stop := [word for word in prompt.stop if word.strip()]:  # others are refused
        sent["stop_sequences"] = stop
    if prompt.tools:
        sent["tools"] = list(map(_tool, prompt.tools))
        if choice := _tool_choice(prompt):
            sent["tool_choice"] = choice
    if prompt.user is not None:
        sent["metadata"] = {"user_id": prompt.user}
    thinking, effort = _thinking(prompt, traits, sent["max_tokens"])
    if thinking is not None:
        sent["thinking"] = thinking
    config: dict[str, Any] = {} if effort is None else {"effort": effort}
    if prompt.output is not None:
        config["format"] = _format(name, prompt.output)
    if config:
        sent["output_config"] = config
    if traits.samples and (thinking is None or thinking.get("type") == "disabled"):
        sent |= _sampling(prompt, traits)
    own = {field: value for field, value in prompt.extra_of(API).items() if field != BETAS}
    if isinstance(given := own.get("output_config"), dict):
        own["output_config"] = {**config, **given}
    return {**sent, **own}


def _leading(messages: Sequence[Message]) -> list[asked.Part]:
    """What the system says, which has a place of its own here; but for what a client of this API has put in
    the middle of a conversation.
    """
    said = [message for message in messages if _is_system(message)]
    return [part for message in said for part in message.parts if _says_something(part)]


def _is_system(message: Message) -> bool:
    return message.role in ("system", "developer") and "role" not in message.extra.get(API, {})


def _merged(name: str, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation, with messages of the same role that follow each other in one: here, what tools answer
    is said by the user.
    """
    merged: list[dict[str, Any]] = []
    for message in media.shown_by_users(messages):
        if _is_system(message):
            continue
        role = "user" if message.role == "tool" else message.role
        content = [_part(name, part) for part in message.parts if _says_something(part)]
        if not content:
            continue
        if merged and merged[-1]["role"] == role:
            merged[-1]["content"] += content
        else:
            merged.append({"role": role, "content": content})
    for one in merged:
        one["content"] = _as_text(one["content"])
    return merged


def _says_something(part: asked.Part) -> bool:
    """Texts without a word are refused there, and so are thoughts that nobody has signed. A picture may have
    been said with its document.
    """
    if isinstance(part, asked.Image):
        return asked.WITHIN not in part.extra.get(API, {})
    if isinstance(part, asked.Text):
        return bool(part.text.strip()) or "type" in part.extra.get(API, {})
    if isinstance(part, asked.Reasoning):
        return _is_theirs(part)
    return not isinstance(part, asked.Refusal) or bool(part.text.strip())


def _as_text(content: list[dict[str, Any]]) -> Any:
    """A lone text as such."""
    return content[0]["text"] if len(content) == 1 and content[0].keys() == {"type", "text"} else content


def _part(name: str, part: asked.Part) -> dict[str, Any]:
    extra = {} if isinstance(part, asked.Refusal) else part.extra.get(API, {})
    match part:
        case asked.Text():
            return dict(extra) if "type" in extra else {"type": "text", "text": part.text, **extra}
        case asked.Refusal():
            return {"type": "text", "text": part.text}
        case asked.Image():
            return {"type": "image", "source": _source(name, part.url, "images"), **extra}
        case asked.File():
            title = {} if part.name is None else {"title": part.name}
            source = extra.get("source") or _document(name, part)
            return {"type": "document", **title, **extra, "source": source}
        case asked.Reasoning() if part.redacted:
            return {"type": "redacted_thinking", "data": part.redacted}
        case asked.Reasoning():
            return {"type": "thinking", "thinking": part.text, "signature": part.signature, **extra}
        case asked.ToolCall():
            kept = (part.extra_content or {}).get(API, {})
            called = {"id": _call_id(part.call_id), "name": part.name, "input": _input(name, part)}
            return {"type": "tool_use", **called, **(kept if isinstance(kept, dict) else {}), **extra}
        case asked.ToolResult():
            content = [_part(name, inner) for inner in part.parts if _says_something(inner)]
            result: dict[str, Any] = {"type": "tool_result", "tool_use_id": _call_id(part.call_id)}
            if content:
                result["content"] = _as_text(content)
            if part.is_error:
                result["is_error"] = True
            return {**result, **extra}


def _call_id(given: str) -> str:
    """The id of a call, or another where the API would refuse it."""
    return given if _CALL_ID.fullmatch(given) else asked.short_id("toolu", given)


def _source(name: str, url: str, what: str) -> dict[str, Any]:
    if url[:8].lower().startswith(("http://", "https://")):
        return {"type": "url", "url": url}
    held = data_urls.held_by(url)
    if held is None or not all(held):
        raise RequestRefused(f"provider '{name}' takes {what} as data:<type>;base64,… or https://…")
    media_type = _MEDIA_TYPES.get(held.media_type, held.media_type)
    return {"type": "base64", "media_type": media_type, "data": held.data}


def _document(name: str, file: asked.File) -> dict[str, Any]:
    held = data_urls.held_by(file.url)
    if file.media_type.startswith("text/") and held is not None:
        try:
            return {"type": "text", "media_type": "text/plain", "data": held.text()}
        except ValueError as error:
            raise RequestRefused("a document is no text in UTF-8 and base64") from error
    if file.media_type != "application/pdf":
        raise RequestRefused(f"provider '{name}' takes images, PDFs and plain text, and no other files")
    return _source(name, file.url, "documents")


def _input(name: str, call: asked.ToolCall) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(call.arguments) if call.arguments.strip() else {}
    except (ValueError, RecursionError):  # among them half characters and numbers that no float can hold
        value = None
    if not isinstance(value, dict):
        raise RequestRefused(f"provider '{name}' takes tool calls whose arguments are a JSON object")
    return value


def _tool(tool: asked.Tool) -> dict[str, Any]:
    given = {"description": tool.description, "strict": tool.strict}
    return {
        "name": tool.name,
        **{name: value for name, value in given.items() if value is not None},
        "input_schema": tool.parameters or {"type": "object", "properties": {}},
        **tool.extra.get(API, {}),
    }


def _tool_choice(prompt: Prompt) -> dict[str, Any] | None:
    choice: dict[str, Any] | None = None
    if isinstance(prompt.tool_choice, asked.NamedTool):
        choice = {"type": "tool", "name": prompt.tool_choice.name}
    elif prompt.tool_choice is not None:
        choice = {"type": "any" if prompt.tool_choice == "required" else prompt.tool_choice}
    if prompt.parallel_tool_calls is not None and prompt.tool_choice != "none":
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": not prompt.parallel_tool_calls}
    return choice


def _sampling(prompt: Prompt, traits: Traits) -> dict[str, Any]:
    given = {
        "temperature": None if prompt.temperature is None else min(prompt.temperature, 1),
        "top_p": prompt.top_p if traits.mixes or prompt.temperature is None else None,
        "top_k": prompt.top_k,
    }
    return {name: value for name, value in given.items() if value is not None}


def _thinking(prompt: Prompt, traits: Traits, max_tokens: int) -> tuple[dict[str, Any] | None, str | None]:
    """How the model is told to think, and its effort. A client of this API has said so itself."""
    own = prompt.extra_of(API)
    if "thinking" in own:
        return own["thinking"], None
    wanted, effort = prompt.reasoning_tokens, prompt.reasoning_effort
    if "output_config" in own or (wanted is None and effort is None):
        return None, None
    if effort == "none":  # some models cannot be told not to think; with those, the least
        return (None, "low") if traits.adapts and not traits.budgets else ({"type": "disabled"}, None)
    names = _EFFORTS if traits.has_xhigh else _EFFORTS_WITHOUT_XHIGH
    name = None if effort is None or not traits.adapts else names.get(effort, effort)
    if _cannot_think(prompt):
        return None, name
    if traits.adapts:
        return {"type": "adaptive", "display": "summarized"}, name
    if not traits.budgets:
        return None, None
    budget = wanted if wanted is not None else min(BUDGETS[effort or "medium"], max_tokens // 2)
    if budget < _LEAST_BUDGET and wanted is None:
        return None, None  # there is no room for it
    return {"type": "enabled", "budget_tokens": max(budget, _LEAST_BUDGET)}, None


def _cannot_think(prompt: Prompt) -> bool:
    """Whether the API would refuse to let the model think: where a tool is forced, and in a loop of tools
    whose last turn has no thoughts that it has signed.
    """
    if prompt.tool_choice == "required" or isinstance(prompt.tool_choice, asked.NamedTool):
        return True
    last = next((message for message in reversed(prompt.messages) if message.role == "assistant"), None)
    return last is not None and prompt.messages[-1].role == "tool" and not _is_signed(last.parts)


def _is_signed(parts: Iterable[asked.Part]) -> bool:
    return any(isinstance(part, asked.Reasoning) and _is_theirs(part) for part in parts)


def _is_theirs(thought: asked.Reasoning) -> bool:
    """Whether Anthropic can have signed it. A conversation may have had a model of another provider before,
    whose thoughts have a signature with a name in front (``gemini:…``), or what only another API knows.
    """
    seal = thought.signature or thought.redacted
    foreign = ":" in seal or (bool(thought.extra) and API not in thought.extra)
    return not foreign and bool(seal)


def _format(name: str, output: asked.OutputFormat) -> dict[str, Any]:
    if output.schema is None:
        raise RequestRefused(f"provider '{name}' writes JSON to a schema only; send one as json_schema")
    return {"type": "json_schema", "schema": dict(output.schema)}
