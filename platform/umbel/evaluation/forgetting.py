"""What an adapter costs the backbone's general skills while it is on: measured on a fixed probe that ships with umbel.

    perplexity   of eight short texts (prose, letters, instructions, code; ``probe/text.txt``)
    accuracy     on forty beginnings with one right end of three (``probe/facts.jsonl``), the likeliest per byte counts

``forgetting`` is how much the perplexity rises, as a share: 0.1 means ten per cent. It is negative where an adapter
made the texts likelier. With the adapter off there is nothing to measure: the backbone's bytes are the same.
"""

import json
import math
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from umbel.adapters.adapter import Adapter
from umbel.backbone.backbone import Backbone
from umbel.training.data.encode import Example
from umbel.training.forward import text_losses

_CHOICES = 3


@dataclass(frozen=True, slots=True)
class Probed:
    """The probe's figures, with one adapter on or with none."""

    perplexity: float
    """Per token of this backbone's tokenizer: to be compared with the same backbone only."""
    accuracy: float


@dataclass(frozen=True, slots=True)
class Forgetting:
    on: Probed
    off: Probed

    @property
    def rise(self) -> float:
        """Of the perplexity, as a share."""
        return self.on.perplexity / self.off.perplexity - 1

    @property
    def values(self) -> dict[str, float]:
        """By the names that a gate may use."""
        return {
            "forgetting": self.rise,
            "probe_perplexity": self.on.perplexity,
            "probe_accuracy": self.on.accuracy,
        }


class Probe:
    """The probe in a backbone's tokens; the bare backbone is asked once.

    ``before`` is what a backbone with the same tokens was trained from: then that one's figures stand for "off".
    """

    def __init__(self, backbone: Backbone, before: Backbone | None = None) -> None:
        self.backbone = backbone
        self.before = before or backbone
        folder = files("umbel.evaluation").joinpath("probe")
        facts = [json.loads(line) for line in folder.joinpath("facts.jsonl").read_text("utf-8").splitlines()]
        texts = folder.joinpath("text.txt").read_text("utf-8").strip().split("\n\n")
        ends = [(fact["text"], end) for fact in facts for end in fact["answers"]]
        self._texts = [self._example(index, "", text) for index, text in enumerate(texts)]
        self._ends = [self._example(index, *end) for index, end in enumerate(ends)]
        self._bytes = np.array([len(end.encode()) for _, end in ends])
        self._off: Probed | None = None

    def of(self, adapter: Adapter | None) -> Forgetting:
        """None is the bare backbone, which forgets nothing."""
        if self._off is None:
            self._off = self._ask(None, self.before)
        return Forgetting(on=self._off if adapter is None else self._ask(adapter, self.backbone), off=self._off)

    def _example(self, index: int, text: str, end: str) -> Example:
        """``end`` is what is predicted; with nothing before it, all of it but the first token."""
        tokenizer = self.backbone.tokenizer
        given, rest = tokenizer.encode(text) if text else [], tokenizer.encode(end)
        spoken = np.arange(len(given) + len(rest)) >= max(1, len(given))
        return Example(index, np.array([*given, *rest], dtype=np.int32), spoken)

    def _ask(self, adapter: Adapter | None, backbone: Backbone) -> Probed:
        losses = text_losses(backbone, adapter, self._texts)
        tokens = sum(example.count for example in self._texts)
        per_byte = np.array(text_losses(backbone, adapter, self._ends)) / self._bytes
        best = per_byte.reshape(-1, _CHOICES).argmin(1)
        return Probed(math.exp(sum(losses) / tokens), float((best == 0).mean()))
