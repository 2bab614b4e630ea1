"""Requests: a prompt -> the body that a server of OpenAI's Chat Completions is sent."""

import hashlib
import re
import string
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any

from millstream import crossing, data_urls
from millstream import prompt as asked
from millstream.errors import RequestRefused
from millstream.prompt import Message, Prompt
from millstream.providers import media
from millstream.providers.known import Quirks

API = "openai"

_BLANK_LINE = "\n\n"
_LONGEST_NAME = 64  # of a tool
_DIGITS = string.digits + string.ascii_letters

# Fields of a prompt that have the same name and meaning here.
_SAME = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "reasoning_effort",
    "metadata",
)


def body(prompt: Prompt, quirks: Quirks) -> dict[str, Any]:
    """Without the model, and without what says that a stream is wanted."""
    messages = list(_messages(prompt.messages, quirks))
    if not quirks.user_after_tool:
        messages = list(_answered(messages))
    sent: dict[str, Any] = {
        "messages": messages if quirks.developer_role else _one_system(messages),
        **{name: value for name in _SAME if (value := getattr(prompt, name)) is not None},
        **crossing.known(prompt.extra, API),
    }
    if prompt.user is not None and "user" not in sent:  # by which Responses may say something else
        sent["user"] = asked.short_user(prompt.user)
    if prompt.stop:
        sent["stop"] = list(prompt.stop)
    if prompt.tools:
        sent |= _tools(prompt, quirks)
    if prompt.output is not None:
        sent["response_format"] = _output(prompt.output)
    if prompt.choices > 1:
        sent["n"] = prompt.choices
    for field, theirs in quirks.renamed.items():
        if field in sent:
            sent[theirs] = sent.pop(field)
    for field in quirks.refused:
        sent.pop(field, None)
    return sent


