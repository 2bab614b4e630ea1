"""Corrections of rows that others have ended, and an index for how many streams an owner has open."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("streams") as streams:
        streams.add_column(sa.Column("corrected_at", sa.Float))
    running = sa.text("worker_id IS NOT NULL")
    op.create_index(
        "streams_open_by_owner", "streams", ["owner_id"], sqlite_where=running, postgresql_where=running
    )
