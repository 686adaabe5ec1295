"""Classification of a whole text: one logit per label from the last token's hidden state.

Single label: softmax over the labels. Multi-label: a sigmoid each, and every label over the threshold is given.
"""

from dataclasses import replace

import torch
from torch import Tensor

from umbel.adapters.head import NAME_LABELS, Head, HeadConfig
from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import ConfigError


class ClassifyHead(Head):
    """``score`` [labels, hidden], on the rightmost token of the text (never on padding)."""

    kind = OutputHead.CLASSIFY

    @classmethod
    def configure(cls, contract: Contract, config: HeadConfig, hidden: int) -> HeadConfig:
        labels = len(contract.labels)
        if config.outputs not in (0, labels):
            raise ConfigError(
                f"the head has {config.outputs} outputs but the contract names {labels} labels.",
                code="label_count_mismatch",
                hint=NAME_LABELS,
            )
        if config.pooling not in (None, "last", "mean"):
            raise ConfigError(f"pooling {config.pooling!r} does not suit classification.", hint="use last or mean")
        return replace(config, outputs=labels, pooling=config.pooling or "last")


def probabilities(logits: Tensor, *, multi_label: bool) -> Tensor:
    """[M, labels] logits -> probabilities, at least fp32."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.sigmoid(wide) if multi_label else torch.softmax(wide, dim=-1)


HEAD = ClassifyHead
