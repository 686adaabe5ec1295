"""The founding document's two examples, and what sharding divides."""

import pytest

from umbel.core.errors import ConfigError
from umbel.training.distributed.strategy import Strategy
from umbel.training.estimate.estimate import estimate
from umbel.training.estimate.work import llama_of, work_of

GB = 10**9


def work(parameters: float, **options):
    return work_of(
        llama_of(parameters), {"task": "generate", **options},
        dtype="auto", rows=1, length=64, checkpointing="full",
    )  # fmt: skip


def test_seven_hundred_million_parameters_fit_16_gb_and_three_billion_fit_four_of_them_sharded():
    """16 bytes for each trained parameter: 4 of weight, 4 of gradient, 8 of AdamW's two moments."""
    own = {"train": "all", "precision": "fp32"}
    ddp = estimate(work(700e6, **own), Strategy.read("ddp", 4), on_cpu=False)
    assert ddp.states == 16 * ddp.parameters == pytest.approx(11.2 * GB, rel=1e-3)
    assert ddp.peak < 16 * GB
    assert estimate(work(3e9, **own), Strategy.read("ddp", 4), on_cpu=False).peak > 48 * GB
    fsdp = estimate(work(3e9, **own), Strategy.read("fsdp", 4), on_cpu=False)
    assert fsdp.states == pytest.approx(12.0 * GB, rel=1e-3)
    assert fsdp.peak < 16 * GB


@pytest.mark.parametrize("parameters", [50e6, 1.1e9, 7e9])
def test_a_llama_of_so_many_parameters_has_about_so_many(parameters):
    shape = llama_of(parameters).shape
    body = sum(d_in * d_out for d_in, d_out in map(shape.linear, ("q_proj", "k_proj", "v_proj", "o_proj")))
    body += 3 * shape.hidden * shape.intermediate
    assert shape.vocab * shape.hidden + shape.layers * body == pytest.approx(parameters, rel=0.01)


def test_too_few_parameters_for_a_llama_are_refused():
    with pytest.raises(ConfigError, match="embeddings alone"):
        llama_of(1000)


def test_adapters_are_whole_on_each_process_and_the_frozen_backbone_is_not():
    one = estimate(work(50e6, method="lora"), Strategy.read("none", 1))
    four = estimate(work(50e6, method="lora"), Strategy.read("fsdp", 4))
    assert four.gradients == one.gradients
    assert four.weights - one.best == pytest.approx((one.weights - one.best) / 4, rel=0.01)
    assert sum(unit.parameters for unit in four.units) == four.parameters
