"""Usage and money: the kinds of tokens that are counted, what they cost, what is charged, and a bill of it.

Each fact stands here once. The tables of the database, the statements of the ledger and the receipt take
their columns from ``TOKEN_KINDS``, and sums of streams from ``SUMMED_KINDS``.
"""

from decimal import ROUND_HALF_UP, Decimal
from typing import Literal, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

UsageSource: TypeAlias = Literal["provider_final", "provider_partial", "counted", "checkpoint"]

PICODOLLARS = Decimal(10**12)  # a dollar
MAX_DOLLARS = 1_000_000  # of one answer: a column of the database holds nine times as many


class Usage(Struct, frozen=True, gc=False, omit_defaults=True):
    """Tokens of one answer, in OpenAI's meaning: the prompt count includes those that were read from a cache
    and those that were written to one, the completion count includes hidden reasoning. Tokens of sound and of
    pictures are in the counts of their side too, and those that a cache keeps for an hour are in what was
    written to one.

    ``source`` says where the numbers come from: ``provider_final`` the provider's last word;
    ``provider_partial`` its running count when the stream was cut; ``counted`` our tokenizer over the
    text that was received; ``checkpoint`` our last count before the worker died. Where we have counted,
    ``tokenizer`` is the vocabulary that we did it with.
    """

    prompt_tokens: int
    completion_tokens: int
    source: UsageSource
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    prompt_audio_tokens: int = 0
    prompt_image_tokens: int = 0
    completion_audio_tokens: int = 0
    completion_image_tokens: int = 0
    tokenizer: str | None = None

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def with_media(self, prompt: tuple[int, int], completion: tuple[int, int]) -> "Usage":
        """With tokens of (sound, pictures) on each side, together no more than there are."""
        prompt_audio = min(prompt[0], self.prompt_tokens)
        completion_audio = min(completion[0], self.completion_tokens)
        return msgspec.structs.replace(
            self,
            prompt_audio_tokens=prompt_audio,
            prompt_image_tokens=min(prompt[1], self.prompt_tokens - prompt_audio),
            completion_audio_tokens=completion_audio,
            completion_image_tokens=min(completion[1], self.completion_tokens - completion_audio),
        )

    def sourced(self, source: UsageSource) -> "Usage":
        """The same numbers from another source."""
        return msgspec.structs.replace(self, source=source)


# Every kind of token that is counted. A new kind is a field of ``Usage`` and a migration.
TOKEN_KINDS = tuple(name for name in Usage.__struct_fields__ if name.endswith("_tokens"))
# Those that are added up by the hour, and exported. The others only have a price of their own.
SUMMED_KINDS = tuple(kind for kind in TOKEN_KINDS if kind != "cache_write_1h_tokens")


class Charge(Struct, frozen=True):
    """What usage costs and what is charged for it, in US dollars; None where that is unknown.
    ``unit_prices`` says how that was found, as JSON. ``estimate`` is what budgets count where the price is
    unknown: that of the standard tier, if anybody knows it.
    """

    cost: Decimal | None = None
    price: Decimal | None = None
    unit_prices: str | None = None
    estimate: Decimal | None = None

    @property
    def budgeted(self) -> Decimal | None:
        """What budgets count."""
        return self.estimate if self.price is None else self.price


UNKNOWN = Charge()


class Bill(Struct, frozen=True, gc=False, omit_defaults=True):
    """Usage with its price. ``cost_usd`` is what it costs, a decimal string, or None where that is not known;
    ``price_usd`` is what is charged for it, where that is another sum.
    """

    usage: Usage
    cost_usd: str | None
    price_usd: str | UnsetType | None = UNSET

    @classmethod
    def of(cls, usage: Usage, charge: Charge) -> "Bill":
        """Sums are rounded as the ledger keeps them."""
        cost, price = (
            None if dollars is None else to_dollars(to_picodollars(dollars))
            for dollars in (charge.cost, charge.price)
        )
        return cls(usage, cost, UNSET if price == cost else price)

    @property
    def charged_usd(self) -> str | None:
        """What whoever asked pays for it."""
        return self.cost_usd if isinstance(self.price_usd, UnsetType) else self.price_usd


def to_picodollars(cost: Decimal) -> int:
    """A whole number that databases add up exactly: 10⁻¹² dollars, so a tenth of a microcent a token."""
    return int((cost * PICODOLLARS).to_integral_value(ROUND_HALF_UP))


def from_picodollars(picodollars: int) -> Decimal:
    return Decimal(picodollars) / PICODOLLARS


def to_dollars(picodollars: int) -> str:
    """A plain decimal string with at least six places, exact."""
    text = f"{from_picodollars(picodollars):.12f}"
    head, _, places = text.partition(".")
    return f"{head}.{places[:6]}{places[6:].rstrip('0')}"
