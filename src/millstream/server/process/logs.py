"""What `millstream serve` writes to its standard error: one line a record, as text or as JSON."""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

from millstream.errors import printable


def configure(level: str, form: Literal["text", "json"], *, access: bool) -> None:
    """``level`` is for records of ours; others' are written from WARNING on. ``access`` adds a line a
    request.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("millstream").setLevel(level.upper())
    logging.getLogger("uvicorn.access").setLevel(logging.INFO if access else logging.WARNING)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {record.levelname:<7} {record.name}: {_message(record)}"


class _Json(logging.Formatter):
    """The fields of a stream's line are fields here too."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **getattr(record, "fields", {}),
        }
        return json.dumps(fields)


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    if record.exc_info is not None:  # another library's: its traceback may hold anything
        kind = record.exc_info[0]
        message += f" ({kind.__name__ if kind else 'unknown'})"
    return message if message.isprintable() else printable(message, most=4096)
