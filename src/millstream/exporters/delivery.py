"""Delivery: a POST to a service -> what became of it.

The only module of the exporters that knows the HTTP client.
"""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from millstream.exporters import Post
from millstream.http import UNREACHABLE, Client, Proxies, headers_of, in_words, retry_after
from millstream.version import __version__

POST_SECONDS = 15.0  # with its connection and its answer
_MAX_ANSWER_BYTES = 16 << 10
_MAX_WORDS = 160

# It asks for another time. What it says of these is not about the request.
_LATER = frozenset((408, 409, 425, 429))
# The service as a whole cannot be told anything: its address or the secret is wrong, or it rests.
_CLOSED = frozenset((401, 403, 429, 503))


class Delivered(Struct, frozen=True):
    """The service has it."""


class Refused(Struct, frozen=True):
    """The service will never take it. ``words`` may be its own; ``reason`` is not."""

    reason: str
    words: str


class Later(Struct, frozen=True):
    """It has to be sent again. ``may_have_arrived`` where no answer says that it did not; ``is_closed`` where
    nothing else would have been taken either.
    """

    reason: str
    words: str
    may_have_arrived: bool
    is_closed: bool
    pause_seconds: float = 0.0


Outcome = Delivered | Refused | Later


class Delivery:
    """POSTs to one URL. Has to be used and closed in one event loop."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        proxy: str | None = None,
        from_environment: bool = False,
        ca_file: Path | None = None,
    ) -> None:
        self._url = url
        self._client = Client(
            {"User-Agent": f"millstream/{__version__}", "Accept-Encoding": "identity", **headers},
            connect_seconds=POST_SECONDS / 2,
            proxies=Proxies(proxy, from_environment=from_environment),
            ca_file=ca_file,
        )

    def close(self) -> None:
        self._client.close()

    async def send(self, post: Post, has_it: Callable[[bytes], bool]) -> Outcome:
        """``has_it`` is asked of a refusal: whether it says that the service has this already."""
        try:
            async with asyncio.timeout(POST_SECONDS):
                return await self._send(post, has_it)
        except UNREACHABLE as error:
            reason = f"it cannot be reached: {in_words(error)}"
            return Later(reason, reason, may_have_arrived=False, is_closed=True)
        except TimeoutError:
            reason = "it did not answer in time"
            return Later(reason, reason, may_have_arrived=True, is_closed=False)
        except OSError:
            reason = "it broke the connection"
            return Later(reason, reason, may_have_arrived=True, is_closed=False)

    async def _send(self, post: Post, has_it: Callable[[bytes], bool]) -> Outcome:
        connection = await self._client.connect(self._url)
        try:
            head = self._client.head("POST", self._url, headers_of(post.headers), length=len(post.body))
            await connection.ask(head, post.body)
            status = connection.status
            if 200 <= status < 300:
                # To its end, so that the connection can be used again. It says nothing that matters.
                while await connection.read():
                    pass
                return Delivered()
            answer = await connection.read_all(_MAX_ANSWER_BYTES)
            pause = retry_after(connection.headers) or 0.0
        finally:
            connection.release()
        reason = f"it answered {status}"
        words = f"{status} {_printable(answer)}".strip()
        if status < 400 or status in _CLOSED:
            may_have_arrived = status == 503
            is_closed = not (status == 429 and b"lock_timeout" in answer)  # of one customer, at Stripe
            return Later(reason, words, may_have_arrived, is_closed, pause)
        if status in _LATER or status >= 500:
            return Later(reason, words, status not in (409, 425), False, pause)
        return Delivered() if has_it(answer) else Refused(reason, words)


def _printable(answer: bytes) -> str:
    text = " ".join(answer.decode("utf-8", "replace").split())
    return "".join(character for character in text if character.isprintable())[:_MAX_WORDS]
