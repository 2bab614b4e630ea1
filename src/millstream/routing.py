"""Routing: which deployment of a model answers, and what happens when one does not.

A model may have several deployments, and others to fall back on. Before the first content of an answer the
next one is tried, after a failure that cannot have been billed; after it, or where a provider may bill for
what it did, never. A deployment that keeps failing is left alone for a while.

Where the operator wants it (``hedge_seconds``), a second deployment is asked as well when the first takes
long to say something. Both may bill, so nobody does it unasked.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from msgspec import Struct

from millstream import crossing
from millstream.errors import ProviderError, RequestRefused, UpstreamRateLimited
from millstream.events import AnswerStart
from millstream.ledger.rows import Attempt
from millstream.model_names import unversioned
from millstream.prices import Tariff
from millstream.prompt import Prompt
from millstream.providers import Produced, Provider, UsageReport
from millstream.usage import UNKNOWN, Bill, Usage

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

    @property
    def names(self) -> set[str]:
        """Its provider's name for the model, and for what that is a version of; alone and behind the
        provider's.
        """
        names = {self.upstream_name, unversioned(self.upstream_name)}
        return names | {f"{self.provider_name}/{name}" for name in names}

    def left_out(self, prompt: Prompt) -> tuple[str, ...]:
        """The names of what its provider is not told, as far as that is known."""
        api = getattr(self.provider, "api", None)
        refused = getattr(self.provider, "refused", ())
        return () if api is None else crossing.lost(prompt, api, refused)


class Model(Struct, frozen=True, eq=False):
    """A model that can be asked: its ``deployments``, and those to fall back on one after the other.
    ``attempts`` is how often it is tried at most, ``attempt_seconds`` how long after the start a last attempt
    may begin, ``hedge_seconds`` after how long without content another deployment is asked as well, if ever.
    """

    name: str
    deployments: tuple[Deployment, ...]
    fallbacks: tuple[Deployment, ...] = ()
    attempts: int = 1
    attempt_seconds: float = 10.0
    hedge_seconds: float | None = None

    @property
    def names(self) -> set[str]:
        """All by which a limit may mean it: by which callers may ask it, or one of its deployments
        (``gpt-4o``, ``openai/gpt-4o``), and those of what these are versions of.
        """
        return {self.name}.union(*(one.names for one in self.deployments))

    @property
    def is_for_tests(self) -> bool:
        """Whether test keys may ask it: it costs nothing, whoever of them answers."""
        return all(one.is_for_tests for one in (*self.deployments, *self.fallbacks))

    def order(self) -> list[Deployment]:
        """In which they are tried: by chance, as their weights say; those that rest come last."""
        if not self.fallbacks and len(self.deployments) == 1:
            return [*self.deployments]
        left = list(self.deployments)
        ordered: list[Deployment] = []
        while left:
            chosen = random.choices(left, [one.weight for one in left])[0]  # noqa: S311  # no secret
            left.remove(chosen)
            ordered.append(chosen)
        ordered += self.fallbacks
        return sorted(ordered, key=lambda one: one.circuit.is_open)


class _Asked:
    """A deployment that is asked, and what it has said before its first content."""

    __slots__ = (
        "_clock",
        "_first_content_at",
        "_started_at",
        "deployment",
        "has_ended",
        "said",
        "stream",
    )

    def __init__(self, deployment: Deployment, prompt: Prompt, clock: float) -> None:
        self.deployment = deployment
        self.stream = deployment.provider.stream(prompt, deployment.upstream_name)
        self.said: list[Batch] = []
        self.has_ended = False
        self._clock = clock
        self._started_at = clock + time.monotonic()
        self._first_content_at: float | None = None
        deployment.circuit.begin()

    async def begin(self) -> None:
        """Reads up to the first content. Raises ``ProviderError``."""
        async for batch in self.stream:
            self.said.append(batch)
            if not all(isinstance(item, _NO_CONTENT) for item in batch):
                self._first_content_at = self._clock + time.monotonic()
                self.deployment.circuit.succeeded()
                return

    def end(self, error: ProviderError | None = None) -> None:
        """It answers no more, because it has failed or because nobody wants it to."""
        self.has_ended = True
        if error is None:
            self.deployment.circuit.left()
        else:
            self.deployment.circuit.failed(error)

    def attempt(self, error: str | None, bill: Bill | None = None) -> Attempt:
        """The attempt as if it ended now."""
        one = self.deployment
        times = (self._started_at, self._clock + time.monotonic(), self._first_content_at)
        return Attempt(one.provider_name, one.upstream_name, *times, error, bill)

    @property
    def bill(self) -> Bill | None:
        """What it has counted before its first content, with its price."""
        counted = [item for batch in self.said for item in batch if isinstance(item, (Usage, UsageReport))]
        if not counted:
            return None
        usage = counted[-1].usage if isinstance(counted[-1], UsageReport) else counted[-1]
        tariff = self.deployment.tariff
        return Bill.of(usage, UNKNOWN if tariff is None else tariff.charge(usage, self._started_at))

    def may_be_billed(self, error: ProviderError) -> bool:
        """Whether there may be a bill although it has failed."""
        return error.accepted or self.bill is not None


class Routed:
    """One prompt on its way through the deployments of a model."""

    __slots__ = (
        "_asked",
        "_attempts",
        "_clock",
        "_made",
        "_may_be_billed",
        "_order",
        "_prompt",
        "model",
    )

    def __init__(self, model: Model, prompt: Prompt) -> None:
        self.model = model
        self._clock = time.time() - time.monotonic()  # which it goes by, wherever the system's is set to
        self._prompt: Prompt | None = prompt  # until there is nothing more to ask
        self._order = model.order()
        self._made = 0  # attempts
        self._attempts: list[Attempt] = []  # that have ended
        self._asked: _Asked | None = None  # that the answer is of, or else is expected of
        self._may_be_billed = False  # for one that has failed beside another

    def now(self) -> float:
        """The time, counted from when this was made: a system's clock that is set moves no duration."""
        return self._clock + time.monotonic()

    @property
    def deployment(self) -> Deployment:
        """That is asked, or was last."""
        return self._order[0] if self._asked is None else self._asked.deployment

    @property
    def pending(self) -> list[Batch]:
        """What came before the first content, until that has come."""
        return [] if self._asked is None else self._asked.said

    @asynccontextmanager
    async def answering(self) -> AsyncGenerator[tuple[list[Batch], AsyncGenerator[Batch]]]:
        """The batches up to the first content of the deployment that answers, and the stream of the others.
        That raises the ``ProviderError`` of the last deployment that was tried.
        """
        until = time.monotonic() + self.model.attempt_seconds
        while True:
            asked = self._asked = self._ask_next()
            try:
                asked, error = await self._first_content(asked)
                pause = None if error is None else self._pause(asked, error)
                if error is None or pause is None or time.monotonic() + pause > until:
                    begun, asked.said = asked.said, []
                    self._prompt = None
                    # A fault comes behind what was said, such as the usage.
                    yield begun, asked.stream if error is None else _raising(error)
                    return
                self._end(asked, error)
            except ProviderError as error:
                self._end(asked, error)
                raise
            finally:
                asked = self._asked
                self._end(asked)
                await asked.stream.aclose()
            await asyncio.sleep(pause)

    def _ask_next(self) -> _Asked:
        assert self._prompt is not None
        asked = _Asked(self._order[self._made % len(self._order)], self._prompt, self._clock)
        self._made += 1
        return asked

    async def _first_content(self, asked: _Asked) -> tuple[_Asked, ProviderError | None]:
        """Who has content first; or who has failed last, and how."""
        if self.model.hedge_seconds is not None:
            return await self._race(asked, self.model.hedge_seconds)
        try:
            await asked.begin()
        except ProviderError as error:
            return asked, error
        return asked, None

    async def _race(self, asked: _Asked, hedge_seconds: float) -> tuple[_Asked, ProviderError | None]:
        """As ``_first_content``, with another deployment asked as well after a while. Who is not needed any
        more is let go at once.
        """
        running = {asyncio.create_task(asked.begin()): asked}
        try:
            done, _ = await asyncio.wait(running, timeout=hedge_seconds)
            if not done and self._has_another:
                another = self._ask_next()
                running[asyncio.create_task(another.begin())] = another
            while True:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                ready = [task for task in running if task.done()]
                first = min(ready, key=lambda task: task.exception() is not None)
                asked = self._asked = running.pop(first)
                error = first.exception()
                if error is not None and not isinstance(error, ProviderError):
                    raise error
                if error is None or not running:
                    return asked, error
                self._may_be_billed = self._may_be_billed or asked.may_be_billed(error)
                self._end(asked, error)
                await asked.stream.aclose()
                (self._asked,) = running.values()
        finally:
            for task in running:
                task.cancel()
            results = await asyncio.gather(*running, return_exceptions=True)
            for other, result in zip(running.values(), results, strict=True):
                if other is not self._asked:
                    self._end(other, result if isinstance(result, ProviderError) else None)
                    await other.stream.aclose()

    @property
    def _has_another(self) -> bool:
        """Whether a deployment may be asked beside the one that is."""
        following = self._order[self._made % len(self._order)]
        return len(self._order) > 1 and self._made < self.model.attempts and not following.circuit.is_open

    def _pause(self, asked: _Asked, error: ProviderError) -> float | None:
        """How many seconds until the next attempt; None where there is none: this one may be billed, or
        another cannot help.
        """
        billed = self._may_be_billed or asked.may_be_billed(error)
        if billed or isinstance(error, RequestRefused) or self._made >= self.model.attempts:
            return None
        rounds = self._made // len(self._order)
        if rounds == 0:
            return 0.0
        if not error.retryable:
            return None
        return max(_BACKOFF_SECONDS * 2.0 ** (rounds - 1), error.retry_after_seconds or 0.0)

    def attempts(self, error: str | None = None) -> tuple[Attempt, ...]:
        """Those that were made; the one that runs as if it ended now."""
        if self._asked is None or self._asked.has_ended:
            return tuple(self._attempts)
        return (*self._attempts, self._asked.attempt(error))

    def _end(self, asked: _Asked, error: ProviderError | None = None) -> None:
        if asked.has_ended:
            return
        # The ledger's row has the bill of the one that the answer is of.
        bill = None if asked is self._asked and error is None else asked.bill
        self._attempts.append(asked.attempt(None if error is None else error.code, bill))
        asked.end(error)


async def _raising(error: ProviderError) -> AsyncGenerator[Batch]:
    """A stream that has failed."""
    raise error
    yield []
