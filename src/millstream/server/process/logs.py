"""What `millstream serve` writes to its standard error: one line a record, as text or as JSON."""

import asyncio
import fcntl
import json
import logging
import os
import re
import select
import stat
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from millstream import log_ids
from millstream.errors import printable

_REPEAT_SECONDS = 10.0  # between two lines of the background that are the same
_MAX_REPEATED = 100
_PIPE_BYTES = 1 << 20  # as much as Linux lets everybody have
_STREAM_ID = re.compile(r"\bstr_[\w-]{22}(?![\w-])")
_ACCESS = ("client", "method", "path", "http_version", "status")  # the arguments of uvicorn's lines


def configure(level: str, form: Literal["text", "json"], *, access: bool) -> None:
    """``level`` is for records of ours; others' are written from WARNING on. ``access`` adds a line a
    request.
    """
    # Names of threads and processes, which no line has, need not be looked up for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = _Handler()
    handler.setFormatter(_Json() if form == "json" else _Text())
    handler.addFilter(_is_no_cut)
    handler.addFilter(_Repeats())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("millstream").setLevel(level.upper())
    logging.getLogger("uvicorn.access").setLevel(logging.INFO if access else logging.WARNING)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to the standard error. A pipe is never waited for: while its reader stands still, lines are
    lost, and counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pipe = _pipe_of(self.stream)
        self._ready = select.poll()
        if self._pipe is not None:
            self._ready.register(self._pipe, select.POLLOUT)
        self._lost = 0
        self._torn = False  # the last line has no end

    def emit(self, record: logging.LogRecord) -> None:
        if self._pipe is None:
            super().emit(record)
            return
        try:
            if not self._ready.poll(0):
                self._lost += 1
                return
            if self._lost and self._write(self._pipe, _loss(self._lost)):
                self._lost = 0
            if self._lost or not self._write(self._pipe, record):
                self._lost += 1
        except Exception:
            self.handleError(record)

    def _write(self, pipe: int, record: logging.LogRecord) -> bool:
        """Whether the pipe has taken all of it. One that takes anything takes ``PIPE_BUF`` bytes."""
        line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        if self._torn:
            line = b"\n" + line
        for start in range(0, len(line), select.PIPE_BUF):
            try:
                if not self._ready.poll(0):
                    raise BlockingIOError
                os.write(pipe, line[start : start + select.PIPE_BUF])
            except BlockingIOError:
                self._torn = self._torn or start > 0
                return False
        self._torn = False
        return True


def _pipe_of(stream: TextIO) -> int | None:
    """The descriptor of ``stream`` where it is a pipe, which is made as large as it may be."""
    try:
        descriptor = stream.fileno()
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return None
    except (AttributeError, OSError, ValueError):  # it is no file, or closed
        return None
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    if sys.platform == "linux":
        # Another worker may take the room between a look and a write: then the write must not wait either,
        # and only to a description of our own can we say so.
        with suppress(OSError):
            return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return descriptor


def _loss(lines: int) -> logging.LogRecord:
    said = "%d line%s of this log %s lost: nobody has read it"
    given = (lines, "" if lines == 1 else "s", "was" if lines == 1 else "were")
    return logging.LogRecord("millstream.server", logging.WARNING, __file__, 0, said, given, None)


def _is_no_cut(record: logging.LogRecord) -> bool:
    """A request that this server itself has ended is no failure, though uvicorn logs it as one."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


class _Repeats(logging.Filter):
    """Lets a warning that repeats pass once in ``_REPEAT_SECONDS``, with how often it has come since: while a
    store is away, whatever wants it says so again and again. Lines of requests all pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[tuple[str, str], tuple[float, int]] = {}  # when, and how many were held back since

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING or log_ids.of_this_task():
            return True
        said = record.name, _message(record)
        passed_at, held_back = self._passed.get(said, (0.0, 0))
        if 0 <= record.created - passed_at < _REPEAT_SECONDS:
            self._passed[said] = passed_at, held_back + 1
            return False
        if held_back:
            record.times = held_back + 1
        self._passed.pop(said, None)
        while len(self._passed) >= _MAX_REPEATED:
            del self._passed[next(iter(self._passed))]
        self._passed[said] = record.created, 0
        return True


class _Text(logging.Formatter):
    """Ids that the message does not have are behind it."""

    def format(self, record: logging.LogRecord) -> str:
        message = _message(record)
        ids = log_ids.of_this_task().items()
        more = "".join(f" {name}={identity}" for name, identity in ids if identity not in message)
        return f"{_time(record)} {record.levelname:<7} {record.name}: {message}{more}"


class _Json(logging.Formatter):
    """The ids that a line belongs to are fields, and so are the parts of a stream's or a request's line."""

    def format(self, record: logging.LogRecord) -> str:
        message = _message(record)
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **log_ids.of_this_task(),
            **getattr(record, "fields", {}),
        }
        if record.name == "uvicorn.access" and isinstance(record.args, tuple):
            fields |= zip(_ACCESS, record.args, strict=False)
        if "stream_id" not in fields and len(named := set(_STREAM_ID.findall(message))) == 1:
            fields["stream_id"] = named.pop()
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
    if (times := getattr(record, "times", 1)) > 1:
        message += f" ({times} times)"
    return message if message.isprintable() else printable(message, most=4096)
