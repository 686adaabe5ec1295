"""Where the home is, and what is told where two could be meant."""

from umbel.core.settings import Settings


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
