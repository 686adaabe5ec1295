"""The matrix of docs/methods.md: every method under every output head, both directions of PEFT, and the engine.

Beside it other random backbones, and SmolLM2.
"""

import os
from pathlib import Path

import pytest
from benchmarks.parity import METHODS, bed_of, by_engine, cells, exchanged, make_bed, noisy_adapter, rms

from umbel.adapters import catalog
from umbel.backbone.loading import load_backbone
from umbel.backbone.native import Kernels
from umbel.core.contract import OutputHead

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
OTHERS = {
    "untied, a key head for each query head, llama3": {
        "tie_word_embeddings": False,
        "num_key_value_heads": 4,
        "rope_parameters": LLAMA3,
    },
    "one key head, biases, wide heads": {
        "num_hidden_layers": 2,
        "tie_word_embeddings": False,  # logits of 30 would leave an absolute 2e-5 no headroom in fp32
        "num_key_value_heads": 1,
        "head_dim": 12,
        "attention_bias": True,
        "mlp_bias": True,
    },
}
FEW_HEADS = [OutputHead.GENERATE, OutputHead.CLASSIFY]


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    return make_bed(tmp_path_factory.mktemp("bed"))


@pytest.fixture(scope="module", params=OTHERS)
def other(request, tmp_path_factory):
    return make_bed(tmp_path_factory.mktemp("other"), **OTHERS[request.param])


@pytest.fixture(scope="module")
def smol():
    return bed_of(Path(os.environ["UMBEL_HOME"]) / "backbones" / "smollm2-135m-instruct", real=True)


def beyond(found):
    return [str(cell) for cell in found if not cell.passes]


def test_the_matrix_has_every_method_and_output_head():
    assert METHODS.keys() == catalog.methods().keys()
    assert {str(head) for head in OutputHead} == {str(head) for head in catalog.heads()}


@pytest.mark.parametrize("head", list(OutputHead), ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_every_direction_and_dtype_is_within_its_bound(method, head, bed, tmp_path):
    found = list(cells(bed, method, head, tmp_path))
    assert {cell.dtype for cell in found} == {"float32", "bfloat16", "float64"}
    assert beyond(found) == []


@pytest.mark.parametrize("head", FEW_HEADS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_it_holds_on_other_random_backbones(method, head, other, tmp_path):
    shape = other.backbones["float32"].shape
    if method == "llama_adapter" and shape.heads * shape.head_dim != shape.hidden:
        pytest.skip("PEFT's AdaptionPrompt raises where heads x head_dim is not the hidden size")
    assert beyond(exchanged(other, method, head, tmp_path)) == []


@pytest.fixture(scope="module")
def compiled(bed, tmp_path_factory):
    kernels = Kernels.load(tmp_path_factory.mktemp("kernels"))
    return load_backbone(bed.folder, dtype="bfloat16", packed=True, kernels=kernels)


@pytest.mark.parametrize("head", list(OutputHead), ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_by_the_kernels_it_is_as_near_to_float64_as_by_torch(method, head, bed, compiled):
    adapter = noisy_adapter(bed.backbones["float32"], method, head)
    truth = by_engine(bed.backbones["float64"], adapter)
    by_torch, by_kernels = (by_engine(backbone, adapter) for backbone in (bed.backbones["bfloat16"], compiled))
    assert not by_kernels.equal(by_torch)
    assert rms(by_kernels, truth) <= 1.25 * rms(by_torch, truth) + 0.01


@pytest.mark.smol
@pytest.mark.parametrize("head", FEW_HEADS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_on_smollm2_both_directions_are_as_near_to_float64_as_peft(method, head, smol, tmp_path):
    found = list(exchanged(smol, method, head, tmp_path))
    assert {cell.dtype for cell in found} == {"float32", "bfloat16"}
    assert beyond(found) == []
