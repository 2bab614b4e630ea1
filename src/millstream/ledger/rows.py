"""A stream's row: what is written when it opens and when it is settled, and what is read back.

The columns of usage come from ``usage.TOKEN_KINDS``.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct
from sqlalchemy.engine import RowMapping

from millstream.errors import Interrupted
from millstream.events import FinishReason, StreamFailed, Terminal
from millstream.usage import (
    TOKEN_KINDS,
    Bill,
    Usage,
    UsageSource,
    from_picodollars,
    to_dollars,
    to_picodollars,
)

Status: TypeAlias = Literal["running", "completed", "cancelled", "failed", "interrupted"]

USAGE_COLUMNS = (*TOKEN_KINDS, "usage_source", "tokenizer", "cost_picodollars")
REPORTED_COLUMNS = (
    "provider_finish_reason",
    "provider_usage",
    "provider_cost_picodollars",
    "attempts",
)


class Claim(Struct, frozen=True):
    """An idempotency key, and the SHA-256 digest of the request that it stands for."""

    key: str
    digest: bytes


class Opening(Struct, frozen=True):
    """A stream that is about to call a provider. ``max_open`` is how many of its token may be open. One of a
    ``test`` key is not billed.
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
    test: bool = False


class Attempt(Struct, frozen=True, omit_defaults=True):
    """A deployment that was asked. Times are in Unix seconds; ``error`` is a code of the closed list."""

    provider: str
    model: str
    started_at: float
    ended_at: float
    first_content_at: float | None = None
    error: str | None = None


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
    numbers of its last checkpoint, and these are its producer's.
    """

    stream_id: str
    status: Status
    finish_reason: FinishReason | None
    error_code: str | None
    usage: Usage
    cost: Decimal | None
    first_event_at: float | None
    ended_at: float
    corrects: bool = False
    reported: Reported = NOTHING_REPORTED
    attempts: tuple[Attempt, ...] = ()

    @classmethod
    def of(cls, stream_id: str, terminal: Terminal, ended_at: float) -> "Settlement":
        """The settlement that says what the stream's terminal event says."""
        cost = None if terminal.bill.cost_usd is None else Decimal(terminal.bill.cost_usd)
        status: Status
        if isinstance(terminal, StreamFailed):
            reason, code = None, terminal.code
            status = "interrupted" if code == Interrupted.code else "failed"
        else:
            reason, code = terminal.finish_reason, None
            status = "cancelled" if reason == "cancelled" else "completed"
        return cls(stream_id, status, reason, code, terminal.bill.usage, cost, None, ended_at)


class Orphan(Struct, frozen=True):
    """A running row whose worker is gone, with the bill of its last checkpoint."""

    stream_id: str
    bill: Bill


class Receipt(Struct, frozen=True):
    """The ledger's row of a stream. Times are in Unix seconds; ``cost_usd`` is a decimal string."""

    stream_id: str
    owner_id: str
    key_id: str
    user: str | None
    test: bool  # of a test key, and not billed
    model: str
    provider: str
    status: Status
    finish_reason: str | None
    error_code: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cache_write_tokens: int
    prompt_audio_tokens: int
    prompt_image_tokens: int
    completion_audio_tokens: int
    completion_image_tokens: int
    usage_source: UsageSource
    tokenizer: str | None  # that we counted with, where the source is no provider
    cost_usd: str | None
    created_at: float
    first_event_at: float | None
    ended_at: float | None
    corrected_at: float | None  # when the producer's numbers replaced those of a checkpoint
    # What the provider said, in its own words.
    provider_finish_reason: str | None
    provider_usage: dict[str, Any] | None
    provider_cost_usd: str | None
    attempts: tuple[Attempt, ...]  # of which the last one is what the rest is about

    @property
    def bill(self) -> Bill:
        counts = {kind: getattr(self, kind) for kind in TOKEN_KINDS}
        return Bill(Usage(source=self.usage_source, tokenizer=self.tokenizer, **counts), self.cost_usd)


def opening_values(opening: Opening, worker_id: str | None) -> dict[str, Any]:
    """The row of a stream that runs."""
    return {
        "id": opening.stream_id,
        "owner_id": opening.owner_id,
        "key_id": opening.key_id,
        "token_id": opening.token_id,
        "user": opening.user,
        "is_test": opening.test,
        "model": opening.model,
        "provider": opening.provider,
        "status": "running",
        **dict.fromkeys(TOKEN_KINDS, 0),
        "usage_source": "checkpoint",
        "created_at": opening.created_at,
        "worker_id": worker_id,
        "idempotency_key": opening.claim and opening.claim.key,
        "request_digest": opening.claim and opening.claim.digest,
        "thread_id": opening.thread_id,
    }


def settlement_values(settlement: Settlement) -> dict[str, Any]:
    """What settling a row sets in it."""
    return {
        "stream_id": settlement.stream_id,
        "status": settlement.status,
        "finish_reason": settlement.finish_reason,
        "error_code": settlement.error_code,
        **usage_values(settlement.usage, settlement.cost),
        "first_event_at": settlement.first_event_at,
        "ended_at": settlement.ended_at,
        "corrected_at": settlement.ended_at if settlement.corrects else None,
        "provider_finish_reason": settlement.reported.finish_reason,
        "provider_usage": settlement.reported.usage,
        "provider_cost_picodollars": _picodollars(settlement.reported.cost),
        "attempts": _attempts_json(settlement.attempts),
        "worker_id": None,
    }


def usage_values(usage: Usage, cost: Decimal | None) -> dict[str, Any]:
    """``USAGE_COLUMNS`` with their values."""
    return {
        **{kind: getattr(usage, kind) for kind in TOKEN_KINDS},
        "usage_source": usage.source,
        "tokenizer": usage.tokenizer,
        "cost_picodollars": _picodollars(cost),
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
            row["model"],
            row["created_at"],
            ended_at,
            row["first_event_at"],
            row["error_code"],
        ),
    )


def _picodollars(cost: Decimal | None) -> int | None:
    return None if cost is None else to_picodollars(cost)


def _dollars(picodollars: int | None) -> str | None:
    return None if picodollars is None else to_dollars(picodollars)


def to_orphan(row: RowMapping) -> Orphan:
    counts = {kind: row[kind] for kind in TOKEN_KINDS}
    usage = Usage(source=row["usage_source"], tokenizer=row["tokenizer"], **counts)
    picodollars = row["cost_picodollars"]
    return Orphan(row["id"], Bill.of(usage, None if picodollars is None else from_picodollars(picodollars)))


def to_receipt(row: RowMapping) -> Receipt:
    values = {name: row[name] for name in Receipt.__struct_fields__ if name in row}
    usage = values.pop("provider_usage")
    values["attempts"] = attempts = _attempts_of(row)
    values["provider"] = attempts[-1].provider
    return Receipt(
        **values,
        stream_id=row["id"],
        test=row["is_test"],
        cost_usd=_dollars(row["cost_picodollars"]),
        provider_usage=None if usage is None else msgspec.json.decode(usage),
        provider_cost_usd=_dollars(row["provider_cost_picodollars"]),
    )
