"""Listings: which provider has which models, asked for again so that it stays true.

A provider that did not answer is asked again, after a second at first and then at ever longer intervals; one
that did, every ten minutes. A caller who names a model that nobody has makes all of them be asked at once,
but none more often than every few seconds.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from msgspec import Struct

from millstream.errors import ConfigurationError, ProviderError, safe_traceback
from millstream.providers import Provider
from millstream.providers.known import NOT_CHAT

log = logging.getLogger("millstream.catalog")

_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 60.0
_REFRESH_SECONDS = 600.0
# For callers who name a model that nobody has: how often they may make a provider be asked.
_ASKED_FOR_SECONDS = 5.0
_CALLER_WAITS_SECONDS = 3.0
_ANSWER_SECONDS = 60.0  # a model of ours has to be started first


class ProviderEntry(Struct, frozen=True):
    """A provider and what is known of it before it is asked.

    ``models`` are its models where they are configured, else it is asked for them. With ``any_model`` it
    gets every name that no other provider claims. ``price_id`` is its name in genai-prices.
    """

    provider: Provider
    models: Sequence[str] = ()
    any_model: bool = False
    price_id: str | None = None
    preferred: Sequence[str] = ()  # defaults to choose from, best first
    hidden: Collection[str] = ()  # parts of names that are no chat models
    stream_seconds: float | None = None  # the longest time of an answer, where that is less than usual
    is_for_tests: bool = False  # it costs nothing: test keys may ask it, and no other


class Listing:
    """The models of one provider. ``unready`` says why there are none."""

    def __init__(self, name: str, entry: ProviderEntry) -> None:
        self.name = name
        self.entry = entry
        self.models: Sequence[str] = tuple(entry.models)
        self.unready: str | None = None
        self.asked_at = float("-inf")  # in the loop's time
        self._failures = 0
        self._asking: asyncio.Task[None] | None = None

    @property
    def due_at(self) -> float:
        """When it should be asked again, in the loop's time."""
        if self.unready is None:
            return self.asked_at + _REFRESH_SECONDS
        return self.asked_at + min(_FIRST_RETRY_SECONDS * 2.0**self._failures / 2, _LAST_RETRY_SECONDS)

    async def ask(self) -> None:
        """Asks the provider; whoever comes while it is being asked waits for the same answer."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name=f"models of {self.name}")
        await asyncio.shield(self._asking)

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self) -> None:
        self.asked_at = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                found: Sequence[str] = await self.entry.provider.models()
        except TimeoutError:
            self._failed("it does not say in time which models it has")
        except (ProviderError, ConfigurationError) as error:
            self._failed(str(error))
        except Exception as error:  # somebody's own provider; the others are none the worse for it
            log.error("provider %s: %s", self.name, safe_traceback(error))
            self._failed("it does not say which models it has; the server's log has the details")
        else:
            self._failures = 0
            self.unready = None
            if not self.entry.models:
                self.models = [m for m in found if not any(part in m for part in self.entry.hidden)]
        finally:
            self._asking = None

    def _failed(self, why: str) -> None:
        self._failures = min(self._failures + 1, 16)
        if not self.models:  # what it had a moment ago, it has again in a moment
            self.unready = why


class Listings:
    """All providers' models. ``changed`` is called when they are others than before."""

    def __init__(self, entries: Mapping[str, ProviderEntry], changed: Callable[[], None]) -> None:
        self._listings = [Listing(name, entry) for name, entry in entries.items()]
        self._changed = changed
        self.models: dict[str, str] = {}  # name -> provider
        self.default: str | None = None
        self._update()

    @property
    def unready(self) -> dict[str, str]:
        """Why a provider has no models, by its name."""
        return {one.name: one.unready for one in self._listings if one.unready is not None}

    async def ask(self) -> None:
        """Asks every provider."""
        await self._ask(self._listings)

    async def ask_for_a_caller(self) -> None:
        """Asks those that were not asked a moment ago."""
        now = asyncio.get_running_loop().time()
        await self._ask(
            [
                one
                for one in self._listings
                if not one.entry.models and one.asked_at + _ASKED_FOR_SECONDS < now
            ]
        )

    async def keep_true(self) -> None:
        """Asks each provider again when it is due. Ends when it is cancelled."""
        loop = asyncio.get_running_loop()
        while listings := [one for one in self._listings if not one.entry.models]:
            await asyncio.sleep(max(min(one.due_at for one in listings) - loop.time(), 0.01))
            await self._ask([one for one in listings if one.due_at <= loop.time()])

    async def close(self) -> None:
        """Asks nobody any more."""
        await asyncio.gather(*(one.close() for one in self._listings))

    async def _ask(self, listings: Sequence[Listing]) -> None:
        if listings:
            try:
                await asyncio.gather(*(one.ask() for one in listings))
            finally:  # those that have answered by now
                self._update()

    def _update(self) -> None:
        models: dict[str, str] = {}
        for one in self._listings:
            for model in one.models:
                models.setdefault(model, one.name)
        if models != self.models:
            self.models = models
            self.default = self._best()
            self._changed()

    def _best(self) -> str | None:
        """The model to take where none is named: one that is preferred, or else the first that can chat."""
        for one in self._listings:
            for name in one.entry.preferred:
                if name in self.models:
                    return name
        return next((name for name in self.models if can_chat(name)), None)


def can_chat(name: str) -> bool:
    """Whether a model can chat, as far as its name tells."""
    lowered = name.lower()
    return not any(part in lowered for part in NOT_CHAT)
