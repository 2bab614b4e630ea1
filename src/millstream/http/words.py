"""What an answer's headers ask for, and what kept a request from being sent, in words."""

import re
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from millstream.http.addresses import InvalidURL
from millstream.http.opening import CannotConnect, ConnectTimeout

# What ``Client.connect`` raises: nothing was sent.
UNREACHABLE = (socket.gaierror, ssl.SSLError, ConnectTimeout, CannotConnect, InvalidURL)


def in_words(error: Exception) -> str:
    """Why nobody can be asked, of an error that is one of ``UNREACHABLE``."""
    match error:
        case socket.gaierror():
            return "its host name does not resolve"
        case ssl.SSLCertVerificationError():
            return "its TLS certificate was not accepted"
        case ssl.SSLError():
            return "there is no TLS that both sides know"
        case ConnectTimeout():
            return "no connection in time"
        case InvalidURL():
            return "its URL is not valid"
    return str(getattr(error, "strerror", None) or "no connection")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that the server asks to be left alone for, at least 0: given as seconds, as a date or, by
    OpenAI, as milliseconds. A date is taken by the server's own clock, which may not be ours.
    """
    if (exact := headers.get("retry-after-ms", "")) and re.fullmatch(r"\d{1,12}(\.\d+)?", exact):
        return float(exact) / 1000
    if (value := headers.get("retry-after", "")) and re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    until, now = _date(value), _date(headers.get("date", ""))
    return None if until is None else max(0.0, (until - (now or datetime.now(UTC))).total_seconds())


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
