"""Connections: bytes of clients -> requests, with every size, every wait and their number bounded.

uvicorn's protocol on httptools, which leaves these to a proxy. What is different here:

1. The head of a request has a size, a number of fields and a time to arrive in.
2. A body may not pause for long and has a time to arrive in. Its trailers are bounded and are no headers.
3. While a request is answered its connection is read on, so that the client's leaving is seen. uvicorn stops
   reading at the next request. What comes ahead of its time is bounded too.
4. When a response ends before its request does, what is left of the request is taken and thrown away for a
   while. A system that is sent to after it has closed answers with a reset, and that can take the response
   away from the client.
5. There are as many connections as descriptors allow. For one more an idle one is closed; where none is, it
   is answered 503.
6. What the protocol refuses by itself has the shape of all our errors.
7. An offer to change the protocol, as Java's HttpClient makes with each request, is ignored (RFC 9110 §7.8).
   httptools stops at it and takes the body for the other protocol.
8. HTTP/1.0 knows no chunks: a response of unknown length ends with its connection (RFC 9112 §6.3). Nor does
   it know of responses before the response: it is not told to go on with a body (RFC 9110 §10.1.1).
9. A request has one Host, with a name and maybe a port; none in HTTP/1.0 (RFC 9112 §3.2).

What a connection is waited for:

    request   nothing of a request is here       -> head, None
    head      its first bytes are                -> body, None, rest
    body      the head is complete               -> None, rest
    None      the request is, its response not   -> request, head, body, rest
    rest      what is sent now is thrown away    -> request, closed

Whoever is not waited for (None) is watched for leaving only. One timer looks at the others.
"""

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from millstream.dialects.native import NATIVE
from millstream.errors import InvalidRequest, MillstreamError, Overloaded, ReportedError, TooLarge
from millstream.log_ids import REQUEST_ID
from millstream.server.errors import error_headers, id_of_scope, new_request_id
from millstream.server.process.connections import Connections, Waits
from millstream.server.process.light import Event, Flow, Pipeline
from millstream.server.streaming.client_watch import CLIENT

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

