"""A model whose name says what it does: the provider behind every conformance test."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TypeAlias, TypeVar

from matrix import wires
from oracle import Oracle, Request, oracle

Found = TypeVar("Found")
Behaviour: TypeAlias = Callable[[Request], Coroutine[Any, Any, None]]

USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
KEPT = {"google": {"thought_signature": "c2lnbmVk"}}
SILENCE_SECONDS = 1.0
WORDS = 50
FIRST_WORDS = 20


async def _text(request: Request) -> None:
    await request.head()
    for piece in ("Hel", "lo", " there"):
        await request.say(piece)
    await request.finish(usage=USAGE)


async def _picture(request: Request) -> None:
    """It sees the picture if there is one."""
    await request.head()
    content = request.json["messages"][-1]["content"]
    pictures = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    await request.say(f"I see {len(pictures)}.")
    await request.finish(usage=USAGE)


async def _thought(request: Request) -> None:
    await request.head()
    await _delta(request, reasoning_content="hm")
    await request.say("Yes.")
    await request.finish(usage=USAGE)


async def _call(request: Request) -> None:
    await request.head()
    await _piece(request, 0, '{"q"', "call_1", "look")
    await _piece(request, 0, ": 1}")
    await request.finish("tool_calls", USAGE)


async def _calls(request: Request) -> None:
    """Two calls whose pieces are mingled."""
    await request.head()
    await request.say("I look.")
    await _piece(request, 0, "", "call_1", "look")
    await _piece(request, 1, '{"q":', "call_2", "look")
    await _piece(request, 0, '{"q":')
    await _piece(request, 1, " 2}")
    await _piece(request, 0, " 1}")
    await request.finish("tool_calls", USAGE)


async def _behind(request: Request) -> None:
    """Text, a call, and more text."""
    await request.head()
    await request.say("I look. ")
    await _piece(request, 0, '{"q": 1}', "call_1", "look")
    await request.say("I wait.")
    await request.finish("tool_calls", USAGE)


async def _turns(request: Request) -> None:
    """A call with something that the provider wants back, and an answer to its result."""
    last = request.json["messages"][-1]
    if last["role"] != "tool":
        await request.head()
        await _piece(request, 0, '{"q": 1}', "call_1", "look", extra_content=KEPT)
        await request.finish("tool_calls", USAGE)
        return
    await request.head()
    content = last["content"]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    await request.say(f"It is {text}.")
    await request.finish(usage=USAGE)


async def _guide(request: Request) -> None:
    """What the guides ask: it calls the tools that it is given."""
    await (_turns if request.json.get("tools") else _text)(request)


async def _endless(request: Request) -> None:
    await request.head()
    while True:
        await request.say("word ")
        await asyncio.sleep(0.02)


async def _silent(request: Request) -> None:
    await request.head()
    await request.say("One ")
    await asyncio.sleep(SILENCE_SECONDS)
    await request.say("two.")
    await request.finish(usage=USAGE)


async def _broken(request: Request) -> None:
    await request.head()
    await request.say("Hel")
    await request.event({"error": {"message": "the provider's own words"}})
    await request.end()


async def _cut(request: Request) -> None:
    await request.head()
    await request.say("Hel")
    request.cut(reset=True)


async def _busy(request: Request) -> None:
    await request.answer(429, {"error": {"message": "the provider's own words"}})


async def _refused(request: Request) -> None:
    """As if the provider's key were wrong, which is nothing that the caller can mend."""
    await request.answer(401, {"error": {"message": "the provider's own words"}})


async def _unknown(request: Request) -> None:
    error = {
        "message": "the provider's own words",
        "type": "invalid_request_error",
        "code": "model_not_found",
    }
    await request.answer(404, {"error": error})


BEHAVIOURS: dict[str, Behaviour] = {
    "text": _text,
    "picture": _picture,
    "thought": _thought,
    "call": _call,
    "calls": _calls,
    "behind": _behind,
    "turns": _turns,
    "gpt-4o": _guide,
    "endless": _endless,
    "silent": _silent,
    "broken": _broken,
    "cut": _cut,
    "busy": _busy,
    "refused": _refused,
}


class _Model:
    """``held`` says its first words, and the others when the test lets it. Asked in another format, it says the
    scenarios of ``matrix``.
    """

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, request: Request) -> None:
        path = request.path.partition("?")[0]
        if path.endswith("/v1beta/models") or ("x-api-key" in request.headers and path.endswith("/models")):
            await request.answer(200, {"models": [], "data": []})
        elif path.endswith("/models"):
            await request.answer(200, {"data": [{"id": name} for name in (*BEHAVIOURS, "held")]})
        elif not path.endswith("/chat/completions"):
            await wires.model(request)
        elif request.json["model"] == "held":
            await self._held(request)
        else:
            await BEHAVIOURS.get(request.json["model"], _unknown)(request)

    async def _held(self, request: Request) -> None:
        await request.head()
        for number in range(WORDS):
            if number == FIRST_WORDS:
                await self.go_on.wait()
            await request.say(f"{number} ")
        await request.finish(usage=USAGE)


async def _delta(request: Request, **delta: object) -> None:
    await request.event({"choices": [{"index": 0, "delta": delta}]})


async def _piece(
    request: Request, index: int, arguments: str, call_id: str = "", name: str = "", **more: object
) -> None:
    piece: dict[str, Any] = {"index": index, "function": {"arguments": arguments}, **more}
    if call_id:
        piece |= {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    await _delta(request, tool_calls=[piece])


class Upstream:
    """The model in a thread of its own, because the tests wait for clients."""

    def __init__(self, found: Oracle, model: _Model, loop: asyncio.AbstractEventLoop) -> None:
        self._found, self._model, self._loop = found, model, loop

    @property
    def base_url(self) -> str:
        return self._found.base_url

    def asked(self, model: str) -> list[Request]:
        """The requests for that model so far, in OpenAI's format."""
        return [request for request in list(self._found.requests) if request.body and _of(request) == model]

    def let_go(self, request: Request, seconds: float = 10) -> None:
        """Waits until the connection of a request is closed. Raises ``TimeoutError``."""
        self.run(asyncio.wait_for(request.gone.wait(), seconds))

    def go_on(self) -> None:
        """Lets the model that is held say the rest."""
        self._loop.call_soon_threadsafe(self._model.go_on.set)

    def run(self, work: Coroutine[Any, Any, Found]) -> Found:
        """What ``work`` gives, done in the model's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)


def _of(request: Request) -> str:
    return str(json.loads(request.body).get("model"))  # which Gemini has in its path


@contextmanager
def upstream() -> Generator[Upstream]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="upstream")
    thread.start()
    stack = AsyncExitStack()

    try:
        model = _Model()
        entering = asyncio.run_coroutine_threadsafe(stack.enter_async_context(oracle(model)), loop)
        yield Upstream(entering.result(30), model, loop)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
