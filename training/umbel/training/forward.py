"""One forward pass over rows that wear many adapters: each adapter's own loss, as a sum over its tokens or rows.

Shape letters here:  B rows   T tokens   H hidden   M supervised places
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from umbel.adapters.adapter import Adapter
from umbel.adapters.dropout import token_keys
from umbel.adapters.head import pool
from umbel.adapters.sites import BARE, LM_HEAD, Sites
from umbel.adapters.wear import Worn, wear
from umbel.backbone.attention import WholeAttention
from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import Output, Step
from umbel.core.contract import OutputHead
from umbel.training.losses import right_rows, row_losses, token_losses
from umbel.training.passes import Seat


@dataclass(frozen=True, slots=True)
class Score:
    """Of one adapter in one pass."""

    loss: Tensor
    """Sum over its supervised tokens or rows."""
    right: Tensor
    """How many of them the adapter would answer right."""
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A pass as tensors, padded on the right; rows are sorted by adapter."""

    tokens_BT: Tensor
    lengths_B: Tensor
    """Virtual tokens included."""
    skip_B: Tensor
    """Virtual tokens before the text."""
    owners: list[int]
    """Which adapter each row wears."""
    want_M: Tensor
    """Places, of the B * T, whose next token is supervised."""
    targets_M: Tensor
    want_rows: list[int]
    """The row of each wanted place."""


def lay_out(seats: Sequence[Seat], device: torch.device) -> Layout:
    longest = max(seat.length for seat in seats)
    tokens = np.zeros((len(seats), longest), dtype=np.int64)
    want: list[int] = []
    targets: list[int] = []
    want_rows: list[int] = []
    for row, seat in enumerate(seats):
        ids, spoken = seat.example.ids, seat.example.spoken
        tokens[row, seat.virtual : seat.length] = ids
        if spoken is not None:
            places = np.flatnonzero(spoken)
            want += (row * longest + seat.virtual + places - 1).tolist()
            targets += ids[places].tolist()
            want_rows += [row] * len(places)
    return Layout(
        tokens_BT=torch.from_numpy(tokens).to(device),
        lengths_B=torch.tensor([seat.length for seat in seats], device=device),
        skip_B=torch.tensor([seat.virtual for seat in seats], device=device),
        owners=[seat.trainee for seat in seats],
        want_M=torch.tensor(want, dtype=torch.long, device=device),
        targets_M=torch.tensor(targets, dtype=torch.long, device=device),
        want_rows=want_rows,
    )


def run_pass(
    backbone: Backbone,
    adapters: Sequence[Adapter],
    worn: Sequence[Worn],
    seats: Sequence[Seat],
    *,
    keys: Tensor | None = None,
    recompute: bool = False,
) -> dict[int, Score]:
    """Scores by adapter index. ``keys`` [B] turns dropout on; ``recompute`` keeps no activations for backward."""
    laid = lay_out(seats, backbone.device)
    output = backbone.decoder(laid.tokens_BT, _step(laid, adapters, worn, keys, recompute))
    scores = _spoken_scores(laid, output)
    start = 0
    for trainee, group in groupby(seats, key=lambda seat: seat.trainee):
        rows = slice(start, start + len(list(group)))
        start = rows.stop
        if adapters[trainee].contract.output_head is not OutputHead.GENERATE:
            scores[trainee] = _row_score(adapters[trainee], seats[rows], output.hidden, laid, rows, keys)
    return scores


def _step(
    laid: Layout, adapters: Sequence[Adapter], worn: Sequence[Worn], keys: Tensor | None, recompute: bool
) -> Step:
    device = laid.tokens_BT.device
    sites = wear(worn, laid.owners, device=device, dropout_keys=keys)
    past = torch.tensor([adapters[owner].weights.num_past for owner in laid.owners], device=device)
    return Step(
        positions=torch.arange(laid.tokens_BT.shape[1], device=device) + past[:, None],
        attention=WholeAttention(sites),
        sites=sites,
        want=laid.want_M if len(laid.want_rows) else None,
        want_sites=_want_sites(laid, worn, keys),
        checkpoint=recompute,
    )


def _want_sites(laid: Layout, worn: Sequence[Worn], keys: Tensor | None) -> Sites:
    """Adapters on lm_head, whose batch is the wanted places."""
    there = [group for group in worn if any(layer == LM_HEAD for layer, _ in group.stack)]
    if not there or not laid.want_rows:
        return BARE
    if keys is not None:
        keys = token_keys(keys, laid.tokens_BT.shape[1]).flatten()[laid.want_M]
    owners = [laid.owners[row] for row in laid.want_rows]
    return wear(there, owners, device=laid.tokens_BT.device, dropout_keys=keys)


def _spoken_scores(laid: Layout, output: Output) -> dict[int, Score]:
    """Of the generating adapters; their places lie together, since rows are sorted."""
    scores: dict[int, Score] = {}
    if output.logits is None:
        return scores
    losses_M = token_losses(output.logits, laid.targets_M)
    right_M = output.logits.detach().argmax(1) == laid.targets_M
    start = 0
    for trainee, group in groupby(laid.owners[row] for row in laid.want_rows):
        places = slice(start, start + len(list(group)))
        start = places.stop
        scores[trainee] = Score(losses_M[places].sum(), right_M[places].sum(), places.stop - places.start)
    return scores


def _row_score(
    adapter: Adapter, seats: Sequence[Seat], hidden: Tensor, laid: Layout, rows: slice, keys: Tensor | None
) -> Score:
    config = adapter.head.config
    pooled = pool(hidden[rows], laid.lengths_B[rows], laid.skip_B[rows], config.pooling)
    if keys is None or config.dropout == 0.0:
        logits = adapter.head.logits(pooled)
    else:  # a generator per row, so that a mask depends on the row's own key alone
        generators = [torch.Generator(hidden.device).manual_seed(key) for key in keys[rows].tolist()]
        logits = torch.cat([adapter.head.logits(pooled[i : i + 1], g) for i, g in enumerate(generators)])
    targets = torch.tensor([seat.example.target for seat in seats], device=logits.device, dtype=logits.dtype)
    losses = row_losses(adapter.contract, logits, targets)
    return Score(losses.sum(), right_rows(adapter.contract, logits.detach(), targets), len(seats))
