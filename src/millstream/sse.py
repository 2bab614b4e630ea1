"""Server-Sent Events: frames to bytes, and bytes -> messages, bounded, no I/O.

Follows the WHATWG HTML standard, §9.2.6 "Interpreting an event stream". Two deliberate differences:

1. ``retry`` fields are ignored: our decoder reads providers, to which nobody reconnects.
2. A line or an event over its limit raises ``SSELimitExceeded``; the standard knows no limits.
"""

import re

from msgspec import Struct

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"
_JSON = (b"{", b"[")
_MAX_STRAY_BYTES = 64 << 10


# A comment line without a blank line after it. Some decoders dispatch an empty event at every blank line
# once they have seen an id, and their users then parse "" as JSON (openai-python and httpx-sse among them).
PING = b": ping\n"


def one_line(json: bytes) -> bytes:
    """JSON that is one line for everybody. The ``iter_lines`` of httpx and of requests cut at what Unicode
    calls the end of a line; of that, JSON only escapes what is ASCII.
    """
    # The first bytes of what is escaped. Nearly always there is none, which is found fastest so.
    if json.isascii() or (0xE2 not in json and 0xC2 not in json):
        return json
    json = json.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return json.replace(b"\xc2\x85", b"\\u0085")


def frame(data: bytes, *, id: str) -> bytes:
    """One frame. ``data`` has to be one line, as JSON from our encoder always is."""
    return b"id: %b\ndata: %b\n\n" % (id.encode(), data)


class SSELimitExceeded(ValueError):
    """A line or an event is longer than the decoder was told to accept. ``before`` are the messages that were
    complete in front of it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.before: list[Message] = []


class Message(Struct, frozen=True, gc=False):
    """One dispatched event. ``data`` is UTF-8; invalid bytes were replaced by U+FFFD."""

    data: bytes
    event: str = "message"
    id: str = ""


class Decoder:
    """``feed()`` it what the socket gave, get the messages that are complete.

    An event that the stream's end leaves unfinished is dropped, as the standard says.
    """

    __slots__ = (
        "_buffered",
        "_data",
        "_data_bytes",
        "_event",
        "_id",
        "_max_event_bytes",
        "_pieces",
        "_skip_lf",
        "_started",
        "_stray",
    )

    def __init__(self, *, max_event_bytes: int = 1 << 20) -> None:
        self._max_event_bytes = max_event_bytes
        self._pieces: list[bytes] = []  # of a line whose end has not come
        self._buffered = 0
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._event = ""
        self._id = ""
        self._started = False
        self._skip_lf = False  # the last line ended with CR; an LF that follows belongs to it
        self._stray = bytearray()  # lines that are no fields, from one on that begins like JSON

    @property
    def pending_bytes(self) -> int:
        """Of an event that is not complete."""
        return self._buffered + self._data_bytes

    @property
    def stray(self) -> bytes:
        """JSON that stands outside of events, as some servers write an error that comes late; the line that
        is not complete included. Empty where nothing looks like it, cut where it is long.
        """
        stray = b"".join((self._stray, *self._pieces))
        return stray[:_MAX_STRAY_BYTES] if stray.startswith(_JSON) else b""

    def feed(self, chunk: bytes) -> list[Message]:
        """Raises ``SSELimitExceeded``; after that the decoder is of no more use."""
        messages: list[Message] = []
        try:
            if self._pieces:
                if b"\n" not in chunk and b"\r" not in chunk and self._started:
                    self._keep(chunk)
                    return messages
                chunk = b"".join((*self._pieces, chunk))
                self._pieces.clear()
                self._buffered = 0
            self._feed(chunk, messages)
        except SSELimitExceeded as error:
            error.before = messages
            raise
        return messages

    def _feed(self, buffer: bytes, messages: list[Message]) -> None:
        if not self._started:
            if len(buffer) < 3 and _BOM.startswith(buffer):
                self._keep(buffer)
                return
            self._started = True
            buffer = buffer.removeprefix(_BOM)
        if self._skip_lf and buffer:
            self._skip_lf = False
            buffer = buffer.removeprefix(b"\n")
        if b"\r" in buffer:
            *lines, rest = _LINE_END.split(buffer)
            self._skip_lf = buffer.endswith(b"\r")
        else:
            *lines, rest = buffer.split(b"\n")
        self._lines(lines, messages)
        if rest:
            self._keep(rest)

    def _keep(self, rest: bytes) -> None:
        """Keeps the beginning of a line. Its pieces are put together once, when its end has come."""
        self._pieces.append(rest)
        self._buffered += len(rest)
        if self._buffered > self._max_event_bytes:
            raise SSELimitExceeded(f"a line is over {self._max_event_bytes} bytes")

    def _lines(self, lines: list[bytes], messages: list[Message]) -> None:
        data, data_bytes, limit = self._data, self._data_bytes, self._max_event_bytes
        for line in lines:
            if line.startswith(b"data: "):  # nearly all that are not blank
                data.append(line[6:])
                data_bytes += len(line)
            elif line:
                data_bytes += self._field(line)
            else:
                if data:
                    whole = b"\n".join(data) if len(data) > 1 else data[0]
                    whole = whole if whole.isascii() else valid(whole)
                    messages.append(Message(whole, self._event or "message", self._id))
                    data.clear()
                    data_bytes = 0
                self._event = ""
            if data_bytes > limit:
                raise SSELimitExceeded(f"an event is over {limit} bytes")
        self._data_bytes = data_bytes

    def _field(self, line: bytes) -> int:
        """A line in any form; how many bytes of data it has."""
        name, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            self._data.append(value)
            return len(line)
        if name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name and (line.startswith(_JSON) or self._stray) and len(self._stray) < _MAX_STRAY_BYTES:
            self._stray += line[:_MAX_STRAY_BYTES] + b"\n"
        return 0


def valid(data: bytes) -> bytes:
    """``data`` as valid UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").encode()
    return data
