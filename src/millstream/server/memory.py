"""The memory of a process that serves for weeks: short pauses to collect it, and back to the system later.

For ``millstream serve``, which has its process to itself. An application that mounts Millstream decides.
"""

import asyncio
import ctypes
import gc
import logging

from millstream.errors import whereabouts
from millstream.server.app import Millstream

log = logging.getLogger("millstream.server")

# A running stream is some 140 objects to the collector, and hardly any of ours end in cycles. With Python's
# own thresholds a full look at a thousand streams stopped all of them for 100 ms, every few seconds.
_COLLECTOR = (5_000, 10, 50)

_LOOK_SECONDS = 5.0
_RUSH = 500  # streams that are worth it
_OVER = 4  # to one: how far down they must be
_RUNNING = 100  # streams that may run meanwhile: the collector's look at them takes 10 ms


def settle() -> None:
    """To be called when all is loaded: what was made until now stays, and need not be looked at again."""
    gc.set_threshold(*_COLLECTOR)
    gc.collect()
    gc.freeze()


async def give_back(millstream: Millstream) -> None:
    """Gives memory back to the system whenever many streams have come and gone. Runs until it is cancelled.

    Left to themselves, Python and the C library keep it for what may come: they part with a megabyte only if
    nothing is in it, and single small objects from the time of the rush are in most of them.
    """
    most = 0
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        kept = millstream.event_log.count()
        most = max(most, kept)
        if most >= _RUSH and kept * _OVER <= most and len(millstream.generations) <= _RUNNING:
            most = kept
            try:
                await millstream.database.rest()
                gc.collect()
                _trim()
            except Exception as error:  # it was only an offer
                log.error("memory: %s", whereabouts(error))


def _trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only GNU's C library needs it, and has it
    if trim is not None:
        trim(0)
