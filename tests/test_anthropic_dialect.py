"""What the ``anthropic`` dialect understands of a body."""

import json
from typing import Any

import pytest

from application import Run
from asgi import post
from millstream.dialects.anthropic import ANTHROPIC
from millstream.errors import InvalidRequest, MillstreamError
from millstream.prompt import (
    File,
    Image,
    Message,
    NamedTool,
    OutputFormat,
    Prompt,
    Reasoning,
    Text,
    Tool,
    ToolCall,
    ToolResult,
)
from millstream.providers import Finish
from millstream.providers.anthropic import request as anthropic
from millstream.providers.anthropic.models import of_name
from millstream.providers.known import Quirks
from millstream.providers.openai import request
from millstream.providers.scripted import ScriptedProvider
from millstream.settings import Settings

HELLO: Any = {"max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
MARK = {"type": "ephemeral"}


def parsed(**more: Any) -> Prompt:
    return ANTHROPIC.parse(json.dumps(HELLO | more).encode()).prompt


def refused(**more: Any) -> MillstreamError:
    with pytest.raises(InvalidRequest) as error:
        parsed(**more)
    return error.value


def user(*blocks: Any) -> Any:
    return [{"role": "user", "content": list(blocks)}]


def test_a_user_who_gives_results_and_speaks_is_a_tool_and_a_user() -> None:
    prompt = parsed(
        messages=user(
            {"type": "tool_result", "tool_use_id": "a", "content": "A"},
            {"type": "tool_result", "tool_use_id": "b", "is_error": True, "cache_control": MARK},
            {"type": "text", "text": "And?"},
        )
    )
    assert prompt.messages == (
        Message(
            "tool",
            (
                ToolResult("a", (Text("A"),)),
                ToolResult("b", (), is_error=True, extra={"anthropic": {"cache_control": MARK}}),
            ),
        ),
        Message("user", (Text("And?"),)),
    )


def test_every_block_has_its_part() -> None:
    prompt = parsed(
        system=[{"type": "text", "text": "S", "cache_control": MARK}],
        messages=[
            *user(
                {"type": "image", "source": {"type": "url", "url": "https://a.example/i"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
                {"type": "document", "title": "t", "source": {"type": "url", "url": "https://a.example/d"}},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Hi"}},
            ),
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "r"},
                    {"type": "text", "text": "So", "citations": None},
                    {"type": "tool_use", "id": "c", "name": "look", "input": {"b": 1, "a": [1.0]}},
                ],
            },
        ],
    )
    assert prompt.messages == (
        Message("system", (Text("S", {"anthropic": {"cache_control": MARK}}),)),
        Message(
            "user",
            (
                Image("https://a.example/i"),
                Image("data:image/png;base64,AA=="),
                File("application/pdf", "https://a.example/d", "t"),
                File("text/plain", "data:text/plain;base64,SGk="),
            ),
        ),
        Message(
            "assistant",
            (
                Reasoning("hm", "s"),
                Reasoning(redacted="r"),
                Text("So"),
                ToolCall("c", "look", '{"b":1,"a":[1.0]}'),
            ),
        ),
    )


def test_a_summary_of_what_was_said_is_text_to_other_providers() -> None:
    block = {"type": "compaction", "content": "All of it.", "encrypted_content": "RW5j"}
    prompt = parsed(messages=[{"role": "assistant", "content": [block]}, *HELLO["messages"]])
    assert prompt.messages[0] == Message("assistant", (Text("All of it.", {"anthropic": block}),))
    empty = {"type": "compaction", "content": None}
    prompt = parsed(messages=[{"role": "assistant", "content": [empty]}, *HELLO["messages"]])
    assert prompt.messages[0] == Message("assistant", (Text("", {"anthropic": empty}),))


def test_pictures_in_a_document_are_beside_it_for_other_providers() -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    words = {"type": "text", "text": "Hi"}
    documents = [
        {"type": "document", "source": {"type": "content", "content": content}}
        for content in ([words, picture], [picture])
    ]
    prompt = parsed(messages=user(*documents))
    seen = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    (there,) = request.body(prompt, Quirks())["messages"]
    assert there["content"] == [words, seen, {"type": "text", "text": "See the pictures below."}, seen]
    (same,) = anthropic.body("p", prompt, of_name("claude-sonnet-5"))["messages"]
    assert same["content"] == documents


def test_every_knob_has_its_place() -> None:
    prompt = parsed(
        model="m",
        max_tokens=0,
        temperature=1,
        top_p=0.5,
        top_k=3,
        stop_sequences=["END"],
        tools=[{"name": "look", "input_schema": {"type": "object"}, "strict": True, "defer_loading": True}],
        tool_choice={"type": "tool", "name": "look", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 2000},
        output_config={"effort": "max", "format": {"type": "json_schema", "schema": {"a": 1}}},
        metadata={"user_id": "u"},
        speed="standard",
    )
    assert (prompt.max_tokens, prompt.temperature, prompt.top_p, prompt.top_k) == (0, 1, 0.5, 3)
    assert prompt.stop == ("END",)
    assert prompt.tools == (
        Tool("look", None, {"type": "object"}, True, {"anthropic": {"defer_loading": True}}),
    )
    assert (prompt.tool_choice, prompt.parallel_tool_calls) == (NamedTool("look"), False)
    assert (prompt.reasoning_tokens, prompt.reasoning_effort, prompt.user) == (2000, "max", "u")
    assert prompt.output == OutputFormat({"a": 1})
    assert set(prompt.extra_of("anthropic")) == {"thinking", "output_config", "speed"}
    assert parsed(tool_choice={"type": "any"}).tool_choice == "required"
    assert parsed(tool_choice={"type": "none"}).tool_choice == "none"
    assert parsed(output_format={"type": "json_schema", "schema": {}}).output == OutputFormat({})


