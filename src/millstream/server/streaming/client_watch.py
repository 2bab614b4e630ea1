"""Watching a client: its disconnect cancels what is being done for it."""

import asyncio
from types import TracebackType

from starlette.types import Receive

from millstream.streams.cancel_scope import CancelScope


class ClientWatch:
    """Waits for the client's disconnect, in a task, from when it is made until ``stop``.

    A disconnect or ``send_away`` cancels the body of its ``async with`` at the next await, and the end of the
    ``async with`` swallows that cancellation. It may be entered again: for the start of a stream first, then
    for the response.
    """

    def __init__(self, receive: Receive) -> None:
        self.sent_away = False  # the body was cancelled, and its client is still there
        self._left = False
        self._scope = CancelScope()
        self._served = False
        self._leaving = asyncio.create_task(self._watch(receive))

    def send_away(self) -> None:
        """Ends the response early, so that its client comes back to another worker."""
        self._end()

    def served(self) -> None:
        """The response is complete. From now on neither a disconnect nor ``send_away`` has an effect."""
        self._served = True

    def stop(self) -> None:
        self._leaving.cancel()

    async def __aenter__(self) -> "ClientWatch":
        self._scope = CancelScope()
        self._scope.__enter__()
        if self._left:
            self._end()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        swallowed = self._scope.__exit__(kind, error, trace)
        if swallowed:
            self.sent_away = not self._left
        return swallowed

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._end()

    def _end(self) -> None:
        if not self._served:
            self._scope.cancel()
