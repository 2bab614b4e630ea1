"""Pressure: whether this worker has as much to do as it can, by how late its event loop is."""

import asyncio
import math

from millstream.errors import Overloaded

_TICK_SECONDS = 0.05
_WEIGHT = 0.2  # of the last tick: a single pause is no pressure, a second of them is
_PAUSE_SECONDS = 0.4  # what a single tick counts for at the most: a machine that slept is not under pressure


class Pressure:
    """``run`` is its task. Where the loop is over ``most_seconds`` late on average, nothing more is taken: a
    start passes some ten turns of it before its first byte.
    """

    def __init__(self, most_seconds: float) -> None:
        self._most_seconds = most_seconds
        self._late = 0.0

    @property
    def late_seconds(self) -> float:
        """How late callbacks are called, on average over the last second."""
        return self._late

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            self.note(clock() - due)

    def note(self, late_seconds: float) -> None:
        """A callback was called so late."""
        self._late += _WEIGHT * (min(late_seconds, _PAUSE_SECONDS) - self._late)

    def check(self) -> None:
        """Raises ``Overloaded``, to be asked before anything is done for a start.

        What is running goes on, so the pressure goes down as soon as some of it ends; ``Retry-After`` is the
        longer the later the loop is.
        """
        if self._late > self._most_seconds:
            seconds = max(1, math.ceil(self._late / self._most_seconds))
            raise Overloaded(
                "this worker has as much to do as it can; try again", retry_after_seconds=min(seconds, 30)
            )
