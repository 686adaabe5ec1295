"""What every test stands on: the home that `make assets` fills, few threads, and no stray `__init__.py`."""

import os
import platform
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


LESSER = {"this processor": (), "no bf16": ("avx512bf16",), "no AVX-512": ("avx512f",), "no AVX": ("avx",)}
"""Processors by the instructions that this one has and they lack; where it lacks them, too, it is one of them."""


@pytest.fixture(scope="session")
def lesser_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lesser-kernels")


@pytest.fixture(scope="session", params=LESSER)
def any_kernels(request, lesser_folder):
    """The step's kernels as compiled for this processor, and as for lesser ones, which run here as well."""
    from umbel.backbone.native import Kernels

    if LESSER[request.param] and platform.machine() != "x86_64":
        pytest.skip("its instructions have other names")
    return Kernels.load(lesser_folder, LESSER[request.param])


def pytest_sessionstart(session: pytest.Session) -> None:
    """A stray __init__.py hides three of the four source roots, or the standard library's `platform`."""
    found = subprocess.run(["sh", "scripts/no_stray_init.sh"], cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.exit(found.stderr.strip(), returncode=4)
