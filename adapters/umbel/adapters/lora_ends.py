"""What a LoRA adapter may change beside its low-rank products in the layers: both ends of the backbone, and biases.

    embedding      E[t] + s * B A[t]        low rank, PEFT's lora_embedding_A and B
    token rows     E'[t] in place of E[t], and h . E'[t] in place of logit t, for a few tokens t
    full copies    E' in place of E, W' in place of lm_head
    biases         b' in place of a linear's b; and PEFT's ``lora_bias``, s * c added to its output

Only stacks that hold such tensors pay for them (``LoraBatch.kind_for``).

Shape letters here:  S slots   M rows x tokens of a slot   V vocabulary   H hidden   R rank   n token rows
                     E features out
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding

from umbel.adapters.method import Key
from umbel.adapters.products import product
from umbel.adapters.rows import Rows
from umbel.adapters.sites import EMBEDDING, LM_HEAD, SITES, Frozen
from umbel.core.shape import BackboneShape

Stack = Mapping[Key, Tensor]

BIASES = ("bias", "shift")
"""Per linear, [1,E]: a bias that replaces the backbone's, a vector that is added."""


def embed(stack: Stack, rows: Rows, x: Tensor, tokens: Tensor) -> Tensor:
    """x [B,T,H], tokens [B,T] -> the adapters' own embeddings of their rows, [B,T,H]."""
    tokens_SM = rows.tokens(tokens)
    if (table_SVH := stack.get((EMBEDDING, "table"))) is not None:
        x = rows.put(x, _look_up(rows.of(table_SVH), tokens_SM))
    if (a_SVR := stack.get((EMBEDDING, "embed_tokens.A"))) is not None:
        h_SMR = _look_up(rows.of(a_SVR), tokens_SM)
        x = rows.add(x, product(h_SMR, rows.of(stack[EMBEDDING, "embed_tokens.B"])))
    if (ids_Sn := stack.get((EMBEDDING, "ids"))) is not None:
        own_SMH, met_SM = _found(rows.of(ids_Sn), rows.of(stack[EMBEDDING, "rows"]), tokens_SM)
        x = rows.put(x, torch.where(met_SM[..., None], own_SMH.to(x.dtype), rows.take(x)))
    return x


def _look_up(table_SVF: Tensor, tokens_SM: Tensor) -> Tensor:
    """Each slot's own rows, [S,M,F]; nothing of the size of V is made."""
    slots, vocab, _ = table_SVF.shape
    first = torch.arange(slots, device=tokens_SM.device)[:, None] * vocab
    return embedding(first + tokens_SM, table_SVF.reshape(slots * vocab, -1))


def _found(ids_Sn: Tensor, rows_SnH: Tensor, tokens_SM: Tensor) -> tuple[Tensor, Tensor]:
    """(the row of each token [S,M,H], whether it has one [S,M]); ids are ascending."""
    at_SM = torch.searchsorted(ids_Sn, tokens_SM.contiguous()).clamp_(max=ids_Sn.shape[1] - 1)
    return _look_up(rows_SnH, at_SM), ids_Sn.gather(1, at_SM) == tokens_SM


def own_lm_head(stack: Stack, rows: Rows, x: Tensor, y: Tensor) -> Tensor:
    """x [B,1,H] -> logits [B,1,V] by the adapters' full copies of lm_head."""
    table_SVH = stack.get((LM_HEAD, "table"))
    if table_SVH is None:
        return y
    return rows.put(y, product(rows.take(x), rows.of(table_SVH).transpose(1, 2)))


def own_logits(stack: Stack, rows: Rows, x: Tensor, y: Tensor) -> Tensor:
    """Logits [B,1,V] with those of the token rows computed anew."""
    ids_Sn = stack.get((LM_HEAD, "ids"))
    if ids_Sn is None:
        return y
    new_SMn = product(rows.take(x), rows.of(stack[LM_HEAD, "rows"]).transpose(1, 2))
    return rows.scatter(y, new_SMn, ids_Sn)


def shifted(stack: Stack, rows: Rows, layer: int, site: str, y: Tensor, frozen: Frozen, shape: BackboneShape) -> Tensor:
    """y [B,T,E of the site] with the adapters' biases in place of the backbone's."""
    column = 0
    for name in SITES[site]:
        own = slice(column, column + shape.linear(name)[1])
        column = own.stop
        new_S1E, more_S1E = (stack.get((layer, f"{name}.{kind}")) for kind in BIASES)
        shift = 0.0 if more_S1E is None else rows.of(more_S1E)
        if new_S1E is not None:
            old = frozen.bias(site)
            shift = shift + rows.of(new_S1E) - (0.0 if old is None else old[own].to(new_S1E.dtype))
        if isinstance(shift, Tensor):
            y = rows.add(y, shift.expand(-1, rows.width * y.shape[1], -1), own)
    return y


def sorted_rows(ids: Sequence[int], rows_nH: Tensor) -> dict[str, Tensor]:
    """``ids`` ascending and their rows, as ``_found`` needs them."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    device = rows_nH.device
    return {
        "ids": torch.tensor([ids[at] for at in order], device=device),
        "rows": rows_nH.index_select(0, torch.tensor(order, device=device)),
    }
