"""The auto-wrap policy: which modules are gathered together."""

import pytest

from umbel.backbone.config import parse_config
from umbel.backbone.tiny import TINY
from umbel.backbone.units import meta_decoder, plan_units
from umbel.core.errors import ConfigError


def decoder(**changes):
    return meta_decoder(parse_config({**TINY, "num_hidden_layers": 5, **changes}))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("wrap", ["layer", "size=20000", "size=1e9", "modules=layers.1*,layers.3"])
def test_every_parameter_is_in_one_unit(wrap, tied):
    made = decoder(tie_word_embeddings=tied)
    units = plan_units(made, wrap)
    assert sum(unit.parameters for unit in units) == sum(parameter.numel() for parameter in made.parameters())
    names = [name for unit in units for name in unit.modules]
    assert len(names) == len(set(names))
    assert units[-1].name == "root"


def test_each_layer_is_a_unit_and_the_rest_is_the_root():
    assert [unit.name for unit in plan_units(decoder())] == [*(f"layers.{i}" for i in range(5)), "root"]
    untied = [unit.name for unit in plan_units(decoder(tie_word_embeddings=False))]
    assert untied == ["embedding", *(f"layers.{i}" for i in range(5)), "lm_head", "root"]


def test_neighbouring_layers_join_until_a_unit_is_large_enough():
    made = decoder()
    layer = sum(parameter.numel() for parameter in made.layers[0].parameters())
    names = [unit.name for unit in plan_units(made, f"size={2 * layer}")]
    assert names == ["layers.0 to layers.1", "layers.2 to layers.3", "layers.4", "root"]


def test_modules_are_taken_by_name():
    assert [unit.name for unit in plan_units(decoder(), "modules=layers.[12]")] == ["layers.1", "layers.2", "root"]


@pytest.mark.parametrize(
    "wrap", ["", "layers", "size=", "size=-1", "size=many", "modules=", "modules=layers.9", "modules=embedding"]
)
def test_what_makes_no_units_is_refused(wrap):
    with pytest.raises(ConfigError) as caught:
        plan_units(decoder(), wrap)
    assert caught.value.code == "invalid_wrap"
    assert caught.value.hint
