"""Tagging of words: a label for every token, read at each word's first token."""

from dataclasses import replace

from umbel.adapters.head import NAME_LABELS, Head, HeadConfig
from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import ConfigError


class TagHead(Head):
    """``score`` [tags, hidden] on every token; HF's token classifiers have a bias, so this one has."""

    kind = OutputHead.TAG

    @classmethod
    def configure(cls, contract: Contract, config: HeadConfig, hidden: int) -> HeadConfig:
        if config.outputs not in (0, len(contract.labels)):
            raise ConfigError(
                f"the head has {config.outputs} outputs but the contract names {len(contract.labels)} tags.",
                code="label_count_mismatch",
                hint=NAME_LABELS,
            )
        return replace(config, outputs=len(contract.labels), pooling="tokens", bias=True)


HEAD = TagHead
