"""LoRA by the kernel: float64's formula in every layout that a bank keeps, and the same bits in any company."""

import itertools

import pytest
import torch

from umbel.adapters.sites import SITES
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.engine import rooms
from umbel.engine.dressing import Dresser
from umbel.engine.native_lora import NativeLora
from umbel.engine.resident import make_resident
from umbel.engine.slots import Bank

KINDS = {
    "blocks": {"rank": 4},
    "one rank": {"rank": 1, "targets": ("o_proj", "down_proj")},
    "odd ranks": {"rank": 5, "rank_pattern": {"k_proj": 3, "up_proj": 7}},
    "some linears": {"rank": 8, "targets": ("q_proj", "v_proj", "up_proj")},
    "one layer": {"rank": 6, "layers": (1,)},
    "dora": {"rank": 3, "dora": True},
    "dora on some": {"rank": 2, "dora": True, "targets": ("v_proj", "gate_proj")},
}


@pytest.fixture(scope="session")
def kernels(any_kernels):
    return any_kernels


@pytest.fixture
def backbone(odd):
    """Its biases matter: DoRA's scale leaves them out."""
    return odd


@pytest.fixture
def residents(lab, backbone):
    lab.backbone = backbone
    return lab.residents("lora", list(KINDS.values()))


def truth(resident, layer, site, x, y, frozen):
    """[in], [out] -> [out] in float64, linear by linear from the bank's tensors."""
    stack, slot, start, column = resident.stack, resident.slot, 0, 0
    a = stack.tensors.get((layer, f"{site}.A"))
    out = y.double().clone()
    if a is None:
        return out
    blocks, used = stack.tensors.get((layer, f"{site}.blocks")), 0
    for name in SITES[site]:
        width = stack.shape.linear(name)[1]
        own = slice(column, column + width)
        b = stack.tensors.get((layer, f"{name}.B"))
        if blocks is not None:
            count = width // blocks.shape[-1]
            b = torch.cat(blocks[:, used : used + count].unbind(1), -1)
            used += count
        if b is not None:
            low = a[slot, start : start + b.shape[1]].double() @ x.double()
            delta = low @ b[slot].double()
            start += b.shape[1]
            scale = stack.tensors.get((layer, f"{name}.scale"))
            bias = frozen.bias(site)[own].double()
            out[own] = out[own] + delta if scale is None else bias + scale[slot, 0].double() * (out[own] - bias + delta)
        column += width
    return out


@torch.no_grad()
def ask(sites, layer, site, x, y, frozen):
    return sites.linear(layer, site, x.clone(), y.clone(), frozen)


@pytest.mark.parametrize("site", ["qkv", "o", "gate_up", "down"])
def test_every_kind_at_every_site_is_float64s_rounded(site, residents, backbone):
    order = [0, 3, 3, 5, 7, 1, 6, 2, 4, 3, 3, 3]
    worn = [None, *(residents[i] for i in order)]
    sites = Dresser(backbone.device, backbone.kernels).dress(worn, [], len(worn))
    assert [type(part) for part in sites.parts] == [NativeLora]
    generator = torch.Generator().manual_seed(0)
    d_in, d_out = backbone.shape.linear(SITES[site][0])[0], sum(backbone.shape.linear(n)[1] for n in SITES[site])
    x, y = (torch.randn(len(worn), 1, width, generator=generator).bfloat16() for width in (d_in, d_out))
    moved = 0.0
    for layer, frozen in enumerate(backbone.decoder.layers):
        found = ask(sites, layer, site, x, y, frozen)
        assert found[0].equal(y[0])
        for row, resident in enumerate(worn[1:], 1):
            expected = truth(resident, layer, site, x[row, 0], y[row, 0], frozen)
            assert (found[row, 0].double() - expected).abs().max() < 2**-7 * expected.abs().max()
            moved = max(moved, float((expected - y[row, 0].double()).abs().max()))
    assert moved > 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_in_any_company_chunk_and_place(threads, residents, backbone, set_threads):
    set_threads(threads)
    dresser, generator = Dresser(backbone.device, backbone.kernels), torch.Generator().manual_seed(1)
    x = torch.randn(200, 1, 52, generator=generator).bfloat16()
    y = torch.randn(200, 1, 14 * 8, generator=generator).bfloat16()
    frozen = backbone.decoder.layers[1]
    for resident in residents:
        alone = ask(dresser.dress([resident], [], 2), 1, "qkv", x[:2], y[:2], frozen)[0]
        mates = list(itertools.islice(itertools.cycle(residents), 30))
        assert ask(dresser.dress([resident, *mates], [], 31), 1, "qkv", x[:31], y[:31], frozen)[0].equal(alone)
        for length in (2, 7, 150):
            chunks = [(range(3, 3 + length), resident), (range(160, 190), residents[0])]
            moved = torch.cat([x[1:4], x[:1], x[4:]]), torch.cat([y[1:4], y[:1], y[4:]])
            assert ask(dresser.dress([None] * 3, chunks, 200), 1, "qkv", *moved, frozen)[3].equal(alone)


