"""The meter: usage of your own routes into the ledger, and sums out of it."""

import secrets
import time
from decimal import Decimal

from millstream.auth import check_payer
from millstream.errors import Misuse, printable
from millstream.ledger import Ledger, reports
from millstream.ledger.reports import Asked, Total
from millstream.ledger.rows import Opening, Settlement
from millstream.schema import RECORD_LENGTH
from millstream.usage import MAX_DOLLARS, TOKEN_KINDS, Charge, Usage

# Of one record: sums of an hour hold nine million times as many tokens, and nine times as many dollars.
_MAX_TOKENS = 10**12


class Meter:
    """Safe to use from any route. Streams of Millstream's own endpoints are metered without it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def record(
        self,
        key_id: str,
        usage: Usage | int,
        *,
        model: str = "",
        provider: str = "",
        user: str | None = None,
        cost_usd: Decimal | None = None,
        price_usd: Decimal | None = None,
        record_id: str | None = None,
        test: bool = False,
    ) -> str:
        """Adds a settled row and returns its id, when it is committed.

        A plain number is a count of completion tokens. Give a ``record_id`` of your own (up to 64
        characters) where a retry must not count twice: a second row of the same id raises
        ``sqlalchemy.exc.IntegrityError``. ``price_usd`` is what is charged, if
        that is not what it costs; without either the row counts as unpriced. ``test``
        usage is kept apart from what is billed, and so is that of a test key. Raises ``Misuse`` for what
        the ledger does not take: ``key_id`` is one as a ``Principal`` has, names are printable, and counts
        and sums are those of one answer.
        """
        check_payer(key_id)
        if record_id is not None and not (0 < len(record_id) <= RECORD_LENGTH and record_id.isprintable()):
            raise Misuse(f"a record_id has 1 to {RECORD_LENGTH} printable characters")
        if not isinstance(usage, Usage):
            usage = Usage(0, usage, "counted")
        for kind in TOKEN_KINDS:
            _check_count(kind, getattr(usage, kind))
        for name, text, most in (("model", model, 256), ("provider", provider, 64), ("user", user, 256)):
            _check_name(name, text, most)
        _check_dollars("cost_usd", cost_usd)
        _check_dollars("price_usd", price_usd)
        now = time.time()
        charge = Charge(cost_usd, cost_usd if price_usd is None else price_usd)
        stream_id = record_id or f"rec_{secrets.token_urlsafe(16)}"
        await self._ledger.record(
            Settlement(stream_id, "completed", None, None, usage, charge, None, now, provider, model),
            Opening(stream_id, key_id, key_id, model, provider, now, user, test=test),
        )
        return stream_id

    async def totals(
        self,
        by: str = "key",
        *,
        since: float | None = None,
        until: float | None = None,
        zone: str = "UTC",
        key_id: str | None = None,
        owner: str | None = None,
        test: bool = False,
        percentiles: bool = False,
    ) -> list[Total]:
        """Sums by key, owner of a key, model, provider, end user, hour, day or month of ``zone``, or several
        of these with commas between them, such as ``day,model``. ``since`` and ``until`` are Unix seconds.
        ``test`` gives those of test keys, which are in no other sums, and ``percentiles`` those of the time
        to the first event. Raises ``InvalidRequest``.
        """
        asked = Asked(reports.dimensions(by), since, until, zone, key_id, owner, test, percentiles)
        return await self._ledger.totals(asked)


def _check_count(kind: str, count: int) -> None:
    is_count = isinstance(count, int) and not isinstance(count, bool)
    if not is_count or not 0 <= count <= _MAX_TOKENS:
        raise Misuse(f"{kind} is a whole number from 0 to {_MAX_TOKENS}, not {_shown(count)}")


def _check_name(name: str, text: str | None, most: int) -> None:
    if text is not None and (len(text) > most or not text.isprintable()):
        raise Misuse(f"{name} has up to {most} printable characters, not {_shown(text)}")


def _check_dollars(name: str, dollars: Decimal | None) -> None:
    if dollars is None:
        return
    is_sum = isinstance(dollars, (Decimal, int)) and Decimal(dollars).is_finite()
    if not is_sum or not 0 <= dollars <= MAX_DOLLARS:
        raise Misuse(f"{name} is a Decimal from 0 to {MAX_DOLLARS}, not {_shown(dollars)}")


def _shown(value: object) -> str:
    return f"'{printable(str(value))}'"
