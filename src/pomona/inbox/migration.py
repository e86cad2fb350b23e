"""The database of an inbox brought to the newest form of its tables.

In: an engine. Out: a database with the tables of `pomona.inbox.schema`.
Why: a Pomona that is upgraded finds inboxes of older ones. They are brought up when they are opened, one process at a
time, and a database that is newer than the program is refused rather than guessed at.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from pomona.errors import StorageError
from pomona.inbox.schema import VERSION_TABLE

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_LOCK_NUMBER = 0x506F6D6F6E61  # "Pomona"; of the advisory lock that PostgreSQL keeps while tables change


def upgrade_database(engine: Engine, *, shown: str, revision: str = "head") -> None:
    """Bring a database to a revision; of several processes one does it, and the others wait.

    Parameters
    ----------
    engine : Engine
        Where; on SQLite its transactions begin with the lock for writing.
    shown : str
        What messages call the database; without its password.
    revision : str
        The newest where not given.

    Raises
    ------
    StorageError
        If the database has a revision that this Pomona does not know.
    """
    config = make_config()
    scripts = ScriptDirectory.from_config(config)
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK_NUMBER})
        heads = read_revisions(connection)
        known = {script.revision for script in scripts.walk_revisions()}
        if unknown := sorted(set(heads) - known):
            raise StorageError(
                f"{shown}: the inbox was written by a newer Pomona (its tables are of revision {unknown[0]}, this one "
                f"knows up to {scripts.get_current_head()}): upgrade Pomona"
            )
        if revision == "head" and set(heads) == set(scripts.get_heads()):
            return
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def read_revisions(connection: Connection) -> tuple[str, ...]:
    """Revisions that a database is at; none where it is empty."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_heads()


def make_config() -> Config:
    """Alembic's settings: the scripts in this package, and nothing from files."""
    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