_ASGI = {"version": "3.0", "spec_version": "2.3"}
_HOST = re.compile(rb"(?:\[[\w.:~!$&'()*+,;=%-]+\]|[\w.~!$&'()*+,;=%-]*)(?::\d*)?")
_BEFORE_AN_ANSWER = b"HTTP/1.1 100 "
_PAUSING: tuple[Waits, ...] = ("body", "rest")  # whose clock is set anew by every byte
_SPARE: tuple[Waits, ...] = ("request", "rest")  # in which a connection can be closed to make room


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    # Beside the attributes that uvicorn keeps in a dictionary.
    __slots__ = (
        "_ahead",
        "_all",
        "_bounds",
        "_counts_as_refused",
        "_deaf",
        "_discarded",
        "_leaving",
        "_lingers",
        "_loose",
        "_polite",
        "_reads",
        "_refusal",
        "_running",
        "_socket",
        "_until",
        "_waits",
    )

    def __init__(
        self,
        connections: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.pipeline = Pipeline()  # type: ignore[assignment]
        self._all = connections
        self._bounds = connections.bounds
        self._reads: Literal["request", "head", "body"] = "request"  # what the parser will get next
        self._running: RequestResponseCycle | None = None  # the oldest request, which is or was answered
        self._leaving: Callable[[], None] | None = None  # tells whoever answers it that its client has left
        self._loose = 0  # bytes that belong to nothing complete yet
        self._ahead = 0  # bytes that came while another request was answered
        self._discarded = 0
        self._refusal: MillstreamError | None = None  # what the parser is about to be stopped for
        self._deaf = False  # what is sent is thrown away unread
        self._lingers = False  # and the connection is half closed
        self._counts_as_refused = False
        self._waits: Waits | None = None
        self._until = 0.0

    # -- the transport's side ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._socket = transport
        self._polite = _PoliteTransport(transport, self)
        super().connection_made(self._polite)
        self.flow = Flow(self._polite)  # type: ignore[assignment]
        descriptor = transport.get_extra_info("socket").fileno()
        if self._all.has_room(len(self.connections), descriptor):
            self._wait("request", self.loop.time() + self._bounds.head_seconds)
            return
        # (5) Before its request has come. It is lingered for, or else would not see this (4).
        self._counts_as_refused = self._all.refuse(self.loop.time())
        self._refuse(Overloaded("as many connections are open as this server can take; try again"))
        if not self._counts_as_refused:
            self.hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        if self._counts_as_refused:
            self._all.refused()
        super().connection_lost(exc)
        self._tell_who_runs()
        self._untie()
        self.pipeline.clear()
        self._polite.let_go()

    def eof_received(self) -> None:
        """The transport closes now; ``connection_lost`` comes a turn of the loop later."""
        self._tell_who_runs()

    def _tell_who_runs(self) -> None:
        """That the client has left (3). uvicorn tells the newest request only."""
        running = self._running
        if running is not None and not running.response_complete:
            self._disconnect(running)

    def _disconnect(self, running: RequestResponseCycle) -> None:
        """Tells whoever answers the request that nobody takes the answer."""
        running.disconnected = True
        running.message_event.set()
        if self._leaving is not None:
            leaving, self._leaving = self._leaving, None
            leaving()

    def watch(self, cycle: RequestResponseCycle, leaving: Callable[[], None]) -> bool:
        """``leaving`` is called, once, when the client of a request leaves before its answer is complete.
        False where that is not possible yet: the body is not here.
        """
        if cycle.more_body or cycle is not self._running or cycle.response_complete:
            return False
        if cycle.disconnected:
            leaving()
        else:
            self._leaving = leaving
        return True

    def unwatch(self) -> None:
        self._leaving = None

    def _untie(self) -> None:
        """Parts a request from what its scope has of it, so that both are freed without the collector."""
        self._leaving = None
        if self._running is not None:
            cast("dict[str, object]", self._running.scope).pop(CLIENT, None)

    def data_received(self, data: bytes) -> None:
        size, running = len(data), self._running
        if self._deaf:
            self._discard(size)
            return
        if running is not None:
            if running.response_complete:
                if self._reads == "body" and not self._discard(size):
                    return
            elif not running.more_body:
                self._ahead += size
                if self._ahead > self._bounds.ahead_bytes:
                    self._take_no_more()
                    return
        self._loose += size
        self._feed(data)
        if self._loose > self._bounds.head_bytes and not self._deaf:
            self._refuse(self._too_large() if self._reads == "head" else _malformed())
        if self.pipeline:
            self.flow.resume_reading()  # (3)
            self._ahead = self._ahead or size
        elif self._reads == "request" and not self._deaf:
            self.parser = None  # type: ignore[assignment]  # a kilobyte, for the next request, if there is one
        self._look()

    def close(self) -> None:
        """Closes as soon as the client can have read what was sent (4)."""
        if self._lingers or self._socket.is_closing():
            return
        if self._reads == "request" and not self._deaf and not self.pipeline:
            self._socket.close()
            return
        self._deaf = self._lingers = True
        self.parser = None  # type: ignore[assignment]  # and what it holds of a head
        self.pipeline.clear()
        self.flow.resume_reading()
        self._socket.write_eof()
        self._look()

    def shutdown(self) -> None:
        """Called when the server ends."""
        if self._running is not None and not self._running.response_complete:
            super().shutdown()
        elif not self._lingers:
            self.hang_up()

    def hang_up(self) -> None:
        """Closes without waiting for anything but for what was written."""
        self._wait(None)
        self._polite.let_head_go()
        self._socket.close()

    def abort(self) -> None:
        """Closes without waiting for anything."""
        self._wait(None)
        self._socket.abort()

    def is_closing(self) -> bool:
        return self._lingers or self._socket.is_closing()

    # -- the parser's side ------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        if cast("object", self.parser) is None:
            self._make_parser()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._ignore_offer(data[offer.args[0] :])
        except httptools.HttpParserError:  # which the parser found, or one of these methods
            self._refuse(self._refusal or _malformed())

    def _ignore_offer(self, rest: bytes) -> None:
        """Reads the request again without its offer (7)."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._refuse(_malformed())
            return
        head = [b"%b %b HTTP/%b" % (method, self.url, version)]
        head += [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
        self._make_parser()
        self._feed(b"\r\n".join([*head, b"", rest]))

    def _make_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self._bounds.ahead_requests:
            raise ValueError  # stops the parser (3)
        self._reads = "head"
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= self._bounds.head_fields:
            self._refusal = self._too_large()
            raise ValueError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        # Of what came at once only a part may be the head.
        if self._loose > self._bounds.head_bytes and self._head_bytes() > self._bounds.head_bytes:
            self._refusal = self._too_large()
            raise ValueError
        if self.parser.should_upgrade():
            return  # the parser stops next (7)
        version = self.parser.get_http_version()
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or not (_HOST.fullmatch(hosts[0].strip(b" \t")) if hosts else version == "1.0"):
            self._refusal = _malformed("a request has one Host, with a name and maybe a port")
            raise ValueError
        if version == "1.0":
            self.expect_100_continue = False
        self._loose = self._discarded = 0
        self._reads = "body"
        super().on_headers_complete()
        self.headers = []  # for the trailers (2)

    def on_body(self, body: bytes) -> None:
        self._loose = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._loose = 0
        self._reads = "request"
        super().on_message_complete()

    # -- the application's side -------------------------------------------------------------

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: "ASGI3Application") -> None:
        self._running = cycle
        cycle.message_event = cast("asyncio.Event", Event(is_set=cycle.message_event.is_set()))
        if cycle.scope["http_version"] == "1.0":
            app = _without_chunks(app, cycle)
        else:
            cast("dict[str, object]", cycle.scope)[CLIENT] = _Client(cycle)
        cast("dict[str, object]", cycle.scope)["asgi"] = _ASGI
        self._polite.hold_head()
        token = REQUEST_ID.set(id_of_scope(cast("dict[str, Any]", cycle.scope)))  # the task takes it over
        try:
            super()._start_asgi_task(cycle, app)
        finally:
            REQUEST_ID.reset(token)

    def on_response_complete(self) -> None:
        # Not calling super(): it would set a timer for each request.
        self._polite.let_head_go()
        self.server_state.total_requests += 1
        self._untie()
        if self.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        if not self.pipeline:
            self._ahead = 0
        self._look()

    # -- what is waited for -----------------------------------------------------------------

    def _look(self) -> None:
        """Sets the clock for what the client has to do next."""
        running = self._running
        waits: Waits | None
        if self._deaf:
            waits = "rest" if self._lingers else None
        elif running is not None and not running.response_complete:
            waits = "body" if running.more_body else None
        else:
            waits = "rest" if self._reads == "body" else self._reads
        if waits is None:
            self._wait(None)
        elif waits != self._waits or waits in _PAUSING:
            now = self.loop.time()
            pause, whole = self._all.times[waits]
            if waits != self._waits:
                self._until = now + whole
            self._wait(waits, min(now + pause, self._until))

    def _wait(self, waits: Waits | None, due: float = 0) -> None:
        if self._waits is not None and waits != self._waits:
            self._all.stop_waiting(self, spare=self._is_spare(self._waits))
        self._waits = waits
        if waits is not None:
            self._all.wait(self, due, spare=self._is_spare(waits))

    def _is_spare(self, waits: Waits) -> bool:
        return waits in _SPARE and not self._counts_as_refused

    def ring(self) -> None:
        """Called when what is waited for has not come in time."""
        match self._waits:
            case "request":
                self.hang_up()
            case "head":
                self._refuse(_late("the head of the request", self._bounds.head_seconds))
            case "body" if self.flow.read_paused:
                self._wait("body", self.loop.time() + self._bounds.body_pause_seconds)  # it waits for us
            case "body":
                self._refuse(_late("the body", self._bounds.body_seconds))
            case "rest":
                self.abort()

    # -- what is refused --------------------------------------------------------------------

    def _discard(self, size: int) -> bool:
        """Whether the client may go on."""
        self._discarded += size
        if self._discarded > self._bounds.rest_bytes:
            self.abort()
            return False
        self._look()
        return True

    def _take_no_more(self) -> None:
        """Answers what has arrived whole, and nothing after it (3)."""
        if self.pipeline and self.cycle.more_body:
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else cast(RequestResponseCycle, self._running)
        self.cycle.keep_alive = False
        self._deaf = True
        self.flow.resume_reading()
        self._look()

    def _refuse(self, error: MillstreamError) -> None:
        """Ends the request that is arriving with ``error``, and then the connection."""
        running = self._running
        if running is not None and not running.response_complete:
            if not running.more_body:
                self._take_no_more()
                return
            if running.response_started:
                self.hang_up()
                return
            self._disconnect(running)  # whatever its application still sends goes nowhere
        identity = new_request_id()
        self._log_refusal(error, identity)
        _, body = NATIVE.error(error, identity)
        headers = error_headers(error, identity)
        headers |= {"Content-Length": str(len(body)), "Connection": "close"}
        lines = [f"{name.lower()}: {value}\r\n".encode("latin-1") for name, value in headers.items()]
        self._socket.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body]))
        self._deaf = True
        self.close()

    def _log_refusal(self, error: MillstreamError, identity: str) -> None:
        """Its line in the access log, in uvicorn's words for others. What was asked for is not known."""
        if not self.access_log:
            return
        token = REQUEST_ID.set(identity)
        try:
            client = "" if self.client is None else f"{self.client[0]}:{self.client[1]}"
            self.access_logger.info('%s - "%s %s HTTP/%s" %d', client, "-", "-", "1.1", error.status)
        finally:
            REQUEST_ID.reset(token)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _too_large(self) -> MillstreamError:
        bounds = self._bounds
        message = f"the head of the request is over {bounds.head_bytes} bytes or {bounds.head_fields} fields"
        return ReportedError(TooLarge.code, message, status=431)


class _PoliteTransport(asyncio.Transport):
    """A connection's transport as uvicorn gets it, which lingers when it is closed. The head of an answer
    waits for what follows it: both are one packet then, and one call of the system.
    """

    __slots__ = ("_connection", "_head", "_transport", "write")

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        # Not calling super().__init__(): nobody asks for extras that are not the transport's own.
        self._transport = transport
        self._connection: Connection | None = connection
        self._head = b""
        self.write = transport.write  # type: ignore[method-assign]  # nothing in between, it is the hot one

    def hold_head(self) -> None:
        """What is written next is the head of an answer."""
        self.write = self._write_head  # type: ignore[method-assign]

    def _write_head(self, data: Any) -> None:
        if data.startswith(_BEFORE_AN_ANSWER):
            self._transport.write(data)
        elif self._head:
            head = self._head
            self._head = b""
            self.write = self._transport.write  # type: ignore[method-assign]
            self._transport.write(head + data)
        else:
            self._head = data

    def let_head_go(self) -> None:
        """Nothing follows it."""
        self.write = self._transport.write  # type: ignore[method-assign]
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def watch(self, cycle: RequestResponseCycle, leaving: Callable[[], None]) -> bool:
        return self._connection is not None and self._connection.watch(cycle, leaving)

    def unwatch(self) -> None:
        if self._connection is not None:
            self._connection.unwatch()

    def let_go(self) -> None:
        """Lets go of the connection, so that both are freed without the collector."""
        self._connection = None
        self.write = self._transport.write  # type: ignore[method-assign]

    def close(self) -> None:
        if self._connection is not None:
            self.let_head_go()
            self._connection.close()

    def is_closing(self) -> bool:
        return self._connection is None or self._connection.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)


