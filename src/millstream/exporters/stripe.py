"""Stripe: an export -> an event of one of its meters (https://docs.stripe.com/api/billing/meter-event)."""

import hashlib
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

import msgspec

from millstream.exporters import Customers, Message, Post, Value
from millstream.ledger.exports import Export

URL = "https://api.stripe.com/v1/billing/meter_events"

# It knows an identifier again for a day at least. An hour less, for clocks that differ.
_ONCE_SECONDS = 23 * 3600.0
_MAX_IDENTIFIER = 100


class MeterEvents:
    """The form of meter events. There is no Idempotency-Key: under one, Stripe would repeat its first answer
    for a day, a fault of its own as well. The identifier is what counts once.
    """

    batch = 1
    once_seconds: float | None = _ONCE_SECONDS
    one_at_a_time = True

    def __init__(self, secret: str, event_name: str, value: Value, customers: Customers) -> None:
        self.headers: Mapping[str, str] = {
            "Authorization": f"Bearer {secret}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        self._event_name = event_name
        self._value = value
        self._customers = customers

    def message(self, export: Export) -> Message | None:
        customer, value = self._customers.of(export), self._value.of(export)
        if customer is None or value == 0:
            return None
        identifier = _identifier(f"{export.id}.{self._event_name}")
        form = {
            "event_name": self._event_name,
            "identifier": identifier,
            "timestamp": int(export.settled_at),
            "payload[stripe_customer_id]": customer,
            "payload[value]": value,
        }
        return Message(identifier, customer, urlencode(form).encode())

    def post(self, messages: Sequence[Message], now: float) -> Post:
        (message,) = messages
        return Post(message.body)

    def has_it(self, answer: bytes) -> bool:
        """By its code, and by its words where it gives none."""
        try:
            error = msgspec.json.decode(answer, type=_Answer).error
        except msgspec.DecodeError:
            return False
        return error.code == "duplicate_meter_event" or "already exists with identifier" in error.message


class _Error(msgspec.Struct):
    code: str | None = None
    message: str = ""


class _Answer(msgspec.Struct):
    error: _Error


def _identifier(name: str) -> str:
    return name if len(name) <= _MAX_IDENTIFIER else hashlib.sha256(name.encode()).hexdigest()
