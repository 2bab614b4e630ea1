"""Logs: where a stream lives. The only link between its producer and its readers."""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from millstream.events import Batch, Event, Position, StreamInfo


class EventLog(Protocol):
    """Keeps every stream's events in order. The rules, which ``tests/contracts/test_logs.py`` runs:

    - An append is seen whole or not at all, and by readers only after it has happened.
    - A terminal event closes the stream with the append that carries it; nothing can follow.
    - Positions grow by one from ``1-1``; reading after a position gives exactly what follows it.
    - A reader never holds up the producer or another reader.
    """

    async def create(self, info: StreamInfo) -> None:
        """Raises ``StreamClosed`` where the id is taken."""

    async def info(self, stream_id: str) -> StreamInfo:
        """Raises ``StreamGone``."""

    async def append(self, stream_id: str, events: Sequence[Event]) -> Position:
        """The position of the last of ``events``. Raises ``StreamClosed``, ``StreamFull``, ``StreamGone``.

        A terminal event is always taken, full or not.
        """

    def read(self, stream_id: str, after: Position | None = None) -> AsyncGenerator[Batch]:
        """What follows ``after`` (or everything), then live, up to and with the terminal event.

        Raises ``StreamGone``, also where ``after`` lies in the future.
        """
