"""Webhooks: an export -> a signed POST (https://www.standardwebhooks.com)."""

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import msgspec

from millstream.exporters import Message, Post, described, rfc3339
from millstream.ledger.exports import Export

PREFIX = "whsec_"
_SECRET_BYTES = range(24, 65)


def key_of(secret: str) -> bytes:
    """The key in a signing secret. Raises ``ValueError``."""
    try:
        key = base64.b64decode(secret.strip().removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("its secret is not base64") from error
    if len(key) not in _SECRET_BYTES:
        raise ValueError("its secret has not 24 to 64 bytes")
    return key


class Webhook:
    """The form of Standard Webhooks. Every one of the ``secrets`` signs, so that one can replace another."""

    batch = 1
    once_seconds: float | None = None
    one_at_a_time = False

    def __init__(self, secrets: Sequence[str]) -> None:
        self.headers: Mapping[str, str] = {"Content-Type": "application/json"}
        self._keys = [key_of(secret) for secret in secrets]

    def message(self, export: Export) -> Message | None:
        body = {
            "type": "stream.corrected" if export.is_correction else "stream.settled",
            "timestamp": rfc3339(export.settled_at),
            "data": described(export),
        }
        # In a header, where an id of an application's own may have any character.
        return Message(quote(export.id, safe=""), export.key_id, msgspec.json.encode(body))

    def post(self, messages: Sequence[Message], now: float) -> Post:
        (message,) = messages
        signed = b"%b.%d.%b" % (message.id.encode(), now, message.body)
        signatures = [base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in self._keys]
        headers = {
            "webhook-id": message.id,
            "webhook-timestamp": str(int(now)),
            "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
        }
        return Post(message.body, headers)

    def has_it(self, answer: bytes) -> bool:
        return False
