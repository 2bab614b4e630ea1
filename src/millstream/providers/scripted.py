"""The provider that says what a script tells it, with its timing: for the demo, tests and load.

Models:
    scripted             says what it is and how to get a real model
    scripted/<n>x<ms>    n words, one every ms milliseconds (0: as fast as they are taken)
    any other name       the script given under it
"""

import asyncio
import itertools
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

from millstream.errors import ProviderError, UpstreamModelNotFound
from millstream.events import TextDelta
from millstream.prompt import Prompt
from millstream.providers import Finish, Produced
from millstream.usage import Usage

# What is produced goes out as one batch up to the next pause (seconds, or whatever is awaited), error
# or end.
Step: TypeAlias = Produced | float | Callable[[], Awaitable[object]] | ProviderError
Script: TypeAlias = Sequence[Step]

_DEMO = (
    "This answer comes from a script, not from a language model, one word at a time. Everything else is "
    "real: the stream, its journal, the stop button and the row in the ledger. To talk to a model, set "
    "OPENAI_API_KEY, or point OPENAI_BASE_URL at any server that speaks OpenAI's protocol, and start "
    "Millstream again."
)
_PACE = 0.03
_WORDS = [
    "stream",
    "after",
    "stream",
    "turns",
    "the",
    "wheel",
    "and",
    "every",
    "turn",
    "is",
    "counted",
    "once",
]
_TIMED = re.compile(r"(\d{1,6})x(\d{1,6})")


class ScriptedProvider:
    def __init__(self, scripts: Mapping[str, Script] | None = None) -> None:
        self._scripts = dict(scripts or {})

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        batch: list[Produced] = []
        for step in self._script(model):
            if isinstance(step, (int, float, ProviderError)) or callable(step):
                if batch:
                    yield batch
                    batch = []
                if isinstance(step, ProviderError):
                    raise step
                await (asyncio.sleep(step) if isinstance(step, (int, float)) else step())
            else:
                batch.append(step)
        if batch:
            yield batch

    async def models(self) -> list[str]:
        return ["scripted", *self._scripts]

    async def close(self) -> None:
        pass

    def _script(self, model: str) -> Script:
        if model in self._scripts:
            return self._scripts[model]
        if model == "scripted":
            return _spoken(re.findall(r"\S+\s*", _DEMO), _PACE)
        if timed := _TIMED.fullmatch(model.removeprefix("scripted/")):
            words = itertools.islice(itertools.cycle(_WORDS), int(timed[1]))
            return _spoken([f"{word} " for word in words], int(timed[2]) / 1000)
        raise UpstreamModelNotFound(f"no script is called '{model}'; see GET /v1/models")


def _spoken(words: Sequence[str], pace: float) -> Script:
    steps: list[Step] = []
    for word in words:
        steps += [TextDelta(word), pace]
    return [*steps, Finish("stop", Usage(0, len(words), "provider_final"))]
