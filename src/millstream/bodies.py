"""Bodies in: bytes -> a validated model, at a bounded cost to the event loop whatever the bytes are.

pydantic reads a whole body, collects every fault in it and describes each: two million in 4 MiB, at the cost
of seven seconds. So a body that is not small is held against the *shape* of its model first: a msgspec type
that is made of the model itself and gives up at the first thing that does not fit. A large body is looked at
in a thread; the interpreter changes threads between the steps, each of which takes a few milliseconds.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial, reduce
from operator import or_
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from pydantic import BaseModel, ValidationError

from millstream.errors import InvalidRequest, MalformedBody, Overloaded, TooLarge, UnsupportedEncoding

Model = TypeVar("Model", bound=BaseModel)
Read = TypeVar("Read")

_SMALL_BYTES = 4096  # what pydantic can refuse in 3 ms, however many faults it has
_INLINE_BYTES = 16 << 10  # what is validated in the event loop
_WAITING_BYTES = 256 << 20

_MAX_DEPTH = 200
MAX_VALUES = 100_000  # objects, lists and what is in them

_MAX_SHOWN_ERRORS = 3
_MAX_SHOWN_LOCATION = 100
_MAX_SHOWN_MESSAGE = 300

# What bodies begin with that are no JSON in UTF-8. UTF-16 and UTF-32 without a mark have zeros there.
_MARK = b"\xef\xbb\xbf"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_WIDE = (b"\xff\xfe", b"\xfe\xff")

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_PATH = re.compile(r" - at `\$\.?(.*)`$")


class BodyValidator:
    """Validates bodies; one large one at a time, and up to ``waiting_bytes`` of them wait. To be closed."""

    def __init__(self, *, waiting_bytes: int = _WAITING_BYTES) -> None:
        self._thread = ThreadPoolExecutor(1, "millstream-body")
        self._waiting_bytes = waiting_bytes
        self._waiting = 0

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def read(self, parse: Callable[[bytes], Read], chunks: Sequence[bytes]) -> Read:
        """What ``parse`` makes of the body. Raises what it raises, and ``Overloaded`` where too many large
        bodies wait already.
        """
        size = sum(map(len, chunks))
        if size <= _INLINE_BYTES:
            return parse(b"".join(chunks))
        if self._waiting + size > self._waiting_bytes:
            raise Overloaded("too many large requests at a time; try again")
        self._waiting += size
        try:
            work = partial(_read_chunks, parse, chunks)
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting -= size


def _read_chunks(parse: Callable[[bytes], Read], chunks: Sequence[bytes]) -> Read:
    return parse(b"".join(chunks))


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Raises ``MalformedBody`` where it is none, or is nested too deep,
    ``UnsupportedEncoding`` where it is compressed or not in UTF-8, ``TooLarge`` where it has too many parts.
    """
    body = _in_utf8(body)
    if len(body) > _INLINE_BYTES:
        _count_values(body)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _malformed(str(error) or "it is nested too deep") from None
    if not isinstance(value, dict):
        raise MalformedBody("the body is not a JSON object")
    if body.count(b"[") + body.count(b"{") > _MAX_DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: object) -> None:
    """Raises ``MalformedBody`` where nobody could write it again."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner: list[object] = []
        for item in level:
            inner += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        if not inner:
            return
        level = inner
    raise _malformed("it is nested too deep")


def validate(model: type[Model], body: bytes) -> Model:
    """The body as a ``model``.

    Raises ``MalformedBody`` where it is not JSON (or is nested over 200 deep), ``UnsupportedEncoding`` where
    it is compressed or not in UTF-8, ``TooLarge`` where it has too many parts, ``InvalidRequest`` with the
    name of the field that is wrong.
    """
    body = _in_utf8(body)
    if len(body) > _SMALL_BYTES:
        if len(body) > _INLINE_BYTES:
            _count_values(body)
        _hold_against_shape(model, body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from None


def _in_utf8(body: bytes) -> bytes:
    """The body without the mark that some clients put before it. Raises ``UnsupportedEncoding``."""
    if body.startswith(_MARK):
        return body[len(_MARK) :]
    for start, name in _COMPRESSED.items():
        if body.startswith(start):
            raise UnsupportedEncoding(f"the body is compressed by {name}; send it as it is")
    if body.startswith(_WIDE) or b"\0" in body[:4]:
        raise UnsupportedEncoding("the body is in UTF-16 or UTF-32; JSON has to be in UTF-8")
    return body


def invalid(errors: Sequence[Any]) -> InvalidRequest:
    """What pydantic found wrong, in a few words."""
    if errors[0]["type"] == "json_invalid":
        return _malformed(errors[0]["msg"].partition(": ")[2])
    shown = []
    for error in errors[:_MAX_SHOWN_ERRORS]:
        where = ".".join(map(str, error["loc"]))[:_MAX_SHOWN_LOCATION]
        what = (
            "unknown field"
            if error["type"] == "extra_forbidden"
            else error["msg"].removeprefix("Value error, ")
        )
        shown.append(f"{where}: {what}" if where else what)
    more = len(errors) - len(shown)
    return InvalidRequest("; ".join(shown) + (f"; and {more} more" if more else ""))


def _count_values(body: bytes) -> None:
    """Raises ``TooLarge``. The cheap count takes what stands in texts along; the exact one is for the bodies
    that it would refuse.
    """
    if _separators(body, 0, len(body)) <= MAX_VALUES:
        return
    count, end = 0, 0
    for text in _STRING.finditer(body):
        count += _separators(body, end, text.start())
        end = text.end()
        if count > MAX_VALUES:
            break
    if count + _separators(body, end, len(body)) > MAX_VALUES:
        raise TooLarge(f"the body has over {MAX_VALUES} values")


def _separators(body: bytes, start: int, end: int) -> int:
    return body.count(b"{", start, end) + body.count(b"[", start, end) + body.count(b",", start, end)


def _hold_against_shape(model: type[BaseModel], body: bytes) -> None:
    try:
        _decoder(model)(body)
    except msgspec.ValidationError as error:
        said = str(error)
        where = _PATH.search(said)
        what = _PATH.sub("", said)[:_MAX_SHOWN_MESSAGE].replace("`", "'")
        what = what.replace("Object contains unknown field", "unknown field")
        path = re.sub(r"\[(\d+)\]", r".\1", where[1])[:_MAX_SHOWN_LOCATION] if where else ""
        raise InvalidRequest(f"{path}: {what}" if path else what) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _malformed(str(error)) from None


def _malformed(said: str) -> MalformedBody:
    """What a parser said, in words that name the cause."""
    if said.startswith(("EOF while parsing", "Input data was truncated")):
        said = "it is empty, or ends too early"
    if "surrogate" in said or "hex escape" in said:
        said = "a text has half of a character (a lone \\ud800 to \\udfff)"
    if "'utf-8' codec" in said or "unicode code point" in said:
        said = "it is not in UTF-8"
    return MalformedBody(f"the body is not JSON: {said[:_MAX_SHOWN_MESSAGE]}")


# -- shapes ----------------------------------------------------------------------------------------

_SCALAR = str | int | float | bool | None


@cache
def _decoder(model: type[BaseModel]) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(_struct(model)).decode


def _struct(model: type[BaseModel], tag: str | None = None) -> type[msgspec.Struct]:
    """A struct with the fields of ``model``. With a ``tag`` it is told apart by its field ``type``."""
    fields: list[Any] = []
    for name, info in model.model_fields.items():
        if tag is not None and name == "type":
            continue
        shape, alias = _shape(info.annotation), info.alias or name
        if info.is_required():
            fields.append((name, shape, msgspec.field(name=alias)))
        else:
            fields.append((name, shape, msgspec.field(default=None, name=alias)))
    tagged: dict[str, Any] = {} if tag is None else {"tag_field": "type", "tag": tag}
    return msgspec.defstruct(model.__name__, fields, kw_only=True, forbid_unknown_fields=True, **tagged)


def _shape(annotation: Any) -> Any:
    """What fits a field, roughly: numbers, texts and words are one kind. JSON of the caller's own is passed
    over whole, and so is what is not known here: pydantic looks at it.
    """
    if get_origin(annotation) is Annotated:
        return _shape(get_args(annotation)[0])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        models = [member for member in map(_bare, arguments) if _is_model(member)]
        if len(models) > 1:
            return reduce(or_, [_struct(member, _tag(member)) for member in models])
        shapes = [_shape(member) for member in arguments]
        return msgspec.Raw if msgspec.Raw in shapes else reduce(or_, shapes)
    if origin is list:
        return GenericAlias(list, (_shape(arguments[0]),))
    if _is_model(annotation):
        return _struct(annotation)
    if origin is Literal or annotation in (str, int, float, bool, NoneType):
        return _SCALAR
    return msgspec.Raw


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _tag(model: type[BaseModel]) -> str:
    (tag,) = get_args(model.model_fields["type"].annotation)
    return str(tag)
