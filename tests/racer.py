"""A process that starts streams on one budget, all at once: `python -m racer URL NAME COUNT`.

Waits for a line before it starts, prints the ids of those that were, and settles them when it reads another line.
"""

import asyncio
import sys
from decimal import Decimal

from ledger_rows import opening, settlement
from millstream.database import Database
from millstream.errors import BudgetExceeded
from millstream.ledger import Ledger
from millstream.limits import Applied, Demand, Limit
from millstream.usage import Charge, Usage

BUDGET = Limit("tokens", "total", 100)
EACH = 10


async def race(url: str, name: str, count: int) -> None:
    db = Database(url)
    demand = Demand((Applied("k", BUDGET),), (EACH, 0), (EACH, 0))

    async def start(ledger: Ledger, stream_id: str) -> str | None:
        try:
            await ledger.open(opening(stream_id, demand=demand))
        except BudgetExceeded:
            return None
        return stream_id

    async with Ledger(db) as ledger:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        found = await asyncio.gather(*(start(ledger, f"{name}{i}") for i in range(count)))
        started = [one for one in found if one is not None]
        print(len(started), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        usage = Usage(EACH // 2, 0, "provider_final")
        for one in started:
            await ledger.settle(
                settlement(one, usage=usage, charge=Charge(Decimal(0), Decimal(0)), is_limited=True)
            )
    db.close()


if __name__ == "__main__":
    asyncio.run(race(sys.argv[1], sys.argv[2], int(sys.argv[3])))
