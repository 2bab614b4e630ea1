"""API keys: what is known of each, the form of their secrets, and the rows that keep both.

A secret is ``ms_live_`` or ``ms_test_``, 30 random base62 characters (178 bits) and 6 of checksum. It is
shown once and stored as its SHA-256 digest: a fast hash suffices where nothing can be guessed. The checksum
refuses typing errors and junk without a look-up.
"""

import hashlib
import re
import secrets
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast, get_args

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, Struct, UnsetType
from sqlalchemy.engine import Connection, RowMapping

from millstream.errors import InvalidRequest, NotFound
from millstream.limits import Limit
from millstream.schema import LATEST, key_limits, keys, old_digests

Scope: TypeAlias = Literal["chat", "usage", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORMAT = re.compile(r"(ms_(?:live|test)_)([0-9A-Za-z]{30})([0-9A-Za-z]{6})")
_TEST = "ms_test_"
_MAX_NAME = 128
_MAX_LABELS = 16
_MAX_LABEL = (64, 256)  # characters of a label's name and of its value
MAX_OVERLAP_SECONDS = 90 * 86_400.0


class ApiKey(Struct, frozen=True):
    """What is known of a key. The key itself is not: only its digest is stored. Times are in Unix seconds.

    ``owner`` is whose it is, in the operator's words: a customer, a team. ``last_used_at`` is up to a minute
    old.
    """

    id: str
    name: str
    hint: str
    scopes: tuple[Scope, ...]
    created_at: float
    revoked_at: float | None = None
    expires_at: float | None = None
    last_used_at: float | None = None
    owner: str | None = None
    labels: dict[str, str] = {}
    test: bool = False

    def ends_by(self, now: float) -> bool:
        """Whether it is refused at ``now``."""
        return self.revoked_at is not None or (self.expires_at is not None and self.expires_at <= now)


class Changes(Struct, frozen=True):
    """What is to change of a key; the rest stays."""

    name: str | UnsetType = UNSET
    owner: str | UnsetType | None = UNSET
    labels: dict[str, str] | UnsetType = UNSET
    expires_at: float | UnsetType | None = UNSET


def _checksum(text: str) -> str:
    number = zlib.crc32(text.encode())
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits


def new_secret(*, test: bool = False) -> str:
    start = _TEST if test else "ms_live_"
    body = "".join(secrets.choice(_ALPHABET) for _ in range(30))
    return start + body + _checksum(start + body)


def is_wellformed(secret: str) -> bool:
    """Whether ``secret`` could be a key: its form and its checksum are right."""
    match = _FORMAT.fullmatch(secret)
    return match is not None and _checksum(match[1] + match[2]) == match[3]


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def new_key(
    name: str,
    scopes: Sequence[str],
    *,
    test: bool = False,
    owner: str | None = None,
    labels: Mapping[str, str] | None = None,
    expires_at: float | None = None,
) -> tuple[ApiKey, str]:
    """A key and its secret, not kept yet. Raises ``InvalidRequest``."""
    check(Changes(name, owner, dict(labels or {}), expires_at))
    now = time.time()
    if expires_at is not None and expires_at <= now:
        raise InvalidRequest("a key expires in the future")
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise InvalidRequest(f"unknown scope '{unknown[0]}'; scopes are {', '.join(SCOPES)}")
    if not scopes:
        raise InvalidRequest(f"a key needs at least one scope of {', '.join(SCOPES)}")
    secret = new_secret(test=test)
    ordered = tuple(scope for scope in SCOPES if scope in scopes)
    key_id = "key_" + "".join(secrets.choice(_ALPHABET) for _ in range(16))
    key = ApiKey(
        key_id,
        name,
        _hint(secret),
        ordered,
        now,
        expires_at=expires_at,
        owner=owner,
        labels=dict(labels or {}),
        test=test,
    )
    return key, secret


def check(changes: Changes) -> None:
    """Raises ``InvalidRequest`` where something is none that a key may have."""
    for what, text in (("name", changes.name), ("owner", changes.owner)):
        if isinstance(text, str) and not _is_text(text, _MAX_NAME):
            raise InvalidRequest(f"a key's {what} has 1 to {_MAX_NAME} printable characters")
    ends = changes.expires_at
    if isinstance(ends, float | int) and not 0 <= ends <= LATEST:  # which is so of what is no number, too
        raise InvalidRequest("a key expires at a time in Unix seconds, before the year 9999")
    if isinstance(changes.labels, UnsetType):
        return
    name, value = _MAX_LABEL
    if len(changes.labels) > _MAX_LABELS or not all(
        _is_text(label, name) and (text == "" or _is_text(text, value))
        for label, text in changes.labels.items()
    ):
        raise InvalidRequest(
            f"a key has up to {_MAX_LABELS} labels, of names up to {name} and values up to {value} printable "
            "characters"
        )


def _is_text(text: str, most: int) -> bool:
    return 0 < len(text) <= most and text.isprintable()


def _hint(secret: str) -> str:
    return f"{secret[:12]}…{secret[-4:]}"


# -- rows ------------------------------------------------------------------------------------------


def insert(connection: Connection, key: ApiKey, secret: str) -> None:
    values = {name: getattr(key, name) for name in key.__struct_fields__ if name in keys.c}
    values |= {"scopes": " ".join(key.scopes), "labels": _labels_json(key.labels), "is_test": key.test}
    connection.execute(sa.insert(keys).values(digest=digest_of(secret), **values))


def by_id(connection: Connection, key_id: str) -> ApiKey | None:
    row = connection.execute(sa.select(keys).where(keys.c.id == key_id)).mappings().first()
    return None if row is None else _key(row)


def by_digest(connection: Connection, digest: bytes) -> tuple[ApiKey, float | None] | None:
    """The key of a secret, and until when that secret is good, where another has replaced it."""
    row = connection.execute(sa.select(keys).where(keys.c.digest == digest)).mappings().first()
    if row is not None:
        return _key(row), None
    query = (
        sa.select(keys, old_digests.c.good_until)
        .join(old_digests, old_digests.c.key_id == keys.c.id)
        .where(old_digests.c.digest == digest)
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else (_key(row), row["good_until"])


def every(connection: Connection) -> list[ApiKey]:
    query = sa.select(keys).order_by(keys.c.created_at)
    return [_key(row) for row in connection.execute(query).mappings()]


def revoke(connection: Connection, key_id: str) -> ApiKey:
    """Idempotent. Raises ``NotFound``."""
    connection.execute(
        sa.update(keys).where(keys.c.id == key_id, keys.c.revoked_at.is_(None)).values(revoked_at=time.time())
    )
    return _found(connection, key_id)


def change(connection: Connection, key_id: str, changes: Changes) -> ApiKey:
    """Raises ``NotFound``, and ``InvalidRequest`` where the owner would change: what was used is theirs."""
    check(changes)
    key = _held(connection, key_id)
    if changes.owner is not UNSET and key.owner is not None and changes.owner != key.owner:
        raise InvalidRequest("a key that has an owner keeps it; make a key for the other one")
    values: dict[str, Any] = msgspec.to_builtins(changes)  # without what stays
    if "labels" in values:
        values["labels"] = _labels_json(values["labels"])
    if values:
        connection.execute(sa.update(keys).where(keys.c.id == key_id).values(**values))
    return _found(connection, key_id)


def rotate(connection: Connection, key_id: str, secret: str, overlap_seconds: float) -> ApiKey:
    """Gives the key another secret. No earlier one is good for longer than ``overlap_seconds`` from now."""
    now = time.time()
    good_until = now + overlap_seconds
    key = _held(connection, key_id)
    if key.ends_by(now):
        raise InvalidRequest(f"the key '{key_id}' is revoked or has expired; make another one")
    old = connection.execute(sa.select(keys.c.digest).where(keys.c.id == key_id)).scalar_one()
    of_key = old_digests.c.key_id == key_id
    connection.execute(sa.delete(old_digests).where(of_key, old_digests.c.good_until <= now))
    connection.execute(
        sa.update(old_digests)
        .where(of_key, old_digests.c.good_until > good_until)
        .values(good_until=good_until)
    )
    if overlap_seconds > 0:
        row = {"digest": old, "key_id": key_id, "good_until": good_until}
        connection.execute(sa.insert(old_digests).values(**row))
    connection.execute(
        sa.update(keys).where(keys.c.id == key_id).values(digest=digest_of(secret), hint=_hint(secret))
    )
    return _found(connection, key_id)


def limits(connection: Connection, key_id: str) -> tuple[Limit, ...]:
    """Those of a key, whether there is such a key or not."""
    query = sa.select(key_limits).where(key_limits.c.key_id == key_id).order_by(*key_limits.primary_key)
    return tuple(
        Limit(one["what"], one["per"], one["amount"], one["model"] or None, one["each_user"])
        for one in connection.execute(query).mappings()
    )


def limits_of(connection: Connection, key_id: str) -> tuple[Limit, ...]:
    """Raises ``NotFound``."""
    _found(connection, key_id)
    return limits(connection, key_id)


def set_limits(
    connection: Connection, key_id: str, new: Sequence[Limit], *, replace: bool
) -> tuple[Limit, ...]:
    """All limits of the key, now that the ``new`` ones ``replace`` the others, or those of their kind. Raises
    ``NotFound``.
    """
    _held(connection, key_id)
    before = () if replace else limits(connection, key_id)
    connection.execute(sa.delete(key_limits).where(key_limits.c.key_id == key_id))
    kept = {(one.what, one.per, one.model, one.each_user): one for one in (*before, *new)}
    rows = [
        {
            "key_id": key_id,
            "what": one.what,
            "per": one.per,
            "model": one.model or "",
            "each_user": one.each_user,
            "amount": one.amount,
        }
        for one in kept.values()
    ]
    if rows:
        connection.execute(sa.insert(key_limits), rows)
    return limits(connection, key_id)


def refused(connection: Connection, key_ids: Sequence[str]) -> set[str]:
    """Those of the keys that are revoked or have expired."""
    ended = keys.c.revoked_at.is_not(None) | (keys.c.expires_at <= time.time())
    return set(connection.scalars(sa.select(keys.c.id).where(keys.c.id.in_(key_ids), ended)))


def note_uses(connection: Connection, used_at: Mapping[str, float]) -> None:
    """Notes when keys were last used; a later time that another worker has noted stays."""
    statement = (
        sa.update(keys)
        .where(
            keys.c.id == sa.bindparam("key"),
            sa.func.coalesce(keys.c.last_used_at, 0) < sa.bindparam("at"),
        )
        .values(last_used_at=sa.bindparam("at"))
    )
    # In one order everywhere, as two workers may note the same keys.
    connection.execute(statement, [{"key": key, "at": at} for key, at in sorted(used_at.items())])


def _found(connection: Connection, key_id: str) -> ApiKey:
    key = by_id(connection, key_id)
    if key is None:
        raise NotFound(f"no key has the id '{key_id}'")
    return key


def _held(connection: Connection, key_id: str) -> ApiKey:
    """The same, until the transaction ends: whoever changes the key, too, waits for that."""
    # An update, which SQLite waits for as well; it knows no FOR UPDATE.
    connection.execute(sa.update(keys).where(keys.c.id == key_id).values(name=keys.c.name))
    return _found(connection, key_id)


def _labels_json(labels: Mapping[str, str]) -> str | None:
    return msgspec.json.encode(labels).decode() if labels else None


def _key(row: RowMapping) -> ApiKey:
    return ApiKey(
        row["id"],
        row["name"],
        row["hint"],
        cast("tuple[Scope, ...]", tuple(row["scopes"].split())),
        row["created_at"],
        row["revoked_at"],
        row["expires_at"],
        row["last_used_at"],
        row["owner"],
        {} if row["labels"] is None else msgspec.json.decode(row["labels"]),
        row["is_test"],
    )
