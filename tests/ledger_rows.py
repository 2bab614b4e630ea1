"""Rows of the ledger as tests need them."""

import time
from decimal import Decimal
from typing import Any

from millstream.ledger.rows import Opening, Settlement
from millstream.usage import Charge, Usage


def opening(stream_id: str = "s", **more: Any) -> Opening:
    return Opening(
        **{
            "stream_id": stream_id,
            "owner_id": more.get("key_id", "k"),
            "key_id": "k",
            "model": "m",
            "provider": "p",
            "created_at": time.time(),
            **more,
        }
    )


def settlement(stream_id: str = "s", **more: Any) -> Settlement:
    values: dict[str, Any] = {
        "stream_id": stream_id,
        "status": "completed",
        "finish_reason": "stop",
        "error_code": None,
        "usage": Usage(10, 5, "provider_final", 2, 1),
        "charge": Charge(Decimal("0.000142"), Decimal("0.000284"), '{"version":"v"}'),
        "first_event_at": time.time(),
        "ended_at": time.time(),
        "provider": "p",
    }
    return Settlement(**{**values, **more})
