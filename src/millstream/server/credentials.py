"""Credentials in URLs: clients put them there by mistake, and no log nor error repeats them."""

import re
from urllib.parse import unquote

_CREDENTIAL = re.compile(r"ms_(?:live|test)_|eyJ[\w-]*\.")
_SECRET_NAME = re.compile("(?:ticket|key|token|secret|password|authorization)$", re.IGNORECASE)
_MAX_ENCODED = 4


def without_credentials(target: str) -> str:
    """A path, maybe with a query, in which nothing is left that could be a credential, however it is written:
    for the log, and for whoever is told of the path.
    """
    path, mark, query = target.partition("?")
    shown = "/".join("…" if _has(part, _CREDENTIAL) else part for part in path.split("/"))
    return shown + mark + "&".join(map(_without_value, query.split("&")))


def _without_value(field: str) -> str:
    name, _, value = field.partition("=")
    if _has(name, _CREDENTIAL):
        return "…"
    return f"{name}=…" if value and (_has(value, _CREDENTIAL) or _has(name, _SECRET_NAME)) else field


def _has(text: str, pattern: re.Pattern[str]) -> bool:
    """Whether ``pattern`` is in ``text``, which may be encoded; also of one that is so too often."""
    for _ in range(_MAX_ENCODED):
        if pattern.search(text):
            return True
        if (decoded := unquote(text)) == text:
            return False
        text = decoded
    return True
