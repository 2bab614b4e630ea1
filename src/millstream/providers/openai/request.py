"""Requests: a prompt -> the body that a server of OpenAI's Chat Completions is sent."""

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from millstream import prompt as asked
from millstream.prompt import Message, Prompt
from millstream.providers.known import Quirks

API = "openai"

# Fields of a prompt that have the same name and meaning here.
_SAME = (
    "max_tokens",
    "temperature",
    "top_p",
    "seed",
    "reasoning_effort",
    "parallel_tool_calls",
    "user",
    "metadata",
)


def body(prompt: Prompt, quirks: Quirks) -> dict[str, Any]:
    """Without the model, and without what says that a stream is wanted."""
    messages = [one for message in prompt.messages for one in _messages(message, quirks)]
    sent: dict[str, Any] = {
        "messages": messages if quirks.developer_role else _one_system(messages),
        **{name: value for name in _SAME if (value := getattr(prompt, name)) is not None},
        **prompt.extra_of(API),
    }
    if prompt.stop:
        sent["stop"] = list(prompt.stop)
    if prompt.tools:
        sent["tools"] = list(map(_tool, prompt.tools))
    if isinstance(prompt.tool_choice, asked.NamedTool):
        sent["tool_choice"] = {"type": "function", "function": {"name": prompt.tool_choice.name}}
    elif prompt.tool_choice is not None:
        sent["tool_choice"] = prompt.tool_choice
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


def _one_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With one system message in place of those at the beginning: templates of models take one only."""
    leading = list(takewhile(lambda message: message["role"] == "system", messages))
    if len(leading) < 2:
        return messages
    contents = [message["content"] for message in leading if message["content"]]
    if all(isinstance(content, str) for content in contents):
        content: Any = "\n\n".join(contents)
    else:
        content = [part for content in contents for part in _parts(content)]
    return [{**leading[0], "content": content}, *messages[len(leading) :]]


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _messages(message: Message, quirks: Quirks) -> Iterator[dict[str, Any]]:
    """A message as it is sent; one of tool results is one for each of them."""
    if message.role == "tool":
        for part in message.parts:
            if isinstance(part, asked.ToolResult):
                yield _result(part)
        return
    content = [_part(part) for part in message.parts if isinstance(part, _CONTENT)]
    texts = [part["text"] for part in content if part.keys() == {"type", "text"}]
    role = "system" if message.role == "developer" and not quirks.developer_role else message.role
    sent: dict[str, Any] = {"role": role, "content": content or None}
    if len(content) == len(texts) == 1:
        sent["content"] = texts[0]
    if message.name is not None:
        sent["name"] = message.name
    if message.role == "assistant":
        calls = message.tool_calls
        if calls:  # some refuse an empty list
            sent["tool_calls"] = [_call(call, quirks.extra_content) for call in calls]
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
                sent[quirks.reasoning_field] = "".join(thought)
        sent |= extra
    yield sent


_CONTENT = (asked.Text, asked.Image, asked.File, asked.Refusal)


def _part(part: object) -> dict[str, Any]:
    match part:
        case asked.Text():
            return {"type": "text", "text": part.text, **part.extra.get(API, {})}
        case asked.Refusal():  # of which only OpenAI knows
            return {"type": "text", "text": part.text}
        case asked.Image():
            detail = {} if part.detail is None else {"detail": part.detail}
            return {"type": "image_url", "image_url": {"url": part.url, **detail}}
        case asked.File() if part.media_type.startswith("audio/"):
            data = {"data": part.url.partition(",")[2], "format": part.media_type.partition("/")[2]}
            return {"type": "input_audio", "input_audio": data}
        case asked.File():
            name = {} if part.name is None else {"filename": part.name}
            return {"type": "file", "file": {"file_data": part.url, **name, **part.extra.get(API, {})}}
        case _:
            raise TypeError(part)


def _result(result: asked.ToolResult) -> dict[str, Any]:
    content: Any = [_part(part) for part in result.parts]
    if len(content) == 1 and content[0].keys() == {"type", "text"}:
        content = content[0]["text"]
    name = {} if result.name is None else {"name": result.name}
    return {"role": "tool", "content": content or "", "tool_call_id": result.call_id, **name}


def _call(call: asked.ToolCall, extra_content: bool) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    sent: dict[str, Any] = {"id": call.call_id, "type": "function", "function": function}
    if extra_content and call.extra_content is not None:
        sent["extra_content"] = call.extra_content
    return sent


def _tool(tool: asked.Tool) -> dict[str, Any]:
    given = {"description": tool.description, "parameters": tool.parameters, "strict": tool.strict}
    function = {"name": tool.name, **{name: value for name, value in given.items() if value is not None}}
    return {"type": "function", "function": function}


def _output(output: asked.OutputFormat) -> dict[str, Any]:
    if output.schema is None:
        return {"type": "json_object"}
    given = {"description": output.description, "schema": output.schema, "strict": output.strict}
    shown = {"name": output.name, **{name: value for name, value in given.items() if value is not None}}
    return {"type": "json_schema", "json_schema": shown}
