"""Products of bf16 in fp32: to the bit what rounding an fp32 product once gives, forward and backward."""

import pytest
import torch

from umbel.adapters import wide_products
from umbel.adapters.wide_products import attention, baddbmm, bmm, linear, multiplies_bf16, wanted

PRODUCTS = {
    "linear": (linear, (7, 33), (5, 33)),
    "linear of rows with a bias": (linear, (2, 7, 33), (5, 33), (5,)),
    "bmm": (bmm, (3, 7, 33), (3, 33, 5)),
    "baddbmm": (baddbmm, (3, 7, 5), (3, 7, 33), (3, 33, 5)),
    "baddbmm with one row for all": (baddbmm, (3, 1, 5), (3, 7, 33), (3, 33, 5)),
}


@pytest.fixture(autouse=True)
def lesser(monkeypatch):
    monkeypatch.setattr(wide_products, "_multiplies", lambda: False)


def drawn(shapes, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype) for shape in shapes]


def result_and_gradients(product, tensors, weight):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    made = product(*tensors)
    return [made.detach(), *torch.autograd.grad(made, tensors, weight.to(made.dtype))]


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_and_its_gradients_are_those_of_fp32_rounded_once(name):
    product, *shapes = PRODUCTS[name]
    tensors = drawn(shapes)
    (weight,) = drawn([product(*tensors).shape])
    found = result_and_gradients(product, tensors, weight)
    wide = result_and_gradients(product, [tensor.float() for tensor in tensors], weight)
    for one, other in zip(found, wide, strict=True):
        assert one.dtype == torch.bfloat16
        assert one.equal(other.bfloat16())


def test_the_gradient_of_attention_is_as_good_as_bf16_can_tell():
    tensors = drawn([(1, 4, 48, 16), (1, 4, 48, 16), (1, 4, 48, 16)])
    (weight,) = drawn([(1, 4, 48, 16)])
    found = result_and_gradients(lambda *qkv: attention(*qkv, is_causal=True), tensors, weight)
    exact = [tensor.double() for tensor in tensors]
    truth = result_and_gradients(lambda *qkv: attention(*qkv, is_causal=True), exact, weight)
    for one, other in zip(found, truth, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).abs().max() < 2**-8 * other.abs().max()


@pytest.mark.parametrize(
    ("can", "multiplies"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "x86_64"}, False),
        ({"architecture": "aarch64"}, True),
    ],
)
def test_a_processor_is_asked_for_its_products_of_bf16(monkeypatch, can, multiplies):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert multiplies_bf16() == multiplies


def test_they_are_for_bf16_on_a_cpu_that_has_none(monkeypatch):
    cpu = torch.device("cpu")
    assert wanted(torch.bfloat16, cpu)
    assert not wanted(torch.float32, cpu)
    assert not wanted(torch.bfloat16, torch.device("cuda"))
    monkeypatch.setattr(wide_products, "_multiplies", lambda: True)
    assert not wanted(torch.bfloat16, cpu)


def test_the_engine_s_products_stay_as_they_are():
    with torch.inference_mode():
        assert not wanted(torch.bfloat16, torch.device("cpu"))
