"""From hidden states of a whole prompt to its output head's raw logits.

A row's head is applied when all of its hidden states are there, to that row alone: how its prompt was cut into
chunks, and who else is in the step, cannot change a bit of the answer.
"""

import torch
from torch import Tensor

from umbel.adapters.head import Head, pool
from umbel.engine.row import Row


def gather(row: Row, hidden: Tensor) -> None:
    """Keeps what the heads will read of a chunk's hidden states [count, H]; ``row.done`` still counts those before."""
    if all(_head(reader).pooling == "last" for reader in row.readers):
        row.pooled = [hidden[-1:].clone()]
    else:
        row.pooled.append(hidden.clone())


def head_logits(reader: Row, states: Tensor) -> Tensor:
    """[outputs], or [tokens, outputs] for a head that reads each token; on CPU, an ordinary tensor.

    ``states`` [tokens, H] are all of the row that the reader is or rides on, or the last one alone.
    """
    logits = _logits(_head(reader), reader.virtual, states).cpu()
    with torch.inference_mode(False):
        return logits.clone()


def _head(reader: Row) -> Head:
    assert reader.resident is not None
    return reader.resident.head


def _logits(head: Head, virtual: int, states: Tensor) -> Tensor:
    if head.pooling == "tokens":
        return _apply(head, states[virtual:])
    if head.pooling == "last":
        return _apply(head, states[-1:].clone())[0]
    length = torch.tensor([states.shape[0]], device=states.device)
    skip = torch.tensor([virtual], device=states.device)
    return _apply(head, pool(states[None], length, skip, head.pooling))[0]


def _apply(head: Head, states: Tensor) -> Tensor:
    """Never a product of a lone row (correctness rule 2)."""
    rows = states.shape[0]
    return head.logits(states.expand(2, -1) if rows == 1 else states)[:rows]
