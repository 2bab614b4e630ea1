"""Tool calls: pieces as servers number and name them -> calls of one index, one id and one name each.

Servers leave out the index or give every call the same, send the id or the name late, on every piece or not
at all, or change the id on the way. What a piece belongs to is decided here, by these rules:

1. An id that was seen belongs to its call, whatever the index.
2. A piece with a name opens a call, unless the call it would belong to still waits for its name, or its
   arguments are not whole yet: then a server repeats the name. Two pieces with names in one delta are two
   calls.
3. Without an index, an id that is new opens a call.
4. Every other piece belongs to the call of its index, or to the last one where there is no index; what it
   brings and the call lacks, its id or its name, the call gets.

A call goes out as soon as it has a name and an id. One that has no id when its arguments come gets one of
ours: a call without an id cannot be answered.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from millstream.errors import UpstreamError
from millstream.providers import MAX_TOOL_CALLS, ToolCallPiece
from millstream.providers.openai.chunks import CallPiece, Function


class _Call:
    """A call as far as it is known. ``held`` are arguments that came before its name."""

    __slots__ = ("arguments", "call_id", "extra", "held", "index", "name", "sent")

    def __init__(self, index: int) -> None:
        self.index = index
        self.call_id = ""
        self.name = ""
        self.arguments: list[str] = []
        self.held: list[str] = []
        self.extra: dict[str, Any] | None = None
        self.sent = False

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing from its arguments, which are an object."""
        if not self.arguments or not self.arguments[-1].rstrip().endswith("}"):
            return False
        try:
            msgspec.json.decode("".join(self.arguments))
        except (msgspec.DecodeError, RecursionError):
            return False
        return True


class ToolCalls:
    """The tool calls of one answer. ``names`` are those of tools, by what was sent."""

    __slots__ = (
        "_by_id",
        "_by_index",
        "_calls",
        "_in_this_delta",
        "_names",
        "_provider_name",
    )

    def __init__(self, provider_name: str, names: Mapping[str, str]) -> None:
        self._provider_name = provider_name
        self._names = names
        self._calls: list[_Call] = []
        self._by_id: dict[str, _Call] = {}
        self._by_index: dict[int, _Call] = {}
        self._in_this_delta: list[_Call] = []

    def __bool__(self) -> bool:
        """Whether any has gone out."""
        return any(call.sent for call in self._calls)

    def add(self, delta: Sequence[CallPiece]) -> Iterator[ToolCallPiece]:
        """What the pieces of one delta add. Raises ``UpstreamError`` where one may belong to any call."""
        self._in_this_delta.clear()
        for piece in delta:
            yield from self._add(piece)

    def _add(self, piece: CallPiece) -> Iterator[ToolCallPiece]:
        function = piece.function or Function()
        name, arguments = function.name or "", function.arguments or ""
        if not (piece.id or name or arguments or piece.extra_content):
            return
        call = self._owner(piece, name, arguments)
        self._in_this_delta.append(call)
        if piece.id and self._by_id.setdefault(piece.id, call) is call and not call.call_id:
            call.call_id = piece.id
        call.name = call.name or name
        if isinstance(piece.extra_content, dict):
            call.extra = piece.extra_content
        if arguments:
            call.arguments.append(arguments)
        if call.sent:
            if arguments or piece.extra_content:
                late = call.extra if piece.extra_content else None
                yield ToolCallPiece(call.index, arguments, extra_content=late)
            return
        call.held.append(arguments)
        if call.name and (call.call_id or arguments):
            yield self._start(call)

    def end(self) -> Iterator[ToolCallPiece]:
        """What was held back until now. Raises ``UpstreamError`` for a call that never got a name."""
        for call in self._calls:
            if call.sent or not (call.name or any(call.held)):
                continue
            if not call.name:
                raise UpstreamError(f"provider '{self._provider_name}' sent a tool call without a name")
            yield self._start(call)

    def _start(self, call: _Call) -> ToolCallPiece:
        call.sent = True
        call.call_id = call.call_id or f"call_{secrets.token_hex(12)}"
        name = self._names.get(call.name, call.name)
        return ToolCallPiece(call.index, "".join(call.held), call.call_id, name, call.extra)

    def _owner(self, piece: CallPiece, name: str, arguments: str) -> _Call:
        if piece.id and (known := self._by_id.get(piece.id)) and name in ("", known.name or name):
            return known
        if piece.index is not None:
            if not 0 <= piece.index < MAX_TOOL_CALLS:
                raise self._unnumbered()
            call = self._by_index.get(piece.index)
        else:
            call = self._calls[-1] if self._calls else None
        if call is None or self._is_another(call, piece, name, arguments):
            call = self._open()
        if piece.index is not None:
            self._by_index[piece.index] = call
        return call

    def _is_another(self, call: _Call, piece: CallPiece, name: str, arguments: str) -> bool:
        """Whether the piece opens a call of its own rather than going on with ``call``."""
        other_id = bool(piece.id and call.call_id)
        if piece.index is None and other_id:
            return True
        if not name:
            return False
        if not call.name:
            return other_id
        if name != call.name or call in self._in_this_delta:
            return True
        if not call.arguments:
            return other_id
        return call.is_whole and bool(arguments or piece.id)

    def _open(self) -> _Call:
        if len(self._calls) == MAX_TOOL_CALLS:
            raise self._unnumbered()
        call = _Call(len(self._calls))
        self._calls.append(call)
        return call

    def _unnumbered(self) -> UpstreamError:
        return UpstreamError(
            f"provider '{self._provider_name}' sent a tool call whose index is not 0 to {MAX_TOOL_CALLS - 1}"
        )
