"""Which rows of a batch wear which slots of a stack, laid out as one matrix product per slot.

A batch of B rows [B, T, F] is gathered into [S, C * T, F]: S slots, C rows each. Slots with fewer rows are filled by
repeating a row whose result is dropped. With T = 1 never fewer than two rows are given to a product, because oneDNN
and BLAS compute a lone row in another order, and a row must not feel how many neighbours it has.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Rows:
    """The rows of one batch that wear the slots ``span`` of one stack.

    ``slots[i]`` is the slot that row ``rows[i]`` wears. An instance is made once per step and used at every site.
    ``least`` is the fewest rows of a product: 2 in serving, 1 in training, where rows have many tokens.
    """

    def __init__(
        self,
        rows: Sequence[int],
        slots: Sequence[int],
        *,
        batch: int,
        device: torch.device | str = "cpu",
        least: int = 2,
    ) -> None:
        first, last = min(slots), max(slots)
        self.span = slice(first, last + 1)
        """Slots of the stack, in order, that the grouped tensors' first dimension runs over."""
        groups: list[list[int]] = [[] for _ in range(last - first + 1)]
        for row, slot in zip(rows, slots, strict=True):
            groups[slot - first].append(row)
        self.num_slots, self.width = len(groups), max(least, *(len(group) for group in groups), 0)
        filler = rows[0]
        index = [row for group in groups for row in [*group, *[filler] * (self.width - len(group))]]
        kept = [s * self.width + c for s, group in enumerate(groups) for c in range(len(group))]
        self.rows = [row for group in groups for row in group]
        self._slots = [first + s for s, group in enumerate(groups) for _ in group]
        self.batch = batch
        self._window = _window(index)
        self._whole = self._window == slice(0, batch)
        self._index = torch.tensor(index, device=device)
        self._kept = None if len(kept) == len(index) else torch.tensor(kept, device=device)
        self._target = torch.tensor(self.rows, device=device)
        self._even = _even(groups)

    def of(self, stack: Tensor) -> Tensor:
        """The stack's slots in this batch, [S, ...]; a view, so no weight is copied in a step."""
        return stack[self.span]

    def take(self, x: Tensor) -> Tensor:
        """[B, T, F] -> [S, C * T, F]."""
        grouped = x[self._window] if self._window is not None else x.index_select(0, self._index)
        return grouped.reshape(self.num_slots, -1, x.shape[-1])

    def add(self, y: Tensor, delta: Tensor, columns: slice | None = None) -> Tensor:
        """Adds delta [S, C * T, E] to y[:, :, columns], in place, and returns y."""
        target = y if columns is None else y[..., columns]
        if self._even is not None and not torch.is_grad_enabled():
            window, count = self._even
            own = delta.view(self.num_slots, self.width, y.shape[1], -1)[:, :count]
            target[window].unflatten(0, (self.num_slots, count)).add_(own)  # type: ignore[no-untyped-call]
            return y
        flat = self._ungroup(delta, y.shape[1])
        if self._whole:
            target.add_(flat)
        else:  # under autograd one index_add_ is cheaper than the copies of a slice's gradient
            target.index_add_(0, self._target, flat.to(y.dtype))
        return y

    def add_blocks(self, y: Tensor, delta: Tensor) -> Tensor:
        """Adds delta [S, P, C * T, E] to y [B, T, P * E], whose columns are P blocks, in place, and returns y."""
        blocks, tokens = delta.shape[1], y.shape[1]
        if self._even is None:
            return self.add(y, delta.transpose(1, 2).reshape(self.num_slots, self.width * tokens, -1))
        window, count = self._even
        own = y[window].view(self.num_slots, count * tokens, blocks, -1).transpose(1, 2)
        own.add_(delta[:, :, : count * tokens])
        return y

    def put(self, y: Tensor, new: Tensor, columns: slice | None = None) -> Tensor:
        """y with its rows (at ``columns``) replaced by new [S, C * T, E]; rows of others stay.

        Without gradients it is written in place, as a sum is.
        """
        if not torch.is_grad_enabled():
            return self._write(y, new, columns)
        flat = self._ungroup(new, y.shape[1]).to(y.dtype)
        if columns is not None:
            start, stop, _ = columns.indices(y.shape[-1])
            own = y if self._whole else y.index_select(0, self._target)
            flat = torch.cat([own[..., :start], flat, own[..., stop:]], -1)
        return flat if self._whole else y.index_copy(0, self._target, flat)

    def _write(self, y: Tensor, new: Tensor, columns: slice | None) -> Tensor:
        target = y if columns is None else y[..., columns]
        if self._even is None:
            target[self._target] = self._ungroup(new, y.shape[1]).to(y.dtype)
            return y
        window, count = self._even
        own = new.view(self.num_slots, self.width, y.shape[1], -1)[:, :count]
        target[window].unflatten(0, (self.num_slots, count)).copy_(own)  # type: ignore[no-untyped-call]
        return y

    def scatter(self, y: Tensor, new: Tensor, columns: Tensor) -> Tensor:
        """Writes new [S, C * T, n] into each slot's columns of y [B, T, E], in place, and returns y.

        ``columns`` [slots of the whole stack, n].
        """
        flat = self._ungroup(new, y.shape[1]).to(y.dtype)
        own = columns.index_select(0, torch.tensor(self._slots, device=y.device))
        tokens = torch.arange(y.shape[1], device=y.device)
        return y.index_put_((self._target[:, None, None], tokens[None, :, None], own[:, None, :]), flat)

    def spread(self, stack: Tensor) -> Tensor:
        """Each row's own slot of a stack [S, ...] -> [B, ...]; zeros for rows that wear none of them."""
        own = stack.index_select(0, torch.tensor(self._slots, device=stack.device))
        return own.new_zeros(self.batch, *own.shape[1:]).index_copy(0, self._target, own)

    def tokens(self, values: Tensor) -> Tensor:
        """Per-row values [B, T] grouped as ``take`` groups them: [S, C * T]."""
        return (values if self._whole else values.index_select(0, self._index)).reshape(self.num_slots, -1)

    def _ungroup(self, grouped: Tensor, tokens: int) -> Tensor:
        flat = grouped.reshape(self.num_slots * self.width, tokens, grouped.shape[-1])
        return flat if self._kept is None else flat.index_select(0, self._kept)

    def __repr__(self) -> str:
        return (
            f"Rows({len(self.rows)} of {self.batch}, slots {self.span.start}..{self.span.stop - 1}, width {self.width})"
        )


