"""A provider's export beside the ledger. Run against every database."""

from typing import Any

import pytest

from millstream.database import Database
from millstream.errors import InvalidRequest
from millstream.ledger import Ledger, invoices
from millstream.ledger.rows import Opening, Settlement
from millstream.usage import UNKNOWN, Usage

DAY = 1_767_225_600  # 2026-01-01, UTC
OPENAI = (
    "start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,user_id,api_key_id,model,"
    "batch,service_tier,input_tokens,output_tokens,input_cached_tokens,input_audio_tokens\n"
)
ANTHROPIC = (
    "usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,"
    "usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,"
    "usage_output_tokens,web_search_count,inference_geo,speed\n"
)


def of_openai(
    at: int, model: str, requests: object, prompt: object, completion: object, cached: object
) -> str:
    return f"{at},{at + 60},x,x,,{requests},,,{model},,,{prompt},{completion},{cached},\n"


async def used(ledger: Ledger, stream_id: str, at: float, provider: str, model: str, usage: Usage) -> None:
    opening = Opening(stream_id, "k", "k", "alias", provider, at, upstream_model=model)
    ended: dict[str, Any] = {"ended_at": at, "provider": provider, "upstream_model": model}
    await ledger.open(opening)
    await ledger.settle(Settlement(stream_id, "completed", "stop", None, usage, UNKNOWN, None, **ended))


async def test_openais_export_is_compared_by_day_and_model(db: Database) -> None:
    async with Ledger(db) as ledger:
        await used(ledger, "a", DAY + 5, "openai", "gpt-4o", Usage(100, 10, "provider_final", 40))
        await used(ledger, "b", DAY + 86_399, "openai", "gpt-4o-2024-08-06", Usage(50, 5, "provider_final"))
        await used(ledger, "c", DAY + 86_400, "openai", "gpt-5", Usage(7, 3, "counted"))
        await used(ledger, "free", DAY + 9, "openai", "gpt-5", Usage(0, 0, "counted"))
        await used(ledger, "other", DAY + 9, "azure", "gpt-4o", Usage(1, 1, "counted"))
        await used(ledger, "before", DAY - 1, "openai", "gpt-4o", Usage(1, 1, "counted"))
        lines = [
            "\ufeff" + OPENAI,
            of_openai(DAY, "gpt-4o-2024-08-06", 1, 100, 10, 40),
            of_openai(DAY + 60, "", "", "", "", ""),
            of_openai(DAY + 86_340, "gpt-4o-2024-08-06", 1, 50, 5, 0),
            of_openai(DAY + 86_400, "gpt-5", 1, 7, 9, 0),
            of_openai(DAY + 86_400, "o3", 2, 20, 30, 0),
        ]
        found = await ledger.compare(invoices.read(lines))
    assert [(one.day, one.model, one.what, one.ledger, one.invoice, one.estimated) for one in found] == [
        ("2026-01-02", "gpt-5", "completion_tokens", 3, 9, 1),
        ("2026-01-02", "o3", "requests", 0, 2, 0),
        ("2026-01-02", "o3", "prompt_tokens", 0, 20, 0),
        ("2026-01-02", "o3", "completion_tokens", 0, 30, 0),
    ]


async def test_anthropics_export_is_compared_by_day_and_model(db: Database) -> None:
    async with Ledger(db) as ledger:
        usage = Usage(1000, 50, "provider_final", 600, 0, 300)
        for stream_id, provider in (("a", "anthropic"), ("b", "claude")):
            await used(ledger, stream_id, DAY + 5, provider, "claude-sonnet-4-5", usage)
        lines = [
            ANTHROPIC,
            "2026-01-01,claude-sonnet-4-5-20250929,k,Default,standard,≤ 200k,100,200,100,500,40,0,global,\n",
            "2026-01-01,claude-sonnet-4-5-20250929,k,Default,batch,≤ 200k,0,0,0,100,10,0,global,\n",
        ]
        assert await ledger.compare(invoices.read(lines)) == []
        assert await ledger.compare(invoices.read(lines), "claude") == []
        missing = await ledger.compare(invoices.read(lines), "elsewhere")
        assert {one.what: one.invoice for one in missing} == {
            "prompt_tokens": 1000,
            "cached_tokens": 600,
            "cache_write_tokens": 300,
            "completion_tokens": 50,
        }


