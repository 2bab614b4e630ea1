"""The provider that fails as real ones do, for whoever tests a front end of their own.

    chaos/cut@40         40 words, then its connection breaks
    chaos/stall@3:30s    3 words, 30 seconds of silence, 20 words more
    chaos/slow@40:200ms  40 words, one every 200 ms
    chaos/error@10       10 words, then it reports an error
    chaos/garbage@3      3 words, then something that is no answer
    chaos/noterminal@10  10 words, then the end, which it does not say is one
    chaos/silent         nothing at all
    chaos/429            an HTTP status, 400 to 599, instead of an answer

The numbers may be left out. What it sends goes through the reading of OpenAI's protocol, and its silences
have the clocks of every provider, so an answer of it ends as one of a real provider does.
"""

import asyncio
import itertools
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import TypeAlias

import msgspec

from millstream.errors import ProviderError, UpstreamError, UpstreamModelNotFound, UpstreamTimeout
from millstream.prompt import Prompt
from millstream.providers import Produced
from millstream.providers.clocks import Clocks
from millstream.providers.endings import failure
from millstream.providers.known import Quirks
from millstream.providers.openai import Reading
from millstream.sse import Message

NAME = "chaos"

# The data of an event, seconds of silence, or how the connection ends.
_Step: TypeAlias = bytes | float | ProviderError

_MODEL = re.compile(r"([a-z]+)(?:@(\d{1,4}))?(?::(\d{1,6})(ms|s))?")
_STATUS = re.compile(r"[45]\d\d")
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PACE = 0.03
_AFTER_A_STALL = 20  # words
_RETRY_AFTER_SECONDS = 2  # of a 429


class ChaosProvider:
    def __init__(self, clocks: Clocks | None = None) -> None:
        self._clocks = clocks or Clocks()

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        reading = Reading(NAME, Quirks())
        for step in _steps(model):
            match step:
                case bytes():
                    if produced := reading.read([Message(step)]):
                        yield produced
                    if reading.fault is not None:
                        raise reading.fault
                case ProviderError():
                    raise step
                case _:
                    await self._silence(step, has_begun=reading.contents > 0)
        if not reading.is_done:
            if produced := reading.end():
                yield produced
            if reading.fault is not None:
                raise reading.fault

    async def models(self) -> list[str]:
        return []  # they can be named, but nobody is offered them

    async def close(self) -> None:
        pass

    async def _silence(self, seconds: float, *, has_begun: bool) -> None:
        """Raises ``UpstreamTimeout`` when it has lasted for as long as any provider's may."""
        clocks = self._clocks
        longest, what = (
            (clocks.idle, "was silent for") if has_begun else (clocks.first_byte, "sent no answer in")
        )
        await asyncio.sleep(min(seconds, longest))
        if seconds > longest:
            raise UpstreamTimeout(f"provider '{NAME}' {what} {longest:g} s")


def _steps(model: str) -> Iterator[_Step]:
    """Raises ``UpstreamModelNotFound``."""
    if _STATUS.fullmatch(model):
        retry_after = _RETRY_AFTER_SECONDS if model == "429" else None
        return iter([failure(NAME, None, status=int(model), retry_after_seconds=retry_after)])
    asked = _MODEL.fullmatch(model)
    kind = _KINDS.get(asked[1]) if asked else None
    if asked is None or kind is None:
        raise UpstreamModelNotFound(f"'{NAME}/{model}' is none of the models that fail on purpose")
    steps, words, seconds = kind
    if asked[2]:
        words = int(asked[2])
    if asked[3]:
        seconds = int(asked[3]) / (1000 if asked[4] == "ms" else 1)
    return steps(words, seconds)


def _cut(words: int, pace: float) -> Iterator[_Step]:
    yield from _say(words, pace)
    yield UpstreamError(f"provider '{NAME}' broke the connection")


def _stall(words: int, seconds: float) -> Iterator[_Step]:
    yield from _say(words, _PACE)
    yield seconds
    yield from _say(_AFTER_A_STALL, _PACE, said=words)
    yield from _end(words + _AFTER_A_STALL)


def _slow(words: int, pace: float) -> Iterator[_Step]:
    yield from _say(words, pace)
    yield from _end(words)


def _error(words: int, pace: float) -> Iterator[_Step]:
    yield from _say(words, pace)
    yield msgspec.json.encode({"error": {"message": "failed on purpose", "type": "server_error"}})


def _garbage(words: int, pace: float) -> Iterator[_Step]:
    yield from _say(words, pace)
    yield b'{"choices":[{"delta":{"content":"'


def _noterminal(words: int, pace: float) -> Iterator[_Step]:
    yield from _say(words, pace)


def _silent(words: int, seconds: float) -> Iterator[_Step]:
    yield float("inf")


# Each with how many words it says and how many seconds it waits where its name does not say so.
_KINDS: dict[str, tuple[Callable[[int, float], Iterator[_Step]], int, float]] = {
    "cut": (_cut, 10, _PACE),
    "stall": (_stall, 3, 30.0),
    "slow": (_slow, 40, 0.2),
    "error": (_error, 10, _PACE),
    "garbage": (_garbage, 3, _PACE),
    "noterminal": (_noterminal, 10, _PACE),
    "silent": (_silent, 0, 0.0),
}


def _say(words: int, pace: float, said: int = 0) -> Iterator[_Step]:
    """Words that count, after those that were ``said``."""
    for word in itertools.islice(itertools.cycle(_WORDS), said, said + words):
        yield msgspec.json.encode({"choices": [{"index": 0, "delta": {"content": f"{word} "}}]})
        yield pace


def _end(words: int) -> Iterator[_Step]:
    yield b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
    yield msgspec.json.encode({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": words}})
    yield b"[DONE]"
