"""Tables: reports and receipts as CSV, for spreadsheets and for other programs.

A text that a spreadsheet would take for a formula has a ``'`` before it, and so has a part of one that would
be a cell of its own, where the spreadsheet separates them by ``;`` or a tab, whatever is quoted
(https://owasp.org/www-community/attacks/CSV_Injection).
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from millstream.ledger.reports import Percentiles, Total
from millstream.ledger.rows import Receipt
from millstream.usage import TOKEN_KINDS

_OF_TOTAL = tuple(name for name in Total.__struct_fields__ if name not in ("group", "first_event_seconds"))
_PERCENTILES = Percentiles.__struct_fields__
# Of a receipt; what has parts of its own is JSON.
_OF_RECEIPT = tuple(
    name for name in Receipt.__struct_fields__ if name not in ("owner_id", "usage", "timings")
)

_SIGNS = "=+@\uff1d\uff0b\uff0d\uff20\t\r-"  # of formulas, the wide ones as well
_FORMULA = re.compile(f'(?:^|(?<=[;\t\r\n]))(?="*[{_SIGNS}])')  # where one begins
_IN_JSON = re.compile(f';(?="*[{_SIGNS}])')  # the same, where tabs and the ends of lines are escaped


def of_totals(by: Sequence[str], totals: Iterable[Total], *, percentiles: bool = False) -> str:
    """With a line of headings."""
    more = [f"first_event_seconds_{name}" for name in _PERCENTILES] if percentiles else []
    lines: list[list[object]] = [[*by, *_OF_TOTAL, *more]]
    for total in totals:
        waited = total.first_event_seconds
        lines.append(
            [
                *(_cell(total.group[name]) for name in by),
                *(getattr(total, name) for name in _OF_TOTAL),
                *([] if waited is None else [getattr(waited, name) for name in _PERCENTILES]),
            ]
        )
    return _csv(lines)


def receipt_headings() -> str:
    """The line above ``of_receipts``."""
    return _csv([[*_OF_RECEIPT, *_usage_columns({}), *_timing_columns({})]])


def of_receipts(receipts: Iterable[Receipt]) -> str:
    """Without headings."""
    lines = []
    for receipt in receipts:
        shown = receipt.shown()
        usage, timings = _usage_columns(shown["usage"]), _timing_columns(shown["timings"])
        values = [shown[name] for name in _OF_RECEIPT]
        lines.append([*map(_cell, values), *usage.values(), *timings.values()])
    return _csv(lines)


def _usage_columns(usage: dict[str, Any]) -> dict[str, Any]:
    names = {"usage_source": "source", "tokenizer": "tokenizer", **{kind: kind for kind in TOKEN_KINDS}}
    return {column: usage.get(name) for column, name in names.items()}


def _timing_columns(timings: dict[str, Any]) -> dict[str, Any]:
    names = {"queued_seconds": "queued", "first_event_seconds": "first_event", "seconds": "ended"}
    return {column: timings.get(name) for column, name in names.items()}


def _cell(value: object) -> object:
    if value in ([], (), {}):
        return None
    if isinstance(value, (dict, list, tuple)):
        return _IN_JSON.sub(r"\\u003b", msgspec.json.encode(value).decode())
    return _FORMULA.sub("'", value) if isinstance(value, str) else value


def _csv(lines: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
