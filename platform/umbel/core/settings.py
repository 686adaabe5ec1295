"""Where things are. Read once by ``Settings.load()``, never at import."""

import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_data_path


@dataclass(frozen=True, slots=True)
class Settings:
    """The home's folders and the two addresses that may lie elsewhere."""

    home: Path
    database_url: str
    """SQLAlchemy URL; ``UMBEL_DATABASE_URL``, or ``registry.db`` in the home."""
    store_url: str
    """Folder or ``s3://``; ``UMBEL_STORE_URL``, or ``store/`` in the home."""

    @classmethod
    def load(cls, home: Path | None = None) -> "Settings":
        home = (home or Path(os.environ.get("UMBEL_HOME") or user_data_path("umbel"))).expanduser().resolve()
        return cls(
            home=home,
            database_url=os.environ.get("UMBEL_DATABASE_URL") or f"sqlite:///{home / 'registry.db'}",
            store_url=os.environ.get("UMBEL_STORE_URL") or str(home / "store"),
        )

    @property
    def backbones(self) -> Path:
        return self.home / "backbones"

    @property
    def datasets(self) -> Path:
        return self.home / "datasets"

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def cache(self) -> Path:
        """What can be fetched or made again: deleting it costs time only."""
        return self.home / "cache"
