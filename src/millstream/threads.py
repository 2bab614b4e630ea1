"""A thread that does one piece of work after the other."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from queue import SimpleQueue
from typing import Any, TypeAlias

Done: TypeAlias = Callable[[Any, BaseException | None], object]


class WorkThread:
    """Starts with the first work. A piece of work costs an entry in a queue on its way in, and one wake-up
    of the loop on its way out.
    """

    def __init__(self, name: str, closed: Callable[[], BaseException]) -> None:
        """``closed`` makes the error of work that did not begin before the thread was closed."""
        self._name = name
        self._make_closed = closed
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.is_closed = False

    def submit(self, work: Callable[[], Any], done: Done, context: Context | None = None) -> None:
        """Runs ``work`` and calls ``done`` in the running loop, with what it returned or raised."""
        loop = asyncio.get_running_loop()

        def run() -> None:
            result, error = None, None
            try:
                if self.is_closed:
                    raise self._make_closed()
                result = work()
            except BaseException as raised:
                error = raised
            with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
                loop.call_soon_threadsafe(done, result, error, context=context)

        if self._thread is None and not self.is_closed:
            # A daemon, so that a program that closes nothing can end.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        if self.is_closed:
            loop.call_soon(done, None, self._make_closed(), context=context)
        else:
            self._queue.put(run)

    def close(self) -> None:
        """Waits for the work that runs; what has not begun is not done."""
        self.is_closed = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
            del work  # what it holds is not to wait for the next one
