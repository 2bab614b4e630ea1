"""The ``responses`` dialect: OpenAI's Responses API, as its SDKs read it.

Facts: https://platform.openai.com/docs/api-reference/responses-streaming, the openapi document of OpenAI, and
the parsers of openai-python and openai-node (spec/dialects.md). Frames have an ``event:`` line and are
numbered from 0 without a gap, which is how those clients resume; they have no ids of ours. There is no
``[DONE]``.

An answer is a list of items there. Texts, refusals and sources that follow each other are one item, a
message. It ends with what follows it, because a source may come after the text that rests on it.
"""

from collections.abc import Mapping

import msgspec

from millstream import sse
from millstream.answer import Answer
from millstream.dialects import Ask, Before, choice_of_parts, openai_errors
from millstream.dialects.limit_headers import openai_limits
from millstream.dialects.responses.body import API, ask_of
from millstream.dialects.responses.frames import Encoder, frame
from millstream.errors import BadPosition, Draining, MillstreamError
from millstream.events import Batch, StreamInfo, StreamStart, TextDelta

_json = msgspec.json.Encoder().encode


class ResponsesDialect:
    """``after`` is the number of the last frame that a client has seen, which gets those behind it."""

    name = "responses"
    headers: Mapping[str, str] = {"Content-Type": "text/event-stream; charset=utf-8"}
    request_id_header = "x-request-id"
    beta_header: str | None = None
    limit_headers = staticmethod(openai_limits)
    ping = sse.PING
    preamble = b""
    tells_cuts = True
    looks_back = True

    def __init__(self, *, after: int = -1) -> None:
        self._after = after

    def parse(self, body: bytes) -> Ask:
        return ask_of(body, self)

    def encode(self, info: StreamInfo, batch: Batch, before: Before) -> bytes:
        answer = before()
        encoder: Encoder | None = answer.kept(API)
        if encoder is None:
            encoder = Encoder(info, answer, has_begun=not isinstance(batch.events[0], StreamStart))
        else:
            encoder.go_on(answer)
        others = choice_of_parts(info, batch, before)
        number = encoder.number
        for event in batch.events:
            # Nearly every event is a piece of text.
            if type(event) is TextDelta and not others:
                encoder.add_text(event)
            elif getattr(event, "part", None) not in others and getattr(event, "choice", 0) == 0:
                encoder.add(event)
        answer.keep(API, encoder, len(batch.events))
        seen = max(0, self._after + 1 - number)
        return sse.one_line(b"".join(encoder.frames[seen:]))

    def check_position(self, info: StreamInfo, so_far: Answer) -> None:
        """Raises ``BadPosition`` where a response that has ended has no such frame. One that goes on may be
        ahead of what is known of it here.
        """
        last = Encoder(info, so_far, has_begun=True).number  # behind which is only the end
        if so_far.terminal is not None and self._after > last:
            raise BadPosition(f"the response ends at {last}")

    def answer(self, info: StreamInfo, answer: Answer) -> bytes:
        """Also of a stream that still runs, or has failed: the response as far as it is."""
        return sse.one_line(_json(Encoder(info, answer, has_begun=True).response(answer.terminal)))

    def goodbye(self, retry_milliseconds: int | None) -> bytes:
        # With an ``error`` inside, OpenAI's SDKs raise; without, most programs would overlook it. It has no
        # number, from which a client would go on.
        error = Draining("the connection ends before its answer; resume the response")
        said = {"type": "error", "code": error.code, "message": error.message, "param": None}
        return frame("error", {**said, "error": openai_errors.shown(error)})

    def error(self, error: MillstreamError, request_id: str) -> tuple[int, bytes]:
        return openai_errors.status_of(error), sse.one_line(_json({"error": openai_errors.shown(error)}))


RESPONSES = ResponsesDialect()
