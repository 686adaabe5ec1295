"""Each kernel against the formula in float64, at widths that do and do not fill a vector; the same bits in company."""

import pytest
import torch
from torch.nn import functional as F

from umbel.backbone.decoder import rotate
from umbel.backbone.native import Pointwise

ROUNDING = 2**-8
"""bf16 keeps 8 bits: the nearest is within 2^-9 of a value, and a value that lies between two may fall either way."""
WIDTHS = [3, 16, 40, 64, 576]


@pytest.fixture(scope="session")
def kernels(any_kernels):
    return any_kernels


@pytest.fixture
def pointwise(kernels):
    return Pointwise(kernels)


def random(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).bfloat16()


def near(found, truth, scale=None):
    assert found.dtype == torch.bfloat16
    size = truth.abs() if scale is None else scale
    assert ((found.double() - truth).abs() <= ROUNDING * size + 1e-30).all()


@pytest.mark.parametrize("size", [1.0, 1e-3], ids=["plain", "small beside epsilon"])
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(pointwise, width, size):
    x, weight = random(5, 2, width) * size, random(width, seed=1)
    wide = x.double()
    truth = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    near(pointwise.rms_norm(x, weight, 1e-5), truth)


@pytest.mark.parametrize("width", WIDTHS)
def test_silu_mul(pointwise, width):
    x = random(7, 1, 2 * width) * 8
    gate, up = x.double().chunk(2, -1)
    near(pointwise.silu_mul(x), F.silu(gate) * up)


def test_silu_mul_at_its_ends(pointwise):
    ends = torch.tensor([-3e38, -200.0, -90.0, -0.0, 0.0, 90.0, 200.0, 3e38, float("nan")]).bfloat16()
    found = pointwise.silu_mul(torch.cat([ends, torch.ones_like(ends)])[None]).float()[0]
    assert found[:5].abs().max() == 0
    assert found[5:8].equal(ends[5:8].float())
    assert found[8].isnan()


@pytest.mark.parametrize(("heads", "width"), [(3, 6), (2, 32), (4, 64), (1, 128)])
def test_rotate_turns_the_first_heads_and_leaves_the_rest(pointwise, heads, width):
    x = random(4, 3, heads + 2, width)
    angles = torch.rand(4, 1, 3, width // 2, generator=torch.Generator().manual_seed(2)) * 6
    cos, sin = (torch.cat([part(angles)] * 2, -1).bfloat16() for part in (torch.cos, torch.sin))
    found = x.clone()
    pointwise.rotate(found, cos, sin, heads)
    turned = x[:, :, :heads].transpose(1, 2).double()
    truth = rotate(turned, cos.double(), sin.double())
    pairs = turned.abs() + turned.abs().roll(width // 2, -1)
    near(found[:, :, :heads].transpose(1, 2), truth, pairs)
    assert found[:, :, heads:].equal(x[:, :, heads:])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_alone_and_among_a_thousand(pointwise, threads, set_threads):
    set_threads(threads)
    x, weight = random(1000, 1, 128), random(128, seed=1)
    assert pointwise.rms_norm(x, weight, 1e-5)[7:8].equal(pointwise.rms_norm(x[7:8], weight, 1e-5))
    assert pointwise.silu_mul(x)[7:8].equal(pointwise.silu_mul(x[7:8]))


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("width", [1, 5, 16, 1023, 1024, 1025, 49152])
def test_likeliest_is_the_first_of_the_largest(pointwise, width):
    logits = random(5, width)
    logits[1] = logits[1, 0]
    logits[2, width // 2] = logits[2, width - 1] = 9.0
    logits[3] = float("-inf")
    best, place = pointwise.likeliest(logits)
    assert best.equal(logits.float().amax(-1))
    assert place.tolist() == [(row == value).nonzero()[0, 0].item() for row, value in zip(logits, best, strict=True)]


@pytest.mark.parametrize("at", [0, 17, 1023, 1024, 2000])
def test_likeliest_of_a_row_with_nan_is_nan_and_no_other_row_is(pointwise, at):
    logits = random(3, 2001)
    clean = pointwise.likeliest(logits)
    logits[1, at] = float("nan")
    best, place = pointwise.likeliest(logits)
    assert best[1].isnan()
    assert best[[0, 2]].equal(clean[0][[0, 2]])
    assert place[[0, 2]].equal(clean[1][[0, 2]])


def test_likeliest_reads_rows_that_do_not_lie_side_by_side(pointwise):
    logits = random(6, 700)
    found, expected = pointwise.likeliest(logits[::2, 3:]), pointwise.likeliest(logits[::2, 3:].contiguous())
    assert all(map(torch.equal, found, expected))
