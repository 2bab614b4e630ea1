"""Connections to Redis: what can go wrong with them, and one that serves a single caller quickly."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from msgspec import Struct
from redis import Redis as BlockingRedis
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from millstream.driver_words import in_words
from millstream.errors import ConfigurationError, Overloaded, safe_traceback
from millstream.events import Position

STREAM_PREFIX = "millstream:stream:"

RETRY_SECONDS = (0.05, 2.0)  # between two tries, doubling
MAX_CONNECTIONS = 16  # of a worker's client; the library keeps each that was ever made

# uvloop raises RuntimeError for a write to a connection that was reset.
_CUT = (RedisConnectionError, RuntimeError)
UNREACHABLE = (RedisError, OSError, TimeoutError, RuntimeError)

# URL options that Millstream sets itself.
_FIXED = {"protocol", "decode_responses", "socket_timeout", "socket_connect_timeout"}


class Timeouts(Struct, frozen=True):
    """How long to wait, in seconds: ``connect`` for a connection, ``answer`` for an answer, ``leave`` for
    everything to be copied at the end.
    """

    connect: float = 3.0
    answer: float = 5.0
    leave: float = 2.0


def check(url: str) -> None:
    """Blocking, for the start. Raises ``ConfigurationError`` where this Redis cannot be the journal."""
    if fixed := sorted(_FIXED & parse_qs(urlsplit(url).query).keys()):
        raise ConfigurationError(f"MILLSTREAM_JOURNAL_URL: leave out {', '.join(fixed)}; Millstream sets it")
    try:
        with BlockingRedis.from_url(url, socket_connect_timeout=Timeouts().connect) as client:
            info = cast("dict[str, Any]", client.info())
    except (RedisError, OSError, ValueError, TypeError) as error:  # the last of an option that is unknown
        raise ConfigurationError(
            f"MILLSTREAM_JOURNAL_URL: cannot use this Redis: {in_words(error)}"
        ) from None
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
        raise ConfigurationError(f"MILLSTREAM_JOURNAL_URL: Redis {version} is too old; 6.2 is needed")
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        raise ConfigurationError(
            f"MILLSTREAM_JOURNAL_URL: with maxmemory-policy {policy} Redis may drop streams that are being "
            "read; set it to noeviction"
        )


class _Client(Redis):
    """The library's client, whose commands wait for one of ``MAX_CONNECTIONS`` turns, for as long as for an
    answer; then ``TimeoutError`` is raised, one of ``UNREACHABLE``.

    The library's own bounded pool can lose a connection for ever to a command that is cancelled twice. A turn
    is given back without waiting for anything.
    """

    def __init__(self, pool: Any, patience_seconds: float) -> None:
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._patience_seconds = patience_seconds

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        async with asyncio.timeout(self._patience_seconds):
            await self._turns.acquire()
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        finally:
            self._turns.release()


def client(url: str, timeouts: Timeouts) -> Any:
    """The library's client, for what is rare. Untyped: its own types are unions of all that any server could
    answer.
    """
    # Once, for a connection that was closed while it lay idle; our own loops do the waiting.
    retry = Retry(NoBackoff(), 1, supported_errors=cast("Any", _CUT))
    pool: Any = ConnectionPool.from_url(
        url,
        socket_connect_timeout=timeouts.connect,
        socket_timeout=timeouts.answer,
        protocol=2,
        retry=retry,
    )
    return _Client(pool, timeouts.answer)


def what_is_wrong(error: Exception) -> str:
    """For the log: in words where Redis is what is wrong, else where in the code it is."""
    known = isinstance(error, (RedisError, OSError))
    return in_words(error) if known else safe_traceback(error)


def unreachable() -> Overloaded:
    return Overloaded("the journal cannot be reached; try again")


def position(entry_id: bytes) -> Position:
    return Position.parse(entry_id.decode())


class Connection:
    """One connection for one caller. Sends commands in one write and reads all their answers.

    Used for every event: the library's clients take up to twice the time, because for each command they look
    for a connection, prepare to try again, and record what they did.
    """

    def __init__(self, url: str, timeouts: Timeouts) -> None:
        self._answer_seconds = timeouts.answer
        # Without the library's own time limit, which makes each write a task.
        pool: Any = ConnectionPool.from_url(
            url, socket_connect_timeout=timeouts.connect, socket_timeout=None, protocol=2
        )
        self._connection = pool.make_connection()

    @property
    def transport(self) -> asyncio.BaseTransport | None:
        """Of the socket, where it is connected. The library has no name of its own for it."""
        return self._connection._writer.transport if self._connection.is_connected else None  # noqa: SLF001

    async def ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """An answer to each command, a ``ResponseError`` where Redis refuses it. Commands may be sent twice,
        which has to do no harm. Raises one of ``UNREACHABLE`` where an answer does not come.
        """
        if self._connection.is_connected:
            with suppress(*_CUT):  # Redis may have closed it since
                return await self._ask(commands)
        return await self._ask(commands)

    async def _ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        connection, clock = self._connection, asyncio.get_running_loop().time
        answers: list[Any] = []
        try:
            async with asyncio.timeout(self._answer_seconds) as limit:
                await connection.connect()
                limit.reschedule(clock() + self._answer_seconds)
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                while len(answers) < len(commands):
                    try:
                        answers.append(await connection.read_response())
                    except ReadOnlyError:
                        raise  # the name of the one that takes its place may lead elsewhere now
                    except ResponseError as error:
                        answers.append(error)
                    limit.reschedule(clock() + self._answer_seconds)
        except BaseException:
            await connection.disconnect(nowait=True)  # or the next would get these answers
            raise
        return answers

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)
