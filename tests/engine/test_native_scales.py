"""IA3 by the kernel: each row's own scales, rounded once, and the same bits in any company."""

import pytest
import torch

from umbel.adapters.sites import SITES
from umbel.engine.dressing import Dresser
from umbel.engine.native_scales import NativeScales

KINDS = [
    {},
    {"targets": ("q_proj", "o_proj", "up_proj"), "feedforward": ("o_proj",)},
    {"targets": ("o_proj", "down_proj"), "feedforward": ()},
]
SIDES = [(site, side) for site in SITES if site != "lm_head" for side in ("in", "out")]


@pytest.fixture(scope="session")
def kernels(any_kernels):
    return any_kernels


@pytest.fixture
def residents(lab, odd):
    lab.backbone = odd
    return lab.residents("ia3", KINDS)


def width_of(backbone, site, side):
    pairs = [backbone.shape.linear(name) for name in SITES[site]]
    return pairs[0][0] if side == "in" else sum(width for _, width in pairs)


@torch.no_grad()
def ask(sites, layer, site, side, x, frozen):
    if side == "in":
        return sites.input(layer, site, x.clone())
    return sites.linear(layer, site, x, x.clone(), frozen)


def random(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(("site", "side"), SIDES)
def test_each_side_is_its_own_scales_product_rounded_once(site, side, residents, odd):
    worn = [None, *(residents[i] for i in (0, 3, 1, 2, 2, 0))]
    sites = Dresser(odd.device, odd.kernels).dress(worn, [], len(worn))
    assert [type(part) for part in sites.parts] == [NativeScales]
    x = random(len(worn), 1, width_of(odd, site, side))
    for layer, frozen in enumerate(odd.decoder.layers):
        found = ask(sites, layer, site, side, x, frozen)
        assert found[0].equal(x[0])
        for row, resident in enumerate(worn[1:], 1):
            scale = resident.stack.tensors.get((layer, f"{site}.{side}"))
            expected = x[row] if scale is None else (x[row].float() * scale[resident.slot]).bfloat16()
            assert found[row].equal(expected)


def test_the_kinds_scale_all_sides_but_shared_inputs(residents):
    """What the test above passes over: a side that nobody scales proves nothing."""
    scaled = {what for resident in residents for _, what in resident.stack.tensors}
    assert scaled == {"qkv.out", "o.in", "o.out", "gate_up.out", "down.in", "down.out"}


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_in_any_company_and_chunk(threads, residents, odd, set_threads):
    set_threads(threads)
    dresser, x, frozen = Dresser(odd.device, odd.kernels), random(900, 1, 112), odd.decoder.layers[1]
    for resident in residents[:2]:
        alone = ask(dresser.dress([resident], [], 2), 1, "qkv", "out", x[:2], frozen)[0]
        chunks = [(range(1, 700), residents[0]), (range(700, 900), residents[3])]
        together = ask(dresser.dress([resident], chunks, 900), 1, "qkv", "out", x, frozen)
        assert together[0].equal(alone)
        assert together[1].equal(ask(dresser.dress([residents[0]], [], 2), 1, "qkv", "out", x[1:3], frozen)[0])
        assert not together[899].equal(x[899])
