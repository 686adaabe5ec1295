"""One forward pass over rows that wear many adapters: each adapter's own loss, as a sum over its tokens or rows.

Shape letters here:  B rows   T tokens   H hidden   M supervised places
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from umbel.adapters.adapter import Adapter
from umbel.adapters.dropout import token_keys
from umbel.adapters.head import pool
from umbel.adapters.sites import BARE, LM_HEAD, Sites
from umbel.adapters.wear import Worn, fuse_all, wear
from umbel.backbone.attention import WholeAttention
from umbel.backbone.backbone import Backbone
from umbel.backbone.checkpointing import KEEP_ALL, Checkpointing
from umbel.backbone.decoder import Layer, Output, Step
from umbel.core.contract import OutputHead
from umbel.training.data.encode import Example
from umbel.training.lines import Lines, lie
from umbel.training.losses import right_rows, row_losses, token_losses
from umbel.training.passes import Packing, Seat, pack
from umbel.training.trunk.trunk import Trunk


@dataclass(frozen=True, slots=True)
class Score:
    """Of one adapter in one pass."""

    loss: Tensor
    """Sum over its supervised tokens or rows, each times its row's weight."""
    right: Tensor | None
    """How many of them the adapter would answer right; only told without gradients, as it costs time."""
    count: int
    mass: float
    """Sum of the weights of what is counted."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A pass as tensors, padded on the right; rows are sorted by adapter. Where no rows are packed, P is B."""

    tokens: Tensor
    """[P,T]."""
    lines: Lines
    """Where the rows lie."""
    lengths: Tensor
    """[B], virtual tokens included."""
    skip: Tensor
    """[B], virtual tokens before the text."""
    owners: list[int]
    """Which adapter each row wears."""
    want: Tensor
    """[M] places, of the P * T, whose next token is supervised."""
    targets: Tensor
    """[M] those tokens."""
    want_rows: list[int]
    """The row of each wanted place."""
    weights: Tensor | None
    """[B] of the rows, None where all are 1."""


def lay_out(seats: Sequence[Seat], device: torch.device) -> Layout:
    lines = lie(seats, device)
    tokens = np.zeros(len(lines.wearers) * lines.places, dtype=np.int64)
    want: list[int] = []
    targets: list[int] = []
    want_rows: list[int] = []
    for row, seat in enumerate(seats):
        ids, spoken = seat.example.ids, seat.example.spoken
        first = lines.starts[row] + seat.virtual
        tokens[first : first + len(ids)] = ids
        if spoken is not None:
            places = np.flatnonzero(spoken)
            want += (first + places - 1).tolist()
            targets += ids[places].tolist()
            want_rows += [row] * len(places)
    return Layout(
        tokens=torch.from_numpy(tokens).view(-1, lines.places).to(device),
        lines=lines,
        lengths=torch.tensor([seat.length for seat in seats], device=device),
        skip=torch.tensor([seat.virtual for seat in seats], device=device),
        owners=[seat.trainee for seat in seats],
        want=torch.tensor(want, dtype=torch.long, device=device),
        targets=torch.tensor(targets, dtype=torch.long, device=device),
        want_rows=want_rows,
        weights=_weights(seats, device),
    )


def _weights(seats: Sequence[Seat], device: torch.device) -> Tensor | None:
    weights = [seat.example.weight for seat in seats]
    return (
        None if all(weight == 1.0 for weight in weights) else torch.tensor(weights, dtype=torch.float64, device=device)
    )


def _weighted(losses: Tensor, weights: Tensor | None, rows: Sequence[int]) -> tuple[Tensor, float]:
    """(losses times the weights of their rows, the sum of those weights)."""
    if weights is None:
        return losses, float(len(rows))
    own = weights[torch.tensor(rows, device=losses.device)]
    return losses * own.to(losses.dtype), float(own.sum())


