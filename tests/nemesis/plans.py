"""Plans: a seed -> what every stream says, what every client does, and which faults come.

A plan is made of the seed and a name alone, so the same seed makes the same plans. When things happen beside each
other is up to the machine: a replay has the same plans, not the same schedule.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, TypeAlias

from millstream.tokens import DEFAULT_ENCODING, Tokenizer

Ending: TypeAlias = Literal["stop", "length", "cut", "error", "silence", "refused"]
Counting: TypeAlias = Literal["final", "missing", "running", "sparse"]
Kind: TypeAlias = Literal[
    "reader",
    "leaver",
    "dropper",
    "canceller",
    "second",
    "slow",
    "whole",
    "repeater",
    "ticket",
    "foreigner",
    "junk",
]
SetUp: TypeAlias = Literal["single", "fleet"]

# What nobody may find in a log line, an error or a trace (I9).
CANARY_ANSWER = "zyxomma"
CANARY_PROMPT = "canaryprompt"
CANARY_PROVIDER = "canaryprovider"
PROVIDER_KEY = "sk-canary-key-of-the-provider"

# Each begins with a space and a letter, where the vocabulary always splits: their counts add up.
WORDS = (
    " river stone lamp größe naïve window seven 日本 paper moon garden house yellow tide"
    f" engine quiet copper letter winter {CANARY_ANSWER} harbour feather candle bridge étude"
).split(" ")[1:]

SPARSE = 3  # every third chunk has a running count
PRICE_IN, PRICE_OUT = 1_250_000, 10_000_000  # picodollars a token
MODEL = "m"

_tokenizer = Tokenizer(DEFAULT_ENCODING)


def count(text: str) -> int:
    """Tokens of a text."""
    return _tokenizer.count(text)


_COUNTS = {f" {word}": count(f" {word}") for word in WORDS}


def prompt_of(marker: str) -> str:
    return f"{CANARY_PROMPT} {marker}"


def count_prompt(marker: str) -> int:
    """As OpenAI's cookbook counts a prompt of one message."""
    return 3 + 3 + count("user") + count(prompt_of(marker))


@dataclass(frozen=True)
class StreamPlan:
    """What the provider does with one request. ``tokens[k]`` are the tokens of the first ``k`` chunks."""

    marker: str
    chunks: tuple[str, ...]
    tokens: tuple[int, ...]
    ending: Ending
    counting: Counting
    pace: float = 0.0
    first_pause: float = 0.0
    status: int = 200
    prompt_tokens: int = 0
    hidden: int = 0  # tokens that it says it made beside the text, so that its count is told from ours
    slices: bool = False  # events are written in two pieces, cut anywhere

    @property
    def text(self) -> str:
        return "".join(self.chunks)

    @property
    def completes(self) -> bool:
        return self.ending in ("stop", "length")

    def prefix(self, chunks: int) -> str:
        return "".join(self.chunks[:chunks])

    def chunks_in(self, text: str) -> int:
        """How many whole chunks a prefix of the text has."""
        length = 0
        for number, chunk in enumerate(self.chunks):
            length += len(chunk)
            if length > len(text):
                return number
        return len(self.chunks)

    def running_count_after(self, chunk: int) -> bool:
        """Whether the ``chunk``-th chunk, from 1 on, says what was used so far."""
        return self.counting == "running" or (self.counting == "sparse" and chunk % SPARSE == 0)


@dataclass(frozen=True)
class ClientPlan:
    number: int
    at: float
    kind: Kind
    policy: str | dict[str, float]
    worker: int
    patience: float = 0.0  # how long it stays, where it leaves or stops something
    cuts: tuple[int, ...] = ()  # frames after which it drops its connection


@dataclass(frozen=True)
class FaultPlan:
    at: float
    name: str
    target: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    seed: int
    set_up: SetUp
    seconds: float
    clients: tuple[ClientPlan, ...]
    faults: tuple[FaultPlan, ...] = field(default=())


def stream_plan(seed: int, marker: str) -> StreamPlan:
    """What the provider does with the request that has the marker."""
    chance = random.Random(f"{seed}/{marker}")
    size = chance.choice((1, 1, 2, 3, 5))
    many = chance.choice((3, 12, 30, 60, 90))
    chunks = tuple(
        "".join(f" {chance.choice(WORDS)}" for _ in range(chance.randint(1, size)))
        for _ in range(chance.randint(1, many))
    )
    ending: Ending = chance.choices(
        ("stop", "length", "cut", "error", "silence", "refused"), (64, 8, 8, 6, 6, 8)
    )[0]
    if ending in ("cut", "error", "silence"):
        chunks = chunks[: chance.randint(0, len(chunks))]
    if ending == "refused":
        chunks = ()
    return StreamPlan(
        marker=marker,
        chunks=chunks,
        tokens=tuple(accumulate((_tokens(chunk) for chunk in chunks), initial=0)),
        ending=ending,
        counting=chance.choices(("final", "missing", "running", "sparse"), (40, 25, 20, 15))[0],
        pace=chance.choices((0.0, 0.01, 0.05, 0.15), (20, 35, 35, 10))[0],
        first_pause=chance.choices((0.0, 0.05, 0.8), (60, 35, 5))[0],
        status=chance.choice((429, 500, 503)) if ending == "refused" else 200,
        prompt_tokens=chance.randint(5, 400),
        hidden=chance.randint(1, 300),
        slices=chance.random() < 0.2,
    )


def _tokens(chunk: str) -> int:
    return sum(_COUNTS[f" {word}"] for word in chunk.split(" ")[1:])


_KINDS: dict[Kind, int] = {
    "reader": 26,
    "leaver": 14,
    "dropper": 16,
    "canceller": 10,
    "second": 8,
    "slow": 4,
    "whole": 6,
    "repeater": 7,
    "ticket": 4,
    "foreigner": 3,
    "junk": 2,
}


def client_plans(seed: int, streams: int, seconds: float, workers: int) -> tuple[ClientPlan, ...]:
    chance = random.Random(f"{seed}/clients")
    kinds: Sequence[Kind] = list(_KINDS)
    plans: list[ClientPlan] = []
    for number, at in enumerate(sorted(chance.uniform(0, seconds) for _ in range(streams))):
        kind = chance.choices(kinds, list(_KINDS.values()))[0]
        grace = {"grace_seconds": 20.0}
        policy: str | dict[str, float] = chance.choice((grace, grace, "cancel", "continue"))
        if kind in ("dropper", "ticket", "repeater"):
            policy = chance.choice((grace, "continue"))
        elif kind == "leaver":
            policy = chance.choice(("cancel", "cancel", {"grace_seconds": 1.0}, "continue"))
        plans.append(
            ClientPlan(
                number=number,
                at=at,
                kind=kind,
                policy=policy,
                worker=chance.randrange(workers),
                patience=chance.choice((0.0, 0.1, 0.5, 1.5)) * chance.random(),
                cuts=tuple(chance.randint(1, 25) for _ in range(chance.randint(1, 4))),
            )
        )
    return tuple(plans)


def fault_plans(
    seed: int, faults: int, seconds: float, workers: int, names: Sequence[str], weights: Sequence[int]
) -> tuple[FaultPlan, ...]:
    chance = random.Random(f"{seed}/faults")
    if not names:
        return ()
    moments = [(0.06 + 0.84 * (number + chance.random()) / faults) * seconds for number in range(faults)]
    return tuple(
        FaultPlan(at, chance.choices(names, weights)[0], chance.randrange(workers), chance.uniform(0.3, 7.0))
        for at in moments
    )
