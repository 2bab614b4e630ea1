"""Watching a client: what is being sent to it ends as soon as it has left."""

import asyncio
from types import TracebackType

from starlette.types import Receive


class Watched:
    """The client of one response. While it is entered (``async with``), a task waits for it to leave: in
    silence and in the middle of a write alike. When it has left, or when ``send_away`` was called, the body
    of the ``async with`` ends where it is, without an error.

    Entered last, so that nothing that it could end is still to be entered.
    """

    def __init__(self, receive: Receive) -> None:
        self.sent_away = False  # the body was ended, and its client is still there
        self._leaving = asyncio.create_task(_disconnected(receive))
        self._present = asyncio.timeout(None)
        self._served = False

    def send_away(self) -> None:
        """Ends the body early, so that the client comes back to another worker."""
        self._end()

    def served(self) -> None:
        """The response is complete. A client that leaves now takes nothing with it."""
        self._served = True

    async def __aenter__(self) -> "Watched":
        await self._present.__aenter__()
        self._leaving.add_done_callback(self._left)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._served = True
        try:
            await self._present.__aexit__(kind, error, trace)
        except TimeoutError:
            self.sent_away = not self._leaving.done()
            return True
        finally:
            self._leaving.cancel()
        return False

    def _left(self, leaving: asyncio.Task[None]) -> None:
        if not leaving.cancelled():
            self._end()

    def _end(self) -> None:
        if not (self._served or self._present.expired()):
            self._present.reschedule(asyncio.get_running_loop().time())


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
