"""All streams of this process: who may start, follow and cancel which, and what happens by the clock.

Belongs to the application's lifespan. What one stream does is in ``generation``.
"""

import asyncio
import hashlib
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, aclosing, contextmanager, suppress
from decimal import Decimal
from typing import Protocol

from msgspec import Struct

from millstream.auth import Keys, Principal
from millstream.catalog import LLMService
from millstream.errors import (
    Draining,
    Forbidden,
    Interrupted,
    MillstreamError,
    NotFound,
    Overloaded,
    StreamGone,
    Unauthorized,
    whereabouts,
)
from millstream.events import Bill, StreamEnd, StreamFailed, StreamInfo, StreamStart, Terminal, Usage
from millstream.generation import Generation
from millstream.ledger import Claim, Claimed, Ledger, Opening, Orphan, Receipt, Settlement, Status
from millstream.logs import EventLog, Signal, StreamState
from millstream.messages import ChatRequest
from millstream.prices import to_dollars, to_picodollars

log = logging.getLogger("millstream.generations")

_CHECKPOINT_SECONDS = 1.0
_SETTLE_SECONDS = 10.0
_BEAT_SECONDS = 2.0
_SWEEP_SECONDS = 3.0
_REVOKED_SECONDS = 2.0
_CANCEL_SECONDS = 1.0  # what a cancel waits for the receipt to be the last one
_UNENDED = 10_000
_UNENDED_SECONDS = 5.0


class Limits(Struct, frozen=True):
    """``seconds`` is the longest a stream may take; ``streams`` how many may run in this process."""

    seconds: float = 900
    streams: int = 10_000


class Source(Protocol):
    """A stream that a connection can follow, wherever it is produced."""

    @property
    def info(self) -> StreamInfo: ...

    def reading(self, depart: Callable[[], None]) -> AbstractContextManager[None]:
        """To be held while the connection follows it. ``depart`` may be called to ask it to come back to
        another process.
        """


class Elsewhere:
    """A stream that another process produces, or that has ended. ``guests`` are all readers of such."""

    def __init__(self, info: StreamInfo, guests: dict[Callable[[], None], str]) -> None:
        self.info = info
        self._guests = guests

    @contextmanager
    def reading(self, depart: Callable[[], None]) -> Generator[None]:
        self._guests[depart] = self.info.stream_id
        try:
            yield
        finally:
            self._guests.pop(depart, None)


class Followed(Struct, frozen=True):
    """A stream as it was found, to be followed."""

    source: Source
    state: StreamState


