"""Deadlines: what happens later unless it is called off. Far ones share timers, and may be a second late.

A timer of the event loop takes half a kilobyte, and every open stream has three clocks that hardly ever ring.
Here a deadline is an entry in the set of its second.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary

_NEAR_SECONDS = 2.0  # up to here a deadline has a timer of its own, and is kept to the millisecond


class Deadline(Protocol):
    """What ``at`` returns."""

    def when(self) -> float: ...

    def cancel(self) -> None:
        """Calls it off. Does nothing where it has passed."""


def at(when: float, call: Callable[[], None]) -> Deadline:
    """Calls ``call`` once ``when`` has come, in the time of the running event loop."""
    loop = asyncio.get_running_loop()
    if when - loop.time() <= _NEAR_SECONDS:
        return loop.call_at(when, call)
    seconds = _SECONDS.get(loop)
    if seconds is None:
        seconds = _SECONDS[loop] = {}
    number = math.ceil(when)
    second = seconds.get(number)
    if second is None:
        second = seconds[number] = set()
        loop.call_at(number, _ring, seconds, number)
    return _Far(when, call, second)


class _Far:
    """A deadline in the set ``second``."""

    __slots__ = ("_call", "_second", "_when")

    def __init__(self, when: float, call: Callable[[], None], second: "set[_Far]") -> None:
        self._when = when
        self._call = call
        self._second = second
        second.add(self)

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self._second.discard(self)
        self._call = _nothing  # its second may ring already

    def ring(self) -> None:
        self._call()


def _nothing() -> None:
    pass


# By event loop: the far deadlines of each second that has any.
_SECONDS: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, set[_Far]]] = WeakKeyDictionary()


def _ring(seconds: dict[int, set[_Far]], number: int) -> None:
    second = seconds.pop(number)
    loop = asyncio.get_running_loop()
    while second:
        loop.call_soon(second.pop().ring)  # each by itself: none stops the others
