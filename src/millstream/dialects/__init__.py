"""Dialects: a body -> what it asks for, and batches of events -> the bytes of one wire format."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from millstream.answer import Answer
from millstream.errors import MillstreamError
from millstream.events import Batch, PartStart, StreamInfo
from millstream.limits import Standing
from millstream.prompt import BETAS, Prompt

# What it means that nobody reads a stream any more; a number is the seconds in which a reader may come back.
OnDisconnect: TypeAlias = Literal["cancel", "continue"] | float


class Ask(Struct, frozen=True):
    """What a body asks for. ``whole`` is whether the answer is wanted at once and not as a stream;
    ``ignored`` are fields of the body that nobody here knows; ``reply`` is the dialect of the answer, with
    what the body chose of it, where its route does not decide; ``thread_id`` the conversation that the answer
    belongs to, as the client names it. With ``background`` it is started without waiting for any of its
    answer. ``echo`` is what the format says back of the body, with every answer.
    """

    prompt: Prompt
    on_disconnect: OnDisconnect = "cancel"
    whole: bool = False
    ignored: tuple[str, ...] = ()
    reply: "Dialect | None" = None
    thread_id: str | None = None
    background: bool = False
    echo: dict[str, Any] | None = None

    def trying(self, api: str, betas: tuple[str, ...]) -> "Ask":
        """The same, to be tried with what ``api`` knows by these names."""
        of_api = {**self.prompt.extra_of(api), BETAS: betas}
        return replace(self, prompt=replace(self.prompt, extra={**self.prompt.extra, api: of_api}))


# The fold of everything before a batch. It costs nothing where it is not called.
Before: TypeAlias = Callable[[], Answer]


class Dialect(Protocol):
    """Everything here is pure: a reader that joins anywhere gets the same bytes for the same events.

    ``tests/contracts/test_dialects.py`` runs the rules against every dialect.
    """

    name: str
    headers: Mapping[str, str]
    request_id_header: str
    beta_header: str | None  # in which its clients name what they try; a provider of the same API gets it
    ping: bytes
    preamble: bytes  # what stands before the frames of a response that follows a stream
    tells_cuts: bool  # whether a whole answer says that it was stopped
    looks_back: bool  # whether ``encode`` may call ``before`` for a stream of one choice

    def parse(self, body: bytes) -> Ask:
        """Raises ``MalformedBody``, ``UnsupportedEncoding``, ``TooLarge``, or ``InvalidRequest`` with the
        name of the field that is wrong.
        """

    def encode(self, info: StreamInfo, batch: Batch, before: Before) -> bytes:
        """The frames of ``batch``."""

    def answer(self, info: StreamInfo, answer: Answer) -> bytes:
        """The body of a response that has the whole answer of a stream that did not fail."""

    def goodbye(self, retry_milliseconds: int | None) -> bytes:
        """The last frame of a response whose stream goes on without it. It asks the reader to come back,
        after that time where it is known; where a format cannot say so, it says that the answer is not whole.
        """

    def error(self, error: MillstreamError, request_id: str) -> tuple[int, bytes]:
        """The status and the body of a response that never became a stream."""

    def limit_headers(self, standings: Sequence[Standing]) -> Mapping[str, str]:
        """The headers that say how limits stand."""


def choice_of_parts(info: StreamInfo, batch: Batch, before: Before) -> Mapping[int, int]:
    """The choice of every part of ``batch`` that does not belong to the first one, by the part's number."""
    if info.choices == 1:
        return {}
    found = {part.number: part.choice for part in before().parts if part.choice}
    for event in batch.events:
        if isinstance(event, PartStart) and event.choice:
            found[event.part] = event.choice
    return found