def run_pass(
    backbone: Backbone,
    adapters: Sequence[Adapter],
    worn: Sequence[Worn],
    seats: Sequence[Seat],
    *,
    keys: Tensor | None = None,
    checkpointing: Checkpointing = KEEP_ALL,
    trunk: Trunk | None = None,
) -> dict[int, Score]:
    """Scores by adapter index. ``keys`` [B] turns dropout on; seats with a cut need a trunk."""
    kept = None
    if (cut := seats[0].cut) is not None:
        assert trunk is not None
        kept = trunk.states(cut, [seat.example for seat in seats])
        if cut.whole:
            return _whole_scores(adapters, seats, kept, keys)
    laid = lay_out(seats, backbone.device)
    step = _step(laid, adapters, worn, keys, checkpointing)
    if kept is not None and cut is not None:
        step.states, step.first = pad_sequence(kept, batch_first=True), cut.layer
    output = backbone.decoder(laid.tokens, step)
    scores = _spoken_scores(laid, output)
    pooled = any(adapter.contract.output_head is not OutputHead.GENERATE for adapter in adapters)
    hidden = laid.lines.split(output.hidden) if pooled else output.hidden
    start = 0
    for trainee, group in groupby(seats, key=lambda seat: seat.trainee):
        rows = slice(start, start + len(list(group)))
        start = rows.stop
        if adapters[trainee].contract.output_head is not OutputHead.GENERATE:
            scores[trainee] = _row_score(adapters[trainee], seats[rows], hidden, laid, rows, keys)
    return scores


@torch.no_grad()
def text_losses(backbone: Backbone, adapter: Adapter | None, examples: Sequence[Example]) -> list[float]:
    """Each example's loss over its spoken tokens, summed in nats, whatever the adapter's output head; None is bare."""
    adapters = [] if adapter is None else [adapter]
    layers = [layer for layer in backbone.decoder.layers if isinstance(layer, Layer)]
    worn = fuse_all(adapters, layers, dtype=backbone.dtype)
    virtual = 0 if adapter is None else adapter.weights.num_virtual
    seats = [Seat(0, replace(example, index=i), virtual) for i, example in enumerate(examples)]
    found = [0.0] * len(seats)
    for part in pack(seats, Packing()):
        laid = lay_out(part, backbone.device)
        output = backbone.decoder(laid.tokens, _step(laid, adapters, worn, None, KEEP_ALL))
        for row, loss in zip(laid.want_rows, token_losses(output.logits, laid.targets).tolist(), strict=True):
            found[part[row].example.index] += loss
    return found


def _whole_scores(
    adapters: Sequence[Adapter], seats: Sequence[Seat], kept: Sequence[Tensor], keys: Tensor | None
) -> dict[int, Score]:
    """Where the backbone has nothing left to do: each row's states are what its head reads."""
    scores: dict[int, Score] = {}
    start = 0
    for trainee, group in groupby(seats, key=lambda seat: seat.trainee):
        rows = slice(start, start + len(list(group)))
        start = rows.stop
        states = torch.cat(list(kept[rows]))
        scores[trainee] = _head_score(adapters[trainee], seats[rows], states, None if keys is None else keys[rows])
    return scores


def _step(
    laid: Layout, adapters: Sequence[Adapter], worn: Sequence[Worn], keys: Tensor | None, checkpointing: Checkpointing
) -> Step:
    device, lines = laid.tokens.device, laid.lines
    keys = lines.keys(keys)
    sites = wear(worn, lines.wearers, device=device, dropout_keys=keys)
    past = torch.tensor([adapters[owner].weights.num_past if adapters else 0 for owner in lines.wearers], device=device)
    return Step(
        positions=lines.positions + past[:, None],
        attention=WholeAttention(sites, lines.rows),
        sites=sites,
        want=laid.want if len(laid.want_rows) else None,
        want_sites=_want_sites(laid, worn, keys),
        checkpointing=checkpointing,
    )


