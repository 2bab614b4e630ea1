"""Parts: what a provider produced -> a stream's events, every part numbered, opened and closed.

Text, reasoning and refusal of a choice follow each other: a delta of one kind closes the part of another.
Tool calls stay open until their provider says that they are whole, or until the end, because providers may
interleave the pieces of parallel calls.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import get_args

import msgspec

from millstream.answer import PROSE, Part, Prose
from millstream.errors import UpstreamError, printable
from millstream.events import (
    AnswerStart,
    ChoiceEnd,
    Content,
    Event,
    File,
    FinishReason,
    PartEnd,
    PartStart,
    Reasoning,
    ReasoningDelta,
    RefusalDelta,
    Source,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    WholePart,
)
from millstream.ledger.rows import Reported, without_costs
from millstream.providers import (
    MAX_CHOICES,
    MAX_PARTS,
    MAX_TOOL_CALLS,
    Finish,
    InChoice,
    PartBreak,
    PartOpen,
    Produced,
    ToolCallPiece,
    UsageReport,
)
from millstream.tokens import GrowingCount
from millstream.usage import MAX_DOLLARS, TOKEN_KINDS, Usage

_MAX_WORD = 64  # characters of a provider's finish reason that are kept
_MAX_RAW = 4096  # of its usage object
_MAX_TOKENS = 10**8  # of any kind: no answer has as many, and every database adds up what they cost
_REASONS = get_args(FinishReason)
_USUAL_TIERS = ("", "auto", "default", "on_demand", "standard")


class _Choice:
    """One of the answers: its open part of prose, and its open tool calls by index. ``thinks_anew`` is
    whether what it thinks next is another thought, as its provider says.
    """

    __slots__ = ("calls", "ended", "has_thought", "prose", "prose_kind", "thinks_anew")

    def __init__(self) -> None:
        self.prose: Part | None = None
        self.prose_kind: Prose | None = None
        self.calls: dict[int, Part] = {}
        self.ended = False
        self.has_thought = False
        self.thinks_anew = False

    def is_apart(self, delta: ReasoningDelta) -> bool:
        """Whether ``delta`` begins a thought behind others."""
        if not delta.text:
            return False
        apart = self.has_thought and self.thinks_anew
        self.has_thought, self.thinks_anew = True, False
        return apart


def _checked(usage: Usage) -> Usage:
    """Raises ``TypeError`` for what is no usage, or has a count that cannot be one: it would be a bill."""
    counts = [getattr(usage, kind, None) for kind in TOKEN_KINDS]
    if not all(isinstance(count, int) and 0 <= count <= _MAX_TOKENS for count in counts):
        raise TypeError("a provider counted what are no tokens")
    return usage


def _check_cost(dollars: Decimal | None) -> None:
    """Raises ``TypeError`` for what no answer costs."""
    is_sum = isinstance(dollars, Decimal) and dollars.is_finite() and 0 <= dollars <= MAX_DOLLARS
    if dollars is not None and not is_sum:
        raise TypeError("a provider named a price that is none")


class Assembler:
    """Assembles one stream. Also keeps what the end of the stream needs to know about it."""

    __slots__ = (
        "_first",
        "_others",
        "_parts",
        "_said_tier",
        "_start_of_answer",
        "_unended",
        "fault",
        "finish",
        "generated",
        "hides_costs",
        "produced",
        "report",
        "usage",
        "usage_is_stale",
    )

    def __init__(self) -> None:
        self.fault: UpstreamError | None = None  # what the provider did that it may not
        self.finish: Finish | None = None
        self.usage: Usage | None = None  # the provider's latest running count
        self.report: UsageReport | None = None  # and what it wrote of it
        self.usage_is_stale = False  # something came after it
        self._said_tier: object = None
        self.hides_costs = False  # of the provider, in what it says of its answer as a whole
        self.generated = GrowingCount()
        self.produced = 0  # events so far
        self._parts = 0  # the number of the next one
        self._start_of_answer: AnswerStart | None = None  # until the first part, with which it goes out
        self._first = _Choice()
        self._others: dict[int, _Choice] = {}  # the answers behind the first one
        self._unended: list[PartEnd | ChoiceEnd] = []  # the ends of what began, which nobody has seen

    def feed(self, batch: Sequence[Produced]) -> list[Event]:
        """What the batch says, up to the ``fault`` in it: the provider numbers tool calls or choices as it
        may not, or has too many parts.
        """
        events: list[Event] = []
        try:
            self._feed(batch, events)
        except UpstreamError as error:
            self.fault = error
        self.produced += len(events)
        return events

    def _feed(self, batch: Sequence[Produced], events: list[Event]) -> None:
        first, generated = self._first, self.generated
        for item in batch:
            if isinstance(item, (TextDelta, ReasoningDelta, RefusalDelta)):
                # Nearly everything is one more piece of the open text, which mostly is the first part.
                prose = first.prose
                if type(item) is first.prose_kind is TextDelta and prose is not None and prose.number == 0:
                    generated.add(item.text)
                    self.usage_is_stale = True
                    events.append(item)
                else:
                    self._prose(first, 0, item, events)
            elif isinstance(item, ToolCallPiece):
                self._call(self._first, 0, item, events)
            elif isinstance(item, UsageReport):
                self.usage = _checked(item.usage)
                _check_cost(item.cost)
                self.report = item
                self.usage_is_stale = False
            elif isinstance(item, Usage):
                self.usage = _checked(item)
                self.usage_is_stale = False
            elif isinstance(item, (File, Source, Reasoning)):
                self._whole(self._first, 0, item, events)
            elif isinstance(item, PartBreak):
                self._break(self._first, item, events)
            elif isinstance(item, PartOpen):
                self._open(self._first, item.content, events)
            elif isinstance(item, AnswerStart):
                self._start_of_answer = item
                self._said_tier = (item.extra or {}).get("service_tier")
            elif isinstance(item, InChoice):
                self._in_choice(item, events)
            elif isinstance(item, Finish) and item.reason in _REASONS:
                if item.usage is not None:
                    _checked(item.usage)
                self.finish = item
            else:
                raise TypeError(f"a provider yielded {type(item).__name__}")

    def disown_end(self) -> None:
        """Forgets what the provider has said of its end, and what it counted."""
        self.finish = self.report = self.usage = None

    def lost(self, events: Sequence[Event]) -> None:
        """Nobody will see these events, which came last: what began in them need not be ended, and what ended
        in them has still to be.
        """
        begun = {event.part for event in events if isinstance(event, (PartStart, WholePart))}
        for choice in (self._first, *self._others.values()):
            if choice.prose is not None and choice.prose.number in begun:
                choice.prose = choice.prose_kind = None
            choice.calls = {index: call for index, call in choice.calls.items() if call.number not in begun}
        self._unended += [
            event
            for event in events
            if isinstance(event, ChoiceEnd) or (isinstance(event, PartEnd) and event.part not in begun)
        ]

    @property
    def tier(self) -> str | None:
        """The service tier that the provider says it answers in; None is what it usually does."""
        raw = {} if self.report is None else self.report.raw
        for said in (raw.get("service_tier"), raw.get("speed"), self._said_tier):
            if isinstance(said, str) and said.lower() not in _USUAL_TIERS:
                return said.lower()[:_MAX_WORD]
        return None

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

    def close(self, *, cut: bool = False) -> list[Event]:
        """The ends of all parts that are open, as the last events before the terminal one. ``cut`` is whether
        the answer broke off.
        """
        ends: list[Event] = []
        self._begin(ends)
        ends += self._unended
        self._unended = []
        for number, choice in ((0, self._first), *self._others.items()):
            _end_prose(choice, ends, cut=cut)
            ends += [call.end(cut=cut) for call in choice.calls.values()]
            choice.calls = {}
            if number and not choice.ended:
                ends.append(ChoiceEnd(number, "cancelled" if cut else "stop"))
        return ends

    def _prose(
        self,
        choice: _Choice,
        number: int,
        item: TextDelta | ReasoningDelta | RefusalDelta,
        events: list[Event],
    ) -> None:
        kind = type(item)
        if kind is not choice.prose_kind:
            _end_prose(choice, events)
            choice.prose_kind = kind
            choice.prose = self._start(PROSE[kind], number, events)
        assert choice.prose is not None
        self.generated.add(item.text)
        self.usage_is_stale = True
        if part := choice.prose.number:
            item = msgspec.structs.replace(item, part=part)
        if isinstance(item, ReasoningDelta) and choice.is_apart(item):
            item = msgspec.structs.replace(item, apart=True)
        events.append(item)

    def _open(self, choice: _Choice, content: Text | Reasoning, events: list[Event]) -> None:
        """The provider says that a part of prose begins."""
        _end_prose(choice, events)
        choice.thinks_anew = isinstance(content, Reasoning)
        choice.prose_kind = ReasoningDelta if choice.thinks_anew else TextDelta
        choice.prose = self._start(content, 0, events)
        self.usage_is_stale = True

    def _begin(self, events: list[Event]) -> None:
        start = self._start_of_answer
        if start is not None:
            if self.hides_costs and start.extra:
                start = msgspec.structs.replace(start, extra=without_costs(start.extra))
            events.append(start)
            self._start_of_answer = None

    def _check_room(self) -> None:
        if self._parts >= MAX_PARTS:
            raise UpstreamError(f"the provider sent an answer of over {MAX_PARTS} parts")

    def _start(self, content: Content, choice: int, events: list[Event]) -> Part:
        self._begin(events)
        self._check_room()
        part = Part(self._parts, content, choice)
        self._parts += 1
        events.append(PartStart(part.number, content, choice))
        return part

    def _whole(self, choice: _Choice, number: int, content: Content, events: list[Event]) -> None:
        self._begin(events)
        self._check_room()
        _end_prose(choice, events)
        events.append(WholePart(self._parts, content, number))
        self._parts += 1
        self.usage_is_stale = True

    def _break(self, choice: _Choice, said: PartBreak, events: list[Event]) -> None:
        """The provider says that a part is whole: the open one of prose, or a call."""
        if said.index is not None:
            call = choice.calls.pop(said.index, None)
            if call is not None:
                events.append(call.end())
        elif choice.prose is not None:
            choice.prose.content = _whole_content(choice.prose.content, said.content)
            _end_prose(choice, events)
            choice.thinks_anew = True

    def _in_choice(self, said: InChoice, events: list[Event]) -> None:
        number, item = said.choice, said.item
        if type(number) is not int or not 0 < number < MAX_CHOICES:
            raise UpstreamError(f"the provider sent a choice whose index is not 0 to {MAX_CHOICES - 1}")
        choice = self._others.setdefault(number, _Choice())
        if isinstance(item, (TextDelta, ReasoningDelta, RefusalDelta)):
            self._prose(choice, number, item, events)
        elif isinstance(item, ToolCallPiece):
            self._call(choice, number, item, events)
        elif isinstance(item, Finish):
            self._begin(events)
            _end_prose(choice, events)
            events += [call.end() for call in choice.calls.values()]
            choice.calls = {}
            choice.ended = True
            events.append(ChoiceEnd(number, item.reason))
        else:
            self._whole(choice, number, item, events)

    def _call(self, choice: _Choice, number: int, piece: ToolCallPiece, events: list[Event]) -> None:
        if type(piece.index) is not int or not 0 <= piece.index < MAX_TOOL_CALLS:
            raise UpstreamError(f"the provider sent a tool call whose index is not 0 to {MAX_TOOL_CALLS - 1}")
        self.usage_is_stale = True
        kept = None
        call = choice.calls.get(piece.index)
        if call is None:
            _end_prose(choice, events)
            content = ToolCall(piece.index, piece.call_id, piece.name, extra_content=piece.extra_content)
            call = choice.calls[piece.index] = self._start(content, number, events)
            self.generated.add(piece.name)
        elif kept := piece.extra_content:
            call.content = msgspec.structs.replace(call.content, extra_content=kept)
        if piece.arguments or kept or piece.extra:
            assert isinstance(call.content, ToolCall)
            call.pieces.append(piece.arguments)
            self.generated.add(piece.arguments)
            identity = call.content.call_id
            events.append(
                ToolCallDelta(piece.index, identity, piece.arguments, call.number, kept, piece.extra)
            )


def _whole_content(begun: Content, ended: Content | None) -> Content:
    """What a part of prose is, of what was known at its start and at its end."""
    match begun, ended:
        case (Text() | Reasoning(), Text() | Reasoning()) if type(begun) is type(ended):
            return msgspec.structs.replace(ended, extra=ended.extra or begun.extra)
        case _:
            return begun


def _end_prose(choice: _Choice, events: list[Event], *, cut: bool = False) -> None:
    if choice.prose is not None:
        events.append(choice.prose.end(cut=cut))
        choice.prose = choice.prose_kind = None
