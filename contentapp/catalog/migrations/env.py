"""What Alembic runs: the migrations, on the connection and in the transaction that `migration.upgrade` has opened."""

from alembic import context

from contentapp.catalog.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite alters little in place
)
with context.begin_transaction():
    context.run_migrations()
