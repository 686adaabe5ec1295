"""From hidden states of a whole prompt to its output head's raw logits.

A row's head is applied when all of its hidden states are there, to that row alone: how its prompt was cut into
chunks, and who else is in the step, cannot change a bit of the answer.
"""

import torch
from torch import Tensor

from umbel.adapters.head import Head, pool
from umbel.engine.row import Row


def gather(row: Row, hidden: Tensor) -> None:
    """Keeps what the head will read of a chunk's hidden states [count, H]; ``row.done`` still counts those before."""
    resident = row.resident
    assert resident is not None
    if resident.head.config.pooling == "last":
        row.pooled = [hidden[-1:].clone()]
    else:
        row.pooled.append(hidden.clone())


def head_logits(row: Row) -> Tensor:
    """[outputs], or [tokens, outputs] for a head that reads each token; on CPU, an ordinary tensor."""
    logits = _head_logits(row).cpu()
    with torch.inference_mode(False):
        return logits.clone()


def _head_logits(row: Row) -> Tensor:
    resident = row.resident
    assert resident is not None
    head, states = resident.head, torch.cat(row.pooled)
    row.pooled = []
    pooling = head.config.pooling
    if pooling == "tokens":
        return _apply(head, states[row.virtual :])
    if pooling == "mean":
        length = torch.tensor([states.shape[0]], device=states.device)
        skip = torch.tensor([row.virtual], device=states.device)
        states = pool(states[None], length, skip, pooling)
    return _apply(head, states)[0]


def _apply(head: Head, states: Tensor) -> Tensor:
    """Never a product of a lone row (correctness rule 2)."""
    rows = states.shape[0]
    return head.logits(states.expand(2, -1) if rows == 1 else states)[:rows]
