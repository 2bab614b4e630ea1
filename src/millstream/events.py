"""The vocabulary of a stream: what can happen in it, and where.

A stream is a list of events that ends with exactly one terminal event (``StreamEnd`` or
``StreamFailed``). Text, reasoning, refusals and tool calls are *parts*: each has a start, deltas and
an end, so that a dialect can encode any event without having seen the ones before it.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

FinishReason: TypeAlias = Literal[
    "stop", "length", "tool_calls", "content_filter", "cancelled", "budget_exceeded"
]
UsageSource: TypeAlias = Literal["provider_final", "provider_partial", "counted", "checkpoint"]


# What usage is added up by.
Group: TypeAlias = Literal["key", "model", "day", "user"]


class Usage(Struct, frozen=True, gc=False, omit_defaults=True):
    """Tokens of one answer, in OpenAI's meaning: the prompt count includes cached tokens, the
    completion count includes hidden reasoning.

    ``source`` says where the numbers come from: ``provider_final`` the provider's last word;
    ``provider_partial`` its running count when the stream was cut; ``counted`` our tokenizer over the
    text that was received; ``checkpoint`` our last count before the process died.
    """

    prompt_tokens: int
    completion_tokens: int
    source: UsageSource
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Bill(Struct, frozen=True, gc=False):
    """Usage with its price. ``cost_usd`` is a decimal string, or None where no price is known."""

    usage: Usage
    cost_usd: str | None


class StreamStart(Struct, frozen=True, gc=False, tag="stream-start"):
    """The first event of every stream."""

    stream_id: str
    model: str


class TextStart(Struct, frozen=True, gc=False, tag="text-start"):
    pass


class TextDelta(Struct, frozen=True, gc=False, tag="text-delta"):
    text: str


class TextEnd(Struct, frozen=True, gc=False, tag="text-end"):
    pass


class ReasoningStart(Struct, frozen=True, gc=False, tag="reasoning-start"):
    pass


class ReasoningDelta(Struct, frozen=True, gc=False, tag="reasoning-delta"):
    text: str


class ReasoningEnd(Struct, frozen=True, gc=False, tag="reasoning-end"):
    pass


class RefusalStart(Struct, frozen=True, gc=False, tag="refusal-start"):
    pass


class RefusalDelta(Struct, frozen=True, gc=False, tag="refusal-delta"):
    text: str


class RefusalEnd(Struct, frozen=True, gc=False, tag="refusal-end"):
    pass


class ToolCallStart(Struct, frozen=True, gc=False, tag="tool-call-start"):
    """``index`` counts the tool calls of the answer from 0."""

    index: int
    call_id: str
    name: str


class ToolCallDelta(Struct, frozen=True, gc=False, tag="tool-call-delta"):
    """A piece of the call's arguments, which together are JSON."""

    index: int
    call_id: str
    arguments: str


class ToolCallEnd(Struct, frozen=True, gc=False, tag="tool-call-end"):
    """Carries the call whole, for formats that state it whole. A cut stream leaves partial JSON."""

    index: int
    call_id: str
    name: str
    arguments: str


class StreamEnd(Struct, frozen=True, gc=False, tag="stream-end"):
    """The answer ended: complete, cut at a limit, or stopped by its reader."""

    finish_reason: FinishReason
    bill: Bill


class StreamFailed(Struct, frozen=True, gc=False, tag="stream-failed"):
    """The answer broke. ``code`` is from the closed list of ``errors``; ``bill`` is what it cost."""

    code: str
    message: str
    retryable: bool
    bill: Bill
    retry_after_seconds: int | None = None


PartStart: TypeAlias = TextStart | ReasoningStart | RefusalStart | ToolCallStart
PartDelta: TypeAlias = TextDelta | ReasoningDelta | RefusalDelta | ToolCallDelta
PartEnd: TypeAlias = TextEnd | ReasoningEnd | RefusalEnd | ToolCallEnd
PartEvent: TypeAlias = PartStart | PartDelta | PartEnd
Terminal: TypeAlias = StreamEnd | StreamFailed
Event: TypeAlias = StreamStart | PartEvent | Terminal

TERMINAL_TYPES = (StreamEnd, StreamFailed)


_POSITION = re.compile(r"([0-9]{1,9})-([0-9]{1,15})")


class Position(NamedTuple):
    """An event's place in its stream. It only grows; ``str()`` is its form on the wire.

    ``epoch`` is 1 for what the stream's producer says and 2 for the end that others set to a stream whose
    producer is gone.
    """

    epoch: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Raises ``ValueError``."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError("a position is <epoch>-<seq>")
        return cls(int(match[1]), int(match[2]))


class Batch(Struct, frozen=True, gc=False):
    """Events that follow each other in a stream: the first at ``first``, each other at the next seq."""

    first: Position
    events: Sequence[Event]

    @property
    def last(self) -> Position:
        return Position(self.first.epoch, self.first.seq + len(self.events) - 1)


class StreamInfo(Struct, frozen=True):
    """What is fixed about a stream from its first moment. ``created_at`` is in Unix seconds."""

    stream_id: str
    owner_id: str
    model: str
    created_at: float


def open_parts(events: Iterable[Event]) -> list[PartEvent]:
    """The ends of the parts that ``events`` have left open."""
    prose: PartEvent | None = None
    calls: dict[int, tuple[ToolCallStart, list[str]]] = {}
    for event in events:
        match event:
            case TextStart():
                prose = TextEnd()
            case ReasoningStart():
                prose = ReasoningEnd()
            case RefusalStart():
                prose = RefusalEnd()
            case TextEnd() | ReasoningEnd() | RefusalEnd():
                prose = None
            case ToolCallStart():
                calls[event.index] = (event, [])
            case ToolCallDelta():
                calls[event.index][1].append(event.arguments)
            case ToolCallEnd():
                del calls[event.index]
            case _:
                pass
    ends: list[PartEvent] = [] if prose is None else [prose]
    for call, arguments in calls.values():
        ends.append(ToolCallEnd(call.index, call.call_id, call.name, "".join(arguments)))
    return ends


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(list[Event])


def to_json(events: Sequence[Event]) -> bytes:
    """A JSON array."""
    return _encoder.encode(events)


def from_json(data: bytes) -> list[Event]:
    """Raises ``msgspec.ValidationError`` where ``data`` is not an array of events."""
    events: list[Event] = _decoder.decode(data)
    return events


def json_schema() -> dict[str, object]:
    """The JSON Schema of an event, as ``spec/events.schema.json`` has it."""
    return msgspec.json.schema(Event)
