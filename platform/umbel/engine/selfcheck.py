"""Whether a row gets the same bits in any company on this machine (correctness rule 2).

Run at start-up and by ``umbel doctor``. Rows are computed among 2, 3, 8 and 32, through each kind of weight alone,
through attention, and through a whole decode step; their place in the batch moves, too. In bf16 on a CPU all must be
equal in bits; in fp32 they are equal within rounding, which is what the report then says.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import Step
from umbel.engine.attention import CachedAttention
from umbel.engine.kv import KVCache
from umbel.engine.span import Span

COMPANY = (2, 3, 8, 32)
_SITES = ("qkv", "o", "gate_up", "down")
_PROMPT = 40
_WHOLE = 30
"""Rows that are in whole groups of every size."""
_LENGTHS = (10, 100, 1100, 500, 600, 1000, 2000)
_STRIDE = 29
"""Company grows longer with number, so that more keys are looked at, too."""


@dataclass(frozen=True, slots=True)
class Check:
    """One part of the step."""

    name: str
    equal: bool
    """The row had the same bits among 2, 3, 8 and 32."""
    largest: float
    """Largest difference over all companies."""


@dataclass(frozen=True, slots=True)
class Report:
    """``bit_equal`` is what the server may promise."""

    dtype: str
    device: str
    checks: tuple[Check, ...]

    @property
    def bit_equal(self) -> bool:
        return all(check.equal for check in self.checks)

    @property
    def summary(self) -> str:
        if self.bit_equal:
            return f"{self.dtype} on {self.device}: a row has the same bits in any company."
        unequal = [check for check in self.checks if not check.equal]
        names, largest = ", ".join(check.name for check in unequal), max(check.largest for check in unequal)
        return (
            f"{self.dtype} on {self.device}: a row's bits depend on its company in {names} (by up to {largest:.2g}); "
            "near-ties of the two likeliest tokens may fall either way."
        )


@torch.inference_mode()
def check_rows(backbone: Backbone) -> Report:
    """A few decode steps' worth of work; needs a cache of 32 short rows for its own use."""
    generator = torch.Generator().manual_seed(0)
    layer = backbone.decoder.layers[0]
    checks = []
    for site in _SITES:
        linear, width = getattr(layer, site), _width(backbone, site)
        checks.append(_check(site, linear, width, backbone, generator))
        if getattr(linear, "splits", False):
            checks.append(_check(f"{site} of prompts", partial(linear, decoding=0), width, backbone, generator))
    decoder = backbone.decoder
    head = decoder.lm_head or partial(F.linear, weight=decoder.embedding.weight)
    checks.append(_check("lm_head", head, backbone.shape.hidden, backbone, generator))
    checks += [_check_attention(backbone, generator), _check_step(backbone, generator)]
    return Report(str(backbone.dtype).removeprefix("torch."), str(backbone.device), tuple(checks))


def _width(backbone: Backbone, site: str) -> int:
    shape = backbone.shape
    return {"o": shape.heads * shape.head_dim, "down": shape.intermediate}.get(site, shape.hidden)


def _check(name: str, linear: object, width: int, backbone: Backbone, generator: torch.Generator) -> Check:
    """All rows in groups of each size: an order of summation shows in few of the sums' roundings."""
    assert callable(linear)
    x = torch.randn(max(COMPANY), 1, width, generator=generator).to(backbone.device, backbone.dtype)
    groups = {size: x.unfold(0, size, size).movedim(-1, 1).unbind(0) for size in COMPANY}
    return _compare(
        name, {size: torch.cat([linear(group) for group in found])[:_WHOLE] for size, found in groups.items()}
    )


def _check_attention(backbone: Backbone, generator: torch.Generator) -> Check:
    """A row with equal weights on values that cancel out: what is left is the rounding of its order of summation."""
    shape, rows = backbone.shape, max(COMPANY)
    lengths = [length for length in _LENGTHS if length < backbone.config.max_positions]
    cache = KVCache(shape, slots=rows, length=max(lengths), budget=0, dtype=backbone.dtype, device=backbone.device)
    q = torch.zeros(rows, shape.heads, 1, shape.head_dim, device=backbone.device, dtype=backbone.dtype)
    found: dict[int, list[Tensor]] = {company: [] for company in COMPANY}
    for length in lengths:
        half = torch.randn(shape.kv_heads, length // 2, shape.head_dim, generator=generator)
        values = torch.cat([half, -half], 1)[:, torch.randperm(length, generator=generator)]
        cache.touch(0, length)
        cache.slabs[0, 1, 0, :, :length] = values
        v = values[:, -1:].expand(rows, -1, -1, -1).to(backbone.device, backbone.dtype)
        for company in COMPANY:
            at = [length - 1, *lengths, *range(rows)][:company]
            positions = [min(place, max(lengths) - 1) for place in at]
            attention = CachedAttention(cache, shape, positions, [], kernels=backbone.kernels)
            found[company].append(attention(0, q[:company], torch.zeros_like(v[:company]), v[:company])[0])
    return _compare("attention", {company: torch.stack(rounding) for company, rounding in found.items()})


def _check_step(backbone: Backbone, generator: torch.Generator) -> Check:
    """One decode step of a row that has read a prompt, among rows of other lengths; its logits."""
    shape, rows = backbone.shape, max(COMPANY)
    at = [_PROMPT] + [_STRIDE * slot for slot in range(1, rows)]
    cache = KVCache(shape, slots=rows, length=max(at) + 1, budget=0, dtype=backbone.dtype, device=backbone.device)
    tokens = torch.randint(shape.vocab, (_PROMPT + rows,), generator=generator).to(backbone.device)
    _prefill(backbone, cache, tokens[:_PROMPT])
    found = {}
    for company in COMPANY:
        positions = torch.tensor(at[:company], device=backbone.device)
        step = Step(
            positions[:, None],
            CachedAttention(cache, shape, at[:company], [], kernels=backbone.kernels),
            want=torch.arange(company, device=backbone.device),
        )
        logits = backbone.decoder(tokens[_PROMPT : _PROMPT + company, None], step).logits
        assert logits is not None
        found[company] = logits[0]
    return _compare("a decode step", found)


def _prefill(backbone: Backbone, cache: KVCache, tokens: Tensor) -> None:
    count = tokens.shape[0]
    attention = CachedAttention(cache, backbone.shape, [], [Span(0, 0, count, 0)], kernels=backbone.kernels)
    backbone.decoder(tokens[:, None], Step(torch.arange(count, device=tokens.device)[:, None], attention, decoding=0))


def _compare(name: str, found: dict[int, Tensor]) -> Check:
    reference = found[max(found)]
    largest = max(float((one.double() - reference.double()).abs().max()) for one in found.values())
    return Check(name, all(torch.equal(one, reference) for one in found.values()), largest)
