"""Embedding of a whole text: the pooled hidden state, optionally projected, of length one.

Mean pooling is the default: the last token of a causal model says more about what comes next than about the text.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from umbel.adapters.head import Head, HeadConfig
from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import ConfigError


class EmbedHead(Head):
    """No tensors, or with ``outputs`` a projection ``score`` [outputs, hidden]."""

    kind = OutputHead.EMBED

    @classmethod
    def configure(cls, contract: Contract, config: HeadConfig, hidden: int) -> HeadConfig:
        if config.pooling not in (None, "last", "mean"):
            raise ConfigError(f"pooling {config.pooling!r} does not suit an embedding.", hint="use mean or last")
        if config.depth and not config.outputs:
            raise ConfigError("an embedding with hidden layers needs outputs.", param="outputs")
        return replace(config, pooling=config.pooling or "mean")

    @classmethod
    def expected(cls, config: HeadConfig, hidden: int) -> dict[str, tuple[int, ...]]:
        return super().expected(config, hidden) if config.outputs else {}

    def logits(self, pooled: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[M, hidden] -> [M, outputs or hidden], each of length one."""
        wide = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
        return F.normalize(super().logits(wide, generator) if self.config.outputs else wide, dim=-1)


HEAD = EmbedHead
