"""What tokens cost, and what is charged for them: (provider, model) -> a tariff.

Unit prices come from the settings where they are set, else from genai-prices, whose data ships in its wheel.
What is charged is the cost, or the cost with a mark-up, or has unit prices of its own. An unknown price is
unknown: never one of zero.
"""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from millstream.model_names import unversioned
from millstream.usage import MAX_DOLLARS, Charge, Usage

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

_MILLION = Decimal(1_000_000)
_LIST_SECONDS = 900  # list prices may depend on the time of day, by quarters of an hour
_MAX_KNOWN = 256


class Rates(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """US dollars per million tokens. Tokens without a rate of their own are billed at ``input`` or
    ``output``, and those that a cache keeps for an hour at ``cache_write``; of sound, and of pictures that a
    model makes, that is not known: they have no price then. ``request`` is in US dollars for an
    answer that was produced.

    ``above`` are rates for the whole of a prompt and its answer, if the prompt is longer than ``tokens``, in
    the order of that.
    """

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None
    cache_write_1h: Decimal | None = None
    reasoning: Decimal | None = None
    audio_input: Decimal | None = None
    audio_output: Decimal | None = None
    image_input: Decimal | None = None
    image_output: Decimal | None = None
    request: Decimal | None = None
    above: tuple["RatesAbove", ...] = ()

    def cost(self, usage: Usage) -> Decimal | None:
        """US dollars; None where there is no price for what was used."""
        for dearer in reversed(self.above):
            if usage.prompt_tokens > dearer.tokens:
                return dearer.rates.cost(usage)
        read, written = self._of_prompt(usage), self._of_completion(usage)
        if read is None or written is None:
            return None
        asked = self.request if self.request is not None and usage.total_tokens else 0
        return (read + written) / _MILLION + asked

    def _of_prompt(self, usage: Usage) -> Decimal | None:
        fresh = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
        # What came from a cache, or went to one, is taken to be text as far as there is any.
        audio = min(usage.prompt_audio_tokens, fresh)
        image = min(usage.prompt_image_tokens, fresh - audio)
        if usage.prompt_audio_tokens and self.audio_input is None:
            return None
        cache_write = _or(self.cache_write, self.input)
        return (
            (fresh - audio - image) * self.input
            + usage.cached_tokens * _or(self.cached_input, self.input)
            + (usage.cache_write_tokens - usage.cache_write_1h_tokens) * cache_write
            + usage.cache_write_1h_tokens * _or(self.cache_write_1h, cache_write)
            + audio * _or(self.audio_input, self.input)
            + image * _or(self.image_input, self.input)
        )

    def _of_completion(self, usage: Usage) -> Decimal | None:
        audio, image = usage.completion_audio_tokens, usage.completion_image_tokens
        if (audio and self.audio_output is None) or (image and self.image_output is None):
            return None
        thought = min(usage.reasoning_tokens, usage.completion_tokens - audio - image)
        return (
            (usage.completion_tokens - audio - image - thought) * self.output
            + thought * _or(self.reasoning, self.output)
            + audio * _or(self.audio_output, self.output)
            + image * _or(self.image_output, self.output)
        )

    def times(self, markup: Decimal) -> "Rates":
        """These, each times ``markup``."""
        values = {name: getattr(self, name) for name in RATES}
        dearer: dict[str, Any] = {name: rate * markup for name, rate in values.items() if rate is not None}
        above = tuple(RatesAbove(one.tokens, one.rates.times(markup)) for one in self.above)
        return Rates(**dearer, above=above)


class RatesAbove(Struct, frozen=True):
    """Rates for prompts of more than so many ``tokens``."""

    tokens: int
    rates: Rates


RATES = tuple(name for name in Rates.__struct_fields__ if name != "above")


def _or(rate: Decimal | None, otherwise: Decimal) -> Decimal:
    return otherwise if rate is None else rate


class UnitPrices(Struct, frozen=True):
    """What a model's tokens cost at one moment. ``tiers`` are rates of service tiers: ``flex``, ``priority``,
    ``batch``. In a tier that is not there they cost ``rates``, unless ``all_tiers`` are said to be there.
    """

    version: str
    rates: Rates
    tiers: Mapping[str, Rates] = {}
    all_tiers: bool = False

    def of(self, tier: str | None) -> Rates | None:
        if tier is None:
            return self.rates
        return self.tiers.get(tier, None if self.all_tiers else self.rates)


class PriceSource(Protocol):
    """Where the unit prices of a model stand."""

    def at(self, moment: float) -> UnitPrices | None:
        """Those that hold at ``moment``, in Unix seconds."""


class SetPrices(Struct, frozen=True):
    """Those of the settings, which hold always."""

    prices: UnitPrices

    def at(self, moment: float) -> UnitPrices | None:
        return self.prices


class ListPrices:
    """A model's list prices, as genai-prices knows them."""

    def __init__(self, model: "ModelInfo", version: str) -> None:
        self._model = model
        self._version = version

    def at(self, moment: float) -> UnitPrices | None:
        when = datetime.fromtimestamp(moment, UTC)
        standard = _rates(self._model.get_prices(when))
        if standard is None:
            return None
        tiers: dict[str, Rates] = {}
        for variant in self._model.price_variants or ():
            is_active = variant.constraint is None or variant.constraint.active(when)
            if len(variant.when) == 1 and is_active:
                (word,) = variant.when.values()  # service_tier=flex, processing=batch, speed=fast
                rates = _rates(self._model.get_prices(when, variant.when))
                if rates is not None:
                    tiers.setdefault(word, rates)
        return UnitPrices(self._version, standard, tiers, all_tiers=True)


# Ours -> theirs.
_GENAI = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
    "reasoning": "output_reasoning_mtok",
    "audio_input": "input_audio_mtok",
    "audio_output": "output_audio_mtok",
    "image_input": "input_image_mtok",
    "image_output": "output_image_mtok",
    "request": "requests_kcount",
}


