"""Bottleneck adapters by the kernel: float64's formula for each activation and width, the same bits in any company."""

import pytest
import torch
from torch.nn import functional as F

from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.engine.dressing import Dresser
from umbel.engine.native_bottleneck import NativeBottleneck

KINDS = [
    {"width": 4},
    {"width": 1, "activation": "gelu"},
    {"width": 33, "activation": "silu"},
    {"width": 16, "activation": "gelu"},
]
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@pytest.fixture(scope="session")
def kernels(any_kernels):
    return any_kernels


@pytest.fixture
def residents(lab, odd):
    lab.backbone = odd
    return lab.residents("bottleneck", KINDS)


def truth(resident, layer, h):
    """[H] -> [H] in float64, from the bank's tensors."""
    kind = resident.adapter.weights.config.activation
    down, down_bias, up, up_bias = (
        resident.stack.tensors[layer, what][resident.slot].double()
        for what in (f"down.{kind}", "down.bias", "up", "up.bias")
    )
    return h.double() + ACTIVATIONS[kind](h.double() @ down.T + down_bias[0]) @ up + up_bias[0]


@torch.no_grad()
def ask(sites, layer, h):
    return sites.after(layer, "mlp", h, h.clone())


def random(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_every_kind_is_float64s_rounded_and_other_rows_stay(residents, odd):
    worn = [None, *(residents[i] for i in (0, 3, 4, 1, 2, 2, 0, 2, 2, 2))]
    sites = Dresser(odd.device, odd.kernels).dress(worn, [], len(worn))
    assert [type(part) for part in sites.parts] == [NativeBottleneck]
    h = random(len(worn), 1, 52)
    for layer in range(2):
        found = ask(sites, layer, h)
        assert found[0].equal(h[0])
        for row, resident in enumerate(worn[1:], 1):
            expected = truth(resident, layer, h[row, 0])
            assert (expected - h[row, 0].double()).abs().max() > 10 * 2**-8 * expected.abs().max()
            assert (found[row, 0].double() - expected).abs().max() < 2**-8 * expected.abs().max()


def test_it_acts_after_the_feed_forward_alone(residents, odd):
    h = random(2, 1, 52)
    sites = Dresser(odd.device, odd.kernels).dress(residents[:2], [], 2)
    assert sites.after(0, "attention", h, h.clone()).equal(h)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_in_any_company_chunk_and_place(threads, residents, odd, set_threads):
    set_threads(threads)
    dresser, h = Dresser(odd.device, odd.kernels), random(200, 1, 52)
    for resident in residents:
        alone = ask(dresser.dress([resident], [], 2), 1, h[:2])[0]
        mates = [residents[i % len(residents)] for i in range(30)]
        assert ask(dresser.dress([resident, *mates], [], 31), 1, h[:31])[0].equal(alone)
        for length in (2, 7, 150):
            chunks = [(range(3, 3 + length), resident), (range(160, 190), residents[0])]
            moved = torch.cat([h[1:4], h[:1], h[4:]])
            assert ask(dresser.dress([None] * 3, chunks, 200), 1, moved)[3].equal(alone)


def test_two_threads_give_the_bits_of_one_where_what_is_written_is_what_was_read(lab, kernels, tmp_path, set_threads):
    """A thread that goes on before the other has read its rows would see them changed."""
    folder = tiny_backbone(tmp_path / "wide", hidden_size=256, num_hidden_layers=1)
    lab.backbone = load_backbone(folder, dtype="bfloat16", packed=True, kernels=kernels)
    worn = lab.residents("bottleneck", [{"width": 64}, {"width": 33}])
    dresser, h = Dresser(lab.backbone.device, kernels), random(300, 1, 256)
    chunks = [(range(3, 203), worn[0]), (range(203, 300), worn[1])]
    set_threads(1)
    alone = ask(dresser.dress(worn, chunks, 300), 0, h)
    set_threads(2)
    for _ in range(50):
        assert ask(dresser.dress(worn, chunks, 300), 0, h).equal(alone)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_at_their_ends(activation, lab, odd):
    """Far from zero on both sides, and NaN, which stays in its row."""
    lab.backbone = odd
    resident, _ = lab.residents("bottleneck", [{"width": 3, "activation": activation}])
    resident.stack.tensors[0, f"down.{activation}"][resident.slot] = 1.0
    h = torch.stack([torch.full((1, 52), value) for value in (-1e4, -3.0, 0.0, 3.0, 1e4, float("nan"))]).bfloat16()
    found = ask(Dresser(odd.device, odd.kernels).dress([resident] * 6, [], 6), 0, h)
    for row in range(5):
        expected = truth(resident, 0, h[row, 0])
        assert (found[row, 0].double() - expected).abs().max() <= 2**-8 * expected.abs().max()
    assert found[5].isnan().all()