def _answered(messages: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """With a word of the assistant between a tool's and the user's."""
    before = ""
    for message in messages:
        if (before, message["role"]) == ("tool", "user"):
            yield {"role": "assistant", "content": "OK."}
        before = message["role"]
        yield message


def _one_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With one system message in place of those at the beginning: templates of models take one only."""
    leading = list(takewhile(lambda message: message["role"] == "system", messages))
    if len(leading) < 2:
        return messages
    contents = [message["content"] for message in leading if message["content"]]
    if all(isinstance(content, str) for content in contents):
        content: Any = _BLANK_LINE.join(contents)
    else:
        content = [part for content in contents for part in _parts(content)]
    return [{**leading[0], "content": content}, *messages[len(leading) :]]


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _messages(messages: Sequence[Message], quirks: Quirks) -> Iterator[dict[str, Any]]:
    """As they are sent. Files are taken of users only: those of an assistant and of tools follow in a message
    of a user, behind all results of the assistant's calls.
    """
    files: list[dict[str, Any]] = []
    for message in messages:
        if files and message.role != "tool":
            yield _of_files(files)
            files = []
        for one in _as_sent(message, quirks):
            content = one["content"]
            if one["role"] in ("assistant", "tool") and isinstance(content, list):
                files += [part for part in content if part["type"] != "text"]
                texts = [part for part in content if part["type"] == "text"]
                one["content"] = _content(texts, one["role"], quirks) or (
                    None if "tool_calls" in one else media.BELOW
                )
            yield one
    if files:
        yield _of_files(files)


def _of_files(files: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": media.ABOVE}, *files]}


def _as_sent(message: Message, quirks: Quirks) -> Iterator[dict[str, Any]]:
    """A message of tool results is one for each of them."""
    if message.role == "tool":
        for part in message.parts:
            if isinstance(part, asked.ToolResult):
                yield _result(part, quirks)
        return
    content = [_part(part, quirks) for part in message.parts if isinstance(part, _CONTENT)]
    role = "system" if message.role == "developer" and not quirks.developer_role else message.role
    sent: dict[str, Any] = {"role": role, "content": _content(content, role, quirks)}
    if message.name is not None:
        sent["name"] = message.name
    if message.role == "assistant":
        calls = message.tool_calls
        if calls:  # some refuse an empty list
            sent["tool_calls"] = [_call(call, quirks) for call in calls]
        elif not content:
            sent["content"] = ""
        extra = dict(message.extra.get(API, {}))
        if not quirks.extra_content:
            extra.pop("extra_content", None)
        if quirks.reasoning_field is None:
            extra.pop("reasoning_details", None)
        else:
            thought = [part.text for part in message.parts if isinstance(part, asked.Reasoning)]
            if thought:
                sent[quirks.reasoning_field] = _BLANK_LINE.join(filter(None, thought))
        sent |= extra
    yield sent


def _content(parts: list[dict[str, Any]], role: str, quirks: Quirks) -> Any:
    """Parts as a message has them: a string where that is all there is to say, None where there is nothing.
    Several texts are one where many servers take no list.
    """
    if not quirks.text_parts:  # nor what is said of a text
        plain = all(part["type"] == "text" for part in parts)
    else:
        plain = all(part.keys() == {"type", "text"} for part in parts)
        plain = plain and (len(parts) == 1 or role in ("system", "tool"))
    if plain and parts:
        return _BLANK_LINE.join(part["text"] for part in parts)
    return parts or None


_CONTENT = (asked.Text, asked.Image, asked.File, asked.Refusal)


def _part(part: object, quirks: Quirks) -> dict[str, Any]:
    match part:
        case asked.Text():
            return {"type": "text", "text": part.text, **_extra(part.extra, quirks)}
        case asked.Refusal():  # of which only OpenAI knows
            return {"type": "text", "text": part.text}
        case asked.Image():
            detail = {} if part.detail is None else {"detail": part.detail}
            image = {"url": part.url, **detail}
            return {"type": "image_url", "image_url": image, **_extra(part.extra, quirks)}
        case asked.File():
            return _file(part, quirks)
        case _:
            raise TypeError(part)


def _file(file: asked.File, quirks: Quirks) -> dict[str, Any]:
    """A document of text is its text, where that can be read."""
    held = data_urls.held_by(file.url)
    if held is None:
        raise RequestRefused("this model's provider takes documents and sound as data, not by a URL")
    if file.media_type.startswith("text/"):
        with suppress(ValueError):
            return {"type": "text", "text": held.text()}
    if file.media_type.startswith("audio/"):
        sound = {"data": held.data, "format": media.sound_format(file.media_type)}
        return {"type": "input_audio", "input_audio": sound, **_extra(file.extra, quirks)}
    shown = {"file_data": file.url, "filename": file.name or "file"}
    return {"type": "file", "file": shown, **_extra(file.extra, quirks)}


def _extra(extra: asked.Extra, quirks: Quirks) -> dict[str, Any]:
    """What only this API knows of a part or a tool, without what this server refuses."""
    return {name: value for name, value in crossing.known(extra, API).items() if name not in quirks.refused}


def _result(result: asked.ToolResult, quirks: Quirks) -> dict[str, Any]:
    content = _content([_part(part, quirks) for part in result.parts], "tool", quirks)
    name = {} if result.name is None else {"name": tool_name(result.name)}
    return {
        "role": "tool",
        "content": content or "",
        "tool_call_id": _call_id(result.call_id, quirks),
        **name,
    }


def _call_id(call_id: str, quirks: Quirks) -> str:
    """The id of a call; where it is too long, or only those of nine letters and digits are taken, another,
    always the same for it.
    """
    if quirks.longest_call_id is not None and len(call_id) > quirks.longest_call_id:
        return asked.short_id("call", call_id)
    if not quirks.short_call_ids or re.fullmatch(r"[0-9A-Za-z]{9}", call_id):
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode(errors="replace")).digest())
    return "".join(_DIGITS[number // 62**place % 62] for place in range(9))


def _call(call: asked.ToolCall, quirks: Quirks) -> dict[str, Any]:
    function = {"name": tool_name(call.name), "arguments": call.arguments}
    sent: dict[str, Any] = {
        "id": _call_id(call.call_id, quirks),
        "type": "function",
        "function": function,
    }
    if quirks.extra_content and call.extra_content is not None:
        sent["extra_content"] = call.extra_content
    return sent


def _tools(prompt: Prompt, quirks: Quirks) -> dict[str, Any]:
    """The tools, and how they are to be used, which is refused without any."""
    sent: dict[str, Any] = {"tools": [_tool(tool, quirks) for tool in prompt.tools]}
    if isinstance(prompt.tool_choice, asked.NamedTool):
        named = {"name": tool_name(prompt.tool_choice.name)}
        sent["tool_choice"] = {"type": "function", "function": named}
    elif prompt.tool_choice is not None:
        sent["tool_choice"] = prompt.tool_choice
    if prompt.parallel_tool_calls is not None:
        sent["parallel_tool_calls"] = prompt.parallel_tool_calls
    return sent


def tool_name(name: str) -> str:
    """The name of a tool; in place of one that is too long another, always the same for it."""
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - len(digest) - 1]}_{digest}"


def _tool(tool: asked.Tool, quirks: Quirks) -> dict[str, Any]:
    given = {"description": tool.description, "parameters": tool.parameters, "strict": tool.strict}
    function = {
        "name": tool_name(tool.name),
        **{name: value for name, value in given.items() if value is not None},
    }
    return {"type": "function", "function": function, **_extra(tool.extra, quirks)}


def _output(output: asked.OutputFormat) -> dict[str, Any]:
    if output.schema is None:
        return {"type": "json_object"}
    given = {"description": output.description, "schema": output.schema, "strict": output.strict}
    shown = {"name": output.name, **{name: value for name, value in given.items() if value is not None}}
    return {"type": "json_schema", "json_schema": shown}