def test_what_is_wrong_is_named() -> None:
    assert "max_tokens" in refused(max_tokens=None).message
    assert "messages" in refused(messages=[]).message
    assert "messages.0.content" in refused(messages=[{"role": "user"}]).message
    assert "messages.0.role" in refused(messages=[{"role": "tool", "content": ""}]).message
    assert "tools.0.input_schema" in refused(tools=[{"name": "look"}]).message
    assert "tool_choice.type" in refused(tool_choice={}).message
    assert "source" in refused(messages=user({"type": "image"})).message


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, "custom"),
        ({"tools": [{"type": "code_execution_20260521", "name": "code_execution"}]}, "custom"),
        ({"tools": [{"type": "computer_toolset_20260801", "name": "computer"}]}, "custom"),
        ({"mcp_servers": [{"type": "url", "url": "https://a.example", "name": "a"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"fallbacks": [{"model": "x"}]}, "fallbacks"),
        ({"workspace_id": "w"}, "workspace_id"),
        ({"messages": user({"type": "image", "source": {"type": "file", "file_id": "f"}})}, "base64"),
        (
            {"messages": user({"type": "web_search_tool_result", "tool_use_id": "x", "content": []})},
            "provider",
        ),
        ({"messages": user({"type": "container_upload", "file_id": "f"})}, "none of"),
        ({"messages": user({"type": "thinking", "thinking": "x"})}, "none of"),
    ],
)
def test_what_would_run_something_elsewhere_is_refused_with_words(body: Any, word: str) -> None:
    assert word in refused(**body).message


def test_threads_are_refused_as_the_runners_of_the_sdks_know_it() -> None:
    status, body = ANTHROPIC.error(refused(thread={"type": "create"}), "req_1")
    assert status == 400
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert parsed(thread=None).messages


def test_a_body_of_either_version_and_its_tokens() -> None:
    body = json.dumps({"messages": HELLO["messages"], "model": "m"}).encode()
    assert ANTHROPIC.parse_prompt(body).messages == (Message("user", (Text("Hello"),)),)


def test_the_usual_variables_make_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    provider = Settings.load().providers["anthropic"]
    assert (provider.type, provider.base_url) == ("anthropic", "https://api.anthropic.com/v1")
    assert provider.price_id == "anthropic"
    assert provider.preferred
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    provider = Settings.load().providers["anthropic"]
    assert (provider.base_url, provider.price_id) == ("http://127.0.0.1:9", None)


@pytest.mark.parametrize("thinking", [{}, {"budget_tokens": 2000}, {"type": "sometimes"}])
def test_thinking_says_of_what_type_it_is(thinking: dict[str, Any]) -> None:
    body = {"max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}], "thinking": thinking}
    with pytest.raises(InvalidRequest, match=r"thinking\.type"):
        ANTHROPIC.parse(json.dumps(body).encode())


def test_a_conversation_with_tools_reaches_a_model_of_openai() -> None:
    schema = {"type": "object", "properties": {"at": {"type": "string"}}}
    look = {"type": "tool_use", "id": "call_look", "name": "look", "input": {"at": "sky"}}
    result = {"type": "tool_result", "tool_use_id": "call_look", "content": "blue"}
    prompt = parsed(
        system="Be brief.",
        messages=[
            *user({"type": "text", "text": "Hello"}),
            {"role": "assistant", "content": [look]},
            *user(result, {"type": "text", "text": "And now?"}),
        ],
        tools=[{"name": "look", "input_schema": schema, "cache_control": MARK}],
        tool_choice={"type": "any"},
    )
    asked = request.body(prompt, Quirks())
    function = {"name": "look", "arguments": '{"at":"sky"}'}
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_look", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "blue", "tool_call_id": "call_look"},
        {"role": "user", "content": "And now?"},
    ]
    assert asked["tools"] == [{"type": "function", "function": {"name": "look", "parameters": schema}}]
    assert asked["tool_choice"] == "required"


async def test_what_nobody_knows_is_named_and_what_is_to_be_tried_is_a_list_of_names(run: Run) -> None:
    body = HELLO | {"model": "m", "some_knob": 1}
    async with run({"p": ScriptedProvider({"m": [Finish("stop", None)]})}) as running:
        for betas, status, ignored in (
            ("a-1,b_2, c.3", 200, "some_knob"),
            ("", 200, "some_knob"),
            ("a\xe9", 400, None),
            ("a" * 2001, 400, None),
        ):
            async with post(running.app, "/v1/messages", body, running.key, anthropic_beta=betas) as exchange:
                await exchange.finished()
            assert (exchange.status, exchange.response_headers.get("millstream-ignored")) == (status, ignored)
