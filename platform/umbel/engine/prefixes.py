"""Keys and values of the beginnings of prompts, kept for later requests that begin alike.

One tree for each tenant and adapter's digest, of blocks of 16 tokens: the path to a block is a beginning of a prompt,
compared token by token, so a hit is never another text's, another version's or another customer's. A digest never
changes what it means, so nothing here is ever stale. A hit is copied into the row's own slab before its first chunk
(torch has no paged attention on CPUs); whoever leaves, nobody else's keys move.

Blocks live in what running rows leave of the budget for keys and values, least recently used leaves first.
"""

from collections import OrderedDict
from collections.abc import Iterator

from torch import Tensor

from umbel.engine.kv import KVCache
from umbel.engine.row import Row

BLOCK = 16


class _Block:
    """A node of a tree; a root has no tokens of its own."""

    __slots__ = ("children", "kv", "parent", "tokens")

    def __init__(self, parent: "_Block | None" = None, tokens: tuple[int, ...] = (), kv: Tensor | None = None) -> None:
        self.parent, self.tokens, self.kv = parent, tokens, kv
        self.children: dict[tuple[int, ...], _Block] = {}


Root = tuple[str, str | None]
"""Tenant and adapter's digest."""


class Prefixes:
    """At most ``most`` tokens; ``room`` says how many there may be now."""

    def __init__(self, cache: KVCache, *, most: int) -> None:
        self.cache, self.most = cache, most
        self.room = most
        """Tokens that may be kept beside the running rows; ``trim`` changes it."""
        self.hits = self.saved = 0
        """Rows that began with kept blocks, and their tokens that were not computed."""
        self._roots: dict[Root, _Block] = {}
        self._used: OrderedDict[_Block, Root] = OrderedDict()
        """Blocks, least recently used first. Parents are touched after their children, so the first is a leaf."""

    @property
    def tokens(self) -> int:
        """How many are kept."""
        return len(self._used) * BLOCK

    def fill(self, row: Row) -> None:
        """Gives a row that has computed nothing the longest beginning that is known; its last token is left to it."""
        path = [block for block in self._path(row, row.reusable) if block is not None]
        for at, block in enumerate(path):
            self.cache.load(row.slot, row.offset + at * BLOCK, block.kv)
        self._touch(path)
        row.done = row.cached = len(path) * BLOCK
        self.hits += bool(path)
        self.saved += row.cached

    def keep(self, row: Row) -> None:
        """Adds the whole blocks of the prompt as far as it has been read, where there is room."""
        root = (row.request.tenant, row.adapter)
        found = list(self._path(row, min(row.done, row.prompt_end)))
        path = [block for block in found if block is not None]
        self._touch(path)
        if len(path) == len(found):
            return
        for at in range(len(path), len(found)):
            if not self._make_room(self.room - BLOCK, spared=set(path)):
                break
            parent = path[-1] if path else self._roots.setdefault(root, _Block())
            path.append(self._add(parent, root, row, at * BLOCK))
        self._touch(path)
        self.cache.kept_tokens = self.tokens

    def trim(self, room: int) -> None:
        """Running rows leave room for so many tokens now."""
        self.room = max(0, min(self.most, room))
        self._make_room(self.room, spared=set())
        self.cache.kept_tokens = self.tokens

    def _path(self, row: Row, count: int) -> Iterator[_Block | None]:
        """The blocks of the row's first ``count`` tokens, whole ones only; None from the first unknown one on."""
        block = self._roots.get((row.request.tenant, row.adapter))
        for at in range(0, count - count % BLOCK, BLOCK):
            block = None if block is None else block.children.get(tuple(row.tokens[at : at + BLOCK]))
            yield block

    def _add(self, parent: _Block, root: Root, row: Row, at: int) -> _Block:
        tokens, start = tuple(row.tokens[at : at + BLOCK]), row.offset + at
        block = parent.children[tokens] = _Block(parent, tokens, self.cache.save(row.slot, start, start + BLOCK))
        self._used[block] = root
        return block

    def _touch(self, path: list[_Block]) -> None:
        for block in reversed(path):
            self._used.move_to_end(block)

    def _make_room(self, most: int, *, spared: set[_Block]) -> bool:
        """Drops blocks until at most ``most`` tokens are kept; False if only spared ones are left."""
        while self.tokens > most:
            oldest = next(iter(self._used), None)
            if oldest is None or oldest in spared:
                return False
            root = self._used.pop(oldest)
            assert oldest.parent is not None
            assert not oldest.children
            del oldest.parent.children[oldest.tokens]
            if not self._roots[root].children:
                del self._roots[root]
        return True
