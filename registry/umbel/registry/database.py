"""The registry's database: SQLite in the home by default, PostgreSQL by ``UMBEL_DATABASE_URL``.

SQLite is set up so that two writers queue instead of failing: WAL, and BEGIN IMMEDIATE for every transaction that
writes (one that began as a reader and then writes gets "database is locked" at once, whatever the timeout).
"""

import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, TimeoutError
from sqlalchemy.orm import Session

from umbel.core.errors import ConfigError, Unavailable
from umbel.core.folders import make_folder
from umbel.registry.models import Base

T = TypeVar("T")

BUSY_TIMEOUT_MS = 30_000
ATTEMPTS = 5
"""How often a transaction is tried that lost a race."""

_LOST_RACE = ("40001", "40P01")  # PostgreSQL: serialization failure, deadlock


class Database:
    """Opens sessions. Thread-safe; one per process."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that must not write."""
        with _explained(), Session(self.engine, autoflush=False, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction that holds the write lock (SQLite) from its first statement; commits at the end."""
        with (
            _explained(),
            self.engine.connect().execution_options(umbel_write=True) as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            yield session
            session.commit()

    def transact(self, work: Callable[[Session], T]) -> T:
        """``work`` in a write transaction, again from the start when it lost a race. It must change nothing but SQL."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self.write() as session:
                    return work(session)
            except DBAPIError as error:
                if attempt == ATTEMPTS or not _lost_race(error):
                    raise
                time.sleep(random.uniform(0, 0.01 * attempt))
        raise AssertionError("unreachable")


def upsert(session: Session, table: type[Base], values: dict[str, Any], *, keep: Iterable[str] = ()) -> None:
    """Inserts one row, or sets it where its primary key is there already, all columns but the key and ``keep``.

    Either way the row is locked until the transaction ends.
    """
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    key = [column.name for column in inspect(table).primary_key]
    statement = dialect.insert(table).values(values)
    changes = {name: statement.excluded[name] for name in values if name not in {*key, *keep}}
    changes = changes or {key[0]: statement.excluded[key[0]]}  # to "do nothing" would not lock
    session.execute(statement.on_conflict_do_update(index_elements=key, set_=changes))


def _lost_race(error: DBAPIError) -> bool:
    return isinstance(error, IntegrityError) or getattr(error.orig, "sqlstate", None) in _LOST_RACE


@contextmanager
def _explained() -> Iterator[None]:
    """A database that is down or locked becomes an error that says so; everything else passes."""
    try:
        yield
    except (OperationalError, InterfaceError, TimeoutError) as error:
        if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _LOST_RACE:
            raise
        raise unreachable(error) from error


def unreachable(error: DBAPIError | TimeoutError) -> Unavailable:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return Unavailable(
        f"the registry's database did not answer: {str(cause).strip()}.",
        code="database_unavailable",
        hint="check that it runs and that its disk is neither full nor read-only (`umbel db check`), then try again",
        retry_after=1.0,
    )


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(Path(parsed.database or ""), str(parsed))
    if parsed.get_backend_name() != "postgresql":
        raise ConfigError(
            f"UMBEL_DATABASE_URL names {parsed.drivername!r}, which the registry does not know.",
            code="unknown_database",
            hint="use sqlite:///path/registry.db or postgresql://user@host/database",
        )
    try:
        return create_engine(parsed, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise ConfigError(
            "PostgreSQL needs psycopg.", code="missing_extra", hint="pip install 'umbel[postgres]'"
        ) from error


def _sqlite(path: Path, url: str) -> Engine:
    make_folder(path.parent, "UMBEL_DATABASE_URL")
    engine = create_engine(url)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # sqlite3 must not begin transactions by its own rules
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")  # a commit that was confirmed survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")


def _use_wal(connection: Any) -> None:
    """The switch wants the file to itself and, unlike other statements, does not queue for it.

    Of several processes that open a fresh database at once all but one are told "locked" and must look again.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(0.001, 0.02))


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("umbel_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
