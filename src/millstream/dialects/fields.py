"""The fields of a body in somebody else's format, each read with its type and its bounds.

Nothing is assumed of a body but that it is JSON. What is there and wrong is refused with its name; what
nobody asks for is left over, to be ignored and named.
"""

import base64
import mimetypes
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from millstream import data_urls
from millstream import prompt as asked
from millstream.errors import InvalidRequest
from millstream.messages import MAX_GRACE_SECONDS

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TOOLS = 512
MAX_TOKENS = 10_000_000

_MAX_SHOWN = 100

# What Python does not know everywhere.
_OFFICE = {
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}


class Fields:
    """An object of the body. ``path`` is where it stands; a field that is null is not there."""

    def __init__(self, value: Mapping[str, Any], path: str = "") -> None:
        self._value = value
        self._path = path
        self._asked: set[str] = set()
        self._kept: set[str] = set()
        self._inner: list[tuple[str, Fields]] = []

    def __contains__(self, name: str) -> bool:
        return self._value.get(name) is not None

    def fault(self, name: str, what: str) -> InvalidRequest:
        """What is wrong with a field, to be raised."""
        return InvalidRequest(f"{self._at(name)[:_MAX_SHOWN]}: {what}")

    def any(self, name: str) -> Any:
        """The field as it came."""
        self._asked.add(name)
        return self._value.get(name)

    def text(self, name: str, *, most: int | None = None) -> str | None:
        value = self.any(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.fault(name, "has to be text")
        if most is not None and len(value) > most:
            raise self.fault(name, f"has at most {most} characters")
        return value

    def identity(self, name: str, *, most: int = 128) -> str | None:
        """A text that names something, for the ledger and for URLs."""
        value = self.text(name, most=most)
        if value and not value.isprintable():
            raise self.fault(name, "has to be printable")
        return value or None

    def needed(self, name: str, *, most: int | None = None) -> str:
        """A text that has to be there."""
        value = self.text(name, most=most)
        if value is None:
            raise self.fault(name, "is missing")
        return value

    def flag(self, name: str) -> bool | None:
        value = self.any(name)
        if value is None or isinstance(value, bool):
            return value
        raise self.fault(name, "has to be true or false")

    def number(self, name: str, least: float, most: float) -> float | None:
        value = self.any(name)
        if value is None:
            return None
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:  # which is false of NaN
            raise self.fault(name, f"has to be a number from {least:g} to {most:g}")
        return float(value)

    def count(self, name: str, least: int, most: int) -> int | None:
        """A whole number."""
        value = self.any(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.fault(name, f"has to be a whole number from {least} to {most}")
        return value

    def one_of(self, name: str, *allowed: str) -> str | None:
        value = self.any(name)
        if value is None or (isinstance(value, str) and value in allowed):
            return value
        raise self.fault(name, f"has to be one of {', '.join(allowed)}")

    def mapping(self, name: str) -> dict[str, Any] | None:
        """An object that is passed on as it is."""
        value = self.any(name)
        if value is None or isinstance(value, dict):
            return value
        raise self.fault(name, "has to be an object")

    def needed_mapping(self, name: str) -> dict[str, Any]:
        """One that has to be there."""
        value = self.mapping(name)
        if value is None:
            raise self.fault(name, "is missing")
        return value

    def inner(self, name: str) -> "Fields | None":
        """An object that is read in turn."""
        value = self.mapping(name)
        if value is None:
            return None
        fields = Fields(value, self._at(name))
        self._inner.append((name, fields))
        return fields

    def items(self, name: str, most: int) -> list[Any]:
        """A list, empty where there is none."""
        value = self.any(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.fault(name, "has to be a list")
        if len(value) > most:
            raise self.fault(name, f"has at most {most} entries")
        return value

    def objects(self, name: str, most: int, *, are_knobs: bool = False) -> Iterator["Fields"]:
        """The objects of a list. Of knobs it is named what nobody asks for."""
        for index, value in enumerate(self.items(name, most)):
            if not isinstance(value, dict):
                raise self.fault(f"{name}.{index}", "has to be an object")
            fields = Fields(value, self._at(f"{name}.{index}"))
            if are_knobs:
                self._inner.append((name, fields))
            yield fields

    def texts(self, name: str, most: int) -> tuple[str, ...]:
        """A text, or a list of them."""
        value = self.any(name)
        if isinstance(value, str):
            return (value,)
        values = self.items(name, most)
        if not all(isinstance(item, str) for item in values):
            raise self.fault(name, "has to be text or a list of texts")
        return tuple(values)

    def these(self, *names: str) -> dict[str, Any]:
        """Those of the fields that are there, as they are: what only one API knows."""
        self._kept.update(names)
        return {name: value for name in names if (value := self.any(name)) is not None}

    def refuse(self, *names: str, because: str) -> None:
        """Raises ``InvalidRequest`` where one of the fields asks for something."""
        for name in names:
            if self.any(name):
                raise self.fault(name, because)

    def left_over(self) -> tuple[str, ...]:
        """The names that nobody has asked for."""
        return tuple(
            name for name, value in self._value.items() if value is not None and name not in self._asked
        )

    def ignored(self) -> tuple[str, ...]:
        """Those, and by their path those of the objects in it that were read and are not kept as they are."""
        inner = [
            f"{name}.{left}"
            for name, fields in self._inner
            if name not in self._kept
            for left in fields.ignored()
        ]
        return (*self.left_over(), *dict.fromkeys(inner))

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def on_disconnect(fields: Fields) -> Any:
    """The policy, which is ours in every format."""
    value = fields.any("on_disconnect")
    if value is None:
        return "cancel"
    if value in ("cancel", "continue"):
        return value
    grace = fields.inner("on_disconnect")
    assert grace is not None
    seconds = grace.number("grace_seconds", 0, MAX_GRACE_SECONDS)
    if seconds is None:
        raise fields.fault("on_disconnect", 'has to be "cancel", "continue" or {"grace_seconds": n}')
    return seconds


def model(fields: Fields) -> str | None:
    """The name of a model. It goes into headers and log lines, so it is printable."""
    name = fields.text("model", most=256)
    if name and not (name.isascii() and name.isprintable() and name.strip() == name):
        raise fields.fault("model", "has to be printable ASCII without spaces around it")
    return name or None


def user(fields: Fields, name: str = "user") -> str | None:
    """The end user, who is in the ledger."""
    value = fields.text(name, most=256)
    if value and not value.isprintable():
        raise fields.fault(name, "has to be printable")
    return value or None


def metadata(fields: Fields) -> dict[str, str] | None:
    """At most 16 texts by name."""
    given = fields.mapping("metadata")
    if not given:
        return None
    if len(given) > 16 or not all(isinstance(value, str) and len(value) <= 512 for value in given.values()):
        raise fields.fault("metadata", "has at most 16 texts of at most 512 characters")
    return given


def document(fields: Fields) -> asked.File:
    """One of OpenAI's formats: a ``data:`` URL, or base64 alone, whose type its name tells."""
    name, data = fields.text("filename", most=512), fields.needed("file_data")
    held = data_urls.held_by(data)
    if held is not None and held.media_type:
        return asked.File(held.media_type, data, name)
    bare = "".join((data if held is None else held.data).split())
    try:
        base64.b64decode(bare, validate=True)
    except ValueError as error:
        raise fields.fault("file_data", "has to be a data: URL or base64") from error
    media_type = document_type(name or "")
    return asked.File(media_type, f"data:{media_type};base64,{bare}", name)


def document_type(name: str) -> str:
    """What kind of document has such a name, or is at such an address: a PDF, where that does not tell."""
    path = name.partition("?")[0]
    known = mimetypes.guess_type(path)[0] or _OFFICE.get(PurePosixPath(path).suffix.lower())
    return known or "application/pdf"
