"""What Alembic runs: the migrations, on the connection that it is given, inside that connection's transaction."""

from __future__ import annotations

from alembic import context

from pomona.inbox.schema import VERSION_TABLE, Base

if hasattr(context, "config"):  # there is none where nobody migrates, and the module is merely imported
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        transactional_ddl=True,
    )
    context.run_migrations()
