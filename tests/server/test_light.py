"""What uvicorn keeps for a connection, in our form."""

import asyncio
from typing import Any, cast

from millstream.server.process.light import Event, Flow, Pipeline


async def test_an_event_wakes_all_who_wait_and_forgets_who_gave_up() -> None:
    event = Event(is_set=False)
    waiting = [asyncio.create_task(event.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.sleep(0)
    event.set()
    assert await asyncio.gather(*waiting, return_exceptions=True) != []
    assert [task.cancelled() for task in waiting] == [False, True, False]
    assert event.is_set()
    assert await event.wait()
    event.clear()
    assert not event.is_set()


class Transport:
    def __init__(self) -> None:
        self.reads = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


async def test_flow_holds_who_writes_while_the_client_takes_nothing() -> None:
    transport = Transport()
    flow = Flow(cast(Any, transport))
    await flow.drain()
    flow.pause_writing()
    assert flow.write_paused
    writing = asyncio.create_task(flow.drain())
    await asyncio.sleep(0)
    assert not writing.done()
    flow.pause_writing()  # again: who waits already is not forgotten
    flow.resume_writing()
    await writing
    flow.pause_reading()
    assert flow.read_paused
    assert not transport.reads
    flow.resume_reading()
    assert not flow.read_paused
    assert transport.reads


def test_a_pipeline_is_first_in_first_out() -> None:
    pipeline = Pipeline()
    for number in range(3):
        pipeline.appendleft(number)
    assert pipeline.popleft() == 2
    assert [pipeline.pop(), pipeline.pop()] == [0, 1]
