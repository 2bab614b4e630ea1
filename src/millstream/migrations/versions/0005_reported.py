"""What a stream's provider said of it: its finish reason, its usage object and its own price."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("streams") as streams:
        streams.add_column(sa.Column("provider_finish_reason", sa.String(64)))
        streams.add_column(sa.Column("provider_usage", sa.Text))
        streams.add_column(sa.Column("provider_cost_picodollars", sa.BigInteger))
