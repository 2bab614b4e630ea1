"""The acceptor: connections that wait at the listening socket -> protocols, all at each turn of the loop.

uvloop accepts one connection a turn. Behind a worker that is late thousands of them then wait in the kernel,
unseen: nobody is told, and the event loop does not know that it is late.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

log = logging.getLogger("millstream.server")

_PAUSE_SECONDS = 0.1  # where the system gives no more descriptors
_NO_MORE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts from ``listener`` until it is closed, in place of an ``asyncio.Server``: up to ``most_a_turn``
    connections at each turn of the loop.
    """

    def __init__(
        self, listener: socket.socket, make_protocol: Callable[[], asyncio.Protocol], most_a_turn: int
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._make_protocol = make_protocol
        self._most_a_turn = most_a_turn
        self._opening: set[asyncio.Task[object]] = set()
        self._closed = False
        listener.setblocking(False)
        listener.listen(socket.SOMAXCONN)
        self._resume()

    def close(self) -> None:
        """Takes no more connections. The socket is its owner's to close."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._listener.fileno())

    async def wait_closed(self) -> None:
        if self._opening:
            await asyncio.wait(self._opening)

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(self._most_a_turn):
            try:
                connection, _address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_MORE:
                    raise
                log.error("no more connections can be taken: %s", error.strerror)
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(_PAUSE_SECONDS, self._resume)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # it has gone already
            connection.close()
