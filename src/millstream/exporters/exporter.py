"""An exporter: exports that are due -> its service, and what became of each -> the ledger.

    due -> leased -> sent -> deleted
                       |---> due later       no answer, or one that asks for another time
                       '---> waits for `millstream exports retry`     refused

Whoever is killed leaves leases, which end; what was sent by then is sent again under the same id. Only what
is leased is in memory: ``BATCH`` exports.
"""

import asyncio
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from millstream.database import DatabaseAway
from millstream.errors import safe_traceback
from millstream.exporters import Form, Message, Unsendable
from millstream.exporters.delivery import Delivered, Delivery, Later, Outcome, Refused
from millstream.ledger.exports import MAX_PAUSE_SECONDS, Export, Exports, Kept

log = logging.getLogger("millstream.exporters")

BATCH = 200
IN_FLIGHT = 16  # requests
LEASE_SECONDS = 60.0
_POLL_SECONDS = 1.0
_MAX_REST_SECONDS = 60.0
_LOOK_SECONDS = 60.0
_LATE_SECONDS = 120.0  # what is behind by more is said in the log
_STOP_SECONDS = 2.0

_Letter: TypeAlias = tuple[Export, Message]


class _Round:
    """What became of the exports of one lease."""

    def __init__(self) -> None:
        self.delivered: list[Export] = []  # with those of which there is nothing to send
        self.has_sent = False  # something that the service took
        self.kept: list[Kept] = []
        self.refusals: Counter[str] = Counter()  # by reason
        self.later: Later | None = None  # the last of those
        self.closed: Later | None = None

    def refuse(self, export: Export, reason: str, words: str, *, may_have_arrived: bool = False) -> None:
        self.refusals[reason] += 1
        self.kept.append(Kept(export, None, words, may_have_arrived))

    @property
    def is_in_vain(self) -> bool:
        return not self.has_sent and (self.later or self.closed) is not None


