"""Run by alembic: applies the revisions to the engine that ``database.migrate`` hands over."""

from alembic import context

from millstream.database import metadata

with context.config.attributes["engine"].connect() as connection:
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