def _rates(price: "ModelPrice") -> Rates | None:
    """None where it is not known what a word costs."""
    theirs = {ours: getattr(price, name) for ours, name in _GENAI.items()}
    known = {name: value for name, value in theirs.items() if value is not None}
    if "input" not in known or "output" not in known:
        return None
    starts = {tier.start for value in known.values() for tier in getattr(value, "tiers", ())}

    def rates(prompt_tokens: int, **more: Any) -> Rates:
        found: dict[str, Any] = {name: _tiered(value, prompt_tokens) for name, value in known.items()}
        if "request" in found:
            found["request"] /= 1000
        return Rates(**found, **more)

    return rates(0, above=tuple(RatesAbove(start, rates(start + 1)) for start in sorted(starts)))


def _tiered(value: Any, prompt_tokens: int) -> Decimal:
    """The rate for a prompt of that length: a number, or a base with tiers above it."""
    rate: Decimal = getattr(value, "base", value)
    for tier in getattr(value, "tiers", ()):
        if prompt_tokens > tier.start:
            rate = tier.price
    return rate


@lru_cache(1024)
def _listed(provider_id: str, model: str) -> PriceSource | None:
    # Imported here: it takes a quarter of a second and is only needed where no price is set.
    from genai_prices import Usage as GenaiUsage
    from genai_prices import __version__, calc_price

    try:
        found = calc_price(GenaiUsage(input_tokens=1), model_ref=model, provider_id=provider_id)
    except LookupError:
        return None
    return ListPrices(found.model, f"genai-prices {__version__}")


class Override(Struct, frozen=True):
    """What the settings say of a model: its ``cost``, and either a ``markup`` or what is ``charged``."""

    cost: UnitPrices | None = None
    markup: Decimal | None = None
    charged: UnitPrices | None = None


