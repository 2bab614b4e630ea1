"""Journals: where streams live. The only link between its producer and its readers."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from millstream.events import Batch, EndedBy, Event, Position, StreamFailed, StreamInfo, Terminal

READING_LAPSES_SECONDS = 12.0  # how long a worker is believed to have readers that has not repeated it

SignalKind: TypeAlias = Literal["cancel", "reading", "left"]


class StreamState(Struct, frozen=True):
    """A stream as it is now: ``last`` is the position of its last event, the terminal one if ``closed``."""

    info: StreamInfo
    last: Position
    closed: bool


class Signal(Struct, frozen=True):
    """What another worker says about streams that may be produced here: that somebody (``by``) wants them to
    be cancelled, that it has readers of them (which it repeats), or has none any more.
    """

    kind: SignalKind
    sender: str
    stream_ids: tuple[str, ...]
    by: EndedBy = "client"


# Takes a batch, or returns False where it cannot now.
Push: TypeAlias = Callable[[Batch], bool]


class Journal(Protocol):
    """Keeps every stream's events in order. To be entered (``async with``) before it is used.

    The rules, which ``tests/contracts/test_journals.py`` runs:

    - An append is seen whole or not at all, and by readers only after it has happened.
    - A terminal event closes the stream with the append that carries it; nothing can follow.
    - Positions grow by one from ``1-1``; reading after a position gives exactly what follows it.
    - A reader never holds up the producer or another reader.
    - A stream that was interrupted goes on at ``2-1``, where nothing of its producer's can follow.
    """

    is_shared: bool  # whether other workers can read what is appended here

    async def __aenter__(self) -> "Journal": ...

    async def __aexit__(self, *_: object) -> None: ...

    async def create(self, info: StreamInfo) -> None:
        """Returns when every worker can find the stream, or when that cannot be had for the moment. Raises
        ``StreamClosed`` where the id is taken.
        """

    async def state(self, stream_id: str) -> StreamState:
        """Raises ``StreamGone``, or ``Overloaded`` where the journal cannot be reached."""

    async def append(self, stream_id: str, events: Sequence[Event]) -> Position:
        """The position of the last of ``events``. Raises ``StreamClosed``, ``StreamFull``, ``StreamGone``.

        A terminal event is always taken, full or not. Only for the worker that made the stream.
        """

    async def flush(self, stream_id: str) -> None:
        """Returns when every worker can see what was appended to a stream of ours, or when that cannot be
        had for the moment."""

    def read(
        self, stream_id: str, after: Position | None = None, push: Push | None = None
    ) -> AsyncGenerator[Batch]:
        """What follows ``after`` (or everything), then live, up to and with the terminal event.

        What is appended while the reader waits is given to ``push`` at once, in the turn of whoever appends;
        what it takes is not yielded. It must not wait, and may be left out by a journal that cannot.

        Raises ``StreamGone``, ``BadPosition`` where ``after`` lies in the future, or ``Overloaded``.
        """

    async def interrupt(self, stream_id: str, failure: StreamFailed) -> Terminal:
        """Ends a stream whose producer is gone: closes its open parts and appends ``failure``. Returns the
        terminal event that stands, which is an earlier one where there is one. Raises ``StreamGone``, or
        ``Overloaded`` where the journal cannot be reached.
        """

    async def forget(self, stream_id: str) -> None:
        """Drops a stream that was made here and never begun."""

    def expire(self) -> None:
        """Drops finished streams that are past their window, or the oldest while over the limit. To be called
        every now and then."""

    def count(self) -> int:
        """How many streams are kept in this worker's memory, running or finished."""

    async def request_cancel(self, stream_id: str, by: EndedBy = "client") -> None:
        """Tells the worker that produces the stream, whichever it is, and ``by`` whom it is to end."""

    def signals(self) -> AsyncGenerator[Signal]:
        """What other workers say, without end."""

    async def ping(self) -> None:
        """Raises ``Overloaded`` where the journal cannot be reached."""
