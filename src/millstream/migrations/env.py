"""Run by alembic: applies the revisions to the engine that ``database.migrate`` hands over, all at once."""

from alembic import context

from millstream.database import migrate_alone
from millstream.schema import metadata

with context.config.attributes["engine"].connect() as connection:
    context.configure(
        connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True
    )
    with context.begin_transaction():
        migrate_alone(connection)
        context.run_migrations()
