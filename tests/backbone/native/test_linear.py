"""The kernel's linear against float64, and a row's bits in any company."""

import pytest
import torch

from umbel.backbone.linears import DenseLinear
from umbel.backbone.loading import load_backbone
from umbel.backbone.native import NativeEmbedding, NativeLinear
from umbel.backbone.tiny import tiny_backbone

SHAPES = [(576, 960), (64, 48), (34, 7), (2, 1), (130, 97), (96, 64)]


@pytest.fixture(autouse=True)
def skip_where_onednn_is_better(kernels):
    if not kernels.multiplies:
        pytest.skip("this processor's linears are oneDNN's")


def dense(d_in, d_out, *, bias=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = DenseLinear(d_in, d_out, bias=bias, dtype=torch.bfloat16, device=torch.device("cpu"))
    made.weight.data.copy_(torch.randn(d_out, d_in, generator=generator) / d_in**0.5)
    if made.bias is not None:
        made.bias.data.copy_(torch.randn(d_out, generator=generator))
    return made


def native(plain, kernels):
    return NativeLinear(plain.weight, plain.bias, kernels)


def inputs(rows, d_in, seed=1):
    return torch.randn(rows, d_in, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
def test_it_is_float64s_product_rounded_once(d_in, d_out, bias, kernels):
    plain = dense(d_in, d_out, bias=bias)
    linear = native(plain, kernels)
    for rows in (1, 2, 7, 8, 9, 33, 70):
        x = inputs(rows, d_in)
        expected = x.double() @ plain.weight.double().T + (plain.bias.double() if bias else 0)
        found = linear(x)
        assert found.shape == expected.shape
        room = 2**-8 * expected.abs() + 2**-18 * (x.double().abs() @ plain.weight.double().abs().T)
        assert ((found.double() - expected).abs() <= room).all()


@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_a_row_has_the_same_bits_alone_and_in_any_company_on_any_number_of_threads(d_in, d_out, threads, kernels):
    linear = native(dense(d_in, d_out, bias=True), kernels)
    x, before = inputs(400, d_in), torch.get_num_threads()
    torch.set_num_threads(1)
    whole = torch.cat([linear(some) for some in x.split(50)])
    torch.set_num_threads(threads)
    try:
        for start, end in [(0, 1), (1, 9), (3, 40), (8, 10), (17, 100), (99, 100), (0, 400), (3, 398)]:
            assert linear(x[start:end]).equal(whole[start:end])
    finally:
        torch.set_num_threads(before)


def test_a_nan_stays_with_its_row(kernels):
    linear, x = native(dense(576, 960), kernels), inputs(20, 576)
    clean = linear(x)
    x[5, 100] = float("nan")
    found = linear(x)
    assert found[5].isnan().all()
    others = [row for row in range(20) if row != 5]
    assert found[others].equal(clean[others])


def test_leading_dimensions_and_parts_are_those_of_the_dense_linear(kernels):
    plain = dense(64, 96, bias=True)
    linear, x = native(plain, kernels), inputs(6, 64).view(2, 3, 64)
    assert linear(x).shape == (2, 3, 96)
    for bias in (True, False):
        found, expected = (each.part(x, slice(10, 50), bias=bias) for each in (linear, plain))
        assert (found.float() - expected.float()).abs().max() < 2**-5


def test_a_gradient_is_refused_and_not_lost(kernels):
    linear = native(dense(64, 48), kernels)
    with pytest.raises(RuntimeError, match="no gradient"):
        linear(inputs(2, 64).requires_grad_())


def test_what_it_cannot_hold_is_left_to_others(kernels):
    assert NativeLinear.fits(dense(64, 48).weight, kernels)
    assert not NativeLinear.fits(dense(65, 48).weight, kernels)
    wide = DenseLinear(64, 48, bias=False, dtype=torch.float32, device=torch.device("cpu"))
    assert not NativeLinear.fits(wide.weight, kernels)


def test_it_holds_no_more_than_the_weight_and_the_last_blocks_rest(kernels):
    assert native(dense(576, 960), kernels).get_buffer("packed").nbytes == 576 * 960 * 2
    assert native(dense(64, 50), kernels).get_buffer("packed").nbytes == 64 * 96 * 2


@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
def test_its_weight_is_found_again_whole_and_row_by_row(d_in, d_out, kernels):
    plain = dense(d_in, d_out)
    linear, some = native(plain, kernels), torch.tensor([[0, d_out - 1, d_out // 2], [0, 0, d_out - 1]])
    assert linear.weight.equal(plain.weight)
    assert linear.rows(some).equal(plain.weight[some])


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_lm_head_and_its_embeddings_are_held_once_and_give_what_they_gave(tied, tmp_path, kernels):
    folder = tiny_backbone(tmp_path / "tiny", tie_word_embeddings=tied)
    plain = load_backbone(folder, dtype="bfloat16")
    packed = load_backbone(folder, dtype="bfloat16", packed=True, kernels=kernels)
    decoder, tokens = packed.decoder, torch.tensor([[5, 0, plain.shape.vocab - 1]])
    assert isinstance(decoder.embedding, NativeEmbedding) == tied
    assert isinstance(decoder.lm_head, NativeLinear)
    assert decoder.embedding(tokens).equal(plain.decoder.embedding(tokens))
    for name in ("embed_tokens", "lm_head"):
        assert decoder.matrix(name).equal(plain.decoder.matrix(name))
    rest = -plain.shape.vocab % 48 * plain.shape.hidden * 2
    assert packed.bytes >= plain.bytes + rest
    assert packed.bytes < plain.bytes + 2 * plain.shape.vocab * plain.shape.hidden
