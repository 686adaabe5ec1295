"""What is examined: a home, its database and registry, and the address a server would listen on.

Parts are opened when a condition first asks for them. Nothing is created: a home that is not there yet stays away.
"""

from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.backbone.backbone import Backbone
    from umbel.backbone.installed import InstalledBackbone
    from umbel.registry.database import Database
    from umbel.registry.registry import Registry


class Skip(Exception):
    """Raised by a look that has nothing to look at; says why."""


class Patient:
    """Close it at the end."""

    def __init__(self, settings: Settings, *, host: str, port: int, backbone: str | None = None) -> None:
        self.settings = settings
        self.host = host
        self.port = port
        self._wanted = backbone
        self._opened = ExitStack()

    def close(self) -> None:
        self._opened.close()

    @cached_property
    def database(self) -> "Database":
        """Raises Skip for a SQLite file that is not there: to open it would make it."""
        from umbel.registry.database import Database

        url = self.settings.database_url
        if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
            raise Skip("not made yet; the first pull or publish makes it")
        database = Database(url)
        self._opened.callback(database.close)
        return database

    @cached_property
    def reachable(self) -> "Database":
        """The database if it answers and has our tables; Skip otherwise, since that is a condition of its own."""
        from umbel.registry import migrate

        try:
            if migrate.check(self.database).ok:
                return self.database
        except Skip:
            raise
        except Exception as error:
            raise Skip("needs the database") from error
        raise Skip("needs the database at its newest revision")

    @cached_property
    def registry(self) -> "Registry":
        from umbel.registry.registry import Registry
        from umbel.registry.store import BlobStore

        if not self.store.is_dir():
            raise Skip("needs the store")
        return Registry(self.settings, self.reachable, BlobStore(self.settings.store_url))

    @property
    def store(self) -> Path:
        return Path(self.settings.store_url)

    @cached_property
    def installed(self) -> "list[InstalledBackbone]":
        from umbel.backbone.installed import installed

        return installed(self.settings)

    @cached_property
    def loaded(self) -> "Backbone":
        """As a server loads it: the one that was asked for, or the smallest. Raises Skip without one."""
        from umbel.backbone.installed import find
        from umbel.backbone.loading import load_backbone
        from umbel.backbone.native import Kernels

        if self._wanted is None and not self.installed:
            raise Skip("needs a backbone")
        found = find(self.settings, self._wanted) if self._wanted else min(self.installed, key=lambda one: one.bytes)
        kernels, form = Kernels.wanted(self.settings), self.settings.quantise
        return load_backbone(found.folder, packed=True, kernels=kernels, name=found.name, quantise=form)
