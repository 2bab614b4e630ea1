"""The producer: a provider's batches -> the journal, then the ledger.

A producer belongs to its stream, not to a connection: it runs in the application's lifespan, so that no
cancelled request can take the bill with it.

How a stream ends:

    asked      the provider is not called yet    -> producing, ending
    producing  the provider is being read        -> ending
    ending     what the ledger will say is fixed -> settled
    settled    the row is closed

    what happens                              terminal event                     row
    the provider finishes                     StreamEnd, its reason              completed
    a client, the policy or a drain stops it  StreamEnd, cancelled               cancelled
    a budget is used up                       StreamEnd, budget_exceeded         cancelled
    its key is revoked                        StreamFailed, unauthorized         failed
    its idempotency key is taken              none: the journal forgets the stream   none
    a limit does not allow it                 none: the journal forgets the stream   none
    the provider fails or is cut              StreamFailed, that error           failed
    the total clock runs out                  StreamFailed, upstream_timeout     failed
    the row cannot be written                 StreamFailed, that error           failed
    a fault of ours                           StreamFailed, internal             failed
    its worker was thought dead, or is        StreamFailed, interrupted          interrupted

Whatever comes first decides: once a stream is ending, nothing changes what it ends with.
"""

import asyncio
import logging
from contextlib import AbstractContextManager, suppress
from enum import Enum
from functools import partial

import msgspec
from msgspec import Struct

from millstream import deadlines, traces
from millstream.dialects import Ask
from millstream.errors import (
    BudgetExceeded,
    Draining,
    IdempotencyConflict,
    Internal,
    Interrupted,
    JournalError,
    MillstreamError,
    Overloaded,
    ProviderError,
    RateLimited,
    StreamClosed,
    StreamFull,
    TooManyStreams,
    UpstreamError,
    UpstreamTimeout,
    fault,
)
from millstream.events import (
    EndedBy,
    Event,
    FinishReason,
    StreamEnd,
    StreamFailed,
    StreamInfo,
    Terminal,
    is_cut,
)
from millstream.journals import Journal
from millstream.ledger import Claimed, Ledger
from millstream.ledger.rows import Opening, Settlement, Status, without_costs
from millstream.ledger.writer import NeverWritten, Opened
from millstream.limits import Standing
from millstream.log_ids import STREAM_ID
from millstream.routing import Batch, Routed
from millstream.streams import lines
from millstream.streams.allowance import Allowance
from millstream.streams.audience import Audience, SendAway
from millstream.streams.cancel_scope import CancelScope
from millstream.streams.parts import Assembler
from millstream.streams.tally import NOTHING, Tally
from millstream.usage import UNKNOWN, Bill, Usage

log = logging.getLogger("millstream.streams")


class State(Enum):
    """Where a stream is between being asked for and being settled."""

    ASKED = "asked"
    PRODUCING = "producing"
    ENDING = "ending"
    SETTLED = "settled"


class _Spent(Exception):
    """The stream has used up a budget."""


class _Stop(Struct, frozen=True):
    """Somebody has stopped the stream; ``because`` is the error that it ends with, if it is one."""

    because: MillstreamError | None
    by: EndedBy


