"""Dialects: a batch of events -> the bytes of one wire format."""

from collections.abc import Mapping
from typing import Protocol

from millstream.answer import Answer
from millstream.errors import MillstreamError
from millstream.events import Batch, StreamInfo


class Dialect(Protocol):
    """Everything here is pure: a reader that joins anywhere gets the same bytes for the same events."""

    headers: Mapping[str, str]
    ping: bytes
    resume: bytes  # what stands before the frames of a response that follows a stream

    def encode(self, info: StreamInfo, batch: Batch) -> bytes:
        """The frames of ``batch``."""

    def answer(self, info: StreamInfo, answer: Answer) -> bytes:
        """The body of a response that has the whole answer of a stream that did not fail."""

    def retry(self, milliseconds: int) -> bytes:
        """Asks the reader to come back after that time."""

    def error(self, error: MillstreamError, request_id: str) -> bytes:
        """The body of a response that never became a stream."""
