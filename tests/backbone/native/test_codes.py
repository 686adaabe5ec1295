"""The kernel's quantised linears: the weight that the codes stand for, and a row's bits in any company."""

import pytest
import torch

from umbel.backbone.linears import DenseLinear
from umbel.backbone.loading import load_backbone, pack
from umbel.backbone.native import NativeCodes
from umbel.backbone.quantised import QUANTISED_SITES, quantised
from umbel.backbone.tiny import tiny_backbone
from umbel.core.forms import FORMS

SHAPES = [(576, 960), (64, 48), (1536, 34), (128, 7), (192, 97)]


@pytest.fixture(scope="session")
def kernels(any_kernels):
    return any_kernels


@pytest.fixture(autouse=True)
def skip_where_there_is_no_such_product(kernels):
    if not kernels.multiplies:
        pytest.skip("this processor's linears are oneDNN's and torch's")


@pytest.fixture(params=FORMS)
def form(request):
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes")
    return request.param


def linear_of(form, d_in, d_out, bias=True):
    generator = torch.Generator().manual_seed(0)
    made = DenseLinear(d_in, d_out, bias=bias, dtype=torch.bfloat16, device=torch.device("cpu"))
    made.weight.data.copy_(torch.randn(d_out, d_in, generator=generator) / d_in**0.5)
    if made.bias is not None:
        made.bias.data.copy_(torch.randn(d_out, generator=generator))
    return quantised(made, form)


def inputs(rows, d_in, seed=1):
    return torch.randn(rows, d_in, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
def test_it_is_float64s_product_with_the_weight_that_the_codes_stand_for(form, d_in, d_out, bias, kernels):
    """int8's scales are applied to sums, so its weight is not rounded; those of 4 bits are bf16 when they are used."""
    linear = linear_of(form, d_in, d_out, bias)
    weight = linear.dequantised(torch.float64) if form == "int8" else linear.weight.double()
    packed = linear.packed(kernels)
    assert isinstance(packed, NativeCodes)
    for rows in (1, 2, 7, 8, 9, 33, 70):
        x = inputs(rows, d_in)
        expected = x.double() @ weight.T + (linear.bias.double() if bias else 0)
        room = 2**-8 * expected.abs() + 2**-18 * (x.double().abs() @ weight.abs().T)
        assert ((packed(x).double() - expected).abs() <= room).all()


def test_a_row_has_the_same_bits_alone_and_in_any_company_on_any_number_of_threads(form, kernels):
    """Alone codes become bf16 in registers, in company in a room of each thread's."""
    packed, x, before = linear_of(form, 576, 320).packed(kernels), inputs(100, 576), torch.get_num_threads()
    whole = packed(x)
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            for start, end in [(0, 1), (1, 9), (3, 40), (8, 10), (17, 100), (99, 100)]:
                assert packed(x[start:end]).equal(whole[start:end])
                assert packed(x[start:end], decoding=1).equal(whole[start:end])
    finally:
        torch.set_num_threads(before)


def test_codes_take_no_more_than_they_did_but_for_the_last_block(form, kernels):
    linear = linear_of(form, 576, 960, bias=False)
    before = sum(buffer.nbytes for buffer in linear.buffers())
    table = 0 if form == "int8" else 64
    assert sum(buffer.nbytes for buffer in linear.packed(kernels).buffers()) == before + table


def test_a_part_is_the_whole_ones(form, kernels):
    packed, x = linear_of(form, 64, 96).packed(kernels), inputs(6, 64).view(2, 3, 64)
    assert packed(x).shape == (2, 3, 96)
    assert packed.part(x, slice(10, 50), bias=True).equal(packed(x)[..., 10:50])


def test_it_raises_where_a_gradient_is_asked_for(form, kernels):
    with pytest.raises(RuntimeError, match="no gradient"):
        linear_of(form, 64, 48).packed(kernels)(inputs(1, 64).requires_grad_())


def test_a_packed_backbone_has_them_in_every_layer(form, kernels, tmp_path):
    folder = tiny_backbone(tmp_path / "tiny", hidden_size=64, intermediate_size=128, head_dim=16)
    backbone = load_backbone(folder, dtype="bf16", quantise=form)
    pack(backbone.decoder, kernels=kernels)
    found = {type(getattr(layer, site)) for layer in backbone.decoder.layers for site in QUANTISED_SITES}
    assert found == {NativeCodes}
