"""What billing needs. Keys have owners, labels and an end, and their secrets are replaced with an overlap;
the streams of test keys are marked. Tokens of sound and of pictures are counted apart, and a count of ours
says with which vocabulary. Beside what a stream costs stands what is charged for it, which was the same until
now, and by which prices. Receipts say who ended a stream, and when its provider was asked.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    with op.batch_alter_table("keys") as keys:
        keys.add_column(sa.Column("expires_at", sa.Float))
        keys.add_column(sa.Column("last_used_at", sa.Float))
        keys.add_column(sa.Column("owner", sa.String(128)))
        keys.add_column(sa.Column("labels", sa.Text))
        keys.add_column(sa.Column("is_test", sa.Boolean, nullable=False, server_default=sa.false()))
    op.execute(sa.text("UPDATE keys SET is_test = true WHERE hint LIKE 'ms!_test!_%' ESCAPE '!'"))
    op.create_table(
        "old_digests",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False, index=True),
        sa.Column("good_until", sa.Float, nullable=False),
    )
    with op.batch_alter_table("streams") as streams:
        streams.add_column(sa.Column("is_test", sa.Boolean, nullable=False, server_default=sa.false()))
        for side in ("prompt", "completion"):
            for kind in ("audio", "image"):
                name = f"{side}_{kind}_tokens"
                streams.add_column(sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
        streams.add_column(sa.Column("tokenizer", sa.String(32)))
        streams.add_column(sa.Column("upstream_model", sa.String(256)))
        streams.add_column(sa.Column("called_at", sa.Float))
        streams.add_column(sa.Column("ended_by", sa.String(16)))
        streams.add_column(sa.Column("price_picodollars", sa.BigInteger))
        streams.add_column(sa.Column("unit_prices", sa.Text))
    op.execute(sa.text("UPDATE streams SET price_picodollars = cost_picodollars"))
    op.execute(
        sa.text("UPDATE streams SET is_test = true WHERE key_id IN (SELECT id FROM keys WHERE is_test)")
    )
