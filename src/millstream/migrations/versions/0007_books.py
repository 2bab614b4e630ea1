"""What billing needs. Keys have owners, labels and an end, and their secrets are replaced with an overlap;
the streams of test keys are marked. Tokens of sound and of pictures are counted apart, and a count of ours
says with which vocabulary. Beside what a stream costs stands what is charged for it, which was the same until
now, and by which prices. Receipts say who ended a stream, and when its provider was asked.

Hourly sums are kept by triggers: whatever settles a row, a worker of the version before included, adds it to
the sums in the same transaction, and what settles nothing does not.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_SHARDS = 32
_TOKENS = (
    *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cache_write_tokens"),
    *("prompt_audio_tokens", "prompt_image_tokens", "completion_audio_tokens", "completion_image_tokens"),
)
_BOUNDS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 60)


def _sums(row: str) -> dict[str, str]:
    """What a stream adds to each sum; ``row`` is how its columns are reached."""
    waited = f"{row}first_event_at - {row}created_at"
    lower, upper = (None, *_BOUNDS), (*_BOUNDS, None)
    first_events = [
        " AND ".join(
            [
                f"{row}first_event_at IS NOT NULL",
                *([] if low is None else [f"{waited} > {low}"]),
                *([] if high is None else [f"{waited} <= {high}"]),
            ]
        )
        for low, high in zip(lower, upper, strict=True)
    ]
    counted = {
        "cancelled": f"{row}status = 'cancelled'",
        "failed": f"{row}status IN ('failed', 'interrupted')",
        "estimated": f"{row}usage_source <> 'provider_final'",
        "uncosted": f"{row}cost_picodollars IS NULL",
        "unpriced": f"{row}price_picodollars IS NULL",
    }
    buckets = {f"first_event_{number}": condition for number, condition in enumerate(first_events)}

    def ones(conditions: dict[str, str]) -> dict[str, str]:
        return {name: f"CASE WHEN {condition} THEN 1 ELSE 0 END" for name, condition in conditions.items()}

    return {
        "streams": "1",
        **ones(counted),
        **{name: f"{row}{name}" for name in _TOKENS},
        **{name: f"COALESCE({row}{name}, 0)" for name in ("cost_picodollars", "price_picodollars")},
        **ones(buckets),
    }


def _names(row: str, dialect: str, shard: str) -> dict[str, dict[str, str]]:
    """For each table: its key, and what that is of a stream."""
    hours = f"{row}created_at / 3600"
    whole = f"CAST({hours} AS INTEGER)" if dialect == "sqlite" else f"FLOOR({hours})"
    key = {"key_id": f"{row}key_id"}
    user = {'"user"': f"COALESCE({row}\"user\", '')"}
    more = {name: f"{row}{name}" for name in ("model", "provider", "is_test")} | {"shard": shard}
    of_whom: dict[str, dict[str, str]] = {"hours": {}, "key_hours": key, "user_hours": {**key, **user}}
    return {table: {"hour": whole, **whose, **more} for table, whose in of_whom.items()}


def _add(row: str, sign: int, dialect: str) -> str:
    """Statements that add a stream to the sums, or take it away."""
    shard = "0" if dialect == "sqlite" else f"MOD(pg_backend_pid(), {_SHARDS})"
    statements = []
    for table, key in _names(row, dialect, shard).items():
        sums = {name: f"{sign} * ({value})" for name, value in _sums(row).items()}
        added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in sums)
        columns, values = ", ".join([*key, *sums]), ", ".join([*key.values(), *sums.values()])
        statements.append(
            f"INSERT INTO {table} ({columns}) VALUES ({values}) "  # noqa: S608  # names that stand here
            f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {added};"
        )
    return "\n".join(statements)


# When each trigger fires, and which rows it adds and takes away.
_TRIGGERS = {
    "streams_settled": (
        "AFTER UPDATE OF status",
        "OLD.status = 'running' AND NEW.status <> 'running'",
        {"NEW.": 1},
    ),
    "streams_recorded": ("AFTER INSERT", "NEW.status <> 'running'", {"NEW.": 1}),
    "streams_corrected": (
        "AFTER UPDATE OF corrected_at",
        "OLD.status <> 'running' AND OLD.corrected_at IS NULL AND NEW.corrected_at IS NOT NULL",
        {"OLD.": -1, "NEW.": 1},
    ),
}


def _create_triggers(dialect: str) -> None:
    for name, (event, condition, rows) in _TRIGGERS.items():
        adds = "\n".join(_add(row, sign, dialect) for row, sign in rows.items())
        if dialect == "sqlite":
            op.execute(
                f"CREATE TRIGGER {name} {event} ON streams FOR EACH ROW WHEN {condition} BEGIN\n{adds}\nEND"
            )
            continue
        op.execute(
            f"CREATE OR REPLACE FUNCTION millstream_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN\n"
            f"{adds}\nRETURN NULL;\nEND $$"
        )
        op.execute(
            f"CREATE TRIGGER {name} {event} ON streams FOR EACH ROW WHEN ({condition}) "
            f"EXECUTE FUNCTION millstream_{name}()"
        )


def _create_sums(dialect: str) -> None:
    for table, key in _names("", dialect, "0").items():
        sums = _sums("")
        lengths = {"key_id": 32, '"user"': 256}
        of_whom = {name.strip('"'): length for name, length in lengths.items() if name in key}
        op.create_table(
            table,
            sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
            *(sa.Column(name, sa.String(length), primary_key=True) for name, length in of_whom.items()),
            sa.Column("model", sa.String(256), primary_key=True),
            sa.Column("provider", sa.String(64), primary_key=True),
            sa.Column("is_test", sa.Boolean, primary_key=True),
            sa.Column("shard", sa.SmallInteger, primary_key=True, autoincrement=False),
            *(sa.Column(name, sa.BigInteger, nullable=False) for name in sums),
            sqlite_with_rowid=False,
        )
        if of_whom:
            op.create_index(f"{table}_by_key", table, ["key_id", "hour"])
        columns = ", ".join([*key, *sums])
        found = ", ".join([*key.values(), *(f"SUM({value})" for value in sums.values())])
        places = ", ".join(str(number) for number in range(1, len(key) + 1))
        op.execute(
            f"INSERT INTO {table} ({columns}) SELECT {found} FROM streams "  # noqa: S608  # as above
            f"WHERE status <> 'running' GROUP BY {places}"
        )


def upgrade() -> None:
    with op.batch_alter_table("keys") as keys:
        keys.add_column(sa.Column("expires_at", sa.Float))
        keys.add_column(sa.Column("last_used_at", sa.Float))
        keys.add_column(sa.Column("owner", sa.String(128)))
        keys.add_column(sa.Column("labels", sa.Text))
        keys.add_column(sa.Column("is_test", sa.Boolean, nullable=False, server_default=sa.false()))
    op.execute(sa.text("UPDATE keys SET is_test = true WHERE hint LIKE 'ms!_test!_%' ESCAPE '!'"))
    op.create_table(
        "old_digests",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False, index=True),
        sa.Column("good_until", sa.Float, nullable=False),
    )
    with op.batch_alter_table("streams") as streams:
        streams.add_column(sa.Column("is_test", sa.Boolean, nullable=False, server_default=sa.false()))
        for side in ("prompt", "completion"):
            for kind in ("audio", "image"):
                name = f"{side}_{kind}_tokens"
                streams.add_column(sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
        streams.add_column(sa.Column("tokenizer", sa.String(32)))
        streams.add_column(sa.Column("upstream_model", sa.String(256)))
        streams.add_column(sa.Column("called_at", sa.Float))
        streams.add_column(sa.Column("ended_by", sa.String(16)))
        streams.add_column(sa.Column("price_picodollars", sa.BigInteger))
        streams.add_column(sa.Column("unit_prices", sa.Text))
    op.execute(sa.text("UPDATE streams SET price_picodollars = cost_picodollars"))
    op.execute(
        sa.text("UPDATE streams SET is_test = true WHERE key_id IN (SELECT id FROM keys WHERE is_test)")
    )
    dialect = op.get_bind().dialect.name
    _create_sums(dialect)
    _create_triggers(dialect)
