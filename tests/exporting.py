"""A process that exports to Stripe and does nothing else, to be killed: ``python exporting.py DATABASE URL``."""

import asyncio
import signal
import sys

from billing_servers import SECRET
from millstream.database import Database
from millstream.exporters import Customers, Value
from millstream.exporters.delivery import Delivery
from millstream.exporters.exporter import Exporter
from millstream.exporters.stripe import MeterEvents
from millstream.ledger.exports import Exports

LEASE_SECONDS = 2.0  # what a test waits for after a kill


async def export(database: str, url: str) -> None:
    db = Database(database)
    form = MeterEvents(SECRET, "tokens", Value(["prompt_tokens", "completion_tokens"]), Customers("user"))
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    sending = Delivery(url, form.headers)
    async with Exporter("stripe", form, sending, Exports(db), per_second=1000, lease_seconds=LEASE_SECONDS):
        await stopped.wait()
    db.close()


if __name__ == "__main__":
    asyncio.run(export(sys.argv[1], sys.argv[2]))