def _even(groups: Sequence[Sequence[int]]) -> tuple[slice, int] | None:
    """(rows as one slice of the batch, rows of each slot) where all slots have as many, in order and side by side."""
    rows = _window([row for group in groups for row in group])
    return None if rows is None or len({len(group) for group in groups}) > 1 else (rows, len(groups[0]))


def _window(index: Sequence[int]) -> slice | None:
    """The rows as one slice of the batch, where they lie in order and side by side: a view, nothing is gathered."""
    first = index[0]
    return slice(first, first + len(index)) if list(index) == list(range(first, first + len(index))) else None


def plan_rows(rows: Sequence[int], slots: Sequence[int], **where: Any) -> list[Rows]:
    """One ``Rows`` for all where filling up wastes little, else one for each slot.

    A skewed batch (one busy adapter, many quiet ones) would be filled up to the busy one's rows for every slot.
    """
    counts: dict[int, list[int]] = {}
    for row, slot in zip(rows, slots, strict=True):
        counts.setdefault(slot, []).append(row)
    least = int(where.get("least", 2))
    filled = (max(slots) - min(slots) + 1) * max(least, *(len(group) for group in counts.values()), 0)
    if filled <= 4 * len(rows) + 16:
        return [Rows(rows, slots, **where)]
    return [Rows(group, [slot] * len(group), **where) for slot, group in sorted(counts.items())]
