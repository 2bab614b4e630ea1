"""Stop signals, heard beside the server that handles them: it waits for responses before a lifespan ends."""

import asyncio
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

_STOPS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def heard(stopping: Callable[[], None]) -> Generator[None]:
    """While it is entered, a signal that a server handles to stop also calls ``stopping``, in the event loop.

    A signal that nobody handles keeps what it means, and outside of the main thread nothing is heard: Python
    allows no handler there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    handlers = {number: signal.getsignal(number) for number in _STOPS}

    def handle(number: int, frame: FrameType | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stopping)
        server = handlers[signal.Signals(number)]
        assert callable(server)
        server(number, frame)

    taken = [
        n for n, server in handlers.items() if callable(server) and server is not signal.default_int_handler
    ]
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) is handle:
                signal.signal(number, handlers[number])
