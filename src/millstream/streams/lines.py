"""One line a stream in the log, for operators: what it was, how it ended, what it used."""

import logging

from millstream.ledger.rows import Opening, Settlement
from millstream.log_ids import REQUEST_ID

log = logging.getLogger("millstream.stream")


def record(opening: Opening, end: Settlement) -> None:
    """Writes the line of a stream that is settled."""
    if not log.isEnabledFor(logging.INFO):
        return
    first = None if end.first_event_at is None else round(end.first_event_at - opening.created_at, 3)
    fields = {
        "stream_id": end.stream_id,
        "status": end.status,
        "reason": end.finish_reason or end.error_code,
        "model": opening.model,
        "provider": end.provider,
        "attempts": len(end.attempts) if len(end.attempts) > 1 else None,
        "key_id": opening.key_id,
        "prompt_tokens": end.usage.prompt_tokens,
        "completion_tokens": end.usage.completion_tokens,
        "usage_source": end.usage.source,
        "cost_usd": None if end.charge.cost is None else str(end.charge.cost),
        "price_usd": None if end.charge.price is None else str(end.charge.price),
        "first_event_seconds": first,
        "seconds": round(end.ended_at - opening.created_at, 3),
    }
    if identity := REQUEST_ID.get():
        fields["request_id"] = identity
    shown = " ".join(f"{name}={value}" for name, value in list(fields.items())[1:] if value is not None)
    log.info("%s %s", end.stream_id, shown, extra={"fields": fields})