class Generations:
    """To be entered (``async with``) for as long as the process serves."""

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
        self._running: dict[str, Generation] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._guests: dict[Callable[[], None], str] = {}
        self._doubtful: set[str] = set()  # followed here, settled, and not ended in the log
        self._unended: dict[str, StreamFailed] = {}  # streams whose log was away as they were settled
        self._watch: list[asyncio.Task[None]] = []
        self.draining = False

    async def __aenter__(self) -> "Generations":
        jobs = {
            self._beat: _BEAT_SECONDS,
            self._bury: _SWEEP_SECONDS,
            self._end_orphans: _SWEEP_SECONDS,
            self._end_unended: _UNENDED_SECONDS,
            self._doubt: _UNENDED_SECONDS,
            self._checkpoint: _CHECKPOINT_SECONDS,
            self._expire: _CHECKPOINT_SECONDS,
            self._stop_revoked: _REVOKED_SECONDS,
        }
        self._watch = [asyncio.create_task(_every(seconds, job)) for job, seconds in jobs.items()]
        self._watch.append(asyncio.create_task(self._listen()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain(0)
        for task in self._watch:
            task.cancel()
        await asyncio.gather(*self._watch, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._running)

    # -- what callers do --------------------------------------------------------------------

    async def start(
        self,
        principal: Principal,
        request: ChatRequest,
        idempotency_key: str | None = None,
        *,
        unread: bool = False,
    ) -> Source:
        """Starts a stream, which runs until its end or until its disconnect policy ends it; where it starts
        ``unread``, its first reader is waited for. With an ``idempotency_key`` that the principal has used
        before, finds the stream that it started.

        Raises ``Draining``, ``Overloaded``, ``ModelNotFound``, ``InvalidRequest``, ``IdempotencyConflict`` or
        ``StreamGone``; whatever goes wrong after that is the stream's terminal event.
        """
        self._admit()
        request = _within_limits(principal, request, self._service.default_model)
        model, price = await self._service.resolve(request.model)
        self._admit()  # again: that may have taken a while
        stream_id = f"str_{secrets.token_urlsafe(16)}"
        info = StreamInfo(stream_id, principal.owner_id, model.name, time.time())
        token = principal.token
        opening = Opening(
            stream_id,
            info.owner_id,
            principal.id,
            info.model,
            model.provider_name,
            info.created_at,
            request.user,
            token_id=None if token is None else token.id,
            max_open=None if token is None else token.max_streams,
            claim=None if idempotency_key is None else Claim(idempotency_key, _digest(request)),
        )
        try:
            await self._log.create(info)
            await self._log.append(stream_id, [StreamStart(stream_id, info.model)])
            self._admit()
        except BaseException:  # whoever asked has left, or it took too long
            await asyncio.shield(self._log.forget(stream_id))
            raise
        generation = Generation(
            info, opening, request, model, price, self._log, self._ledger, self._limits.seconds
        )
        task = asyncio.create_task(generation.run(), name=stream_id)
        self._running[stream_id], self._tasks[stream_id] = generation, task
        task.add_done_callback(lambda _: (self._running.pop(stream_id), self._tasks.pop(stream_id)))
        if idempotency_key is not None or unread:
            try:
                await asyncio.shield(generation.opened)
            except Claimed as claimed:
                return (await self.follow(principal, claimed.stream_id)).source
            except asyncio.CancelledError:
                with generation.reading():
                    pass  # whoever asked for it has come and gone
                raise
        if unread:
            generation.await_reader()
        return generation

    async def follow(self, principal: Principal, stream_id: str) -> Followed:
        """Finds a stream to read. Raises ``NotFound`` where it is not the principal's or not at all,
        ``StreamGone``, ``Overloaded``.
        """
        state: StreamState | None = None
        with suppress(StreamGone):
            state = await self._log.state(stream_id)
        if state is None or not principal.owns(state.info.owner_id):
            receipt = await self._ledger.receipt(stream_id)
            if not principal.owns(receipt.owner_id):
                raise NotFound(f"there is no stream '{stream_id}'")
            raise StreamGone("the events of this stream are not kept any more; its receipt is")
        return Followed(self._running.get(stream_id) or Elsewhere(state.info, self._guests), state)

    async def receipt(self, principal: Principal, stream_id: str) -> Receipt:
        """Raises ``NotFound`` where there is no such stream, or it is not the principal's."""
        receipt = await self._ledger.receipt(stream_id)
        if not (principal.owns(receipt.owner_id) or principal.may(["admin"])):
            raise NotFound(f"there is no stream '{stream_id}'")
        return receipt

    async def cancel(self, principal: Principal, stream_id: str) -> Receipt:
        """Stops a stream, whichever process runs it; one that has ended stays as it is. Returns the receipt
        so far. Raises ``NotFound``, or ``Overloaded`` where the message cannot be passed on.
        """
        generation = self._running.get(stream_id)
        sees_all = principal.may(["admin"])
        if generation is not None and (sees_all or principal.owns(generation.info.owner_id)):
            generation.cancel()
            await asyncio.wait({self._tasks[stream_id]}, timeout=_CANCEL_SECONDS)
        receipt = await self.receipt(principal, stream_id)
        if generation is None and receipt.status == "running":
            await self._log.request_cancel(stream_id)
        return receipt

    def runs(self, stream_id: str) -> bool:
        return stream_id in self._running

    def _admit(self) -> None:
        if self.draining:
            raise Draining("the server is shutting down; try again")
        if len(self._running) >= self._limits.streams:
            raise Overloaded(f"{self._limits.streams} streams are running; try again")

    async def drain(self, seconds: float) -> None:
        """Refuses new streams and lets the running ones go on for ``seconds``; sends readers of other
        processes' streams away in the meantime, not all at once. Then cancels the rest and waits until all
        are settled; if the database is away, not for ever.
        """
        self.draining = True
        loop = asyncio.get_running_loop()
        for depart in list(self._guests):
            loop.call_later(random.uniform(0, seconds / 2), depart)  # noqa: S311  # no secret
        if self._tasks and seconds > 0:
            await asyncio.wait(self._tasks.values(), timeout=seconds)
        for generation in list(self._running.values()):
            generation.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=_SETTLE_SECONDS)

    # -- what other processes say -----------------------------------------------------------

    async def _listen(self) -> None:
        async with aclosing(self._log.signals()) as signals:
            async for signal in signals:
                self._hear(signal)

    def _hear(self, signal: Signal) -> None:
        for stream_id in signal.stream_ids:
            generation = self._running.get(stream_id)
            if generation is None:
                continue
            match signal.kind:
                case "cancel":
                    generation.cancel()
                case "reading":
                    generation.reading_elsewhere(signal.sender)
                case "left":
                    generation.left_elsewhere(signal.sender)

    # -- what happens by the clock ----------------------------------------------------------

    async def _beat(self) -> None:
        if not await self._ledger.beat():
            log.error("this process was thought dead; its streams were ended by others")
            for generation in list(self._running.values()):
                generation.cancel(Interrupted())

    async def _bury(self) -> None:
        if dead := await self._ledger.bury():
            log.warning("%d workers have died", dead)

    async def _end_orphans(self) -> None:
        if orphans := await self._ledger.orphans():
            log.warning("ending %d streams of workers that are gone", len(orphans))
            await asyncio.gather(*map(self._end_orphan, orphans), return_exceptions=True)

    async def _end_unended(self) -> None:
        """What could not be ended while the log was away, as long as that goes well."""
        for stream_id, failed in list(self._unended.items()):
            await self._interrupt(stream_id, failed)
            if stream_id in self._unended:
                return

    async def _doubt(self) -> None:
        """Ends streams that are followed here, have been settled for a while and have no end in the log:
        their worker stopped while the log was away, and nobody else knows of them.
        """
        doubtful: set[str] = set()
        for stream_id in set(self._guests.values()) - self._running.keys():
            with suppress(MillstreamError):
                receipt = await self._ledger.receipt(stream_id)
                if receipt.status == "running" or await self._has_ended(stream_id):
                    continue
                if stream_id not in self._doubtful:
                    doubtful.add(stream_id)
                    continue
                error = Interrupted()
                usage = Usage(receipt.prompt_tokens, receipt.completion_tokens, receipt.usage_source)
                bill = Bill(usage, receipt.cost_usd)
                failed = StreamFailed(error.code, error.message, error.retryable, bill)
                await self._interrupt(stream_id, failed)
        self._doubtful = doubtful

    async def _has_ended(self, stream_id: str) -> bool:
        try:
            return (await self._log.state(stream_id)).closed
        except StreamGone:
            return False

    async def _end_orphan(self, orphan: Orphan) -> None:
        """The log first: if this process dies as well, the row is still an orphan's."""
        cost = None if orphan.cost is None else to_dollars(to_picodollars(orphan.cost))
        error = Interrupted()
        failed = StreamFailed(error.code, error.message, error.retryable, Bill(orphan.usage, cost))
        stands = await self._interrupt(orphan.stream_id, failed)
        await self._ledger.settle(_settled_as(orphan.stream_id, stands))

    async def _interrupt(self, stream_id: str, failed: StreamFailed) -> Terminal:
        """The terminal event that stands. Money does not wait for a log that is away."""
        self._unended.pop(stream_id, None)
        try:
            return await self._log.interrupt(stream_id, failed)
        except StreamGone:
            pass
        except Exception as error:
            log.error("stream %s cannot be ended: %s", stream_id, whereabouts(error))
            if len(self._unended) < _UNENDED:
                self._unended[stream_id] = failed
        return failed

    async def _expire(self) -> None:
        self._log.expire()

    async def _checkpoint(self) -> None:
        for generation in list(self._running.values()):
            generation.look_elsewhere()
            try:
                await generation.checkpoint()
            except Exception as error:  # the others' must not wait for it
                log.error("stream %s: %s", generation.info.stream_id, whereabouts(error))
            await asyncio.sleep(0)  # counting takes time, and events come in between

    async def _stop_revoked(self) -> None:
        revoked = await self._keys.revoked_among({g.key_id for g in self._running.values()})
        for generation in list(self._running.values()):
            if generation.key_id in revoked:
                generation.cancel(Unauthorized())


async def _every(seconds: float, job: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await job()
        except Exception as error:  # the next round may succeed
            log.error("%s: %s", getattr(job, "__name__", job), whereabouts(error))
        await asyncio.sleep(seconds)


def _within_limits(principal: Principal, request: ChatRequest, default_model: str | None) -> ChatRequest:
    """The request as the principal's browser token allows it. Raises ``Forbidden``."""
    token = principal.token
    if token is None:
        return request
    given: dict[str, object] = {}
    if token.models:
        model = request.model or default_model
        if request.model is None and model not in token.models:
            model = token.models[0]
        if model not in token.models:
            raise Forbidden(f"this token is for {', '.join(token.models)}")
        given["model"] = model
    if token.max_tokens is not None:
        given["max_tokens"] = min(request.max_tokens or token.max_tokens, token.max_tokens)
    if token.user is not None:
        given["user"] = token.user
    return request.model_copy(update=given)


def _digest(request: ChatRequest) -> bytes:
    return hashlib.sha256(request.model_dump_json().encode()).digest()


def _settled_as(stream_id: str, terminal: Terminal) -> Settlement:
    """The settlement that says what the stream's terminal event says."""
    cost = terminal.bill.cost_usd
    status: Status = "completed"
    reason = error_code = None
    if isinstance(terminal, StreamEnd):
        reason = terminal.finish_reason
        status = "cancelled" if reason == "cancelled" else "completed"
    else:
        error_code = terminal.code
        status = "interrupted" if error_code == Interrupted.code else "failed"
    price = None if cost is None else Decimal(cost)
    return Settlement(stream_id, status, reason, error_code, terminal.bill.usage, price, None, time.time())
