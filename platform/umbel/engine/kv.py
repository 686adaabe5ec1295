"""Keys and values of the running rows.

Shape letters here:  R slots   G key/value heads   L places   D head width   P places of a prefix

A row's cache index is its position, so ``index <= position`` is the whole mask. On CPU every slot is one contiguous
slab of virtual memory: pages are zero until they are written, and given back when more were touched than the budget
allows. Running rows lie in slots 0..R-1 without a hole, so that a decode step is one product over ``[:R]``. The
kernels read what a row wrote and no more, so for them a slab has room for all that a row may ever write, and stays
where it is. For torch, slabs are as long as the longest row needs, and are laid out anew when it outgrows them: oneDNN
multiplies whole slabs as they lie, but to look at a part of each it copies all rows' keys and values in every step.

On CUDA the same five methods would stand on pages: ``write`` and ``CachedAttention`` take a block table [R, blocks]
kept in one preallocated tensor (``torch.nn.attention.varlen.varlen_attn`` reads it), ``move`` and ``swap`` exchange
rows of that table instead of bytes, and ``free`` returns blocks. Nothing outside this file and ``attention.py``
knows which form it is.
"""

import mmap

import torch
from torch import Tensor

from umbel.backbone.pages import can_reserve, give_back, reserve
from umbel.core.shape import BackboneShape

_KEYS_STEP = 16
"""ATen's softmax sums rows of other lengths in another order."""
_ONE_BLOCK = 1024
_BLOCK = 512
"""oneDNN sums up to 1,024 half-precision products in one go, and more in blocks of 512."""
_WINDOW = 64
"""Slabs grow in steps of so many places, and by at least a quarter."""
_SMALL_PRODUCT = 16**3
"""ATen multiplies up to so many half-precision multiply-adds in a loop of its own, with other rounding."""


