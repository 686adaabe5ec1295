"""A backbone's packed weights lie in one stretch of large pages."""

import pytest
import torch
from torch import nn

from umbel.backbone import pages
from umbel.backbone.loading import load_backbone
from umbel.backbone.native import NativeLinear
from umbel.backbone.pages import can_reserve, lay_together
from umbel.backbone.tiny import tiny_backbone

pytestmark = pytest.mark.skipif(not can_reserve(torch.device("cpu")), reason="no private pages here")


class Holding(nn.Module):
    def __init__(self, *sizes, dtype=torch.bfloat16):
        super().__init__()
        for i, size in enumerate(sizes):
            self.register_buffer(f"held{i}", torch.randn(size).to(dtype))
        self.register_buffer("none", None)


class Other(Holding): ...


def model():
    return nn.Sequential(Holding(5, 7), Other(11), nn.Sequential(Holding(3, dtype=torch.float32)))


def test_what_lies_together_is_what_it_was_and_begins_at_a_large_page():
    parts = model()
    before = {name: buffer.clone() for name, buffer in parts.named_buffers()}
    lay_together(parts, Holding)
    for name, buffer in parts.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name])
    places = [parts.get_buffer(name).data_ptr() for name in ("0.held0", "0.held1", "1.held0", "2.0.held0")]
    assert places[0] % (2 << 20) == 0
    assert [place - places[0] for place in places] == [0, 64, 128, 192]


def test_only_parts_of_that_kind_move():
    parts = model()
    stays = parts.get_buffer("0.held0").data_ptr()
    lay_together(parts, Other)
    assert parts.get_buffer("0.held0").data_ptr() == stays
    assert parts.get_buffer("1.held0").data_ptr() % (2 << 20) == 0


def test_they_stay_where_the_system_promises_no_addresses(monkeypatch):
    def refuse(nbytes):
        raise OSError

    monkeypatch.setattr(pages, "reserve_once", refuse)
    parts = model()
    before = [buffer.data_ptr() for buffer in parts.buffers()]
    lay_together(parts, Holding)
    assert [buffer.data_ptr() for buffer in parts.buffers()] == before


def test_a_backbone_that_serves_by_the_kernels_lies_together(tmp_path, kernels):
    if not kernels.multiplies:
        pytest.skip("this processor's linears are oneDNN's")
    folder = tiny_backbone(tmp_path / "tiny")
    decoder = load_backbone(folder, dtype="bfloat16", packed=True, kernels=kernels).decoder
    linears = [part for part in decoder.modules() if isinstance(part, NativeLinear)]
    packed = [buffer for part in linears for buffer in part.buffers(recurse=False) if buffer.nbytes]
    places = sorted(buffer.data_ptr() for buffer in packed)
    assert len(linears) == 4 * len(decoder.layers) + 1
    assert places[0] % (2 << 20) == 0
    assert places[-1] - places[0] < sum(buffer.nbytes + 64 for buffer in packed)
