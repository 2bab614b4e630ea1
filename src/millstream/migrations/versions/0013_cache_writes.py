"""What a cache keeps for an hour, which costs more, is counted apart from the rest that was written to it."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column(
        "streams", sa.Column("cache_write_1h_tokens", sa.BigInteger, nullable=False, server_default="0")
    )
