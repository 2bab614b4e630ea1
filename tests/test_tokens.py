from typing import cast

import pytest
import tiktoken_ext.openai_public as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream import tokens
from millstream.prompt import Message, Text
from millstream.tokens import GrowingCount, Tokenizer

# Counts that OpenAI's cookbook states ("How to count tokens with tiktoken").
KNOWN = [
    ("cl100k_base", "tiktoken is great!", 6),
    ("o200k_base", "tiktoken is great!", 6),
    ("cl100k_base", "antidisestablishmentarianism", 6),
    ("o200k_base", "antidisestablishmentarianism", 6),
    ("cl100k_base", "2 + 2 = 4", 7),
    ("o200k_base", "2 + 2 = 4", 7),
    ("cl100k_base", "お誕生日おめでとう", 9),
    ("o200k_base", "お誕生日おめでとう", 8),
]


@pytest.mark.parametrize(("encoding", "text", "count"), KNOWN)
async def test_known_texts_have_their_known_counts(encoding: str, text: str, count: int) -> None:
    assert (await tokens.load(encoding)).count(text) == count


@pytest.mark.parametrize("encoding", ["o200k_base", "cl100k_base"])
def test_the_patterns_and_digests_are_those_of_tiktoken(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, str] = {}

    def load(address: str, expected_hash: str) -> dict[bytes, int]:
        asked["sha256"] = expected_hash
        return {}

    monkeypatch.setattr(reference, "load_tiktoken_bpe", load)
    assert getattr(reference, encoding)()["pat_str"] == tokens.PATTERN[encoding]
    assert asked["sha256"] == tokens.SHA256[encoding]


def test_a_damaged_rank_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tokens.SHA256, "o200k_base", "0" * 64)
    with pytest.raises(RuntimeError, match="damaged"):
        Tokenizer("o200k_base")


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4.1", "o200k_base"),
        ("gpt-5", "o200k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("openai/gpt-4", "cl100k_base"),
        ("llama-3.3", "o200k_base"),
    ],
)
def test_a_model_is_counted_with_its_vocabulary(model: str, encoding: str) -> None:
    assert tokens.encoding_for(model) == encoding


WORDS = st.sampled_from(
    [
        "the",
        "stream",
        "turns",
        "12",
        "3.14",
        "don't",
        "It's",
        "über",
        "straße",
        "東京",
        "日本語",
        "😀",
        "👩\u200d👩\u200d👧",
        "\n",
        "\n\n",
        "",
        "\t",
        "...",
        "--",
        "(a)",
        "x=1;",
        "'ll",
        "naïve",
        "é",
        "١٢٣",
        "foo_bar",
        "天气",
        "々。",
        "，好",
        "\n",
        "\n\nx",
        ");\n/",
    ]
)


@pytest.mark.parametrize("encoding", ["o200k_base", "cl100k_base"])
@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.one_of(WORDS, st.text(max_size=8)), max_size=400),
    space=st.booleans(),
    every=st.integers(1, 50),
)
def test_a_growing_text_has_the_count_of_the_whole(
    encoding: str, pieces: list[str], space: bool, every: int
) -> None:
    import asyncio

    async def go() -> None:
        tokenizer = await tokens.load(encoding)
        growing, whole = GrowingCount(), ""
        for i, piece in enumerate(pieces):
            piece = f"{piece} " if space else piece
            growing.add(piece)
            whole += piece
            if i % every == 0:
                assert await growing.total(tokenizer) == tokenizer.count(whole)
        assert await growing.total(tokenizer) == tokenizer.count(whole)

    asyncio.run(go())


async def test_what_was_counted_is_let_go() -> None:
    tokenizer = await tokens.load("o200k_base")
    growing = GrowingCount()
    for _ in range(100):
        growing.add("and so the wheel turns on " * 20)
        await growing.total(tokenizer)
        assert growing.open_characters < 100


@pytest.mark.parametrize(
    "piece",
    ["tok0 17, (x) ", "天气很好。我们去公园，好吗？", "a = b[0];\nreturn 1\n", "x" * 3000, "「はい」！"],
)
@pytest.mark.parametrize("encoding", ["o200k_base", "cl100k_base"])
async def test_whatever_is_written_little_is_counted_twice(encoding: str, piece: str) -> None:
    tokenizer = await tokens.load(encoding)
    growing, counted = GrowingCount(), 0
    count = tokenizer.count

    class Counting:
        def count(self, text: str) -> int:
            nonlocal counted
            counted += len(text)
            return count(text)

    for turn in range(100):
        growing.add(piece)
        total = await growing.total(cast("Tokenizer", Counting()))
        if turn % 20 == 0 and len(piece) < 100:
            assert total == count(piece * (turn + 1))
    assert counted < 100 * max(2 * len(piece) + 100, 20_000)


async def test_a_text_without_spaces_is_counted_in_bounded_time() -> None:
    tokenizer = await tokens.load("o200k_base")
    assert 0 < tokenizer.count("x" * 1_000_000) < 1_000_000


async def test_a_prompt_counts_what_stands_around_its_messages() -> None:
    tokenizer = await tokens.load("o200k_base")
    message = Message("user", (Text("tiktoken is great!"),))
    assert tokenizer.count_prompt([message]) == 3 + 3 + 1 + 6
    assert await tokens.count_prompt(tokenizer, [message] * 5000) == 3 + 5000 * 10
