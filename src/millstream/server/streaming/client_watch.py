"""Watching a client: its disconnect cancels what is being done for it."""

import asyncio
from types import TracebackType

from starlette.types import Receive


class ClientWatch:
    """Waits for the client's disconnect, in a task, from when it is made until ``stop``.

    A disconnect or ``send_away`` cancels the body of its ``async with`` at the next await, and the end of the
    ``async with`` swallows that cancellation. It may be entered again: for the start of a stream first, then
    for the response.
    """

    def __init__(self, receive: Receive) -> None:
        self.sent_away = False  # the body was cancelled, and its client is still there
        self._leaving = asyncio.create_task(_disconnected(receive))
        self._leaving.add_done_callback(self._left)
        self._scope: asyncio.Timeout | None = None
        self._served = False

    def send_away(self) -> None:
        """Ends the response early, so that its client comes back to another worker."""
        self._end()

    def served(self) -> None:
        """The response is complete. From now on neither a disconnect nor ``send_away`` has an effect."""
        self._served = True

    def stop(self) -> None:
        self._leaving.cancel()

    async def __aenter__(self) -> "ClientWatch":
        self._scope = asyncio.timeout(None)
        await self._scope.__aenter__()
        if self._leaving.done():
            self._end()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        assert self._scope is not None
        scope, self._scope = self._scope, None
        try:
            await scope.__aexit__(kind, error, trace)
        except TimeoutError:
            self.sent_away = not self._leaving.done()
            return True
        return False

    def _left(self, leaving: asyncio.Task[None]) -> None:
        if not leaving.cancelled():
            self._end()

    def _end(self) -> None:
        if self._scope is not None and not (self._served or self._scope.expired()):
            self._scope.reschedule(asyncio.get_running_loop().time())


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
