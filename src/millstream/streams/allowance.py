"""The allowance: what a running stream may still use of its budgets.

A stream begins with a reservation, asks for more of it ahead of its use, and waits for the answer only when
it has used up what it has. So a budget is never overdrawn by more than what came between two looks.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Protocol

from millstream import tokens
from millstream.errors import Forbidden
from millstream.events import Event
from millstream.ledger import Ledger
from millstream.limits import Applied, Demand, Hold
from millstream.prices import Tariff
from millstream.prompt import Prompt
from millstream.routing import Model
from millstream.usage import Charge, Usage, to_picodollars

STEP_TOKENS = 2048  # what is reserved ahead; it is asked for when half of it is left
LEAST_TOKENS = 16  # of an answer, below which none is started
_EXACT, _GRAIN = 256, 64  # prompts from so many tokens on are reserved in steps
_QUARTER_SECONDS = 900  # of an hour, in which list prices stay the same
_LEAST_CHARACTERS = 256  # between two looks; nobody's letter is more than three tokens


class Counting(Protocol):
    """What counts a stream (``streams/tally.py``)."""

    async def usage(self, *, accepted: bool) -> Usage: ...

    def charge(self, usage: Usage) -> Charge: ...


class Allowance:
    """Of the stream ``stream_id``, which holds ``hold``."""

    def __init__(self, stream_id: str, demand: Demand, hold: Hold, ledger: Ledger, tally: Counting) -> None:
        self._stream_id = stream_id
        self._subjects = frozenset(one.subject for one in demand.applied)
        self._demand = demand
        self._hold = hold
        self._ledger = ledger
        self._tally = tally
        self._asked: asyncio.Future[Hold | None] | None = None
        self._characters = 0  # since the last look
        self._look_after = _LEAST_CHARACTERS

    async def allows(self, events: Iterable[Event]) -> bool:
        """Whether the stream may go on, after these events."""
        for event in events:
            self._characters += len(getattr(event, "text", "") or getattr(event, "arguments", ""))
        if 3 * self._characters < self._look_after:
            return True
        self._characters = 0
        usage = await self._tally.usage(accepted=True)
        while (room := self._room(usage)) < 0:
            before, asked = self._hold, self._ask(usage)
            await asyncio.wait({asked})
            self._answered(asked)
            if self._hold == before:
                return False
        if room < STEP_TOKENS / 2 and not self._is_enough:
            self._ask(usage)
        self._look_after = max(_LEAST_CHARACTERS, room)
        return True

    @property
    def _is_enough(self) -> bool:
        """Whether it holds all that its answer may take, as far as that was said."""
        most = self._demand.most
        return most is not None and self._hold.tokens >= most[0] and self._hold.picodollars >= most[1]

    def _room(self, usage: Usage) -> int:
        """How many more tokens of an answer it has reserved; below 0 where it has used more than that."""
        rooms: list[int] = []
        if self._hold.has_tokens:
            rooms.append(self._hold.tokens - usage.total_tokens)
        if self._hold.has_dollars and (spent := self._picodollars(usage)) is not None:
            left = self._hold.picodollars - spent
            step = (self._picodollars(_ahead(usage)) or 0) - spent
            if step > 0 or left < 0:  # what costs nothing has room
                rooms.append(left * STEP_TOKENS // max(1, step))
        return min(rooms, default=STEP_TOKENS)

    def _picodollars(self, usage: Usage) -> int | None:
        budgeted = self._tally.charge(usage).budgeted
        return None if budgeted is None else to_picodollars(budgeted)

    def _ask(self, usage: Usage) -> asyncio.Future[Hold | None]:
        """For what the next step takes. One question at a time."""
        if self._asked is None:
            ahead = _ahead(usage)
            self._asked = self._ledger.extend(
                self._stream_id, ahead.total_tokens, self._picodollars(ahead) or 0, self._subjects
            )
            self._asked.add_done_callback(self._answered)
        return self._asked

    def _answered(self, asked: asyncio.Future[Hold | None]) -> None:
        if self._asked is asked:
            self._asked = None
            self._hold = asked.result() or self._hold


def _ahead(usage: Usage) -> Usage:
    return Usage(
        usage.prompt_tokens,
        usage.completion_tokens + STEP_TOKENS,
        usage.source,
        usage.cached_tokens,
        usage.reasoning_tokens,
        usage.cache_write_tokens,
        usage.cache_write_1h_tokens,
    )


async def demand_of(limited_by: Sequence[Applied], prompt: Prompt, model: Model) -> Demand | None:
    """What an answer to ``prompt`` asks of those limits that are for ``model``; None where none of them is.
    Raises ``Forbidden`` where a budget is in dollars and nobody knows what the model costs.

    With ``max_tokens`` the whole answer is reserved, unless it is longer than a step; else a step of it.
    """
    applied = tuple(one for one in limited_by if one.limit.model is None or one.limit.model in model.names)
    if not applied:
        return None
    whats = {one.limit.what for one in applied}
    if not whats & {"tokens", "usd"}:
        return Demand(applied)
    deployments = (*model.deployments, *model.fallbacks)
    quarter = int(time.time() // _QUARTER_SECONDS)
    tariffs = [one.tariff for one in deployments]
    if "usd" in whats and any(_price(one, quarter, 1, 1) is None for one in tariffs):
        raise Forbidden(
            f"there is a budget in dollars, and nobody knows the price of '{model.name}'; an operator can "
            "set it in the settings, under prices"
        )
    tokenizer = await tokens.load(deployments[0].encoding)
    asked = await tokens.count_prompt(tokenizer, prompt.messages)

    def needed(answer: int) -> tuple[int, int]:
        dollars = 0
        if "usd" in whats:
            dollars = max(_price(one, quarter, _rounded(asked), answer) or 0 for one in tariffs)
        return asked + answer, dollars

    longest = None if prompt.max_tokens is None else prompt.max_tokens * prompt.choices
    most = None if longest is None else needed(longest)
    if longest is not None and longest <= STEP_TOKENS:
        assert most is not None
        return Demand(applied, most, most, most, asked)
    return Demand(applied, needed(LEAST_TOKENS), needed(STEP_TOKENS), most, asked)


def _rounded(prompt_tokens: int) -> int:
    """Up, where they are many: so that what was computed once is of use again."""
    return prompt_tokens if prompt_tokens < _EXACT else -(-prompt_tokens // _GRAIN) * _GRAIN


@lru_cache(4096)  # a list price takes longer to apply than all else that a limit costs
def _price(tariff: Tariff | None, quarter: int, prompt_tokens: int, answer_tokens: int) -> int | None:
    """What is charged in that quarter of an hour, in picodollars; None where that is not known."""
    if tariff is None:
        return None
    usage = Usage(prompt_tokens, answer_tokens, "counted")
    price = tariff.charge(usage, quarter * _QUARTER_SECONDS).price
    return None if price is None else to_picodollars(price)
