"""Meaning: a scenario, as one provider says it -> what there is to understand of it."""

import json
from typing import Any, NamedTuple

from matrix.scenarios import RETRY_AFTER_SECONDS, Call, Counts, Declined, Scenario, Thought, Words
from matrix.wires import Wire


class Failed(NamedTuple):
    """``status`` is that of the response, None for an error in the middle of an answer."""

    code: str
    status: int | None = None
    retry_after: str | None = None


class Understood(NamedTuple):
    """What came of an answer. ``calls`` are ids, names and arguments."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: tuple[tuple[str, str, Any], ...] = ()
    finish: str = ""
    counts: Counts | None = None
    failed: Failed | None = None


ERRORS = {
    "limited": Failed("upstream_rate_limited", 429, str(RETRY_AFTER_SECONDS)),
    "too-long": Failed("context_length_exceeded", 400),
    "failed": Failed("upstream_error"),
    "cut": Failed("upstream_error"),
}


def meant(scenario: Scenario, wire: Wire, *, whole: bool) -> Understood:
    """What there is to understand of a scenario in an answer of that provider, or in its ``whole`` one."""
    if scenario.end in ERRORS:
        failed = ERRORS[scenario.end]
        if whole and failed.status is None:
            return Understood(failed=failed._replace(status=502))
        return Understood("".join(piece.text for piece in scenario.said), failed=failed)  # type: ignore[union-attr]
    text = "".join(piece.text for piece in scenario.said if isinstance(piece, Words))
    reasoning = "".join(piece.text for piece in scenario.said if isinstance(piece, Thought))
    declined = "".join(piece.words for piece in scenario.said if isinstance(piece, Declined))
    calls = tuple(
        (
            piece.call_id if wire.names_calls else "",
            piece.name,
            json.loads("".join(piece.arguments) or "{}"),
        )
        for piece in scenario.said
        if isinstance(piece, Call)
    )
    said = Understood(text, reasoning, declined, calls, scenario.end, wire.counts)
    if declined and not wire.tells_refusals:
        return said._replace(text=declined, refusal="", finish="content_filter")
    return said