def round_up(value: int, step: int = _KEYS_STEP) -> int:
    return -(-value // step) * step


class KVCache:
    """Slabs [layer, 2, slot, G, L, D]; index 0 of the second dimension is keys, 1 is values."""

    def __init__(
        self,
        shape: BackboneShape,
        *,
        slots: int,
        length: int,
        budget: int,
        dtype: torch.dtype,
        device: torch.device,
        whole: bool = False,
    ) -> None:
        """``whole``: slabs of ``length`` places from the beginning, where the system promises so many addresses."""
        self._least = _least_keys(shape)
        self.length = max(round_up(length), self._least)
        self.budget = budget
        """Bytes that may stay touched after their rows left."""
        self.token_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * dtype.itemsize
        self._shape, self._made = shape, (dtype, device)
        self._touched = [0] * slots
        self._live = [0] * slots
        """Places of each slot that a running row may have written."""
        self.kept_tokens = 0
        """Tokens kept outside of the slabs (``prefixes``), which count to the budget."""
        self._stays = whole and self._laid_out_whole()
        if not self._stays:
            self._lay_out(self._window_for(1))

    def _laid_out_whole(self) -> bool:
        if not can_reserve(self._made[1]):
            return False
        try:
            self._lay_out(self.length)
        except OSError:
            return False
        return True

    @torch.inference_mode(False)
    def _lay_out(self, window: int) -> None:
        """Fresh slabs of ``window`` places, which hold nothing and may be written outside of inference mode, too."""
        layers, heads, width = self._shape.layers, self._shape.kv_heads, self._shape.head_dim
        self.window = window
        """Places of a slab now; at most ``length``."""
        self._pages, self.slabs = _zeros((layers, 2, len(self._live), heads, window, width), *self._made)
        flat = self.slabs.view(layers, 2, -1, width)
        self._flat = [(flat[layer, 0], flat[layer, 1]) for layer in range(layers)]
        self._layers = [(self.slabs[layer, 0], self.slabs[layer, 1]) for layer in range(layers)]
        self._heads = torch.arange(heads, device=self.slabs.device) * window
        self._slot_stride = heads * window

    def _window_for(self, count: int) -> int:
        return self.visible(round_up(count, _WINDOW))

    def _grow(self, count: int) -> None:
        """Slabs of at least ``count`` places, with what running rows wrote; never all held twice."""
        old, pages, layer_bytes = self.slabs, self._pages, self.slabs[0].numel() * self.slabs.element_size()
        self._lay_out(self._window_for(min(max(count, self.window * 5 // 4), self.length)))
        for layer in range(self._shape.layers):
            for slot, live in enumerate(self._live):
                if live:
                    self.slabs[layer, :, slot, :, :live] = old[layer, :, slot, :, :live]
            if pages is not None:
                give_back(pages, layer * layer_bytes, layer_bytes)
        self._touched = list(self._live)

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """All slots' keys and values of one layer, [slots, G, window, D]."""
        return self._layers[layer]

    def visible(self, count: int) -> int:
        """How many places to look at so that ``count`` are seen, and a row's sums have the same order at every length.

        A row's own keys end before those of the longest row beside it; what is looked at beyond them has weight 0, so
        only the order of summation could differ (correctness rule 2).
        """
        length = max(round_up(count), self._least)
        if length > _BLOCK:
            length = max(length, _ONE_BLOCK + _KEYS_STEP)
        return min(length, self.length)

    def look(self, count: int) -> int:
        """Places that a decode step multiplies with where ``count`` are to be seen: the slabs as they lie, unless
        copying a part of each is less work."""
        least = self.visible(count)
        return least if 2 * least <= self.window or self.slabs.device.type != "cpu" else self.window

    def places(self, slots: Tensor, positions: Tensor) -> Tensor:
        """[R] slots and positions of rows -> [R*G] places for ``write``."""
        base = slots * self._slot_stride + positions
        return (base[:, None] + self._heads).view(-1)

    def write(self, layer: int, places: Tensor, k: Tensor, v: Tensor) -> None:
        """One token's k and v [R,G,1,D] of each row."""
        keys, values = self._flat[layer]
        keys.index_copy_(0, places, k.reshape(-1, k.shape[-1]))
        values.index_copy_(0, places, v.reshape(-1, v.shape[-1]))

    def write_prefix(self, layer: int, slot: int, k: Tensor, v: Tensor) -> None:
        """Keys and values [G,P,D] that a row starts with."""
        self.touch(slot, k.shape[1])
        self.slabs[layer, 0, slot, :, : k.shape[1]] = k
        self.slabs[layer, 1, slot, :, : v.shape[1]] = v

    def save(self, slot: int, start: int, end: int) -> Tensor:
        """A copy of a row's places [layers, 2, G, end - start, D] in host memory."""
        return self.slabs[:, :, slot, :, start:end].to("cpu", copy=True, memory_format=torch.contiguous_format)

    def last_layer(self, slot: int, start: int, end: int) -> Tensor:
        """Keys and values [2, G, end - start, D] of the last layer, of which no layer's states behind them tell."""
        return self.slabs[-1, :, slot, :, start:end]

    def load(self, slot: int, start: int, saved: Tensor | None) -> None:
        """Puts what ``save`` gave into a row, its first place at ``start``."""
        assert saved is not None
        end = start + saved.shape[3]
        self.touch(slot, end)
        self.slabs[:, :, slot, :, start:end] = saved

    def touch(self, slot: int, length: int) -> None:
        """Says that places below ``length`` will be written."""
        if length > self.window:
            self._grow(length)
        if length > self._live[slot]:
            self._live[slot] = length
        if length > self._touched[slot]:
            self._touched[slot] = length

    def move(self, source: int, target: int, used: int) -> None:
        """Copies the ``used`` first places of a row into another slot."""
        self.touch(target, used)
        self.slabs[:, :, target, :, :used] = self.slabs[:, :, source, :, :used]

    def swap(self, a: int, b: int, used: int) -> None:
        """Exchanges two rows, of which the longer has ``used`` places."""
        self.touch(a, used)
        self.touch(b, used)
        kept = self.slabs[:, :, a, :, :used].clone()
        self.slabs[:, :, a, :, :used] = self.slabs[:, :, b, :, :used]
        self.slabs[:, :, b, :, :used] = kept

    def clear(self, slot: int) -> None:
        """Zeroes what a row with NaN left behind: masked weights are 0, and 0 * NaN would reach the next row."""
        self.slabs[:, :, slot, :, : self._touched[slot]] = 0

    def free(self, first: int) -> None:
        """Slots from ``first`` on hold no row; their pages go back if too many stay touched."""
        self._live[first:] = [0] * (len(self._live) - first)
        if first == 0 and self.window > 8 * _WINDOW and not self._stays:
            self._touched = list(self._live)
            self._lay_out(self._window_for(1))
        if (sum(self._touched) + self.kept_tokens) * self.token_bytes <= self.budget:
            return
        for slot in range(first, len(self._touched)):
            if self._touched[slot]:
                self._release(slot)
                self._touched[slot] = 0

    @property
    def touched_bytes(self) -> int:
        return sum(self._touched) * self.token_bytes

    def _release(self, slot: int) -> None:
        if self._pages is None:
            return
        itemsize = self.slabs.element_size()
        size = self.slabs[0, 0, slot].numel() * itemsize
        for keys_or_values in self.slabs[:, :, slot].flatten(0, 1):
            give_back(self._pages, keys_or_values.storage_offset() * itemsize, size)


def _least_keys(shape: BackboneShape) -> int:
    """Fewest places looked at, so that even a lone row's products go the way of many."""
    queries = max(shape.heads, 2 * shape.kv_heads)  # a lone query of a key head is doubled
    return round_up(_SMALL_PRODUCT // (queries * shape.head_dim) + 1)


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[mmap.mmap | None, Tensor]:
    """Zeros; on Linux CPUs as private pages that cost nothing until written and can be given back."""
    if not can_reserve(device):
        return None, torch.zeros(size, dtype=dtype, device=device)
    nbytes = dtype.itemsize
    for extent in size:
        nbytes *= extent
    pages = reserve(nbytes)
    return pages, torch.frombuffer(pages, dtype=dtype).view(size)
