"""The kernel's linear against float64, and a row's bits in any company."""

import pytest
import torch

from umbel.backbone.linears import DenseLinear
from umbel.backbone.loading import load_backbone
from umbel.backbone.native import NativeCompact, NativeDense, NativeEmbedding, native_linear
from umbel.backbone.tiny import tiny_backbone

SHAPES = [(576, 960), (64, 48), (34, 7), (2, 1), (130, 97), (96, 64), (8, 5), (200, 49)]
FORMS = [NativeDense, NativeCompact]


@pytest.fixture(scope="session")
def kernels(any_kernels):
    return any_kernels


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


def native(plain, kernels, form=NativeDense):
    if not form.fits(plain.weight.dtype, plain.weight.device, plain.weight.shape[1], kernels):
        pytest.skip("no weight of this form")
    return form(plain.weight, plain.bias, kernels)


def inputs(rows, d_in, seed=1):
    return torch.randn(rows, d_in, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
def test_it_is_float64s_product_rounded_once(d_in, d_out, bias, form, kernels):
    plain = dense(d_in, d_out, bias=bias)
    linear = native(plain, kernels, form)
    for rows in (1, 2, 7, 8, 9, 33, 70):
        x = inputs(rows, d_in)
        expected = x.double() @ plain.weight.double().T + (plain.bias.double() if bias else 0)
        found = linear(x)
        assert found.shape == expected.shape
        room = 2**-8 * expected.abs() + 2**-18 * (x.double().abs() @ plain.weight.double().abs().T)
        assert ((found.double() - expected).abs() <= room).all()


@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_has_the_same_bits_alone_and_in_any_company_on_any_number_of_threads(d_in, d_out, threads, form, kernels):
    linear = native(dense(d_in, d_out, bias=True), kernels, form)
    x, before = inputs(400, d_in), torch.get_num_threads()
    torch.set_num_threads(1)
    whole = torch.cat([linear(some) for some in x.split(50)])
    torch.set_num_threads(threads)
    try:
        for start, end in [(0, 1), (1, 9), (3, 40), (8, 10), (17, 100), (99, 100), (0, 400), (3, 398)]:
            assert linear(x[start:end]).equal(whole[start:end])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("form", FORMS)
def test_a_nan_stays_with_its_row(form, kernels):
    linear, x = native(dense(576, 960), kernels, form), inputs(20, 576)
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


def test_what_none_can_hold_is_left_to_others(kernels):
    assert native_linear(dense(65, 48).weight, None, kernels) is None
    wide = DenseLinear(64, 48, bias=False, dtype=torch.float32, device=torch.device("cpu"))
    assert native_linear(wide.weight, None, kernels) is None


def test_a_dense_one_holds_no_more_than_the_weight_and_the_last_blocks_rest(kernels):
    assert native(dense(576, 960), kernels).get_buffer("packed").nbytes == 576 * 960 * 2
    assert native(dense(64, 50), kernels).get_buffer("packed").nbytes == 64 * 96 * 2


def test_a_compact_one_holds_three_quarters_of_it_and_a_little(kernels):
    weight = dense(576, 960).weight
    held = sum(buffer.nbytes for buffer in native_linear(weight, None, kernels).buffers())
    assert 0.75 * weight.nbytes <= held < 0.78 * weight.nbytes


@pytest.mark.parametrize("rows", [1, 8, 9, 40, 200])
def test_a_compact_one_gives_the_bits_of_a_dense_one(rows, kernels):
    plain, x = dense(576, 960, bias=True), inputs(rows, 576)
    assert native(plain, kernels, NativeCompact)(x).equal(native(plain, kernels, NativeDense)(x))


def test_numbers_with_any_high_byte_stay_what_they_are(kernels):
    """Among common numbers, some of every pattern of bits: NaN, infinities, zeros of both signs, the very small."""
    plain = dense(8192, 960)
    bits = plain.weight.data.view(torch.int16)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    bits[:, :68] = every[: 68 * 960].view(960, 68)
    bits[0, 100], bits[47, 8191] = every[-1], every[2**15]
    linear = native(plain, kernels, NativeCompact)
    assert linear.get_buffer("whole").shape[0] >= 20 * 30
    assert linear.weight.view(torch.int16).equal(bits)
    assert linear.rows(torch.tensor([959, 0])).view(torch.int16).equal(bits[[959, 0]])


def test_what_stands_whole_is_multiplied_like_the_rest(kernels):
    plain, x = dense(576, 96), inputs(40, 576)
    small = torch.randn(3, 12, generator=torch.Generator().manual_seed(2)) * 1e-12
    columns = torch.tensor([0, 1, 6, 7, 8, 9, 300, 301, 572, 573, 574, 575])
    plain.weight.data[torch.tensor([[0], [47], [50]]), columns] = small.bfloat16()
    plain.weight.data[50, 1], plain.weight.data[95, 575] = 3e5, -7e8
    linear = native(plain, kernels, NativeCompact)
    assert linear.get_buffer("whole").shape[0] >= 12
    assert linear(x).equal(native(plain, kernels, NativeDense)(x))


def test_a_weight_of_an_unusual_spread_stays_as_it_is(kernels):
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(0, 2**14, (96, 64), generator=generator, dtype=torch.int16)
    with pytest.raises(ValueError, match="other high bytes"):
        NativeCompact(bits.view(torch.bfloat16), None, kernels)
    made = native_linear(bits.view(torch.bfloat16), None, kernels)
    assert isinstance(made, NativeDense)
    assert made.weight.view(torch.int16).equal(bits)


@pytest.mark.parametrize("threads", [1, 3])
def test_packing_does_not_depend_on_the_number_of_threads(threads, kernels):
    weight, before = dense(576, 960).weight, torch.get_num_threads()
    expected = dict(NativeCompact(weight, None, kernels).named_buffers())
    torch.set_num_threads(threads)
    try:
        found = dict(NativeCompact(weight, None, kernels).named_buffers())
    finally:
        torch.set_num_threads(before)
    assert all(found[name].equal(buffer) for name, buffer in expected.items())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("d_in", "d_out"), SHAPES)
def test_its_weight_is_found_again_whole_and_row_by_row(d_in, d_out, form, kernels):
    plain = dense(d_in, d_out)
    linear, some = native(plain, kernels, form), torch.tensor([[0, d_out - 1, d_out // 2], [0, 0, d_out - 1]])
    assert linear.weight.equal(plain.weight)
    assert linear.rows(some).equal(plain.weight[some])


@pytest.mark.parametrize("beyond", [-1, 960, 2**40])
def test_a_row_that_is_not_there_is_refused(beyond, kernels):
    linear = native(dense(576, 960), kernels, NativeCompact)
    with pytest.raises(IndexError):
        linear.rows(torch.tensor([3, beyond]))


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_lm_head_and_its_embeddings_are_held_once_and_give_what_they_gave(tied, tmp_path, kernels):
    folder = tiny_backbone(tmp_path / "tiny", tie_word_embeddings=tied)
    plain = load_backbone(folder, dtype="bfloat16")
    packed = load_backbone(folder, dtype="bfloat16", packed=True, kernels=kernels)
    decoder, tokens = packed.decoder, torch.tensor([[5, 0, plain.shape.vocab - 1]])
    assert isinstance(decoder.embedding, NativeEmbedding) == tied
    assert isinstance(decoder.lm_head, NativeCompact)
    assert decoder.embedding(tokens).equal(plain.decoder.embedding(tokens))
    for name in ("embed_tokens", "lm_head"):
        assert decoder.matrix(name).equal(plain.decoder.matrix(name))
    assert packed.bytes < plain.bytes
