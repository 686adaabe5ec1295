"""Weights that are read by rows: fused from their pieces, without a whole tensor in memory."""

import pytest
import torch

from umbel.backbone.config import read_config
from umbel.backbone.loading import load_backbone
from umbel.backbone.pieces import pieces
from umbel.backbone.shards import _fill_piece, fill
from umbel.backbone.tiny import tiny_backbone
from umbel.backbone.units import meta_decoder
from umbel.core.errors import ConfigError

CPU = torch.device("cpu")
QWEN = {"model_type": "qwen2", "tie_word_embeddings": False}


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "mlp_bias": True}, QWEN])
def test_a_decoder_filled_from_the_meta_device_is_the_loaded_one(tmp_path, changes):
    folder = tiny_backbone(tmp_path / "tiny", **changes)
    loaded = load_backbone(folder, dtype="fp64").decoder
    made = meta_decoder(read_config(folder), torch.float64)
    fill(made, folder, CPU)
    theirs = dict(loaded.named_parameters())
    for name, parameter in made.named_parameters():
        assert parameter.equal(theirs[name]), name
    assert made.get_buffer("inverse_frequencies").equal(loaded.get_buffer("inverse_frequencies"))


class Recording:
    """Stands for one tensor of a file, and remembers which rows were asked for."""

    def __init__(self, tensor):
        self.tensor, self.asked = tensor, []

    def get_shape(self):
        return list(self.tensor.shape)

    def __getitem__(self, rows):
        self.asked.append((rows.start, rows.stop))
        return self.tensor[rows]


@pytest.mark.parametrize(("begin", "end"), [(0, 32), (32, 64), (20, 50), (40, 41)])
def test_each_process_reads_its_own_rows_alone(tmp_path, monkeypatch, begin, end):
    """A fused weight of 64 rows: q has 32, k and v 16 each."""
    config = read_config(tiny_backbone(tmp_path / "tiny"))
    found = pieces(config.shape, "layers.0.qkv.weight")
    parts = {piece.name: Recording(torch.randn(piece.rows, 32)) for piece in found}
    whole = torch.cat([part.tensor for part in parts.values()])
    own = torch.full((end - begin, 32), float("nan"))
    monkeypatch.setattr("umbel.backbone.shards.own_rows", lambda tensor: (own, begin))
    for piece in found:
        _fill_piece(torch.empty(64, 32), piece, parts, tmp_path)
    assert own.equal(whole[begin:end])
    assert sum(stop - start for part in parts.values() for start, stop in part.asked) == end - begin


def test_a_missing_tensor_and_one_of_another_shape_are_told(tmp_path):
    folder = tiny_backbone(tmp_path / "tiny")
    config = read_config(folder)
    tiny_backbone(tmp_path / "short", num_hidden_layers=1)
    tiny_backbone(tmp_path / "other", intermediate_size=48)
    for name, code in (("short", "backbone_incomplete"), ("other", "backbone_mismatch")):
        with pytest.raises(ConfigError) as caught:
            fill(meta_decoder(config), tmp_path / name, CPU)
        assert caught.value.code == code