@pytest.mark.parametrize("billed", [True, False])
async def test_days_count_on_which_nothing_was_billed(db: Database, billed: bool) -> None:
    async with Ledger(db) as ledger:
        await used(ledger, "a", DAY + 86_400, "openai", "gpt-4o", Usage(1, 2, "counted"))
        lines = [
            OPENAI,
            of_openai(DAY, "gpt-5", 0, 0, 0, 0) if billed else of_openai(DAY, "", "", "", "", ""),
            of_openai(DAY + 86_400, "", "", "", "", ""),
        ]
        found = await ledger.compare(invoices.read(lines))
    assert [(one.day, one.model, one.what, one.ledger, one.invoice) for one in found] == [
        ("2026-01-02", "gpt-4o", "requests", 1, 0),
        ("2026-01-02", "gpt-4o", "prompt_tokens", 1, 0),
        ("2026-01-02", "gpt-4o", "completion_tokens", 2, 0),
    ]


@pytest.mark.parametrize("lines", [[OPENAI], [ANTHROPIC, "\n"]])
def test_an_export_without_a_day_is_refused(lines: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="has no day in it"):
        invoices.read(lines)


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["a,b\n", "1,2\n"],
        [OPENAI, of_openai(DAY, "m", "many", 1, 1, 1)],
        [ANTHROPIC, "yesterday,m,k,D,s,c,1,1,1,1,1,0,,\n"],
        [OPENAI, "yesterday,,,\n"],
        ["x" * 200_000],
    ],
)
def test_what_is_no_export_is_refused(lines: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        invoices.read(lines)


def test_a_mark_before_quoted_headings_is_none_of_them() -> None:
    headings = ",".join(f'"{name}"' for name in OPENAI.strip().split(","))
    ((_, model),) = invoices.read([f"\ufeff{headings}\n", of_openai(DAY, "m", 1, 1, 1, 1)]).counts
    assert model == "m"


@pytest.mark.parametrize("separator", [";", "\t"])
def test_spreadsheets_separate_by_something_else(separator: str) -> None:
    lines = [line.replace(",", separator) for line in (OPENAI, of_openai(DAY, "m", 1, 2, 3, 1))]
    ((_, counts),) = invoices.read(lines).counts.items()
    assert (counts.prompt_tokens, counts.completion_tokens) == (2, 3)


GOOD = of_openai(DAY, "m", 1, 1, 1, 1)


@pytest.mark.parametrize(
    "lines",
    [
        [OPENAI, GOOD, of_openai(DAY * 1000, "m", 1, 1, 1, 1)],  # milliseconds
        [OPENAI, GOOD, of_openai(-(10**9), "m", 1, 1, 1, 1)],
        [OPENAI, GOOD, of_openai(DAY, "m", "inf", 1, 1, 1)],
        [OPENAI, GOOD, of_openai(DAY, "m", 1, "1e999", 1, 1)],
        [OPENAI, GOOD, of_openai(DAY, "m" * 200_000, 1, 1, 1, 1)],
    ],
)
def test_a_line_that_cannot_be_read_is_named(lines: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="line 3 of"):
        invoices.read(lines)


def test_an_export_that_is_not_grouped_by_model_is_refused() -> None:
    for used in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        with pytest.raises(InvalidRequest, match="not grouped by model"):
            invoices.read([OPENAI, GOOD, of_openai(DAY, "", *used)])
    with pytest.raises(InvalidRequest, match="not grouped by model"):
        invoices.read([ANTHROPIC, "2026-01-01,,k,D,s,c,0,0,0,0,1,0,,\n"])


@pytest.mark.parametrize("version", ["", "-0613", "-20250929", "-2024-08-06", "-latest"])
def test_a_version_is_not_part_of_a_models_name(version: str) -> None:
    ((_, model),) = invoices.read([OPENAI, of_openai(DAY, f"gpt-4-32k{version}", 1, 1, 1, 1)]).counts
    assert model == "gpt-4-32k"


def test_a_line_that_ends_early_has_used_nothing() -> None:
    assert invoices.read([ANTHROPIC, "\n", "2026-01-01\n"]).counts == {}