class Exporter:
    """To be entered (``async with``). Any number of workers may have one of the same name: an export is
    leased to one of them.

    ``per_second`` is the most exports of this worker in a second, on average.
    """

    def __init__(
        self,
        name: str,
        form: Form,
        delivery: Delivery,
        exports: Exports,
        *,
        per_second: float | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.name = name
        self._form = form
        self._delivery = delivery
        self._exports = exports
        self._per_second = per_second
        self._lease_seconds = lease_seconds
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._vain_rounds = 0

    async def __aenter__(self) -> "Exporter":
        self._tasks = [
            asyncio.create_task(work(), name=f"{work.__name__} {self.name}")
            for work in (self._send_what_is_due, self._look_after)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Waits for answers that are on their way; what gives none in time is sent again after its lease."""
        self._stopping.set()
        await asyncio.wait(self._tasks, timeout=_STOP_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.close()

    def close(self) -> None:
        """Cuts the connections to the service."""
        self._delivery.close()

    async def _send_what_is_due(self) -> None:
        while not self._stopping.is_set():
            try:
                pause = await self.round()
            except Exception as error:  # what was leased is due again when that ends
                log.error("exporter '%s': %s", self.name, safe_traceback(error))
                pause = _POLL_SECONDS
            await self._pause(pause)

    async def _look_after(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._exports.begin(self.name)
                await self._exports.mend_clock(self.name)
                for state in await self._exports.states(self.name):
                    if state.lag_seconds > _LATE_SECONDS:
                        log.warning(
                            "exporter '%s' is %.0f s behind: %d streams wait",
                            *(self.name, state.lag_seconds, state.waiting),
                        )
            except Exception as error:
                log.error("exporter '%s': %s", self.name, safe_traceback(error))
            await self._pause(_LOOK_SECONDS)

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            await asyncio.wait([waits := asyncio.ensure_future(self._stopping.wait())], timeout=seconds)
            waits.cancel()

    async def round(self) -> float:
        """Leases what is due, up to ``BATCH``, and sends it. Returns for how many seconds to pause. Raises
        ``DatabaseAway``.
        """
        if not await self._exports.are_due(self.name):
            return _POLL_SECONDS
        loop = asyncio.get_running_loop()
        began = loop.time()
        leased = await self._exports.lease(self.name, BATCH, self._lease_seconds)
        done = _Round()
        await self._send(self._written(leased, done), done, by=began + self._lease_seconds / 2)
        await self._note(done)
        pace = len(leased) / self._per_second - (loop.time() - began) if self._per_second else 0.0
        idle = _POLL_SECONDS if len(leased) < BATCH else 0.0
        return max(self._rest_seconds(done), pace, idle)

    # -- sending -------------------------------------------------------------------------------

    def _written(self, leased: Sequence[Export], done: _Round) -> list[_Letter]:
        """Those that there is something to send of."""
        letters: list[_Letter] = []
        for export in leased:
            if self._is_too_late(export):
                words = "it was sent long ago without an answer, and may have been counted: look there first"
                done.refuse(export, "it may have arrived", words, may_have_arrived=True)
                continue
            try:
                message = self._form.message(export)
            except Unsendable as error:
                done.refuse(export, "it cannot be sent", str(error))
                continue
            if message is None:
                done.delivered.append(export)
            else:
                letters.append((export, message))
        return letters

    def _is_too_late(self, export: Export) -> bool:
        """Whether the service may have it and would not know it again."""
        once, sent_at = self._form.once_seconds, export.sent_at
        return once is not None and sent_at is not None and self._exports.clock() - sent_at > once

    async def _send(self, letters: Sequence[_Letter], done: _Round, *, by: float) -> None:
        """In several lanes at a time; what is not begun ``by`` a moment of the loop is given back."""
        lanes = iter(self._lanes(letters))

        async def send_lanes() -> None:
            for lane in lanes:
                for some in lane:
                    await self._send_some(some, done, by)

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(send_lanes())

    def _lanes(self, letters: Sequence[_Letter]) -> list[list[list[_Letter]]]:
        """Requests that follow each other, and may go beside those of other lanes."""
        if not self._form.one_at_a_time:
            return [[some] for some in _split(letters, self._form.batch)]
        by_customer: dict[str, list[_Letter]] = defaultdict(list)
        for letter in letters:
            by_customer[letter[1].customer].append(letter)
        return [list(_split(theirs, self._form.batch)) for theirs in by_customer.values()]

    async def _send_some(self, letters: Sequence[_Letter], done: _Round, by: float) -> None:
        is_over = self._stopping.is_set() or asyncio.get_running_loop().time() > by
        if done.closed is not None or is_over:
            words = None if done.closed is None else done.closed.words
            done.kept += [Kept(e, self._exports.clock(), words, False, is_attempt=False) for e, _ in letters]
            return
        post = self._form.post([message for _, message in letters], self._exports.clock())
        outcome = await self._delivery.send(post, self._form.has_it)
        if isinstance(outcome, Refused) and len(letters) > 1:
            for letter in letters:  # to find out which
                await self._send_some([letter], done, by)
            return
        for export, _ in letters:
            self._take(export, outcome, done)

    def _take(self, export: Export, outcome: Outcome, done: _Round) -> None:
        match outcome:
            case Delivered():
                done.delivered.append(export)
                done.has_sent = True
            case Refused():
                done.refuse(export, outcome.reason, outcome.words)
            case Later():
                done.later = outcome
                pause = max(outcome.pause_seconds, _backoff(export.attempts, MAX_PAUSE_SECONDS))
                if outcome.is_closed:
                    done.closed, pause = outcome, 0.0  # the exporter itself rests
                due_at = self._exports.clock() + min(pause, MAX_PAUSE_SECONDS)
                done.kept.append(
                    Kept(
                        export,
                        due_at,
                        outcome.words,
                        outcome.may_have_arrived,
                        is_attempt=not outcome.is_closed,
                    )
                )

    # -- afterwards ----------------------------------------------------------------------------

    async def _note(self, done: _Round) -> None:
        """Tries for as long as the leases last: after that, all of it is sent again."""
        until = asyncio.get_running_loop().time() + self._lease_seconds / 2
        while True:
            try:
                await self._exports.finish(self.name, done.delivered, done.kept)
                break
            except DatabaseAway:
                if self._stopping.is_set() or asyncio.get_running_loop().time() > until:
                    raise
            await asyncio.sleep(_POLL_SECONDS)
        for reason, number in done.refusals.items():
            log.error(
                "exporter '%s': %d streams are kept: %s; see them with: millstream exports",
                *(self.name, number, reason),
            )

    def _rest_seconds(self, done: _Round) -> float:
        """For how long nothing is sent, since the service takes nothing now."""
        if done.is_in_vain:
            self._vain_rounds += 1
        elif done.has_sent and self._vain_rounds:
            self._vain_rounds = 0
            log.warning("exporter '%s' delivers again", self.name)
        if done.closed is None and not done.is_in_vain:
            return 0.0
        rest = _backoff(max(self._vain_rounds, 1), _MAX_REST_SECONDS)
        if done.closed is not None:
            rest = max(rest, min(done.closed.pause_seconds, MAX_PAUSE_SECONDS))
        if self._vain_rounds == 1:
            reason = (done.closed or done.later or Later("", "", False, False)).reason
            log.warning("exporter '%s' delivers nothing: %s; it goes on trying", self.name, reason)
        return rest


def _split(letters: Sequence[_Letter], size: int) -> Iterator[list[_Letter]]:
    for start in range(0, len(letters), size):
        yield list(letters[start : start + size])


def _backoff(attempts: int, most: float) -> float:
    """Doubles with each attempt, with a random share, so that not all come back at once."""
    return min(2.0 ** min(attempts, 30), most) * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
