"""Room for the id of whoever pays where an application has a login of its own, such as a UUID. SQLite holds
nobody to the length of a column, and would write the table anew.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        return
    for table in ("streams", "key_hours", "user_hours"):
        op.alter_column(table, "key_id", type_=sa.String(128))
