"""Deadlines that share timers."""

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from millstream import deadlines


@pytest.fixture(autouse=True)
def every_deadline_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "_NEAR_SECONDS", -1.0)


class Rings:
    """What has rung, and when."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.at: dict[str, float] = {}
        self.all = asyncio.Event()

    def of(self, name: str) -> Callable[[], None]:
        return partial(self._ring, name)

    def _ring(self, name: str) -> None:
        self.at[name] = self.loop.time()
        if name == "last":
            self.all.set()


async def test_a_far_deadline_is_never_early_and_at_most_a_second_late() -> None:
    rings = Rings()
    when = rings.loop.time() + 0.3
    assert deadlines.at(when, rings.of("last")).when() == when
    async with asyncio.timeout(10):
        await rings.all.wait()
    assert rings.at["last"] >= when


async def test_what_is_called_off_does_not_ring_and_what_fails_stops_no_other() -> None:
    rings = Rings()
    now = rings.loop.time()
    faults: list[object] = []
    rings.loop.set_exception_handler(lambda _, context: faults.append(context["exception"]))

    def fail() -> None:
        raise ValueError("x")

    off = deadlines.at(now, rings.of("off"))
    for number in range(9):
        deadlines.at(now, rings.of(f"{number}"))
        deadlines.at(now, fail)
    deadlines.at(now + 1, rings.of("last"))
    off.cancel()
    off.cancel()
    async with asyncio.timeout(10):
        await rings.all.wait()
    assert rings.at.keys() == {"last", *map(str, range(9))}
    assert len(faults) == 9


async def test_of_two_that_call_each_other_off_only_one_rings() -> None:
    """Though both have come in one turn: what is let go of by the first may be somebody else's by now."""
    rings = Rings()
    now = rings.loop.time()
    pair: list[deadlines.Deadline] = []

    def first_come(name: str, other: int) -> None:
        rings.at[name] = now
        pair[other].cancel()

    pair += [deadlines.at(now, partial(first_come, "a", 1)), deadlines.at(now, partial(first_come, "b", 0))]
    deadlines.at(now + 1, rings.of("last"))
    async with asyncio.timeout(10):
        await rings.all.wait()
    assert len(rings.at) == 2


async def test_a_deadline_that_rings_may_set_another_of_the_same_second() -> None:
    rings = Rings()
    now = rings.loop.time()

    def set_another() -> None:
        deadlines.at(now, rings.of("last"))

    deadlines.at(now, set_another)
    async with asyncio.timeout(10):
        await rings.all.wait()


async def test_a_near_deadline_is_kept_to_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "_NEAR_SECONDS", 2.0)
    rings = Rings()
    near = deadlines.at(rings.loop.time() + 0.01, rings.of("last"))
    assert isinstance(near, asyncio.TimerHandle)
    await rings.all.wait()
