"""Limits: how much of what a key, an end user or a model may use in which time.

A limit is counted in windows of UTC that follow each other; how much of a window is used stands in a counter
of the database (``ledger/limits.py``). What a stream uses counts in the windows in which it started.
"""

import re
from calendar import timegm
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal, TypeAlias, get_args
from urllib.parse import quote, unquote

import msgspec
from msgspec import Struct

from millstream.usage import to_dollars, to_picodollars

What: TypeAlias = Literal["requests", "tokens", "usd", "streams"]
Per: TypeAlias = Literal["minute", "hour", "day", "month", "total"]

WHATS: tuple[What, ...] = get_args(What)
PERS: tuple[Per, ...] = get_args(Per)
MAX_AMOUNT = 10**15  # requests, tokens or streams
MAX_DOLLARS = 1_000_000
_MODEL = re.compile(r"[!-~]([ -~]{0,254}[!-~])?")
_SECONDS = {"minute": 60, "hour": 3600, "day": 86_400}


class Limit(Struct, frozen=True, omit_defaults=True):
    """``amount`` of requests, of tokens (of prompts and answers), of dollars (in picodollars), or of streams
    that are open at a time, which is always ``per`` total. Of one ``model``, where it names one, by any name
    that callers use for it. ``each_user`` is for every end user of the key by themselves, else it is for the
    key.
    """

    what: What
    per: Per
    amount: int
    model: str | None = None
    each_user: bool = False

    @property
    def is_budget(self) -> bool:
        """Whether a stream that has used it up ends in the middle. What a minute may have is asked for once,
        when a stream starts.
        """
        return self.what in ("tokens", "usd") and self.per != "minute"


class Applied(Struct, frozen=True):
    """A limit, and whose counter it is held to: a key's id, or a stream's owner. One ``of_key`` may change
    while a stream runs, one of a token does not.
    """

    subject: str
    limit: Limit
    of_key: bool = False

    def counter(self, now: float) -> "Counter":
        """The counter of the window of ``now``, in Unix seconds."""
        limit = self.limit
        start, end = window(limit.per, now)
        model = "*" if limit.model is None else quote(limit.model, safe="/:@.")
        identity = f"{limit.what} {limit.per} {start} {model} {self.subject}"
        return Counter(identity, limit.what, limit.per, limit.amount, end, self.of_key)


class Counter(Struct, frozen=True, omit_defaults=True):
    """One window of a limit, as it was when a stream started. ``ends_at`` is None where it never does."""

    id: str
    what: What
    per: Per
    amount: int
    ends_at: int | None = None
    of_key: bool = False

    @property
    def model(self) -> str | None:
        model = self.id.split(" ", 4)[3]
        return None if model == "*" else unquote(model)

    @property
    def subject(self) -> str:
        return self.id.split(" ", 4)[4]

    @property
    def is_budget(self) -> bool:
        return self.what in ("tokens", "usd") and self.per != "minute"

    def told(self) -> dict[str, str | int | None]:
        """As a receipt has it. ``ends_at`` is when its window ends, in Unix seconds."""
        amount = shown(self.what, self.amount)
        return {"what": self.what, "per": self.per, "amount": amount, "ends_at": self.ends_at}


class Standing(Struct, frozen=True):
    """How a limit stands. ``resets_in_seconds`` is None where it never does."""

    what: What
    per: Per
    amount: int
    left: int
    resets_in_seconds: int | None


class Demand(Struct, frozen=True):
    """What a stream asks of the limits that apply to it: tokens of prompt and answer, and picodollars. It is
    not started with less than the ``least``, and begins with no more than are ``wanted``; ``most`` is what it
    can take, where that is known.
    """

    applied: tuple[Applied, ...]
    least: tuple[int, int] = (0, 0)
    wanted: tuple[int, int] = (0, 0)
    most: tuple[int, int] | None = None
    prompt_tokens: int | None = None


class Hold(Struct, frozen=True):
    """What a running stream has reserved, and in which counters."""

    counters: tuple[Counter, ...]
    tokens: int
    picodollars: int

    def json(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def of(cls, text: str) -> "Hold":
        return msgspec.json.decode(text, type=cls)

    @property
    def has_tokens(self) -> bool:
        """Whether it has a budget in tokens."""
        return any(counter.is_budget and counter.what == "tokens" for counter in self.counters)

    @property
    def has_dollars(self) -> bool:
        """Whether it has a budget in dollars."""
        return any(counter.is_budget and counter.what == "usd" for counter in self.counters)


def window(per: Per, now: float) -> tuple[int, int | None]:
    """The window of ``now``: when it began and when the next one does, in Unix seconds."""
    if per == "total":
        return 0, None
    if per == "month":
        at = datetime.fromtimestamp(now, UTC)
        following = (at.year + at.month // 12, at.month % 12 + 1)
        return timegm((at.year, at.month, 1, 0, 0, 0)), timegm((*following, 1, 0, 0, 0))
    seconds = _SECONDS[per]
    start = int(now // seconds) * seconds
    return start, start + seconds


def narrowest(applied: list[Applied]) -> tuple[Applied, ...]:
    """Of limits that share a counter the smallest."""
    kept: dict[tuple[str, What, Per, str | None], Applied] = {}
    for one in applied:
        limit = one.limit
        name = (one.subject, limit.what, limit.per, limit.model)
        if name not in kept or limit.amount < kept[name].limit.amount:
            kept[name] = one
    return tuple(kept.values())


def make(
    what: What, per: Per, number: Decimal, model: str | None = None, *, each_user: bool = False
) -> Limit:
    """A limit of so many dollars, or of so many of anything else. Raises ``ValueError``."""
    if what == "streams" and per != "total":
        raise ValueError("open streams are limited in total, and not by time")
    if model is not None and not _MODEL.fullmatch(model):
        raise ValueError("the name of a model has 1 to 256 plain characters")
    return Limit(what, per, _amount(what, number), model, each_user)


def _amount(what: What, number: Decimal) -> int:
    most = MAX_DOLLARS if what == "usd" else MAX_AMOUNT
    if not number.is_finite() or not 0 <= number <= most:
        raise ValueError(f"an amount of {what} is 0 to {most}")
    if what == "usd":
        return to_picodollars(number)
    if number != int(number):
        raise ValueError(f"an amount of {what} is a whole number")
    return int(number)


def limit_shown(limit: Limit) -> dict[str, str | int | bool | None]:
    """A limit as it is told."""
    return {
        "what": limit.what,
        "per": limit.per,
        "amount": shown(limit.what, limit.amount),
        "model": limit.model,
        "each_user": limit.each_user,
    }


def shown(what: What, amount: int) -> str | int:
    """An amount as it is told: dollars as a decimal string, else a number."""
    return to_dollars(amount) if what == "usd" else amount


def in_words(what: What, amount: int) -> str:
    """``60 requests``, ``$0.25``."""
    return f"${to_dollars(amount)}" if what == "usd" else f"{amount} {what}"
