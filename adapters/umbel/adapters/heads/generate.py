"""Generation: the backbone's own lm_head gives the next token; nothing is added."""

import torch
from torch import Tensor

from umbel.adapters.head import Head, HeadConfig
from umbel.core.contract import Contract, OutputHead


class GenerateHead(Head):
    """Holds no tensors; the engine samples from the backbone's logits."""

    kind = OutputHead.GENERATE

    @classmethod
    def configure(cls, contract: Contract, config: HeadConfig, hidden: int) -> HeadConfig:
        return HeadConfig(pooling="none")

    @classmethod
    def expected(cls, config: HeadConfig, hidden: int) -> dict[str, tuple[int, ...]]:
        return {}

    def logits(self, pooled: Tensor, generator: torch.Generator | None = None) -> Tensor:
        raise AssertionError("a generate head has no logits of its own")


HEAD = GenerateHead
