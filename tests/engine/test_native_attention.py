"""The kernel's attention against float64: a row's own places and no others, beside long rows and short ones."""

import pytest
import torch

from umbel.core.shape import BackboneShape
from umbel.engine.kv import KVCache
from umbel.engine.native_attention import NativeDecode

SHAPES = [(4, 2, 16), (9, 3, 64), (5, 1, 24), (8, 8, 6), (6, 1, 128)]


def bench(heads, kv_heads, width, positions, slots=None, seed=0):
    shape = BackboneShape(layers=1, hidden=heads * width, heads=heads, kv_heads=kv_heads, head_dim=width,
                          intermediate=8, vocab=8, tied=True)  # fmt: skip
    slots = list(range(len(positions))) if slots is None else slots
    cache = KVCache(shape, slots=max(slots) + 1, length=max(positions) + 1, budget=0, dtype=torch.bfloat16,
                    device=torch.device("cpu"))  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(*size, generator=generator).bfloat16()

    for slot, position in zip(slots, positions, strict=True):
        cache.touch(slot, position + 1)
    cache.slabs.copy_(random(*cache.slabs.shape))
    rows = len(positions)
    qkv = random(rows, 1, heads + 2 * kv_heads, width).transpose(1, 2)
    return shape, cache, slots, torch.split(qkv, [heads, kv_heads, kv_heads], 1)


def truth(shape, cache, slots, positions, q, k, v):
    group, rows = shape.heads // shape.kv_heads, []
    for row, (slot, at) in enumerate(zip(slots, positions, strict=True)):
        keys, values = (cache.slabs[0, i, slot, :, : at + 1].double().clone() for i in (0, 1))
        keys[:, at], values[:, at] = k[row, :, 0].double(), v[row, :, 0].double()
        keys, values = (x.repeat_interleave(group, 0) for x in (keys, values))
        scores = q[row].double() @ keys.transpose(1, 2) * shape.head_dim**-0.5
        rows.append(scores.softmax(-1) @ values)
    return torch.stack(rows)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES)
def test_it_is_float64s_attention_rounded(heads, kv_heads, width, kernels):
    positions, slots = [0, 3, 70, 15, 16], [4, 0, 2, 1, 3]
    shape, cache, slots, (q, k, v) = bench(heads, kv_heads, width, positions, slots)
    expected = truth(shape, cache, slots, positions, q, k, v)
    found = NativeDecode(kernels, cache, shape, positions, slots)(0, q, k, v)
    assert (found.double() - expected).abs().max() < 2**-8 * expected.abs().max()
    for row, (slot, at) in enumerate(zip(slots, positions, strict=True)):
        assert cache.slabs[0, 0, slot, :, at].equal(k[row, :, 0])
        assert cache.slabs[0, 1, slot, :, at].equal(v[row, :, 0])


@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES)
def test_a_row_has_the_same_bits_alone_and_beside_long_rows(heads, kv_heads, width, kernels):
    positions = [37, 400, 2, 90]
    shape, cache, slots, (q, k, v) = bench(heads, kv_heads, width, positions)
    together = NativeDecode(kernels, cache, shape, positions, slots)(0, q, k, v)
    for row in range(4):
        own = slice(row, row + 1)
        alone = NativeDecode(kernels, cache, shape, positions[own], [row])(0, q[own], k[own], v[own])
        assert alone[0].equal(together[row])


def test_what_lies_behind_a_row_is_not_seen_and_a_nan_stays_with_its_row(kernels):
    positions = [5, 20, 9]
    shape, cache, slots, (q, k, v) = bench(4, 2, 16, positions)
    clean = NativeDecode(kernels, cache, shape, positions, slots)(0, q, k, v)
    for slot, at in enumerate(positions):
        cache.slabs[:, :, slot, :, at + 1 :] = float("nan")
    assert NativeDecode(kernels, cache, shape, positions, slots)(0, q, k, v).equal(clean)
    cache.slabs[0, 0, 1, :, 4] = float("nan")
    found = NativeDecode(kernels, cache, shape, positions, slots)(0, q, k, v)
    assert found[1].isnan().all()
    assert found[[0, 2]].equal(clean[[0, 2]])


def test_large_scores_do_not_overflow(kernels):
    positions = [30, 30]
    shape, cache, slots, (q, k, v) = bench(4, 2, 16, positions)
    q = q * 200
    expected = truth(shape, cache, slots, positions, q, k, v)
    found = NativeDecode(kernels, cache, shape, positions, slots)(0, q, k, v)
    assert (found.double() - expected).abs().max() < 2**-7 * expected.abs().max()
