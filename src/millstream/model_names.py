"""Names of models: which one is a version of which."""

import re

# Providers answer, and bill, as a dated version of the name that was asked for.
_VERSION = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{4}|latest)$")


def unversioned(name: str) -> str:
    """``gpt-4o`` of ``gpt-4o-2024-08-06``; a name that is no version as it is."""
    return _VERSION.sub("", name)
