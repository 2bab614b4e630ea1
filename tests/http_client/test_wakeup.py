"""A wakeup is a future as far as a task needs one, without the turn of the loop."""

import asyncio
from contextvars import ContextVar

import pytest

from millstream.http.wakeup import Wakeup

NAME: ContextVar[str] = ContextVar("name", default="nobody's")


async def waits(wakeup: Wakeup, steps: list[str]) -> None:
    NAME.set("its own")
    while True:
        await wakeup
        steps.append(NAME.get())


async def in_a_callback(wakeup: Wakeup, times: int = 1) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def callback() -> None:
        for _ in range(times):
            wakeup.wake()
        done.set_result(None)

    loop.call_soon(callback)
    await done


async def test_the_step_is_taken_in_the_callback_and_in_the_tasks_context() -> None:
    wakeup, steps = Wakeup(), list[str]()
    task = asyncio.create_task(waits(wakeup, steps))
    await asyncio.sleep(0)
    loop, seen = asyncio.get_running_loop(), []

    def callback() -> None:
        wakeup.wake()
        wakeup.wake()
        seen.extend(steps)

    loop.call_soon(callback)
    await asyncio.sleep(0)
    assert seen == ["its own", "its own"]
    assert NAME.get() == "nobody's"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_that_wakes_another_does_not_step_it() -> None:
    wakeup, steps = Wakeup(), list[str]()
    task = asyncio.create_task(waits(wakeup, steps))
    await asyncio.sleep(0)
    wakeup.wake()
    wakeup.wake()
    assert not steps
    await asyncio.sleep(0)
    assert steps == ["its own"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_waking_nobody_is_nothing() -> None:
    wakeup = Wakeup()
    await in_a_callback(wakeup, times=3)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await wakeup


async def test_whoever_is_cancelled_while_it_waits_is_cancelled_once() -> None:
    wakeup, steps = Wakeup(), list[str]()

    async def stubborn() -> None:
        try:
            await wakeup
        except asyncio.CancelledError:
            steps.append("cancelled")
        await wakeup
        steps.append("woken")

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    task.cancel()
    wakeup.wake()  # too late
    await asyncio.sleep(0)
    assert steps == ["cancelled"]
    await in_a_callback(wakeup)
    await task
    assert steps == ["cancelled", "woken"]


async def test_a_timeout_ends_the_wait() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await Wakeup()


async def test_an_error_of_the_step_is_the_tasks() -> None:
    wakeup = Wakeup()

    async def breaks() -> None:
        await wakeup
        raise KeyError("x")

    task = asyncio.create_task(breaks())
    await asyncio.sleep(0)
    await in_a_callback(wakeup)
    with pytest.raises(KeyError):
        await task
