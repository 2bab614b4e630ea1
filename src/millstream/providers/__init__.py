"""Providers: a chat request -> batches of what a model produced.

A provider yields deltas and ends with one ``Finish``. It never opens or closes parts and never touches
the journal, the ledger or a client: that is ``streams``, the same for all of them.
"""

from collections.abc import AsyncGenerator, Sequence
from decimal import Decimal
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from millstream.events import File, FinishReason, ReasoningDelta, RefusalDelta, TextDelta
from millstream.messages import ChatRequest
from millstream.usage import Usage

MAX_TOOL_CALLS = 1000  # of one answer: an index is less than that


class ToolCallPiece(Struct, frozen=True, gc=False):
    """A piece of a tool call. The first piece of an ``index`` has the call's id and name. In
    ``extra_content``, of any piece, is what the provider wants back with the call. An index is 0 to 999; with
    any other one the provider has failed.
    """

    index: int
    arguments: str
    call_id: str = ""
    name: str = ""
    extra_content: dict[str, Any] | None = None


class UsageReport(Struct, frozen=True, gc=False):
    """What the provider has counted until now: ``raw`` as it came, ``usage`` as it is understood here, and
    the provider's own price of it in US dollars, if it names one.
    """

    usage: Usage
    raw: dict[str, Any]
    cost: Decimal | None = None


class Finish(Struct, frozen=True, gc=False):
    """The answer is complete. ``usage`` is the provider's own, or None if it sent none; ``word`` is the
    finish reason as the provider wrote it.
    """

    reason: FinishReason
    usage: Usage | None
    word: str = ""


# A Usage on its own, or a report of it, is the provider's running count.
Produced: TypeAlias = (
    TextDelta | ReasoningDelta | RefusalDelta | File | ToolCallPiece | Usage | UsageReport | Finish
)


class Provider(Protocol):
    def stream(self, request: ChatRequest, model: str) -> AsyncGenerator[Sequence[Produced]]:
        """What ``model`` (the provider's own name for it) answers, one batch for each socket read.

        Raises ``ProviderError`` before the first batch or after any; a provider that ends without a
        ``Finish`` has failed. Closing the generator closes the connection to the provider at once.
        """

    async def models(self) -> list[str]:
        """The models that are ready. Raises ``ProviderError`` or ``ConfigurationError``: why none is."""

    async def close(self) -> None:
        """Gives up connections and processes."""
