"""The id of a stream, and that of its response."""


def response_id(stream_id: str) -> str:
    """The id of a stream's response."""
    return f"resp_{stream_id.removeprefix('str_')}"


def stream_id(response_id: str) -> str | None:
    """The stream of a response; None where there is none by that id."""
    return f"str_{response_id[5:]}" if response_id.startswith("resp_") else None
