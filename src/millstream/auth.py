"""API keys and browser tokens: a credential -> a Principal.

A key is ``ms_live_`` or ``ms_test_``, 30 random base62 characters (178 bits) and 6 of checksum. It is shown
once and stored as its SHA-256 digest: a fast hash suffices where nothing can be guessed. The checksum
refuses typing errors and junk without a look-up.
"""

import hashlib
import math
import re
import secrets
import time
import zlib
from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, cast, get_args

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection, RowMapping

from millstream import database
from millstream.database import Database, DatabaseAway
from millstream.errors import InvalidRequest, NotFound, Overloaded, Unauthorized
from millstream.limits import Applied, Limit, narrowest
from millstream.signing import SigningSecrets
from millstream.tickets import BrowserToken, Signer

Scope: TypeAlias = Literal["chat", "usage", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_FORMAT = re.compile(r"(ms_(?:live|test)_)([0-9A-Za-z]{30})([0-9A-Za-z]{6})")
_MAX_NAME = 128
CACHE_SECONDS = 2.0
_CACHE_KEYS = 10_000

# What look-ups of keys that are not there may cost a worker: so many at once, then so many a second.
UNKNOWN_AT_ONCE = 200
UNKNOWN_PER_SECOND = 50
_MAX_UNKNOWN = 1_000  # of which it is remembered for ``CACHE_SECONDS`` that they are not there
_IDS_PER_QUERY = 500


class ApiKey(Struct, frozen=True):
    """What is known of a key. The key itself is not: only its digest is stored."""

    id: str
    name: str
    hint: str
    scopes: tuple[Scope, ...]
    created_at: float
    revoked_at: float | None


class Principal(Struct, frozen=True):
    """Who is asking: the API key ``id``, which pays, or somebody with a browser token of it."""

    id: str
    scopes: frozenset[Scope]
    token: BrowserToken | None = None
    limits: tuple[Limit, ...] = ()  # of the key

    def may(self, scopes: Collection[Scope]) -> bool:
        return self.scopes.issuperset(scopes)

    @property
    def owner_id(self) -> str:
        """Whose the streams are that this principal starts: end users of one key do not see each other's."""
        return self.id if self.token is None else f"{self.id}/{self.token.user or self.token.id}"

    @property
    def limited_by(self) -> tuple[Applied, ...]:
        """The limits of all that this principal starts: those of its key, for the key and for each end user,
        and those in its token, which are its end user's.
        """
        token = self.token
        if not self.limits and (token is None or not token.limits):
            return ()
        found = [Applied(self.id, limit) for limit in self.limits if not limit.each_user]
        if token is not None:
            of_users = [limit for limit in self.limits if limit.each_user]
            found += [Applied(self.owner_id, limit) for limit in (*of_users, *token.limits)]
        return narrowest(found)

    def owns(self, owner_id: str) -> bool:
        """A key also has what was started with its tokens."""
        return owner_id == self.owner_id or (self.token is None and owner_id.startswith(f"{self.id}/"))


def _checksum(text: str) -> str:
    number = zlib.crc32(text.encode())
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits


def new_secret(*, test: bool = False) -> str:
    start = "ms_test_" if test else "ms_live_"
    body = "".join(secrets.choice(_ALPHABET) for _ in range(30))
    return start + body + _checksum(start + body)


def is_wellformed(secret: str) -> bool:
    """Whether ``secret`` could be a key: its form and its checksum are right."""
    match = _FORMAT.fullmatch(secret)
    return match is not None and _checksum(match[1] + match[2]) == match[3]


class _Budget:
    """Of look-ups that find nothing: ``UNKNOWN_AT_ONCE``, renewed by ``UNKNOWN_PER_SECOND``."""

    def __init__(self) -> None:
        self._left = float(UNKNOWN_AT_ONCE)
        self._counted_at = time.monotonic()

    def take(self) -> bool:
        """Whether there is one left, which is taken then."""
        now = time.monotonic()
        renewed = (now - self._counted_at) * UNKNOWN_PER_SECOND
        self._left, self._counted_at = min(self._left + renewed, UNKNOWN_AT_ONCE), now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def give_back(self) -> None:
        self._left += 1


class Keys:
    """The keys of one database, whoever else changes them: what was verified is believed for 2 s.

    Digests are looked up by index. That leaks nothing through timing that helps: whoever could
    use it would have to find a SHA-256 preimage of what they learned.

    Anybody can make up keys that have to be looked up. Those who do share a budget, with keys that come for
    the first time; a key that was verified once has no part in it, however long ago that was.

    ``signing_secrets`` sign instead of those in the database: the first of them signs, all are believed.
    """

    def __init__(self, db: Database, signing_secrets: Sequence[bytes] = ()) -> None:
        self._db = db
        self._verified: OrderedDict[bytes | str, tuple[float, Principal]] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._budget = _Budget()
        self._signing = SigningSecrets(db, signing_secrets)

    async def signer(self) -> Signer:
        """Signs for this installation, to be used at once."""
        return await self._signing.signer()

    async def verify(self, secret: str) -> Principal:
        """Raises ``Unauthorized``, which is the same for every cause, or ``Overloaded`` where too many keys
        come that were never seen.
        """
        if not is_wellformed(secret):
            raise Unauthorized
        digest = hashlib.sha256(secret.encode()).digest()
        if digest in self._verified:
            return await self._find(digest, database.keys.c.digest)
        if time.monotonic() - self._unknown.get(digest, -math.inf) < CACHE_SECONDS:
            raise Unauthorized
        if not self._budget.take():
            raise Overloaded("many unknown keys are being tried; try again")
        try:
            principal = await self._find(digest, database.keys.c.digest)
        except Unauthorized:
            self._unknown[digest] = time.monotonic()
            if len(self._unknown) > _MAX_UNKNOWN:
                self._unknown.popitem(last=False)
            raise
        except DatabaseAway:
            self._budget.give_back()
            raise
        self._budget.give_back()
        return principal

    async def verify_token(self, text: str) -> Principal:
        """Whoever has the browser token, as long as the key that it was made with is not revoked."""
        token = (await self.signer()).check_token(text)
        key = await self._find(token.key_id, database.keys.c.id)
        return Principal(key.id, frozenset({"chat"}), token, key.limits)

    async def check(self, key_id: str) -> None:
        """Raises ``Unauthorized`` where the key is revoked or was never made."""
        await self._find(key_id, database.keys.c.id)

    async def _find(self, name: bytes | str, column: sa.Column[Any]) -> Principal:
        now = time.monotonic()
        cached = self._verified.get(name)
        if cached is not None and now - cached[0] < CACHE_SECONDS:
            return cached[1]
        found = await self._db.read(lambda connection: _one(connection, column == name))
        if found is None or found[0].revoked_at is not None:
            self._verified.pop(name, None)
            raise Unauthorized
        key, limits = found
        principal = Principal(key.id, frozenset(key.scopes), limits=limits)
        self._verified[name] = (now, principal)
        self._verified.move_to_end(name)
        if len(self._verified) > _CACHE_KEYS:
            self._verified.popitem(last=False)
        return principal

    async def create(self, name: str, scopes: Sequence[str], *, test: bool = False) -> tuple[ApiKey, str]:
        """The key and its secret, which cannot be had again. Raises ``InvalidRequest``."""
        key, secret, digest = _new_key(name, scopes, test)
        await self._db.write(lambda connection: _insert(connection, key, digest))
        return key, secret

    async def all(self) -> list[ApiKey]:
        return await self._db.read(_all)

    async def revoke(self, key_id: str) -> ApiKey:
        """Idempotent. Raises ``NotFound``."""
        key = await self._db.write(lambda connection: _revoke(connection, key_id))
        if key is None:
            raise NotFound(f"no key has the id '{key_id}'")
        self._forget(key.id)
        return key

    def _forget(self, key_id: str) -> None:
        for name in [name for name, (_, principal) in self._verified.items() if principal.id == key_id]:
            del self._verified[name]

    async def limits(self, key_id: str) -> tuple[Limit, ...]:
        """Raises ``NotFound``."""
        found = await self._db.read(lambda connection: _one(connection, database.keys.c.id == key_id))
        if found is None:
            raise NotFound(f"no key has the id '{key_id}'")
        return found[1]

    async def set_limits(
        self, key_id: str, limits: Sequence[Limit], *, replace: bool = True
    ) -> tuple[Limit, ...]:
        """All limits of the key, now that these are set; they ``replace`` those that it had, or else only
        those of the same kind. Other workers apply them within 2 s. Raises ``NotFound``.
        """

        def work(connection: Connection) -> tuple[ApiKey, tuple[Limit, ...]] | None:
            found = _one(connection, database.keys.c.id == key_id)
            if found is not None:
                _set_limits(connection, key_id, () if replace else found[1], limits)
            return _one(connection, database.keys.c.id == key_id)

        found = await self._db.write(work)
        if found is None:
            raise NotFound(f"no key has the id '{key_id}'")
        self._forget(key_id)
        return found[1]

    async def ensure_first(self) -> str | None:
        """Makes an admin key where there is none at all; its secret, or None."""
        key, secret, digest = _new_key("admin", SCOPES, False)

        def insert_if_empty(connection: Connection) -> bool:
            if connection.scalar(sa.select(sa.func.count()).select_from(database.keys)):
                return False
            _insert(connection, key, digest)
            return True

        return secret if await self._db.write(insert_if_empty) else None

    async def revoked_among(self, key_ids: Collection[str]) -> set[str]:
        """Those of the keys that are revoked."""
        ordered = list(key_ids)
        revoked: set[str] = set()
        for start in range(0, len(ordered), _IDS_PER_QUERY):
            some = ordered[start : start + _IDS_PER_QUERY]
            revoked |= await self._db.read(partial(_revoked, key_ids=some))
        return revoked


def _new_key(name: str, scopes: Sequence[str], test: bool) -> tuple[ApiKey, str, bytes]:
    if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise InvalidRequest(f"a key's name has 1 to {_MAX_NAME} printable characters")
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise InvalidRequest(f"unknown scope '{unknown[0]}'; scopes are {', '.join(SCOPES)}")
    if not scopes:
        raise InvalidRequest(f"a key needs at least one scope of {', '.join(SCOPES)}")
    secret = new_secret(test=test)
    ordered = tuple(scope for scope in SCOPES if scope in scopes)
    key_id = "key_" + "".join(secrets.choice(_ALPHABET) for _ in range(16))
    hint = f"{secret[:12]}…{secret[-4:]}"
    key = ApiKey(key_id, name, hint, ordered, time.time(), None)
    return key, secret, hashlib.sha256(secret.encode()).digest()


def _insert(connection: Connection, key: ApiKey, digest: bytes) -> None:
    connection.execute(
        sa.insert(database.keys).values(
            id=key.id,
            name=key.name,
            digest=digest,
            hint=key.hint,
            scopes=" ".join(key.scopes),
            created_at=key.created_at,
        )
    )


def _key(row: RowMapping) -> ApiKey:
    return ApiKey(
        row["id"],
        row["name"],
        row["hint"],
        cast("tuple[Scope, ...]", tuple(row["scopes"].split())),
        row["created_at"],
        row["revoked_at"],
    )


def _one(
    connection: Connection, condition: sa.ColumnElement[bool]
) -> tuple[ApiKey, tuple[Limit, ...]] | None:
    """The key and its limits."""
    row = connection.execute(sa.select(database.keys).where(condition)).mappings().first()
    if row is None:
        return None
    table = database.key_limits
    query = sa.select(table).where(table.c.key_id == row["id"]).order_by(*table.primary_key)
    limits = tuple(
        Limit(one["what"], one["per"], one["amount"], one["model"] or None, one["each_user"])
        for one in connection.execute(query).mappings()
    )
    return _key(row), limits


def _set_limits(
    connection: Connection, key_id: str, before: Sequence[Limit], limits: Sequence[Limit]
) -> None:
    table = database.key_limits
    connection.execute(sa.delete(table).where(table.c.key_id == key_id))
    kept = {(one.what, one.per, one.model, one.each_user): one for one in (*before, *limits)}
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
        connection.execute(sa.insert(table), rows)


def _all(connection: Connection) -> list[ApiKey]:
    query = sa.select(database.keys).order_by(database.keys.c.created_at)
    return [_key(row) for row in connection.execute(query).mappings()]


def _revoke(connection: Connection, key_id: str) -> ApiKey | None:
    table = database.keys
    connection.execute(
        sa.update(table)
        .where(table.c.id == key_id, table.c.revoked_at.is_(None))
        .values(revoked_at=time.time())
    )
    row = connection.execute(sa.select(table).where(table.c.id == key_id)).mappings().first()
    return None if row is None else _key(row)


def _revoked(connection: Connection, key_ids: Sequence[str]) -> set[str]:
    table = database.keys
    query = sa.select(table.c.id).where(table.c.id.in_(key_ids), table.c.revoked_at.is_not(None))
    return set(connection.scalars(query))
