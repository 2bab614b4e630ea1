"""The vocabulary of a stream: what can happen in it, and where.

A stream is a list of events that ends with exactly one terminal event (``StreamEnd`` or
``StreamFailed``). What a model says comes in *parts*, which are numbered from 0: each has a start, deltas and
an end, or is whole in one event. ``Content`` says what a part is, so a new kind of it is one struct.

``extra`` is what only one vendor's API has, in its own words, for the dialect that speaks the same API.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from millstream.errors import MillstreamError, ReportedError, usual_status
from millstream.usage import Bill, Usage

FinishReason: TypeAlias = Literal[
    "stop", "length", "tool_calls", "content_filter", "cancelled", "budget_exceeded"
]


BLANK_LINE = "\n\n"


class StreamStart(Struct, frozen=True, gc=False, tag="stream-start"):
    """The first event of every stream."""

    stream_id: str
    model: str


# Who made a stream end: whoever asked for it (a call that cancels it), its disconnect policy, because nobody
# read it any more, whoever runs Millstream, the provider, a limit, or a fault or the death of a worker.
EndedBy: TypeAlias = Literal["client", "policy", "operator", "provider", "limit", "crash"]


class AnswerStart(Struct, frozen=True, gc=False, tag="answer-start", omit_defaults=True):
    """What the provider said of its answer before a word of it: the name of its ``api`` (``openai``,
    ``anthropic``, …), its own id for the answer and name of the model, and the usage so far.
    """

    api: str
    response_id: str = ""
    model: str = ""
    usage: Usage | None = None
    extra: dict[str, Any] | None = None


class Text(Struct, frozen=True, gc=False, tag="text", omit_defaults=True):
    """Words for the reader."""

    extra: dict[str, Any] | None = None


class Reasoning(Struct, frozen=True, gc=False, tag="reasoning", omit_defaults=True):
    """What a model thinks. Its provider may sign it, or send it ``redacted``, as data that only itself can
    read; it wants both back with the history.
    """

    signature: str = ""
    redacted: str = ""
    extra: dict[str, Any] | None = None


class Refusal(Struct, frozen=True, gc=False, tag="refusal", omit_defaults=True):
    """Why a model says nothing else."""


class ToolCall(Struct, frozen=True, gc=False, tag="tool-call", omit_defaults=True):
    """``index`` counts the tool calls of a choice from 0. ``arguments`` are whole at the end of the part;
    a cut stream leaves partial JSON. ``extra_content`` is what the provider wants back with the call, such as
    Gemini's thought signature.
    """

    index: int
    call_id: str
    name: str
    arguments: str = ""
    extra_content: dict[str, Any] | None = None


class File(Struct, frozen=True, gc=False, tag="file", omit_defaults=True):
    """A file that the model made, such as an image: a data URL or an address."""

    media_type: str
    url: str
    extra: dict[str, Any] | None = None


class Source(Struct, frozen=True, gc=False, tag="source", omit_defaults=True):
    """A page that the answer rests on: the characters from ``start`` to ``end`` of all its text, where the
    provider says so.
    """

    url: str
    title: str = ""
    start: int | None = None
    end: int | None = None


Content: TypeAlias = Text | Reasoning | Refusal | ToolCall | File | Source


class PartStart(Struct, frozen=True, gc=False, tag="part-start", omit_defaults=True):
    """``content`` is what is known of the part at its start. ``choice`` is the answer that it belongs to,
    where several were asked for.
    """

    part: int
    content: Content
    choice: int = 0


class TextDelta(Struct, frozen=True, gc=False, tag="text-delta", omit_defaults=True):
    text: str
    part: int = 0
    extra: dict[str, Any] | None = None


class ReasoningDelta(Struct, frozen=True, gc=False, tag="reasoning-delta", omit_defaults=True):
    """``apart`` is whether it begins a thought that its provider has apart from those before it."""

    text: str
    part: int = 0
    extra: dict[str, Any] | None = None
    apart: bool = False

    @property
    def joined(self) -> str:
        """What it adds where all thoughts are one text."""
        return f"{BLANK_LINE}{self.text}" if self.apart else self.text


class RefusalDelta(Struct, frozen=True, gc=False, tag="refusal-delta", omit_defaults=True):
    text: str
    part: int = 0
    extra: dict[str, Any] | None = None


class ToolCallDelta(Struct, frozen=True, gc=False, tag="tool-call-delta", omit_defaults=True):
    """A piece of the call's arguments, which together are JSON; or its extra content, if that comes late."""

    index: int
    call_id: str
    arguments: str
    part: int = 0
    extra_content: dict[str, Any] | None = None
    extra: dict[str, Any] | None = None


