"""Which rows make which step: a pure function of the seed and the step's number, so a resumed run needs no cursor.

Rows of like length share a batch: an epoch is shuffled, cut into pools of many batches, sorted by length inside each
pool, and the batches are shuffled again.
"""

import math
from collections.abc import Sequence

import torch

POOL = 32
"""Batches per pool: padding falls with it, and so does how freely rows mix."""


class Batches:
    """The batches of one task. Every row comes once per epoch; the last batch of an epoch may be smaller."""

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self.lengths = torch.tensor(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.per_epoch = math.ceil(len(lengths) / batch_size)
        self._epoch = -1
        self._batches: list[list[int]] = []

    def steps(self, *, epochs: float, steps: int | None) -> int:
        """Optimizer steps of a training of so many epochs; at least one."""
        return steps if steps is not None else max(1, round(epochs * self.per_epoch))

    def at(self, step: int) -> list[int]:
        """Indices of the rows of one step."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._shuffled(epoch)
        return self._batches[place]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        pools = [_by_length(pool, self.lengths) for pool in order.split(POOL * self.batch_size)]  # type: ignore[no-untyped-call]
        batches = [batch.tolist() for pool in pools for batch in pool.split(self.batch_size)]  # type: ignore[no-untyped-call]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _by_length(pool: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return pool[torch.argsort(lengths[pool], stable=True)]
