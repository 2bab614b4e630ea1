"""A connection: one request after the other, and of each answer first its head, then its body as it comes."""

import asyncio
import select
from collections.abc import Callable
from enum import Enum
from typing import cast

import httptools

from millstream.http.wakeup import Wakeup

# What an answer may have besides its body: its head, and a share for the frames of chunks of a byte each.
# More is a head without an end, or one in front of another.
_FRAMING_BYTES = 64 << 10
_FRAMING_SHARE = 16
# What may wait to be read. The provider is slowed down at more.
_BUFFER_BYTES = 256 << 10

_NO_BODY = frozenset((204, 304))
# As forgiving as clients are: lines that end in LF alone, what fills a chunk's length up, odd header values.
_FORGIVING = {
    "lenient_headers": True,
    "lenient_chunked_length": True,  # both lengths; the connection is not used again then
    "lenient_optional_cr_before_lf": True,
    "lenient_spaces_after_chunk_size": True,
}


class Broken(ConnectionError):
    """The connection ended, or was ended, before the answer did."""


class NotHTTP(Broken):
    """What came is no HTTP that can be followed."""


class Phase(Enum):
    """How far the answer to the last request has come."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    COMPLETE = "complete"
    LOST = "lost"


class Connection(asyncio.Protocol):
    """Used by one task at a time. ``release`` gives it to ``idle`` if it can be used again."""

    __slots__ = (
        "_body",
        "_fault",
        "_idle",
        "_loop",
        "_may_stay",
        "_parser",
        "_paused",
        "_phase",
        "_pieces",
        "_received",
        "_transport",
        "_until_close",
        "_waiting_bytes",
        "_wakeup",
        "headers",
        "idle_since",
        "status",
    )

    status: int
    headers: dict[str, str]  # names in small letters; values of one name with commas between

    def __init__(self, idle: Callable[["Connection"], None]) -> None:
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._phase = Phase.IDLE
        self._fault: Broken | None = None
        self._wakeup = Wakeup()
        self._paused = False
        self.idle_since = 0.0  # in the loop's time
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers = {}
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0  # of the body, to be read
        self._received = 0  # bytes of the answer
        self._body = 0  # of those, what is its body
        self._until_close = False
        self._may_stay = False  # by what the answer says, the connection can be used again

    # -- for whoever asks ----------------------------------------------------------------------

    async def ask(self, head: bytes, body: bytes = b"") -> None:
        """Sends a request; returns when ``status`` and ``headers`` of its answer are there. Raises
        ``Broken``.
        """
        assert self._phase in (Phase.IDLE, Phase.LOST)
        if self._phase is Phase.IDLE:
            self._begin()
            self._phase = Phase.HEAD
            transport = self._open()
            if len(body) < _FRAMING_BYTES:
                transport.write(head + body)
            else:
                transport.writelines((head, body))
        while self._phase is Phase.HEAD:
            await self._wakeup
        if not self.status:
            raise self._broken()

    async def read(self) -> bytes:
        """What has come of the body since the last time, as soon as there is something; ``b""`` at its end.
        Raises ``Broken`` when everything that came before is read.
        """
        while not self._pieces:
            if self._phase is Phase.COMPLETE:
                return b""
            if self._phase is Phase.LOST:
                raise self._broken()
            await self._wakeup
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._waiting_bytes = 0
        if self._paused:
            self._paused = False
            if self._phase is not Phase.LOST:
                self._open().resume_reading()
        return data

    async def read_all(self, limit: int) -> bytes:
        """The body, or its first ``limit`` bytes where it is longer. Raises ``Broken``."""
        body = bytearray()
        while len(body) < limit and (data := await self.read()):
            body += data
        return bytes(body[:limit])

    def release(self) -> None:
        """The answer is of no more use. A connection whose answer was not read to its end is cut."""
        if self._phase is Phase.COMPLETE and self._may_stay and not self._paused:
            transport = self._open()
            if not transport.is_closing() and not transport.get_write_buffer_size():
                self._phase = Phase.IDLE
                self._pieces.clear()
                self.idle_since = self._loop.time()
                self._idle(self)
                return
        self.abort()

    def forget_headers(self) -> None:
        """Lets them go, but for how long the server keeps the connection."""
        kept = self.headers.get("keep-alive")
        self.headers = {} if kept is None else {"keep-alive": kept}

    def abort(self) -> None:
        """Cuts the connection, now. Whoever waits for it gets ``Broken``."""
        self._end(Broken("the connection was given up"))

    @property
    def is_quiet(self) -> bool:
        """Whether it can be asked: it is open, and nothing is there to be read, as the end that a server
        has sent and the loop has not seen yet.
        """
        if self._phase is not Phase.IDLE or self._open().is_closing():
            return False
        sock = self._open().get_extra_info("socket")
        if sock is None or not hasattr(select, "poll"):
            return True
        poll = select.poll()
        try:
            poll.register(sock.fileno(), select.POLLIN)
            return not poll.poll(0)
        except OSError:
            return False

    # -- for the event loop --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(**_FORGIVING)

    def data_received(self, data: bytes) -> None:
        if self._phase is not Phase.HEAD and self._phase is not Phase.BODY:
            self.abort() if self._phase is Phase.IDLE else self._not_again()
            return
        self._received += len(data)
        before = len(self._pieces)
        try:
            assert self._parser is not None
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._unreadable(error)
            return
        grown = sum(map(len, self._pieces[before:]))
        self._body += grown
        self._waiting_bytes += grown
        if self._received - self._body * _FRAMING_SHARE > _FRAMING_BYTES:
            self._end(NotHTTP("the answer is more frame than body"))
        elif self._waiting_bytes > _BUFFER_BYTES and not self._paused:
            self._paused = True
            self._open().pause_reading()
        self._wakeup.wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self._until_close and self._phase is Phase.BODY and error is None:
            self._phase = Phase.COMPLETE
            self._may_stay = False
            self._wakeup.wake()
        elif self._phase is Phase.COMPLETE:
            self._may_stay = False
        else:
            self._end(Broken("the connection ended"))
        self._parser = None  # it refers to this

    # -- for the parser ------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is Phase.HEAD:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
            before = self.headers.get(key)
            self.headers[key] = text if before is None else f"{before}, {text}"

    def on_headers_complete(self) -> None:
        if self._phase is not Phase.HEAD:
            return
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 200:
            return  # an answer before the answer; one that changes the protocol is an error of the parser
        coding = set(self.headers.get("transfer-encoding", "").lower().replace(",", " ").split())
        if not coding <= {"chunked"} and coding != {"identity"}:
            self._end(NotHTTP("the answer has a transfer coding that nobody asked for"))
            return
        measured = "content-length" in self.headers
        self.status = status
        self._phase = Phase.BODY
        has_body = status not in _NO_BODY
        self._until_close = has_body and "chunked" not in coding and bool(coding or not measured)
        self._may_stay = self._parser.should_keep_alive() and not (coding and measured)

    def on_body(self, data: bytes) -> None:
        if self._phase is Phase.BODY:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._phase is Phase.BODY:
            self._phase = Phase.COMPLETE
        elif self._phase is Phase.HEAD:
            self.headers = {}

    def on_message_begin(self) -> None:
        if self._phase is Phase.COMPLETE:
            self._may_stay = False  # there is more than one answer

    # -- inside --------------------------------------------------------------------------------

    def _open(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def _unreadable(self, error: Exception) -> None:
        if self._phase is Phase.COMPLETE:
            self._not_again()
        else:
            self._end(NotHTTP(str(error)))

    def _not_again(self) -> None:
        """More has come than the answer: it stands, and nothing else is asked here."""
        self._may_stay = False
        self._wakeup.wake()

    def _end(self, fault: Broken) -> None:
        if self._phase is not Phase.LOST:
            self._phase = Phase.LOST
            self._fault = fault
        if self._transport is not None:
            self._transport.abort()
        self._wakeup.wake()

    def _broken(self) -> Broken:
        fault = self._fault or Broken("the connection ended")
        return type(fault)(*fault.args)
