"""The cache: rows move whole, pages go back, attention sees exactly what came before."""

import random
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from umbel.backbone.loading import load_backbone
from umbel.backbone.pages import reserve
from umbel.backbone.tiny import tiny_backbone
from umbel.core.shape import BackboneShape
from umbel.engine import kv
from umbel.engine.attention import CachedAttention
from umbel.engine.kv import KVCache
from umbel.engine.selfcheck import check_rows
from umbel.engine.span import Span


def shape_of(heads, kv_heads, head_dim=16):
    return BackboneShape(
        hidden=32, layers=1, heads=heads, kv_heads=kv_heads, head_dim=head_dim, intermediate=32, vocab=8
    )


def cache_of(shape, dtype=torch.float32, slots=5, length=64, budget=1 << 30, **more):
    return KVCache(shape, slots=slots, length=length, budget=budget, dtype=dtype, device=torch.device("cpu"), **more)


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


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(9, 3, 64), (8, 8, 64), (4, 2, 8)])
def test_a_row_in_bf16_sums_in_the_same_order_whatever_the_longest_row(heads, kv_heads, head_dim, tmp_path):
    """Equal weights on values that cancel out leave nothing but the rounding of the order of summation.

    Where the processor does not multiply bf16, torch emulates it in orders of its own: there the self-check has to say
    so.
    """
    shape, generator = shape_of(heads, kv_heads, head_dim), torch.Generator().manual_seed(0)
    cache = cache_of(shape, torch.bfloat16, slots=8, length=3000)
    q = torch.zeros(8, heads, 1, head_dim, dtype=torch.bfloat16)
    k = torch.zeros(8, kv_heads, 1, head_dim, dtype=torch.bfloat16)
    unequal = []
    for count in (2, 10, 16, 40, 60, 100, 300, 500, 512, 520, 600, 1000, 1024, 1030, 1500, 2000):
        half = torch.randn(kv_heads, count // 2, head_dim, generator=generator).bfloat16()
        values = torch.cat([half, -half], 1)[:, torch.randperm(count, generator=generator)]
        cache.touch(0, count)
        cache.slabs[0, 1, 0, :, :count] = values
        v = values[:, -1:].expand(8, -1, -1, -1)
        at = count - 1
        alone = CachedAttention(cache, shape, [at], [])(0, q[:1], k[:1], v[:1])[0]
        for others in ([5], [60, 700, 3], [999, 13, 1], [2990, 1100, 0, 4, 70, 9, 11]):
            rows = len(others) + 1
            among = CachedAttention(cache, shape, [at, *others], [])(0, q[:rows], k[:rows], v[:rows])[0]
            unequal += [] if torch.equal(alone, among) else [(count, others)]
        as_chunk = CachedAttention(cache, shape, [], [Span(0, at, 1, 0)])(0, q[:1], k[:1], v[:1])[0]
        unequal += [] if torch.equal(alone, as_chunk) else [(count, "as a chunk")]
    if torch.cpu.get_capabilities().get("avx512_bf16"):
        assert not unequal
    elif unequal:
        sizes = {"hidden_size": heads * head_dim, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
        folder = tiny_backbone(tmp_path / "tiny", **sizes, head_dim=head_dim, max_position_embeddings=3000)
        report = check_rows(load_backbone(folder, dtype="bfloat16", packed=True))
        assert "attention" in [check.name for check in report.checks if not check.equal], unequal


def test_weights_of_few_keys_have_the_same_bits_whatever_the_longest_row():
    """Keys and values that hand the weights through: the context is the softmax itself."""
    shape, width = shape_of(9, 3, 64), 64
    cache = cache_of(shape, slots=2, length=128)
    cache.touch(1, 128)
    cache.slabs[0, 0, :, :, :width, 0] = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0)) * 20
    cache.slabs[0, 1, :, :, :width] = torch.eye(width)
    q, keys = torch.zeros(2, 9, 1, width), cache.slabs[0, 0].clone()
    q[..., 0] = 1.0
    for at in range(width):
        k = torch.stack([keys[0, :, at : at + 1], keys[1, :, 100:101]])
        v = torch.eye(width)[at].expand(2, 3, 1, -1)
        alone = CachedAttention(cache, shape, [at], [])(0, q[:1], k[:1], v[:1])[0]
        among = CachedAttention(cache, shape, [at, 100], [])(0, q, k, v)[0]
        assert torch.equal(alone, among), at
        assert alone.sum() == pytest.approx(9.0)


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


def test_slabs_grow_with_the_longest_row_and_keep_what_running_rows_wrote():
    cache = cache_of(shape_of(4, 2), slots=4, length=4096)
    rows = {slot: filled(cache, slot, used) for slot, used in ((0, 9), (1, 60), (3, 40))}
    cache.free(3)  # the last row left
    small = cache.window
    cache.touch(0, 700)
    assert small < 700 <= cache.window < 1400
    for slot in (0, 1):
        used = rows[slot].shape[3]
        assert torch.equal(cache.slabs[:, :, slot, :, :used], rows[slot])
        assert not cache.slabs[:, :, slot, :, used:].any()
    assert not cache.slabs[:, :, 3].any()
    cache.free(0)
    assert cache.window == small


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts pages as Linux tells them")
def test_whole_slabs_stay_where_they_are_and_take_the_memory_of_what_is_written():
    before = resident_bytes()
    cache = cache_of(shape_of(4, 2, head_dim=64), slots=8, length=1 << 18, whole=True)
    start = cache.slabs.data_ptr()
    row = filled(cache, 3, 5000)
    cache.touch(0, 1 << 18)
    cache.free(4)
    assert (cache.window, cache.slabs.data_ptr()) == (1 << 18, start)
    assert torch.equal(cache.slabs[:, :, 3, :, :5000], row)
    cache.free(0)
    assert cache.slabs.data_ptr() == start
    assert cache.slabs.nbytes == 2 << 30
    assert resident_bytes() - before < 64 << 20


def test_where_the_system_promises_too_little_slabs_grow(monkeypatch):
    def refuses(nbytes):
        if nbytes > 1 << 22:
            raise OSError("no such promise")
        return reserve(nbytes)

    monkeypatch.setattr(kv, "reserve", refuses)
    cache = cache_of(shape_of(4, 2), slots=4, length=1 << 16, whole=True)
    assert cache.window < 1000
    assert torch.equal(filled(cache, 2, 60), cache.slabs[:, :, 2, :, :60])
    cache.touch(0, 700)
    assert 700 <= cache.window < 1400


def test_a_decode_step_looks_at_whole_slabs_unless_they_are_twice_too_long():
    cache = cache_of(shape_of(9, 3, 64), slots=2, length=4096)
    cache.touch(0, 300)
    assert cache.look(290) == cache.window  # a part of each would be copied by oneDNN, in every step
    assert cache.look(20) == cache.visible(20) < cache.window


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
    assert torch.equal(cache.slabs[:, :, 1, :, :64], kept)
