"""Invoices: a provider's export of usage, compared with the ledger by day (UTC) and model.

Read are the CSV files of OpenAI's usage page (completions) and of Anthropic's console.
"""

import csv
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from itertools import chain
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import msgspec
import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from millstream.errors import InvalidRequest
from millstream.model_names import unversioned
from millstream.schema import EARLIEST, LATEST, streams

_DAY = 86_400
_SEPARATORS = (",", ";", "\t")  # the last two as spreadsheets write them

Row: TypeAlias = Mapping[str, str]
Cell: TypeAlias = tuple[int, str]  # a day, counted from 1970, and a model without its version


class Counts(Struct):
    """What is counted on one day for one model. ``requests`` is None where an export has none."""

    requests: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    completion_tokens: int = 0

    def add(self, other: "Counts") -> None:
        for name in self.__struct_fields__:
            ours, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, theirs if ours is None else ours + (theirs or 0))


class Difference(Struct, frozen=True):
    """Where the ledger and the invoice do not agree. Of ``estimated`` streams in it the provider has not said
    the last word: it may have billed what never came.
    """

    day: str
    model: str
    what: str
    ledger: int
    invoice: int
    estimated: int


class Invoice(Struct, frozen=True):
    """``provider`` is whose form it is. Its ``days`` go from the first to the last one, also where nothing
    was billed.
    """

    provider: str
    days: range
    has_requests: bool
    counts: dict[Cell, Counts]


def open_export(path: Path) -> TextIO:
    """A file as a provider makes it, or as a spreadsheet has saved it again: in UTF-8 or UTF-16."""
    with path.open("rb") as file:
        is_wide = file.read(2) in (BOM_UTF16_BE, BOM_UTF16_LE)
    return path.open(encoding="utf-16" if is_wide else "utf-8", newline="")


def read(lines: Iterable[str]) -> Invoice:
    """Raises ``InvalidRequest`` where it is no export that is known here, is not grouped by model, has no
    day, or has a line that cannot be read, and what ``lines`` raises.
    """
    lines = iter(lines)
    headings = next(lines, "").removeprefix("\ufeff")
    table = csv.DictReader(chain([headings], lines), delimiter=max(_SEPARATORS, key=headings.count))
    try:
        table.fieldnames = [name.strip() for name in table.fieldnames or ()]
        for provider, (needed, of_row) in _FORMS.items():
            if needed <= set(table.fieldnames):
                return _summed(provider, table, of_row)
    except UnicodeDecodeError:
        raise
    except (KeyError, ValueError, TypeError, OverflowError, csv.Error) as error:
        raise InvalidRequest(f"line {table.reader.line_num} of the export cannot be read") from error
    raise InvalidRequest("this is no usage export of OpenAI (completions) or Anthropic that is known here")


def _summed(provider: str, table: Iterable[Row], of_row: Callable[[Row], tuple[int, str, Counts]]) -> Invoice:
    counts: dict[Cell, Counts] = {}
    days: set[int] = set()
    has_requests = False
    for row in table:
        day, model, found = of_row(row)
        if not EARLIEST <= day * _DAY <= LATEST:  # such as one of milliseconds
            raise ValueError("a day of no calendar")
        days.add(day)
        has_requests = has_requests or found.requests is not None
        if not model:  # as it is of a time in which nothing was used
            if any(msgspec.structs.astuple(found)):
                raise InvalidRequest("the export is not grouped by model")
            continue
        counts.setdefault((day, unversioned(model)), Counts()).add(found)
    if not days:
        raise InvalidRequest("the export has no day in it, so there is nothing to compare")
    return Invoice(provider, range(min(days), max(days) + 1), has_requests, counts)


def _openai(row: Row) -> tuple[int, str, Counts]:
    day = int(float(row["start_time"])) // _DAY
    return (
        day,
        (row["model"] or "").strip(),
        Counts(
            _number(row, "num_model_requests"),
            _number(row, "input_tokens"),
            _number(row, "input_cached_tokens"),
            0,
            _number(row, "output_tokens"),
        ),
    )


