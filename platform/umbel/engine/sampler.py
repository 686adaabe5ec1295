"""From next-token logits to tokens and log-probabilities, many rows at once.

Everything a row gets depends on its own logits, settings, seed and place alone. Filters are thresholds on values,
so ties stay together and no order of sorting can leak in; a draw is one number from a hash of (seed, place).

Shape letters here:  M rows   V vocabulary   K likeliest kept
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from umbel.engine.requests import Alternative, Scored

_MASK64 = (1 << 64) - 1
_BLOCKS = (1024, 512, 256, 128, 64)
"""Tokens of a block that is looked through at once."""
_NEAR = 1024
"""Likeliest tokens looked at for ``top_p`` before everything is sorted; nearly always enough."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How one row wants its next token."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    place: int = 0
    """How many tokens the row generated before."""
    logprobs: int | None = None
    banned: tuple[int, ...] = ()
    """Tokens that must not come yet (``min_tokens``)."""


GREEDY = Choice()


class Drawn(NamedTuple):
    """One row's next token; None where its logits hold no finite maximum."""

    token: int | None
    logprob: float | None = None
    top: tuple[Alternative, ...] = ()


Likeliest = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Logits [M,V] -> largest values [M] and where they stand [M]; NaN is the largest."""


Known = tuple[Sequence[float], Sequence[int]]
"""The same two, where they were looked for before."""


def draw(
    logits: Tensor, choices: Sequence[Choice], likeliest: Likeliest | None = None, known: Known | None = None
) -> list[Drawn]:
    """Next tokens of logits [M,V]. Log-probabilities are of the model itself: before bans, temperature and filters."""
    allowed = _without_banned(logits, choices)
    if known is None or allowed is not logits:
        best, greedy = (likeliest or _likeliest)(allowed)
        known = best.tolist(), greedy.tolist()
    best_values, tokens = known[0], list(known[1])
    good = [value - value == 0.0 for value in best_values]  # NaN and infinities fail
    drawing = [m for m, choice in enumerate(choices) if choice.temperature > 0.0 and good[m]]
    if drawing:
        for m, token in zip(drawing, _sample(allowed[drawing], [choices[m] for m in drawing]), strict=True):
            tokens[m] = token
    drawn = [Drawn(token if ok else None) for token, ok in zip(tokens, good, strict=True)]
    asked = [m for m, choice in enumerate(choices) if choice.logprobs is not None and good[m]]
    if asked:
        scored = score(logits[asked], [tokens[m] for m in asked], max(choices[m].logprobs or 0 for m in asked))
        for m, found in zip(asked, scored, strict=True):
            drawn[m] = Drawn(tokens[m], found.logprob, found.top[: choices[m].logprobs])
    return drawn


def _likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks first, then in the best of them: on a CPU ``amax`` takes many numbers at once, and ``max`` one by one."""
    block = next((size for size in _BLOCKS if logits.shape[-1] % size == 0), None)
    if block is None:
        best, token = logits.max(-1)
        return best, token
    blocks = logits.reshape(len(logits), -1, block)
    best, first = blocks.amax(-1).max(-1)
    within = blocks[torch.arange(len(logits), device=logits.device), first].max(-1).indices
    return best, first * block + within


def score(logits: Tensor, tokens: Sequence[int], top: int) -> list[Scored]:
    """Log-probabilities of given tokens under logits [M,V], and of the ``top`` likeliest, in at least fp32."""
    wide = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    chosen = wide.gather(-1, torch.tensor(tokens, device=wide.device)[:, None])[:, 0].tolist()
    if not top:
        return [Scored(token, value) for token, value in zip(tokens, chosen, strict=True)]
    values, ids = (x.tolist() for x in wide.topk(min(top, wide.shape[-1]), dim=-1))
    return [
        Scored(token, value, _ordered(token, value, row_ids, row_values))
        for token, value, row_ids, row_values in zip(tokens, chosen, ids, values, strict=True)
    ]


def _ordered(token: int, value: float, ids: list[int], values: list[float]) -> tuple[Alternative, ...]:
    """Likeliest first; among equals the chosen token first, in the list even if ``topk`` left it out of a tie."""
    if token not in ids and value == values[-1]:
        ids[-1] = token
    order = sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0] != token, pair[0]))
    return tuple(Alternative(index, logprob) for index, logprob in order)


def _without_banned(logits: Tensor, choices: Sequence[Choice]) -> Tensor:
    rows = [m for m, choice in enumerate(choices) for _ in choice.banned]
    if not rows:
        return logits
    columns = [token for choice in choices for token in choice.banned]
    return logits.index_put(
        (torch.tensor(rows, device=logits.device), torch.tensor(columns, device=logits.device)),
        torch.tensor(float("-inf"), dtype=logits.dtype, device=logits.device),
    )


def _sample(logits: Tensor, choices: Sequence[Choice]) -> list[int]:
    """One draw per row by inverting the cumulative distribution, in float64 so that rare tokens are not lost."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    heat = torch.tensor([choice.temperature for choice in choices], dtype=wide.dtype, device=wide.device)
    probs = torch.softmax((wide - wide.max(-1, keepdim=True).values) / heat[:, None], -1)
    if any(choice.top_k or choice.top_p < 1.0 for choice in choices):
        probs = probs.masked_fill(probs < _thresholds(probs, choices)[:, None], 0.0)
    sums = probs.cumsum(-1, dtype=torch.float64)
    total = sums[:, -1:]
    at = torch.tensor([[uniform(choice.seed, choice.place)] for choice in choices], dtype=sums.dtype).to(sums.device)
    below = torch.minimum(at * total, torch.nextafter(total, torch.zeros_like(total)))
    found: list[int] = torch.searchsorted(sums, below, right=True)[:, 0].tolist()
    return found


def _thresholds(probs: Tensor, choices: Sequence[Choice]) -> Tensor:
    """[M] least probability kept: of the k-th likeliest, and of the last that reaches ``top_p`` of what k left."""
    vocabulary = probs.shape[-1]
    ks = [min(choice.top_k or vocabulary, vocabulary) for choice in choices]
    near = min(vocabulary, max([_NEAR, *(k for k in ks if k < vocabulary)]))
    likeliest = probs.topk(near, -1).values
    rows = zip(probs, likeliest, ks, choices, strict=True)
    return torch.stack([_threshold(row, near, k, choice.top_p) for row, near, k, choice in rows])


def _threshold(probs: Tensor, likeliest: Tensor, k: int, top_p: float) -> Tensor:
    """probs [V] in any order, likeliest [K] falling; K >= k unless k keeps everything."""
    everything = k == probs.shape[0]
    if top_p >= 1.0:
        return probs.new_zeros(()) if everything else likeliest[k - 1]
    kept = likeliest[:k]
    sums = kept.cumsum(0, dtype=torch.float64)
    wanted = torch.tensor(top_p, dtype=sums.dtype, device=sums.device) * (1.0 if everything else sums[-1])
    if everything and bool(sums[-1] < wanted):
        kept = probs.sort(descending=True).values
        sums = kept.cumsum(0, dtype=torch.float64)
    return kept[torch.searchsorted(sums, wanted).clamp(max=kept.shape[0] - 1)]


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments (SplitMix64, Steele et al. 2014)."""
    return (_mix(_mix(seed & _MASK64) + place) >> 11) * 2.0**-53


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)
