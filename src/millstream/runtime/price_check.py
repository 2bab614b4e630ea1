"""The check of prices: which models are in use of which nobody knows what to charge?"""

from msgspec.structs import replace

from millstream.database import Database
from millstream.ledger import Ledger
from millstream.ledger.reports import Unpriced
from millstream.prices import Prices
from millstream.runtime.providers import prices
from millstream.settings import Settings
from millstream.usage import UNKNOWN, Charge, Usage

# With room for each kind of tokens on both sides, beside text.
_SAMPLE = Usage(3, 3, "counted")


async def unpriced(settings: Settings, db: Database, since: float | None, now: float) -> list[Unpriced]:
    """Models of streams that were created from ``since`` on and have no price, and would have none at ``now``
    either, in the tier that they were answered in and with the kinds of tokens that they had.
    """
    known = prices(settings)
    found = await Ledger(db).unpriced(since)
    return [one for one in found if (await _charge(settings, known, one, now)).price is None]


async def _charge(settings: Settings, known: Prices, one: Unpriced, now: float) -> Charge:
    provider = settings.providers.get(one.provider)
    price_id = None if provider is None else provider.price_id
    tariff = await known.find(one.model, one.provider, price_id, one.upstream_model or one.model)
    sample = replace(_SAMPLE, **dict.fromkeys(one.kinds, 1))
    return UNKNOWN if tariff is None else tariff.charge(sample, now, one.tier)
