"""Parts: what a provider produced -> a stream's events, every part opened and closed.

Text, reasoning and refusal follow each other: a delta of one kind closes the part of another. Tool calls
stay open until the end, because providers may interleave the pieces of parallel calls.
"""

from collections.abc import Sequence

from millstream.events import (
    Event,
    PartEvent,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    RefusalDelta,
    RefusalEnd,
    RefusalStart,
    TextDelta,
    TextEnd,
    TextStart,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)
from millstream.providers import Finish, Produced, ToolCallPiece
from millstream.tokens import GrowingCount

_PROSE: dict[type[Event], tuple[PartEvent, PartEvent]] = {
    TextDelta: (TextStart(), TextEnd()),
    ReasoningDelta: (ReasoningStart(), ReasoningEnd()),
    RefusalDelta: (RefusalStart(), RefusalEnd()),
}


class _OpenCall:
    def __init__(self, call_id: str, name: str) -> None:
        self.call_id = call_id
        self.name = name
        self.arguments: list[str] = []


class Assembler:
    """Assembles one stream. Also keeps what the end of the stream needs to know about it."""

    def __init__(self) -> None:
        self.finish: Finish | None = None
        self.usage: Usage | None = None  # the provider's latest running count
        self.usage_is_stale = False  # something came after it
        self.generated = GrowingCount()
        self._open: type[TextDelta | ReasoningDelta | RefusalDelta] | None = None
        self._calls: dict[int, _OpenCall] = {}

    def feed(self, batch: Sequence[Produced]) -> list[Event]:
        events: list[Event] = []
        for item in batch:
            if isinstance(item, (TextDelta, ReasoningDelta, RefusalDelta)):
                kind = type(item)
                if kind is not self._open:
                    self._close_prose(events)
                    self._open = kind
                    events.append(_PROSE[kind][0])
                self.generated.add(item.text)
                self.usage_is_stale = True
                events.append(item)
            elif isinstance(item, ToolCallPiece):
                self._call(item, events)
            elif isinstance(item, Usage):
                self.usage = item
                self.usage_is_stale = False
            else:
                self.finish = item
        return events

    def close(self) -> list[PartEvent]:
        """The ends of all parts that are open, as the last events before the terminal one."""
        events: list[PartEvent] = []
        self._close_prose(events)
        for index, call in self._calls.items():
            events.append(ToolCallEnd(index, call.call_id, call.name, "".join(call.arguments)))
        self._calls = {}
        return events

    def _close_prose(self, events: list[PartEvent] | list[Event]) -> None:
        if self._open is not None:
            events.append(_PROSE[self._open][1])
            self._open = None

    def _call(self, piece: ToolCallPiece, events: list[Event]) -> None:
        self.usage_is_stale = True
        call = self._calls.get(piece.index)
        if call is None:
            self._close_prose(events)
            call = self._calls[piece.index] = _OpenCall(piece.call_id, piece.name)
            self.generated.add(piece.name)
            events.append(ToolCallStart(piece.index, piece.call_id, piece.name))
        if piece.arguments:
            call.arguments.append(piece.arguments)
            self.generated.add(piece.arguments)
            events.append(ToolCallDelta(piece.index, call.call_id, piece.arguments))
