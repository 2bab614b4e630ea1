"""A stream's row: what is written when it opens and when it is settled, and what is read back.

The columns of usage come from ``usage.TOKEN_KINDS``.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import replace
from sqlalchemy.engine import RowMapping

from millstream.errors import Internal, Interrupted
from millstream.events import EndedBy, FinishReason, StreamFailed, Terminal
from millstream.limits import Demand, Hold
from millstream.usage import (
    TOKEN_KINDS,
    Bill,
    Charge,
    Usage,
    from_picodollars,
    to_dollars,
    to_picodollars,
)

Status: TypeAlias = Literal["running", "completed", "cancelled", "failed", "interrupted"]

USAGE_COLUMNS = (
    *TOKEN_KINDS,
    *("usage_source", "tokenizer", "cost_picodollars", "price_picodollars", "unit_prices"),
)
REPORTED_COLUMNS = (
    "provider_finish_reason",
    "provider_usage",
    "provider_cost_picodollars",
    "attempts",
)
# In names of sums of money: ``totalCost``, ``cost_in_usd_ticks``, ``total_price``, ``credits_used``.
_OF_MONEY = re.compile("cost|pric(?:e|ing)|usd|dollar|fee|charge|spen[dt]|credit|discount", re.IGNORECASE)


class Claim(Struct, frozen=True):
    """An idempotency key, and the SHA-256 digest of the request that it stands for."""

    key: str
    digest: bytes


class Opening(Struct, frozen=True):
    """A stream that is about to call a provider. ``max_open`` is how many of its token may be open,
    ``demand`` what it asks of its limits, if it has any. One of a ``test`` key is not billed.
    """

    stream_id: str
    owner_id: str
    key_id: str
    model: str
    provider: str
    created_at: float
    user: str | None = None
    token_id: str | None = None
    max_open: int | None = None
    claim: Claim | None = None
    thread_id: str | None = None
    demand: Demand | None = None
    test: bool = False
    upstream_model: str | None = None
    unit_prices: str | None = None


class Attempt(Struct, frozen=True, omit_defaults=True):
    """A deployment that was asked. Times are in Unix seconds; ``error`` is a code of the closed list.
    ``bill`` is what it has counted although the answer is another's.
    """

    provider: str
    model: str
    started_at: float
    ended_at: float
    first_content_at: float | None = None
    error: str | None = None
    bill: Bill | None = None

    def for_customer(self) -> "Attempt":
        """With what is charged in place of what it costs."""
        bill = self.bill
        return replace(self, bill=bill and Bill(bill.usage, bill.charged_usd))


class Reported(Struct, frozen=True):
    """What the provider itself said of an answer: the word that it ended with, its usage object as JSON, and
    its own price. None where it said none, or at a length that is not kept.
    """

    finish_reason: str | None = None
    usage: str | None = None
    cost: Decimal | None = None


NOTHING_REPORTED = Reported()


class Settlement(Struct, frozen=True):
    """How a stream ended, and what it used. ``corrects`` where others have ended the stream already, with the
    numbers of its last checkpoint, and these are its producer's. ``provider`` is who answered, or was asked
    last, and ``upstream_model`` its name for the model. ``is_limited`` where limits apply to it.
    """

    stream_id: str
    status: Status
    finish_reason: FinishReason | None
    error_code: str | None
    usage: Usage
    charge: Charge
    first_event_at: float | None
    ended_at: float
    provider: str
    upstream_model: str | None = None
    ended_by: EndedBy | None = None
    corrects: bool = False
    reported: Reported = NOTHING_REPORTED
    attempts: tuple[Attempt, ...] = ()
    is_limited: bool = False

    @classmethod
    def of(cls, orphan: "Orphan", terminal: Terminal, ended_at: float) -> "Settlement":
        """The settlement that says what the stream's terminal event says."""
        bill = terminal.bill
        charge = Charge(_decimal(bill.cost_usd), _decimal(bill.charged_usd), orphan.unit_prices)
        status: Status
        if isinstance(terminal, StreamFailed):
            reason, code = None, terminal.code
            status = "interrupted" if code == Interrupted.code else "failed"
        else:
            reason, code = terminal.finish_reason, None
            status = "cancelled" if reason in ("cancelled", "budget_exceeded") else "completed"
        return cls(
            orphan.stream_id,
            status,
            reason,
            code,
            bill.usage,
            charge,
            None,
            ended_at,
            orphan.provider,
            orphan.upstream_model,
            _ended_by(terminal),
            is_limited=orphan.is_limited,
        )


