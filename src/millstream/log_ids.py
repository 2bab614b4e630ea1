"""What a line of the operator's log belongs to: the request and the stream that its task works for."""

from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
STREAM_ID: ContextVar[str] = ContextVar("stream_id", default="")


def of_this_task() -> dict[str, str]:
    """Those that there are, by the names that they have in a line."""
    found = {"request_id": REQUEST_ID.get(), "stream_id": STREAM_ID.get()}
    return {name: identity for name, identity in found.items() if identity}
