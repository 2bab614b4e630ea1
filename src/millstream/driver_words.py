"""What a database's driver says -> what is wrong, in words for the operator and without a row."""


def in_words(error: Exception) -> str:
    """What is wrong, for the operator, without the statement and its row."""
    name = type(getattr(error, "orig", None) or error).__name__
    said = str(getattr(error, "orig", None) or "").lower()
    known = next(
        (words for sign, words in _KNOWN_SIGNS.items() if sign in said or sign in name.lower()), None
    )
    return f"{known} ({name})" if known else name


# What drivers say -> what it means.
_KNOWN_SIGNS = {
    "readonly": "it takes no writes",
    "read-only": "it takes no writes",
    "malformed": "its file is damaged",
    "not a database": "its file is damaged",
    "locked": "another process has locked it",
    "disk is full": "its disk is full",
    "diskfull": "its disk is full",
    "insufficientprivilege": "its user lacks a permission",
    "password": "it does not accept the password",
    "does not exist": "there is no such database, table or role",
    "connection refused": "it refuses connections",
    "timeout": "it does not answer in time",
    "canceled": "it does not answer in time",
    "interrupted": "it does not answer in time",
    "unable to open": "its file cannot be opened",
}
