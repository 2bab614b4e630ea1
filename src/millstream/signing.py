"""The signing secrets: what browser tokens and tickets are signed with, and how one replaces another.

The settings give them, or all workers read them from the database. There a new one is believed by every
worker that has seen it, and signs ``LEARN_SECONDS`` later, when all have: so what one worker signs no other
refuses. The one that it replaces is believed for ``KEPT_SECONDS`` after that.
"""

import secrets
import time
from collections.abc import Sequence

import sqlalchemy as sa
from msgspec import Struct
from sqlalchemy.engine import Connection

from millstream import schema
from millstream.database import Database, DatabaseAway
from millstream.errors import ConfigurationError
from millstream.tickets import Signer

_NAME = "signing"  # the first secret's, and how those of the others begin
LOOK_SECONDS = 2.0
LEARN_SECONDS = 10.0
KEPT_SECONDS = 86_400.0 + 60.0  # the longest life of a browser token, with time to spare


class _Secret(Struct, frozen=True):
    """What signs from ``signs_from`` on, and is believed until ``expires_at``."""

    value: bytes
    signs_from: float
    expires_at: float | None


class SigningSecrets:
    """Those that are ``given``, of which the first signs; without, those of the database, whoever else
    replaces them: what was read is believed for 2 s.
    """

    def __init__(self, db: Database, given: Sequence[bytes] = ()) -> None:
        self._db = db
        self._given = Signer(given) if given else None
        self._known: list[_Secret] = []
        self._known_at = 0.0
        self._is_looking = False

    async def signer(self) -> Signer:
        """Signs for this installation, to be used at once. Whoever needs a secret first makes it. While the
        database is away those that are known hold; raises ``DatabaseAway`` where none is.
        """
        if self._given is not None:
            return self._given
        now = time.monotonic()
        age = now - self._known_at
        if not self._known:
            self._know(await self._db.write(_ensure), now)
        elif age >= LEARN_SECONDS or (age >= LOOK_SECONDS and not self._is_looking):
            # One request looks and the others go on, unless what they know is so old that a secret may sign
            # of which they have not heard.
            self._is_looking = True
            try:
                self._know(await self._db.read(_all), now)
            except DatabaseAway:
                self._know(self._known, time.monotonic())
            finally:
                self._is_looking = False
        return Signer(_believed(self._known, time.time()))

    def _know(self, found: list[_Secret], at: float) -> None:
        self._known, self._known_at = found, at

    async def rotate(self, *, at_once: bool = False) -> float:
        """Makes a new secret in the database. Until when the others are believed: for a day, or ``at_once``
        for no longer than the workers take to look; until all have, one may refuse what another one signs.
        Raises ``DatabaseAway``, and ``ConfigurationError`` where the secrets are given.
        """
        if self._given is not None:
            raise ConfigurationError(
                "MILLSTREAM_SIGNING_SECRET signs, and no secret in the database: put a new one before it, "
                "with a comma between them"
            )
        now = time.monotonic()
        found, believed_until = await self._db.write(lambda connection: _rotate(connection, at_once))
        self._know(found, now)
        return believed_until


def _believed(known: Sequence[_Secret], now: float) -> list[bytes]:
    """The one that signs, then the others."""
    believed = [secret for secret in known if secret.expires_at is None or now < secret.expires_at]
    begun = [secret for secret in believed if secret.signs_from <= now] or believed
    signs = max(begun, key=lambda secret: secret.signs_from)
    return [signs.value, *(secret.value for secret in believed if secret is not signs)]


_table = schema.secrets
_is_ours = _table.c.name.startswith(_NAME)


def _all(connection: Connection) -> list[_Secret]:
    query = sa.select(_table).where(_is_ours).order_by(_table.c.name)
    rows = connection.execute(query).mappings()
    return [_Secret(row["value"], row["signs_from"], row["expires_at"]) for row in rows]


def _insert(connection: Connection, name: str, signs_from: float) -> None:
    value = secrets.token_bytes(32)
    connection.execute(sa.insert(_table).values(name=name, value=value, signs_from=signs_from))


def _ensure(connection: Connection) -> list[_Secret]:
    found = _all(connection)
    if not found:
        try:
            with connection.begin_nested():
                _insert(connection, _NAME, 0.0)
        except sa.exc.IntegrityError:
            pass  # another worker was faster
        found = _all(connection)
    return found


def _rotate(connection: Connection, at_once: bool) -> tuple[list[_Secret], float]:
    _ensure(connection)
    now = time.time()
    if at_once:
        signs_from = believed_until = now
        connection.execute(sa.delete(_table).where(_is_ours))
    else:
        signs_from = now + LEARN_SECONDS
        believed_until = signs_from + KEPT_SECONDS
        connection.execute(sa.delete(_table).where(_is_ours, _table.c.expires_at <= now))
        replaced = sa.update(_table).where(_is_ours, _table.c.expires_at.is_(None))
        connection.execute(replaced.values(expires_at=believed_until))
    _insert(connection, f"{_NAME}-{secrets.token_hex(8)}", signs_from)
    return _all(connection), believed_until
