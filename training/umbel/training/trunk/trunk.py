"""What a frozen part of the backbone makes of a row: computed once, kept in a ``RowStore``, the same bits ever after.

A row's states are a function of its tokens alone. They are computed in groups of rows of about one length, filled up
to a multiple of 8 tokens that nothing before them sees, and a group of that length always has the same shape (the last
one is filled up by repeating): a row goes through the same products whichever others are at hand. (With odd lengths
MKL's products depend on where a row begins in memory.) Whether states come from the disk, from memory or are computed
now, in this run or one that was killed, a training thus ends in the same bytes.

Shape letters here:  B rows   T tokens   H hidden   W words
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from umbel.adapters.adapter import Adapter
from umbel.adapters.head import pool
from umbel.adapters.sites import BARE
from umbel.backbone.attention import WholeAttention
from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import Step
from umbel.core.contract import OutputHead
from umbel.training.data.encode import Example
from umbel.training.trunk.rowstore import RowStore

_MULTIPLE = 8
"""Tokens of a row, those that fill it up included, are a multiple of it."""
GROUP = 64
"""Tokens of a group: enough for the machine to be busy, few enough that filling up the last one costs little."""
_SCHEMA = 2
"""Raise it where the decoder's arithmetic changes: what was kept before is then not found."""

What = Literal["layer", "last", "mean", "tokens"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the frozen part ends for one adapter, and so what is kept of a row.

    ``layer``: [T,H] entering the layer. ``last``, ``mean``: [1,H] that a head reads after the whole backbone;
    ``tokens``: [W,H] at each word's own token. These three need no pass through the backbone at all.
    """

    layer: int
    what: What

    @property
    def whole(self) -> bool:
        """Whether the backbone has nothing left to do."""
        return self.what != "layer"


class Trunk:
    """The rows of one backbone."""

    def __init__(self, backbone: Backbone, store: RowStore) -> None:
        self.backbone, self.store = backbone, store
        self.computed = 0
        """Rows that went through the frozen layers so far; the rest were found."""
        self._prefixes: dict[Cut, bytes] = {}

    def states(self, cut: Cut, examples: Sequence[Example]) -> list[Tensor]:
        """One [n,H] for each example, on the backbone's device; no gradient reaches below it."""
        keys = [self._key(cut, example) for example in examples]
        found, missing = self._look(cut, dict(zip(keys, examples, strict=True)))
        found |= self._compute(cut, missing)
        return [found[key].to(self.backbone.device) for key in keys]

    def fill(self, cut: Cut, examples: Sequence[Example], ahead: Callable[[], Iterable[Example]] = tuple) -> None:
        """Computes rows that are not kept; if there are any, those of ``ahead`` too: more are of one length then."""
        _, missing = self._look(cut, self._keyed(cut, examples))
        if missing:
            soon = self._keyed(cut, ahead())
            self._compute(cut, missing | self._look(cut, soon)[1])

    def _keyed(self, cut: Cut, examples: Iterable[Example]) -> dict[str, Example]:
        return {self._key(cut, text): text for example in examples for text in example.sequences}

    def _look(self, cut: Cut, wanted: Mapping[str, Example]) -> tuple[dict[str, Tensor], dict[str, Example]]:
        dtype, width = _dtype(cut, self.backbone.dtype), self.backbone.shape.hidden
        looked = {key: self.store.get(key, dtype, width) for key in wanted}
        found = {key: rows for key, rows in looked.items() if rows is not None}
        return found, {key: example for key, example in wanted.items() if key not in found}

    def _key(self, cut: Cut, example: Example) -> str:
        """sha256 of all that the states depend on."""
        if cut not in self._prefixes:
            backbone = self.backbone
            form = () if backbone.quantised is None else (backbone.quantised,)
            place = (backbone.device.type, str(backbone.dtype), cut.layer, cut.what, *form)
            told = (_SCHEMA, str(torch.__version__), backbone.fingerprint, *place)
            self._prefixes[cut] = " ".join(map(str, told)).encode()
        digest = hashlib.sha256(self._prefixes[cut])
        digest.update(b"%d:" % len(example.ids) + example.ids.tobytes())
        if cut.what == "tokens":
            digest.update(repr(example.words).encode())
        return digest.hexdigest()

    @torch.no_grad()
    def _compute(self, cut: Cut, missing: Mapping[str, Example]) -> dict[str, Tensor]:
        by_length: dict[int, list[str]] = defaultdict(list)
        for key, example in missing.items():
            by_length[-(-len(example.ids) // _MULTIPLE) * _MULTIPLE].append(key)
        made: dict[str, Tensor] = {}
        for length, keys in by_length.items():
            size = max(1, GROUP // length)
            for group in _batched(keys, size):
                made |= self._group(cut, {key: missing[key] for key in group}, size, length)
        self.computed += len(made)
        return made

    def _group(self, cut: Cut, group: Mapping[str, Example], size: int, length: int) -> dict[str, Tensor]:
        """Rows of at most ``length``, ``size`` of them or fewer."""
        examples = list(group.values())
        filled = [*examples, *[examples[0]] * (size - len(examples))]
        tokens = torch.zeros(size, length, dtype=torch.long)
        for row, each in zip(tokens, filled, strict=True):
            row[: len(each.ids)] = torch.from_numpy(each.ids)
        tokens = tokens.to(self.backbone.device)
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        stop = None if cut.whole else cut.layer
        hidden = self.backbone.decoder(tokens, Step(positions, WholeAttention(BARE), stop=stop)).hidden
        read = {key: _read(cut, hidden[row], example) for row, (key, example) in enumerate(group.items())}
        kept = {key: rows.cpu().contiguous().clone() for key, rows in read.items()}
        for key, rows in kept.items():
            self.store.put(key, rows)
        return kept


def _batched(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def _read(cut: Cut, hidden_TH: Tensor, example: Example) -> Tensor:
    if cut.what == "layer":
        return hidden_TH[: len(example.ids)]
    if cut.what == "tokens":
        return hidden_TH[list(example.words)]
    length = torch.tensor([len(example.ids)], device=hidden_TH.device)
    return pool(hidden_TH[None], length, torch.zeros_like(length), cut.what)


def _dtype(cut: Cut, backbone: torch.dtype) -> torch.dtype:
    """A mean is taken, and read, in at least fp32."""
    return torch.promote_types(backbone, torch.float32) if cut.what == "mean" else backbone


def bytes_of(cut: Cut, examples: Iterable[Example], hidden: int, dtype: torch.dtype) -> int:
    """What the states of these rows take."""
    places = sum(_places(cut, text) for example in examples for text in example.sequences)
    return places * hidden * _dtype(cut, dtype).itemsize


def _places(cut: Cut, text: Example) -> int:
    """States that are kept of one text."""
    if cut.what == "layer":
        return len(text.ids)
    return len(text.words) if cut.what == "tokens" else 1


def cut_of(adapter: Adapter, layers: int) -> Cut | None:
    """Where this adapter's own part begins; None where too little lies below it to be worth keeping.

    Prompt-like methods change the row from its first layer on.
    """
    weights, head = adapter.weights, adapter.contract.output_head
    lowest = weights.lowest_layer
    if weights.num_virtual or weights.num_past or lowest < layers * WORTH:
        return None
    if lowest < layers or head is OutputHead.GENERATE:
        return Cut(lowest, "layer")
    reading = adapter.head.pooling
    return None if reading == "none" else Cut(layers, reading)


WORTH = 0.25
"""Share of the layers that must be frozen below an adapter."""
