"""Everything Millstream raises on purpose, each with a stable code and an HTTP status.

    MillstreamError
    ├── InvalidRequest            invalid_request         422
    │   ├── MalformedBody         invalid_request         400
    │   ├── UnsupportedEncoding   invalid_request         415
    │   ├── BadPosition           bad_position            400
    │   ├── IdempotencyConflict   idempotency_conflict    422
    │   └── TooLarge              too_large               413
    ├── Unauthorized              unauthorized            401
    ├── Forbidden                 forbidden               403
    ├── NotFound                  not_found               404
    │   └── ModelNotFound         model_not_found         404
    ├── RateLimited               rate_limited            429
    ├── BudgetExceeded            budget_exceeded         402
    ├── TooManyStreams            too_many_streams        429
    │   └── TooManyReaders        too_many_streams        429
    ├── Overloaded                overloaded              503
    │   └── Draining              draining                503
    ├── ProviderError             what a provider did to us; ends a stream
    │   ├── UpstreamError         upstream_error          502
    │   │   └── UnreadableCall    upstream_error          502
    │   ├── UpstreamRefused       upstream_refused        502
    │   │   └── RequestRefused    upstream_refused        400
    │   │       └── PromptTooLong context_length_exceeded 400
    │   ├── UpstreamModelNotFound model_not_found         404
    │   ├── UpstreamRateLimited   upstream_rate_limited   429
    │   ├── UpstreamTimeout       upstream_timeout        504
    │   └── OutOfDescriptors      overloaded              503
    ├── ReportedError             what a stream, a framework or a server has said; any code
    ├── Internal                  internal                500
    ├── Interrupted               interrupted             503
    └── JournalError              a stream's journal; ends an append or a read
        ├── StreamClosed          the stream has its terminal event
        ├── StreamFull            the stream reached its size limit
        └── StreamGone            stream_gone             410

    ConfigurationError            a setting that cannot work; the CLI prints it and exits with 2
    Misuse                        an application that uses Millstream in a way that cannot work
    StoreAway                     a store that cannot be had, for the log

The list of codes is closed (spec/protocol.md §8). A message says what happened, with which value, and
what to do. It never carries a provider's text, a key, a URL or a prompt: it is shown to callers.
"""

import errno
import logging
import os
import traceback

from millstream.limits import Standing
from millstream.version import DOCS

_MAX_LOGGED = 200  # characters of a text that somebody else has chosen


class ConfigurationError(Exception):
    """A setting, an extra or a port that cannot work. The message is one line for the operator."""


def missing_extra(what: str, extra: str) -> ConfigurationError:
    """What to raise where ``what`` needs packages that only the extra of that name installs."""
    return ConfigurationError(
        f"{what} needs the extra '{extra}'; how to install it: {DOCS}/guides/install.md"
    )


class Misuse(RuntimeError):
    """An application makes use of Millstream in a way that cannot work. The text is written for its operator,
    and goes to the log.
    """


class StoreAway(Exception):
    """A store that cannot be had. The message is for the operator: what is wrong, in words, without a secret
    or what was to be stored.
    """

    store = "a store"


