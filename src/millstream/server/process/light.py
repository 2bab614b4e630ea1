"""What uvicorn keeps for a connection, with less memory.

An ``asyncio.Event`` and a ``deque`` have a queue of 0.7 KB each, whether anything is in it or not, and a
connection has three of them for as long as its response streams.
"""

import asyncio
from typing import Any, Literal


class Event:
    """As much of an ``asyncio.Event`` as uvicorn uses."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self, *, is_set: bool) -> None:
        self._is_set = is_set
        self._waiting: tuple[asyncio.Future[None], ...] = ()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> Literal[True]:
        if not self._is_set:
            future = asyncio.get_running_loop().create_future()
            self._waiting = (*self._waiting, future)
            try:
                await future
            finally:
                self._waiting = tuple(other for other in self._waiting if other is not future)
        return True


class Flow:
    """As uvicorn's ``FlowControl``: whether more is read from a client, and whether it takes more."""

    __slots__ = ("_transport", "_writable", "read_paused", "write_paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._writable: Event | None = None  # while writing is paused
        self.read_paused = False
        self.write_paused = False

    async def drain(self) -> None:
        """Returns when the client takes more."""
        if self._writable is not None:
            await self._writable.wait()

    def pause_reading(self) -> None:
        if not self.read_paused:
            self.read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self.read_paused:
            self.read_paused = False
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        if not self.write_paused:
            self.write_paused = True
            self._writable = Event(is_set=False)

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._writable is not None:
            self._writable.set()
            self._writable = None


class Pipeline(list[Any]):
    """As much of a ``deque`` as uvicorn uses."""

    __slots__ = ()

    def appendleft(self, item: Any) -> None:
        self.insert(0, item)

    def popleft(self) -> Any:
        return self.pop(0)
