"""Recordings: what a provider produced, with its times, and the provider that plays it again.

    replay/NAME      at its pace
    replay/NAME@0    as fast as it is taken; @2 takes twice the time

A recording is a file of JSON lines: a head, a batch for each that the provider gave, and how it ended if that
was an error. ``at`` are seconds since the request. The format has a version, and docs/guides/
test-your-front-end.md describes it.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import msgspec
from msgspec import Struct

from millstream import private_files
from millstream.errors import (
    ConfigurationError,
    ProviderError,
    RequestRefused,
    UpstreamError,
    UpstreamModelNotFound,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
)
from millstream.events import AnswerStart
from millstream.prompt import Prompt
from millstream.providers import (
    Finish,
    InChoice,
    PartBreak,
    PartOpen,
    Produced,
    Said,
    UsageReport,
)
from millstream.usage import Usage

NAME = "replay"
VERSION = 1

_MAX_BYTES = 16 << 20
_MAX_SECONDS = 86_400
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MODEL = re.compile(rf"({_NAME.pattern})(?:@(\d{{1,3}}(?:\.\d{{1,3}})?))?")


class Head(Struct, frozen=True, tag="recording", omit_defaults=True):
    """``recorded_at`` is in Unix seconds; ``prompt`` is there where that was asked for."""

    version: int
    model: str
    recorded_at: float
    prompt: str | None = None


class _Count(Struct, frozen=True, tag="usage"):
    """A running count on its own: ``Usage`` has no tag."""

    usage: Usage


_Item: TypeAlias = Said | AnswerStart | PartOpen | PartBreak | InChoice | UsageReport | Finish | _Count


class _Batch(Struct, frozen=True, tag="batch"):
    at: float
    items: list[_Item]


class _Failed(Struct, frozen=True, tag="failed", omit_defaults=True):
    at: float
    error: str
    message: str
    accepted: bool
    retry_after_seconds: int | None = None


_Step: TypeAlias = _Batch | _Failed

_ERRORS: dict[str, type[ProviderError]] = {
    "UpstreamError": UpstreamError,
    "UpstreamRefused": UpstreamRefused,
    "RequestRefused": RequestRefused,
    "UpstreamRateLimited": UpstreamRateLimited,
    "UpstreamTimeout": UpstreamTimeout,
    "UpstreamModelNotFound": UpstreamModelNotFound,
}

_encode = msgspec.json.Encoder().encode
_head = msgspec.json.Decoder(Head).decode
_step = msgspec.json.Decoder(_Step).decode


class Recorder:
    """Writes a recording, which is there under its name once it has been left (``with``) without a fault of
    its own. An error of the provider belongs to the recording.

    Raises ``ConfigurationError`` for a name that is none or is taken, and for a folder that cannot be
    written to.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        model: str,
        *,
        prompt: str | None = None,
        replace: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"'{name}' cannot be a recording's name: letters, digits, '.', '_' and '-', at most 64"
            )
        self.path = folder / f"{name}.jsonl"
        self._part = folder / f"{name}.part"
        self._replace = replace
        self._head = Head(VERSION, model, time.time(), prompt)
        self._clock = clock
        self._began = clock()
        self._bytes = 0

    def __enter__(self) -> Self:
        if self.path.exists() and not self._replace:
            raise ConfigurationError(f"there is a recording {self.path} already; --replace replaces it")
        try:
            self._part.unlink(missing_ok=True)
            private_files.make(self._part)
            self._file = self._part.open("wb")
        except OSError as error:
            raise ConfigurationError(f"{self._part} cannot be written: {error.strerror}") from error
        self._began = self._clock()
        self._write(self._head)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ProviderError):
            failed = _Failed(
                self._at(), _name_of(error), error.message, error.accepted, error.retry_after_seconds
            )
            self._write(failed)
        self._file.close()
        if error is None or isinstance(error, ProviderError):
            self._part.replace(self.path)
        else:
            self._part.unlink()

    def add(self, batch: Sequence[Produced]) -> None:
        """Raises ``ConfigurationError`` where the recording becomes too long."""
        self._write(_Batch(self._at(), [_Count(item) if isinstance(item, Usage) else item for item in batch]))

    def _at(self) -> float:
        return round(self._clock() - self._began, 4)

    def _write(self, line: Head | _Step) -> None:
        written = _encode(line) + b"\n"
        self._bytes += len(written)
        if self._bytes > _MAX_BYTES:
            raise ConfigurationError(f"the answer is too long for a recording, over {_MAX_BYTES >> 20} MiB")
        self._file.write(written)


def _name_of(error: ProviderError) -> str:
    name = type(error).__name__
    return name if name in _ERRORS else "UpstreamError"


class ReplayProvider:
    """Plays the recordings of ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        asked = _MODEL.fullmatch(model)
        if asked is None:
            raise UpstreamModelNotFound(f"'{model}' is not the name of a recording")
        name, stretch = asked[1], float(asked[2] or 1)
        steps = await asyncio.to_thread(_read, self._folder / f"{name}.jsonl", name)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for step in steps:
            if stretch:
                await asyncio.sleep(began + step.at * stretch - loop.time())
            if isinstance(step, _Failed):
                raise _ERRORS.get(step.error, UpstreamError)(
                    step.message, accepted=step.accepted, retry_after_seconds=step.retry_after_seconds
                )
            yield [item.usage if isinstance(item, _Count) else item for item in step.items]

    async def models(self) -> list[str]:
        return []  # they can be named, but nobody is offered them

    async def close(self) -> None:
        pass


def _read(path: Path, name: str) -> list[_Step]:
    """Raises ``ProviderError``."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise UpstreamModelNotFound(
            f"there is no recording '{name}'; make it with: millstream record {name} Hello"
        ) from None
    except OSError as error:
        raise UpstreamError(f"recording '{name}' cannot be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise UpstreamError(f"recording '{name}' is over {_MAX_BYTES >> 20} MiB")
    lines = data.splitlines() or [b""]
    steps: list[_Step] = []
    before, number = 0.0, 1
    try:
        version = _head(lines[0]).version
        if version != VERSION:
            raise UpstreamError(f"recording '{name}' has version {version}; this Millstream reads {VERSION}")
        number += 1
        for line in lines[1:]:
            step = _step(line)
            if not before <= step.at <= _MAX_SECONDS:
                raise msgspec.ValidationError("its times do not follow each other")
            before = step.at
            steps.append(step)
            number += 1
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamError(f"recording '{name}' is damaged: line {number} cannot be read") from error
    return steps
