"""How `millstream serve` writes its lines: what repeats, and what they belong to."""

import asyncio
import io
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

from millstream import log_ids
from millstream.server.process import logs

log = logging.getLogger("millstream.test")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What goes to the standard error, in JSON."""
    loggers = [logging.getLogger(name) for name in (None, "millstream", "uvicorn.access")]
    before = [(logger, logger.handlers, logger.level) for logger in loggers]
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("info", "json", access=False)
    yield stream
    for logger, handlers, level in before:
        logger.handlers = handlers
        logger.setLevel(level)


def lines(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_a_line_that_repeats_is_written_once_in_a_while(
    written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("time.time_ns", lambda: int(now * 1e9))
    for _ in range(25):
        log.error("the store does not answer")
        log.error("another %s", "fault")
        log.info("an event")
        now += 1
    texts = [line["message"] for line in lines(written)]
    assert texts.count("an event") == 25
    assert [text for text in texts if "store" in text] == [
        "the store does not answer",
        "the store does not answer (10 times)",
        "the store does not answer (10 times)",
    ]
    assert len([text for text in texts if "another" in text]) == 3


def test_lines_of_requests_are_all_written(written: io.StringIO) -> None:
    token = log_ids.REQUEST_ID.set("req_a")
    try:
        for _ in range(3):
            log.error("the same")
    finally:
        log_ids.REQUEST_ID.reset(token)
    assert [line["request_id"] for line in lines(written)] == ["req_a"] * 3


def test_a_line_that_names_one_stream_belongs_to_it(written: io.StringIO) -> None:
    one, other = f"str_{'a' * 22}", f"str_{'b' * 22}"
    log.error("stream %s cannot be ended", one)
    log.error("streams %s and %s", one, other)
    assert [line.get("stream_id") for line in lines(written)] == [one, None]


def test_a_request_that_the_server_has_ended_is_no_failure(written: io.StringIO) -> None:
    for error in (asyncio.CancelledError("the server stops"), ValueError("a defect")):
        log.error("Exception in ASGI application\n", exc_info=error)
    assert [line["message"] for line in lines(written)] == ["Exception in ASGI application\\n (ValueError)"]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """What reads the standard error, which is a pipe of 64 KiB, through ``logs``."""
    loggers = [logging.getLogger(name) for name in (None, "millstream", "uvicorn.access")]
    before = [(logger, logger.handlers, logger.level) for logger in loggers]
    reader, writer = os.pipe()
    monkeypatch.setattr(logs, "_PIPE_BYTES", 1 << 16)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        logs.configure("info", "json", access=False)
        yield reader
    for logger, handlers, level in before:
        logger.handlers = handlers
        logger.setLevel(level)
    os.close(reader)


@pytest.mark.parametrize("size", [1, 3_000, 10_000])
def test_a_reader_that_stands_still_stops_nobody(pipe: int, size: int) -> None:
    text = "x" * size
    for i in range(2_000):
        log.info("%d %s", i, text)
    read = os.read(pipe, 1 << 20)
    for i in range(3):
        log.info("again %d", i)
    *earlier, lost, again, again_1, again_2 = (read + os.read(pipe, 1 << 20)).decode().splitlines()
    whole = [json.loads(line)["message"] for line in earlier if line.endswith("}")]
    assert len(earlier) - len(whole) <= 1  # the one that was torn
    assert whole == [f"{i} {text}" for i in range(len(whole))]
    assert (
        json.loads(lost)["message"] == f"{2_000 - len(whole)} lines of this log were lost: nobody has read it"
    )
    assert [json.loads(line)["message"] for line in (again, again_1, again_2)] == [
        f"again {i}" for i in range(3)
    ]


def test_a_long_line_that_is_read_is_whole(pipe: int) -> None:
    log.info("x" * 20_000)
    log.info("y")
    assert [len(json.loads(line)["message"]) for line in os.read(pipe, 1 << 20).splitlines()] == [20_000, 1]


class _AlwaysReady:
    """What a poll says of a pipe in which somebody else takes the room before the write."""

    def register(self, descriptor: int, events: int) -> None: ...

    def poll(self, milliseconds: int) -> bool:
        return True


def test_a_line_that_another_worker_leaves_no_room_for_is_lost_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, pipe: int
) -> None:
    monkeypatch.setattr("select.poll", _AlwaysReady)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        logs.configure("info", "json", access=False)
        for _ in range(100):
            log.info("x" * 3_000)
        assert 0 < os.read(reader, 1 << 20).count(b"\n") < 30
        assert os.get_blocking(writer)  # which is others', too
    os.close(reader)


def test_a_server_without_a_standard_error_starts(monkeypatch: pytest.MonkeyPatch, pipe: int) -> None:
    monkeypatch.setattr("sys.stderr", None)
    logs.configure("info", "json", access=False)
