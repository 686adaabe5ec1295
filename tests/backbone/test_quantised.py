"""Quantised linears: their weight, their gradient, their kernels, their memory, and what is refused."""

import sys

import pytest
import torch
from torch.nn import functional as F

from umbel.backbone.decoder import whole_step
from umbel.backbone.linears import DenseLinear, PackedLinear
from umbel.backbone.loading import checkpoint_views, load_backbone, pack
from umbel.backbone.quantised import QUANTISED_SITES, QuantisedLinear, bytes_per_weight, quantised
from umbel.backbone.tiny import tiny_backbone
from umbel.core.bitsandbytes import own_kernels_only
from umbel.core.errors import ConfigError
from umbel.core.forms import FORMS, read_form

NORMAL = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=torch.float64,
)  # fmt: skip
"""Of the QLoRA paper, appendix E: the levels of nf4."""


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_backbone(
        tmp_path_factory.mktemp("quantised") / "tiny",
        hidden_size=64,
        intermediate_size=128,
        head_dim=16,
        attention_bias=True,
    )


def dense(dtype=torch.bfloat16, d_in=128, d_out=96, bias=True, seed=0):
    """With outliers, as real weights have them."""
    made = DenseLinear(d_in, d_out, bias=bias, dtype=dtype, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_out, d_in, generator=generator) * 0.05
    weight[3, 5] = 0.9
    made.weight.copy_(weight)
    if bias:
        made.bias.copy_(torch.randn(d_out, generator=generator))
    return made


def skip_without_kernel(form):
    if form == "nf4" and not torch.cpu.get_capabilities().get("avx512_bf16"):
        pytest.skip("bitsandbytes multiplies nf4 on processors that multiply bf16 alone")


def by_hand(form, weight):
    """The weight that this form should give, in float64, from its definition alone; scales rounded to bf16."""
    w = weight.double()
    if form == "int8":
        scale = (w.abs().amax(1, keepdim=True) / 127).bfloat16().double()
        return (w / scale).round().clamp(-127, 127) * scale
    if form == "int4":
        grouped = w.view(w.shape[0], -1, 32)
        low, high = grouped.amin(2, keepdim=True), grouped.amax(2, keepdim=True)
        scale = ((high - low) / 15).bfloat16().double()
        zero = (low + 8 * scale).bfloat16().double()
        return (((grouped - zero) / scale + 8).round().clamp(0, 15) - 8).mul(scale).add(zero).view_as(w)
    grouped = w.view(w.shape[0], -1, 64)
    most = grouped.abs().amax(2, keepdim=True)
    nearest = ((grouped / most)[..., None] - NORMAL).abs().argmin(-1)
    return (NORMAL[nearest] * most.bfloat16().double()).view_as(w)


def test_a_weight_is_what_its_form_is_defined_as(form):
    made = dense()
    found = quantised(made, form).dequantised(torch.float64)
    wanted = by_hand(form, made.weight)
    odd = (found - wanted).abs() > 1e-5 * wanted.abs().amax()
    assert odd.float().mean() < 2e-3  # a value half-way between two levels may go either way


def test_a_form_is_the_same_weight_in_fp32_as_in_bf16(form):
    """An adapter that was trained in one answers in the other."""
    narrow = dense(torch.bfloat16)
    wide = dense(torch.float32)
    wide.weight.copy_(narrow.weight)
    assert quantised(wide, form).dequantised(torch.float32).equal(quantised(narrow, form).dequantised(torch.float32))


LARGEST = {"int8": 0.005, "int4": 0.04, "nf4": 0.16}
"""Of a weight's error, over the largest weight that it shares a scale with: half a step (nf4: 0.15 at -0.85)."""


def test_no_weight_is_off_by_more_than_half_a_step(form):
    made = dense(torch.float32)
    made.weight[3, 5] = 0.1
    off = (quantised(made, form).dequantised(torch.float32) - made.weight).abs().max()
    assert 0 < off < LARGEST[form] * made.weight.abs().max() * (2 if form == "int4" else 1)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 32, 300])
