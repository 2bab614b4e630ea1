"""API keys and browser tokens: a credential -> a Principal."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from msgspec import Struct
from sqlalchemy.engine import Connection

from millstream import api_keys
from millstream.api_keys import SCOPES, ApiKey, Changes, Scope
from millstream.database import Database, DatabaseAway
from millstream.errors import InvalidRequest, Misuse, Overloaded, Unauthorized, printable
from millstream.limits import Applied, Limit, narrowest
from millstream.schema import PAYER_LENGTH
from millstream.signing import SigningSecrets
from millstream.tickets import BrowserToken, Signer

CACHE_SECONDS = 2.0
_CACHE_KEYS = 10_000

# What look-ups of keys that are not there may cost a worker: so many at once, then so many a second.
UNKNOWN_AT_ONCE = 200
UNKNOWN_PER_SECOND = 50
_MAX_UNKNOWN = 1_000  # of which it is remembered for ``CACHE_SECONDS`` that they are not there
_IDS_PER_QUERY = 500


def check_payer(identity: object) -> None:
    """Raises ``Misuse`` for what cannot be the id of who pays. Behind a slash is an end user of theirs."""
    if not isinstance(identity, str):
        raise Misuse(f"the id of a Principal is a text, not a {type(identity).__name__}")
    if not 0 < len(identity) <= PAYER_LENGTH or "/" in identity or not identity.isprintable():
        raise Misuse(
            f"the id of a Principal has 1 to {PAYER_LENGTH} printable characters without a slash, not "
            f"'{printable(identity)}'"
        )


class Principal(Struct, frozen=True):
    """Who is asking: the API key ``id``, which pays, or somebody with a browser token of it. A ``test`` key
    reaches models that cost nothing, and is never billed. With a login of an application's own, ``id`` is
    whatever it calls a user: 1 to 128 printable characters without a slash.
    """

    id: str
    scopes: frozenset[Scope]
    token: BrowserToken | None = None
    limits: tuple[Limit, ...] = ()  # of the key
    test: bool = False

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
        found = [Applied(self.id, limit, of_key=True) for limit in self.limits if not limit.each_user]
        if token is not None:
            of_users = [limit for limit in self.limits if limit.each_user]
            found += [Applied(self.owner_id, limit, of_key=True) for limit in of_users]
            found += [Applied(self.owner_id, limit) for limit in token.limits]
        return narrowest(found)

    def owns(self, owner_id: str) -> bool:
        """A key also has what was started with its tokens."""
        return owner_id == self.owner_id or (self.token is None and owner_id.startswith(f"{self.id}/"))


_Found: TypeAlias = tuple[ApiKey, float | None] | None


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
        # By digest or by id: until when it is believed, by the monotonic clock, and what.
        self._verified: OrderedDict[bytes | str, tuple[float, Principal]] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._budget = _Budget()
        self._signing = SigningSecrets(db, signing_secrets)
        self._used_at: dict[str, float] = {}  # since uses were last written

    async def signer(self) -> Signer:
        """Signs for this installation, to be used at once."""
        return await self._signing.signer()

    async def verify(self, secret: str) -> Principal:
        """Raises ``Unauthorized``, which is the same for every cause, or ``Overloaded`` where too many keys
        come that were never seen.
        """
        if not api_keys.is_wellformed(secret):
            raise Unauthorized
        digest = api_keys.digest_of(secret)
        find = partial(api_keys.by_digest, digest=digest)
        if digest in self._verified:
            return await self._find(digest, find)
        if time.monotonic() - self._unknown.get(digest, -math.inf) < CACHE_SECONDS:
            raise Unauthorized
        if not self._budget.take():
            raise Overloaded("many unknown keys are being tried; try again")
        try:
            principal = await self._find(digest, find)
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
        """Whoever has the browser token, as long as the key that it was made with is good."""
        token = (await self.signer()).check_token(text)
        key = await self._find_by_id(token.key_id)
        return Principal(key.id, frozenset({"chat"}), token, key.limits, key.test)

    async def check(self, key_id: str) -> None:
        """Raises ``Unauthorized`` where the key is revoked, has expired or was never made."""
        await self._find_by_id(key_id)

    async def _find_by_id(self, key_id: str) -> Principal:
        def find(connection: Connection) -> _Found:
            key = api_keys.by_id(connection, key_id)
            return None if key is None else (key, None)

        return await self._find(key_id, find)

    async def _find(self, name: bytes | str, find: Callable[[Connection], _Found]) -> Principal:
        now, at = time.monotonic(), time.time()
        cached = self._verified.get(name)
        if cached is not None and now < cached[0]:
            self._used_at[cached[1].id] = at
            return cached[1]

        def read(connection: Connection) -> tuple[ApiKey, float | None, tuple[Limit, ...]] | None:
            found = find(connection)
            return None if found is None else (*found, api_keys.limits(connection, found[0].id))

        found = await self._db.read(read)
        ends = math.inf if found is None else min(found[0].expires_at or math.inf, found[1] or math.inf)
        if found is None or found[0].revoked_at is not None or ends <= at:
            self._verified.pop(name, None)
            raise Unauthorized
        key, _, limits = found
        principal = Principal(key.id, frozenset(key.scopes), limits=limits, test=key.test)
        self._used_at[key.id] = at
        self._verified[name] = (now + min(CACHE_SECONDS, ends - at), principal)
        self._verified.move_to_end(name)
        if len(self._verified) > _CACHE_KEYS:
            self._verified.popitem(last=False)
        return principal

    async def create(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        test: bool = False,
        owner: str | None = None,
        labels: Mapping[str, str] | None = None,
        expires_at: float | None = None,
    ) -> tuple[ApiKey, str]:
        """The key and its secret, which cannot be had again. Raises ``InvalidRequest``."""
        key, secret = api_keys.new_key(
            name, scopes, test=test, owner=owner, labels=labels, expires_at=expires_at
        )
        await self._db.write(lambda connection: api_keys.insert(connection, key, secret))
        return key, secret

    async def all(self) -> list[ApiKey]:
        return await self._db.read(api_keys.every)

    async def revoke(self, key_id: str) -> ApiKey:
        """Idempotent. Raises ``NotFound``."""
        key = await self._db.write(lambda connection: api_keys.revoke(connection, key_id))
        self._forget(key.id)
        return key

    async def change(self, key_id: str, changes: Changes) -> ApiKey:
        """Raises ``NotFound``, ``InvalidRequest``."""
        key = await self._db.write(lambda connection: api_keys.change(connection, key_id, changes))
        self._forget(key.id)
        return key

    async def rotate(self, key_id: str, overlap_seconds: float) -> tuple[ApiKey, str]:
        """The key with another secret, and that. The secrets before it are good for ``overlap_seconds`` more,
        or for as long as they were before, if that is less. Raises ``NotFound``, ``InvalidRequest``.
        """
        most = api_keys.MAX_OVERLAP_SECONDS
        if not 0 <= overlap_seconds <= most:
            raise InvalidRequest(f"secrets of a key overlap for 0 to {most:g} seconds")

        def rotate(connection: Connection) -> tuple[ApiKey, str]:
            key = api_keys.by_id(connection, key_id)
            secret = api_keys.new_secret(test=key is not None and key.test)
            return api_keys.rotate(connection, key_id, secret, overlap_seconds), secret

        key, secret = await self._db.write(rotate)
        self._forget(key.id)
        return key, secret

    async def limits(self, key_id: str) -> tuple[Limit, ...]:
        """Raises ``NotFound``."""
        return await self._db.read(lambda connection: api_keys.limits_of(connection, key_id))

    async def set_limits(
        self, key_id: str, limits: Sequence[Limit], *, replace: bool = True
    ) -> tuple[Limit, ...]:
        """All limits of the key, now that these are set; they ``replace`` those that it had, or else only
        those of the same kind. Other workers apply them within 2 s. Raises ``NotFound``.
        """
        held = await self._db.write(
            lambda connection: api_keys.set_limits(connection, key_id, limits, replace=replace)
        )
        self._forget(key_id)
        return held

    async def ensure_first(self) -> str | None:
        """Makes an admin key where there is none at all; its secret, or None."""
        key, secret = api_keys.new_key("admin", SCOPES)

        def insert_if_empty(connection: Connection) -> bool:
            if api_keys.every(connection):
                return False
            api_keys.insert(connection, key, secret)
            return True

        return secret if await self._db.write(insert_if_empty) else None

    async def refused_among(self, key_ids: Collection[str]) -> set[str]:
        """Those of the keys that are revoked or have expired."""
        ordered = list(key_ids)
        refused: set[str] = set()
        for start in range(0, len(ordered), _IDS_PER_QUERY):
            some = ordered[start : start + _IDS_PER_QUERY]
            refused |= await self._db.read(partial(api_keys.refused, key_ids=some))
        return refused

    async def write_uses(self) -> None:
        """Writes when keys were last used here, since this was last called. Raises ``DatabaseAway``."""
        used_at, self._used_at = self._used_at, {}
        if not used_at:
            return
        try:
            await self._db.write(lambda connection: api_keys.note_uses(connection, used_at))
        except DatabaseAway:
            self._used_at = used_at | self._used_at
            raise

    def _forget(self, key_id: str) -> None:
        for name in [name for name, (_, principal) in self._verified.items() if principal.id == key_id]:
            del self._verified[name]
