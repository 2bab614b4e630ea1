"""Waking a task within a callback of the event loop."""

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any


class Wakeup:
    """What one task at a time waits for, over and over.

    A future hands its task to the event loop, which takes it up a turn later: one more call of the selector
    for every read of a socket. ``wake`` takes the task's next step itself. It is a future as far as a task
    needs one: the protocol is that of ``asyncio.isfuture``.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_context", "_is_cancelled", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._asyncio_future_blocking = False
        self._callback: Callable[[Any], object] | None = None  # while a task waits
        self._context: Context | None = None
        self._is_cancelled = False

    def __await__(self) -> Generator["Wakeup", None, None]:
        self._asyncio_future_blocking = True
        yield self

    def wake(self) -> None:
        """Takes the step of whoever waits: now, or in the loop's next turn where this is a task's step."""
        callback, context = self._callback, self._context
        if callback is None or context is None:
            return
        self._callback = self._context = None
        if asyncio.current_task(self._loop) is None:
            context.run(callback, self)
        else:
            self._loop.call_soon(callback, self, context=context)

    # -- for the task --------------------------------------------------------------------------

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context) -> None:
        self._callback, self._context = callback, context

    def result(self) -> None:
        """Raises ``CancelledError`` where the task was cancelled while it waited."""
        if self._is_cancelled:
            self._is_cancelled = False
            raise asyncio.CancelledError

    def cancel(self, msg: object = None) -> bool:
        """The task is being cancelled."""
        if self._callback is None or self._context is None:
            return False
        self._is_cancelled = True
        self._loop.call_soon(self._callback, self, context=self._context)
        self._callback = self._context = None
        return True