class PartEnd(Struct, frozen=True, gc=False, tag="part-end", omit_defaults=True):
    """``content`` is whole where a format states it whole: a call with its arguments, reasoning with its
    signature. ``cut`` is whether the answer broke off in the part.
    """

    part: int
    content: Content
    choice: int = 0
    cut: bool = False


class WholePart(Struct, frozen=True, gc=False, tag="part", omit_defaults=True):
    """A part in one event: a file, a source, redacted reasoning."""

    part: int
    content: Content
    choice: int = 0


class ChoiceEnd(Struct, frozen=True, gc=False, tag="choice-end"):
    """The end of an answer other than the first, where several were asked for."""

    choice: int
    finish_reason: FinishReason


class StreamEnd(Struct, frozen=True, gc=False, tag="stream-end", omit_defaults=True):
    """The answer ended: complete, cut at a limit, or stopped by its reader. ``word`` is the provider's own
    for that, ``stop_sequence`` the one that it met, ``raw_usage`` its usage object. ``because`` is the
    code of an error of the server's that stopped it, which was nobody's wish.
    """

    finish_reason: FinishReason
    bill: Bill
    word: str = ""
    stop_sequence: str | None = None
    raw_usage: dict[str, Any] | None = None
    extra: dict[str, Any] | None = None
    because: str = ""


class StreamFailed(Struct, frozen=True, gc=False, tag="stream-failed", omit_defaults=True):
    """The answer broke. ``code`` is from the closed list of ``errors``; ``bill`` is what it cost; ``status``
    is an HTTP status other than the usual one of the code.
    """

    code: str
    message: str
    retryable: bool
    bill: Bill
    retry_after_seconds: int | None = None
    status: int | None = None

    @classmethod
    def of(cls, error: MillstreamError, bill: Bill) -> "StreamFailed":
        """The end of a stream that ``error`` ends."""
        status = None if error.status == usual_status(error.code) else error.status
        return cls(error.code, error.message, error.retryable, bill, error.retry_after_seconds, status)

    @property
    def error(self) -> ReportedError:
        """What ended the stream, with the HTTP status of its code."""
        return ReportedError(
            self.code,
            self.message,
            status=self.status,
            retryable=self.retryable,
            retry_after_seconds=self.retry_after_seconds,
        )


Delta: TypeAlias = TextDelta | ReasoningDelta | RefusalDelta | ToolCallDelta
PartEvent: TypeAlias = PartStart | Delta | PartEnd | WholePart | ChoiceEnd
Terminal: TypeAlias = StreamEnd | StreamFailed
Event: TypeAlias = StreamStart | AnswerStart | PartEvent | Terminal

TERMINAL_TYPES = (StreamEnd, StreamFailed)


def is_cut(terminal: Terminal) -> bool:
    """Whether the answer broke off, so that its last parts may not be whole."""
    return isinstance(terminal, StreamFailed) or terminal.finish_reason not in ("stop", "tool_calls")


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


class StreamInfo(Struct, frozen=True, omit_defaults=True):
    """What is fixed about a stream from its first moment. ``created_at`` is in Unix seconds; ``choices`` is
    how many answers were asked for; ``echo`` what a format says back of the body that it was asked in;
    ``worker_id`` the worker that produces it.
    """

    stream_id: str
    owner_id: str
    model: str
    created_at: float
    choices: int = 1
    echo: dict[str, Any] | None = None
    worker_id: str = ""


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
