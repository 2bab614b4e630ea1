"""Client libraries of many providers, measured against what a provider of Millstream has to do.

    python benchmarks/longtail.py millstream | liter-llm | any-llm

runs one of them in this environment, which has to have it, against a fake upstream in a process of its own,
and prints what came through as JSON: docs/decisions has the figures of one day. The upstream speaks OpenAI's
protocol at /v1/chat/completions and Anthropic's at /v1/messages; what it says, the model's name says.
"""

import asyncio
import importlib
import json
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any, Protocol, TypeAlias

EVENTS = 10_000
CANCELS = 20

# -- the upstream ----------------------------------------------------------------------------------

# An event, a break of the connection, or silence.
Step: TypeAlias = dict[str, Any] | str
SILENCE, CUT, DONE = "silence", "cut", "done"


def _say(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": more.pop("index", 0), "delta": delta, "finish_reason": finish}
    return {
        "id": "c-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [choice],
        **more,
    }


def _call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
    name = {"name": more.pop("name")} if "name" in more else {}
    return {"index": index, "function": {"arguments": arguments, **name}, **more}


USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
A, STOP = _say({"content": "a"}), _say({}, "stop")
COUNTED = {
    "id": "c-1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [],
    "usage": USAGE,
}
SIGNATURE = {"google": {"thought_signature": "c2ln"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CITATION = {
    "type": "url_citation",
    "url_citation": {"url": "https://a.example", "title": "A", "start_index": 0, "end_index": 0},
}

OPENAI: dict[str, list[Step]] = {
    "many": [*([A] * EVENTS), STOP, COUNTED, DONE],
    "text": [A, _say({"content": "é😀"}), STOP, COUNTED, DONE],
    "reasoning": [_say({"reasoning_content": "hm"}), _say({"reasoning": "mm"}), A, STOP, DONE],
    "calls": [
        _say({"tool_calls": [_call(0, "", id="c-1", type="function", name="f", extra_content=SIGNATURE)]}),
        _say({"tool_calls": [_call(1, "", id="c-2", type="function", name="g")]}),
        _say({"tool_calls": [_call(0, '{"x":')]}),
        _say({"tool_calls": [_call(1, "{}")]}),
        _say({"tool_calls": [_call(0, "1}")]}),
        _say({}, "tool_calls"), DONE,
    ],
    "refusal": [_say({"refusal": "no"}), STOP, DONE],
    "image": [_say({"images": [IMAGE]}), STOP, DONE],
    "citation": [_say({"content": "a", "annotations": [CITATION]}), STOP, DONE],
    "choices": [A, _say({"content": "b"}, index=1), STOP, _say({}, "stop", index=1), DONE],
    "odd-finish": [A, _say({}, "wound_up"), DONE],
    "error-after-text": [A, {"error": {"message": "m", "type": "server_error", "code": "overloaded"}}],
    "cut": [A, CUT],
    "ends-without-a-finish": [A],
    "hangs": [A, A, A, SILENCE],
    "never": [SILENCE],
}  # fmt: skip


def _block(index: int, *deltas: dict[str, Any], **content: Any) -> list[Step]:
    start: Step = {"type": "content_block_start", "index": index, "content_block": content}
    said: list[Step] = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [start, *said, {"type": "content_block_stop", "index": index}]


MESSAGE: dict[str, Any] = {
    "id": "m-1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {
        "input_tokens": 5,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 2,
        "output_tokens": 1,
    },
}
THOUGHT = {"type": "thinking_delta", "thinking": "hm"}
SIGNED = {"type": "signature_delta", "signature": "c2ln"}
WORDS = {"type": "text_delta", "text": "a"}
ARGUMENTS = {"type": "input_json_delta", "partial_json": '{"x":1}'}
STOPPED = {"stop_reason": "tool_use", "stop_sequence": None}

ANTHROPIC: dict[str, list[Step]] = {
    "text": [
        {"type": "message_start", "message": MESSAGE},
        *_block(0, THOUGHT, SIGNED, type="thinking", thinking="", signature=""),
        *_block(1, WORDS, type="text", text=""),
        *_block(2, ARGUMENTS, type="tool_use", id="c-1", name="f", input={}),
        {"type": "message_delta", "delta": STOPPED, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ],
    "error-after-text": [
        {"type": "message_start", "message": MESSAGE},
        *_block(0, WORDS, type="text", text="")[:2],
        {"type": "error", "error": {"type": "overloaded_error", "message": "m"}},
    ],
}


def _refusal(status: int, kind: str, code: str, *headers: str) -> tuple[int, dict[str, Any], tuple[str, ...]]:
    return status, {"error": {"message": "m", "type": kind, "code": code}}, headers


REFUSALS = {
    "limited": _refusal(429, "requests", "rate_limit_exceeded", "retry-after: 7"),
    "too-long": _refusal(400, "invalid_request_error", "context_length_exceeded"),
    "no-quota": _refusal(429, "insufficient_quota", "insufficient_quota"),
    "filtered": _refusal(400, "invalid_request_error", "content_filter"),
}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def upstream() -> None:
    """Prints its port, then when each connection was closed by its client (monotonic seconds)."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length:")[2].split("\r\n")[0])
                model = json.loads(await reader.readexactly(length))["model"]
                if model in REFUSALS:
                    status, error, headers = REFUSALS[model]
                    body = json.dumps(error)
                    lines = [
                        f"HTTP/1.1 {status} X",
                        "content-type: application/json",
                        f"content-length: {len(body)}",
                        *headers,
                    ]
                    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body.encode())
                    continue
                of_anthropic = "/messages" in head
                writer.write(HEAD)
                for step in (ANTHROPIC if of_anthropic else OPENAI)[model]:
                    if step == CUT:
                        return writer.close()
                    if step == SILENCE:
                        await writer.drain()
                        await reader.read(1)
                        print(time.monotonic(), flush=True)
                        return writer.close()
                    kind = f"event: {step['type']}\n" if of_anthropic and isinstance(step, dict) else ""
                    data = "[DONE]" if step == DONE else json.dumps(step)
                    event = f"{kind}data: {data}\n\n".encode()
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                    await writer.drain()
                writer.write(b"0\r\n\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(
        None, sys.stdin.read
    )  # until whoever started it has gone


# -- the libraries ---------------------------------------------------------------------------------


class Seen:
    """What came through."""

    def __init__(self) -> None:
        self.chunks = 0
        self.text = self.reasoning = self.refusal = self.finish = self.signature = ""
        self.calls: dict[int, list[str]] = {}
        self.images = self.sources = 0
        self.choices: set[int] = set()
        self.usage: Any = None

    def shown(self) -> dict[str, Any]:
        return {
            name: sorted(value) if isinstance(value, set) else value
            for name, value in vars(self).items()
            if value
        }


class Library(Protocol):
    def stream(self, api: str, model: str, seen: Seen) -> AsyncIterator[None]: ...

    def error(self, error: Exception) -> dict[str, Any]: ...

    async def close(self) -> None: ...


def _take(chunk: Any, seen: Seen) -> None:
    """What a chunk in OpenAI's form says, as either library gives it."""
    seen.chunks += 1
    if chunk.usage is not None:
        seen.usage = _plain(chunk.usage)
    for choice in chunk.choices:
        delta = choice.delta
        seen.choices.add(choice.index)
        if choice.index:
            continue
        if choice.finish_reason is not None:
            seen.finish = str(choice.finish_reason)
        if delta is None:
            continue
        seen.text += getattr(delta, "content", None) or ""
        reasoning = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None) or ""
        seen.reasoning += reasoning if isinstance(reasoning, str) else reasoning.content or ""
        seen.signature += "of thoughts" if "signature" in str(reasoning) else ""
        seen.signature += "of thoughts" if "signature" in str(getattr(delta, "extra_content", "")) else ""
        seen.refusal += getattr(delta, "refusal", None) or ""
        seen.images += len(getattr(delta, "images", None) or ())
        seen.sources += len(getattr(delta, "annotations", None) or ())
        for piece in getattr(delta, "tool_calls", None) or ():
            call = seen.calls.setdefault(piece.index, ["", "", ""])
            call[0] += piece.id or ""
            if piece.function is not None:
                call[1] += piece.function.name or ""
                call[2] += piece.function.arguments or ""
            extra = getattr(piece, "extra_content", None)
            if extra:
                seen.signature = str(extra)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_none=True)
    counts = (name for name in dir(value) if "tokens" in name and getattr(value, name) is not None)
    return {
        name: count if isinstance(count := getattr(value, name), int) else _plain(count) for name in counts
    }


class LiterLLM:
    def __init__(self, port: int) -> None:
        self._library: Any = importlib.import_module("liter_llm")
        api: Any = importlib.import_module("liter_llm.api")
        self._request = api._to_rust_chat_completion_request  # noqa: SLF001 - there is no public one
        url = f"http://127.0.0.1:{port}"
        self._clients = {
            name: self._library.create_client(
                "k", base_url=base_url, max_retries=0, timeout_secs=60, model_hint=hint
            )
            for name, base_url, hint in (
                ("openai", f"{url}/v1", "openai/m"),
                ("anthropic", f"{url}/v1", "anthropic/m"),
            )
        }

    async def stream(self, api: str, model: str, seen: Seen) -> AsyncIterator[None]:
        asked = {
            "model": f"{api}/{model}",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async for chunk in self._clients[api].chat_stream(self._request(asked)):
            _take(chunk, seen)
            yield

    async def close(self) -> None:
        pass

    def error(self, error: Exception) -> dict[str, Any]:
        info = self._library.liter_llm_error_info(error)
        names = ("code", "status_code", "is_transient", "error_type", "retry_after")
        return {"class": type(error).__name__, **{name: getattr(info, name, None) for name in names}}


class AnyLLM:
    def __init__(self, port: int) -> None:
        library: Any = importlib.import_module("any_llm")
        url = f"http://127.0.0.1:{port}"
        more = {"max_retries": 0, "unified_exceptions": True}
        self._clients = {
            "openai": library.AnyLLM.create("openai", api_key="k", api_base=f"{url}/v1", **more),
            "anthropic": library.AnyLLM.create("anthropic", api_key="k", api_base=url, **more),
        }

    async def stream(self, api: str, model: str, seen: Seen) -> AsyncIterator[None]:
        more: dict[str, Any] = (
            {"stream_options": {"include_usage": True}} if api == "openai" else {"max_tokens": 99}
        )
        messages = [{"role": "user", "content": "Hi"}]
        chunks = await self._clients[api].acompletion(model, messages, stream=True, **more)
        try:
            async for chunk in chunks:
                _take(chunk, seen)
                yield
        finally:
            await chunks.aclose()

    async def close(self) -> None:
        pass

    def error(self, error: Exception) -> dict[str, Any]:
        names = ("status_code", "code", "error_type", "retry_after")
        return {"class": type(error).__name__, **{name: getattr(error, name, None) for name in names}}


class OurOwn:
    def __init__(self, port: int) -> None:
        prompt: Any = importlib.import_module("millstream.prompt")
        openai: Any = importlib.import_module("millstream.providers.openai")
        upstream: Any = importlib.import_module("millstream.providers.upstream")
        self._prompt = prompt.Prompt((prompt.Message("user", (prompt.Text("Hi"),)),))
        self._provider = openai.OpenAIProvider("p", f"http://127.0.0.1:{port}/v1", upstream.Upstream("p", {}))

    async def stream(self, api: str, model: str, seen: Seen) -> AsyncIterator[None]:
        async with aclosing(self._provider.stream(self._prompt, model)) as batches:
            async for batch in batches:
                for item in batch:
                    self._take(item, seen)
                yield

    def _take(self, item: Any, seen: Seen) -> None:
        match type(item).__name__:
            case "TextDelta":
                seen.chunks += 1
                seen.text += item.text
            case "ReasoningDelta":
                seen.reasoning += item.text
            case "RefusalDelta":
                seen.refusal += item.text
            case "ToolCallPiece":
                call = seen.calls.setdefault(item.index, ["", "", ""])
                call[:] = [call[0] + item.call_id, call[1] + item.name, call[2] + item.arguments]
                seen.signature = str(item.extra_content or seen.signature)
            case "File":
                seen.images += 1
            case "Source":
                seen.sources += 1
            case "InChoice":
                seen.choices.add(item.choice)
            case "Finish":
                seen.finish = f"{item.reason} ({item.word})"
                seen.usage = str(item.usage)

    async def close(self) -> None:
        await self._provider.close()

    def error(self, error: Exception) -> dict[str, Any]:
        names = ("code", "status", "retryable", "retry_after_seconds")
        return {"said": str(error), **{name: getattr(error, name, None) for name in names}}


LIBRARIES: dict[str, Callable[[int], Library]] = {
    "millstream": OurOwn,
    "liter-llm": LiterLLM,
    "any-llm": AnyLLM,
}

# -- the measuring ---------------------------------------------------------------------------------


async def answered(library: Library, api: str, model: str) -> dict[str, Any]:
    seen = Seen()
    try:
        async with asyncio.timeout(60), aclosing(library.stream(api, model, seen)) as chunks:  # type: ignore[type-var]
            async for _ in chunks:
                pass
    except Exception as error:
        return {**seen.shown(), "error": library.error(error)}
    return seen.shown()


async def cancelled(library: Library, model: str, closings: asyncio.StreamReader) -> dict[str, Any]:
    """Milliseconds from cancelling the task that reads to the end of its connection, at the upstream."""
    took: list[float] = []
    lost = 0
    for _ in range(CANCELS):
        begun = asyncio.Event()

        async def read(begun: asyncio.Event = begun) -> None:
            seen = Seen()
            async with aclosing(library.stream("openai", model, seen)) as chunks:  # type: ignore[type-var]
                async for _ in chunks:
                    if seen.text == "aaa":
                        begun.set()

        task = asyncio.create_task(read())
        if model == "hangs":
            await begun.wait()
        await asyncio.sleep(0.05)  # the request is on its way
        at = time.monotonic()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            async with asyncio.timeout(2):
                took.append((float(await closings.readline()) - at) * 1000)
        except TimeoutError:
            lost += 1
            if lost == 3:
                break
    if not took:
        return {"never closed": lost}
    return {"median": round(statistics.median(took), 1), "most": round(max(took), 1), "never closed": lost}


async def cost(library: Library) -> dict[str, float]:
    """Microseconds of CPU time of this process for an event of one word, the best of three runs."""
    best, first = float("inf"), 0.0
    for _ in range(3):
        before, began = time.process_time(), time.monotonic()
        result = await answered(library, "openai", "many")
        assert len(result["text"]) == EVENTS
        best = min(best, (time.process_time() - before) / EVENTS * 1e6)
        first = (time.monotonic() - began) / EVENTS * 1e6
    return {"cpu": round(best, 1), "wall of the last": round(first, 1)}


async def measure(name: str) -> None:
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "upstream"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    began = time.process_time()
    library = LIBRARIES[name](int(await server.stdout.readline()))
    found: dict[str, Any] = {"import, s of CPU": round(time.process_time() - began, 2)}
    for model in [*OPENAI, *REFUSALS]:
        if model not in ("many", "hangs", "never"):
            found[f"openai {model}"] = await answered(library, "openai", model)
    if name != "millstream":
        for model in ANTHROPIC:
            found[f"anthropic {model}"] = await answered(library, "anthropic", model)
    found["cancel between words, ms"] = await cancelled(library, "hangs", server.stdout)
    found["cancel before a word, ms"] = await cancelled(library, "never", server.stdout)
    found["an event, µs"] = await cost(library)
    found["memory, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps(found, indent=1, ensure_ascii=False))
    await library.close()
    server.terminate()
    await server.wait()


if __name__ == "__main__":
    asyncio.run(upstream() if sys.argv[1] == "upstream" else measure(sys.argv[1]))
