"""The cache: rows move whole, pages go back, attention sees exactly what came before."""

import random

import pytest
import torch
from torch.nn import functional as F

from umbel.core.shape import BackboneShape
from umbel.engine.attention import CachedAttention, Span
from umbel.engine.kv import KVCache


def shape_of(heads, kv_heads, head_dim=16):
    return BackboneShape(
        hidden=32, layers=1, heads=heads, kv_heads=kv_heads, head_dim=head_dim, intermediate=32, vocab=8
    )


def cache_of(shape, dtype=torch.float32, slots=5, length=64, budget=1 << 30):
    return KVCache(shape, slots=slots, length=length, budget=budget, dtype=dtype, device=torch.device("cpu"))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (9, 3), (4, 4), (4, 1)])
def test_rows_of_any_lengths_in_any_steps_attend_like_a_whole_causal_pass(heads, kv_heads):
    shape, rng = shape_of(heads, kv_heads), random.Random(0)
    generator = torch.Generator().manual_seed(0)
    cache = cache_of(shape, torch.float64)
    total = [40, 3, 25, 17]
    q = [torch.randn(n, heads, 1, 16, generator=generator, dtype=torch.float64) for n in total]
    k = [torch.randn(n, kv_heads, 1, 16, generator=generator, dtype=torch.float64) for n in total]
    v = [torch.randn(n, kv_heads, 1, 16, generator=generator, dtype=torch.float64) for n in total]
    done, found = [0] * 4, [[] for _ in total]
    while done != total:
        decoding = next(i for i in range(5) if i == 4 or not 0 < done[i] < total[i] or rng.random() < 0.3)
        spans, pieces, at = [], [(i, 1) for i in range(decoding)], decoding
        for i in range(decoding, 4):
            count = rng.randint(0, total[i] - done[i])
            if count:
                spans.append(Span(i, done[i], count, at))
                pieces.append((i, count))
                at += count
        if not pieces:
            continue
        attention = CachedAttention(cache, shape, [done[i] for i in range(decoding)], spans)
        step = [torch.cat([x[i][done[i] : done[i] + n] for i, n in pieces]) for x in (q, k, v)]
        context = attention(0, *step).split([n for _, n in pieces])
        for (i, n), part in zip(pieces, context, strict=True):
            found[i].append(part)
            done[i] += n
    for i in range(4):
        expected = F.scaled_dot_product_attention(
            *(x[i][:, :, 0].transpose(0, 1)[None] for x in (q, k, v)), is_causal=True, enable_gqa=True
        )
        torch.testing.assert_close(torch.cat(found[i])[:, :, 0], expected[0].transpose(0, 1), rtol=0, atol=1e-12)


def filled(cache, slot, used):
    cache.touch(slot, used)
    cache.slabs[:, :, slot, :, :used] = torch.randn(cache.slabs[:, :, slot, :, :used].shape)
    return cache.slabs[:, :, slot, :, :used].clone()


def test_moved_and_swapped_rows_keep_their_content():
    cache = cache_of(shape_of(4, 2))
    a, b = filled(cache, 0, 9), filled(cache, 1, 30)
    cache.swap(0, 1, 30)
    cache.move(0, 3, 30)
    assert torch.equal(cache.slabs[:, :, 1, :, :9], a)
    assert torch.equal(cache.slabs[:, :, 3, :, :30], b)


def test_a_cleared_slot_holds_only_zeros():
    cache = cache_of(shape_of(4, 2))
    filled(cache, 2, 20)
    cache.slabs[:, :, 2, :, 5] = float("nan")
    cache.clear(2)
    assert not cache.slabs[:, :, 2].any()


def test_touched_pages_go_back_when_they_exceed_the_budget():
    shape = shape_of(4, 2, head_dim=64)
    cache = cache_of(shape, slots=3, length=4096, budget=0)
    kept = filled(cache, 0, 4096)
    filled(cache, 1, 4096)
    filled(cache, 2, 4096)
    assert cache.touched_bytes == 3 * 4096 * cache.token_bytes
    cache.free(1)
    assert cache.touched_bytes == 4096 * cache.token_bytes
    assert torch.equal(cache.slabs[:, :, 0], kept)
    assert not cache.slabs[:, :, 1:].any()  # a page that was given back reads as zeros


def test_freed_pages_stay_while_the_budget_allows():
    cache = cache_of(shape_of(4, 2), budget=1 << 20)
    kept = filled(cache, 1, 64)
    cache.free(0)
    assert torch.equal(cache.slabs[:, :, 1], kept)