class _Client:
    """Who is answered in ``cycle``."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def is_ready(self) -> bool:
        cycle = self._cycle
        return (
            cycle.chunked_encoding is True
            and not cycle.response_complete
            and not cycle.disconnected
            and not cycle.flow.write_paused
        )

    def watch(self, leaving: Callable[[], None]) -> bool:
        return cast("_PoliteTransport", self._cycle.transport).watch(self._cycle, leaving)

    def unwatch(self) -> None:
        cast("_PoliteTransport", self._cycle.transport).unwatch()

    def write(self, data: bytes) -> None:
        """As ``cycle.send`` of more of a body, without waiting."""
        if data:  # an empty chunk would be the end of the body
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))


def _without_chunks(app: "ASGI3Application", cycle: RequestResponseCycle) -> "ASGI3Application":
    """``app`` for a client of HTTP/1.0 (8)."""

    async def send(message: Any) -> None:
        cycle.chunked_encoding = False
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await cycle.send(message)

    return lambda scope, receive, _: app(scope, receive, send)


def _malformed(why: str = "this is not a request of HTTP/1.1") -> MillstreamError:
    return ReportedError(InvalidRequest.code, why, status=400)


def _late(what: str, seconds: float) -> MillstreamError:
    message = f"{what} did not arrive in time: it paused, or took over {seconds:g} s"
    return ReportedError(InvalidRequest.code, message, status=408, retryable=True)
