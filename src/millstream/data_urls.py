"""``data:`` URLs, as clients send pictures, sound and documents.

RFC 2397: the scheme has no case, the parameters behind the type are of any number, and ``base64`` is the last
thing before the comma. Where it is missing, the data is text with percent signs.
"""

import base64
from typing import NamedTuple
from urllib.parse import unquote_to_bytes


class Held(NamedTuple):
    """``media_type`` is without its parameters, and empty where the URL names none. ``data`` is base64."""

    media_type: str
    data: str

    def text(self) -> str:
        """What a document of text says. Raises ``ValueError`` where it is no text in UTF-8."""
        return base64.b64decode(self.data, validate=True).decode()


def held_by(url: str) -> Held | None:
    """What a URL holds; None where it is an address."""
    if url[:5].lower() != "data:":
        return None
    head, _, data = url[5:].partition(",")
    media_type, *parameters = (word.strip().lower() for word in head.split(";"))
    if parameters[-1:] != ["base64"]:
        data = base64.b64encode(unquote_to_bytes(data)).decode()
    return Held(media_type, data)
