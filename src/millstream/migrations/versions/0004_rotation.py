"""Signing secrets are replaced: from when on each signs, and until when it is believed."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("secrets") as secrets:
        secrets.add_column(sa.Column("signs_from", sa.Float, nullable=False, server_default="0"))
        secrets.add_column(sa.Column("expires_at", sa.Float))
    with op.batch_alter_table("secrets") as secrets:
        secrets.alter_column("signs_from", server_default=None)