def test_a_product_is_that_of_the_weight_made_by_hand(form, kernel, rows):
    made = dense()
    linear = quantised(made, form)
    x = torch.randn(rows, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    wanted = x.double() @ linear.dequantised(torch.float64).t() + made.bias.double()
    if kernel:
        skip_without_kernel(form)
    chosen = linear.packed() if kernel else linear
    assert chosen is not None
    found = chosen(x).double()
    assert (found - wanted).norm() <= 4e-3 * wanted.norm()  # bf16 keeps 8 bits: of weights (nf4) and of results


def test_a_part_is_a_slice_of_the_whole_with_or_without_the_bias(form):
    linear = quantised(dense(torch.float32), form)
    x = torch.randn(3, 128)
    for chosen in (linear, linear.packed() or linear):
        whole = chosen(x)
        torch.testing.assert_close(chosen.part(x, slice(32, 64), bias=True), whole[:, 32:64])
        torch.testing.assert_close(
            chosen.part(x, slice(32, 64), bias=False), whole[:, 32:64] - linear.bias[32:64], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gradient_is_that_of_a_plain_linear_holding_the_dequantised_weight(form, dtype):
    linear = quantised(dense(dtype), form)
    x = torch.randn(5, 128, dtype=dtype, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    up = torch.randn(5, 96, dtype=dtype)
    linear(x).backward(up)
    F.linear(other, linear.weight, linear.bias).backward(up)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)


def test_a_kernel_raises_where_a_gradient_is_asked_for(form):
    skip_without_kernel(form)
    packed = quantised(dense(), form).packed()
    with pytest.raises(RuntimeError, match="no gradient"):
        packed(torch.randn(2, 128, dtype=torch.bfloat16, requires_grad=True))


@pytest.mark.parametrize("width", [64, 576, 1536])
def test_a_row_has_the_same_bits_in_any_company(form, width):
    skip_without_kernel(form)
    packed = quantised(dense(d_in=width, d_out=320, bias=False), form).packed()
    x = torch.randn(96, width, generator=torch.Generator().manual_seed(2)).bfloat16()
    together = packed(x)
    for company in (1, 2, 3, 7, 8, 31, 32, 33, 96):
        apart = torch.cat([packed(x[at : at + company]) for at in range(0, 96, company)])
        assert torch.equal(apart, together), company


@pytest.mark.parametrize("width", [576, 1536])
def test_a_prompts_row_has_the_same_bits_in_any_company_and_beside_any_answers(form, width):
    linear = quantised(dense(d_in=width, d_out=320), form)
    skip_without_kernel(form)
    packed = linear.packed()
    x = torch.randn(130, width, generator=torch.Generator().manual_seed(3)).bfloat16()
    together = packed(x, 0)
    for company in (1, 2, 3, 16, 31, 33, 65, 130):
        apart = torch.cat([packed(x[at : at + company], 0) for at in range(0, 130, company)])
        assert torch.equal(apart, together), company
    for decoding in (1, 2, 31, 129, 130):
        mixed = packed(x, decoding)
        assert torch.equal(mixed[:decoding], packed(x)[:decoding])
        assert torch.equal(mixed[decoding:], together[decoding:])
    wanted = x.double() @ linear.dequantised(torch.float64).t() + linear.bias.double()
    assert (together.double() - wanted).norm() <= 4e-3 * wanted.norm()
    assert torch.equal(together, packed(x)) != packed.splits  # or it would be a test of the same product twice


def test_a_large_activation_stays_finite_in_fp16(form):
    """Llamas have activations of hundreds; times codes of 127 they would pass fp16's largest number."""
    linear = quantised(dense(torch.float16, bias=False), form)
    packed = linear.packed() or linear
    x = torch.full((4, 128), 600.0, dtype=torch.float16)
    for decoding in (None, 0, 2):
        assert packed(x, decoding).isfinite().all()


def test_a_quantised_backbone_takes_the_bytes_of_its_form(folder, form):
    plain = load_backbone(folder, dtype="bf16")
    small = load_backbone(folder, dtype="bf16", quantise=form)
    linears = sum(getattr(layer, site).weight.numel() for layer in plain.decoder.layers for site in QUANTISED_SITES)
    scales = 2 * sum(getattr(layer, site).d_out for layer in small.decoder.layers for site in QUANTISED_SITES)
    wanted = linears * (2 - bytes_per_weight(form)) - (scales if form == "int8" else 0)
    assert plain.bytes - small.bytes == wanted
    dense_bytes = plain.bytes
    pack(plain.decoder)
    pack(small.decoder)
    assert plain.bytes == dense_bytes  # oneDNN's own order takes no more
    assert dense_bytes - plain.bytes <= 0 < dense_bytes - small.bytes <= wanted + 1024


def test_it_is_never_held_whole_while_it_is_loaded(folder, form, monkeypatch):
    """Each layer is quantised before the next one is read."""
    from umbel.backbone import loading

    held = []

    def note(linear, wanted):
        dense_now = [m for m in made[0].modules() if isinstance(m, DenseLinear) and not m.weight.is_meta]
        held.append(len(dense_now))
        return quantised(linear, wanted)

    made = []
    plain = loading.Decoder
    monkeypatch.setattr(loading, "Decoder", lambda *a: made.append(plain(*a)) or made[0])
    monkeypatch.setattr(loading, "quantised", note)
    load_backbone(folder, quantise=form)
    assert max(held) == len(QUANTISED_SITES)


def logits(backbone):
    tokens = torch.arange(48).view(2, 24) + 65
    return backbone.decoder(tokens, whole_step(rows=2, tokens=24, want=torch.arange(48))).logits


def held_dense(folder, form, dtype):
    """A plain backbone that holds the dequantised weights."""
    plain, small = load_backbone(folder, dtype=dtype), load_backbone(folder, dtype=dtype, quantise=form)
    for ours, theirs in zip(plain.decoder.layers, small.decoder.layers, strict=True):
        for site in QUANTISED_SITES:
            getattr(ours, site).weight.copy_(getattr(theirs, site).weight)
    return plain, small


def test_a_quantised_decoder_is_the_plain_one_with_its_weights(folder, form):
    plain, small = held_dense(folder, form, "fp64")
    torch.testing.assert_close(logits(small), logits(plain), rtol=1e-12, atol=1e-12)
    whole = logits(load_backbone(folder, dtype="fp64"))
    assert (whole - logits(plain)).abs().max() > 1e-4  # or quantising had done nothing


def test_kernels_answer_as_the_dequantised_product_does(folder, form):
    skip_without_kernel(form)
    small = load_backbone(folder, dtype="bf16", quantise=form)
    before = logits(small).float()
    pack(small.decoder)
    packed = [m for m in small.decoder.modules() if isinstance(m, PackedLinear)]
    assert len(packed) == 4 * small.shape.layers
    after = logits(small).float()
    assert (after - before).norm() <= 0.03 * before.norm()


def test_row_norms_are_those_of_the_dequantised_weight(folder, form):
    """DoRA divides by them."""
    plain, small = held_dense(folder, form, "fp32")
    for name in ("q_proj", "v_proj", "up_proj", "down_proj"):
        wanted = plain.decoder.layers[1].row_norm2(name)
        torch.testing.assert_close(small.decoder.layers[1].row_norm2(name), wanted)
    pack(small.decoder)
    torch.testing.assert_close(small.decoder.layers[1].row_norm2("k_proj"), plain.decoder.layers[1].row_norm2("k_proj"))


def test_the_fingerprint_is_that_of_the_files(folder, form):
    plain, small = load_backbone(folder), load_backbone(folder, quantise=form)
    assert small.fingerprint == plain.fingerprint
    assert (plain.quantised, small.quantised) == (None, form)
    torch.testing.assert_close(small.decoder.matrix("lm_head"), plain.decoder.matrix("lm_head"))


def test_quantised_weights_are_never_written_as_the_checkpoints(folder, form):
    with pytest.raises(AssertionError):
        checkpoint_views(load_backbone(folder, quantise=form).decoder)


def test_widths_that_no_group_divides_are_refused_by_name(tmp_path):
    odd = tiny_backbone(tmp_path / "odd", hidden_size=48, head_dim=12, intermediate_size=64)
    with pytest.raises(ConfigError, match=r"shares a scale among 32 inputs.*48") as told:
        load_backbone(odd, quantise="int4")
    assert "int8" in told.value.hint
    with pytest.raises(ConfigError, match="64 inputs"):
        load_backbone(odd, quantise="nf4")
    assert isinstance(load_backbone(odd, quantise="int8").decoder.layers[0].qkv, QuantisedLinear)


def test_nf4_without_its_library_is_refused_with_the_command(folder, monkeypatch):
    monkeypatch.setattr("umbel.backbone.quantised.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="bitsandbytes") as told:
        load_backbone(folder, quantise="nf4")
    assert told.value.code == "quantisation_unavailable"
    assert "umbel[quantised]" in told.value.hint
    load_backbone(folder, quantise="int4")  # torch's own


def test_an_unknown_form_is_refused_by_name():
    with pytest.raises(ConfigError, match="'int3'") as told:
        read_form("int3")
    assert "int8, int4, nf4" in told.value.hint
    assert read_form("none", "int8") is None
    assert read_form(None, "int8") == "int8"


def test_bitsandbytes_is_imported_without_a_look_at_any_hub(monkeypatch):
    """It would download and run a program where the package ``kernels`` is there."""
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    there = object()
    monkeypatch.setitem(sys.modules, "kernels", there)
    with own_kernels_only():
        assert sys.modules["kernels"] is None
        with pytest.raises(ImportError):
            import kernels  # noqa: F401
    assert sys.modules["kernels"] is there
