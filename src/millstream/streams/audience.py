"""The audience: who reads a stream, here and on other workers, and what it means that nobody does."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from millstream.dialects import OnDisconnect
from millstream.errors import TooManyReaders
from millstream.events import StreamInfo
from millstream.journals import READING_LAPSES_SECONDS

FIRST_READER_SECONDS = 30.0  # what a stream that nobody reads yet waits for a reader

SendAway = Callable[[], None]


class ReadableStream(Protocol):
    """A stream that a connection of this worker can read, whichever worker produces it."""

    @property
    def info(self) -> StreamInfo: ...

    def reading(self, send_away: SendAway) -> AbstractContextManager[None]:
        """To be held while the connection follows it. ``send_away`` may be called to ask its client to come
        back to another worker.
        """


class RemoteStream:
    """A stream without a producer on this worker: another worker produces it, or it has ended.
    ``remote_readers`` maps the ``send_away`` of each of this worker's readers to the id of its stream.
    """

    def __init__(self, info: StreamInfo, remote_readers: dict[SendAway, str]) -> None:
        self.info = info
        self._remote_readers = remote_readers

    @contextmanager
    def reading(self, send_away: SendAway) -> Generator[None]:
        self._remote_readers[send_away] = self.info.stream_id
        try:
            yield
        finally:
            self._remote_readers.pop(send_away, None)


class Readers:
    """The connections of this worker that follow streams, by who reads: ``most`` of one owner.

    Whoever started a stream and reads its first response is not counted: how many streams run is bounded
    already, and a server that starts streams for everybody with one key has as many such readers.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: Counter[str] = Counter()

    def check(self, owner_id: str) -> None:
        """Raises ``TooManyReaders`` where there is no place left."""
        if self._open[owner_id] >= self._most:
            raise TooManyReaders(self._most)

    @contextmanager
    def place(self, owner_id: str) -> Generator[None]:
        """To be held while the owner reads. Raises ``TooManyReaders``."""
        self.check(owner_id)
        self._open[owner_id] += 1
        try:
            yield
        finally:
            self._open[owner_id] -= 1
            if not self._open[owner_id]:
                del self._open[owner_id]


class FollowedStream:
    """A stream for a reader who did not start it: ``reading`` takes one of the places of ``owner_id``, and
    raises ``TooManyReaders`` where there is none.
    """

    def __init__(self, source: ReadableStream, readers: Readers, owner_id: str) -> None:
        self._source = source
        self._readers = readers
        self._owner_id = owner_id

    @property
    def info(self) -> StreamInfo:
        return self._source.info

    @contextmanager
    def reading(self, send_away: SendAway) -> Generator[None]:
        with self._readers.place(self._owner_id), self._source.reading(send_away):
            yield


class Audience:
    """The readers of a stream that this worker produces. ``on_empty`` is called when ``policy`` says that the
    stream shall not go on without a reader.
    """

    __slots__ = (
        "_dismissed",
        "_grace",
        "_on_empty",
        "_policy",
        "_readers",
        "_workers",
    )

    def __init__(self, policy: OnDisconnect, on_empty: Callable[[], None]) -> None:
        self._policy = policy
        self._on_empty = on_empty
        self._readers = 0
        self._workers: dict[str, float] = {}  # other workers that read it, and until when we believe so
        self._grace: asyncio.TimerHandle | None = None
        self._dismissed = False

    @property
    def in_grace(self) -> bool:
        """Whether the stream will be stopped unless a reader comes."""
        return self._grace is not None

    def reading(self, send_away: SendAway | None = None) -> "Reading":
        """To be held while a connection of this worker follows the stream."""
        return Reading(self)

    def reader_came(self) -> None:
        self._readers += 1
        self._stop_grace()

    def reader_left(self) -> None:
        self._readers -= 1
        self._reader_left()

    def worker_reads(self, worker: str) -> None:
        """Another worker has readers; it says so every few seconds."""
        self._workers[worker] = time.monotonic() + READING_LAPSES_SECONDS
        self._stop_grace()

    def worker_left(self, worker: str) -> None:
        """Another worker has no readers any more."""
        if self._workers.pop(worker, None) is not None:
            self._reader_left()

    def forget_silent_workers(self) -> None:
        """Gives up workers that have not been heard of for a while. To be called every now and then."""
        now = time.monotonic()
        for worker in [worker for worker, until in self._workers.items() if until < now]:
            self.worker_left(worker)

    def await_first_reader(self) -> None:
        """For a stream that starts without a reader: it waits for one as long as for one that left."""
        self._reader_left(FIRST_READER_SECONDS)

    def dismiss(self) -> None:
        """The stream has ended: a reader who leaves has no effect from now on."""
        self._dismissed = True
        self._stop_grace()

    def _stop_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _reader_left(self, seconds: float = 0) -> None:
        """The disconnect policy. ``seconds`` is the grace of a policy that has none of its own."""
        if self._dismissed or self._readers or self._workers or self._policy == "continue":
            return
        if not isinstance(self._policy, str):
            seconds = self._policy or seconds
        if seconds:
            self._stop_grace()  # one clock at a time, so that a reader who comes stops them all
            self._grace = asyncio.get_running_loop().call_later(seconds, self._on_empty)
        else:
            self._on_empty()


class Reading(AbstractContextManager[None]):
    """A reader of an audience. A class, since a generator would be a third of a kilobyte for every reader."""

    __slots__ = ("_audience",)

    def __init__(self, audience: Audience) -> None:
        self._audience = audience

    def __enter__(self) -> None:
        self._audience.reader_came()

    def __exit__(self, *_: object) -> None:
        self._audience.reader_left()
