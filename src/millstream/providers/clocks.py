"""Clocks: how long a provider is waited for, in each phase of an answer."""

import asyncio
from collections.abc import Callable

from msgspec import Struct

from millstream import deadlines


class Clocks(Struct, frozen=True):
    """How long to wait for a provider, in seconds.

    ``connect`` to have a connection; ``first_byte`` from sending the request to the first byte of the
    answer's body; ``first_content`` from there to the first word, thought or tool call, which takes minutes
    for a model that thinks in silence; ``idle`` between two of them. The total is the stream's own and lies
    with its producer, since it holds for every provider.
    """

    connect: float = 10
    first_byte: float = 120
    first_content: float = 300
    idle: float = 60


class Silence:
    """Calls ``ring`` once when a provider has been silent for too long. Restarting it costs nothing: its one
    deadline, when it passes, looks whether it is due and otherwise sets another for when it will be.

    ``due`` is when the wait for the first byte ends, in the loop's time.
    """

    __slots__ = (
        "_clocks",
        "_due",
        "_loop",
        "_paused_at",
        "_ring",
        "_seconds",
        "_timer",
        "_what",
        "broken",
    )

    def __init__(self, clocks: Clocks, due: float, ring: Callable[[], None]) -> None:
        self._clocks = clocks
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._seconds = clocks.first_byte
        self._what = "sent no answer in"
        self._due = due
        self._paused_at: float | None = None
        self._timer = deadlines.at(due, self._look)
        self.broken: str | None = None  # what was waited for in vain, once it has rung

    def first_byte(self) -> None:
        """The answer has begun; now its first content is waited for."""
        self._set(self._clocks.first_content, "did not begin its answer in")

    def content(self, within: float | None = None) -> None:
        """Content has come; the next is waited for, for ``within`` seconds where that is given."""
        seconds = self._clocks.idle if within is None else min(within, self._clocks.idle)
        self._set(seconds, "was silent for")

    def sign_of_life(self) -> None:
        """What is waited for has not come, but the provider is there."""
        self._set(self._seconds, self._what)

    def pause(self) -> None:
        """The provider is not to blame for what follows."""
        self._paused_at = self._loop.time()

    def resume(self) -> None:
        assert self._paused_at is not None
        self._due += self._loop.time() - self._paused_at
        self._paused_at = None
        self._be_in_time()

    def stop(self) -> None:
        self._timer.cancel()

    def _set(self, seconds: float, what: str) -> None:
        self._due = self._loop.time() + seconds
        self._seconds, self._what = seconds, what
        self._be_in_time()

    def _be_in_time(self) -> None:
        if self._due < self._timer.when():
            self._timer.cancel()
            self._timer = deadlines.at(self._due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        if self._paused_at is None and now >= self._due:
            self.broken = f"{self._what} {self._seconds:g} s"
            self._ring()
        else:
            due = self._due if now < self._due else now + self._seconds
            self._timer = deadlines.at(due, self._look)