class Tariff:
    """What a model costs, and what is charged for it. ``charged`` goes before ``markup``."""

    def __init__(
        self,
        cost: PriceSource | None,
        markup: Decimal = Decimal(1),
        charged: PriceSource | None = None,
    ) -> None:
        self._cost = cost
        self._markup = markup
        self._charged = charged
        self._known: dict[tuple[int, str | None], _Sheet] = {}

    @property
    def marks_up(self) -> bool:
        """Whether what is charged is another sum than what it costs."""
        return self._charged is not None or self._markup != 1

    def charge(self, usage: Usage, moment: float, tier: str | None = None) -> Charge:
        """For an answer that was asked for at ``moment``, in the service ``tier`` that its provider named."""
        charge = self._sheet(moment, tier).charge(usage)
        if charge.price is None and tier is not None:
            return replace(charge, estimate=self._sheet(moment, None).charge(usage).price)
        return charge

    def unit_prices(self, moment: float) -> str | None:
        """As JSON, for an answer of which no more is known."""
        return self._sheet(moment, None).shown

    def _sheet(self, moment: float, tier: str | None) -> "_Sheet":
        quarter = int(moment // _LIST_SECONDS)
        known = self._known.get((quarter, tier))
        if known is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            sources = (self._cost, self._charged)
            cost, charged = (None if one is None else one.at(moment) for one in sources)
            known = _Sheet(moment, tier, cost, self._markup, charged)
            self._known[quarter, tier] = known
        return known


class _Sheet:
    """A tariff at one moment, in one tier."""

    def __init__(
        self,
        moment: float,
        tier: str | None,
        cost: UnitPrices | None,
        markup: Decimal,
        charged: UnitPrices | None,
    ) -> None:
        self._versions = [one.version for one in (cost, charged) if one is not None]
        self._date = datetime.fromtimestamp(moment, UTC).date()
        self._tier = tier
        self._cost = None if cost is None else cost.of(tier)
        self._markup = markup
        self._price = None if charged is None else charged.of(tier)

    def charge(self, usage: Usage) -> Charge:
        cost = None if self._cost is None else self._cost.cost(usage)
        if self._price is not None:
            price = self._price.cost(usage)
        else:
            price = None if cost is None else cost * self._markup
        return Charge(_possible(cost), _possible(price), self.shown)

    @cached_property
    def shown(self) -> str | None:
        """As JSON: ``cost``, and ``price`` where that is another one; neither in a tier that has none."""
        price = self._price
        if price is None and self._cost is not None and self._markup != 1:
            price = self._cost.times(self._markup)
        is_known = self._cost is not None or price is not None
        if not (is_known or (self._tier is not None and self._versions)):
            return None
        found = {"version": ", ".join(dict.fromkeys(self._versions)), "date": self._date, "tier": self._tier}
        rates = {"cost": self._cost, "price": price}
        shown = {name: value for name, value in {**found, **rates}.items() if value is not None}
        return msgspec.json.encode(shown).decode()


def _possible(dollars: Decimal | None) -> Decimal | None:
    """None of what no answer costs: a count or a rate of it is wrong."""
    return dollars if dollars is None or dollars <= MAX_DOLLARS else None


class Prices:
    """``overrides`` are by the names that callers use: ``gpt-4o``, ``openai/gpt-4o``. What one charges holds
    for dated versions as well; what it costs, for those that nobody lists. ``markup`` is what is charged
    where none of them says it, as a multiple of the cost.
    """

    def __init__(self, overrides: Mapping[str, Override], markup: Decimal = Decimal(1)) -> None:
        self._overrides = overrides
        self._markup = markup

    async def find(
        self, name: str, provider: str, provider_id: str | None, upstream_name: str
    ) -> Tariff | None:
        """None where nobody knows a price, or marks it up. Off the event loop at a model's first look-up."""
        exact = (name, f"{provider}/{upstream_name}", upstream_name)
        model = unversioned(upstream_name)
        override = self._override((*exact, f"{provider}/{model}", model))
        set_cost = self._override(exact).cost
        cost: PriceSource | None = None if set_cost is None else SetPrices(set_cost)
        if cost is None and provider_id is not None:  # somebody lists prices for it
            cost = await asyncio.to_thread(_listed, provider_id, upstream_name)
        if cost is None and override.cost is not None:
            cost = SetPrices(override.cost)
        charged = None if override.charged is None else SetPrices(override.charged)
        markup = self._markup if override.markup is None else override.markup
        if cost is None and charged is None and markup == 1:
            return None
        return Tariff(cost, markup, charged)

    def _override(self, names: Iterable[str]) -> Override:
        """What it costs, from the first of ``names`` that says so; what is charged for it, likewise."""
        given = [self._overrides[name] for name in names if name in self._overrides]
        cost = next((one.cost for one in given if one.cost is not None), None)
        charges = (one for one in given if one.charged is not None or one.markup is not None)
        charging = next(charges, Override())
        return Override(cost, charging.markup, charging.charged)
