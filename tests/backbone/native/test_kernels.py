"""The compiled library: made once, never half, and its absence is told with the way out."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from umbel.backbone.loading import load_backbone
from umbel.backbone.native import Kernels
from umbel.backbone.tiny import tiny_backbone
from umbel.core.errors import ConfigError, Unavailable
from umbel.core.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings.load(tmp_path / "home")


def compiler(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_it_is_compiled_once_and_found_again_without_the_compiler_working(tmp_path, monkeypatch):
    made = Kernels.load(tmp_path).path
    written = made.stat().st_mtime_ns
    assert Kernels.load(tmp_path).path == made
    assert made.stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


def test_a_compiler_that_fails_leaves_nothing_and_is_told(tmp_path, monkeypatch):
    broken = compiler(tmp_path / "broken", 'test "$1" = --version && exit 0; echo "no such flag" >&2; exit 1')
    monkeypatch.setenv("CC", broken)
    with pytest.raises(Unavailable, match="broken failed: no such flag") as caught:
        Kernels.load(tmp_path / "cache")
    assert caught.value.code == "no_kernels"
    assert caught.value.hint == "set CC to gcc 12 or newer"
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_compiler_makes_another_library(tmp_path, monkeypatch):
    first = Kernels.load(tmp_path / "cache").path
    monkeypatch.setenv(
        "CC", compiler(tmp_path / "other", 'test "$1" = --version && echo other && exit 0; exec cc "$@"')
    )
    assert Kernels.load(tmp_path / "cache").path != first


def test_without_a_compiler_auto_serves_by_torch_and_on_refuses(settings, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert Kernels.wanted(settings) is None
    with pytest.raises(Unavailable, match="no C compiler"):
        Kernels.wanted(replace(settings, kernels="on"))


def test_off_is_off(settings):
    assert Kernels.wanted(replace(settings, kernels="off")) is None


def test_a_misspelt_setting_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("UMBEL_KERNELS", "yes")
    with pytest.raises(ConfigError, match="'yes'"):
        Settings.load(tmp_path)


def test_a_library_that_is_no_library_is_told(tmp_path):
    path = Kernels.load(tmp_path / "cache").path
    other = tmp_path / "other" / path.name
    other.parent.mkdir()
    other.write_bytes(b"half a file")
    with pytest.raises(Unavailable, match="cannot be loaded"):
        Kernels.load(other.parent)


@pytest.mark.parametrize(("dtype", "packed"), [("float32", True), ("bfloat16", False)])
def test_only_a_packed_backbone_in_bf16_uses_them(dtype, packed, tmp_path):
    kernels = Kernels.load(tmp_path)
    backbone = load_backbone(tiny_backbone(tmp_path / "tiny"), dtype=dtype, packed=packed, kernels=kernels)
    assert backbone.kernels is None
    assert all(getattr(module, "pointwise", None) is None for module in backbone.decoder.modules())
    assert not kernels.fit(torch.bfloat16, torch.device("meta"))