class MillstreamError(Exception):
    """Base of the tree. ``str(error)`` is safe to show to the caller."""

    code: str = "internal"
    status: int = 500
    retryable: bool = False
    standing: Standing | None = None  # of the limit that refuses

    def __init__(self, message: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class InvalidRequest(MillstreamError):
    """The request cannot be understood or asks for something that does not exist."""

    code = "invalid_request"
    status = 422


class MalformedBody(InvalidRequest):
    """The body is not JSON at all."""

    status = 400


class UnsupportedEncoding(InvalidRequest):
    """The body is JSON perhaps, but compressed, or not in UTF-8."""

    status = 415


class TooLarge(InvalidRequest):
    code = "too_large"
    status = 413


class BadPosition(InvalidRequest):
    """The text is no position, or the stream has not reached it."""

    code = "bad_position"
    status = 400


class IdempotencyConflict(InvalidRequest):
    """An idempotency key that was used for another request."""

    code = "idempotency_conflict"


class Unauthorized(MillstreamError):
    """No valid credential. One message for every cause, so that it tells an attacker nothing."""

    code = "unauthorized"
    status = 401

    def __init__(self) -> None:
        super().__init__("missing or invalid API key; send 'Authorization: Bearer <key>'")


class Forbidden(MillstreamError):
    code = "forbidden"
    status = 403


class NotFound(MillstreamError):
    code = "not_found"
    status = 404


class ModelNotFound(NotFound):
    code = "model_not_found"


class RateLimited(MillstreamError):
    """A limit of requests or tokens is used up until its next window, if there is one in which what is
    ``needed`` fits. ``standing`` says how it stands.
    """

    code = "rate_limited"
    status = 429
    standing: Standing

    def __init__(self, message: str, standing: Standing, *, needed: int = 1) -> None:
        seconds = standing.resets_in_seconds if needed <= standing.amount else None
        super().__init__(message, retry_after_seconds=seconds)
        self.standing = standing
        self.retryable = seconds is not None


class BudgetExceeded(MillstreamError):
    """Less of a budget is left than the answer may need. ``standing`` says how much."""

    code = "budget_exceeded"
    status = 402
    standing: Standing

    def __init__(self, message: str, standing: Standing) -> None:
        super().__init__(message)
        self.standing = standing


class TooManyStreams(MillstreamError):
    """As many streams are open as the key or the browser token allows."""

    code = "too_many_streams"
    status = 429
    retryable = True

    def __init__(self, most: int, message: str = "") -> None:
        super().__init__(
            message or f"{most} streams of this user are open, which is all the token allows; end one"
        )
        self.standing = Standing("streams", "total", most, 0, None)
        self.retryable = most > 0


class TooManyReaders(TooManyStreams):
    """As many connections of one key or end user follow streams on this worker as may."""

    def __init__(self, most: int) -> None:
        MillstreamError.__init__(
            self,
            f"{most} connections of this key or user follow streams here, which is all there may be; end one",
            retry_after_seconds=1,
        )


class Overloaded(MillstreamError):
    """This worker cannot take the request now; another moment or another worker can."""

    code = "overloaded"
    status = 503
    retryable = True

    def __init__(self, message: str, *, retry_after_seconds: int | None = 1) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)


class Draining(Overloaded):
    code = "draining"

    def __init__(self, message: str = "the server is shutting down; try again") -> None:
        super().__init__(message)


class Internal(MillstreamError):
    """A fault of ours. Its cause is in the server's log under ``identity``, the id of a request or a stream,
    and never in here. ``fault`` makes it, and writes the line.
    """

    def __init__(self, identity: str) -> None:
        super().__init__(f"internal error; the server's log has the details under {identity}")


class Interrupted(MillstreamError):
    """The worker that ran the stream is gone. Ends the stream in its place."""

    code = "interrupted"
    status = 503
    retryable = True

    def __init__(self) -> None:
        super().__init__("the answer was interrupted: the server that produced it has stopped")


