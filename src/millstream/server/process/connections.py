"""All connections of a worker: how many there may be, and how long each is waited for."""

import asyncio
import logging
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

log = logging.getLogger("millstream.server")

Waits: TypeAlias = Literal["request", "head", "body", "rest"]

# Descriptors of a worker itself: some 20 at its start, then the database's connections and those to Redis.
_RESERVE = 40
_LEAST = 8  # connections, however few descriptors there are
# A descriptor's number is the lowest that is free: with so few above it, they have gone elsewhere.
_LAST = 8

_MOST_A_TURN = 256  # connections that are accepted in one turn of the event loop

_BODY_GRACE_SECONDS = 30.0
_BODY_BYTES_PER_SECOND = 64 << 10
_SAY_SECONDS = 60.0  # between two log lines about connections that were refused


class Bounds(Struct, frozen=True):
    """Of one connection. Where a thing has two times, ``pause`` is the longest silence in it."""

    head_bytes: int = 64 << 10
    head_fields: int = 256
    head_seconds: float = 10  # also to the first byte of a new connection
    idle_seconds: float = 75  # nginx keeps its end for 60 s, and should be the one to close
    body_pause_seconds: float = 30
    body_seconds: float = 94
    ahead_bytes: int = 64 << 10  # of further requests, while one is answered
    ahead_requests: int = 16
    rest_bytes: int = 16 << 20  # of what is thrown away
    rest_pause_seconds: float = 2
    rest_seconds: float = 10
    look_seconds: float = 1  # a connection is ended so much later at most

    @classmethod
    def for_bodies(cls, most_bytes: int) -> "Bounds":
        """Where bodies have so many bytes at most: for a longer one there is more time."""
        return cls(body_seconds=_BODY_GRACE_SECONDS + most_bytes / _BODY_BYTES_PER_SECOND)


class Waiting(Protocol):
    """A connection, as far as it is waited for."""

    loop: asyncio.AbstractEventLoop

    def hang_up(self) -> None:
        """Closes without waiting for anything but for what was written."""

    def ring(self) -> None:
        """Called when what is waited for has not come in time."""


class Connections:
    """The connections of a worker that may have so many ``descriptors`` open.

    Half of what it does not need itself is for clients: a stream takes a second descriptor, towards its
    provider.
    """

    def __init__(self, descriptors: int, bounds: Bounds | None = None) -> None:
        bounds = self.bounds = bounds or Bounds()
        self.times: dict[Waits, tuple[float, float]] = {  # for a silence in it, and for the whole of it
            "request": (bounds.idle_seconds, bounds.idle_seconds),
            "head": (bounds.head_seconds, bounds.head_seconds),
            "body": (bounds.body_pause_seconds, bounds.body_seconds),
            "rest": (bounds.rest_pause_seconds, bounds.rest_seconds),
        }
        self.most = max(_LEAST, (descriptors - _RESERVE) // 2)
        # Those that come at once each have a descriptor before it is known whether there is room for them.
        self.most_a_turn = min(_MOST_A_TURN, self.most // 2)
        self._highest = descriptors - _LAST
        self._most_refusing = max(_LEAST // 2, self.most // 8)
        self._refusing = 0  # connections that are being told that there are too many
        self._refused = 0  # those that no log line has told of
        self._said_at = float("-inf")
        # Connections that are waited for, and until when: those that can be spared, which have nothing of a
        # request or are lingered for, longest first; and the others.
        self._spare: dict[Waiting, float] = {}
        self._arriving: dict[Waiting, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, connection: Waiting, due: float, *, spare: bool) -> None:
        (self._spare if spare else self._arriving)[connection] = due
        if self._timer is None:
            self._timer = connection.loop.call_later(self.bounds.look_seconds, self._look, connection.loop)

    def stop_waiting(self, connection: Waiting, *, spare: bool) -> None:
        del (self._spare if spare else self._arriving)[connection]

    def has_room(self, count: int, descriptor: int) -> bool:
        """Whether there is room for one that makes it ``count`` connections and got that ``descriptor``.
        Closes the one that can be spared best if that makes room.
        """
        if count - self._refusing <= self.most and descriptor < self._highest:
            return True
        spare = next(iter(self._spare), None)
        if spare is not None:
            spare.hang_up()
        return spare is not None

    def refuse(self, now: float) -> bool:
        """Notes one more that is refused, until ``refused``. False where so many are that this one should
        not even be waited for.
        """
        self._refused += 1
        if now - self._said_at >= _SAY_SECONDS:
            log.warning("refused connections: %s; a worker can have %s", self._refused, self.most)
            self._said_at, self._refused = now, 0
        if self._refusing >= self._most_refusing:
            return False
        self._refusing += 1
        return True

    def refused(self) -> None:
        self._refusing -= 1

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for waiting in (self._spare, self._arriving):
            for connection in [connection for connection, due in waiting.items() if due <= now]:
                connection.ring()
        self._timer = None
        if self._spare or self._arriving:
            self._timer = loop.call_later(self.bounds.look_seconds, self._look, loop)
