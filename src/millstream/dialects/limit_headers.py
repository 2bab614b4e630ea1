"""How limits stand -> the headers in which clients read them."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from millstream.limits import Standing, What, shown


def plain_limits(standings: Sequence[Standing]) -> Mapping[str, str]:
    """``X-RateLimit-Remaining-Requests``; the reset in seconds from now."""
    return _named("X-RateLimit-{}-{}", standings, str)


def openai_limits(standings: Sequence[Standing]) -> Mapping[str, str]:
    """``x-ratelimit-remaining-requests``; the reset as ``1h2m3s``."""
    return {name.lower(): text for name, text in _named("X-RateLimit-{}-{}", standings, _duration).items()}


def anthropic_limits(standings: Sequence[Standing]) -> Mapping[str, str]:
    """``anthropic-ratelimit-requests-remaining``; the reset as a time of RFC 3339."""
    named = _named("anthropic-ratelimit-{1}-{0}", standings, _moment)
    return {name.lower(): text for name, text in named.items()}


def _named(form: str, standings: Sequence[Standing], reset: Callable[[int], str]) -> dict[str, str]:
    """Of several windows of the same thing the one of which the smallest share is left."""
    tightest: dict[What, Standing] = {}
    for one in standings:
        known = tightest.get(one.what)
        if known is None or one.left * known.amount < known.left * one.amount:
            tightest[one.what] = one
    headers: dict[str, str] = {}
    for what, one in tightest.items():
        thing = what.capitalize()
        headers[form.format("Limit", thing)] = str(shown(what, one.amount))
        headers[form.format("Remaining", thing)] = str(shown(what, one.left))
        if one.resets_in_seconds is not None:
            headers[form.format("Reset", thing)] = reset(one.resets_in_seconds)
    return headers


def _duration(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{seconds}s"


def _moment(seconds: int) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
