"""The home's registry, opened for one command."""

from typing import TYPE_CHECKING

from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.registry.registry import Registry


def open_registry() -> "Registry":
    """To be closed by ``with``. Imported here, so that help needs no database."""
    from umbel.registry.registry import Registry

    return Registry.open(Settings.load())
