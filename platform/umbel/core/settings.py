"""Where things are. Read once by ``Settings.load()``, never at import."""

import os
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_data_path

from umbel.core.errors import ConfigError
from umbel.core.folders import check_folder, make_folder
from umbel.core.forms import Form, read_form

_TRUNK_CACHE = 2_000_000_000
_SPOOL = 64_000_000
_READY = 4_000_000_000


@dataclass(frozen=True, slots=True)
class Settings:
    """The home's folders and the two addresses that may lie elsewhere."""

    home: Path
    database_url: str
    """SQLAlchemy URL; ``UMBEL_DATABASE_URL``, or ``registry.db`` in the home."""
    store_url: str
    """Folder or ``s3://``; ``UMBEL_STORE_URL``, or ``store/`` in the home."""
    trunk_cache_bytes: int = _TRUNK_CACHE
    """Most that training keeps of frozen layers' results; ``UMBEL_TRUNK_CACHE_GB``, 0 keeps nothing."""
    ready_bytes: int = _READY
    """Most that servers keep of adapters as their slots take them; ``UMBEL_READY_CACHE_GB``, 0 keeps nothing."""
    spool_bytes: int = _SPOOL
    """Rows of a larger file are laid out in the cache and not held in memory; ``UMBEL_SPOOL_GB``."""
    quantise: Form | None = None
    """How backbones are held where a command does not say; ``UMBEL_QUANTISE``."""
    kernels: str = "auto"
    """Whether serving on a CPU compiles kernels of its own: ``UMBEL_KERNELS``, one of auto, on and off."""

    @classmethod
    def load(cls, home: Path | None = None, *, checked: bool = True) -> "Settings":
        """Raises ConfigError (``folder_unusable``) where the home is no folder, unless ``checked`` is off."""
        home = (home or Path(os.environ.get("UMBEL_HOME") or user_data_path("umbel"))).expanduser().resolve()
        if checked:
            check_folder(home, "UMBEL_HOME")
        return cls(
            home=home,
            database_url=os.environ.get("UMBEL_DATABASE_URL") or f"sqlite:///{home / 'registry.db'}",
            store_url=os.environ.get("UMBEL_STORE_URL") or str(home / "store"),
            trunk_cache_bytes=_gigabytes("UMBEL_TRUNK_CACHE_GB", _TRUNK_CACHE),
            ready_bytes=_gigabytes("UMBEL_READY_CACHE_GB", _READY),
            spool_bytes=_gigabytes("UMBEL_SPOOL_GB", _SPOOL),
            quantise=read_form(os.environ.get("UMBEL_QUANTISE") or None),
            kernels=_kernels(),
        )

    def make_home(self) -> Path:
        """For its owner alone, as keys and adapters lie in it; one that is there already stays as it is."""
        make_folder(self.home, "UMBEL_HOME", mode=0o700)
        return self.home

    @property
    def nearby(self) -> str | None:
        """The way to the home that ``make`` keeps in this folder, where nobody said which one is meant."""
        here = Path(".umbel").resolve()
        if os.environ.get("UMBEL_HOME") or here == self.home or not here.is_dir():
            return None
        return "the folder .umbel here is a home, too: export UMBEL_HOME=$PWD/.umbel"

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

    @property
    def ready(self) -> Path:
        """Adapters as slots take them; file names begin with a version's digest."""
        return self.cache / "ready"


def _kernels() -> str:
    """``UMBEL_KERNELS``; raises ConfigError for anything else."""
    given = os.environ.get("UMBEL_KERNELS") or "auto"
    if given not in ("auto", "on", "off"):
        raise ConfigError(f"UMBEL_KERNELS is {given!r}.", hint="use auto, on or off")
    return given


def _gigabytes(name: str, usual: int) -> int:
    """Bytes of what the environment says; raises ConfigError where it is no number."""
    given = os.environ.get(name)
    if not given:
        return usual
    try:
        size = float(given)
    except ValueError:
        size = -1.0
    if not 0 <= size < float("inf"):
        raise ConfigError(f"{name} is {given!r}, not a number of gigabytes.", hint="such as 2 or 0.5")
    return int(size * 1e9)
