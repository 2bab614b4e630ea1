"""Parts: what a provider produced -> a stream's events, every part opened and closed.

Text, reasoning and refusal follow each other: a delta of one kind closes the part of another. Tool calls
stay open until the end, because providers may interleave the pieces of parallel calls.
"""

from collections.abc import Sequence

import msgspec

from millstream.answer import PROSE, OpenCall, OpenParts
from millstream.errors import UpstreamError, printable
from millstream.events import (
    Event,
    File,
    PartEvent,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
)
from millstream.ledger.rows import Reported
from millstream.providers import MAX_TOOL_CALLS, Finish, Produced, ToolCallPiece, UsageReport
from millstream.tokens import GrowingCount
from millstream.usage import Usage

_MAX_WORD = 64  # characters of a provider's finish reason that are kept
_MAX_RAW = 4096  # of its usage object


class Assembler:
    """Assembles one stream. Also keeps what the end of the stream needs to know about it."""

    def __init__(self) -> None:
        self.finish: Finish | None = None
        self.usage: Usage | None = None  # the provider's latest running count
        self.report: UsageReport | None = None  # and what it wrote of it
        self.usage_is_stale = False  # something came after it
        self.generated = GrowingCount()
        self.produced = 0  # events so far
        self._open = OpenParts()

    def feed(self, batch: Sequence[Produced]) -> list[Event]:
        """Raises ``UpstreamError`` where the provider numbers its tool calls as it may not."""
        events: list[Event] = []
        for item in batch:
            if isinstance(item, (TextDelta, ReasoningDelta, RefusalDelta)):
                kind = type(item)
                if kind is not self._open.prose:
                    events += self._open.end_prose()
                    self._open.prose = kind
                    events.append(PROSE[kind][0])
                self.generated.add(item.text)
                self.usage_is_stale = True
                events.append(item)
            elif isinstance(item, ToolCallPiece):
                self._call(item, events)
            elif isinstance(item, UsageReport):
                self.report = item
                self.usage = item.usage
                self.usage_is_stale = False
            elif isinstance(item, Usage):
                self.usage = item
                self.usage_is_stale = False
            elif isinstance(item, File):
                events += self._open.end_prose()
                events.append(item)
                self.usage_is_stale = True
            else:
                self.finish = item
        self.produced += len(events)
        return events

    @property
    def reported(self) -> Reported:
        """What the provider said, in its own words, as far as it can be kept."""
        # Printable: PostgreSQL takes no NUL in a text, and would refuse the settlement.
        word = printable(self.finish.word, most=_MAX_WORD // 2)[:_MAX_WORD] if self.finish is not None else ""
        if self.report is None:
            return Reported(word or None)
        try:
            raw = msgspec.json.encode(self.report.raw).decode()
        except (TypeError, ValueError, OverflowError, RecursionError):  # of a provider of somebody's own
            raw = ""
        return Reported(word or None, raw if 0 < len(raw) <= _MAX_RAW else None, self.report.cost)

    def close(self) -> list[PartEvent]:
        """The ends of all parts that are open, as the last events before the terminal one."""
        return self._open.end_all()

    def _call(self, piece: ToolCallPiece, events: list[Event]) -> None:
        if type(piece.index) is not int or not 0 <= piece.index < MAX_TOOL_CALLS:
            raise UpstreamError(f"the provider sent a tool call whose index is not 0 to {MAX_TOOL_CALLS - 1}")
        self.usage_is_stale = True
        extra = None
        call = self._open.calls.get(piece.index)
        if call is None:
            events += self._open.end_prose()
            call = self._open.calls[piece.index] = OpenCall(piece.call_id, piece.name, piece.extra_content)
            self.generated.add(piece.name)
            events.append(ToolCallStart(piece.index, piece.call_id, piece.name, piece.extra_content))
        elif extra := piece.extra_content:
            call.extra_content = extra
        if piece.arguments or extra:
            call.arguments.append(piece.arguments)
            self.generated.add(piece.arguments)
            events.append(ToolCallDelta(piece.index, call.call_id, piece.arguments, extra))
