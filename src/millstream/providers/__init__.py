"""Providers: a prompt -> batches of what a model produced.

A provider yields deltas and ends with one ``Finish``. It never numbers, opens or closes parts and never
touches the journal, the ledger or a client: that is ``streams``, the same for all of them.
"""

from collections.abc import AsyncGenerator, Sequence
from decimal import Decimal
from typing import Any, Protocol, TypeAlias, get_args

from msgspec import Struct

from millstream.events import (
    AnswerStart,
    Content,
    File,
    FinishReason,
    Reasoning,
    ReasoningDelta,
    RefusalDelta,
    Source,
    Text,
    TextDelta,
)
from millstream.prompt import Prompt
from millstream.usage import Usage

MAX_TOOL_CALLS = 1000  # of one answer: an index is less than that
MAX_PARTS = 2000  # of one answer: some dialects look at each of them again for every batch
MAX_CHOICES = 8  # answers to one prompt


class ToolCallPiece(Struct, frozen=True, gc=False, tag="tool-call-piece", omit_defaults=True):
    """A piece of a tool call. The first piece of an ``index`` has the call's id and name. In
    ``extra_content``, of any piece, is what the provider wants back with the call, ``extra`` what only its
    API knows of the piece. An index is 0 to 999; with any other one the provider has failed.
    """

    index: int
    arguments: str
    call_id: str = ""
    name: str = ""
    extra_content: dict[str, Any] | None = None
    extra: dict[str, Any] | None = None


class PartOpen(Struct, frozen=True, gc=False, tag="part-open"):
    """A part of prose begins, before a word of it. ``content`` is what is known of it at its start. Without,
    the first delta of another kind opens a part.
    """

    content: Text | Reasoning


class PartBreak(Struct, frozen=True, gc=False, tag="part-break", omit_defaults=True):
    """A part is whole: the tool call of that ``index``, or else what was said until now, so that whatever
    follows is a new part. ``content`` is what is known of the part at its end, such as its signature.
    """

    content: Content | None = None
    index: int | None = None


class UsageReport(Struct, frozen=True, gc=False, tag="usage-report", omit_defaults=True):
    """What the provider has counted until now: ``raw`` as it came, ``usage`` as it is understood here, and
    the provider's own price of it in US dollars, if it names one.
    """

    usage: Usage
    raw: dict[str, Any]
    cost: Decimal | None = None


class Finish(Struct, frozen=True, gc=False, tag="finish", omit_defaults=True):
    """The answer is complete. ``usage`` is the provider's own, or None if it sent none; ``word`` is the
    finish reason as the provider wrote it, ``stop_sequence`` the one that it met.
    """

    reason: FinishReason
    usage: Usage | None
    word: str = ""
    stop_sequence: str | None = None
    extra: dict[str, Any] | None = None


# Reasoning that is whole is what only its provider can read.
Said: TypeAlias = TextDelta | ReasoningDelta | RefusalDelta | ToolCallPiece | File | Source | Reasoning


SAID = get_args(Said)


class InChoice(Struct, frozen=True, gc=False, tag="in-choice"):
    """What belongs to an answer other than the first, where several were asked for: ``choice`` is 1 to 7."""

    choice: int
    item: Said | Finish


# A Usage on its own, or a report of it, is the provider's running count. The ``part`` of a delta is left 0.
Produced: TypeAlias = Said | AnswerStart | PartOpen | PartBreak | InChoice | Usage | UsageReport | Finish


class Provider(Protocol):
    """One may say in ``api`` whose fields of ``extra`` it sends, and in ``refused`` which of a prompt's it
    does not.
    """

    def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        """What ``model`` (the provider's own name for it) answers, one batch for each socket read.

        Raises ``ProviderError`` before the first batch or after any; a provider that ends without a
        ``Finish`` has failed. Closing the generator closes the connection to the provider at once.
        """

    async def models(self) -> list[str]:
        """The models that are ready. Raises ``ProviderError`` or ``ConfigurationError``: why none is."""

    async def close(self) -> None:
        """Gives up connections and processes."""
