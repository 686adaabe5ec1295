"""From a user's text to token ids by an adapter's contract: read by training and serving alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from umbel.backbone.tokenizer import Tokenizer
from umbel.core.contract import Contract, OutputHead


@dataclass(frozen=True, slots=True)
class Encoded:
    """One input as token ids, virtual tokens not among them."""

    ids: list[int]
    cut: int = 0
    """How many tokens were cut off to fit ``max_length``."""


def encode_texts(tokenizer: Tokenizer, contract: Contract, texts: Sequence[str]) -> list[Encoded]:
    """Each text in the contract's template. Too long ones are cut, but never for generation: the caller refuses."""
    filled = [contract.fill(text) for text in texts]
    return [cut(ids, contract) for ids in tokenizer.encode_all(filled, special=contract.add_special_tokens)]


def cut(ids: list[int], contract: Contract) -> Encoded:
    over = len(ids) - contract.max_length
    if over <= 0 or contract.output_head is OutputHead.GENERATE:
        return Encoded(ids)
    return Encoded(ids[:-over] if contract.truncation_side == "right" else ids[over:], over)
