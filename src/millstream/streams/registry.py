"""The registry: all streams of this worker, and who may start, follow and cancel which.

Belongs to the application's lifespan. What one stream does is in ``producer``.
"""

import asyncio
import hashlib
import random
import secrets
import time
from collections import Counter
from collections.abc import Generator
from contextlib import AsyncExitStack, aclosing, contextmanager, suppress
from typing import TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from millstream.auth import Keys, Principal
from millstream.catalog import LLMService
from millstream.dialects import Ask
from millstream.errors import (
    BadPosition,
    Draining,
    Forbidden,
    NotFound,
    Overloaded,
    RateLimited,
    StreamGone,
    TooManyStreams,
)
from millstream.events import EndedBy, StreamInfo, StreamStart
from millstream.journals import Journal, Signal, StreamState
from millstream.ledger import Claimed, Ledger
from millstream.ledger.rows import Claim, Opening, Receipt
from millstream.limits import Applied
from millstream.prompt import BETAS
from millstream.routing import Routed
from millstream.streams.allowance import demand_of
from millstream.streams.audience import FollowedStream, ReadableStream, Readers, RemoteStream, SendAway
from millstream.streams.cancel_scope import CancelScope
from millstream.streams.pressure import Pressure
from millstream.streams.producer import Producer
from millstream.streams.upkeep import Upkeep

_SETTLE_SECONDS = 4.0  # what settling everything may take at the end, where the database is away
_FULL_SECONDS = 0.5  # how long one refusal by the ledger stands for others of the same owner
_MAX_FULL = 10_000
SETTLING_SECONDS = 1.0  # what is waited for the receipt of a stream that ends to be the last one
_NOT_FOR_TOKENS = frozenset(
    (BETAS, "inference_geo", "metadata", "safety_identifier", "service_tier", "speed", "thinking", "user")
)
_LOOK_SECONDS = 0.05  # between two looks, where another worker settles it


_Limited: TypeAlias = tuple[str, str, tuple[Applied, ...]]  # an owner, a model and what limits the owner


class Limits(Struct, frozen=True):
    """``seconds`` is the longest a stream may take, ``streams`` how many may run on this worker,
    ``lag_seconds`` how late its event loop may be until starts are refused, ``readers`` how many
    connections of one owner may follow streams here, and ``kept_seconds`` how long rows are kept, if not for
    ever.
    """

    seconds: float = 900
    streams: int = 10_000
    lag_seconds: float = 0.1
    readers: int = 1_000
    kept_seconds: float | None = None


class FoundStream(Struct, frozen=True):
    """A stream that was found, and its state at that moment."""

    source: ReadableStream
    state: StreamState


