"""Bodies: refused at a bounded cost to the event loop, whatever they are, and read as pydantic reads them."""

import gc
import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from asgi import post
from millstream.bodies import MAX_VALUES, BodyValidator, validate
from millstream.errors import InvalidRequest, MalformedBody, Overloaded, TooLarge
from millstream.messages import ChatRequest

MIB = 1 << 20
LOOP_SECONDS = 0.005

GOOD: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hello"}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "u"}}],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "a", "content": "1"},
        ],
        "model": "m",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 1,
        "stop": ["a", "b"],
        "seed": -1,
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"type": "object", "x": [1, None, {"y": 2}]}},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": {"type": "object"}},
        },
        "reasoning_effort": "low",
        "user": "u",
        "metadata": {"a": "b"},
        "on_disconnect": {"grace_seconds": 3},
    },
    {
        "messages": [{"role": "user", "content": "x"}],
        "stop": "a",
        "tool_choice": "auto",
        "on_disconnect": "continue",
    },
    {
        "messages": [
            {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "audio": None,
                "function_call": None,
                "annotations": [{"a": 1}],
                "id": "m",
                "reasoning_content": "x",
                "reasoning_details": [{"a": None}],
                "extra_content": {"google": {"thought_signature": "x"}},
                "tool_calls": [
                    {
                        "id": "a",
                        "type": None,
                        "index": 0,
                        "function": {"name": "f", "arguments": "{}", "parsed_arguments": {"x": [1]}},
                        "extra_content": {"google": {"thought_signature": "x"}},
                    }
                ],
            },
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}], "parsed": 1},
        ],
    },
]