@pytest.fixture
def dynamic(kernels):
    """OpenMP gives a region as many threads as there are cores, however many it asks for."""
    kernels.library.omp_set_dynamic(1)
    yield
    kernels.library.omp_set_dynamic(0)


@pytest.fixture
def shared_out(lab, kernels, tmp_path, set_threads):
    """The bits of a call whose work is worth several threads: what one left undone when others go on would be seen."""
    folder = tiny_backbone(tmp_path / "wide", hidden_size=256, intermediate_size=512, num_hidden_layers=1)
    lab.backbone = load_backbone(folder, dtype="bfloat16", packed=True, kernels=kernels)
    bank = Bank(1 << 26)
    digests = [lab.adapter("lora", seed, rank=rank) for seed, rank in enumerate((64, 64, 33))]
    worn = [make_resident(digest, lab.source.adapters[digest], lab.backbone) for digest in digests]
    for resident in worn:
        bank.insert(resident)
    dresser, frozen = Dresser(lab.backbone.device, kernels), lab.backbone.decoder.layers[0]
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(300, 1, width, generator=generator).bfloat16() for width in (256, 1024))
    chunks = [(range(3, 203), worn[0]), (range(203, 300), worn[2])]

    def by(threads):
        set_threads(threads)
        return ask(dresser.dress(worn, chunks, 300), 0, "gate_up", x, y, frozen)

    return by


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_many_threads_give_the_bits_of_one(threads, shared_out):
    alone = shared_out(1)
    assert all(shared_out(threads).equal(alone) for _ in range(50))


def test_fewer_threads_than_were_asked_for_do_all_of_the_work(shared_out, dynamic):
    alone = shared_out(1)
    assert shared_out(64).equal(alone)


def test_a_slot_that_moved_is_read_where_it_is_now(residents, backbone):
    first, last = residents[0], residents[-1]
    assert first.stack is last.stack
    dresser = Dresser(backbone.device, backbone.kernels)
    x, y = torch.ones(2, 1, 52).bfloat16(), torch.zeros(2, 1, 112).bfloat16()
    frozen = backbone.decoder.layers[0]
    before = ask(dresser.dress([first, last], [], 2), 0, "qkv", x, y, frozen)
    first.stack._swap(first, last)
    assert ask(dresser.dress([first, last], [], 2), 0, "qkv", x, y, frozen).equal(before)
    assert not before[0].equal(before[1])


