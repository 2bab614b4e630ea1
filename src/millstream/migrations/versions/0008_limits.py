"""Limits and budgets: what keys may use, how much of it is used, and what each running stream holds of it."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    with op.batch_alter_table("streams") as streams:
        streams.add_column(sa.Column("held", sa.Text))
    op.create_table(
        "key_limits",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("what", sa.String(16), primary_key=True),
        sa.Column("per", sa.String(16), primary_key=True),
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("each_user", sa.Boolean, primary_key=True),
        sa.Column("amount", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "counters",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("ends_at", sa.BigInteger),
        sa.Column("used", sa.BigInteger, nullable=False),
        sa.Column("reserved", sa.BigInteger, nullable=False),
    )
