"""Shards of hourly sums that connections do not share: two that write the same rows, each in the order of its
own streams, may wait for each other. The number is the largest prime that the column holds.
"""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        return  # which has one shard
    for name in ("streams_settled", "streams_recorded", "streams_corrected"):
        op.execute(
            "DO $$ BEGIN EXECUTE REPLACE("
            f"pg_get_functiondef('millstream_{name}'::regproc), "
            "'MOD(pg_backend_pid(), 32)', 'MOD(pg_backend_pid(), 32749)'); END $$"
        )
