"""LLaMA-Adapter by the kernel: float64's attention over each row's own prompt, the same bits in any company."""

import pytest
import torch

from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.engine.dressing import Dresser
from umbel.engine.native_gated import NativeGated

KINDS = [
    {"length": 10, "scale": 3.0},
    {"length": 1, "scale": 3.0},
    {"length": 33, "per_head_gate": True},
    {"length": 16, "layers": 1},
]
SHAPES = {"odd": (4, 2, 14), "five on one": (5, 1, 24), "nine on three": (9, 3, 64), "eight on eight": (8, 8, 6)}


@pytest.fixture(scope="session")
def kernels(any_kernels):
    return any_kernels


@pytest.fixture(scope="module", params=SHAPES)
def backbone(request, tmp_path_factory, kernels):
    heads, kv_heads, width = SHAPES[request.param]
    sizes = {"hidden_size": 8 * heads, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
             "head_dim": width, "intermediate_size": 32, "num_hidden_layers": 2}  # fmt: skip
    folder = tiny_backbone(tmp_path_factory.mktemp("gated") / "tiny", **sizes)
    return load_backbone(folder, dtype="bfloat16", packed=True, kernels=kernels)


@pytest.fixture
def residents(lab, backbone):
    lab.backbone = backbone
    return lab.residents("llama_adapter", KINDS)


def truth(resident, layer, q, context):
    """q and context [N,D] -> [N,D] in float64, from the bank's tensors."""
    gate = resident.stack.tensors.get((layer, "gate"))
    if gate is None:
        return context.double()
    keys, values = (resident.stack.tensors[layer, what][resident.slot].double() for what in ("K", "V"))
    keys, values = (x.repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (keys, values))
    weights = (keys @ q.double()[..., None] * q.shape[1] ** -0.5).softmax(1)
    return context.double() + gate[resident.slot, :, :, 0].double() * (weights * values).sum(1)


def inputs(backbone, rows, seed=0):
    """q as the decoder cuts it from qkv, and a context."""
    shape, generator = backbone.shape, torch.Generator().manual_seed(seed)
    heads = torch.randn(rows, 1, shape.heads + 2 * shape.kv_heads, shape.head_dim, generator=generator) * 2
    context = torch.randn(rows, shape.heads, 1, shape.head_dim, generator=generator)
    return heads.bfloat16().transpose(1, 2)[:, : shape.heads], context.bfloat16()


@torch.no_grad()
def ask(sites, layer, q, context, backbone):
    return sites.attend(layer, q, context.clone(), backbone.decoder.layers[layer])


def test_every_kind_is_float64s_rounded_and_other_rows_and_layers_stay(residents, backbone):
    worn = [None, *(residents[i] for i in (0, 3, 4, 1, 2, 2, 0, 2))]
    sites = Dresser(backbone.device, backbone.kernels).dress(worn, [], len(worn))
    assert [type(part) for part in sites.parts] == [NativeGated]
    q, context = inputs(backbone, len(worn))
    for layer in range(2):
        found = ask(sites, layer, q, context, backbone)
        assert found[0].equal(context[0])
        for row, resident in enumerate(worn[1:], 1):
            expected = truth(resident, layer, q[row, :, 0], context[row, :, 0])
            assert (found[row, :, 0].double() - expected).abs().max() < 2**-8 * expected.abs().max()
            moved = (expected - context[row, :, 0].double()).abs().max()
            assert (moved > 0.05) == ((layer, "gate") in resident.stack.tensors)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_in_any_company_chunk_and_place(threads, residents, backbone, set_threads):
    set_threads(threads)
    dresser = Dresser(backbone.device, backbone.kernels)
    q, context = inputs(backbone, 200)
    for resident in residents:
        alone = ask(dresser.dress([resident], [], 2), 1, q[:2], context[:2], backbone)[0]
        mates = [residents[i % len(residents)] for i in range(30)]
        assert ask(dresser.dress([resident, *mates], [], 31), 1, q[:31], context[:31], backbone)[0].equal(alone)
        for length in (2, 7, 150):
            chunks = [(range(3, 3 + length), resident), (range(160, 190), residents[0])]
            moved = (torch.cat([x[1:4], x[:1], x[4:]]) for x in (q, context))
            assert ask(dresser.dress([None] * 3, chunks, 200), 1, *moved, backbone)[3].equal(alone)


def test_large_scores_do_not_overflow(residents, backbone):
    q, context = inputs(backbone, 2)
    found = ask(Dresser(backbone.device, backbone.kernels).dress(residents[:2], [], 2), 1, q * 300, context, backbone)
    for row in range(2):
        expected = truth(residents[row], 1, q[row, :, 0] * 300, context[row, :, 0])
        assert (found[row, :, 0].double() - expected).abs().max() < 2**-8 * expected.abs().max()
