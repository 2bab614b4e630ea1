"""Signals between the workers: entries of one more Redis stream, which every worker reads."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from millstream.events import EndedBy
from millstream.journals import Signal, SignalKind
from millstream.journals.redis.connection import UNREACHABLE

log = logging.getLogger("millstream.journals")

KEY = "millstream:signals"
_KEPT = 10_000

_to_json = msgspec.json.Encoder().encode
_to_signal = msgspec.json.Decoder(Signal).decode


class Signals:
    """``on_signal`` is called with each one of another worker, before those who listen get it."""

    def __init__(self, client: Any, on_signal: Callable[[Signal], None]) -> None:
        self.last_id = b"$"  # of the entries that were taken in
        self._client = client
        self._on_signal = on_signal
        self._name = secrets.token_urlsafe(9)
        self._listeners: set[asyncio.Queue[Signal]] = set()
        self._sending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """From here on, whatever is said; without Redis, from the first connection on."""
        with suppress(*UNREACHABLE):
            found = await self._client.xrevrange(KEY, count=1)
            self.last_id = found[0][0] if found else b"0-0"

    async def find_again(self) -> None:
        """Starts over where Redis's ids have gone back behind ours: it was emptied, and its clock is an
        earlier one. Otherwise nothing that others say from then on would ever be after what was read last.
        """
        found = await self._client.xrevrange(KEY, count=1)
        newest = _order(found[0][0]) if found else (0, 0)
        if self.last_id != b"$" and newest < _order(self.last_id):
            self.last_id = b"0-0"

    async def stop(self) -> None:
        """Gives up what is still to be said."""
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)

    async def send(self, kind: SignalKind, stream_ids: Sequence[str], by: EndedBy = "client") -> None:
        """Raises one of ``UNREACHABLE``."""
        said = Signal(kind, self._name, tuple(stream_ids), by)
        await self._client.xadd(KEY, {"signal": _to_json(said)}, maxlen=_KEPT, approximate=True)

    def send_soon(self, kind: SignalKind, stream_id: str) -> None:
        """Sends in a task, for callers that cannot wait."""

        async def send() -> None:
            with suppress(*UNREACHABLE):  # lost: the readers are forgotten when they lapse
                await self.send(kind, [stream_id])

        task = asyncio.create_task(send())
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def take_in(self, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Entries of the Redis stream, as they follow ``last_id``."""
        for entry_id, fields in entries:
            self.last_id = entry_id
            try:
                signal = _to_signal(fields[b"signal"])
            except (KeyError, msgspec.MsgspecError):
                continue  # of another version
            if signal.sender == self._name:
                continue
            self._on_signal(signal)
            for queue in self._listeners:
                with suppress(asyncio.QueueFull):
                    queue.put_nowait(signal)

    async def listen(self) -> AsyncGenerator[Signal]:
        """What other workers say, without end."""
        queue: asyncio.Queue[Signal] = asyncio.Queue(_KEPT)
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)


def _order(entry_id: bytes) -> tuple[int, int]:
    time, _, number = entry_id.partition(b"-")
    return int(time), int(number)
