"""Signed credentials for browsers: tokens that start and follow streams, tickets for one stream.

Both are JWTs (RFC 7519) signed with a secret that all workers of an installation share. Nothing about them is
stored: what one may do is written into it.
"""

import base64
import hmac
import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jwt
from msgspec import Struct

from millstream.errors import Unauthorized
from millstream.limits import Limit

Purpose: TypeAlias = Literal["follow", "cancel"]

FIRST_USE_SECONDS = 60
_ALGORITHM = "HS256"
_LEEWAY_SECONDS = 5  # between the clocks of workers
_PROOF_BYTES = 9  # 12 characters in each frame; who guesses has to ask the server each time


class BrowserToken(Struct, frozen=True):
    """What the bearer of a token may do. ``models`` is empty where any model will do; ``max_tokens`` caps
    each answer, ``max_streams`` how many are open at a time; ``limits`` are those of its end user.
    """

    id: str
    key_id: str
    user: str | None
    models: tuple[str, ...]
    max_streams: int
    max_tokens: int | None
    expires_at: int
    limits: tuple[Limit, ...] = ()


class Signer:
    """Signs with the first of ``secrets``; believes what any of them has signed. Every refusal is
    ``Unauthorized``, which says nothing about its cause.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._secrets = secrets

    def token(
        self,
        key_id: str,
        *,
        user: str | None,
        models: tuple[str, ...],
        max_streams: int,
        max_tokens: int | None,
        seconds: int,
        limits: tuple[Limit, ...] = (),
    ) -> tuple[str, BrowserToken]:
        expires_at = int(time.time()) + seconds
        made = BrowserToken(
            secrets.token_urlsafe(12), key_id, user, models, max_streams, max_tokens, expires_at, limits
        )
        claims = {
            "aud": "token",
            "jti": made.id,
            "iss": key_id,
            "sub": user,
            "models": models,
            "max_streams": max_streams,
            "max_tokens": max_tokens,
            "limits": [(one.what, one.per, one.amount, one.model) for one in limits] or None,
            "exp": expires_at,
        }
        return self._sign({name: value for name, value in claims.items() if value is not None}), made

    def check_token(self, text: str) -> BrowserToken:
        claims = self._claims(text, "token")
        return BrowserToken(
            claims["jti"],
            claims["iss"],
            claims.get("sub"),
            tuple(claims["models"]),
            claims["max_streams"],
            claims.get("max_tokens"),
            claims["exp"],
            tuple(Limit(*one) for one in claims.get("limits", ())),
        )

    def ticket(self, stream_id: str, owner_id: str, purpose: Purpose, seconds: float) -> str:
        """For ``seconds``. A ticket to follow has to be used within ``FIRST_USE_SECONDS``; after that it only
        resumes, as the browser's EventSource does with the URL that it was given: with a ``proof``.
        """
        now = int(time.time())
        return self._sign(
            {"aud": purpose, "sub": stream_id, "iss": owner_id, "iat": now, "exp": now + int(seconds)}
        )

    def check_ticket(self, text: str, stream_id: str, purpose: Purpose, *, proof: str = "") -> str:
        """The owner of the stream, for whom the ticket stands. ``proof`` is what its bearer has to show of
        what it was sent, if the ticket is late.
        """
        claims = self._claims(text, purpose)
        if claims["sub"] != stream_id:
            raise Unauthorized
        late = time.time() - claims["iat"] > FIRST_USE_SECONDS + _LEEWAY_SECONDS
        proofs = [_proof(secret, text) for secret in self._secrets]
        proven = any(hmac.compare_digest(proof.encode(), right.encode()) for right in proofs)
        if purpose == "follow" and late and not proven:
            raise Unauthorized
        owner_id: str = claims["iss"]
        return owner_id

    def proof(self, ticket: str) -> str:
        """What stands in the ids of the frames that the bearer of ``ticket`` is sent. Who has no more than
        the ticket cannot know it, though they can guess a position.
        """
        return _proof(self._secrets[0], ticket)

    def _sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self._secrets[0], _ALGORITHM)

    def _claims(self, text: str, audience: str) -> dict[str, Any]:
        for secret in self._secrets:
            try:
                return jwt.decode(
                    text,
                    secret,
                    [_ALGORITHM],
                    audience=audience,
                    leeway=_LEEWAY_SECONDS,
                    options={"require": ["exp", "aud", "iss"]},
                )
            except jwt.InvalidSignatureError:
                continue  # another one may have signed it
            except jwt.InvalidTokenError as error:
                raise Unauthorized from error
        raise Unauthorized


def _proof(secret: bytes, ticket: str) -> str:
    # No JWT begins with these words, so that neither is ever taken for the other.
    mac = hmac.digest(secret, b"resumes " + ticket.encode(), "sha256")
    return base64.urlsafe_b64encode(mac[:_PROOF_BYTES]).decode()


def is_signed(text: str) -> bool:
    """Whether ``text`` looks like a JWT, which no API key does."""
    return text.startswith("eyJ")
