import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, inspect, text

from umbel.core.errors import ConfigError, Conflict, Unavailable, UsageError
from umbel.core.settings import Settings
from umbel.registry import Registry, migrate
from umbel.registry.database import Database
from umbel.registry.models import Base

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def database(fresh_settings):
    fresh_settings.home.mkdir()
    database = Database(fresh_settings.database_url)
    yield database
    database.close()


def test_the_migrations_make_exactly_what_the_models_say(database):
    migrate.upgrade(database)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_every_check_of_the_models_is_in_the_database(database):
    migrate.upgrade(database)
    found = inspect(database.engine)
    for table in Base.metadata.sorted_tables:
        wanted = {constraint.name for constraint in table.constraints if isinstance(constraint, CheckConstraint)}
        assert {check["name"] for check in found.get_check_constraints(table.name)} == wanted


def test_going_down_leaves_nothing_and_up_again_works(database):
    migrate.upgrade(database)
    with database.engine.connect() as connection, connection.begin():
        command.downgrade(migrate._config(connection), "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    assert migrate.upgrade(database).ok


def test_the_newest_revision_is_the_last_migration():
    assert ScriptDirectory.from_config(migrate._config()).get_current_head() == migrate.NEWEST


OPENED = """
import sys
from umbel.registry import Registry

with Registry.open() as registry:
    registry.adapters.list()
print("alembic" in sys.modules)
"""


def test_a_registry_that_is_ready_is_opened_without_alembic(fresh_settings, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", str(fresh_settings.home))
    monkeypatch.setenv("UMBEL_DATABASE_URL", fresh_settings.database_url)
    found = [
        subprocess.run([sys.executable, "-c", OPENED], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert found == ["True", "False"]  # the first one makes the tables


def test_a_fresh_home_is_made_ready_by_opening_it(fresh_settings):
    with Registry.open(fresh_settings) as registry:
        assert migrate.check(registry.database).ok
        assert registry.adapters.list().items == ()
    assert oct(fresh_settings.home.joinpath("store").stat().st_mode)[-3:] == "700"


def test_many_that_open_a_fresh_home_at_once_all_succeed(fresh_settings):
    def open_one(_):
        with Registry.open(fresh_settings) as registry:
            return migrate.check(registry.database).ok

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(open_one, range(8)))


@pytest.mark.timeout(60)  # without the lock they wait for each other
def test_of_many_that_migrate_at_once_one_does_and_the_others_wait(fresh_settings):
    fresh_settings.home.mkdir()
    together = Barrier(6)

    def upgrade(_):
        database = Database(fresh_settings.database_url)
        try:
            together.wait()
            return migrate.upgrade(database).ok
        finally:
            database.close()

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(upgrade, range(6)))


def test_a_database_of_another_revision_is_refused_with_the_command(database, fresh_settings):
    migrate.upgrade(database)
    for revision, code, hint in (
        ("0000", "database_too_new", "pip install"),
        (None, "database_outdated", "db upgrade"),
    ):
        with database.engine.connect() as connection, connection.begin():
            connection.execute(text("DELETE FROM alembic_version"))
            if revision:
                connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision})
        with pytest.raises(Unavailable) as caught:
            Registry.open(fresh_settings)
        assert caught.value.code == code
        assert hint in caught.value.hint


def test_a_migration_that_fails_leaves_nothing_behind(database, monkeypatch):
    def fail(*_):
        raise RuntimeError("half way")

    with monkeypatch.context() as patched:
        patched.setattr("alembic.op.create_index", fail)
        with pytest.raises(RuntimeError, match="half way"):
            migrate.upgrade(database)
    assert [name for name in inspect(database.engine).get_table_names() if name != "alembic_version"] == []
    assert migrate.upgrade(database).ok


def test_sqlite_is_set_up_to_survive_writers_and_power_cuts(sqlite_settings):
    with Registry.open(sqlite_settings) as registry, registry.database.read() as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 2, "busy_timeout": 30_000}


def test_a_backup_is_a_registry_of_its_own(sqlite_settings, tmp_path):
    copy = Settings(
        home=sqlite_settings.home,
        database_url=f"sqlite:///{tmp_path / 'copies' / 'registry.db'}",
        store_url=sqlite_settings.store_url,
    )
    with Registry.open(sqlite_settings) as registry:
        registry.runs.start(name="a", params={}, seed=0)
        migrate.backup(registry.database, tmp_path / "copies" / "registry.db")
        registry.runs.start(name="b", params={}, seed=0)
        with pytest.raises(Conflict):
            migrate.backup(registry.database, tmp_path / "copies" / "registry.db")
    with Registry.open(copy) as other:
        assert [run.name for run in other.runs.list().items] == ["a"]


def test_a_postgres_backup_names_the_tool_for_it(create_database, tmp_path):
    database = Database(create_database())
    with pytest.raises(UsageError, match="pg_dump"):
        migrate.backup(database, tmp_path / "x.db")
    database.close()


def test_a_database_that_does_not_answer_is_said_so(tmp_path):
    url = f"postgresql://nobody@/none?host={tmp_path}"
    with pytest.raises(Unavailable) as caught:
        Registry.open(Settings(home=tmp_path, database_url=url, store_url=str(tmp_path / "store")))
    assert caught.value.code == "database_unavailable"
    assert caught.value.retry_after


def test_the_password_is_not_told(tmp_path):
    database = Database("postgresql://ada:secret@localhost/umbel")
    assert "secret" not in database.engine.url.render_as_string()
    database.close()


@pytest.mark.parametrize(
    ("database_url", "store_url", "code"),
    [("mysql://x/y", "store", "unknown_database"), ("sqlite:///x.db", "s3://bucket", "unknown_store")],
)
def test_places_that_are_not_supported_are_refused(tmp_path, monkeypatch, database_url, store_url, code):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        Registry.open(Settings(home=tmp_path, database_url=database_url, store_url=store_url))
    assert caught.value.code == code


def test_an_installed_copy_can_migrate(tmp_path):
    """What the wheel holds (pyproject's ``packages``, whole folders), without a source root in sight."""
    wheel = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for package in wheel["packages"]:
        shutil.copytree(REPOSITORY / package, tmp_path / "site" / Path(package).name, dirs_exist_ok=True)
    code = (
        "import umbel.registry as r; from pathlib import Path; from umbel.core.settings import Settings;"
        f"home = Path({str(tmp_path / 'home')!r});"
        f"assert Path(r.__file__).is_relative_to({str(tmp_path)!r}), r.__file__;"
        "r.Registry.open(Settings(home, f'sqlite:///{home}/registry.db', str(home / 'store'))).close()"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
