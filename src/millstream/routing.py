"""Routing: which deployment of a model answers, and what happens when one does not.

A model may have several deployments, and others to fall back on. Before the first content of an answer the
next one is tried, after a failure that cannot have been billed; after it, or where a provider may bill for
what it did, never. A deployment that keeps failing is left alone for a while.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeAlias

from msgspec import Struct

from millstream.errors import ProviderError, RequestRefused, UpstreamRateLimited
from millstream.events import AnswerStart
from millstream.ledger.rows import Attempt
from millstream.prices import Tariff
from millstream.prompt import Prompt
from millstream.providers import Produced, Provider, UsageReport
from millstream.usage import Usage

_FAILURES = 5  # one after the other, until a deployment is left alone
_REST_SECONDS = (10.0, 120.0)  # for how long at first, and at most
_BACKOFF_SECONDS = 0.25  # before a deployment is tried again that has just failed, doubled each time

# What may come before the first content.
_NO_CONTENT = (AnswerStart, Usage, UsageReport)

Batch: TypeAlias = Sequence[Produced]


class Circuit:
    """Whether a deployment is tried. After too many failures it rests; then one stream at a time may try."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._opens_until = 0.0
        self._rests = 0
        self._trying = False

    @property
    def is_open(self) -> bool:
        """Whether it rests, or somebody is trying it just now."""
        return self._clock() < self._opens_until or (self._rests > 0 and self._trying)

    def begin(self) -> None:
        """A stream tries it."""
        self._trying = self._rests > 0

    def succeeded(self) -> None:
        self._failures = self._rests = 0
        self._opens_until = 0.0
        self._trying = False

    def failed(self, error: ProviderError) -> None:
        self._trying = False
        if isinstance(error, RequestRefused):
            return
        self._failures += 1
        if isinstance(error, UpstreamRateLimited) and error.retry_after_seconds:
            self._opens_until = self._clock() + min(error.retry_after_seconds, _REST_SECONDS[1])
        elif self._failures >= _FAILURES or self._rests:
            self._opens_until = self._clock() + min(_REST_SECONDS[0] * 2**self._rests, _REST_SECONDS[1])
            self._rests = min(self._rests + 1, 8)

    def left(self) -> None:
        """The stream that tried it has ended, without a word on how the deployment is."""
        self._trying = False


class Deployment(Struct, frozen=True, eq=False):
    """A model at one provider. ``weight`` is its share of the streams, beside others of the same model."""

    provider_name: str
    provider: Provider
    upstream_name: str
    encoding: str
    circuit: Circuit
    tariff: Tariff | None = None
    stream_seconds: float | None = None
    weight: int = 1
    is_for_tests: bool = False


class Model(Struct, frozen=True, eq=False):
    """A model that can be asked: its ``deployments``, and those to fall back on one after the other.
    ``attempts`` is how often it is tried at most, ``attempt_seconds`` how long after the start a last attempt
    may begin.
    """

    name: str
    deployments: tuple[Deployment, ...]
    fallbacks: tuple[Deployment, ...] = ()
    attempts: int = 1
    attempt_seconds: float = 10.0

    @property
    def is_for_tests(self) -> bool:
        """Whether test keys may ask it: it costs nothing, whoever of them answers."""
        return all(one.is_for_tests for one in (*self.deployments, *self.fallbacks))

    def order(self) -> list[Deployment]:
        """In which they are tried: by chance, as their weights say; those that rest come last."""
        left = list(self.deployments)
        ordered: list[Deployment] = []
        while left:
            chosen = random.choices(left, [one.weight for one in left])[0]  # noqa: S311  # no secret
            left.remove(chosen)
            ordered.append(chosen)
        ordered += self.fallbacks
        return sorted(ordered, key=lambda one: one.circuit.is_open)


class Routed:
    """One prompt on its way through the deployments of a model."""

    def __init__(self, model: Model, prompt: Prompt) -> None:
        self.model = model
        self._prompt = prompt
        self._order = model.order()
        self.deployment = self._order[0]  # that is asked, or was last
        self._attempts: list[Attempt] = []  # that have ended
        self.pending: list[Batch] = []  # what came before the first content, until that has come
        self._started_at: float | None = None  # of the one that runs
        self._first_content_at: float | None = None

    @asynccontextmanager
    async def answering(self) -> AsyncGenerator[tuple[list[Batch], AsyncGenerator[Batch]]]:
        """The batches up to the first content of the deployment that answers, and the stream of the others.
        That raises the ``ProviderError`` of the last deployment that was tried.
        """
        until = time.monotonic() + self.model.attempt_seconds
        while True:
            stream = self._ask_next()
            async with aclosing(stream):
                try:
                    await self._begin(stream)
                except ProviderError as error:
                    pause = self._pause(error)
                    if pause is None or time.monotonic() + pause > until:
                        stream = _raising(error)  # behind what was said, such as the usage
                    else:
                        self._failed(error)
                        await stream.aclose()
                        await asyncio.sleep(pause)
                        continue
                except BaseException:
                    self._left()
                    raise
                begun, self.pending = self.pending, []
                try:
                    yield begun, stream
                except ProviderError as error:
                    self._failed(error)
                    raise
                except BaseException:
                    self._left()
                    raise
                self._left()
                return

    def _ask_next(self) -> AsyncGenerator[Batch]:
        self.deployment = self._order[len(self._attempts) % len(self._order)]
        self.deployment.circuit.begin()
        self._started_at, self._first_content_at = time.time(), None
        self.pending = []
        return self.deployment.provider.stream(self._prompt, self.deployment.upstream_name)

    async def _begin(self, stream: AsyncGenerator[Batch]) -> None:
        """Adds to ``pending`` what is said up to the first content."""
        async for batch in stream:
            self.pending.append(batch)
            if not all(isinstance(item, _NO_CONTENT) for item in batch):
                self._first_content_at = time.time()
                self.deployment.circuit.succeeded()
                return

    def _pause(self, error: ProviderError) -> float | None:
        """How many seconds until the next attempt; None where there is none: this one may be billed, or
        another cannot help.
        """
        made = len(self._attempts) + 1
        billed = error.accepted or any(
            isinstance(i, (Usage, UsageReport)) for batch in self.pending for i in batch
        )
        if billed or isinstance(error, RequestRefused) or made >= self.model.attempts:
            return None
        rounds = made // len(self._order)
        if rounds == 0:
            return 0.0
        if not error.retryable:
            return None
        return max(_BACKOFF_SECONDS * 2.0 ** (rounds - 1), error.retry_after_seconds or 0.0)

    def attempts(self, error: str | None = None) -> tuple[Attempt, ...]:
        """Those that were made; the one that runs as if it ended now."""
        if self._started_at is None:
            return tuple(self._attempts)
        one, now = self.deployment, time.time()
        running = Attempt(
            one.provider_name, one.upstream_name, self._started_at, now, self._first_content_at, error
        )
        return (*self._attempts, running)

    def _failed(self, error: ProviderError) -> None:
        self._note(error.code)
        self.deployment.circuit.failed(error)

    def _left(self) -> None:
        self._note(None)
        self.deployment.circuit.left()

    def _note(self, error: str | None) -> None:
        self._attempts = list(self.attempts(error))
        self._started_at = None


async def _raising(error: ProviderError) -> AsyncGenerator[Batch]:
    """A stream that has failed."""
    raise error
    yield []
