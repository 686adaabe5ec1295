"""Run by alembic. The connection comes from ``umbel.registry.migrate``, which also holds the lock."""

from alembic import context

from umbel.registry.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter tables in place
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
