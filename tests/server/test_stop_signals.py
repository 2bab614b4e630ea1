"""Signals that stop a server are heard beside it."""

import asyncio
import os
import signal
from collections.abc import Generator
from types import FrameType

import pytest

from millstream.server import stop_signals


@pytest.fixture
def stops() -> Generator[list[int]]:
    """The signals that the server has handled."""
    handled: list[int] = []

    def server(number: int, _: FrameType | None) -> None:
        handled.append(number)

    before = signal.signal(signal.SIGTERM, server)
    yield handled
    signal.signal(signal.SIGTERM, before)


async def test_the_server_handles_its_signal_and_the_streams_hear_it(stops: list[int]) -> None:
    heard = asyncio.Event()
    server = signal.getsignal(signal.SIGTERM)
    with stop_signals.heard(heard.set):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(heard.wait(), 5)
    assert stops == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is server


async def test_a_handler_that_came_later_stays(stops: list[int]) -> None:
    with stop_signals.heard(lambda: None):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


async def test_a_signal_that_nobody_handles_keeps_its_meaning() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with stop_signals.heard(lambda: None):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_outside_of_the_main_thread_nothing_is_heard(stops: list[int]) -> None:
    server = signal.getsignal(signal.SIGTERM)

    async def work() -> None:
        with stop_signals.heard(lambda: None):
            assert signal.getsignal(signal.SIGTERM) is server

    await asyncio.to_thread(asyncio.run, work())