class ProviderError(MillstreamError):
    """Base of what a provider did to a stream, before its first event or after.

    ``accepted`` says whether the provider took the request on: then it may bill for the prompt. Each
    class has its usual answer.
    """

    accepted: bool = True

    def __init__(
        self, message: str, *, accepted: bool | None = None, retry_after_seconds: int | None = None
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        if accepted is not None:
            self.accepted = accepted


class UpstreamError(ProviderError):
    """The provider broke: cut the stream, sent nonsense, answered 5xx or reported an error."""

    code = "upstream_error"
    status = 502
    retryable = True


class UnreadableCall(UpstreamError):
    """The model called a tool with arguments that clients of some formats would take for none."""

    def __init__(self) -> None:
        super().__init__("the model has called a tool with arguments that are no JSON object; ask again")


class UpstreamRefused(ProviderError):
    """The provider understood and said no. The same request will be refused again."""

    code = "upstream_refused"
    status = 502
    accepted = False


class RequestRefused(UpstreamRefused):
    """The request is at fault: who sent it can mend it."""

    status = 400


class PromptTooLong(RequestRefused):
    """The conversation is longer than the model's context. Clients that shorten it by themselves know this
    code, which is OpenAI's, or the words ``prompt is too long``, which are Anthropic's.
    """

    code = "context_length_exceeded"


class UpstreamRateLimited(ProviderError):
    code = "upstream_rate_limited"
    status = 429
    retryable = True
    accepted = False


class UpstreamTimeout(ProviderError):
    code = "upstream_timeout"
    status = 504
    retryable = True


class UpstreamModelNotFound(ProviderError):
    """The provider has no such model. The caller sees the same code as for a model of ours."""

    code = "model_not_found"
    status = 404
    accepted = False


class OutOfDescriptors(ProviderError):
    """This worker had no file descriptor left to reach the provider with. To callers it is ``Overloaded``."""

    code = "overloaded"
    status = 503
    retryable = True
    accepted = False

    def __init__(self) -> None:
        super().__init__("this server has no connections left; try again", retry_after_seconds=1)


class JournalError(MillstreamError):
    """Base of what a stream's log refuses."""


class StreamClosed(JournalError):
    """The stream already has its terminal event; nothing can follow it."""


class StreamFull(JournalError):
    """The stream reached the journal's size limit for one stream."""


class StreamGone(JournalError):
    """The stream was never here, or its events are no longer kept."""

    code = "stream_gone"
    status = 410


class ReportedError(MillstreamError):
    """An error that is known by its code: a stream's terminal event has kept it, or another server has sent
    it. Its status is ``status`` or else the usual one of the code.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        retryable: bool = False,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds)
        self.code = code
        self.status = status or usual_status(code)
        self.retryable = retryable


def usual_status(code: str) -> int:
    """The HTTP status of a code, where its error has none of its own."""
    return _statuses(MillstreamError).get(code, Internal.status)


def _statuses(kind: type[MillstreamError]) -> dict[str, int]:
    """The status of every code: the one of the class that is highest in the tree."""
    found: dict[str, int] = {}
    for child in kind.__subclasses__():
        found = _statuses(child) | found
    return found | {kind.code: kind.status}


def fault(log: logging.Logger, identity: str, error: BaseException, *, where: str = "") -> Internal:
    """Logs an unexpected exception under the id that the caller is told. To be raised, sent or recorded."""
    log.error("%s: %s%s", identity, where and f"{printable(where)}: ", safe_traceback(error))
    return Internal(identity)


def printable(text: str, *, most: int = _MAX_LOGGED) -> str:
    """What somebody else has chosen, for the log: one line, not long, without a character that a terminal
    obeys or that changes how the rest of the line is read.
    """
    shown = text[:most] + ("…" if len(text) > most else "")
    if shown.isprintable() and "\\" not in shown:
        return shown
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in shown)


def out_of_descriptors(error: OSError | None = None) -> bool:
    """Whether ``error`` means that no file descriptor was left. Without one: whether none is left now, for
    what a library could not open and does not say why.
    """
    if error is None:
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as found:
            error = found
    return error is not None and error.errno in (errno.EMFILE, errno.ENFILE)


def safe_traceback(error: BaseException) -> str:
    """An exception for the log: its words where they are ours, else its type and the innermost calls, without
    its text, which may hold a prompt, a key or an address.
    """
    if isinstance(error, Misuse) or (isinstance(error, MillstreamError) and error.code != Internal.code):
        return str(error)
    if isinstance(error, StoreAway):
        return f"{error.store}: {error}"
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    calls = " < ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in reversed(frames))
    return f"{type(error).__name__} in {calls}"
