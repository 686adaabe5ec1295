"""The loss of embedders: a text's positive must be nearer than every other text of its step (InfoNCE, in batch).

    loss_i = -log( exp(a_i . p_i / t) / sum_j exp(a_i . c_j / t) )       c: the step's positives and hard negatives

All pairs of a step see each other, whatever passes their texts are in, so micro-batches, packing and other tasks change
nothing (Gao et al. 2021, arXiv 2101.06983, "gradient cache"). The loss needs only each text's vector. Where a step's
texts are scattered over several passes, a first round without gradients collects the vectors; the loss's slope at
every vector follows from them; and each pass then pulls its own vectors along their slopes, which is the gradient of
the whole. It costs those texts one more forward pass; a step that fits in one pass pays nothing.

A candidate with the very text of the row's own positive, or of the row itself, is no negative and is left out.

Shape letters here:  P pairs   C candidates   N texts   D features   M texts of one pass
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from umbel.training.data.encode import Example
from umbel.training.losses import contrastive_losses


class Seated(Protocol):
    """A row of a pass."""

    @property
    def contrast(self) -> "Contrast | None": ...


class Contrast:
    """The pairs of one step, or of a validation: every ``group`` of them, in order, see each other."""

    def __init__(self, pairs: Sequence[Example], *, temperature: float, group: int, width: int) -> None:
        self.groups = [_Group(pairs[start : start + group]) for start in range(0, len(pairs), group)]
        self.temperature, self.width = temperature, width
        self.texts = [text.index for pair in pairs for text in pair.sequences]
        self.vectors: dict[int, Tensor] = {}
        """Each text's vector so far, by the text's index."""
        self._slopes: dict[int, Tensor] = {}
        self._losses: dict[int, Tensor] = {}
        self._right = 0

    def tell(self, texts: Sequence[Example], vectors_MD: Tensor) -> tuple[Tensor, int, float]:
        """(loss of the pairs whose first text is among these, their number and weight); vectors must be whole by now.

        The loss's gradient is the whole loss's, at these vectors. Without gradients they are only kept, for ``total``.
        """
        for text, vector in zip(texts, vectors_MD.detach(), strict=True):
            self.vectors.setdefault(text.index, vector)
        if not torch.is_grad_enabled():
            return vectors_MD.new_zeros(()), 0, 0.0
        self._solve()
        pull = (vectors_MD * torch.stack([self._slopes[text.index] for text in texts])).sum()
        own = [text for text in texts if text.mates]
        value = torch.stack([self._losses[text.index] for text in own]).sum() if own else pull.new_zeros(())
        return pull - pull.detach() + value, len(own), sum(text.weight for text in own)

    def total(self) -> tuple[float, float, int, int]:
        """(summed loss, weight, pairs whose positive is nearest, pairs), once all vectors are there."""
        self._solve()
        pairs = [pair for group in self.groups for pair in group.pairs]
        mass = sum(pair.weight for pair in pairs)
        return float(sum(map(float, self._losses.values()))), mass, self._right, len(pairs)

    def exchange(self, own: Collection[int], add: Callable[[Tensor], Tensor], like: Tensor) -> None:
        """Takes over the other processes' vectors; ``own`` are the texts that no other process has.

        ``like`` has the dtype and device of vectors: this process may hold none.
        """
        all_ND = like.new_zeros(len(self.texts), self.width)
        for n, index in enumerate(self.texts):
            if index in own:
                all_ND[n] = self.vectors[index]
        self.vectors = dict(zip(self.texts, add(all_ND), strict=True))

    def _solve(self) -> None:
        """Losses, and their sum's slope at every vector."""
        assert len(self.vectors) == len(self.texts), "a text of the step has not been seen"
        if self._losses:
            return
        for group in self.groups:
            found = {text.index: self.vectors[text.index] for text in group.texts}
            with torch.enable_grad():
                leaves = torch.stack(list(found.values())).requires_grad_()
                losses, right = group.losses(dict(zip(found, leaves, strict=True)), self.temperature)
                (slopes,) = torch.autograd.grad(losses.sum(), leaves)
            self._slopes |= dict(zip(found, slopes, strict=True))
            self._losses |= {pair.index: loss for pair, loss in zip(group.pairs, losses.detach(), strict=True)}
            self._right += int(right)


class _Group:
    """Pairs that see each other."""

    def __init__(self, pairs: Sequence[Example]) -> None:
        self.pairs = pairs
        self.texts = [text for pair in pairs for text in pair.sequences]
        self.candidates = [pair.mates[0] for pair in pairs] + [mate for pair in pairs for mate in pair.mates[1:]]

    def losses(self, vectors: dict[int, Tensor], temperature: float) -> tuple[Tensor, Tensor]:
        """[P] times the rows' weights, and how many have their positive nearest; ``vectors`` by the texts' indices."""
        anchors_PD = torch.stack([vectors[pair.index] for pair in self.pairs])
        candidates_CD = torch.stack([vectors[text.index] for text in self.candidates])
        left_out_PC = self._left_out().to(anchors_PD.device)
        losses_P, right = contrastive_losses(anchors_PD, candidates_CD, left_out_PC, temperature)
        return losses_P * losses_P.new_tensor([pair.weight for pair in self.pairs]), right

    def _left_out(self) -> Tensor:
        """[P,C] bool; row i's own positive is candidate i."""
        words = [text.ids.tobytes() for text in self.candidates]
        rows = [(pair.ids.tobytes(), words[i]) for i, pair in enumerate(self.pairs)]
        return torch.tensor([[word in own and j != i for j, word in enumerate(words)] for i, own in enumerate(rows)])


def scattered(passes: Sequence[Sequence[Seated]]) -> set[int]:
    """The ``id`` of every contrast whose texts are in more than one of the passes."""
    seen: defaultdict[int, set[int]] = defaultdict(set)
    for number, seats in enumerate(passes):
        for seat in seats:
            if seat.contrast is not None:
                seen[id(seat.contrast)].add(number)
    return {contrast for contrast, numbers in seen.items() if len(numbers) > 1}
