"""Providers: a chat request -> batches of what a model produced.

A provider yields deltas and ends with one ``Finish``. It never opens or closes parts and never touches
the log, the ledger or a client: that is ``streams``, the same for all of them.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol, TypeAlias

from msgspec import Struct

from millstream.events import FinishReason, ReasoningDelta, RefusalDelta, TextDelta
from millstream.messages import ChatRequest
from millstream.usage import Usage

MAX_TOOL_CALLS = 1000  # of one answer: an index is less than that


class ToolCallPiece(Struct, frozen=True, gc=False):
    """A piece of a tool call. The first piece of an ``index`` has the call's id and name. An index is 0 to
    999; with any other one the provider has failed.
    """

    index: int
    arguments: str
    call_id: str = ""
    name: str = ""


class Finish(Struct, frozen=True, gc=False):
    """The answer is complete. ``usage`` is the provider's own, or None if it sent none."""

    reason: FinishReason
    usage: Usage | None


# A Usage on its own is the provider's running count.
Produced: TypeAlias = TextDelta | ReasoningDelta | RefusalDelta | ToolCallPiece | Usage | Finish


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
