"""Traces: one span a stream, where OpenTelemetry is installed (extra ``otel``) and set up.

Follows its conventions for generative AI (https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/).
A span has numbers and names, never a word of a prompt or an answer.
"""

from contextlib import suppress
from typing import Any

from millstream.ledger.rows import Opening, Settlement
from millstream.version import __version__

trace: Any = None
with suppress(ModuleNotFoundError):
    from opentelemetry import trace

_NANOSECONDS = 1_000_000_000
_COST = "millstream.cost_usd"  # to whoever runs Millstream, who reads the traces


def record(opening: Opening, settlement: Settlement) -> None:
    """A finished span for a settled stream, under the span in whose context the stream was started."""
    if trace is None:
        return
    usage = settlement.usage
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": settlement.provider,
        "gen_ai.request.model": opening.model,
        "gen_ai.response.id": opening.stream_id,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "millstream.usage.source": usage.source,
        "millstream.status": settlement.status,
        "millstream.key_id": opening.key_id,
    }
    if settlement.charge.cost is not None:
        attributes[_COST] = float(settlement.charge.cost)
    if settlement.finish_reason is not None:
        attributes["gen_ai.response.finish_reasons"] = [settlement.finish_reason]
    if settlement.first_event_at is not None:
        waited = settlement.first_event_at - opening.created_at
        attributes["gen_ai.response.time_to_first_chunk"] = waited
    if settlement.error_code is not None:
        attributes["error.type"] = settlement.error_code
    span = trace.get_tracer("millstream", __version__).start_span(
        f"chat {opening.model}",
        kind=trace.SpanKind.CLIENT,
        start_time=int(opening.created_at * _NANOSECONDS),
        attributes=attributes,
    )
    for attempt in settlement.attempts if len(settlement.attempts) > 1 else ():
        about: dict[str, Any] = {
            "gen_ai.provider.name": attempt.provider,
            "gen_ai.request.model": attempt.model,
            "error.type": attempt.error or "",
        }
        if attempt.bill is not None:
            about["gen_ai.usage.input_tokens"] = attempt.bill.usage.prompt_tokens
            about["gen_ai.usage.output_tokens"] = attempt.bill.usage.completion_tokens
            if attempt.bill.cost_usd is not None:
                about[_COST] = float(attempt.bill.cost_usd)
        span.add_event("attempt", about, timestamp=int(attempt.ended_at * _NANOSECONDS))
    if settlement.error_code is not None:
        span.set_status(trace.StatusCode.ERROR, settlement.error_code)
    span.end(int(settlement.ended_at * _NANOSECONDS))
