"""Embedders are asked to find each text's own positive among all positives and hard negatives of the held-out pairs.

Shape letters here:  N rows   C candidates   D features   B texts of one batch   T tokens
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from umbel.adapters.head import Pooling, pool
from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import whole_step
from umbel.training.data.rows import PairRow

_BARE_ROWS = 16


def candidates_of(rows: Sequence[PairRow]) -> list[str]:
    """Every different text that may be an answer."""
    return list(dict.fromkeys(text for row in rows for text in (row.positive, row.negative) if text is not None))


def ranks(rows: Sequence[PairRow], vectors: Mapping[str, Tensor]) -> tuple[NDArray[np.int64], list[str]]:
    """(place of each row's positive among the candidates, from 1; the nearest candidate's text).

    Ties count against the row. A candidate that is the row's own text is no answer, so it is left out.
    """
    candidates = candidates_of(rows)
    place = {text: c for c, text in enumerate(candidates)}
    scores_NC = _stack([row.text for row in rows], vectors) @ _stack(candidates, vectors).T
    own_N = np.array([place[row.positive] for row in rows])
    for n, row in enumerate(rows):
        if row.text in place and row.text != row.positive:
            scores_NC[n, place[row.text]] = -np.inf
    reached_N = scores_NC[np.arange(len(rows)), own_N]
    return (scores_NC >= reached_N[:, None]).sum(1), [candidates[best] for best in scores_NC.argmax(1)]


def _stack(texts: Sequence[str], vectors: Mapping[str, Tensor]) -> NDArray[np.float64]:
    return torch.stack([vectors[text] for text in texts]).double().numpy()


@torch.no_grad()
def bare_vectors(backbone: Backbone, inputs: Sequence[Sequence[int]], pooling: Pooling) -> list[Tensor]:
    """What the backbone itself makes of token ids: its pooled hidden states, [D] each, of length one."""
    order = sorted(range(len(inputs)), key=lambda n: len(inputs[n]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), _BARE_ROWS):
        batch = order[start : start + _BARE_ROWS]
        lengths = torch.tensor([len(inputs[n]) for n in batch], device=backbone.device)
        longest = int(lengths.max())
        ids_BT = torch.zeros(len(batch), longest, dtype=torch.long, device=backbone.device)
        for row, n in enumerate(batch):
            ids_BT[row, : len(inputs[n])] = torch.tensor(inputs[n])
        hidden = backbone.decoder(ids_BT, whole_step(rows=len(batch), tokens=longest)).hidden
        pooled = pool(hidden, lengths, torch.zeros_like(lengths), pooling)
        wide = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
        found |= dict(zip(batch, F.normalize(wide, dim=-1).cpu(), strict=True))
    return [found[n] for n in range(len(inputs))]