def repeated(start: bytes, item: bytes, end: bytes, size: int) -> bytes:
    return start + item * ((size - len(start) - len(end)) // len(item)) + item.rstrip(b",") + end


def hostile(size: int) -> Iterator[tuple[str, bytes]]:
    """Bodies of about ``size`` bytes that are refused."""
    user = b'{"messages":[{"role":"user","content":"x"}],'
    yield "numbers for parts", repeated(b'{"messages":[{"role":"user","content":[', b"1,", b"]}]}", size)
    yield "objects for parts", repeated(b'{"messages":[{"role":"user","content":[', b"{},", b"]}]}", size)
    yield "messages without content", repeated(b'{"messages":[', b'{"role":"user"},', b"]}", size)
    yield "messages of no role", repeated(b'{"messages":[', b'{"role":"x","content":"y"},', b"]}", size)
    yield "unknown fields", repeated(b"{", b'"a":1,', b"}", size)
    yield "a long field", b'{"' + b"a" * size + b'":1}'
    yield "metadata", repeated(user + b'"metadata":{', b'"a":1,', b"}}", size)
    yield "other metadata", repeated(user + b'"metadata":{', b'"abcdefghij":"klm",', b'},"bad":1}', size)
    yield "stop words", repeated(user + b'"stop":[', b'"a",', b'],"bad":1}', size)
    yield "numbers for stop words", repeated(user + b'"stop":[', b"1,", b"]}", size)
    yield "tools", repeated(user + b'"tools":[', b'{"function":{"name":"f"}},', b'],"bad":1}', size)
    schema = user + b'"tools":[{"function":{"name":"f","parameters":{"a":['
    yield "a schema", repeated(schema, b"1,", b"1e999]}}}]}", size)
    answer = b'{"messages":[{"role":"assistant","content":"x",'
    for field, start, end in [
        (b"annotations", b"[", b"]"),
        (b"reasoning_details", b"[", b"]"),
        (b"extra_content", b'{"a":[', b"]}"),
    ]:
        begin = answer + b'"%b":' % field + start
        yield f"{field.decode()} that are not finite", repeated(begin, b"1,", b"1e999" + end + b"}]}", size)
    yield (
        "signatures",
        repeated(
            answer + b'"tool_calls":[',
            b'{"id":"a","function":{"name":"f","arguments":""},"extra_content":{"a":{"b":"c"}}},',
            b"1]}]}",
            size,
        ),
    )
    yield (
        "refusals",
        repeated(
            b'{"messages":[{"role":"assistant","content":[',
            b'{"type":"refusal","refusal":"x"},',
            b"1]}]}",
            size,
        ),
    )
    yield "nested annotations", answer + b'"annotations":' + b"[" * size
    yield "a nested schema", schema + b"[" * size
    yield "nested lists", b'{"messages":' + b"[" * size
    yield "nested objects", b'{"a":' * (size // 5)
    yield "text and a fault", b'{"messages":[{"role":"user","content":"' + b"x" * size + b'"}],"bad":1}'
    yield (
        "escapes and a fault",
        b'{"messages":[{"role":"user","content":"' + b"\\u00e9" * (size // 6) + b'"}],"bad":1}',
    )
    yield (
        "code and a fault",
        b'{"messages":[{"role":"user","content":"' + b"{[,]}" * (size // 5) + b'"}],"bad":1}',
    )
    yield "an open text", b'{"messages":[{"role":"user","content":"' + b"x" * size
    yield "no JSON", b"x" * size
    yield "no UTF-8", b'{"messages":[{"role":"user","content":"' + b"\xff" * size + b'"}]}'
    yield "a number", b"1" * size
    yield "white space", b" " * size


@pytest.mark.cost
@pytest.mark.parametrize("size", [2000, 15_000, 60_000, 4 * MIB - 200], ids=["2kB", "15kB", "60kB", "4MiB"])
async def test_refusing_a_body_costs_the_loop_a_few_milliseconds_at_the_most(run: Any, size: int) -> None:
    async with run() as app:
        for name, body in hostile(size):
            spent = []
            gc.disable()
            for _ in range(3):
                before = time.thread_time()
                async with post(app.app, "/v1/chat/stream", body, app.key) as call:
                    await call.finished()
                spent.append(time.thread_time() - before)
                assert call.status in (400, 413, 422), (name, call.status)
                assert len(call.received) < 2000, name
            gc.enable()
            assert min(spent) < LOOP_SECONDS, (name, spent)
            gc.collect()


@settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.data())
def test_a_body_is_read_as_pydantic_reads_it(data: st.DataObject) -> None:
    body = json.loads(json.dumps(data.draw(st.sampled_from(GOOD))))
    for _ in range(data.draw(st.integers(0, 3))):
        _mutate(body, data)
    text = json.dumps(body, ensure_ascii=data.draw(st.booleans())).encode("utf-8", "surrogatepass")
    large = text + b" " * data.draw(st.sampled_from([0, 5000, 70_000]))
    try:
        expected: ChatRequest | None = ChatRequest.model_validate_json(text)
    except ValidationError:
        expected = None
    try:
        found: ChatRequest | None = validate(ChatRequest, large)
    except InvalidRequest:
        found = None
    assert found == expected


def _mutate(value: Any, data: st.DataObject) -> None:
    """Puts something else at a random place of ``value``."""
    things = st.sampled_from(
        [None, 1, -1, 2.5, True, "", "text", "user", [], [1], {}, {"type": "text"}, {"a": {"b": [1]}}]
    )
    while True:
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        if isinstance(value, dict) and (not places or data.draw(st.integers(0, 5)) == 0):
            value[data.draw(st.sampled_from(["model", "type", "name", "id", "other"]))] = data.draw(things)
            return
        if not places:
            value.append(data.draw(things))
            return
        place = data.draw(st.sampled_from(places))
        if isinstance(value[place], dict | list) and data.draw(st.booleans()):
            value = value[place]
            continue
        value[place] = data.draw(things)
        return


@pytest.mark.parametrize("body", GOOD)
@pytest.mark.parametrize("size", [0, 5000, 100_000])
def test_what_is_right_is_taken_at_every_size(body: dict[str, Any], size: int) -> None:
    text = json.dumps(body).encode()
    assert validate(ChatRequest, text + b" " * size) == ChatRequest.model_validate_json(text)


def test_braces_in_a_text_are_not_values() -> None:
    body = {"messages": [{"role": "user", "content": '{"a": [1, 2]}\\"' * MAX_VALUES}]}
    assert validate(ChatRequest, json.dumps(body).encode()).messages[0].text == body["messages"][0]["content"]


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        (b'{"messages":[{"role":"user","content":[1]}]}', InvalidRequest, "messages.0.content.0: "),
        (b'{"messages":[],"max_token":1}', InvalidRequest, "unknown field"),
        (b'{"messages":[{"role":"user"', MalformedBody, "not JSON"),
        (b'{"messages":[' + b"{}," * 200_000 + b"{}]}", TooLarge, "over 100000 values"),
    ],
)
def test_a_refusal_says_what_is_wrong(body: bytes, error: type[InvalidRequest], said: str) -> None:
    with pytest.raises(error, match=said):
        validate(ChatRequest, body + b" " * 5000)


async def test_large_bodies_that_wait_are_bounded() -> None:
    validator = BodyValidator(waiting_bytes=100_000)
    with pytest.raises(Overloaded):
        await validator.read(partial(validate, ChatRequest), [b" " * 100_001])
    validator.close()
