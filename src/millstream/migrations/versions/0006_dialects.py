"""What other people's formats bring: a client's name for its conversation, by which a stream is found again,
prompt tokens that a provider wrote to its cache, which some bill apart, and the deployments that were asked.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    with op.batch_alter_table("streams") as streams:
        streams.add_column(sa.Column("attempts", sa.Text))
        streams.add_column(sa.Column("thread_id", sa.String(128)))
        streams.add_column(sa.Column("cache_write_tokens", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index(
        "streams_by_thread",
        "streams",
        ["owner_id", "thread_id", "created_at"],
        sqlite_where=sa.text("thread_id IS NOT NULL"),
        postgresql_where=sa.text("thread_id IS NOT NULL"),
    )
