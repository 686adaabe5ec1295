"""Regression of a whole text: one number from the last token's hidden state."""

from dataclasses import replace

from umbel.adapters.head import Head, HeadConfig
from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import ConfigError


class RegressHead(Head):
    """``score`` [1, hidden]."""

    kind = OutputHead.REGRESS

    @classmethod
    def configure(cls, contract: Contract, config: HeadConfig, hidden: int) -> HeadConfig:
        if config.outputs not in (0, 1):
            raise ConfigError(
                f"a regression has one output, the head has {config.outputs}.", code="label_count_mismatch"
            )
        if config.pooling not in (None, "last", "mean"):
            raise ConfigError(f"pooling {config.pooling!r} does not suit regression.", hint="use last or mean")
        return replace(config, outputs=1, pooling=config.pooling or "last")


HEAD = RegressHead
