"""Kinds of tokens and money: each fact stands once."""

from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from millstream import schema
from millstream.dialects.native import usage_json
from millstream.ledger.rows import USAGE_COLUMNS, Receipt
from millstream.usage import TOKEN_KINDS, Bill, Usage, to_dollars, to_picodollars


def test_the_tables_and_the_receipt_have_exactly_these_kinds_of_tokens() -> None:
    columns = [column.name for column in schema.streams.columns]
    assert [name for name in columns if name.endswith("_tokens")] == list(TOKEN_KINDS)
    assert set(USAGE_COLUMNS) <= set(columns)
    assert not [name for name in Receipt.__struct_fields__ if name.endswith("_tokens")]


def test_every_kind_is_shown() -> None:
    counts: dict[str, Any] = {kind: number for number, kind in enumerate(TOKEN_KINDS, 1)}
    shown = usage_json(Bill(Usage(source="counted", **counts), None))
    assert counts.items() <= shown.items()


def test_another_source_keeps_every_number() -> None:
    usage = Usage(9, 5, "provider_partial", 4, 3)
    assert usage.sourced("checkpoint") == Usage(9, 5, "checkpoint", 4, 3)


def test_a_count_of_ours_says_how_it_was_made() -> None:
    shown = usage_json(Bill(Usage(9, 5, "counted", tokenizer="o200k_base"), None))
    assert shown["tokenizer"] == "o200k_base"
    assert "tokenizer" not in usage_json(Bill(Usage(9, 5, "provider_final"), None))


def test_sound_and_pictures_are_never_more_than_there_is() -> None:
    usage = Usage(9, 5, "provider_final").with_media((4, 7), (6, 3))
    assert (usage.prompt_audio_tokens, usage.prompt_image_tokens) == (4, 5)
    assert (usage.completion_audio_tokens, usage.completion_image_tokens) == (5, 0)


@given(st.integers(0, 10**18))
def test_money_is_exact_on_its_way_to_text(picodollars: int) -> None:
    text = to_dollars(picodollars)
    assert Decimal(text) * 10**12 == picodollars
    assert len(text.partition(".")[2]) >= 6
    assert to_picodollars(Decimal(text)) == picodollars
