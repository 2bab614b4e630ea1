"""Cancel scopes, which others cancel and nobody outside of them notices."""

import asyncio
from collections.abc import Coroutine

import pytest

from millstream.streams.cancel_scope import CancelScope


async def turns_until_cancelled(scope: CancelScope, body: Coroutine[object, object, None]) -> int:
    """How many turns of the loop pass from ``cancel`` until the body is over."""
    task = asyncio.create_task(body)
    await asyncio.sleep(0)
    scope.cancel()
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    await task
    return turns


async def test_the_body_ends_in_the_next_turn_of_the_loop_and_its_task_goes_on() -> None:
    scope, seen = CancelScope(), []

    async def body() -> None:
        with scope:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("left")
        seen.append("after")
        await asyncio.sleep(0)

    assert await turns_until_cancelled(scope, body()) <= 2
    assert seen == ["left", "after"]
    assert scope.cancelled


async def test_a_cancellation_of_the_task_itself_is_not_swallowed() -> None:
    scope = CancelScope()

    async def body() -> None:
        with scope:
            await asyncio.Event().wait()

    for with_scope in (False, True):
        scope = CancelScope()
        task = asyncio.create_task(body())
        await asyncio.sleep(0)
        if with_scope:
            scope.cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()


async def test_who_cancels_its_own_body_at_its_end_meets_nothing_later() -> None:
    scope = CancelScope()
    with scope:
        scope.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not scope.cancelled


async def test_who_cancels_its_own_body_is_cancelled_at_its_next_await() -> None:
    with CancelScope() as scope:
        scope.cancel()
        await asyncio.Event().wait()
    assert scope.cancelled
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_an_error_of_the_body_is_not_swallowed() -> None:
    scope = CancelScope()

    async def body() -> None:
        with scope:
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError

    with pytest.raises(ValueError):
        await turns_until_cancelled(scope, body())


async def test_before_and_after_its_body_it_cancels_nothing() -> None:
    scope = CancelScope()
    scope.cancel()
    with scope:
        await asyncio.sleep(0)
    scope.cancel()
    await asyncio.sleep(0)
    assert not scope.cancelled
