"""Crossing: what a client of one of OpenAI's APIs says in fields that the other one has as well."""

from collections.abc import Iterable, Mapping
from typing import Any

from millstream.prompt import BETAS, Extra, Prompt, short_user

_CHAT, _RESPONSES = "openai", "responses"
_OTHER = {_CHAT: _RESPONSES, _RESPONSES: _CHAT}

# Fields of both, by their names in Chat Completions -> where they are in Responses.
_BOTH = {
    "moderation": "moderation",
    "prompt_cache_breakpoint": "prompt_cache_breakpoint",
    "prompt_cache_key": "prompt_cache_key",
    "prompt_cache_options": "prompt_cache_options",
    "prompt_cache_retention": "prompt_cache_retention",
    "safety_identifier": "safety_identifier",
    "service_tier": "service_tier",
    "top_logprobs": "top_logprobs",
    "user": "user",
    "verbosity": "text.verbosity",
}
# In ``include`` of Responses, what ``logprobs`` is in Chat Completions.
_LOGPROBS = "message.output_text.logprobs"
_OBJECTS = ("reasoning", "text")  # of Responses, of which ``extra`` has some fields


def known(extra: Extra, api: str) -> Mapping[str, Any]:
    """What ``api`` knows of a prompt, or of a part, beyond what all of them do."""
    other = _OTHER.get(api)
    if api in extra or other not in extra:
        return extra.get(api, {})
    return _in_chat(extra[_RESPONSES]) if api == _CHAT else _in_responses(extra[_CHAT])


def lost(prompt: Prompt, api: str, refused: Iterable[str]) -> tuple[str, ...]:
    """The names of what a prompt asks for, and a provider is not told: ``api`` knows nothing of it, or it is
    among the fields that the provider has ``refused``.
    """
    extra = prompt.extra
    there = known(extra, api)
    names = {
        name
        for other, fields in extra.items()
        if other != api
        for name, value in _flat(fields).items()
        if value is not None and value is not False
    }
    names -= {BETAS, *there}
    if api == _CHAT:
        names -= set(_BOTH.values())
        if extra.get(_RESPONSES, {}).get("include") == [_LOGPROBS]:
            names.discard("include")
    elif api == _RESPONSES:
        names -= {*_BOTH, "logprobs"}
    # But who it is for, which a browser token may have said.
    names |= {name for name in refused if name != "user" and (there.get(name) or getattr(prompt, name, None))}
    return tuple(sorted(names))


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """With the fields of inner objects by their path."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _OBJECTS and isinstance(value, Mapping):
            found |= {f"{name}.{inner}": field for inner, field in value.items()}
        else:
            found[name] = value
    return found


def _in_chat(said: Mapping[str, Any]) -> dict[str, Any]:
    fields = _flat(said)
    made = {name: fields[theirs] for name, theirs in _BOTH.items() if theirs in fields}
    for name in ("safety_identifier", "user"):
        if isinstance(made.get(name), str):
            made[name] = short_user(made[name])
    if not made.get("top_logprobs"):  # 0 asks for none there
        made.pop("top_logprobs", None)
    included = fields.get("include")
    if "top_logprobs" in made or (isinstance(included, list) and _LOGPROBS in included):
        made["logprobs"] = True
    return made


def _in_responses(said: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, theirs in _BOTH.items():
        if name in said:
            outer, _, inner = theirs.partition(".")
            made[outer] = {inner: said[name]} if inner else said[name]
    if said.get("logprobs") is True:
        made["include"] = [_LOGPROBS]
    return made
