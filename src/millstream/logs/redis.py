"""The log in Redis or Valkey: every process finds every stream, and streams survive the one that made them.

A process keeps the streams that it produces in its own memory, where its own readers follow them, and copies
them to Redis. A stream of another process is copied the other way, once for all its readers here. So nothing
here waits for Redis that can go on without, and every read is a read of a ``MemoryLog``.

One Redis stream per stream of ours. Its first entry, ``1-0``, is the ``StreamInfo``. Each other entry carries
events that follow each other, and has the position of the last of them for its id: Redis refuses an id that
is not greater than all before, so a repeated append changes nothing, and what a producer appends after others
have ended its stream (at epoch 2) is refused. Copying back checks that the entries join without a gap: what
Redis lost, in a failover say, is found there.

One more Redis stream carries signals between the processes. Each process has one blocking read, for all
streams that it follows and for the signals.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from importlib import resources
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qs, urlsplit

import msgspec
from redis import Redis as BlockingRedis
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from millstream.errors import ConfigurationError, LogError, Overloaded, StreamGone, whereabouts
from millstream.events import (
    TERMINAL_TYPES,
    Batch,
    Event,
    Position,
    StreamFailed,
    StreamInfo,
    Terminal,
    from_json,
    open_parts,
    to_json,
)
from millstream.logs import READING_LAPSES_SECONDS, Signal, SignalKind, StreamState
from millstream.logs.memory import MemoryLog

log = logging.getLogger("millstream.logs")

_PREFIX = "millstream:stream:"
_SIGNALS = "millstream:signals"
_SIGNALS_KEPT = 10_000

_FLUSH_SECONDS = 0.02  # how long events wait for company where nobody elsewhere reads the stream
_EVENTS_PER_ENTRY = 512
_BYTES_PER_FLUSH = 4 << 20  # which a slow network can take within _ANSWER_SECONDS
_ENTRIES_PER_READ = 64  # of a stream
_STREAMS_PER_FLUSH = 256

_CONNECT_SECONDS = 3.0
_ANSWER_SECONDS = 5.0
_BLOCK_SECONDS = 2.0
_BLOCKING_READ = ("XREAD", "BLOCK", round(_BLOCK_SECONDS * 1000), "COUNT", _ENTRIES_PER_READ, "STREAMS")
_RETRY_SECONDS = (0.05, 2.0)
_LEAVE_SECONDS = 5.0
_READING_SECONDS = READING_LAPSES_SECONDS / 3

_AHEAD = 4096  # how far a reader that comes from the producer's process may be ahead of Redis
# A RuntimeError is uvloop's word for writing to a connection that was reset.
_CUT = (RedisConnectionError, RuntimeError)
_AWAY = (RedisError, OSError, TimeoutError, RuntimeError)

# Of the URL's options those that would change what is said here.
_FIXED = {"protocol", "decode_responses", "socket_timeout", "socket_connect_timeout"}

_to_json = msgspec.json.Encoder().encode
_to_info = msgspec.json.Decoder(StreamInfo).decode


class _Copy:
    """How much of a stream of ours Redis has."""

    __slots__ = ("count", "created", "done", "followed")

    def __init__(self) -> None:
        self.created = False
        self.count = 0
        self.followed = False  # by somebody elsewhere, who should not wait
        self.done = asyncio.Event()


class _Command(NamedTuple):
    """Of a stream, with what Redis has of it afterwards if it is an append."""

    stream_id: str
    copied: int | None
    words: tuple[str | bytes | int, ...]

    @property
    def size(self) -> int:
        """In bytes, of what is said."""
        return sum(len(word) for word in self.words if isinstance(word, bytes))


class _Replica:
    """A stream of another process that is read here. ``loaded`` when all is here that was there at first."""

    __slots__ = ("closed", "last_id", "loaded", "readers", "target")

    def __init__(self, target: Position) -> None:
        self.target = target
        self.loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.readers = 0
        self.last_id = b"0-0"
        self.closed = False


class _Connection:
    """A connection of its own for one caller, who sends commands together and awaits the answers to all.

    For what each event passes. The library's clients take up to twice the time: for every command they look
    for a connection, prepare to try again, and record what they did.
    """

    def __init__(self, url: str, **options: Any) -> None:
        # Without the library's own time limit, which makes each write a task.
        options |= {"socket_timeout": None}
        pool: Any = ConnectionPool.from_url(url, **options)
        self._connection = pool.make_connection()

    async def ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """An answer to each command, a ``ResponseError`` where Redis refuses it. Commands may be sent twice,
        which has to do no harm. Raises one of ``_AWAY`` where an answer does not come.
        """
        if self._connection.is_connected:
            with suppress(*_CUT):  # Redis may have closed it since
                return await self._ask(commands)
        return await self._ask(commands)

    async def _ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        connection, clock = self._connection, asyncio.get_running_loop().time
        answers: list[Any] = []
        try:
            async with asyncio.timeout(_ANSWER_SECONDS) as limit:
                await connection.connect()
                limit.reschedule(clock() + _ANSWER_SECONDS)
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                while len(answers) < len(commands):
                    try:
                        answers.append(await connection.read_response())
                    except ReadOnlyError:
                        raise  # the name of the one that takes its place may lead elsewhere now
                    except ResponseError as error:
                        answers.append(error)
                    limit.reschedule(clock() + _ANSWER_SECONDS)
        except BaseException:
            await connection.disconnect(nowait=True)  # or the next would get these answers
            raise
        return answers

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)


class RedisLog:
    """``url`` is of a Redis ≥ 6.2 or a Valkey that evicts nothing. ``window_seconds`` is how long a finished
    stream can be read, ``lifetime_seconds`` how long one can run, ``max_bytes`` what this process keeps
    in its own memory beside those that run.
    """

    def __init__(
        self,
        url: str,
        *,
        window_seconds: float = 300,
        lifetime_seconds: float = 3600,
        max_bytes: int = 512 << 20,
        max_stream_bytes: int = 32 << 20,
    ) -> None:
        self._url = url
        self._window = max(1, round(window_seconds))
        self._lifetime = round(lifetime_seconds) + self._window
        self._own = MemoryLog(
            window_seconds=window_seconds, max_bytes=max_bytes, max_stream_bytes=max_stream_bytes
        )
        self._theirs = MemoryLog(max_stream_bytes=2 * max_stream_bytes, ahead=_AHEAD)
        self._copies: dict[str, _Copy] = {}
        self._dirty: set[str] = set()
        self._flush_now = asyncio.Event()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._away = False  # Redis did not answer the last time
        self._replicas: dict[str, _Replica] = {}
        self._last_signal = b"$"
        self._listeners: set[asyncio.Queue[Signal]] = set()
        self._name = secrets.token_urlsafe(9)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leaving = False
        # Untyped: the library's own types are unions of all that any server could answer.
        self._client: Any = None

    def check(self) -> None:
        """Blocking, for the start. Raises ``ConfigurationError`` where this Redis cannot be the log."""
        if fixed := sorted(_FIXED & parse_qs(urlsplit(self._url).query).keys()):
            raise ConfigurationError(f"MILLSTREAM_LOG_URL: leave out {', '.join(fixed)}; Millstream sets it")
        try:
            with BlockingRedis.from_url(self._url, socket_connect_timeout=_CONNECT_SECONDS) as client:
                info = cast("dict[str, Any]", client.info())
        except (RedisError, OSError, ValueError) as error:
            raise ConfigurationError(
                f"MILLSTREAM_LOG_URL: cannot use this Redis: {type(error).__name__}"
            ) from error
        version = str(info.get("redis_version", "0"))
        if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
            raise ConfigurationError(f"MILLSTREAM_LOG_URL: Redis {version} is too old; 6.2 is needed")
        if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
            raise ConfigurationError(
                f"MILLSTREAM_LOG_URL: with maxmemory-policy {policy} Redis may drop streams that are being "
                "read; set it to noeviction"
            )

    async def __aenter__(self) -> "RedisLog":
        options: dict[str, Any] = {
            "socket_connect_timeout": _CONNECT_SECONDS,
            "socket_timeout": _ANSWER_SECONDS,
            "protocol": 2,
            # Once, for a connection that was closed while it lay idle; our own loops do the waiting.
            "retry": Retry(NoBackoff(), 1, supported_errors=cast("Any", _CUT)),
        }
        self._client = Redis.from_url(self._url, **options)
        self._out, self._in = _Connection(self._url, **options), _Connection(self._url, **options)
        self._interrupt = self._client.register_script(
            resources.files(__package__).joinpath("interrupt.lua").read_bytes()
        )
        with suppress(*_AWAY):  # from here on, whatever is said; without it, from the first connection on
            found = await self._client.xrevrange(_SIGNALS, count=1)
            self._last_signal = found[0][0] if found else b"0-0"
        self._workers = [
            asyncio.create_task(work(), name=f"redis-log-{work.__name__}")
            for work in (self._copy_out, self._copy_in, self._keep_reading)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                for copy in list(self._copies.values()):
                    self._flush_now.set()
                    await copy.done.wait()
        self._leaving = True  # looked at by the loops: the library can swallow a cancellation
        self._flush_now.set()
        for task in (*self._workers, *self._tasks):
            task.cancel()
        await asyncio.gather(*self._workers, *self._tasks, return_exceptions=True)
        for close in (self._out.close, self._in.close, self._client.aclose):
            with suppress(*_AWAY):
                await close()

    # -- streams of this process ------------------------------------------------------------

    async def create(self, info: StreamInfo) -> None:
        await self._own.create(info)
        copy = self._copies[info.stream_id] = _Copy()
        self._copy_soon(info.stream_id, copy)
        await self.flush(info.stream_id)  # or not: what cannot be found elsewhere can still be streamed here

    async def flush(self, stream_id: str) -> None:
        copy = self._copies.get(stream_id)
        if copy is None or self._away:
            return
        self._flush_now.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_SECONDS):
                await copy.done.wait()

    async def append(self, stream_id: str, events: Sequence[Event]) -> Position:
        position = await self._own.append(stream_id, events)
        if copy := self._copies.get(stream_id):
            self._copy_soon(stream_id, copy)
        return position

    def expire(self) -> None:
        self._own.expire()

    def count(self) -> int:
        return self._own.count() + self._theirs.count()

    async def forget(self, stream_id: str) -> None:
        await self._own.forget(stream_id)
        self._copies.pop(stream_id, None)
        self._dirty.discard(stream_id)
        with suppress(*_AWAY):
            await self._client.delete(_PREFIX + stream_id)

    def _copy_soon(self, stream_id: str, copy: _Copy) -> None:
        copy.done.clear()
        self._dirty.add(stream_id)
        if copy.followed or not copy.created:
            self._flush_now.set()
        elif self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(_FLUSH_SECONDS, self._flush_now.set)

    async def _copy_out(self) -> None:
        """Own streams -> Redis: all that is due at once, with whatever has come up during the one before."""
        delay = _RETRY_SECONDS[0]
        while not self._leaving:
            await self._flush_now.wait()
            self._flush_now.clear()
            if self._flush_timer is not None:
                self._flush_timer.cancel()
                self._flush_timer = None
            due = list(self._dirty)
            self._dirty.clear()
            try:
                while due:
                    await self._flush(due[:_STREAMS_PER_FLUSH])
                    del due[:_STREAMS_PER_FLUSH]
                self._away, delay = False, _RETRY_SECONDS[0]
            except Exception as error:  # it goes on when Redis is back; nothing is lost until then
                self._away = True
                self._dirty.update(due)
                log.error("the log's Redis: %s", whereabouts(error))
                await asyncio.sleep(delay)
                delay = min(2 * delay, _RETRY_SECONDS[1])
                self._flush_now.set()

    async def _flush(self, stream_ids: list[str]) -> None:
        sent: list[_Command] = []
        room = _BYTES_PER_FLUSH
        for stream_id in stream_ids:
            copy = self._copies.get(stream_id)
            if room > 0 and copy is not None and stream_id in self._own:
                due = await self._due(stream_id, copy, room)
                sent += due
                room -= sum(command.size for command in due)
        answers = await self._out.ask([command.words for command in sent]) if sent else []
        failure: Exception | None = None
        broken: set[str] = set()  # an append of theirs was not taken
        torn: set[str] = set()  # and a later one was
        for (stream_id, count, _), answer in zip(sent, answers, strict=True):
            copy = self._copies.get(stream_id)
            if isinstance(answer, ResponseError) and "equal or smaller" in str(answer):
                if copy is not None and stream_id not in broken:
                    await self._refused(stream_id, copy)
            elif isinstance(answer, Exception):
                failure = answer
                if count is not None:
                    broken.add(stream_id)
            elif count is None or copy is None:
                continue
            elif answer is None:  # there is no such stream any more: Redis was emptied
                broken.add(stream_id)
                copy.created, copy.count = False, 0
            elif stream_id in broken:
                torn.add(stream_id)
            else:
                copy.created, copy.count = True, max(count, copy.count)
        for stream_id in torn:
            await self._client.delete(_PREFIX + stream_id)
            if copy := self._copies.get(stream_id):
                copy.created, copy.count = False, 0
        for stream_id in stream_ids:
            await self._copied(stream_id)
        if failure is not None:
            raise failure

    async def _due(self, stream_id: str, copy: _Copy, room: int) -> list[_Command]:
        """What brings Redis's copy of a stream up to date, or so much of it as there is room for."""
        key, state = _PREFIX + stream_id, await self._own.state(stream_id)
        due: list[_Command] = []
        if not copy.created:
            due.append(_Command(stream_id, 0, ("XADD", key, "1-0", "info", _to_json(state.info))))
            due.append(_Command(stream_id, None, ("EXPIRE", key, self._lifetime)))
        count = copy.count
        while room > 0 and (events := self._own.events(stream_id, count, _EVENTS_PER_ENTRY)):
            count += len(events)
            said = to_json(events)
            room -= len(said)
            ends = isinstance(events[-1], TERMINAL_TYPES)
            fields = ("events", said, "end", "1") if ends else ("events", said)
            due.append(_Command(stream_id, count, ("XADD", key, "NOMKSTREAM", f"1-{count}", *fields)))
            if ends:
                due.append(_Command(stream_id, None, ("EXPIRE", key, self._window)))
        return due

    async def _copied(self, stream_id: str) -> None:
        """Looks whether Redis has all of the stream now."""
        copy = self._copies.get(stream_id)
        if copy is None:
            return
        if stream_id not in self._own:  # its window has passed
            del self._copies[stream_id]
        elif copy.count < len(self._own.events(stream_id)) or not copy.created:
            self._copy_soon(stream_id, copy)
            return
        elif (await self._own.state(stream_id)).closed:
            del self._copies[stream_id]
        copy.done.set()

    async def _refused(self, stream_id: str, copy: _Copy) -> None:
        """Redis has something at or after what we sent: our own words, whose answer was lost, or the end that
        others have set to the stream.
        """
        found = await self._client.xrevrange(_PREFIX + stream_id, count=1)
        if not found:
            copy.created, copy.count = False, 0
            return
        epoch, seq = _position(found[0][0])
        if epoch == 1:
            copy.created, copy.count = True, seq
            return
        del self._copies[stream_id]
        copy.done.set()
        with suppress(LogError):  # it has ended here as well
            await self._own.take_over(stream_id, from_json(found[0][1][b"events"]))
        log.warning("stream %s was ended by another worker, to which this one seemed dead", stream_id)

    # -- streams of other processes ---------------------------------------------------------

    async def state(self, stream_id: str) -> StreamState:
        if stream_id in self._own:
            return await self._own.state(stream_id)
        key = _PREFIX + stream_id
        try:
            first = await self._client.xrange(key, count=1)
            last = await self._client.xrevrange(key, count=1)
        except _AWAY as error:
            raise _away() from error
        if not (first and last and b"info" in first[0][1]):
            raise StreamGone(f"the stream '{stream_id}' is not here")
        return StreamState(_to_info(first[0][1][b"info"]), _position(last[0][0]), b"end" in last[0][1])

    async def read(self, stream_id: str, after: Position | None = None) -> AsyncGenerator[Batch]:
        async with self._following(stream_id) as here, aclosing(here.read(stream_id, after)) as batches:
            async for batch in batches:
                yield batch

    @asynccontextmanager
    async def _following(self, stream_id: str) -> AsyncGenerator[MemoryLog]:
        """To be held while somebody here reads a stream; gives where it is."""
        if stream_id in self._own:
            yield self._own
            return
        replica = self._replicas.get(stream_id)
        if replica is None:
            state = await self.state(stream_id)
            replica = self._replicas.setdefault(stream_id, _Replica(state.last))
        replica.readers += 1
        try:
            await self._load(stream_id, replica)
            yield self._theirs
        finally:
            replica.readers -= 1
            if not replica.readers and self._replicas.get(stream_id) is replica:
                del self._replicas[stream_id]
                await self._theirs.forget(stream_id)
                self._say_later("left", stream_id)

    async def _load(self, stream_id: str, replica: _Replica) -> None:
        if replica.loaded.done() and replica.loaded.exception() is None:
            return
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                # Its producer hears that it should hurry, and our own blocking read looks at the list again.
                await self._say("reading", [stream_id])
                await asyncio.shield(replica.loaded)
        except _AWAY as error:
            raise _away() from error

    async def _take_in(self, stream_id: str, replica: _Replica, entries: Iterable[Any]) -> None:
        """Entries of a stream -> its replica. Raises ``StreamGone`` where something is missing."""
        for entry_id, fields in entries:
            if b"info" in fields:
                await self._theirs.create(_to_info(fields[b"info"]))
            else:
                events, (epoch, seq) = from_json(fields[b"events"]), _position(entry_id)
                if epoch == 2:
                    await self._theirs.take_over(stream_id, events)
                else:
                    known = (await self._theirs.state(stream_id)).last.seq
                    missing = seq - known
                    if missing > len(events):
                        raise StreamGone(f"a part of '{stream_id}' was lost")
                    await self._theirs.append(stream_id, events[-missing:])
                replica.closed = b"end" in fields
            replica.last_id = entry_id
            if not replica.loaded.done() and _position(entry_id) >= replica.target:
                replica.loaded.set_result(None)

    async def _copy_in(self) -> None:
        """Redis -> the replicas here and the signals: the one blocking read of this process."""
        delay = _RETRY_SECONDS[0]
        while not self._leaving:
            followed = {name: replica for name, replica in self._replicas.items() if not replica.closed}
            after = {_SIGNALS: self._last_signal}
            after |= {_PREFIX + name: replica.last_id for name, replica in followed.items()}
            try:
                (found,) = await self._in.ask([(*_BLOCKING_READ, *after, *after.values())])
                if isinstance(found, RedisError):
                    raise found
                delay = _RETRY_SECONDS[0]
            except Exception as error:  # it goes on when Redis is back
                if self._leaving:
                    return
                log.error("the log's Redis: %s", whereabouts(error))
                await asyncio.sleep(delay)
                delay = min(2 * delay, _RETRY_SECONDS[1])
                continue
            for key, listed in found or ():
                name, entries = key.decode(), [(entry_id, _fields(words)) for entry_id, words in listed]
                if name == _SIGNALS:
                    self._hear(entries)
                    continue
                stream_id = name.removeprefix(_PREFIX)
                replica = followed[stream_id]
                if self._replicas.get(stream_id) is not replica:
                    continue  # its readers have left since
                try:
                    await self._take_in(stream_id, replica, entries)
                except Exception as error:  # its readers are told; the others go on
                    log.error("stream %s: %s", stream_id, whereabouts(error))
                    await self._lose(stream_id)

    async def _lose(self, stream_id: str) -> None:
        """Tells whoever reads a replica that there is no more of it to be had."""
        replica = self._replicas.pop(stream_id, None)
        await self._theirs.forget(stream_id)
        if replica is not None and not replica.loaded.done():
            replica.loaded.set_exception(StreamGone(f"a part of '{stream_id}' was lost"))
            replica.loaded.exception()  # looked at, should nobody wait for it any more

    async def interrupt(self, stream_id: str, failure: StreamFailed) -> Terminal:
        async with self._following(stream_id) as here:
            if here is self._own:
                return await here.interrupt(stream_id, failure)
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    while True:
                        last = (await here.state(stream_id)).last
                        events = [*open_parts(here.events(stream_id)), failure]
                        stands = await self._interrupt(
                            keys=[_PREFIX + stream_id],
                            args=[f"2-{len(events)}", to_json(events), self._window, str(last)],
                        )
                        if stands != b"":
                            break
                        async with aclosing(here.read(stream_id, last)) as batches:  # what has come since
                            await anext(batches)
            except _AWAY as error:
                raise _away() from error
        if stands is None:
            await self._lose(stream_id)
            raise StreamGone(f"the stream '{stream_id}' is not here")
        end = from_json(stands)[-1]
        assert isinstance(end, TERMINAL_TYPES)
        return end

    # -- signals ----------------------------------------------------------------------------

    async def request_cancel(self, stream_id: str) -> None:
        try:
            await self._say("cancel", [stream_id])
        except _AWAY as error:
            raise _away() from error

    async def signals(self) -> AsyncGenerator[Signal]:
        queue: asyncio.Queue[Signal] = asyncio.Queue(_SIGNALS_KEPT)
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    async def _say(self, kind: SignalKind, stream_ids: Sequence[str]) -> None:
        said = Signal(kind, self._name, tuple(stream_ids))
        await self._client.xadd(_SIGNALS, {"signal": _to_json(said)}, maxlen=_SIGNALS_KEPT, approximate=True)

    def _say_later(self, kind: SignalKind, stream_id: str) -> None:
        """For where there is no waiting."""

        async def say() -> None:
            with suppress(*_AWAY):  # it will be believed to be so when it is not repeated
                await self._say(kind, [stream_id])

        task = asyncio.create_task(say())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hear(self, entries: Iterable[Any]) -> None:
        for entry_id, fields in entries:
            self._last_signal = entry_id
            try:
                signal = _to_signal(fields[b"signal"])
            except (KeyError, msgspec.MsgspecError):
                continue  # of another version
            if signal.sender == self._name:
                continue
            for stream_id in signal.stream_ids:
                if copy := self._copies.get(stream_id):
                    copy.followed = signal.kind == "reading" or (copy.followed and signal.kind != "left")
                    self._flush_now.set()
            for queue in self._listeners:
                with suppress(asyncio.QueueFull):
                    queue.put_nowait(signal)

    async def _keep_reading(self) -> None:
        """Says again and again what is read here, so that it is not believed for long of the dead."""
        while not self._leaving:
            await asyncio.sleep(_READING_SECONDS)
            followed = list(self._replicas)
            for start in range(0, len(followed), _STREAMS_PER_FLUSH):
                with suppress(*_AWAY):
                    await self._say("reading", followed[start : start + _STREAMS_PER_FLUSH])

    async def ping(self) -> None:
        try:
            await self._client.ping()
        except _AWAY as error:
            raise _away() from error


_to_signal = msgspec.json.Decoder(Signal).decode


def _fields(words: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(words[::2], words[1::2], strict=True))


def _position(entry_id: bytes) -> Position:
    return Position.parse(entry_id.decode())


def _away() -> Overloaded:
    return Overloaded("the log cannot be reached; try again")