def _want_sites(laid: Layout, worn: Sequence[Worn], keys: Tensor | None) -> Sites:
    """Adapters on lm_head, whose batch is the wanted places."""
    there = [group for group in worn if any(layer == LM_HEAD for layer, _ in group.stack)]
    if not there or not laid.want_rows:
        return BARE
    if keys is not None:
        keys = token_keys(keys, laid.tokens.shape[1]).flatten()[laid.want]
    owners = [laid.owners[row] for row in laid.want_rows]
    return wear(there, owners, device=laid.tokens.device, dropout_keys=keys)


def _spoken_scores(laid: Layout, output: Output) -> dict[int, Score]:
    """Of the generating adapters; their places lie together, since rows are sorted."""
    scores: dict[int, Score] = {}
    if output.logits is None:
        return scores
    losses_M = token_losses(output.logits, laid.targets)
    right_M = None if torch.is_grad_enabled() else output.logits.argmax(1) == laid.targets
    start = 0
    for trainee, group in groupby(laid.owners[row] for row in laid.want_rows):
        places = slice(start, start + len(list(group)))
        start = places.stop
        right = None if right_M is None else right_M[places].sum()
        losses, mass = _weighted(losses_M[places], laid.weights, laid.want_rows[places])
        scores[trainee] = Score(losses.sum(), right, places.stop - places.start, mass)
    return scores


def _row_score(
    adapter: Adapter, seats: Sequence[Seat], hidden: Tensor, laid: Layout, rows: slice, keys: Tensor | None
) -> Score:
    if adapter.contract.output_head is OutputHead.TAG:
        states = _word_states(seats, hidden[rows])
    else:
        pooling = adapter.head.config.pooling
        assert pooling is not None
        states = pool(hidden[rows], laid.lengths[rows], laid.skip[rows], pooling)
    return _head_score(adapter, seats, states, None if keys is None else keys[rows])


def _head_score(adapter: Adapter, seats: Sequence[Seat], states: Tensor, keys: Tensor | None) -> Score:
    """``states`` [n,H] are each row's pooled state, or its words'."""
    if adapter.contract.output_head is OutputHead.TAG:
        answers: list[tuple[float, ...]] = [(tag,) for seat in seats for tag in seat.example.target]
    else:
        answers = [seat.example.target for seat in seats]
    counts = [seat.example.count for seat in seats]
    logits = _head_logits(adapter, states, counts, keys)
    if (contrast := seats[0].contrast) is not None:
        loss, pairs, mass = contrast.tell([seat.example for seat in seats], logits)
        return Score(loss, None, pairs, mass)
    targets = torch.tensor(answers, device=logits.device, dtype=logits.dtype)
    losses = row_losses(adapter.contract, logits, targets)
    right = None if torch.is_grad_enabled() else right_rows(adapter.contract, logits, targets)
    owners = [row for row, count in enumerate(counts) for _ in range(count)]
    losses, mass = _weighted(losses, _weights(seats, losses.device), owners)
    return Score(losses.sum(), right, len(answers), mass)


def _word_states(seats: Sequence[Seat], hidden_BTH: Tensor) -> Tensor:
    """[words, H]: the hidden state at each word's own token."""
    rows = [row for row, seat in enumerate(seats) for _ in seat.example.words]
    places = [seat.virtual + place for seat in seats for place in seat.example.words]
    return hidden_BTH[torch.tensor(rows, device=hidden_BTH.device), torch.tensor(places, device=hidden_BTH.device)]


def _head_logits(adapter: Adapter, states: Tensor, counts: Sequence[int], keys: Tensor | None) -> Tensor:
    """``counts`` is how many of the states are each row's; with dropout each row draws from a generator of its own."""
    if keys is None or adapter.head.config.dropout == 0.0:
        return adapter.head.logits(states)
    generators = [torch.Generator(states.device).manual_seed(key) for key in keys.tolist()]
    parts = zip(states.split(list(counts)), generators, strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([adapter.head.logits(part, generator) for part, generator in parts])