class Orphan(Struct, frozen=True):
    """A running row whose worker is gone, with the bill of its last checkpoint."""

    stream_id: str
    bill: Bill
    provider: str
    upstream_model: str | None = None
    unit_prices: str | None = None
    is_limited: bool = False


class Timings(Struct, frozen=True):
    """In seconds from when the stream was asked for: until its provider was, until the first event, until the
    end. None of what has not happened, or is not known.
    """

    queued: float | None
    first_event: float | None
    ended: float | None


class Receipt(Struct, frozen=True):
    """The ledger's row of a stream. Times are in Unix seconds; sums are decimal strings in US dollars."""

    stream_id: str
    owner_id: str
    key_id: str
    user: str | None
    test: bool  # of a test key, and not billed
    model: str
    provider: str
    upstream_model: str | None  # by its provider's name
    status: Status
    finish_reason: str | None
    error_code: str | None
    ended_by: EndedBy | None
    usage: Usage
    cost_usd: str | None  # what it costs
    price_usd: str | None  # what is charged for it
    unit_prices: dict[str, Any] | None  # by which both were found, with their version and date
    created_at: float
    first_event_at: float | None
    ended_at: float | None
    timings: Timings
    corrected_at: float | None  # when the producer's numbers replaced those of a checkpoint
    # What the provider said, in its own words.
    provider_finish_reason: str | None
    provider_usage: dict[str, Any] | None
    provider_cost_usd: str | None
    attempts: tuple[Attempt, ...]  # of which the last one is what the rest is about
    limits: tuple[dict[str, Any], ...] = ()  # that applied to it

    def for_customer(self) -> "Receipt":
        """As whoever pays for it may see it: what it costs is what is charged. What its provider takes shows
        only where that is known to be charged.
        """
        receipt = replace(self, attempts=tuple(one.for_customer() for one in self.attempts))
        prices = self.unit_prices or {}
        is_marked_up = self.price_usd != self.cost_usd or "price" in prices
        if self.price_usd is not None and not is_marked_up:
            return receipt
        if is_marked_up:
            prices = {name: value for name, value in prices.items() if name != "cost"}
        return replace(
            receipt,
            cost_usd=self.price_usd,
            unit_prices=prices or None,
            provider_cost_usd=None,
            provider_usage=self.provider_usage and without_costs(self.provider_usage),
        )

    @property
    def bill(self) -> Bill:
        return Bill(self.usage, self.cost_usd, UNSET if self.price_usd == self.cost_usd else self.price_usd)

    def shown(self) -> dict[str, Any]:
        """As JSON has it, for whoever may see it: every kind of token, and not whose it is."""
        shown: dict[str, Any] = msgspec.to_builtins(self)
        del shown["owner_id"]
        kinds = {kind: getattr(self.usage, kind) for kind in TOKEN_KINDS}
        total = {"total_tokens": self.usage.total_tokens}
        shown["usage"] = {"source": self.usage.source, "tokenizer": self.usage.tokenizer, **total, **kinds}
        return shown


