"""Exporters: settled streams -> a service that bills for them or keeps them.

An exporter is fed from the ledger's exports (``ledger/exports.py``). It leases some that are due, sends them
in the form of its service, and notes what became of each. ``Form`` is what services differ in.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from msgspec import Struct

from millstream.ledger.exports import AMOUNTS, Export
from millstream.usage import to_dollars


class Unsendable(Exception):
    """The service cannot be told of this export. The message is for the operator."""


class Message(Struct, frozen=True):
    """An export in the words of a service. ``id`` is what the service knows it by, ``customer`` who pays."""

    id: str
    customer: str
    body: bytes


class Post(Struct, frozen=True):
    """A request to a service, with ``headers`` that are of this one alone."""

    body: bytes
    headers: Mapping[str, str] = {}


class Form(Protocol):
    """How a service is told of exports.

    ``headers`` go with every request, and ``batch`` is how many messages one may have. ``once_seconds`` is
    for how long the service knows an id again, or None where it is not asked to; ``one_at_a_time`` says that
    it takes only one request of a customer at a time.
    """

    headers: Mapping[str, str]
    batch: int
    once_seconds: float | None
    one_at_a_time: bool

    def message(self, export: Export) -> Message | None:
        """None where there is nothing to tell. Raises ``Unsendable``."""
        ...

    def post(self, messages: Sequence[Message], now: float) -> Post:
        """The request that tells of them, at ``now`` in Unix seconds."""
        ...

    def has_it(self, answer: bytes) -> bool:
        """Whether this refusal says that the service has the message already."""
        ...


class Customers:
    """Who pays for an export: its ``user``, its ``key`` or the ``owner`` of that, in the service's name.

    Without ``names`` they are called what they are called here. An empty name is for whoever is not billed.
    """

    def __init__(self, by: str, names: Mapping[str, str] | None = None) -> None:
        self._by = by
        self._names = names or {}

    def of(self, export: Export) -> str | None:
        """None where nobody is billed. Raises ``Unsendable`` where that is not known."""
        found = {"key": export.key_id, "owner": export.owner, "user": export.user}[self._by]
        if not found:
            raise Unsendable(f"the stream has no {self._by}, and the customer is its {self._by}")
        if not self._names:
            return found
        if found not in self._names:
            raise Unsendable(f"no customer is named for the {self._by} {found}")
        return self._names[found] or None


class Value:
    """A whole number out of an export: the sum of some of its amounts, of which a minus takes one away."""

    NAMES = (*AMOUNTS, "streams")

    def __init__(self, names: Sequence[str]) -> None:
        self._terms = [(-1 if name.startswith("-") else 1, name.removeprefix("-")) for name in names]

    def of(self, export: Export) -> int:
        """Raises ``Unsendable`` where the price of the stream is not known."""
        return sum(sign * _amount(export, name) for sign, name in self._terms)


def _amount(export: Export, name: str) -> int:
    if name == "streams":
        return 0 if export.is_correction else 1
    amount = export.amounts[name]
    if amount is None:
        raise Unsendable("the stream has no known price")
    return amount


def described(export: Export) -> dict[str, object]:
    """What is known of an export, for services that take it as JSON. Of a correction, the numbers are the
    difference that it makes.
    """
    amounts = dict(export.amounts)
    cost, price = (
        None if (picodollars := amounts.pop(name)) is None else to_dollars(picodollars)
        for name in ("cost_picodollars", "price_picodollars")
    )
    return {
        "stream_id": export.stream_id,
        "is_correction": export.is_correction,
        "key_id": export.key_id,
        "owner": export.owner,
        "user": export.user,
        "model": export.model,
        "provider": export.provider,
        "status": export.status,
        **amounts,
        "usage_source": export.usage_source,
        "cost_usd": cost,
        "price_usd": price,
    }


def rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
