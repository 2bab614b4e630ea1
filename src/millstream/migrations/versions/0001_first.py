"""Keys and streams."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("hint", sa.String(32), nullable=False),
        sa.Column("scopes", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_index("ix_keys_revoked_at", "keys", ["revoked_at"])
    op.create_table(
        "streams",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("user", sa.String(256)),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("provider", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("finish_reason", sa.String(24)),
        sa.Column("error_code", sa.String(32)),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
        sa.Column("usage_source", sa.String(24), nullable=False),
        sa.Column("cost_picodollars", sa.BigInteger),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("first_event_at", sa.Float),
        sa.Column("ended_at", sa.Float),
        sa.Column("alive_at", sa.Float),
    )
    op.create_index("streams_by_key", "streams", ["key_id", "created_at"])
    op.create_index("streams_by_time", "streams", ["created_at"])
    op.create_index("streams_running", "streams", ["alive_at"])


def downgrade() -> None:
    op.drop_table("streams")
    op.drop_table("keys")
