"""Reports: sums of streams, by what they have in common.

Whole hours come from the sums that are kept of them. The rest of a period, before its first whole hour and
after its last one, and what runs, comes from the rows themselves; so do hours that belong to two days of a
zone that is not whole hours from UTC.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast, get_args
from zoneinfo import ZoneInfo

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy.engine import Connection

from millstream.database import snapshot
from millstream.errors import InvalidRequest
from millstream.ledger import periods
from millstream.ledger.periods import DAY, HOUR
from millstream.schema import (
    FIRST_EVENT_SECONDS,
    FIRST_EVENTS,
    SUMS,
    hours,
    key_hours,
    keys,
    streams,
    user_hours,
)
from millstream.usage import PICODOLLARS, SUMMED_KINDS, to_dollars

Dimension: TypeAlias = Literal["hour", "day", "month", "key", "owner", "model", "provider", "user"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
_TIMES = ("hour", "day", "month")
MOST_GROUPS = 50_000  # of one report

# Few streams run. Their index finds them where 0 is added to the time, whose own SQLite would take otherwise.
_IS_RUNNING = streams.c.worker_id > ""

_COUNTS = tuple(name for name in SUMS if name not in FIRST_EVENTS)


class Asked(Struct, frozen=True):
    """A report: ``by`` what streams are added up, of those that were created in [since, until), in Unix
    seconds. Days and months are those of ``zone``. ``key_id`` and ``owner`` are whose they are; ``test`` is
    for those of test keys, which are in no other report.
    """

    by: tuple[Dimension, ...] = ("key",)
    since: float | None = None
    until: float | None = None
    zone: str = "UTC"
    key_id: str | None = None
    owner: str | None = None
    test: bool = False
    percentiles: bool = False


class Percentiles(Struct, frozen=True):
    """Of the seconds until the first event: so many of a hundred streams waited no longer. They come from
    counts by ranges, within which streams are taken to lie evenly; None where that is longer than a minute.
    """

    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class Total(Struct, frozen=True):
    """Sums over the streams of one ``group``, which names what they have in common, or None where they have
    none. ``cost_usd`` is what they cost and ``price_usd`` what is charged for them: ``uncosted`` streams are
    not in the first, and ``unpriced`` not in the second, because that is not known; where it is known of none
    of them, the sum is None. Of ``estimated`` streams
    the last word on their tokens is not their provider's. ``failed`` are also those that were interrupted.
    """

    group: dict[str, str | None]
    streams: int
    cancelled: int
    failed: int
    estimated: int
    uncosted: int
    unpriced: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cache_write_tokens: int
    prompt_audio_tokens: int
    prompt_image_tokens: int
    completion_audio_tokens: int
    completion_image_tokens: int
    cost_usd: str | None
    price_usd: str | None
    first_event_seconds: Percentiles | None = None

    def for_customer(self) -> "Total":
        """As whoever pays for it may see it: what it costs is what is charged."""
        return replace(self, cost_usd=self.price_usd, uncosted=self.unpriced)


def dimensions(by: str) -> tuple[Dimension, ...]:
    """Of names with commas between them. Raises ``InvalidRequest``."""
    found = tuple(name.strip() for name in by.split(","))
    if unknown := [name for name in found if name not in DIMENSIONS]:
        known = ", ".join(DIMENSIONS)
        raise InvalidRequest(f"there is no '{unknown[0][:32]}' to add up by; there are {known}")
    if len(set(found)) < len(found) or sum(name in _TIMES for name in found) > 1:
        raise InvalidRequest("a report is by each thing once, and by one of hour, day and month")
    return cast("tuple[Dimension, ...]", found)


def totals(connection: Connection, asked: Asked) -> list[Total]:
    """In the order of their groups. Raises ``InvalidRequest``."""
    zone = periods.zone_of(asked.zone)
    snapshot(connection)  # what is settled meanwhile runs, or is in the sums, but never neither
    sums = (*_COUNTS, *FIRST_EVENTS) if asked.percentiles else _COUNTS
    found: dict[tuple[Any, ...], list[int]] = {}
    for query in _queries(connection, asked, zone, sums):
        for row in connection.execute(query):
            group, counts = _group(row[: len(asked.by)], asked.by, zone), row[len(asked.by) :]
            known, more = found.get(group), sums_of(sums, counts)
            found[group] = more if known is None else [a + b for a, b in zip(known, more, strict=True)]
    if len(found) > MOST_GROUPS:
        raise InvalidRequest(f"a report has up to {MOST_GROUPS:,} groups, and this one {len(found):,}")
    there = ((group, counts) for group, counts in found.items() if counts[0])
    ordered = sorted(there, key=lambda item: [(part is not None, part) for part in item[0]])
    return [
        _total(asked.by, group, dict(zip(sums, counts, strict=True)))
        for group, counts in ordered
        if counts[0]
    ]


def _total(by: Sequence[str], group: Sequence[str | None], sums: dict[str, int]) -> Total:
    waited = [sums[name] for name in FIRST_EVENTS if name in sums]
    return Total(
        dict(zip(by, group, strict=True)),
        **{name: sums[name] for name in _COUNTS if not _is_money(name)},
        cost_usd=_known(sums, "cost_picodollars", "uncosted"),
        price_usd=_known(sums, "price_picodollars", "unpriced"),
        first_event_seconds=_percentiles(waited) if waited else None,
    )


def _known(sums: dict[str, int], name: str, unknown: str) -> str | None:
    """A sum of money, unless it is known of none of the streams."""
    return None if sums[unknown] == sums["streams"] else to_dollars(sums[name])


# -- where sums come from --------------------------------------------------------------------------


def _queries(
    connection: Connection, asked: Asked, zone: ZoneInfo, sums: Sequence[str]
) -> list[sa.Select[Any]]:
    since = -math.inf if asked.since is None else asked.since
    until = math.inf if asked.until is None else asked.until
    first, last = _whole_hours(connection, since, until)
    now = int(time.time() // HOUR)
    days = _Days(asked, zone, max(first - 1, _oldest(connection, now)), max(last, now) + 1)
    table = _table(asked)
    whole = [table.c.is_test == sa.literal(asked.test), table.c.hour >= first, table.c.hour < last]
    hour, values = hour_of_row(connection), added_up({name: of_row(name) for name in sums})
    day = days.of_row(connection, hour)
    queries: list[sa.Select[Any]] = []
    if days.tear:
        torn = _torn(connection, asked, days, first, last)
        queries.append(_query(asked, streams, hour, day, _settled(asked), values, torn))
        whole.append(sa.not_(days.tears(table.c.hour)))
    day_of_hour = days.of_hour(table.c.hour)
    kept = added_up({name: table.c[name] for name in sums})
    queries.append(_query(asked, table, table.c.hour, day_of_hour, whole, kept))
    for part in _parts(since, until, first * HOUR, last * HOUR):
        conditions = [streams.c.is_test == sa.literal(asked.test), *part]
        queries.append(_query(asked, streams, hour, day, conditions, values))
    return queries


def _torn(connection: Connection, asked: Asked, days: "_Days", first: int, last: int) -> sa.FromClause:
    """The rows of the hours that belong to two days. Raises ``InvalidRequest`` where some are not kept."""
    these = [
        hours.c.is_test == sa.literal(asked.test),
        hours.c.hour >= first,
        hours.c.hour < last,
        days.tears(hours.c.hour),
    ]
    torn = sa.select(hours.c.hour.label("torn_hour")).distinct().where(*these).subquery()
    begins = torn.c.torn_hour * _number(HOUR)
    rows = torn.join(
        streams, sa.and_(streams.c.created_at >= begins, streams.c.created_at < begins + _number(HOUR))
    )
    kept = connection.scalar(sa.select(sa.func.count()).select_from(rows).where(*_settled(asked))) or 0
    if kept < (connection.scalar(sa.select(sa.func.sum(hours.c.streams)).where(*these)) or 0):
        raise InvalidRequest(
            f"days of {asked.zone} begin within hours of UTC, and rows of some are not kept any more; ask "
            "for a later period, or add up by another zone"
        )
    return rows


def _whole_hours(connection: Connection, since: float, until: float) -> tuple[int, int]:
    """Those between the two, where there are any: from the first one to before the last one."""
    hour = hours.c.hour
    oldest, newest = (connection.scalar(sa.select(end(hour))) or 0 for end in (sa.func.min, sa.func.max))
    return (
        oldest if since == -math.inf else math.ceil(since / HOUR),
        newest + 1 if until == math.inf else math.floor(until / HOUR),
    )


def _oldest(connection: Connection, now: int) -> int:
    """The first hour of which there is a stream, or ``now``: how clocks were before it is no matter."""
    summed = connection.scalar(sa.select(sa.func.min(hours.c.hour)))
    created = connection.scalar(sa.select(sa.func.min(streams.c.created_at + 0)).where(_IS_RUNNING))
    return min(now if summed is None else int(summed), now if created is None else int(created // HOUR))


def _table(asked: Asked) -> sa.Table:
    """The smallest one that has what is asked for."""
    if "user" in asked.by:
        return user_hours
    of_keys = asked.key_id is not None or asked.owner is not None or {"key", "owner"} & set(asked.by)
    return key_hours if of_keys else hours


def _parts(since: float, until: float, first: float, last: float) -> Iterable[list[sa.ColumnElement[bool]]]:
    """Which rows are not in the sums of whole hours from ``first`` to ``last``: what runs, and what is
    settled before and after those hours.
    """
    yield [_IS_RUNNING, *_between(streams.c.created_at + 0, since, until)]
    # Beyond the oldest and the newest sums there is nothing that is settled.
    ends = [(since, first if since > -math.inf else since), (last if until < math.inf else until, until)]
    for start, end in ends if first < last else [(since, until)]:
        if start < end:
            yield [streams.c.status != "running", *_between(streams.c.created_at, start, end)]


def _between(at: sa.ColumnElement[float], start: float, end: float) -> list[sa.ColumnElement[bool]]:
    return [
        *([at >= start] if start > -math.inf else []),
        *([at < end] if end < math.inf else []),
    ]


def _settled(asked: Asked) -> list[sa.ColumnElement[bool]]:
    """Not as it would be compared by an index, which SQLite would make for it in place of that by time."""
    return [_one(streams.c.is_test == sa.literal(asked.test)) == _number(1), streams.c.status != "running"]


def hour_of_row(connection: Connection) -> sa.ColumnElement[int]:
    """The hour in which a stream was created."""
    return _floored(connection, streams.c.created_at / HOUR)


def _floored(connection: Connection, value: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    # PostgreSQL rounds where it casts, SQLite may lack floor() and cuts where it casts.
    return sa.cast(value if connection.dialect.name == "sqlite" else sa.func.floor(value), sa.Integer)


class _Days:
    """The days of a zone, as expressions of the database: which one an hour or a row is in."""

    def __init__(self, asked: Asked, zone: ZoneInfo, first: int, last: int) -> None:
        asks = {"day", "month"} & set(asked.by)
        self._shifts = periods.shifts(zone, first, last) if asks else [periods.Shift(first, 0)]
        self.tear = any(shift.ahead % HOUR for shift in self._shifts)

    def of_hour(self, hour: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
        return (hour * _number(HOUR) + self._ahead(hour)) // _number(DAY)

    def of_row(self, connection: Connection, hour: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
        if not self.tear:
            return self.of_hour(hour)
        return _floored(connection, (streams.c.created_at + self._ahead(hour)) / DAY)

    def tears(self, hour: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
        """Whether an hour belongs to two days."""
        return (hour * _number(HOUR) + self._ahead(hour)) % _number(DAY) > _number(DAY - HOUR)

    def _ahead(self, hour: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
        *earlier, latest = self._shifts
        if not earlier:
            return _number(latest.ahead)
        ends = [shift.hour for shift in self._shifts[1:]]
        shifted = [
            (hour < _number(end), _number(shift.ahead)) for end, shift in zip(ends, earlier, strict=True)
        ]
        return sa.case(*shifted, else_=_number(latest.ahead))


def _number(value: int) -> sa.ColumnElement[int]:
    """As it is: one that is bound may have another type to PostgreSQL."""
    return sa.literal_column(str(value), sa.Integer)


_DOLLAR = _number(int(PICODOLLARS))


def _query(
    asked: Asked,
    table: sa.Table,
    hour: sa.ColumnElement[int],
    day: sa.ColumnElement[int],
    conditions: Sequence[sa.ColumnElement[bool]],
    sums: Sequence[sa.ColumnElement[Any]],
    source: sa.FromClause | None = None,
) -> sa.Select[Any]:
    """Of ``table``, or of what it is joined with in ``source``."""
    columns: dict[str, Callable[[], sa.ColumnElement[Any]]] = {
        "hour": lambda: hour,
        "day": lambda: day,
        "month": lambda: day,
        "key": lambda: _unsorted(table.c.key_id),
        "owner": lambda: keys.c.owner,
        "model": lambda: table.c.model,
        "provider": lambda: table.c.provider,
        "user": lambda: sa.func.nullif(table.c.user, ""),
    }
    groups = [columns[name]() for name in asked.by]
    of_whom: list[sa.ColumnElement[bool]] = []
    if asked.key_id is not None:
        # A key has many rows, of which few are looked for.
        of_key = _unsorted(table.c.key_id) if table is streams else table.c.key_id
        of_whom.append(of_key == asked.key_id)
    if asked.owner is not None:
        of_whom.append(keys.c.owner == asked.owner)
    # By their places: the same expression with other parameters would be another one to PostgreSQL.
    places: list[sa.ColumnElement[Any]] = [
        sa.literal_column(str(number)) for number in range(1, len(groups) + 1)
    ]
    query = sa.select(*groups, *sums)
    source = table if source is None else source
    if "owner" in asked.by or asked.owner is not None:
        source = source.outerjoin(keys, keys.c.id == table.c.key_id)
    query = query.select_from(source)
    return query.where(*conditions, *of_whom).group_by(*places)


def added_up(columns: Mapping[str, sa.ColumnElement[Any]]) -> list[sa.ColumnElement[Any]]:
    """The sums of columns, as ``sums_of`` reads them. Money is whole dollars and the rest: SQLite's sums have
    64 bits, which are nine million dollars.
    """
    parts: list[sa.ColumnElement[Any]] = []
    for name, column in columns.items():
        parts += [column // _DOLLAR, column % _DOLLAR] if _is_money(name) else [column]
    return [sa.func.coalesce(sa.func.sum(part), 0) for part in parts]


def sums_of(names: Iterable[str], parts: Iterable[Any]) -> list[int]:
    """The sums of these names, of what was ``added_up``."""
    rest = map(int, parts)
    return [next(rest) * int(PICODOLLARS) + next(rest) if _is_money(name) else next(rest) for name in names]


def _is_money(name: str) -> bool:
    return name.endswith("_picodollars")


def _unsorted(column: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
    """The same, without its index, which leads SQLite from row to row all over the table."""
    return column + ""


def of_row(name: str) -> sa.ColumnElement[Any]:
    """What a stream adds to a sum, which has to be what the triggers of the database say."""
    columns = streams.c
    if name in SUMMED_KINDS or _is_money(name):
        return columns[name]
    if name in FIRST_EVENTS:
        number = FIRST_EVENTS.index(name)
        waited = columns.first_event_at - columns.created_at
        above = [] if number == 0 else [waited > FIRST_EVENT_SECONDS[number - 1]]
        below = [] if number == len(FIRST_EVENT_SECONDS) else [waited <= FIRST_EVENT_SECONDS[number]]
        return _one(sa.and_(columns.first_event_at.is_not(None), *above, *below))
    conditions = {
        "streams": sa.true(),
        "cancelled": columns.status == "cancelled",
        "failed": columns.status.in_(("failed", "interrupted")),
        "estimated": columns.usage_source != "provider_final",
        "uncosted": columns.cost_picodollars.is_(None),
        "unpriced": columns.price_picodollars.is_(None),
    }
    return _one(conditions[name])


def _one(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.case((condition, sa.literal_column("1")), else_=sa.literal_column("0"))


# -- what they are called --------------------------------------------------------------------------


def _group(values: Iterable[Any], by: Sequence[Dimension], zone: ZoneInfo) -> tuple[str | None, ...]:
    return tuple(_label(name, value, zone) for name, value in zip(by, values, strict=True))


def _label(name: Dimension, value: Any, zone: ZoneInfo) -> str | None:
    if value is None:
        return None
    if name == "hour":
        return periods.hour_label(zone, int(value))
    if name in ("day", "month"):
        day = periods.day_label(int(value))
        return day if name == "day" else day[:7]
    return str(value)


def _percentiles(counts: Sequence[int]) -> Percentiles:
    return Percentiles(*(_percentile(counts, share) for share in (0.5, 0.9, 0.95, 0.99)))


def _percentile(counts: Sequence[int], share: float) -> float | None:
    wanted = share * sum(counts)
    if not wanted:
        return None
    for low, high, count in zip((0.0, *FIRST_EVENT_SECONDS), FIRST_EVENT_SECONDS, counts, strict=False):
        if wanted <= count:
            return round(low + (high - low) * wanted / count, 3)
        wanted -= count
    return None


# -- models without a price ------------------------------------------------------------------------

# Kinds of tokens that may have no price where others of their model have one.
_MEDIA = tuple(kind for kind in SUMMED_KINDS if "audio" in kind or "image" in kind)


class Unpriced(Struct, frozen=True):
    """A model of which streams have no price, by the name that was asked for and by its provider's: those of
    one service ``tier``, and with tokens of the same ``kinds`` besides text.
    """

    provider: str
    model: str
    upstream_model: str | None
    tier: str | None
    kinds: tuple[str, ...]
    streams: int
    tokens: int


def unpriced(connection: Connection, since: float | None = None) -> list[Unpriced]:
    """Models that were used from ``since`` on, but by test keys, and whose streams have no price."""
    names = (streams.c.provider, streams.c.model, streams.c.upstream_model, streams.c.unit_prices)
    groups = [*names, *(_one(streams.c[kind] > _number(0)) for kind in _MEDIA)]
    tokens = streams.c.prompt_tokens + streams.c.completion_tokens
    query = (
        sa.select(*groups, sa.func.count(), sa.func.sum(tokens))
        .where(
            streams.c.price_picodollars.is_(None),
            streams.c.status != "running",
            streams.c.is_test == sa.false(),
            tokens > 0,
            *([streams.c.created_at >= since] if since is not None else []),
        )
        .group_by(*(sa.literal_column(str(place)) for place in range(1, len(groups) + 1)))
    )
    found: dict[tuple[Any, ...], list[int]] = {}
    for provider, model, upstream_model, prices, *counts in connection.execute(query):
        *has, count, total = map(int, counts)
        tier = None if prices is None else msgspec.json.decode(prices).get("tier")
        kinds = tuple(kind for kind, there in zip(_MEDIA, has, strict=True) if there)
        of = (provider, model, upstream_model, tier, kinds)
        sums = found.setdefault(of, [0, 0])
        sums[0] += count
        sums[1] += total
    ordered = sorted(found.items(), key=lambda item: [part or "" for part in item[0][:-1]])
    return [Unpriced(*of, *sums) for of, sums in ordered]