def without_costs(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A provider's usage object, or another one of its, without what it takes for it. Nothing is left of one
    that is too deep to be looked through.
    """
    try:
        costless: dict[str, Any] = _costless(raw)
    except RecursionError:
        return {}
    return costless


def _costless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _costless(one) for name, one in value.items() if not _OF_MONEY.search(name)}
    return [_costless(one) for one in value] if isinstance(value, list) else value


def opening_values(opening: Opening, worker_id: str | None) -> dict[str, Any]:
    """The row of a stream that runs, as far as limits say nothing of it."""
    return {
        "id": opening.stream_id,
        "owner_id": opening.owner_id,
        "key_id": opening.key_id,
        "token_id": opening.token_id,
        "user": opening.user,
        "is_test": opening.test,
        "model": opening.model,
        "provider": opening.provider,
        "upstream_model": opening.upstream_model,
        "unit_prices": opening.unit_prices,
        "status": "running",
        **dict.fromkeys(TOKEN_KINDS, 0),
        "usage_source": "checkpoint",
        "created_at": opening.created_at,
        "worker_id": worker_id,
        "idempotency_key": opening.claim and opening.claim.key,
        "request_digest": opening.claim and opening.claim.digest,
        "thread_id": opening.thread_id,
        "held": None,
    }


def settlement_values(settlement: Settlement) -> dict[str, Any]:
    """What settling a row sets in it; and, for limits alone, what budgets count."""
    return {
        "stream_id": settlement.stream_id,
        "status": settlement.status,
        "finish_reason": settlement.finish_reason,
        "error_code": settlement.error_code,
        **usage_values(settlement.usage, settlement.charge),
        "budgeted_picodollars": _picodollars(settlement.charge.budgeted),
        "provider": settlement.provider,
        "upstream_model": settlement.upstream_model,
        "first_event_at": settlement.first_event_at,
        "ended_at": settlement.ended_at,
        "ended_by": settlement.ended_by,
        "called_at": settlement.attempts[0].started_at if settlement.attempts else None,
        "corrected_at": settlement.ended_at if settlement.corrects else None,
        "provider_finish_reason": settlement.reported.finish_reason,
        "provider_usage": settlement.reported.usage,
        "provider_cost_picodollars": _picodollars(settlement.reported.cost),
        "attempts": _attempts_json(settlement.attempts),
        "worker_id": None,
    }


def usage_values(usage: Usage, charge: Charge) -> dict[str, Any]:
    """``USAGE_COLUMNS`` with their values."""
    return {
        **{kind: getattr(usage, kind) for kind in TOKEN_KINDS},
        "usage_source": usage.source,
        "tokenizer": usage.tokenizer,
        "cost_picodollars": _picodollars(charge.cost),
        "price_picodollars": _picodollars(charge.price),
        "unit_prices": charge.unit_prices,
    }


def _attempts_json(attempts: Sequence[Attempt]) -> str | None:
    """None for a single one: the row says all that is known of it."""
    return msgspec.json.encode(attempts).decode() if len(attempts) > 1 else None


def _attempts_of(row: RowMapping) -> tuple[Attempt, ...]:
    if row["attempts"] is not None:
        return msgspec.json.decode(row["attempts"], type=tuple[Attempt, ...])
    ended_at = row["ended_at"] or row["created_at"]
    return (
        Attempt(
            row["provider"],
            row["upstream_model"] or row["model"],
            row["called_at"] or row["created_at"],
            ended_at,
            row["first_event_at"],
            row["error_code"],
        ),
    )


def _picodollars(cost: Decimal | None) -> int | None:
    return None if cost is None else to_picodollars(cost)


def _of_picodollars(picodollars: int | None) -> Decimal | None:
    return None if picodollars is None else from_picodollars(picodollars)


def _decimal(dollars: str | None) -> Decimal | None:
    return None if dollars is None else Decimal(dollars)


def _dollars(picodollars: int | None) -> str | None:
    return None if picodollars is None else to_dollars(picodollars)


def _ended_by(terminal: Terminal) -> EndedBy | None:
    """What the terminal event of an orphan tells of that: not who has cancelled it."""
    if isinstance(terminal, StreamFailed):
        return "crash" if terminal.code in (Interrupted.code, Internal.code) else "provider"
    if terminal.finish_reason == "budget_exceeded":
        return "limit"
    return None if terminal.finish_reason == "cancelled" else "provider"


def _usage(row: RowMapping) -> Usage:
    counts = {kind: row[kind] for kind in TOKEN_KINDS}
    return Usage(source=row["usage_source"], tokenizer=row["tokenizer"], **counts)


def _timings(row: RowMapping) -> Timings:
    """None of them is before the one before it, as clocks of two workers may have it."""
    seconds: list[float | None] = []
    latest = 0.0
    for at in (row["called_at"], row["first_event_at"], row["ended_at"]):
        if at is not None:
            latest = max(latest, round(at - row["created_at"], 6))
        seconds.append(None if at is None else latest)
    return Timings(*seconds)


def to_orphan(row: RowMapping) -> Orphan:
    charge = Charge(_of_picodollars(row["cost_picodollars"]), _of_picodollars(row["price_picodollars"]))
    bill = Bill.of(_usage(row), charge)
    return Orphan(
        row["id"],
        bill,
        row["provider"],
        row["upstream_model"],
        row["unit_prices"],
        is_limited=row["held"] is not None,
    )


def to_receipt(row: RowMapping) -> Receipt:
    values = {name: row[name] for name in Receipt.__struct_fields__ if name in row}
    raw, prices = values.pop("provider_usage"), values.pop("unit_prices")
    values["attempts"] = attempts = _attempts_of(row)
    values["provider"] = attempts[-1].provider
    return Receipt(
        **values,
        stream_id=row["id"],
        test=row["is_test"],
        usage=_usage(row),
        timings=_timings(row),
        cost_usd=_dollars(row["cost_picodollars"]),
        price_usd=_dollars(row["price_picodollars"]),
        unit_prices=None if prices is None else msgspec.json.decode(prices),
        limits=() if row["held"] is None else tuple(one.told() for one in Hold.of(row["held"]).counters),
        provider_usage=None if raw is None else msgspec.json.decode(raw),
        provider_cost_usd=_dollars(row["provider_cost_picodollars"]),
    )
