"""Reports: sums over rows of the ledger."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy.engine import Connection

from millstream.database import streams
from millstream.usage import Group, to_dollars


class Total(Struct, frozen=True):
    """Sums over the streams of one group: what they cost, and what is charged for them. ``uncosted`` of them
    are not in ``cost_usd``, and ``unpriced`` not in ``price_usd``, because that is not known.
    """

    group: str
    streams: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: str
    price_usd: str
    uncosted: int
    unpriced: int

    def for_customer(self) -> "Total":
        """As whoever pays for it may see it: what it costs is what is charged."""
        return replace(self, cost_usd=self.price_usd, uncosted=self.unpriced)


class Unpriced(Struct, frozen=True):
    """A model of which streams have no price, by the name that was asked for and by its provider's."""

    provider: str
    model: str
    upstream_model: str | None
    streams: int
    tokens: int


def unpriced(connection: Connection, since: float | None = None) -> list[Unpriced]:
    """Models that were used from ``since`` on, but by test keys, and whose streams have no price."""
    names = (streams.c.provider, streams.c.model, streams.c.upstream_model)
    tokens = streams.c.prompt_tokens + streams.c.completion_tokens
    query = (
        sa.select(*names, sa.func.count().label("streams"), sa.func.sum(tokens).label("tokens"))
        .where(
            streams.c.price_picodollars.is_(None),
            streams.c.status != "running",
            streams.c.is_test == sa.false(),
            tokens > 0,
            *([streams.c.created_at >= since] if since is not None else []),
        )
        .group_by(*names)
        .order_by(*names)
    )
    return [
        Unpriced(row.provider, row.model, row.upstream_model, row.streams, int(row.tokens))
        for row in connection.execute(query)
    ]


def totals(
    connection: Connection,
    by: Group,
    since: float | None = None,
    until: float | None = None,
    key_id: str | None = None,
    test: bool = False,
) -> list[Total]:
    """Sums of settled and running streams that were created in [since, until): those of test keys, or all
    others.
    """
    column: sa.ColumnElement[Any]
    if by == "day":
        days = streams.c.created_at / 86400
        # PostgreSQL rounds where it casts, SQLite may lack floor() and cuts where it casts.
        column = sa.cast(days if connection.dialect.name == "sqlite" else sa.func.floor(days), sa.Integer)
    else:
        column = {"key": streams.c.key_id, "model": streams.c.model, "user": streams.c.user}[by]
    query = sa.select(
        column.label("group"),
        sa.func.count().label("streams"),
        sa.func.sum(streams.c.prompt_tokens).label("prompt_tokens"),
        sa.func.sum(streams.c.completion_tokens).label("completion_tokens"),
        sa.func.coalesce(sa.func.sum(streams.c.cost_picodollars), 0).label("cost"),
        sa.func.coalesce(sa.func.sum(streams.c.price_picodollars), 0).label("price"),
        (sa.func.count() - sa.func.count(streams.c.cost_picodollars)).label("uncosted"),
        (sa.func.count() - sa.func.count(streams.c.price_picodollars)).label("unpriced"),
    )
    conditions: Sequence[sa.ColumnElement[bool]] = [
        streams.c.is_test == sa.literal(test),
        *([streams.c.created_at >= since] if since is not None else []),
        *([streams.c.created_at < until] if until is not None else []),
        *([streams.c.key_id == key_id] if key_id is not None else []),
    ]
    # By its place: the same expression with other parameters would be another one to PostgreSQL.
    query = query.where(*conditions).group_by(sa.literal_column("1")).order_by(sa.literal_column("1"))
    return [
        Total(
            _group(row["group"], by),
            row["streams"],
            int(row["prompt_tokens"]),
            int(row["completion_tokens"]),
            to_dollars(int(row["cost"])),
            to_dollars(int(row["price"])),
            row["uncosted"],
            row["unpriced"],
        )
        for row in connection.execute(query).mappings()
    ]


def _group(value: Any, by: Group) -> str:
    if value is None:
        return ""
    if by == "day":
        return datetime.fromtimestamp(value * 86400, UTC).date().isoformat()
    return str(value)
