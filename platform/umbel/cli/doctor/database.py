"""Conditions of the registry's database."""

from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from umbel.cli.doctor.condition import Condition, Finding, failed, fine, warning
from umbel.cli.doctor.patient import Patient, Skip

_RESTORE = "restore a copy made by umbel db backup"


def revision(patient: Patient) -> Finding:
    from umbel.registry import migrate

    try:
        status = migrate.check(patient.database)
    except DatabaseError as error:
        return failed(f"it is no database that can be read: {str(error.orig).strip()}", _RESTORE)
    if status.ok:
        return fine(f"{status.url} at revision {status.current}")
    if status.current is None:
        return failed(f"{status.url} is empty or not umbel's", "umbel db upgrade")
    return failed(
        f"{status.url} is at revision {status.current}, this umbel needs {status.head}",
        "umbel db backup, then: umbel db upgrade",
    )


def integrity(patient: Patient) -> Finding:
    """SQLite's own look at every page and key; a PostgreSQL server has its own."""
    if not patient.reachable.is_sqlite:
        return fine("the server answers, and looks after itself")
    try:
        with patient.reachable.read() as session:
            found = [str(row[0]) for row in session.execute(text("PRAGMA integrity_check(1)"))]
            dangling = session.execute(text("PRAGMA foreign_key_check")).first()
    except DatabaseError as error:
        return failed(f"it cannot be read through: {str(error.orig).strip()}", _RESTORE)
    if found != ["ok"]:
        return failed(found[0].splitlines()[-1], _RESTORE)
    if dangling:
        return failed(f"a row of {dangling[0]} points nowhere", _RESTORE)
    return fine("every page and key is sound")


def journal(patient: Patient) -> Finding:
    """Without a write-ahead log readers wait for writers; SQLite falls back silently where a disk cannot do it."""
    if not patient.reachable.is_sqlite:
        raise Skip("for SQLite only")
    with patient.reachable.read() as session:
        mode = session.execute(text("PRAGMA journal_mode")).scalar_one()
    if mode != "wal":
        return warning(f"journal mode {mode}: this disk takes no write-ahead log", "put UMBEL_HOME on a local disk")
    return fine("write-ahead log: readers never wait")


CONDITIONS = (
    Condition("database", revision),
    Condition("integrity", integrity),
    Condition("journal", journal),
)