class Streams:
    """To be entered (``async with``) for as long as the worker serves."""

    def __init__(
        self,
        service: LLMService,
        journal: Journal,
        ledger: Ledger,
        keys: Keys,
        limits: Limits | None = None,
    ) -> None:
        self.draining = False
        self._service = service
        self._journal = journal
        self._ledger = ledger
        self._limits = limits or Limits()
        self._running: dict[str, Producer] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._arriving: set[CancelScope] = set()
        self._remote_readers: dict[SendAway, str] = {}
        self._readers = Readers(self._limits.readers)
        self._open: Counter[str] = Counter()  # by owner, of those with a token's limit
        # Owners who had so many streams open, which is all a token of theirs allows; until when that counts.
        self._full: dict[str, tuple[int, float]] = {}
        self._refused: dict[_Limited, tuple[RateLimited, float]] = {}  # until when that counts
        self._upkeep = Upkeep(
            journal, ledger, keys, self._running, self._remote_readers.values, self._limits.kept_seconds
        )
        self._exits = AsyncExitStack()
        self.pressure = Pressure(self._limits.lag_seconds)
        self._settle_by: float | None = None  # set with the end of the drain

    async def __aenter__(self) -> "Streams":
        await self._exits.enter_async_context(self._upkeep)
        self._background = [
            asyncio.create_task(self._listen(), name="signals"),
            asyncio.create_task(self.pressure.run(), name="pressure"),
        ]
        self._exits.push_async_callback(self._stop)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain(0)
        await self._exits.aclose()

    def __len__(self) -> int:
        return len(self._running)

    def __getitem__(self, stream_id: str) -> Producer:
        """The producer of a stream that runs here. Raises ``KeyError``."""
        return self._running[stream_id]

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._running

    async def idle(self) -> None:
        """Returns when no stream runs here."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    # -- what callers do --------------------------------------------------------------------

    async def start(
        self,
        principal: Principal,
        ask: Ask,
        idempotency_key: str | None = None,
        *,
        unread: bool = False,
    ) -> ReadableStream:
        """Starts a stream, which runs until its end or until its disconnect policy ends it; where it starts
        ``unread``, its first reader is waited for. With an ``idempotency_key`` that the principal has used
        before, finds the stream that it started.

        Raises ``Draining``, ``Overloaded``, ``Forbidden``, ``TooManyStreams``, ``ModelNotFound`` or
        ``InvalidRequest``, and what an opening raises that is waited for (with an ``idempotency_key``,
        ``unread``, or where limits apply). Whatever goes wrong after that is the stream's terminal event.
        """
        self._admit()
        ask = _within_limits(principal, ask, self._service.default_model)
        model = await self._service.resolve(ask.prompt.model)
        if principal.test and not model.is_for_tests:
            free = "what costs nothing (scripted, local, chaos and replay)"
            raise Forbidden(f"a test key reaches only {free}, not '{model.name}'")
        routed = Routed(model, ask.prompt)
        self._admit()  # again: that may have taken a while
        stream_id = f"str_{secrets.token_urlsafe(16)}"
        info = StreamInfo(
            stream_id,
            principal.owner_id,
            routed.model.name,
            time.time(),
            ask.prompt.choices,
            ask.echo,
            self._ledger.leases.worker_id,
        )
        token = principal.token
        if token is not None:
            self._check_open(info.owner_id, token.max_streams)
        limited_by = principal.limited_by
        limited = info.owner_id, info.model, limited_by
        if limited_by and idempotency_key is None:
            self._check_refused(limited)
        demand = await demand_of(limited_by, ask.prompt, routed.model) if limited_by else None
        asked = routed.deployment
        opening = Opening(
            stream_id,
            info.owner_id,
            principal.id,
            info.model,
            asked.provider_name,
            info.created_at,
            ask.prompt.user,
            token_id=None if token is None else token.id,
            max_open=None if token is None else token.max_streams,
            claim=None if idempotency_key is None else Claim(idempotency_key, _digest(ask)),
            thread_id=ask.thread_id,
            demand=demand,
            test=principal.test,
            upstream_model=asked.upstream_name,
            unit_prices=None if asked.tariff is None else asked.tariff.unit_prices(info.created_at),
        )
        try:
            await self._journal.create(info)
            await self._journal.append(stream_id, [StreamStart(stream_id, info.model)])
            self._admit()
        except BaseException:  # whoever asked has left, or it took too long
            await asyncio.shield(self._journal.forget(stream_id))
            raise
        producer = Producer(info, opening, ask, routed, self._journal, self._ledger, self._limits.seconds)
        task = asyncio.create_task(producer.run(), name=stream_id)
        self._running[stream_id], self._tasks[stream_id] = producer, task
        if token is not None:
            self._open[info.owner_id] += 1
        task.add_done_callback(self._ended)
        if idempotency_key is not None or unread or producer.is_limited:
            try:
                await asyncio.shield(producer.opened)
            except Claimed as claimed:
                return (await self._find(principal, claimed.stream_id)).source
            except RateLimited as refused:
                self._refused[limited] = refused, time.monotonic() + _FULL_SECONDS
                raise
            except asyncio.CancelledError:
                with producer.reading():
                    pass  # whoever asked for it has come and gone
                raise
        producer.audience.await_first_reader()
        return producer

    async def started(self, principal: Principal, ask: Ask, idempotency_key: str | None) -> ReadableStream:
        """The stream that this start has begun before, for a reader that shows a position in it. Raises
        ``BadPosition`` where there is none, ``IdempotencyConflict``, and what ``follow`` raises.
        """
        stream_id = None
        if idempotency_key is not None:
            ask = _within_limits(principal, ask, self._service.default_model)
            claim = Claim(idempotency_key, _digest(ask))
            stream_id = await self._ledger.claimed(principal.owner_id, claim)
        if stream_id is None:
            raise BadPosition("a position needs the Idempotency-Key of the start whose stream it is in")
        return (await self.follow(principal, stream_id)).source

    async def follow(self, principal: Principal, stream_id: str) -> FoundStream:
        """Finds a stream to read. Raises ``TooManyReaders`` before it looks, here and when the source is
        read, ``NotFound`` where it is not the principal's or not at all, ``StreamGone``, ``Overloaded``.
        """
        self._readers.check(principal.owner_id)
        return await self._find(principal, stream_id)

    async def latest(self, principal: Principal, thread_id: str) -> str | None:
        """The newest stream of one of the principal's conversations. Raises ``DatabaseAway``."""
        return await self._ledger.latest(principal.owner_id, thread_id)

    async def _find(self, principal: Principal, stream_id: str) -> FoundStream:
        state: StreamState | None = None
        with suppress(StreamGone):
            state = await self._journal.state(stream_id)
        if state is None or not principal.owns(state.info.owner_id):
            receipt = await self._ledger.receipt(stream_id)
            if not principal.owns(receipt.owner_id):
                raise NotFound(f"there is no stream '{stream_id}'")
            if receipt.status == "running" and await self._ledger.is_run(stream_id):
                raise Overloaded("this stream goes on, and cannot be followed here just now; try again")
            raise StreamGone(
                "the events of this stream are no longer kept; its receipt is at /v1/streams/{id}"
            )
        remote = RemoteStream(state.info, self._remote_readers)
        source = self._running.get(stream_id) or remote
        return FoundStream(FollowedStream(source, self._readers, principal.owner_id), state)

    async def receipt(self, principal: Principal, stream_id: str) -> Receipt:
        """The last one, where the stream's end can be seen already and it is settled soon. Raises
        ``NotFound`` where there is no such stream, or it is not the principal's.
        """
        producer = self._running.get(stream_id)
        if producer is not None:
            if producer.is_ending and _sees(principal, producer.info.owner_id):
                await self._settled(stream_id)
            return await self._receipt(principal, stream_id)
        receipt = await self._receipt(principal, stream_id)
        if receipt.status == "running":
            with suppress(TimeoutError, StreamGone, Overloaded):
                async with asyncio.timeout(SETTLING_SECONDS):
                    return await self._settled_elsewhere(receipt)
        return receipt

    async def _receipt(self, principal: Principal, stream_id: str) -> Receipt:
        receipt = await self._ledger.receipt(stream_id)
        if not _sees(principal, receipt.owner_id):
            raise NotFound(f"there is no stream '{stream_id}'")
        return receipt

    async def _settled(self, stream_id: str) -> None:
        await asyncio.wait({self._tasks[stream_id]}, timeout=SETTLING_SECONDS)

    async def _settled_elsewhere(self, receipt: Receipt) -> Receipt:
        """The receipt of a stream of another worker, as soon as it is settled, if its journal has its end."""
        if (await self._journal.state(receipt.stream_id)).closed:
            while receipt.status == "running":
                await asyncio.sleep(_LOOK_SECONDS)
                receipt = await self._ledger.receipt(receipt.stream_id)
        return receipt

    async def cancel(self, principal: Principal, stream_id: str) -> Receipt:
        """Stops a stream, whichever worker runs it; one that has ended stays as it is. Returns the receipt
        so far. Raises ``NotFound``, or ``Overloaded`` where the message cannot be passed on.
        """
        producer = self._running.get(stream_id)
        if producer is not None:
            if _sees(principal, producer.info.owner_id):
                producer.cancel(by=_ends(principal, producer.info.owner_id))
                await self._settled(stream_id)
            return await self._receipt(principal, stream_id)
        receipt = await self.receipt(principal, stream_id)
        if receipt.status == "running":
            await self._journal.request_cancel(stream_id, _ends(principal, receipt.owner_id))
        return receipt

    def _check_open(self, owner_id: str, most: int) -> None:
        """What this worker knows by itself of an owner's open streams, so that whoever keeps asking costs no
        transaction. The ledger knows those of all workers.
        """
        now = time.monotonic()
        known, until = self._full.get(owner_id, (0, 0.0))
        if self._open[owner_id] >= most or (known >= most and until > now):
            raise TooManyStreams(most)
        if len(self._full) > _MAX_FULL:
            self._full = {owner: one for owner, one in self._full.items() if one[1] > now}

    def _check_refused(self, limited: _Limited) -> None:
        """The same for requests that a limit has refused: no more of them come before its window is over."""
        now = time.monotonic()
        known, until = self._refused.get(limited, (None, 0.0))
        if known is not None and known.standing.what == "requests" and until > now:
            raise RateLimited(known.message, known.standing)
        if len(self._refused) > _MAX_FULL:
            self._refused = {name: one for name, one in self._refused.items() if one[1] > now}

    def _ended(self, task: asyncio.Task[None]) -> None:
        producer = self._running.pop(task.get_name())
        del self._tasks[task.get_name()]
        if not producer.has_token:
            return
        owner_id = producer.info.owner_id
        self._open[owner_id] -= 1
        if not self._open[owner_id]:
            del self._open[owner_id]
        if (most := producer.one_more_than) is not None:
            self._full[owner_id] = most, time.monotonic() + _FULL_SECONDS
        else:
            self._full.pop(owner_id, None)

    def _admit(self) -> None:
        self.admit()
        if len(self._running) >= self._limits.streams:
            raise Overloaded(f"{self._limits.streams} streams are running; try again")

    def admit(self) -> None:
        """Whether a start has a chance, to be asked before its body is read. Raises ``Draining`` or
        ``Overloaded``.
        """
        if self.draining:
            raise Draining
        self.pressure.check()

    @contextmanager
    def arriving(self) -> Generator[None]:
        """To be held while the body of a start is read. Raises what ``admit`` raises, and ``Draining`` as
        soon as a drain begins.
        """
        self.admit()
        with CancelScope() as scope:
            self._arriving.add(scope)
            try:
                yield
            finally:
                self._arriving.remove(scope)
        if scope.cancelled:
            raise Draining

    async def drain(self, seconds: float) -> None:
        """Refuses new streams and lets the running ones go on for ``seconds``; sends readers of other
        workers' streams away in the meantime, not all at once. Then cancels the rest and waits until all
        are settled; if the database is away, not for ever.
        """
        self.draining = True
        for scope in self._arriving:
            scope.cancel()
        loop = asyncio.get_running_loop()
        for send_away in list(self._remote_readers):
            loop.call_later(random.uniform(0, seconds / 2), send_away)  # noqa: S311  # no secret
        if self._tasks and seconds > 0:
            await asyncio.wait(self._tasks.values(), timeout=seconds)
        for producer in list(self._running.values()):
            producer.drain()
        self._settle_by = self._settle_by or loop.time() + _SETTLE_SECONDS
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=max(0, self._settle_by - loop.time()))

    async def crash(self) -> None:
        """Stops everything in the middle, as if the worker had been killed. For tests of what others do
        then."""
        await self._exits.aclose()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what other workers say -------------------------------------------------------------

    async def _stop(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _listen(self) -> None:
        async with aclosing(self._journal.signals()) as signals:
            async for signal in signals:
                self._hear(signal)

    def _hear(self, signal: Signal) -> None:
        for stream_id in signal.stream_ids:
            producer = self._running.get(stream_id)
            if producer is None:
                continue
            match signal.kind:
                case "cancel":
                    producer.cancel(by=signal.by)
                case "reading":
                    producer.audience.worker_reads(signal.sender)
                case "left":
                    producer.audience.worker_left(signal.sender)


def _sees(principal: Principal, owner_id: str) -> bool:
    return principal.owns(owner_id) or principal.may(["admin"])


def _ends(principal: Principal, owner_id: str) -> EndedBy:
    return "client" if principal.owns(owner_id) else "operator"


def _within_limits(principal: Principal, ask: Ask, default_model: str | None) -> Ask:
    """What is asked as the principal's browser token allows it. Raises ``Forbidden``."""
    token = principal.token
    if token is None:
        return ask
    prompt = ask.prompt
    given: dict[str, object] = {}
    if token.models:
        model = prompt.model or default_model
        if prompt.model is None and model not in token.models:
            model = token.models[0]
        if model not in token.models:
            raise Forbidden(f"this token is for {', '.join(token.models)}")
        given["model"] = model
    if token.max_tokens is not None:
        if prompt.choices > 1:  # of which each may have that many
            raise Forbidden("this token is for one answer at a time")
        most = token.max_tokens
        given["max_tokens"] = most if prompt.max_tokens is None else min(prompt.max_tokens, most)
        if prompt.reasoning_tokens is not None:
            given["reasoning_tokens"] = min(prompt.reasoning_tokens, most)
    if token.user is not None:
        given["user"] = token.user
    # A page chooses neither the price of an answer nor for whom it is; nor how long a model thinks.
    given["extra"] = {
        api: {name: value for name, value in known.items() if name not in _NOT_FOR_TOKENS}
        for api, known in prompt.extra.items()
    }
    return replace(ask, prompt=replace(prompt, **given))


def _digest(ask: Ask) -> bytes:
    return hashlib.sha256(msgspec.json.encode((ask.prompt, ask.on_disconnect, ask.thread_id))).digest()
