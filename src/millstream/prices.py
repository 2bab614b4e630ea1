"""What tokens cost: (provider, model) -> a price that is fixed when a stream starts.

Prices come from the settings where they are set, else from genai-prices, whose data ships in its wheel.
An unknown model has no price, which is not a price of zero.
"""

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Protocol

from msgspec import Struct

from millstream.usage import Usage

_MILLION = Decimal(1_000_000)


class Price(Protocol):
    """A price that was looked up; ``cost`` applies it."""

    def cost(self, usage: Usage) -> Decimal:
        """US dollars."""


class FlatPrice(Struct, frozen=True):
    """US dollars per million tokens, as the settings state them."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None

    def cost(self, usage: Usage) -> Decimal:
        cached = self.input if self.cached_input is None else self.cached_input
        written = self.input if self.cache_write is None else self.cache_write
        return (
            (usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens) * self.input
            + usage.cached_tokens * cached
            + usage.cache_write_tokens * written
            + usage.completion_tokens * self.output
        ) / _MILLION


class ListPrice:
    """A provider's list price, with its tiers, as genai-prices knows it."""

    def __init__(self, provider_id: str, model: str) -> None:
        # Imported here: it takes a quarter of a second and is only needed where no price is set.
        from genai_prices import Usage as GenaiUsage
        from genai_prices import calc_price

        self._usage = GenaiUsage
        # One look-up now, so that a change of the data cannot change the price of a running stream.
        self._price = calc_price(
            GenaiUsage(input_tokens=1, output_tokens=1), model_ref=model, provider_id=provider_id
        ).model_price

    def cost(self, usage: Usage) -> Decimal:
        return self._price.calc_price(
            self._usage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                cache_read_tokens=usage.cached_tokens,
                cache_write_tokens=usage.cache_write_tokens,
            )
        )["total_price"]


@lru_cache(1024)
def _list_price(provider_id: str, model: str) -> Price | None:
    try:
        return ListPrice(provider_id, model)
    except LookupError:
        return None


class Prices:
    """``overrides`` are prices by the names that callers use: ``gpt-4o`` or ``openai/gpt-4o``."""

    def __init__(self, overrides: Mapping[str, FlatPrice]) -> None:
        self._overrides = overrides

    async def find(
        self, name: str, provider: str, provider_id: str | None, upstream_name: str
    ) -> Price | None:
        """None where nobody knows the price. Off the event loop at a model's first look-up."""
        for alias in (name, f"{provider}/{upstream_name}", upstream_name):
            if override := self._overrides.get(alias):
                return override
        if provider_id is None:
            return None  # nobody lists prices for it
        return await asyncio.to_thread(_list_price, provider_id, upstream_name)