def _anthropic(row: Row) -> tuple[int, str, Counts]:
    day = date.fromisoformat((row["usage_date_utc"] or "").strip()[:10])
    read_, written = (
        _number(row, "usage_input_tokens_cache_read"),
        _number(row, "usage_input_tokens_cache_write_5m") + _number(row, "usage_input_tokens_cache_write_1h"),
    )
    fresh = _number(row, "usage_input_tokens_no_cache")
    counts = Counts(None, fresh + read_ + written, read_, written, _number(row, "usage_output_tokens"))
    return (day - date(1970, 1, 1)).days, (row["model_version"] or "").strip(), counts


_FORMS: dict[str, tuple[set[str], Callable[[Row], tuple[int, str, Counts]]]] = {
    "openai": ({"start_time", "model", "input_tokens", "output_tokens"}, _openai),
    "anthropic": (
        {"usage_date_utc", "model_version", "usage_input_tokens_no_cache", "usage_output_tokens"},
        _anthropic,
    ),
}


def _number(row: Row, name: str) -> int:
    return int(float((row.get(name) or "0").replace(",", "")))


# -- beside the ledger -----------------------------------------------------------------------------


def compare(connection: Connection, invoice: Invoice, provider: str | None = None) -> list[Difference]:
    """Of the days of the invoice, for the ``provider`` of that name here."""
    days = invoice.days
    kept, estimated = _of_ledger(connection, provider or invoice.provider, days.start, days.stop)
    # An export without requests says nothing of them; in one with, nothing is none.
    compared = Counts.__struct_fields__ if invoice.has_requests else Counts.__struct_fields__[1:]
    found: list[Difference] = []
    for cell in sorted(invoice.counts.keys() | kept.keys()):
        theirs, ours = invoice.counts.get(cell, Counts()), kept.get(cell, Counts(0))
        for what in compared:
            ledger, billed = getattr(ours, what) or 0, getattr(theirs, what) or 0
            if ledger != billed:
                day, model = day_of(cell[0]), cell[1]
                found.append(Difference(day, model, what, ledger, billed, estimated.get(cell, 0)))
    return found


def day_of(number: int) -> str:
    """A day that is counted from 1970, as it is written."""
    return datetime.fromtimestamp(number * _DAY, UTC).date().isoformat()


def _of_ledger(
    connection: Connection, provider: str, first: int, last: int
) -> tuple[dict[Cell, Counts], dict[Cell, int]]:
    columns = streams.c
    days: Any = columns.created_at / _DAY
    # As in reports: PostgreSQL rounds where it casts, SQLite may lack floor() and cuts where it casts.
    day = sa.cast(days if connection.dialect.name == "sqlite" else sa.func.floor(days), sa.Integer)
    names = ("prompt_tokens", "cached_tokens", "cache_write_tokens", "completion_tokens")
    is_estimated = sa.case((columns.usage_source != "provider_final", 1), else_=0)
    query = (
        sa.select(
            day,
            sa.func.coalesce(columns.upstream_model, columns.model),
            sa.func.count(),
            *(sa.func.sum(columns[name]) for name in names),
            sa.func.sum(is_estimated),
        )
        .where(
            columns.provider == provider,
            columns.status != "running",
            columns.prompt_tokens + columns.completion_tokens > 0,  # what nobody bills
            columns.created_at >= first * _DAY,
            columns.created_at < last * _DAY,
        )
        .group_by(sa.literal_column("1"), sa.literal_column("2"))
    )
    kept: dict[Cell, Counts] = {}
    estimated: dict[Cell, int] = {}
    for at, model, *counts, unsure in connection.execute(query):
        cell = (int(at), unversioned(model.strip()))
        kept.setdefault(cell, Counts(0)).add(Counts(*map(int, counts)))
        estimated[cell] = estimated.get(cell, 0) + int(unsure)
    return kept, estimated
