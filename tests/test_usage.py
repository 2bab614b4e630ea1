"""Kinds of tokens and money: each fact stands once."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from millstream import database
from millstream.dialects.native import usage_json
from millstream.ledger.rows import USAGE_COLUMNS, Receipt
from millstream.usage import TOKEN_KINDS, Bill, Usage, to_dollars, to_picodollars


def test_the_tables_and_the_receipt_have_exactly_these_kinds_of_tokens() -> None:
    columns = [column.name for column in database.streams.columns]
    assert [name for name in columns if name.endswith("_tokens")] == list(TOKEN_KINDS)
    assert set(USAGE_COLUMNS) <= set(columns)
    assert [name for name in Receipt.__struct_fields__ if name.endswith("_tokens")] == list(TOKEN_KINDS)


def test_every_kind_is_shown() -> None:
    counts = {kind: number for number, kind in enumerate(TOKEN_KINDS, 1)}
    shown = usage_json(Bill(Usage(source="counted", **counts), None))
    assert counts.items() <= shown.items()


def test_another_source_keeps_every_number() -> None:
    usage = Usage(9, 5, "provider_partial", 4, 3)
    assert usage.sourced("checkpoint") == Usage(9, 5, "checkpoint", 4, 3)


@given(st.integers(0, 10**18))
def test_money_is_exact_on_its_way_to_text(picodollars: int) -> None:
    text = to_dollars(picodollars)
    assert Decimal(text) * 10**12 == picodollars
    assert len(text.partition(".")[2]) >= 6
    assert to_picodollars(Decimal(text)) == picodollars