def test_weights_that_were_laid_out_anew_are_read_where_they_are_now(lab, backbone, monkeypatch):
    """Where addresses cannot be reserved a stack is copied when it grows and when it shrinks, between two steps too."""
    monkeypatch.setattr(rooms, "can_reserve", lambda device: False)
    lab.backbone, bank = backbone, Bank(1 << 24)
    digests = [lab.adapter("lora", seed, rank=4) for seed in range(9)]
    made = [make_resident(digest, lab.source.adapters[digest], backbone) for digest in digests]
    bank.insert(made[0])
    dresser, frozen = Dresser(backbone.device, backbone.kernels), backbone.decoder.layers[0]
    x, y = torch.ones(2, 1, 52).bfloat16(), torch.zeros(2, 1, 112).bfloat16()
    before = ask(dresser.dress([made[0]], [], 2), 0, "qkv", x, y, frozen)
    for resident in made[1:]:
        bank.insert(resident)
    for resident in made[1:]:
        bank.evict(resident)
    for tensor in made[0].stack.tensors.values():
        assert tensor.shape[0] < 9  # it grew and shrank
    after = dresser.dress([made[0]], [], 2)
    moved = made[0].stack.tensors[0, "qkv.A"]
    assert after.parts[0]._table[0, 0, 0] == moved[made[0].slot].data_ptr()
    assert ask(after, 0, "qkv", x, y, frozen).equal(before)


def test_what_a_memory_error_left_half_done_is_not_read_from_freed_memory(lab, backbone, monkeypatch):
    monkeypatch.setattr(rooms, "can_reserve", lambda device: False)
    lab.backbone, bank = backbone, Bank(1 << 24)
    digests = [lab.adapter("lora", seed, rank=4) for seed in range(2)]
    first, second = (make_resident(digest, lab.source.adapters[digest], backbone) for digest in digests)
    bank.insert(first)
    dresser = Dresser(backbone.device, backbone.kernels)
    dresser.dress([first], [], 2)
    made, zeros = [], rooms._zeros

    def few(tensor, slots):
        made.append(tensor)
        if len(made) > 3:
            raise MemoryError
        return zeros(tensor, slots)

    monkeypatch.setattr(rooms, "_zeros", few)
    with pytest.raises(MemoryError):
        bank.insert(second)
    table = dresser.dress([first], [], 2).parts[0]._table
    assert table[0, 0, 0] == first.stack.tensors[0, "qkv.A"][first.slot].data_ptr()


@pytest.mark.parametrize("options", [{"lora_bias": True}, {"bias": "lora_only"}, {"token_rows": (1, 2)}])
def test_what_the_kernel_does_not_do_stays_with_torch_and_is_done(options, lab, backbone):
    """Biases and token rows lie beside LoRA in one adapter."""
    lab.backbone, bank = backbone, Bank(1 << 24)
    digest = lab.adapter("lora", 1, rank=4, **options)
    resident = make_resident(digest, lab.source.adapters[digest], backbone)
    bank.insert(resident)
    native, plain = (Dresser(backbone.device, kernels) for kernels in (backbone.kernels, None))
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 1, width, generator=generator).bfloat16() for width in (52, 112))
    frozen = backbone.decoder.layers[0]
    found, wanted = (ask(dresser.dress([resident] * 2, [], 2), 0, "qkv", x, y, frozen) for dresser in (native, plain))
    assert found.equal(wanted)
    assert not found.equal(y)


def test_a_stack_that_acts_on_embeddings_stays_with_torch(lab, backbone):
    lab.backbone, bank = backbone, Bank(1 << 24)
    digest = lab.adapter("lora", 1, rank=4, targets=("q_proj", "embed_tokens"))
    resident = make_resident(digest, lab.source.adapters[digest], backbone)
    bank.insert(resident)
    native, plain = (Dresser(backbone.device, kernels) for kernels in (backbone.kernels, None))
    tokens, x = torch.tensor([[3], [4]]), torch.zeros(2, 1, 52).bfloat16()
    found, wanted = (d.dress([resident] * 2, [], 2).embed(x.clone(), tokens, tokens) for d in (native, plain))
    assert found.equal(wanted)
    assert found.any()
