"""Workers, browser tokens and idempotency keys."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("beat", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.LargeBinary(64), nullable=False),
    )
    op.drop_index("streams_running", "streams")
    with op.batch_alter_table("streams") as streams:
        streams.add_column(sa.Column("owner_id", sa.String(320), nullable=False, server_default=""))
        streams.add_column(sa.Column("token_id", sa.String(32)))
        streams.add_column(sa.Column("worker_id", sa.String(32)))
        streams.add_column(sa.Column("idempotency_key", sa.String(128)))
        streams.add_column(sa.Column("request_digest", sa.LargeBinary(32)))
    # Whoever ran these is not a worker that anybody knows: the first sweep settles them.
    op.execute("UPDATE streams SET worker_id = 'unknown' WHERE status = 'running'")
    op.execute("UPDATE streams SET owner_id = key_id")
    with op.batch_alter_table("streams") as streams:
        streams.alter_column("owner_id", server_default=None)
        streams.drop_column("alive_at")
    op.create_index("streams_running", "streams", ["worker_id"])
    given = sa.text("idempotency_key IS NOT NULL")
    op.create_index(
        "streams_by_idempotency_key",
        "streams",
        ["owner_id", "idempotency_key"],
        unique=True,
        sqlite_where=given,
        postgresql_where=given,
    )
