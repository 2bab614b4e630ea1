"""Extra: what the operator adds to every request of a provider, whatever it asks."""

from collections.abc import Mapping
from typing import Any


def merged(sent: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Both: objects are merged, and lists one behind the other, as tools are."""
    made = dict(sent)
    for name, value in extra.items():
        known = made.get(name)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            made[name] = merged(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            made[name] = [*known, *value]
        else:
            made[name] = value
    return made
