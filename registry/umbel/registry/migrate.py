"""The shape of the database over time: which revision it has, bringing it to the newest, and copies of it.

Alembic is imported where something is migrated: whoever only opens a registry starts a quarter of a second sooner.
Migrations run inside one transaction that holds the write lock, so of N processes that start at once one migrates
and the others find it done; a migration that fails leaves nothing behind.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, make_url, text
from sqlalchemy.exc import InterfaceError, OperationalError

from umbel.core.errors import Conflict, Unavailable, UsageError
from umbel.registry.database import Database, unreachable
from umbel.registry.records import DatabaseStatus

if TYPE_CHECKING:
    from alembic.config import Config

NEWEST = "0001"
"""The revision that this umbel needs: the last of ``migrations/versions``."""
_KEPT_IN = "alembic_version"
_ADVISORY_LOCK = 0x756D62656C  # "umbel": one migration at a time on PostgreSQL


def check(database: Database) -> DatabaseStatus:
    """Changes nothing."""
    try:
        with database.engine.connect() as connection:
            current = _current(connection)
    except (OperationalError, InterfaceError) as error:
        raise unreachable(error) from error
    return DatabaseStatus(current, NEWEST, database.engine.url.render_as_string(hide_password=True))


def _current(connection: Connection) -> str | None:
    """None where nothing was ever migrated."""
    if not inspect(connection).has_table(_KEPT_IN):
        return None
    return connection.execute(text(f"SELECT version_num FROM {_KEPT_IN}")).scalar()


def upgrade(database: Database, revision: str = "head") -> DatabaseStatus:
    """Brings the database to ``revision``. Safe to call from many processes at once."""
    from alembic import command

    with _migrating(database) as connection:
        command.upgrade(_config(connection), revision)
    return check(database)


def ensure(database: Database) -> None:
    """Creates an empty database's tables; refuses one of another revision rather than guess at its owner's wish."""
    status = check(database)
    if status.current is None and not _foreign_tables(database):
        status = upgrade(database)
    if not status.ok:
        raise _other_revision(status)


def backup(database: Database, target: Path) -> Path:
    """A consistent copy of a SQLite registry while others write to it. The store is copied by any file tool."""
    if not database.is_sqlite:
        raise UsageError(
            "backup copies SQLite registries only.", code="not_sqlite", hint="pg_dump --format=custom DATABASE"
        )
    if target.exists():
        raise Conflict(f"{target} exists.", code="file_exists", hint="choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    source = make_url(database.engine.url).database or ""
    with closing(sqlite3.connect(source)) as origin, closing(sqlite3.connect(target)) as copy:
        origin.backup(copy)
    return target


def _other_revision(status: DatabaseStatus) -> Unavailable:
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    known = status.current is None or status.current in {script.revision for script in scripts}
    if not known:
        return Unavailable(
            f"the database is at revision {status.current}, which is newer than this umbel knows ({status.head}).",
            code="database_too_new",
            hint="pip install --upgrade umbel",
        )
    return Unavailable(
        f"the database is at revision {status.current}, this umbel needs {status.head}.",
        code="database_outdated",
        hint="umbel db backup, then: umbel db upgrade",
    )


def _foreign_tables(database: Database) -> list[str]:
    """Tables of somebody else: a database that is not ours is never written to unasked."""
    return [name for name in inspect(database.engine).get_table_names() if name != _KEPT_IN]


@contextmanager
def _migrating(database: Database) -> Iterator[Connection]:
    with database.engine.connect().execution_options(umbel_write=True) as connection:
        if database.is_sqlite:  # batch mode rebuilds tables; the pragma does nothing inside a transaction
            _pragma_foreign_keys(connection, "OFF")
        try:
            with connection.begin():
                if not database.is_sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
                yield connection
                if database.is_sqlite and connection.execute(text("PRAGMA foreign_key_check")).first():
                    raise AssertionError("the migration left rows that point nowhere; it was undone")
        finally:
            if database.is_sqlite:
                _pragma_foreign_keys(connection, "ON")


def _pragma_foreign_keys(connection: Connection, value: str) -> None:
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.execute(f"PRAGMA foreign_keys = {value}")


def _config(connection: Connection | None = None) -> "Config":
    from alembic.config import Config

    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
