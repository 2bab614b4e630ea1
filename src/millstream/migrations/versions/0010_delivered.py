"""What exporters have delivered, added up, so that it can be compared with the rows."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_SUMS = (
    "streams",
    *("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "cache_write_tokens"),
    *("prompt_audio_tokens", "prompt_image_tokens", "completion_audio_tokens", "completion_image_tokens"),
    *("cost_picodollars", "price_picodollars"),
)


def upgrade() -> None:
    op.create_table(
        "exporters",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("since", sa.Float, nullable=False),
    )
    op.create_table(
        "delivered",
        sa.Column("exporter", sa.String(32), primary_key=True),
        sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _SUMS),
    )
