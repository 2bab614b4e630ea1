"""What is on its way to exporters."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "exports",
        sa.Column("exporter", sa.String(32), primary_key=True),
        sa.Column("stream_id", sa.String(64), primary_key=True),
        sa.Column("is_correction", sa.Boolean, primary_key=True),
        sa.Column("settled_at", sa.Float, nullable=False),
        sa.Column("due_at", sa.Float),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("sent_at", sa.Float),
        sa.Column("last_error", sa.String(256)),
        sa.Column("replaced", sa.Text),
    )
    op.create_index("exports_due", "exports", ["exporter", "due_at"])
