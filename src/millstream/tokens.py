"""Counting tokens: text -> how many tokens a model made of it.

OpenAI's two vocabularies ship with this package (``ranks/``). A model whose own vocabulary we do not have
is counted with ``o200k_base``, which is an estimate; the ledger says ``counted`` either way.
"""

import asyncio
import gzip
import hashlib
import re
import threading
from base64 import b64decode
from collections.abc import Iterable, Sequence
from importlib.resources import files

import tiktoken

from millstream.prompt import Message

DEFAULT_ENCODING = "o200k_base"

# Digests, patterns and special tokens are tiktoken's own (tiktoken_ext/openai_public.py).
SHA256 = {
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = {
    "o200k_base": "|".join(
        [
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _CONTRACTION,
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _CONTRACTION,
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        ]
    ),
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
}

# What the chat format adds around the messages of a prompt (OpenAI cookbook, "How to count tokens").
_TOKENS_PER_MESSAGE = 3
_TOKENS_PER_PROMPT = 3

# A run of one kind of character is one piece to the tokenizer, and merging a piece is quadratic in its
# length. Longer texts are therefore counted in slices; each cut can be off by a token.
_SLICE = 50_000


def encoding_for(model: str) -> str:
    """The name of the vocabulary that counts for ``model``."""
    name = model.rpartition("/")[2]
    if name.startswith(("gpt-4o", "gpt-4.1", "gpt-4.5")):
        return DEFAULT_ENCODING
    if name.startswith(("gpt-4", "gpt-3.5", "text-embedding-3")):
        return "cl100k_base"
    return DEFAULT_ENCODING


class Tokenizer:
    """Counts with one vocabulary. Building one takes half a second: see ``load``."""

    def __init__(self, encoding: str) -> None:
        packed = files("millstream").joinpath("ranks", f"{encoding}.tiktoken.gz").read_bytes()
        ranks = gzip.decompress(packed)
        if hashlib.sha256(ranks).hexdigest() != SHA256[encoding]:
            raise RuntimeError(f"{encoding}: the rank file is damaged; install the package again")
        lines = (line.split() for line in ranks.splitlines())
        self._encoding = tiktoken.Encoding(
            encoding,
            pat_str=PATTERN[encoding],
            mergeable_ranks={b64decode(token): int(rank) for token, rank in lines},
            special_tokens={},
        )

    def count(self, text: str) -> int:
        """Tokens of ``text``; special tokens in it count as the plain text they are."""
        return sum(
            len(self._encoding.encode_ordinary(text[start : start + _SLICE]))
            for start in range(0, len(text), _SLICE)
        )

    def count_prompt(self, messages: Iterable[Message]) -> int:
        """Tokens of a prompt, without images and tool definitions, which no text formula covers."""
        total = _TOKENS_PER_PROMPT
        for message in messages:
            total += _TOKENS_PER_MESSAGE + self.count(message.role) + self.count(message.text)
            if message.name is not None:
                total += 1 + self.count(message.name)
            for call in message.tool_calls:
                total += self.count(call.name) + self.count(call.arguments)
        return total


_loaded: dict[str, Tokenizer] = {}
_loading = threading.Lock()


def _load(encoding: str) -> Tokenizer:
    with _loading:
        if encoding not in _loaded:
            _loaded[encoding] = Tokenizer(encoding)
        return _loaded[encoding]


async def load(encoding: str) -> Tokenizer:
    """The tokenizer of ``encoding``, built once a worker, in a thread."""
    loaded = _loaded.get(encoding)
    return loaded if loaded is not None else await asyncio.to_thread(_load, encoding)


# Characters that are counted in a few milliseconds. More of them leave the event loop.
_INLINE = 20_000


async def count_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> int:
    """``Tokenizer.count_prompt``, in a thread where it would hold up the event loop."""
    length = sum(
        len(message.text) + sum(len(call.arguments) for call in message.tool_calls) for message in messages
    )
    if length <= _INLINE:
        return tokenizer.count_prompt(messages)
    return await asyncio.to_thread(tokenizer.count_prompt, messages)


# Where the patterns of both vocabularies always split: before a space, behind a line's end, and before the
# punctuation of scripts that are written without spaces.
_SEAM = re.compile(
    r"(?<=\S) |(?<=\n)(?=[^\W_])|(?<=[^\W\d_])(?=[\u3001-\u3003\u3008-\u3011\uff01-\uff0f\uff1a-\uff20])"
)
_NEAR = 400  # characters, in which there mostly is one


class GrowingCount:
    """Tokens of a text that grows, without counting it again from the start each time.

    Text up to a place where the vocabulary's pattern always splits is counted once and let go: the
    tokens of the parts on both sides of such a place add up to those of the whole. Kept small by that,
    the open rest is counted anew at every ``total``. A long text without such a place is cut all the
    same, and can be off by a token there.
    """

    __slots__ = (
        "_counted",
        "_lock",
        "_pieces",
    )

    _KEEP = 32  # characters that stay open, so that a boundary never lies at the very edge

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._counted = 0
        self._lock = asyncio.Lock()

    @property
    def open_characters(self) -> int:
        """How many would be counted anew."""
        return sum(map(len, self._pieces))

    def add(self, text: str) -> None:
        self._pieces.append(text)

    async def total(self, tokenizer: Tokenizer) -> int:
        """Tokens of all that was added before the call."""
        async with self._lock:
            taken = len(self._pieces)
            text = "".join(self._pieces)
            if len(text) <= _INLINE:
                done, rest, open_tokens = self._count(tokenizer, text)
            else:
                done, rest, open_tokens = await asyncio.to_thread(self._count, tokenizer, text)
            self._counted += done
            self._pieces[:taken] = [rest]
            return self._counted + open_tokens

    def _count(self, tokenizer: Tokenizer, text: str) -> tuple[int, str, int]:
        before = len(text) - self._KEEP
        cut = _seam(text, before) or (before if before > _INLINE else 0)
        done = tokenizer.count(text[:cut])
        return done, text[cut:], tokenizer.count(text[cut:])


def _seam(text: str, before: int) -> int:
    """The last place up to ``before`` where every vocabulary begins a new piece, or 0."""
    for start in (max(0, before - _NEAR), 0):
        found = [match.start() for match in _SEAM.finditer(text, start, max(before + 1, 0))]
        if found:
            return found[-1]
    return 0
