"""Losses of one place or row each, unreduced: who owns them divides and sums (see ``window``).

Shape letters here:  M places   V vocabulary   B rows   K outputs of a head
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
        raise ConfigError(f"training a {contract.output_head} head is not there yet.", code="unsupported_output_head")
    if contract.multi_label:
        return F.binary_cross_entropy_with_logits(logits_BK, targets, reduction="none").mean(1)
    return F.cross_entropy(logits_BK, targets[:, 0].long(), reduction="none")


def right_rows(contract: Contract, logits_BK: Tensor, targets: Tensor) -> Tensor:
    """How many rows are answered right in every label; a regression has none."""
    if contract.output_head is OutputHead.REGRESS:
        return torch.zeros((), dtype=torch.long)
    if contract.multi_label:
        return ((torch.sigmoid(wide(logits_BK)) >= contract.threshold) == targets.bool()).all(1).sum()
    return (logits_BK.argmax(1) == targets[:, 0]).sum()
