"""The producer: a provider's batches -> the log, then the ledger.

A generation belongs to its stream, not to a connection: it lives in the application's lifespan, so that no
request that is cancelled can take the bill with it. Readers only come and go; what their leaving means
is decided here, in ``Generation._left``.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Generator
from contextlib import aclosing, contextmanager, suppress
from decimal import Decimal

from millstream import tokens, traces
from millstream.catalog import Model
from millstream.errors import (
    IdempotencyConflict,
    Internal,
    LogError,
    MillstreamError,
    ProviderError,
    StreamFull,
    UpstreamError,
    UpstreamTimeout,
    whereabouts,
)
from millstream.events import (
    Bill,
    FinishReason,
    StreamEnd,
    StreamFailed,
    StreamInfo,
    Usage,
)
from millstream.ledger import Claimed, Ledger, Opening, Settlement, Status
from millstream.logs import READING_LAPSES_SECONDS, EventLog
from millstream.messages import ChatRequest, Grace
from millstream.parts import Assembler
from millstream.prices import Price, to_dollars, to_picodollars

log = logging.getLogger("millstream.generation")

_FIRST_READER_SECONDS = 30.0  # what a stream waits for one that has nobody to read it yet


class Generation:
    """One stream's producer. ``run`` is its task; everything else may be called at any time."""

    def __init__(
        self,
        info: StreamInfo,
        opening: Opening,
        request: ChatRequest,
        model: Model,
        price: Price | None,
        event_log: EventLog,
        ledger: Ledger,
        limit_seconds: float,
    ) -> None:
        self.info = info
        self.key_id = opening.key_id
        self._opening = opening
        self._request = request
        self._model = model
        self._price = price
        self._log = event_log
        self._ledger = ledger
        self._limit_seconds = limit_seconds
        self._readers = 0
        self._elsewhere: dict[str, float] = {}  # processes with readers, and until when that is believed
        self._grace: asyncio.TimerHandle | None = None
        self._assembler = Assembler()
        self._scope: asyncio.Timeout | None = None
        self._stopped_by: MillstreamError | None = None
        self._stopped = False
        self._settlement: Settlement | None = None  # set with the terminal event
        self._first_event_at: float | None = None
        self._called = False  # the provider has been asked
        self._grown = False  # it has produced something
        self._unsaved = False  # since the last checkpoint
        self._prompt_tokens: int | None = None
        # Done when the row is opened; fails where it cannot be, or where the idempotency key is another's.
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- readers ----------------------------------------------------------------------------

    @contextmanager
    def reading(self, depart: Callable[[], None] | None = None) -> Generator[None]:
        """To be held while a connection of this process follows the stream."""
        self._readers += 1
        self._came()
        try:
            yield
        finally:
            self._readers -= 1
            self._left()

    def reading_elsewhere(self, process: str) -> None:
        """Another process has readers; it says so every few seconds."""
        self._elsewhere[process] = time.monotonic() + READING_LAPSES_SECONDS
        self._came()

    def left_elsewhere(self, process: str) -> None:
        if self._elsewhere.pop(process, None) is not None:
            self._left()

    def look_elsewhere(self) -> None:
        """Forgets processes that have not been heard of for a while. To be called every now and then."""
        now = time.monotonic()
        for process in [process for process, until in self._elsewhere.items() if until < now]:
            self.left_elsewhere(process)

    def await_reader(self) -> None:
        """For a stream that starts without a reader: it waits for one as long as for one that left."""
        self._left(first=True)

    def _came(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _left(self, *, first: bool = False) -> None:
        """The disconnect policy: what it means that nobody reads any more."""
        policy = self._request.on_disconnect
        if self._settlement is not None or self._readers or self._elsewhere or policy == "continue":
            return
        seconds = policy.grace_seconds if isinstance(policy, Grace) else _FIRST_READER_SECONDS if first else 0
        if seconds:
            self._came()  # one clock at a time, so that a reader who comes stops them all
            self._grace = asyncio.get_running_loop().call_later(seconds, self.cancel)
        else:
            self.cancel()

    def cancel(self, because: MillstreamError | None = None) -> None:
        """Closes the provider at once. The stream ends ``cancelled``, or failed with ``because``."""
        if self._stopped or self._settlement is not None:
            return
        if self._scope is not None:
            if self._scope.expired():
                return  # the total clock was first
            self._scope.reschedule(asyncio.get_running_loop().time())
        self._stopped = True
        self._stopped_by = because

    # -- the producer -----------------------------------------------------------------------

    async def run(self) -> None:
        """Produces the stream to its end and settles it. Raises nothing but cancellation, which only
        the end of the process may bring.
        """
        try:
            if await self._open():
                await self._relay()
        except Exception as error:  # whatever breaks, the stream ends and its row is settled
            log.error("stream %s: %s", self.info.stream_id, whereabouts(error))
            await self._abandon()
            if not self.opened.done():
                self._not_opened(Internal())
        self._came()
        if self._settlement is not None:
            # First: should this process die in between, its row is an orphan's and the log looked after.
            await self._log.flush(self.info.stream_id)
            await self._ledger.settle(self._settlement)
            traces.record(self._opening, self._settlement)

    async def _open(self) -> bool:
        """No row, no call."""
        try:
            await self._ledger.open(self._opening)
        except (Claimed, IdempotencyConflict) as error:
            await self._log.forget(self.info.stream_id)
            self._not_opened(error)
        except MillstreamError as error:
            # Its row may have been written all the same, where only the answer was lost: it is settled too.
            await self._fail(error)
            self._not_opened(error)
        else:
            self.opened.set_result(None)
            return True
        return False

    def _not_opened(self, error: Exception) -> None:
        self.opened.set_exception(error)
        self.opened.exception()  # looked at, should nobody wait for it

    async def _abandon(self) -> None:
        """The end of a stream whose proper end failed, with what needs no more work to be known."""
        error = Internal()
        if self._settlement is None:
            usage = self._assembler.usage or Usage(0, 0, "counted")
            self._settlement = Settlement(
                *(self.info.stream_id, "failed", None, error.code, usage, None),
                *(self._first_event_at, time.time()),
            )
        bill = Bill(self._settlement.usage, None)
        with suppress(LogError):  # it has its terminal event
            await self._log.append(
                self.info.stream_id, [StreamFailed(error.code, error.message, False, bill)]
            )

    async def _relay(self) -> None:
        """From the provider to the terminal event, whatever happens on the way."""
        try:
            # One scope for both ways to be stopped from outside: the total clock is its deadline,
            # and a cancel moves that deadline to now.
            async with asyncio.timeout(self._limit_seconds) as scope:
                self._scope = scope
                try:
                    if not self._stopped:
                        await self._produce()
                finally:
                    self._scope = None
        except MillstreamError as error:
            await self._fail(error)
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled():
                raise
            if not scope.expired():
                log.error("stream %s: %s", self.info.stream_id, whereabouts(error))
                await self._fail(Internal())
            elif not self._stopped:
                await self._fail(UpstreamTimeout(f"the answer took over {self._limit_seconds:g} s"))
        if self._stopped_by is not None:
            await self._fail(self._stopped_by)
        elif self._stopped:
            await self._end("cancelled", "cancelled")

    async def _produce(self) -> None:
        assembler, stream_id = self._assembler, self.info.stream_id
        self._called = True
        stream = self._model.provider.stream(self._request, self._model.upstream_name)
        async with aclosing(stream) as batches:
            async for batch in batches:
                events = assembler.feed(batch)
                if events:
                    if self._first_event_at is None:
                        self._first_event_at = time.time()
                    self._grown = self._unsaved = True
                    try:
                        await self._log.append(stream_id, events)
                    except StreamFull as error:
                        raise UpstreamError("the answer is longer than a stream may be") from error
                if assembler.finish is not None:
                    await self._end(assembler.finish.reason, "completed")
        if assembler.finish is None:
            name = self._model.provider_name
            raise UpstreamError(f"provider '{name}' cut its answer off")

    async def _end(self, reason: FinishReason, status: Status) -> None:
        if self._settlement is not None:
            return
        bill = self._settle(status, await self._usage(self._called), reason=reason)
        await self._log.append(self.info.stream_id, [*self._assembler.close(), StreamEnd(reason, bill)])

    async def _fail(self, error: MillstreamError) -> None:
        if self._settlement is not None:
            return
        accepted = error.accepted if isinstance(error, ProviderError) else self._called
        bill = self._settle("failed", await self._usage(accepted), error_code=error.code)
        failed = StreamFailed(error.code, error.message, error.retryable, bill, error.retry_after_seconds)
        await self._log.append(self.info.stream_id, [*self._assembler.close(), failed])

    # -- what it used -----------------------------------------------------------------------

    async def _usage(self, accepted: bool) -> Usage:
        """What the stream has used so far, from the best source there is. A provider that has not
        ``accepted`` the request bills nothing for it.
        """
        finish, running = self._assembler.finish, self._assembler.usage
        final = finish.usage if finish is not None else None
        for usage in (final, None if self._assembler.usage_is_stale else running):
            # A provider that counts nothing for something has not counted.
            if usage is not None and (usage.completion_tokens or not self._grown):
                return usage
        if not accepted and not self._grown:
            return Usage(0, 0, "counted")
        try:
            tokenizer = await tokens.load(self._model.encoding)
            completion = await self._assembler.generated.total(tokenizer)
        except Exception as error:  # a stream that cannot be counted has to be settled all the same
            log.error("stream %s cannot be counted: %s", self.info.stream_id, whereabouts(error))
            return running or Usage(0, 0, "counted")
        if running is not None:
            return Usage(running.prompt_tokens, completion, "counted", running.cached_tokens)
        if self._prompt_tokens is None:
            self._prompt_tokens = await tokens.count_prompt(tokenizer, self._request.messages)
        return Usage(self._prompt_tokens, completion, "counted")

    def _cost(self, usage: Usage) -> Decimal | None:
        return None if self._price is None else self._price.cost(usage)

    def _settle(
        self,
        status: Status,
        usage: Usage,
        *,
        reason: FinishReason | None = None,
        error_code: str | None = None,
    ) -> Bill:
        """Decides what the ledger will say; the terminal event says the same."""
        cost = self._cost(usage)
        self._settlement = Settlement(
            self.info.stream_id,
            status,
            reason,
            error_code,
            usage,
            cost,
            self._first_event_at,
            time.time(),
        )
        return Bill(usage, None if cost is None else to_dollars(to_picodollars(cost)))

    async def checkpoint(self) -> None:
        """Notes in the ledger what would be lost if the process died now."""
        if self._settlement is not None or not self._unsaved:
            return
        self._unsaved = False
        usage = await self._usage(self._called)
        if self._settlement is None:
            usage = Usage(usage.prompt_tokens, usage.completion_tokens, "checkpoint", usage.cached_tokens)
            self._ledger.checkpoint(self.info.stream_id, usage, self._cost(usage))


def _is_cancelled() -> bool:
    """Whether this task itself is being cancelled, and not something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
