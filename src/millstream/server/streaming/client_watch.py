"""Watching a client: its disconnect cancels what is being done for it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Protocol

from starlette.requests import Request
from starlette.types import Receive, Scope

from millstream.streams.cancel_scope import CancelScope

_GOODBYE_SECONDS = 1.0  # what a client that is sent away has to take the last bytes


# Our server's own extension of ASGI: the client at the other end of the connection. At the top of the scope,
# where it needs no dictionary of its own.
CLIENT = "millstream.client"


class Client(Protocol):
    """Whoever gets the response."""

    @property
    def is_ready(self) -> bool:
        """Whether the response has begun, and the client is there and takes more now."""

    def write(self, data: bytes) -> None:
        """Writes more of the body, without a turn of the loop. Only where it ``is_ready``."""

    def watch(self, leaving: Callable[[], None]) -> bool:
        """``leaving`` is called when the client leaves before it has the response. False where that cannot
        be had: then ``receive`` tells."""

    def unwatch(self) -> None: ...


def client_of(scope: Scope) -> Client | None:
    """The client, where the server is ours."""
    client: Client | None = scope.get(CLIENT)
    return client


class ClientWatch:
    """Waits for the client's disconnect from when it is made until ``stop``: the server says it, or else a
    task of its own asks for it.

    A disconnect or ``send_away`` cancels the body of its ``async with`` at the next await, and the end of the
    ``async with`` swallows that cancellation. It may be entered again: for the start of a stream first, then
    for the response.

    A server that stops waiting cancels the request itself, as uvicorn does after its
    ``timeout_graceful_shutdown``. That is swallowed too, as if the client was sent away: the response ends
    all the same, but with its last frame.
    """

    __slots__ = ("_asking", "_client", "_left", "_scope", "_served", "sent_away")

    def __init__(self, receive: Receive, client: Client | None = None) -> None:
        self.sent_away = False  # the body was cancelled, and its client is still there
        self._left = False
        self._scope = CancelScope()
        self._served = False
        self._client = client
        self._asking: asyncio.Task[None] | None = None
        if client is None or not client.watch(self._leave):
            self._asking = asyncio.create_task(self._ask(receive))

    @classmethod
    def of(cls, request: Request) -> "ClientWatch":
        return cls(request.receive, client_of(request.scope))

    def send_away(self) -> None:
        """Ends the response early, so that its client comes back to another worker."""
        self._end()

    @asynccontextmanager
    async def goodbye(self) -> AsyncGenerator[None]:
        """To be held while a client that is sent away gets its last bytes. One that does not take them
        sees its connection end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                yield

    def served(self) -> None:
        """The response is complete. From now on neither a disconnect nor ``send_away`` has an effect."""
        self._served = True

    def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        elif self._client is not None:
            self._client.unwatch()

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
        if kind is asyncio.CancelledError and not (swallowed or self._left or self._served):
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            swallowed = True
        if swallowed:
            self.sent_away = not self._left
        return swallowed

    async def _ask(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        self._left = True
        self._end()

    def _end(self) -> None:
        if not self._served:
            self._scope.cancel()
