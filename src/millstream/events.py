"""The vocabulary of a stream: what can happen in it, and where.

A stream is a list of events that ends with exactly one terminal event (``StreamEnd`` or
``StreamFailed``). Text, reasoning, refusals and tool calls are *parts*: each has a start, deltas and
an end, so that a dialect can encode any event without having seen the ones before it.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from millstream.errors import MillstreamError, ReportedError
from millstream.usage import Bill

FinishReason: TypeAlias = Literal[
    "stop", "length", "tool_calls", "content_filter", "cancelled", "budget_exceeded"
]


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


class File(Struct, frozen=True, gc=False, tag="file"):
    """A file that the model made, such as an image: whole, as a data URL or an address."""

    media_type: str
    url: str


class ToolCallStart(Struct, frozen=True, gc=False, tag="tool-call-start", omit_defaults=True):
    """``index`` counts the tool calls of the answer from 0. ``extra_content`` is what the provider wants back
    with the call, such as Gemini's thought signature.
    """

    index: int
    call_id: str
    name: str
    extra_content: dict[str, Any] | None = None


class ToolCallDelta(Struct, frozen=True, gc=False, omit_defaults=True, tag="tool-call-delta"):
    """A piece of the call's arguments, which together are JSON; or its extra content, if that comes late."""

    index: int
    call_id: str
    arguments: str
    extra_content: dict[str, Any] | None = None


class ToolCallEnd(Struct, frozen=True, gc=False, tag="tool-call-end", omit_defaults=True):
    """Carries the call whole, for formats that state it whole. A cut stream leaves partial JSON."""

    index: int
    call_id: str
    name: str
    arguments: str
    extra_content: dict[str, Any] | None = None


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

    @classmethod
    def of(cls, error: MillstreamError, bill: Bill) -> "StreamFailed":
        """The end of a stream that ``error`` ends."""
        return cls(error.code, error.message, error.retryable, bill, error.retry_after_seconds)

    @property
    def error(self) -> ReportedError:
        """What ended the stream, with the HTTP status of its code."""
        return ReportedError(
            self.code,
            self.message,
            retryable=self.retryable,
            retry_after_seconds=self.retry_after_seconds,
        )


PartStart: TypeAlias = TextStart | ReasoningStart | RefusalStart | ToolCallStart
PartDelta: TypeAlias = TextDelta | ReasoningDelta | RefusalDelta | ToolCallDelta
PartEnd: TypeAlias = TextEnd | ReasoningEnd | RefusalEnd | ToolCallEnd
PartEvent: TypeAlias = PartStart | PartDelta | PartEnd | File
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
