"""What the driver of a database or of Redis says -> what is wrong, in words for the operator.

The driver's own text is never shown: it may hold a statement with its row, an address or a secret.
"""

import re


def in_words(error: BaseException) -> str:
    """What is wrong, and the driver's name for it."""
    cause = getattr(error, "orig", None) or error
    name = type(cause).__name__
    said = f"{cause}\n{name}".lower()
    known = next((words for sign, words in _KNOWN_SIGNS.items() if re.search(sign, said)), None)
    return f"{known} ({name})" if known else name


# What drivers say, in small letters -> what it means. The first one that is found counts.
_KNOWN_SIGNS = {
    "read-?only": "it takes no writes",
    "misconf": "it takes no writes, because it cannot save them",
    "malformed|not a database": "its file is damaged",
    r"\blocked": "another process has locked it",
    "disk is full|diskfull|no space left": "its disk is full",
    "outofmemory|maxmemory": "its memory is full",
    "insufficientprivilege|nopermission|permission denied": "its user lacks a permission",
    "invalid connection option|invalid uri query|unexpected keyword": "its URL has an option that is unknown",
    "no password supplied|authentication required|noauth|already authenticated": "it wants a password",
    "password": "it does not accept the password",
    'database ".*" does not exist|db index|databases': "there is no such database",
    'role ".*" does not exist': "there is no such user",
    "does not exist": "there is no such table or column",
    "no pg_hba.conf entry": "it does not let this user or machine in",
    "name or service not known|nodename nor servname": "its host is not known",
    "(resolve|translate) host|name resolution|getaddrinfo": "its host is not known",
    "refused": "it refuses connections",
    "unreachable|no route": "there is no way to its host",
    "no such file": "there is no socket at its path",
    "certificate|ssl|tls": "no encrypted connection can be made",
    "too many (clients|connections)|max number of clients|remaining connection slots": (
        "it takes no more connections"
    ),
    "starting up|loading": "it is still starting",
    "shutting down|terminating connection|broken pipe": "it ended the connection",
    "connection closed|closed the connection|closed by|reset by peer": "it ended the connection",
    "cast to integer|unknown scheme|must specify one of": "its URL is not one",
    "protocol|invalidresponse": "what answers there is something else",
    "timeout|timed out|canceled|interrupted": "it does not answer in time",
    "unable to open": "its file cannot be opened",
}
