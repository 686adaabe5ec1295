"""What every test stands on: the home that `make assets` fills, few threads, and no stray `__init__.py`."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("UMBEL_HOME", str(ROOT / ".umbel"))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# Two pools that spin for work slow each other down many times over on a small machine
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A busy machine draws examples slowly; that says nothing of the code
settings.register_profile("umbel", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("umbel")


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """The step's kernels, compiled once for all tests."""
    from umbel.backbone.native import Kernels

    return Kernels.load(tmp_path_factory.mktemp("kernels"))


def pytest_sessionstart(session: pytest.Session) -> None:
    """A stray __init__.py hides three of the four source roots, or the standard library's `platform`."""
    found = subprocess.run(["sh", "scripts/no_stray_init.sh"], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.exit(found.stderr.strip(), returncode=4)
