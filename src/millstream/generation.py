"""The producer: a provider's batches -> the log, then the ledger.

A generation belongs to its stream, not to a connection: it lives in the application's lifespan, so that no
request that is cancelled can take the bill with it. Readers only come and go; what their leaving means
is decided here, in ``Generation._left``.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Generator
from contextlib import aclosing, contextmanager, suppress
from decimal import Decimal

from msgspec import Struct

from millstream import tokens
from millstream.auth import Keys, Principal
from millstream.catalog import LLMService, Model
from millstream.errors import (
    Draining,
    Internal,
    LogError,
    MillstreamError,
    Overloaded,
    ProviderError,
    StreamFull,
    Unauthorized,
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
    StreamStart,
    Usage,
)
from millstream.ledger import LEASE_SECONDS, Ledger, Opening, Settlement, Status
from millstream.logs import EventLog
from millstream.messages import ChatRequest, Grace
from millstream.parts import Assembler
from millstream.prices import Price, to_dollars, to_picodollars

log = logging.getLogger("millstream.generation")

_CHECKPOINT_SECONDS = 1.0
_SETTLE_SECONDS = 10.0
_SWEEP_SECONDS = 5.0
_REVOKED_SECONDS = 2.0


class Limits(Struct, frozen=True):
    """``seconds`` is the longest a stream may take; ``streams`` how many may run in this process."""

    seconds: float = 900
    streams: int = 10_000


class Generation:
    """One stream's producer. ``run`` is its task; everything else may be called at any time."""

    def __init__(
        self,
        info: StreamInfo,
        request: ChatRequest,
        model: Model,
        price: Price | None,
        event_log: EventLog,
        ledger: Ledger,
        limit_seconds: float,
    ) -> None:
        self.info = info
        self._request = request
        self._model = model
        self._price = price
        self._log = event_log
        self._ledger = ledger
        self._limit_seconds = limit_seconds
        self._readers = 0
        self._assembler = Assembler()
        self._scope: asyncio.Timeout | None = None
        self._stopped_by: MillstreamError | None = None
        self._stopped = False
        self._settlement: Settlement | None = None  # set with the terminal event
        self._first_event_at: float | None = None
        self._alive_at = time.monotonic()
        self._called = False  # the provider has been asked
        self._grown = False  # it has produced something
        self._unsaved = False  # since the last checkpoint
        self._prompt_tokens: int | None = None

    # -- readers ----------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Generator[None]:
        """To be held while a connection follows the stream."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._left()

    def _left(self) -> None:
        """The disconnect policy: what it means that nobody reads any more."""
        policy = self._request.on_disconnect
        if self._settlement is not None:
            return
        if policy == "cancel":
            self.cancel()
        elif isinstance(policy, Grace):
            asyncio.get_running_loop().call_later(policy.grace_seconds, self._cancel_if_unread)

    def _cancel_if_unread(self) -> None:
        if not self._readers:
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
        opening = Opening(
            self.info.stream_id,
            self.info.owner_id,
            self.info.model,
            self._model.provider_name,
            self.info.created_at,
            self._request.user,
        )
        try:
            await self._ledger.open(opening)
        except MillstreamError as error:
            await self._fail(error)  # no row, no call
            return
        try:
            await self._relay()
        except Exception as error:  # whatever breaks, the stream ends and its row is settled
            log.error("stream %s: %s", self.info.stream_id, whereabouts(error))
            await self._abandon()
        assert self._settlement is not None
        await self._ledger.settle(self._settlement)

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
        now = time.monotonic()
        if self._settlement is not None or not (self._unsaved or now - self._alive_at > LEASE_SECONDS / 3):
            return
        self._alive_at = now
        self._unsaved = False
        usage = await self._usage(self._called)
        if self._settlement is None:
            usage = Usage(usage.prompt_tokens, usage.completion_tokens, "checkpoint", usage.cached_tokens)
            self._ledger.checkpoint(self.info.stream_id, usage, self._cost(usage))


def _is_cancelled() -> bool:
    """Whether this task itself is being cancelled, and not something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Generations:
    """All generations of this process. To be entered (``async with``) for as long as it serves."""

    def __init__(
        self,
        service: LLMService,
        event_log: EventLog,
        ledger: Ledger,
        keys: Keys,
        limits: Limits | None = None,
    ) -> None:
        self._service = service
        self._log = event_log
        self._ledger = ledger
        self._keys = keys
        self._limits = limits or Limits()
        self._running: dict[Generation, asyncio.Task[None]] = {}
        self._watch: asyncio.Task[None] | None = None
        self.draining = False

    async def __aenter__(self) -> "Generations":
        self._watch = asyncio.create_task(self._keep_watch(), name="generations-watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain(0)
        assert self._watch is not None
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._running)

    async def start(self, principal: Principal, request: ChatRequest) -> Generation:
        """Starts a stream, which runs until its end or until its disconnect policy ends it.

        Raises ``Draining``, ``Overloaded``, ``ModelNotFound`` or ``InvalidRequest``; whatever goes wrong
        after that is the stream's terminal event.
        """
        self._admit()
        model, price = await self._service.resolve(request.model)
        self._admit()  # again: that may have taken a while
        info = StreamInfo(f"str_{secrets.token_urlsafe(16)}", principal.id, model.name, time.time())
        generation = Generation(info, request, model, price, self._log, self._ledger, self._limits.seconds)
        await self._log.create(info)
        await self._log.append(info.stream_id, [StreamStart(info.stream_id, info.model)])
        task = asyncio.create_task(generation.run(), name=info.stream_id)
        self._running[generation] = task
        task.add_done_callback(lambda _: self._running.pop(generation, None))
        return generation

    def _admit(self) -> None:
        if self.draining:
            raise Draining("the server is shutting down; try again")
        if len(self._running) >= self._limits.streams:
            raise Overloaded(f"{self._limits.streams} streams are running; try again")

    async def drain(self, seconds: float) -> None:
        """Refuses new streams, lets the running ones go on for ``seconds``, cancels the rest and waits
        until all are settled; if the database is away, not for ever.
        """
        self.draining = True
        if self._running and seconds > 0:
            await asyncio.wait(self._running.values(), timeout=seconds)
        for generation in list(self._running):
            generation.cancel()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=_SETTLE_SECONDS)

    # -- the watch --------------------------------------------------------------------------

    async def _keep_watch(self) -> None:
        """Checkpoints, orphaned rows and revoked keys: all that happens by the clock."""
        due = dict.fromkeys((self._checkpoint, self._sweep, self._stop_revoked), 0.0)
        every = {
            self._checkpoint: _CHECKPOINT_SECONDS,
            self._sweep: _SWEEP_SECONDS,
            self._stop_revoked: _REVOKED_SECONDS,
        }
        while True:
            now = time.monotonic()
            for job, at in due.items():
                if now >= at:
                    due[job] = now + every[job]
                    try:
                        await job()
                    except Exception as error:  # the next round may succeed
                        log.error("%s: %s", job.__name__, whereabouts(error))
            await asyncio.sleep(_CHECKPOINT_SECONDS)

    async def _checkpoint(self) -> None:
        for generation in list(self._running):
            try:
                await generation.checkpoint()
            except Exception as error:  # the others' must not wait for it
                log.error("stream %s: %s", generation.info.stream_id, whereabouts(error))
            await asyncio.sleep(0)  # counting takes time, and events come in between

    async def _sweep(self) -> None:
        if swept := await self._ledger.sweep():
            log.warning("settled %d streams whose process died, from their last checkpoint", swept)

    async def _stop_revoked(self) -> None:
        revoked = await self._keys.revoked_among({g.info.owner_id for g in self._running})
        for generation in list(self._running):
            if generation.info.owner_id in revoked:
                generation.cancel(Unauthorized())
