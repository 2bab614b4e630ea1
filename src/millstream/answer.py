"""The answer: a stream's events, whole.

One piece of code knows how events make parts: it collects the answer that is not streamed, and it closes the
parts that a stream leaves open, whoever ends it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from millstream.events import (
    Event,
    File,
    PartEnd,
    PartEvent,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    RefusalDelta,
    RefusalEnd,
    RefusalStart,
    StreamEnd,
    StreamFailed,
    Terminal,
    TextDelta,
    TextEnd,
    TextStart,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)

Prose: TypeAlias = type[TextDelta | ReasoningDelta | RefusalDelta]

# The kinds of prose, of which at most one part is open at a time: how each starts and ends.
PROSE: dict[Prose, tuple[PartEvent, PartEnd]] = {
    TextDelta: (TextStart(), TextEnd()),
    ReasoningDelta: (ReasoningStart(), ReasoningEnd()),
    RefusalDelta: (RefusalStart(), RefusalEnd()),
}
_STARTED: dict[type[Event], Prose] = {type(start): kind for kind, (start, _) in PROSE.items()}


class OpenCall:
    """A tool call that has started, with the pieces of its arguments."""

    __slots__ = ("arguments", "call_id", "extra_content", "name")

    def __init__(self, call_id: str, name: str, extra_content: dict[str, Any] | None = None) -> None:
        self.call_id = call_id
        self.name = name
        self.extra_content = extra_content
        self.arguments: list[str] = []


class OpenParts:
    """The parts that have started and not ended: one of prose, and any number of tool calls by index."""

    __slots__ = ("calls", "prose")

    def __init__(self) -> None:
        self.prose: Prose | None = None
        self.calls: dict[int, OpenCall] = {}

    def add(self, event: Event) -> None:
        """Takes note of the next event of the stream."""
        match event:
            case TextStart() | ReasoningStart() | RefusalStart():
                self.prose = _STARTED[type(event)]
            case TextEnd() | ReasoningEnd() | RefusalEnd():
                self.prose = None
            case ToolCallStart():
                self.calls[event.index] = OpenCall(event.call_id, event.name, event.extra_content)
            case ToolCallDelta():
                call = self.calls[event.index]
                call.arguments.append(event.arguments)
                call.extra_content = event.extra_content or call.extra_content
            case ToolCallEnd():
                del self.calls[event.index]
            case _:
                pass

    def end_prose(self) -> list[PartEvent]:
        """Ends the open part of prose, if there is one."""
        if self.prose is None:
            return []
        end = PROSE[self.prose][1]
        self.prose = None
        return [end]

    def end_all(self) -> list[PartEvent]:
        """Ends every open part: the last events before the terminal one."""
        events = self.end_prose()
        for index, call in self.calls.items():
            arguments = "".join(call.arguments)
            events.append(ToolCallEnd(index, call.call_id, call.name, arguments, call.extra_content))
        self.calls = {}
        return events


def ends_of_open_parts(events: Iterable[Event]) -> list[PartEvent]:
    """The ends of the parts that ``events`` have left open."""
    parts = OpenParts()
    for event in events:
        parts.add(event)
    return parts.end_all()


class Answer:
    """What the events of a stream make together. ``terminal`` is None until the stream has ended."""

    def __init__(self) -> None:
        self.tool_calls: list[ToolCallEnd] = []
        self.files: list[File] = []
        self.terminal: Terminal | None = None
        self._prose: dict[Prose, list[str]] = {kind: [] for kind in PROSE}

    def add(self, events: Sequence[Event]) -> None:
        """Takes the events that follow."""
        for event in events:
            match event:
                case TextDelta() | ReasoningDelta() | RefusalDelta():
                    self._prose[type(event)].append(event.text)
                case ToolCallEnd():
                    self.tool_calls.append(event)
                case File():
                    self.files.append(event)
                case StreamEnd() | StreamFailed():
                    self.terminal = event
                case _:
                    pass

    @property
    def text(self) -> str:
        return "".join(self._prose[TextDelta])

    @property
    def reasoning(self) -> str:
        return "".join(self._prose[ReasoningDelta])

    @property
    def refusal(self) -> str:
        return "".join(self._prose[RefusalDelta])
