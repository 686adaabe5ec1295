"""Adding a method takes one file and no change elsewhere."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from umbel.adapters import catalog
from umbel.adapters.method import Batch, Method, Weights
from umbel.adapters.peft_io import export_files, import_folder
from umbel.core.contract import OutputHead
from umbel.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftConfig:
    """A toy: one vector that is added after every feed-forward."""

    size: float = 1.0


class ShiftWeights(Weights):
    @classmethod
    def expected(cls, config, shape):
        return {f"model.layers.{i}.shift": (shape.hidden,) for i in range(shape.layers)}

    @classmethod
    def fresh(cls, config, shape, generator):
        return cls(config, shape, {name: torch.zeros(size) for name, size in cls.expected(config, shape).items()})

    def fuse(self, layers):
        return {(i, "shift"): self.tensors[f"model.layers.{i}.shift"][None] for i in range(self.shape.layers)}


class ShiftBatch(Batch):
    def after(self, layer, part, x, h):
        if part != "mlp":
            return h
        shift = self.rows.of(self.stack[layer, "shift"])
        return self.rows.add(h, shift.expand(-1, self.rows.take(h).shape[1], -1))


SHIFT = Method(
    name="shift",
    config=ShiftConfig,
    weights=ShiftWeights,
    batch=ShiftBatch,
    peft_type=None,
    zero_start=True,
    learning_rate=1e-3,
)


@pytest.fixture
def shift():
    catalog.register(SHIFT)
    yield SHIFT
    catalog.unregister("shift")


def test_a_toy_method_is_worn_saved_and_read_by_its_file_alone(shift, made, backbone, logits_of, tmp_path):
    toy, lora = made("shift", noise=1.0), made("lora")
    texts = [torch.arange(9), torch.arange(30, 44), torch.arange(5)]
    mixed = logits_of([toy, lora], [0, 1, None], texts)
    for i, adapters in enumerate([[toy], [lora], []]):
        alone = logits_of(adapters, [0 if adapters else None], [texts[i]])[0]
        torch.testing.assert_close(mixed[i], alone, atol=2e-5, rtol=0)
    files = export_files(toy, backbone_name="tiny")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    again = import_folder(tmp_path, backbone.shape, backbone=backbone.fingerprint)
    assert export_files(again, backbone_name="tiny") == files


def test_every_method_and_head_of_the_design_is_there():
    assert set(catalog.methods()) == {
        "lora", "llama_adapter", "prefix", "prompt", "p_tuning", "ia3", "bottleneck", "none"
    }  # fmt: skip
    assert set(catalog.heads()) == set(OutputHead)


def test_a_taken_name_or_peft_type_is_refused(shift):
    with pytest.raises(ValueError, match="already in the catalog"):
        catalog.register(SHIFT)


def test_an_unknown_option_names_the_known_ones():
    with pytest.raises(ConfigError, match="rank"):
        catalog.configure("lora", {"rnak": 8})


def test_options_are_typed_by_their_fields():
    assert catalog.configure("lora", {"rank": "8", "targets": ["q_proj"]}).rank == 8
    with pytest.raises(ConfigError, match="'eight' is not one: it should be"):
        catalog.configure("lora", {"rank": "eight"})


def test_nothing_outside_adapters_names_a_method():
    """A method's name in another package would be a second place to change."""
    names = {f'"{name}"' for name in catalog.methods() if name not in ("none", "prompt", "prefix")}
    roots = {Path(__file__).parents[2] / top / "umbel" for top in ("platform", "training", "registry")}
    found = [
        (path.name, name)
        for root in roots
        for path in root.rglob("*.py")
        for name in names
        if name in path.read_text(encoding="utf-8")
    ]
    assert found == []
