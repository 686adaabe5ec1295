"""Where the home is, and what is told where two could be meant."""

import stat

import pytest

from umbel.backbone import pull as backbones
from umbel.core.errors import ConfigError, Unavailable
from umbel.core.settings import Settings
from umbel.registry.registry import Registry
from umbel.training.data import assets as datasets

PULLS = {"backbone": (backbones.pull, "smollm2-135m-instruct"), "dataset": (datasets.pull, "pronounce")}


def test_a_home_in_this_folder_is_pointed_out_where_nobody_said_which(tmp_path, monkeypatch):
    (tmp_path / ".umbel").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UMBEL_HOME", raising=False)
    assert "UMBEL_HOME=$PWD/.umbel" in (Settings.load().nearby or "")
    assert Settings.load(tmp_path / ".umbel").nearby is None
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "other"))
    assert Settings.load().nearby is None


def test_no_home_in_this_folder_is_nothing_to_tell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UMBEL_HOME", raising=False)
    assert Settings.load().nearby is None


@pytest.mark.parametrize("way", ["registry", "backbone", "dataset"])
def test_whatever_makes_the_home_makes_it_for_its_owner_alone(tmp_path, monkeypatch, way):
    for name in ("UMBEL_DATABASE_URL", "UMBEL_STORE_URL"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings.load(tmp_path / "home")
    if way == "registry":
        Registry.open(settings).close()
    else:  # both make the home before they look for what to bring, which an index that is not there stops
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(Unavailable):
            PULLS[way][0](settings, PULLS[way][1])
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700


def test_a_home_that_is_there_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o750)
    assert Settings.load(tmp_path).make_home() == tmp_path
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


@pytest.mark.parametrize(("given", "size"), [("0.5", 500_000_000), ("0", 0), ("8", 8_000_000_000), ("", 2_000_000_000)])
def test_the_trunk_cache_is_as_large_as_the_environment_says(tmp_path, monkeypatch, given, size):
    monkeypatch.setenv("UMBEL_TRUNK_CACHE_GB", given)
    assert Settings.load(tmp_path).trunk_cache_bytes == size


def test_rows_of_larger_files_than_the_environment_says_lie_on_disk(tmp_path, monkeypatch):
    assert Settings.load(tmp_path).spool_bytes == 64_000_000
    monkeypatch.setenv("UMBEL_SPOOL_GB", "0.001")
    assert Settings.load(tmp_path).spool_bytes == 1_000_000
    monkeypatch.setenv("UMBEL_SPOOL_GB", "some")
    with pytest.raises(ConfigError, match="UMBEL_SPOOL_GB"):
        Settings.load(tmp_path)


@pytest.mark.parametrize("given", ["much", "-1", "inf", "nan"])
def test_a_trunk_cache_that_is_no_size_is_refused(tmp_path, monkeypatch, given):
    monkeypatch.setenv("UMBEL_TRUNK_CACHE_GB", given)
    with pytest.raises(ConfigError, match=f"UMBEL_TRUNK_CACHE_GB is '{given}'"):
        Settings.load(tmp_path)
