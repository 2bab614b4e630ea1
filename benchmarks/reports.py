"""How long reports take where a month has many streams.

    python benchmarks/reports.py [--rows 10000000] [--database sqlite:///big.db]

Fills the database with settled streams of November 2026, unless there are some in it, and asks for the
reports of that month: milliseconds of the first answer, and of the best of five. Ten million rows take about
half an hour, and 5 GB.
"""

import argparse
import calendar
import random
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from millstream.database import Database
from millstream.ledger import reports
from millstream.ledger.reports import Asked
from millstream.schema import streams
from millstream.usage import TOKEN_KINDS

_BEGIN, _END = (calendar.timegm((2026, month, 1, 0, 0, 0)) for month in (11, 12))
_KEYS, _USERS, _MODELS = 20, 2000, 8
_BATCH = 2000

_REPORTS = {
    "day, model": Asked(("day", "model"), _BEGIN, _END),
    "day, model, in Paris": Asked(("day", "model"), _BEGIN, _END, "Europe/Paris"),
    "day, model, in Kolkata": Asked(("day", "model"), _BEGIN, _END, "Asia/Kolkata"),
    "day, model, with percentiles": Asked(("day", "model"), _BEGIN, _END, percentiles=True),
    "day, model, not from hour to hour": Asked(("day", "model"), _BEGIN + 1000.5, _END - 500),
    "day, model, of one key": Asked(("day", "model"), _BEGIN, _END, key_id="key_3"),
    "month, key": Asked(("month", "key"), _BEGIN, _END),
}


def _row(number: int, at: float, chance: random.Random) -> dict[str, Any]:
    key, user = f"key_{int(chance.random() ** 2 * _KEYS)}", f"user_{chance.randrange(_USERS)}"
    prompt, completion = chance.randrange(100, 5000), chance.randrange(1, 800)
    picodollars = prompt * 2_500_000 + completion * 10_000_000
    return {
        "id": f"str_{number:010d}",
        "owner_id": f"{key}/{user}",
        "key_id": key,
        "user": user,
        "model": f"model-{int(chance.random() ** 2 * _MODELS)}",
        "provider": "openai",
        "status": "completed",
        "finish_reason": "stop",
        "usage_source": "provider_final",
        "created_at": at,
        "first_event_at": at + chance.expovariate(1.5),
        "ended_at": at + 5,
        "ended_by": "provider",
        "is_test": False,
        **dict.fromkeys(TOKEN_KINDS, 0),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cost_picodollars": picodollars,
        "price_picodollars": picodollars,
    }


def _batches(rows: int) -> Iterator[list[dict[str, Any]]]:
    chance = random.Random(1)  # noqa: S311  # no secret
    for first in range(0, rows, _BATCH):
        numbers = range(first, min(first + _BATCH, rows))
        yield [_row(number, _BEGIN + number * (_END - _BEGIN) / rows, chance) for number in numbers]


def _is_empty(connection: Connection) -> bool:
    return connection.scalar(sa.select(streams.c.id).limit(1)) is None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--database", default="sqlite:///big.db")
    args = parser.parse_args()
    db = Database(args.database)
    db.migrate()
    if db.run(_is_empty):
        began = time.monotonic()
        for rows in _batches(args.rows):
            db.run(partial(Connection.execute, statement=sa.insert(streams), parameters=rows))
        print(f"{args.rows} rows in {time.monotonic() - began:.0f} s", flush=True)
    for name, asked in _REPORTS.items():
        took = []
        for _ in range(5):
            began = time.monotonic()
            found = db.run(partial(reports.totals, asked=asked))
            took.append(1000 * (time.monotonic() - began))
        print(f"{name}: {took[0]:.0f} ms, then {min(took):.0f}; {len(found)} groups", flush=True)
    db.close()


if __name__ == "__main__":
    main()