class Producer:
    """Produces one stream. ``run`` is its task; everything else may be called at any time."""

    __slots__ = (
        "_allowance",
        "_assembler",
        "_first_event_at",
        "_is_drained",
        "_is_overdue",
        "_journal",
        "_ledger",
        "_ledger_says",
        "_limit_seconds",
        "_opening",
        "_routed",
        "_scope",
        "_settlement",
        "_stop",
        "_tally",
        "audience",
        "info",
        "key_id",
        "left_out",
        "opened",
        "state",
    )

    def __init__(
        self,
        info: StreamInfo,
        opening: Opening,
        ask: Ask,
        routed: Routed,
        journal: Journal,
        ledger: Ledger,
        limit_seconds: float,
    ) -> None:
        self.info = info
        self.key_id = opening.key_id
        self.state = State.ASKED
        self.left_out = routed.deployment.left_out(ask.prompt)
        self.audience = Audience(ask.on_disconnect, partial(self.cancel, by="policy"))
        self._opening = opening
        self._routed = routed
        self._journal = journal
        self._ledger = ledger
        self._limit_seconds = min(limit_seconds, routed.deployment.stream_seconds or limit_seconds)
        self._assembler = Assembler()
        self._tally = Tally(
            info.stream_id,
            self._assembler,
            ask.prompt.messages,
            routed.deployment.encoding,
            routed.deployment.tariff,
            opening.created_at,
        )
        self._assembler.hides_costs = self._tally.marks_up
        self._ledger_says: Opened | None = None  # of its limits, where it has any
        self._allowance: Allowance | None = None  # where it has budgets
        self._scope = CancelScope()
        self._is_overdue = False  # the total clock was the first to stop it
        self._stop: _Stop | None = None
        self._is_drained = False
        self._settlement: Settlement | None = None  # from ENDING on
        self._first_event_at: float | None = None
        # Done when the row is opened; fails where it cannot be, or where the idempotency key is another's.
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def reading(self, send_away: SendAway | None = None) -> AbstractContextManager[None]:
        """To be held while a connection of this worker follows the stream, which nobody will send away."""
        return self.audience.reading(send_away)

    def cancel(self, because: MillstreamError | None = None, *, by: EndedBy = "client") -> None:
        """Closes the provider at once. The stream ends ``cancelled``, or failed with ``because``."""
        if not self._is_stopped:
            self._stop = _Stop(because, by)
            self._scope.cancel()

    def _run_out(self) -> None:
        """The total clock has rung."""
        if not self._is_stopped:
            self._is_overdue = True
            self._scope.cancel()

    @property
    def _is_stopped(self) -> bool:
        """Whether nothing can stop it any more: something has, or its end is decided."""
        return self._stop is not None or self._is_overdue or self.is_ending

    def drain(self) -> None:
        """As ``cancel``, because its worker ends."""
        self._is_drained = True
        self.cancel(by="operator")

    async def run(self) -> None:
        """Produces the stream to its end and settles it. Raises nothing but cancellation, which only
        the end of the worker may bring.
        """
        STREAM_ID.set(self.info.stream_id)
        try:
            if await self._open():
                await self._relay()
        except Exception as error:  # whatever breaks, the stream ends and its row is settled
            internal = fault(log, self.info.stream_id, error)
            await self._abandon(internal)
            if not self.opened.done():
                self._not_opened(internal)
        self.audience.dismiss()
        if self._settlement is not None:
            # First: should this worker die in between, its row is an orphan's and the journal looked after.
            await self._journal.flush(self.info.stream_id)
            await self._ledger.settle(self._settlement)
            self.state = State.SETTLED
            traces.record(self._opening, self._settlement)
            lines.record(self._opening, self._settlement)

    async def checkpoint(self) -> None:
        """Notes in the ledger what would be lost if the worker died now."""
        if not self.has_grown:
            return
        self._tally.mark_checkpoint()
        usage = await self._tally.usage(accepted=self._was_called)
        if not self.is_ending:
            usage = usage.sourced("checkpoint")
            charge, answering = self._tally.charge(usage), self._routed.deployment
            names = answering.provider_name, answering.upstream_name
            self._ledger.checkpoint(self.info.stream_id, usage, charge, *names)

    @property
    def has_grown(self) -> bool:
        """Whether there is something that the last checkpoint does not have."""
        return not self.is_ending and self._tally.has_grown

    @property
    def is_ending(self) -> bool:
        """Whether it is decided what the stream ends with."""
        return self.state in (State.ENDING, State.SETTLED)

    @property
    def has_token(self) -> bool:
        """Whether it was started with a browser token."""
        return self._opening.token_id is not None

    @property
    def one_more_than(self) -> int | None:
        """How many its token may have open, where the ledger refused to open it because so many are."""
        refused = self.opened.done() and isinstance(self.opened.exception(), TooManyStreams)
        return self._opening.max_open if refused and not self.is_limited else None

    @property
    def _was_called(self) -> bool:
        """Whether the provider has been asked."""
        return self.state is not State.ASKED

    @property
    def is_limited(self) -> bool:
        """Whether limits apply to it. Whoever starts it waits until it is ``opened``."""
        return self._opening.demand is not None

    @property
    def standings(self) -> tuple[Standing, ...]:
        """How its limits stood when it was opened."""
        return () if self._ledger_says is None else self._ledger_says.standings

    async def _open(self) -> bool:
        """No row, no call."""
        try:
            self._ledger_says = await self._ledger.open(self._opening)
        except (Claimed, IdempotencyConflict) as error:
            await self._journal.forget(self.info.stream_id)
            self._not_opened(error)
        except MillstreamError as error:
            if self.is_limited and isinstance(error, (RateLimited, BudgetExceeded, TooManyStreams)):
                await self._journal.forget(self.info.stream_id)
            else:
                # Its row may have been written all the same, where only the answer was lost: it is settled.
                await self._fail(error, "crash" if isinstance(error, Overloaded) else "limit")
                if isinstance(error, NeverWritten):
                    self._settlement = None
            self._not_opened(error)
        else:
            self._allow()
            self.opened.set_result(None)
            return True
        return False

    def _allow(self) -> None:
        demand, opened = self._opening.demand, self._ledger_says
        if demand is None or opened is None:
            return
        if demand.prompt_tokens is not None:
            self._tally.expects(demand.prompt_tokens)
        if opened.hold.has_tokens or opened.hold.has_dollars:
            self._allowance = Allowance(self.info.stream_id, demand, opened.hold, self._ledger, self._tally)

    def _not_opened(self, error: Exception) -> None:
        self.opened.set_exception(error)
        self.opened.exception()  # looked at, should nobody wait for it

    async def _relay(self) -> None:
        """From the provider to the terminal event, whatever happens on the way."""
        limit = deadlines.at(asyncio.get_running_loop().time() + self._limit_seconds, self._run_out)
        try:
            # Two ways to be stopped from outside, of which the first takes effect: the total clock and a
            # cancel.
            with self._scope:
                if self._stop is None:
                    await self._produce()
        except _Spent:
            await self._end("budget_exceeded", "cancelled", "limit")
        except MillstreamError as error:
            await self._fail(error, "limit" if isinstance(error.__cause__, StreamFull) else "provider")
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled():
                raise
            if self._stop is None and not self._is_overdue:
                await self._fail(fault(log, self.info.stream_id, error), "crash")
        finally:
            limit.cancel()
        if self._stop is not None or self._is_overdue:
            for batch in self._routed.pending:  # of an answer that had just begun, or its usage
                with suppress(JournalError):
                    await self._append(self._assembler.feed(batch))
            if self._stop is None:
                await self._fail(UpstreamTimeout(f"the answer took over {self._limit_seconds:g} s"), "limit")
            elif self._stop.because is None:
                await self._end("cancelled", "cancelled", self._stop.by)
            else:
                await self._fail(self._stop.because, self._stop.by)

    async def _produce(self) -> None:
        self.state = State.PRODUCING
        async with self._routed.answering() as (begun, rest):
            deployment = self._routed.deployment
            self._tally.answered_by(deployment.encoding, deployment.tariff)
            self._assembler.hides_costs = self._tally.marks_up
            for batch in begun:
                await self._take(batch)
            async for batch in rest:
                await self._take(batch)
            if self._assembler.finish is None:
                raise UpstreamError(f"provider '{deployment.provider_name}' cut its answer off")

    async def _take(self, batch: Batch) -> None:
        """From the provider to the journal."""
        events = self._assembler.feed(batch)
        try:
            await self._append(events)
        except StreamFull as error:
            raise UpstreamError("the answer is longer than a stream may be") from error
        if self._assembler.fault is not None:
            raise self._assembler.fault
        if self._assembler.finish is not None:
            await self._end(self._assembler.finish.reason, "completed", "provider")
        elif self._allowance is not None and not await self._allowance.allows(events):
            raise _Spent

    async def _append(self, events: list[Event]) -> None:
        if not events:
            return
        if self._first_event_at is None:
            self._first_event_at = self._routed.now()
        try:
            await self._journal.append(self.info.stream_id, events)
        except StreamFull:
            self._assembler.lost(events)
            raise

    async def _end(self, reason: FinishReason, status: Status, by: EndedBy) -> None:
        if self.is_ending:
            return
        bill = self._decide(status, by, await self._tally.usage(accepted=self._was_called), reason=reason)
        finish = self._assembler.finish
        if finish is None:
            because = Draining.code if self._is_drained and reason == "cancelled" else ""
            await self._append_end(StreamEnd(reason, bill, because=because))
            return
        reported = self._assembler.reported  # which can be written, whatever the provider is
        raw = None if reported.usage is None else msgspec.json.decode(reported.usage)
        extra = finish.extra
        if self._tally.marks_up:  # what it costs is nobody's business
            raw, extra = (one and without_costs(one) for one in (raw, extra))
        word = reported.finish_reason or ""
        await self._append_end(StreamEnd(reason, bill, word, finish.stop_sequence, raw, extra))

    async def _fail(self, error: MillstreamError, by: EndedBy) -> None:
        if self.is_ending:
            return
        accepted = error.accepted if isinstance(error, ProviderError) else self._was_called
        status: Status = "interrupted" if isinstance(error, Interrupted) else "failed"
        bill = self._decide(status, by, await self._tally.usage(accepted=accepted), error_code=error.code)
        await self._append_end(StreamFailed.of(error, bill))

    async def _append_end(self, terminal: Terminal) -> None:
        """If others have ended the stream, because this worker seemed dead, that end stands: the row says the
        same, with our numbers.
        """
        try:
            await self._journal.append(
                self.info.stream_id, [*self._assembler.close(cut=is_cut(terminal)), terminal]
            )
        except StreamClosed:
            assert self._settlement is not None
            self._settlement = msgspec.structs.replace(
                self._settlement,
                status="interrupted",
                finish_reason=None,
                error_code=Interrupted.code,
                ended_by="crash",
                corrects=True,
            )

    async def _abandon(self, error: Internal) -> None:
        """The end of a stream whose proper end failed, with what needs no more work to be known."""
        if self._settlement is None:
            ends = partial(self._decide, "failed", "crash", error_code=error.code, priced=False)
            try:
                ends(self._tally.last_known())
            except Exception:  # what the provider says of its end is what is broken
                self._assembler.disown_end()
                ends(NOTHING)
        assert self._settlement is not None
        with suppress(JournalError):  # it has its terminal event
            failed = StreamFailed.of(error, Bill(self._settlement.usage, None))
            await self._journal.append(self.info.stream_id, [failed])

    def _decide(
        self,
        status: Status,
        by: EndedBy,
        usage: Usage,
        *,
        reason: FinishReason | None = None,
        error_code: str | None = None,
        priced: bool = True,
    ) -> Bill:
        """Decides what the ledger will say; the terminal event says the same."""
        charge = self._tally.charge(usage) if priced else UNKNOWN
        deployment = self._routed.deployment
        self._settlement = Settlement(
            self.info.stream_id,
            status,
            reason,
            error_code,
            usage,
            charge,
            self._first_event_at,
            self._routed.now(),
            deployment.provider_name,
            deployment.upstream_name,
            by,
            reported=self._assembler.reported,
            attempts=self._routed.attempts(error_code),
            is_limited=self.is_limited,
        )
        self.state = State.ENDING
        return Bill.of(usage, charge)


def _is_cancelled() -> bool:
    """Whether this task itself is being cancelled, and not something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
