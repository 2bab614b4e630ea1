"""Reading: the events of one answer -> what a model said, whatever protocol they are of."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from millstream.errors import ProviderError, UpstreamError
from millstream.providers import Produced
from millstream.providers.upstream import Upstream, read_to_end, tolerant_json
from millstream.sse import Message

AFTERTHOUGHT_SECONDS = 5  # for the end of the connection, once nothing is missing

_decode = msgspec.json.Decoder().decode


class Reading(ABC):
    """What has come of one answer so far. Knows no network, so every stream can be tried on it."""

    def __init__(self, name: str) -> None:
        self.is_done = False  # it was said that nothing follows
        self.fault: ProviderError | None = None  # what the answer failed with
        self.contents = 0  # pieces of it so far
        self._name = name

    @property
    def is_complete(self) -> bool:
        """Whether nothing has to follow, so that it is an answer although the connection breaks."""
        return False

    def patience(self) -> tuple[int, float | None]:
        """How many contents have come, and for how many seconds at most the next is waited for."""
        return self.contents, AFTERTHOUGHT_SECONDS if self.is_complete else None

    def read(self, messages: Sequence[Message]) -> list[Produced]:
        """What the messages say, up to the end or to the ``fault`` among them: nothing that was understood is
        held back by what comes to nothing.
        """
        produced: list[Produced] = []
        try:
            for message in messages:
                self._message(message, produced)
                if self.is_done:
                    break
        except ProviderError as error:
            self._fail(error, produced)
        return produced

    def end(self) -> list[Produced]:
        """What follows from the end of the connection: the end of the answer or, as here, a ``fault``."""
        self.fault = UpstreamError(f"provider '{self._name}' cut its answer off")
        return []

    @abstractmethod
    def _message(self, message: Message, produced: list[Produced]) -> None:
        """Adds what one message says. Raises ``ProviderError``."""

    def _fail(self, error: ProviderError, produced: list[Produced]) -> None:
        self.fault = error


async def answer(
    reading: Reading,
    upstream: Upstream,
    url: str,
    body: Callable[[], bytes],
    headers: Mapping[str, str] | None = None,
) -> AsyncGenerator[Sequence[Produced]]:
    """POSTs ``body()`` and yields what ``reading`` makes of the answer, one batch for each socket read.
    ``headers`` are sent with it.

    Raises ``ProviderError``.
    """
    events = upstream.events(url, body(), reading.patience, headers)
    del body  # and the prompt, which may be long
    async with aclosing(events) as batches:
        try:
            async for messages in batches:
                if produced := reading.read(messages):
                    yield produced
                if reading.fault is not None:
                    raise reading.fault
                if reading.is_done:
                    await read_to_end(batches)
                    return
        except ProviderError:
            if not reading.is_complete or reading.fault is not None:
                raise
    if produced := reading.end():
        yield produced
    if reading.fault is not None:
        raise reading.fault


def decoded(data: bytes) -> Any:
    """The JSON of an event, also where only a tolerant reader can read it. Raises ``ValueError``."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return tolerant_json(data)
