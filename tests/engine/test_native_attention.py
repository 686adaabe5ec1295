"""The kernels' attention against float64: a row's own places and no others, in any company and however cut."""

import pytest
import torch

from umbel.core.shape import BackboneShape
from umbel.engine.kv import KVCache
from umbel.engine.native_attention import NativeDecode, NativePrompt
from umbel.engine.span import Span

SHAPES = [(4, 2, 16), (9, 3, 64), (5, 1, 24), (8, 8, 6), (6, 1, 128)]


@pytest.fixture(scope="session")
def kernels(any_kernels):
    return any_kernels


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


@pytest.mark.parametrize("positions", [[6, 7, 8, 3], [8, 7, 6, 3]], ids=["rising", "falling"])
def test_places_of_one_slot_see_those_before_them_in_whatever_order_they_come(positions, kernels):
    slots = [1, 1, 1, 0]
    shape, cache, _, (q, k, v) = bench(4, 2, 16, positions, slots)
    before = cache.slabs.clone()
    found = NativeDecode(kernels, cache, shape, positions, slots)(0, q, k, v)
    cache.slabs.copy_(before)
    for row in sorted(range(4), key=positions.__getitem__):
        own = slice(row, row + 1)
        alone = NativeDecode(kernels, cache, shape, positions[own], slots[own])(0, q[own], k[own], v[own])
        assert alone[0].equal(found[row])


def test_large_scores_do_not_overflow(kernels):
    positions = [30, 30]
    shape, cache, slots, (q, k, v) = bench(4, 2, 16, positions)
    q = q * 200
    expected = truth(shape, cache, slots, positions, q, k, v)
    found = NativeDecode(kernels, cache, shape, positions, slots)(0, q, k, v)
    assert (found.double() - expected).abs().max() < 2**-7 * expected.abs().max()


def prompts(kernels, shape, cache, spans, q, k, v):
    context = torch.full(q.shape, float("nan"), dtype=q.dtype)
    NativePrompt(kernels, cache, shape, spans)(0, q, k, v, context)
    return context


def chunk_bench(heads, kv_heads, width, spans, seed=0):
    """A cache full of random keys, and the step's own tokens."""
    tokens = sum(span.count for span in spans)
    positions = [span.start + span.count - 1 for span in spans]
    shape, cache, _, _ = bench(heads, kv_heads, width, positions, [span.slot for span in spans], seed)
    generator = torch.Generator().manual_seed(seed + 1)
    qkv = torch.randn(tokens, 1, heads + 2 * kv_heads, width, generator=generator).bfloat16().transpose(1, 2)
    return shape, cache, torch.split(qkv, [heads, kv_heads, kv_heads], 1)


def chunk_truth(shape, cache, span, q, k, v):
    """[T,N,1,D] of one span, in float64, from what the cache held before and the span's own keys and values."""
    group, here = shape.heads // shape.kv_heads, slice(span.at, span.at + span.count)
    length = span.start + span.count
    keys, values = (cache.slabs[0, i, span.slot, :, :length].double().clone() for i in (0, 1))
    for slab, new in ((keys, k), (values, v)):
        slab[:, span.start :] = new[here, :, 0].double().transpose(0, 1)
    keys, values = (x.repeat_interleave(group, 0) for x in (keys, values))
    scores = q[here, :, 0].double().transpose(0, 1) @ keys.transpose(1, 2) * shape.head_dim**-0.5
    hidden = torch.arange(length) > torch.arange(span.start, length)[:, None]
    context = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values
    return context.transpose(0, 1)[:, :, None]


def cut(tokens, sizes, slot=0):
    """The spans of a prompt that is read in pieces, each at place 0 of its own step."""
    assert sum(sizes) == tokens
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [Span(slot, start, size, 0) for start, size in zip(starts, sizes, strict=True)]


@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES)
def test_prompts_are_float64s_attention_rounded_and_their_keys_are_written(heads, kv_heads, width, kernels):
    spans = [Span(2, 0, 37, 0), Span(0, 255, 130, 37), Span(1, 128, 1, 167), Span(3, 5, 6, 168)]
    shape, cache, (q, k, v) = chunk_bench(heads, kv_heads, width, spans)
    expected = [chunk_truth(shape, cache, span, q, k, v) for span in spans]
    found = prompts(kernels, shape, cache, spans, q, k, v)
    for span, truth_of_span in zip(spans, expected, strict=True):
        here, places = slice(span.at, span.at + span.count), slice(span.start, span.start + span.count)
        assert (found[here].double() - truth_of_span).abs().max() < 2**-8 * truth_of_span.abs().max()
        assert cache.slabs[0, 0, span.slot, :, places].equal(k[here, :, 0].transpose(0, 1))
        assert cache.slabs[0, 1, span.slot, :, places].equal(v[here, :, 0].transpose(0, 1))


@pytest.mark.parametrize("sizes", [[300], [1, 299], [128, 128, 44], [127, 2, 171], [64] * 4 + [44], [299, 1]])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), SHAPES[:3])
def test_a_prompts_bits_do_not_depend_on_where_it_was_cut(heads, kv_heads, width, sizes, kernels):
    shape, cache, (q, k, v) = chunk_bench(heads, kv_heads, width, [Span(0, 0, 300, 0)])
    whole = prompts(kernels, shape, cache, [Span(0, 0, 300, 0)], q, k, v)
    cache.slabs.zero_()
    for span in cut(300, sizes):
        own = slice(span.start, span.start + span.count)
        assert prompts(kernels, shape, cache, [span], q[own], k[own], v[own]).equal(whole[own])


def test_a_prompts_bits_do_not_depend_on_who_is_read_beside_it(kernels):
    spans = [Span(1, 40, 60, 0), Span(0, 200, 90, 60), Span(2, 0, 3, 150)]
    shape, cache, (q, k, v) = chunk_bench(9, 3, 64, spans)
    together = prompts(kernels, shape, cache, spans, q, k, v)
    for span in spans:
        own = slice(span.at, span.at + span.count)
        alone = prompts(kernels, shape, cache, [Span(span.slot, span.start, span.count, 0)], q[own], k[own], v[own])
        assert alone.equal(together[own])


def test_a_prompt_does_not_see_what_lies_behind_it_and_a_nan_stays_with_its_row(kernels):
    spans = [Span(0, 3, 20, 0), Span(1, 130, 9, 20)]
    shape, cache, (q, k, v) = chunk_bench(4, 2, 16, spans)
    clean = prompts(kernels, shape, cache, spans, q, k, v)
    for span in spans:
        cache.slabs[:, :, span.slot, :, span.start + span.count :] = float("nan")
    assert prompts(kernels, shape, cache, spans, q, k, v).equal(clean)
    cache.slabs[0, 0, 1, :, 4] = float("nan")
    found = prompts(kernels, shape, cache, spans, q, k, v)
    assert found[20:].isnan().all()
    assert found[:20].equal(clean[:20])


def test_large_scores_of_a_prompt_do_not_overflow(kernels):
    span = Span(0, 0, 200, 0)
    shape, cache, (q, k, v) = chunk_bench(4, 2, 16, [span])
    q = q * 200
    expected = chunk_truth(shape, cache, span, q, k, v)
    found = prompts(kernels, shape, cache, [span], q, k, v)
    assert (found.double() - expected).abs().max() < 2**-7 * expected.abs().max()
