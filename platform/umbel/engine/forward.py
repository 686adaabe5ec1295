"""One pass of the decoder over a planned step: a flat batch of tokens, one per batch row.

Shape letters here:  B tokens of the step   H hidden   M places whose next token is wanted   V vocabulary
"""

import threading
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from umbel.adapters.rows import Rows
from umbel.adapters.sites import BARE, Sites
from umbel.adapters.wear import batch_of
from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import Step
from umbel.engine.attention import CachedAttention
from umbel.engine.dressing import Chunk, Dresser
from umbel.engine.kv import KVCache
from umbel.engine.resident import Resident
from umbel.engine.row import Row
from umbel.engine.running import Plan
from umbel.engine.sampler import Known
from umbel.engine.span import Span
from umbel.engine.tape import Read, Tape

_LEFT_OUT = 16
"""Tokens whose states nobody reads that are worth a second list of calls."""


class Wanted(NamedTuple):
    """Places ``first .. first + size - 1`` of the logits, all of one row."""

    row: Row
    first: int
    size: int
    sampled: bool
    """Whether the next token is drawn from it (size is 1); otherwise the prompt's tokens are scored."""
    token: int = 0
    """Index in ``row.tokens`` of the first token that is scored."""
    ahead: int = 0
    """Guesses of the row before this place: what is drawn here counts if all of them were drawn."""


@dataclass(frozen=True, slots=True)
class Result:
    hidden: Tensor
    """[B,H] after the last norm. Those of tokens whose states nobody reads (``Row.unread``) may be what the last layer
    was given. The next step may write to the same memory."""
    logits: Tensor | None
    """[M,V]; None where nothing is wanted."""
    wanted: list[Wanted]
    likeliest: Known | None = None
    """Of the logits, where the kernels looked already."""


class Forward:
    """Turns plans into tensors. Holds what stays between steps: the cache and the dresser."""

    def __init__(self, backbone: Backbone, cache: KVCache) -> None:
        self.backbone, self.cache = backbone, cache
        self.dresser = Dresser(backbone.device, backbone.kernels)
        self._tape = Tape.of(backbone)
        self._settled = 0
        """The thread whose helpers know where they belong."""

    @property
    def alone(self) -> bool:
        """Whether a row's bits depend on no company at all, on any processor that has the kernels' linears."""
        return self._tape is not None

    def __call__(self, plan: Plan) -> Result:
        self._settle()
        tokens, positions = _inputs(plan)
        sites = self._dress(plan, len(tokens))
        tape = self._tape if Tape.takes(sites) else None
        if tape is None and len(tokens) == 1:
            tokens, positions = tokens * 2, positions * 2  # never a product of a lone row (correctness rule 2)
            sites = self._dress(plan, 2)
        places, wanted = _wanted(plan)
        attention = CachedAttention(
            self.cache,
            self.backbone.shape,
            positions[: len(plan.decode)],
            [span for _, span in plan.chunks],
            [row.slot for row in plan.decode],
            self.backbone.kernels,
        )
        lm_head = self.dresser.lm_head([w.row.resident for w in wanted for _ in range(w.size)])
        if tape is not None:
            asked = places if lm_head is BARE else ()
            played = tape.through(tokens, positions, attention, sites, places=asked, read=self._read(plan))
            if played.logits is None and places:
                logits = self.backbone.decoder.logits(played.hidden, self._want(places), lm_head)
                return Result(played.hidden, logits, wanted)
            return Result(played.hidden, played.logits, wanted, (played.best, played.tokens))
        step = Step(
            self._column(positions),
            attention,
            sites,
            want=self._want(places) if places else None,
            want_sites=lm_head,
            decoding=len(plan.decode) if plan.chunks else len(tokens),  # a lone answer's double is no prompt
        )
        output = self.backbone.decoder(self._column(tokens), step)
        return Result(output.hidden[:, 0], output.logits, wanted)

    def _settle(self) -> None:
        kernels, me = self.backbone.kernels, threading.get_ident()
        if kernels is not None and self._settled != me:
            kernels.settle()
            self._settled = me

    def begin(self, row: Row) -> None:
        """Copies the keys and values that a prefix-tuned row starts with into its slot."""
        resident = row.resident
        if resident is None or not resident.past_length:
            return
        for layer, (keys, values) in enumerate(_past(resident, self.backbone.shape.layers)):
            self.cache.write_prefix(layer, row.slot, keys, values)
        self.cache.touch(row.slot, resident.past_length)

    def _dress(self, plan: Plan, batch: int) -> Sites:
        return self.dresser.dress([row.resident for row in plan.decode], _chunks(plan), batch)

    def _read(self, plan: Plan) -> Read | None:
        """None where it is not worth leaving the others out."""
        places, chunks, left_out = list(range(len(plan.decode))), [], 0
        for row, span in plan.chunks:
            begin, first = len(places), row.unread(row.done, span.count)
            places += range(span.at + first, span.at + span.count)
            chunks.append((range(begin, len(places)), row.resident))
            left_out += first
        if left_out < _LEFT_OUT:
            return None
        return Read(places, self.dresser.by_kernels([row.resident for row in plan.decode], chunks))

    def _want(self, places: list[int]) -> Tensor:
        """At least two: never a product of a lone row (correctness rule 2)."""
        return self._ids(places * 2 if len(places) == 1 else places)

    def _ids(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.backbone.device)

    def _column(self, values: list[int]) -> Tensor:
        return self._ids(values)[:, None]


def _inputs(plan: Plan) -> tuple[list[int], list[int]]:
    places = list(zip(plan.decode, plan.ahead, strict=True))
    tokens = [row.guesses[ahead - 1] if ahead else row.tokens[row.done] for row, ahead in places]
    positions = [row.used + ahead for row, ahead in places]
    for row, span in plan.chunks:
        tokens += row.tokens[row.done : row.done + span.count]
        positions += range(span.start, span.start + span.count)
    return tokens, positions


def _chunks(plan: Plan) -> list[Chunk]:
    return [(range(span.at, span.at + span.count), row.resident) for row, span in plan.chunks if row.resident]


def _wanted(plan: Plan) -> tuple[list[int], list[Wanted]]:
    """Places of the batch, and what they are wanted for."""
    places = list(range(len(plan.decode)))
    wanted = [
        Wanted(row, i, 1, True, ahead=ahead) for i, (row, ahead) in enumerate(zip(plan.decode, plan.ahead, strict=True))
    ]
    for row, span in plan.chunks:
        if row.generating is None:
            continue
        if row.scoring and (count := _scored(row, span)):
            first = max(row.done, row.virtual)
            wanted.append(Wanted(row, len(places), count, False, first + 1))
            start = span.at + first - row.done
            places += range(start, start + count)
        if row.done + span.count == row.prompt_end and row.max_tokens:
            wanted.append(Wanted(row, len(places), 1, True))
            places.append(span.at + span.count - 1)
    return places, wanted


def _scored(row: Row, span: Span) -> int:
    """How many of the chunk's places predict a token of the prompt's own text."""
    return max(0, min(row.done + span.count, row.prompt_end - 1) - max(row.done, row.virtual))


def _past(resident: Resident, layers: int) -> list[tuple[Tensor, Tensor]]:
    stack = resident.stack
    assert stack is not None
    alone = stack.alone(resident)
    device = next(iter(alone.values())).device
    sites = batch_of(stack.method, alone, Rows([0], [0], batch=1, device=device, least=1), stack.shape)
    found = [sites.past(layer) for layer in range(layers)]
    return [(past[0][0], past[1][0]) for past in found if past is not None]
