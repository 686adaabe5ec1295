"""Losses of one place or row each, unreduced: who owns them divides and sums (see ``window``).

Shape letters here:  M places   V vocabulary   B rows   K outputs of a head   P pairs   C candidates   D features
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import ConfigError


def wide(x: Tensor) -> Tensor:
    """At least fp32, and float64 where it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def token_losses(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """Cross entropy of each next token, in nats. [M]."""
    return F.cross_entropy(wide(logits_MV), targets_M, reduction="none")


def row_losses(contract: Contract, logits_BK: Tensor, targets: Tensor) -> Tensor:
    """[B]: cross entropy of the label or tag; multi-label the mean of each label's own; or the squared error."""
    logits_BK = wide(logits_BK)
    if contract.output_head is OutputHead.REGRESS:
        return (logits_BK[:, 0] - targets[:, 0]).square()
    if contract.output_head not in (OutputHead.CLASSIFY, OutputHead.TAG):
        raise ConfigError(f"a {contract.output_head} head has no loss of rows.", code="unsupported_output_head")
    if contract.multi_label:
        return F.binary_cross_entropy_with_logits(logits_BK, targets, reduction="none").mean(1)
    return F.cross_entropy(logits_BK, targets[:, 0].long(), reduction="none")


def contrastive_losses(
    anchors_PD: Tensor, candidates_CD: Tensor, left_out_PC: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """([P] cross entropy of each row's own candidate, which is candidate i of row i, in nats; how many are nearest)."""
    scores_PC = (wide(anchors_PD) @ wide(candidates_CD).T / temperature).masked_fill(left_out_PC, float("-inf"))
    own_P = torch.arange(len(scores_PC), device=scores_PC.device)
    return F.cross_entropy(scores_PC, own_P, reduction="none"), (scores_PC.argmax(1) == own_P).sum()


def right_rows(contract: Contract, logits_BK: Tensor, targets: Tensor) -> Tensor:
    """How many rows are answered right in every label; a regression has none."""
    if contract.output_head is OutputHead.REGRESS:
        return torch.zeros((), dtype=torch.long)
    if contract.multi_label:
        return ((torch.sigmoid(wide(logits_BK)) >= contract.threshold) == targets.bool()).all(1).sum()
    return (logits_BK.argmax(1) == targets[:, 0]).sum()
