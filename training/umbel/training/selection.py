"""What is trained, as a person writes it: ``adapter``, ``head``, ``mlp-head``, ``layers=...`` or ``all``.

    layers=last:4    layers=first:2    layers=3,7,11    layers=regex:self_attn.o_proj|mlp.down_proj

A selection names tensors of a checkpoint (``model.layers.3.mlp.down_proj.weight``); no torch here, so that a wrong
one is told before a backbone is loaded.
"""

import re
from dataclasses import dataclass

from umbel.core.errors import ConfigError

FORMS = ("adapter", "head", "mlp-head", "layers=last:N", "layers=first:N", "layers=3,7,11", "layers=regex:...", "all")
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
LAST_NORM = "model.norm.weight"

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """``embeddings`` (the two tables) and ``norms`` are None where nobody said: ``all`` has both, ``layers`` has the
    norms of its own layers only."""

    text: str
    """As it was written."""
    embeddings: bool | None = None
    norms: bool | None = None

    def __post_init__(self) -> None:
        if self.text in _WORDS:
            if not self.tunes and (self.embeddings is not None or self.norms is not None):
                raise ConfigError(
                    f"train_embeddings and train_norms are of a backbone that is trained, train is {self.text!r}.",
                    param="train",
                    hint="add --train all or --train layers=last:4, or leave them out",
                )
            return
        kind, _, value = self.text.partition("=")
        if kind != "layers" or not _understood(value):
            raise _wrong(self.text)

    @property
    def tunes(self) -> bool:
        """Whether the backbone's own tensors are trained."""
        return self.text not in _WORDS or self.text == "all"

    @property
    def whole(self) -> bool:
        return self.text == "all"

    def chooses(self, tensor: str, layers: int) -> bool:
        """Whether a tensor of a checkpoint with so many layers is trained; ConfigError for a layer it has not."""
        if tensor in EMBEDDINGS:
            return self._wanted(self.embeddings, self.text == "all" or self._matches(tensor))
        if tensor == LAST_NORM:
            return self._wanted(self.norms, self.text == "all" or self._matches(tensor))
        inside = self.text == "all" or self._matches(tensor) or _layer_of(tensor) in self._layers(layers)
        return inside and not (self.norms is False and "norm" in tensor)

    def _wanted(self, said: bool | None, otherwise: bool) -> bool:
        return otherwise if said is None else said

    def _matches(self, tensor: str) -> bool:
        _, regex, pattern = self.text.partition("=regex:")
        return bool(regex) and re.search(pattern, tensor) is not None

    def _layers(self, layers: int) -> frozenset[int]:
        value = self.text.partition("=")[2]
        if value.startswith("regex:") or not value:
            return frozenset()
        end, _, count = value.partition(":")
        if count:
            chosen = range(layers)[-int(count) :] if end == "last" else range(layers)[: int(count)]
            missing = int(count) > layers
        else:
            chosen = sorted({int(each) for each in value.split(",")})  # type: ignore[assignment]
            missing = chosen[-1] >= layers
        if missing:
            raise ConfigError(
                f"train = {self.text!r}, but the backbone has {layers} layers, counted from 0.",
                param="train",
                hint=f"choose among 0 to {layers - 1}, or --train all",
            )
        return frozenset(chosen)


_WORDS = ("adapter", "head", "mlp-head", "all")


def _layer_of(tensor: str) -> int | None:
    found = _LAYER.match(tensor)
    return int(found[1]) if found else None


def _understood(value: str) -> bool:
    if value.startswith("regex:"):
        try:
            re.compile(value.removeprefix("regex:"))
        except re.error as error:
            raise ConfigError(f"train: {value!r} is no regular expression: {error}.", param="train") from None
        return len(value) > len("regex:")
    return re.fullmatch(r"(last|first):[1-9]\d*|\d+(,\d+)*", value) is not None


def _wrong(text: str) -> ConfigError:
    return ConfigError(f"train = {text!r} is not understood.", param="train", hint=f"write one of {', '.join(FORMS)}")
