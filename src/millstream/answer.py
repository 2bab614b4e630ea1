"""The answer: a stream's events, whole.

One piece of code knows how events make parts: it collects the answer that is not streamed, it tells dialects
what came before a batch, and it closes the parts that a stream leaves open, whoever ends it.
"""

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from millstream.events import (
    BLANK_LINE,
    AnswerStart,
    ChoiceEnd,
    Content,
    Event,
    File,
    FinishReason,
    PartEnd,
    PartEvent,
    PartStart,
    Reasoning,
    ReasoningDelta,
    Refusal,
    RefusalDelta,
    StreamEnd,
    StreamFailed,
    Terminal,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    WholePart,
)

Prose: TypeAlias = type[TextDelta | ReasoningDelta | RefusalDelta]

# The kinds of prose, of which at most one part of a choice is open at a time: how each starts.
PROSE: dict[Prose, Content] = {TextDelta: Text(), ReasoningDelta: Reasoning(), RefusalDelta: Refusal()}


class Part:
    """A part and what has come of it. ``content`` is the latest word on what it is; ``whole`` is whether it
    came in one event, ``apart`` whether it is a thought that its provider has apart from those before it.
    """

    __slots__ = ("apart", "choice", "content", "cut", "ended", "extras", "number", "pieces", "whole")

    def __init__(self, number: int, content: Content, choice: int = 0, *, whole: bool = False) -> None:
        self.number = number
        self.content = content
        self.choice = choice
        self.ended = self.whole = whole
        self.cut = False  # the answer broke off in it
        self.apart = False
        self.pieces: list[str] = []
        self.extras: list[dict[str, Any]] = []  # of its deltas

    @property
    def text(self) -> str:
        """Its words, or the arguments of a tool call, so far."""
        return "".join(self.pieces)

    def end(self, *, cut: bool = False) -> PartEnd:
        """The event that ends it, with its content whole."""
        self.ended, self.cut = True, cut
        if isinstance(self.content, ToolCall):
            self.content = msgspec.structs.replace(self.content, arguments=self.text)
        return PartEnd(self.number, self.content, self.choice, cut)


class Answer:
    """What the events of a stream make together. ``terminal`` is None until the stream has ended."""

    def __init__(self) -> None:
        self.start: AnswerStart | None = None
        self.parts: list[Part] = []  # by number
        self.ends: dict[int, FinishReason] = {}  # of choices other than the first
        self.terminal: Terminal | None = None
        self._events = 0  # that were added
        self._kept: dict[str, tuple[int, Any]] = {}

    def keep(self, name: str, value: Any, following: int) -> None:
        """Keeps what a dialect has worked out of the events so far and of so many ``following`` ones, so that
        it need not look at all of them again for the batch after those.
        """
        self._kept[name] = (self._events + following, value)

    def kept(self, name: str) -> Any:
        """What was kept of just these events; None where nothing was."""
        events, value = self._kept.get(name, (-1, None))
        return value if events == self._events else None

    def add(self, events: Sequence[Event]) -> None:
        """Takes the events that follow."""
        self._events += len(events)
        parts = self.parts
        for event in events:
            match event:
                case TextDelta() | ReasoningDelta() | RefusalDelta():
                    part = parts[event.part]
                    part.pieces.append(event.text)
                    if event.extra is not None:
                        part.extras.append(event.extra)
                    if isinstance(event, ReasoningDelta) and event.apart:
                        part.apart = True
                case PartStart():
                    parts.append(Part(event.part, event.content, event.choice))
                case PartEnd():
                    part = parts[event.part]
                    part.content, part.ended, part.cut = event.content, True, event.cut
                case ToolCallDelta():
                    part = parts[event.part]
                    part.pieces.append(event.arguments)
                    if event.extra is not None:
                        part.extras.append(event.extra)
                    if event.extra_content:
                        part.content = msgspec.structs.replace(
                            part.content, extra_content=event.extra_content
                        )
                case WholePart():
                    parts.append(Part(event.part, event.content, event.choice, whole=True))
                case AnswerStart():
                    self.start = event
                case ChoiceEnd():
                    self.ends[event.choice] = event.finish_reason
                case StreamEnd() | StreamFailed():
                    self.terminal = event
                case _:
                    pass

    def of(self, choice: int) -> list[Part]:
        """The parts of one of the answers that were asked for."""
        return [part for part in self.parts if part.choice == choice]

    def text_of(self, kind: type[Content], choice: int = 0) -> str:
        """The words of all its parts of that kind, a blank line before thoughts that are apart."""
        parts = [part for part in self.of(choice) if isinstance(part.content, kind)]
        return "".join(f"{BLANK_LINE}{part.text}" if part.apart else part.text for part in parts)

    @property
    def text(self) -> str:
        return self.text_of(Text)

    @property
    def reasoning(self) -> str:
        return self.text_of(Reasoning)

    @property
    def refusal(self) -> str:
        return self.text_of(Refusal)

    @property
    def tool_calls(self) -> list[ToolCall]:
        return self.tool_calls_of(0)

    def tool_calls_of(self, choice: int) -> list[ToolCall]:
        """Those that have ended."""
        return [part.content for part in self.of(choice) if isinstance(part.content, ToolCall) and part.ended]

    @property
    def files(self) -> list[File]:
        return [part.content for part in self.of(0) if isinstance(part.content, File)]


class Fold:
    """The answer so far, added up when somebody asks for it."""

    def __init__(self) -> None:
        self._answer = Answer()
        self._due: list[Sequence[Event]] = []

    def add(self, events: Sequence[Event]) -> None:
        """Takes the events that follow."""
        self._due.append(events)

    def __call__(self) -> Answer:
        for events in self._due:
            self._answer.add(events)
        self._due.clear()
        return self._answer


def ends_of_open_parts(events: Sequence[Event]) -> list[PartEvent]:
    """The ends of the parts that ``events`` have left open: the last ones before a terminal event."""
    answer = Answer()
    answer.add(events)
    return [part.end(cut=True) for part in answer.parts if not part.ended]


def arguments_of(text: str, *, cut: bool = False) -> Any:
    """What the arguments of a call say, which may be any JSON. Raises ``ValueError`` where they are not
    whole, or are what nobody can write again (half a character, too deep).
    """
    if not text.strip():
        if cut:
            raise ValueError("the answer broke off before them")
        return {}
    try:
        value = json.loads(text)
        msgspec.json.encode(value)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return value


def input_of(call: ToolCall, *, cut: bool) -> dict[str, Any] | None:
    """What a call gives its tool, where clients want an object of it; None where that cannot be had."""
    try:
        value = arguments_of(call.arguments, cut=cut)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
