"""CloudEvents: exports -> events over HTTP, as OpenMeter and others take them (https://cloudevents.io)."""

from collections.abc import Mapping, Sequence

import msgspec

from millstream.exporters import Customers, Message, Post, described, rfc3339
from millstream.ledger.exports import Export

_ONE = "application/cloudevents+json"
_SEVERAL = "application/cloudevents-batch+json"


class CloudEvents:
    """The form of CloudEvents 1.0 in JSON: one a request, or a ``batch``. An event is known by its ``source``
    and its id together.
    """

    once_seconds: float | None = None
    one_at_a_time = False

    def __init__(
        self, secret: str | None, source: str, event_type: str, customers: Customers, batch: int
    ) -> None:
        self.batch = batch
        self.headers: Mapping[str, str] = {
            "Content-Type": _ONE if batch == 1 else _SEVERAL,
            **({} if secret is None else {"Authorization": f"Bearer {secret}"}),
        }
        self._source = source
        self._type = event_type
        self._customers = customers

    def message(self, export: Export) -> Message | None:
        customer = self._customers.of(export)
        if customer is None:
            return None
        event = {
            "specversion": "1.0",
            "id": export.id,
            "source": self._source,
            "type": self._type,
            "subject": customer,
            "time": rfc3339(export.settled_at),
            "datacontenttype": "application/json",
            "data": described(export),
        }
        return Message(export.id, customer, msgspec.json.encode(event))

    def post(self, messages: Sequence[Message], now: float) -> Post:
        if self.batch == 1:
            return Post(messages[0].body)
        return Post(b"[%b]" % b",".join(message.body for message in messages))

    def has_it(self, answer: bytes) -> bool:
        return False
