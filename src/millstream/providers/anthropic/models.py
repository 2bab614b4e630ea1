"""What models of this API take: how long their answers may be, and how they are told to think.

The list of models says it. For a model that is not listed, its name does: Claude 4.6 and later decide
themselves how much to think, 4.7 and later take no budget for it and no sampling
(https://platform.claude.com/docs/en/build-with-claude/extended-thinking). 4.1 and later take temperature or
top_p (https://platform.claude.com/docs/en/about-claude/models/migration-guide); an effort of ``xhigh`` begins
with 4.7 (https://platform.claude.com/docs/en/build-with-claude/effort).
"""

import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

# Of models whose list says nothing: what the smallest model of each generation writes at most. The API wants
# a number, and more than a model can write is refused.
_MOST_BY_GENERATION = ((4, 32_000), (0, 8_192))

_NUMBERS = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)")


class Traits(Struct, frozen=True):
    """``max_tokens`` is the longest answer. ``adapts`` is whether the model takes an effort and thinks as it
    needs to, ``budgets`` whether it takes a number of tokens to think with. ``samples`` is whether it takes
    temperature, top_p and top_k, ``mixes`` whether the first two of them at once. ``has_xhigh`` is whether
    there is an effort between high and max.
    """

    max_tokens: int
    adapts: bool
    budgets: bool
    samples: bool
    mixes: bool
    has_xhigh: bool


def of_name(name: str) -> Traits:
    """Those of a model that is known by its name alone."""
    found = _NUMBERS.search(name)
    version = (int(found[1]), int(found[2] or 0)) if found else (0, 0)
    most = next(tokens for generation, tokens in _MOST_BY_GENERATION if version[0] >= generation)
    budgets, is_new = version < (4, 7) and version >= (3, 7), version >= (4, 7)
    return Traits(most, version >= (4, 6), budgets, not is_new, version < (4, 1), is_new)


def of_listing(entry: Mapping[str, Any]) -> Traits:
    """Those of a model as the list has it; what that leaves out, its name says."""
    traits = of_name(str(entry.get("id")))
    most = entry.get("max_tokens")
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        most = traits.max_tokens
    adapts, budgets = (_supports(entry, "thinking", "types", kind) for kind in ("adaptive", "enabled"))
    if adapts is None or budgets is None:
        adapts, budgets = traits.adapts, traits.budgets
    has_xhigh = _supports(entry, "effort", "xhigh")
    return Traits(
        most,
        adapts,
        budgets,
        traits.samples,
        traits.mixes,
        traits.has_xhigh if has_xhigh is None else has_xhigh,
    )


def _supports(entry: Mapping[str, Any], *path: str) -> bool | None:
    value: Any = entry
    for name in ("capabilities", *path, "supported"):
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, bool) else None
