"""The collector of a worker that serves for weeks: short pauses for it, and memory back to the system.

For ``millstream serve``, which has its process to itself. An application that mounts Millstream decides.
"""

import asyncio
import ctypes
import gc
import logging

from millstream.database import Database
from millstream.errors import safe_traceback
from millstream.runtime import Runtime

log = logging.getLogger("millstream.server")

# A running stream is some 140 objects to the collector, and hardly any of ours end in cycles. With Python's
# own thresholds a full look at a thousand streams stopped all of them for 100 ms, every few seconds.
_COLLECTOR = (5_000, 10, 50)

_LOOK_SECONDS = 5.0
RUSH = 500  # streams that are worth it
_OVER = 4  # to one: how far down they must be
RUNNING = 100  # streams that may run meanwhile: the collector's look at them takes 10 ms


def freeze() -> None:
    """To be called when all is loaded: what was made until now stays, and need not be looked at again."""
    gc.set_threshold(*_COLLECTOR)
    gc.collect()
    gc.freeze()


class Rush:
    """Notices when many streams have come and gone."""

    def __init__(self) -> None:
        self._most = 0

    def over(self, kept: int, running: int) -> bool:
        """Whether it is, now that so many streams are ``kept`` and ``running``. Says so once."""
        self._most = max(self._most, kept)
        if self._most < RUSH or kept * _OVER > self._most or running > RUNNING:
            return False
        self._most = kept
        return True


async def collect_after_rushes(runtime: Runtime) -> None:
    """Gives memory back after each rush. Runs until it is cancelled."""
    rush = Rush()
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        if rush.over(runtime.journal.count(), len(runtime.streams)):
            try:
                await give_back(runtime.database)
            except Exception as error:  # it was only an offer
                log.error("memory: %s", safe_traceback(error))


async def give_back(database: Database) -> None:
    """Gives the system back what nobody uses.

    Left to themselves, Python and the C library keep it for what may come: they part with a megabyte only if
    nothing is in it, and single small objects from the time of the rush are in most of them.
    """
    await database.close_idle_connections()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only GNU's C library needs it, and has it
    if trim is not None:
        trim(0)
