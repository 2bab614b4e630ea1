"""Readiness: do the stores answer? Anybody may ask at any time, so it is found out once a second."""

import asyncio
import time

from millstream.database import Database, DatabaseAway
from millstream.errors import Overloaded
from millstream.journals import Journal

KEPT_SECONDS = 1.0


class Readiness:
    """All who ask while it is being found out get the same answer."""

    def __init__(self, database: Database, journal: Journal) -> None:
        self._database = database
        self._journal = journal
        self._finding_out = asyncio.Lock()
        self._problem: str | None = None
        self._found_at: float | None = None

    async def problem(self) -> str | None:
        """What is wrong, in a few words, or None."""
        async with self._finding_out:
            if self._found_at is None or time.monotonic() - self._found_at >= KEPT_SECONDS:
                self._problem = await self._find_out()
                self._found_at = time.monotonic()
            return self._problem

    async def _find_out(self) -> str | None:
        try:
            await self._database.ping()
        except DatabaseAway:
            return "the database does not answer"
        try:
            await self._journal.ping()
        except Overloaded:
            return "the journal does not answer"
        return None
