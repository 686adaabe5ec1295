"""How long a training is going to take, told before its first step: a few of its own passes are tried and timed.

A trial is the real code on the real rows, so every method, output head, layout and device is told as it is. It leaves
nothing behind but states of frozen layers that would be kept anyway: no step is taken and gradients go. All passes that
come are laid out as they will be; what one takes lies on a straight line through those tried.
"""

import math
import time
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from statistics import fmean, linear_regression

import torch

from umbel.backbone.shards import own_rows
from umbel.training.contrast import scattered
from umbel.training.data.encode import Example
from umbel.training.distributed.clip import clip
from umbel.training.passes import Packing, Seat, pack, places
from umbel.training.sweep.halving import Halving
from umbel.training.trainee import Trainee
from umbel.training.window import Machine, look, rehearse

_LAID_OUT = 200
"""Windows whose passes are looked at; of a longer training, that many of all its windows."""
_PASSES_OF_ONE = 30
"""Passes of a training for each that is tried, and for each time that they are; at most so many of both."""
_SAMPLES, _ROUNDS = 3, 3
_PATIENCE = 10.0
"""Seconds after which no further pass is tried."""
_FORWARD = 1 / 3
"""Of a pass with a gradient, what one without takes."""
_NO_FASTER = 0.8
_ODD = 2
"""What was tried once and took so many times another's seconds for each of its places is not believed."""
_MOVED = 4_000_000
"""Numbers that the optimizer's step is tried on."""
_NOTES = 0.002
"""Seconds in which one adapter's step is written into the run log; measured."""


def seconds_to_train(trainees: Sequence[Trainee], machine: Machine, halving: Halving | None = None) -> float:
    """From here to the end, validation and the run log included, judging not. At most: patience may end it before.

    In a group every process calls this alike.
    """
    if not any(map(_left, trainees)):
        return 0.0
    before = _computed(machine)
    looking = _looking(trainees, machine, halving)
    texts, filling = _filling(trainees, machine)
    passes = _passes(trainees, machine, halving)
    filling *= max(0.0, 1 - (_computed(machine) - before) / max(1.0, texts))  # the trials have done part of it
    share = 1.0 if halving is None else halving.runs / halving.field
    steps = sum(_left(each) * (_moving(each, machine) + _NOTES) for each in trainees)
    return filling + passes + share * (steps + looking)


def _left(trainee: Trainee) -> int:
    return trainee.schedule.steps - trainee.step


@dataclass(frozen=True, slots=True)
class _Window:
    present: Sequence[Trainee]
    """Those that take it, standing at their step of it."""
    rows: Sequence[Sequence[Example]]
    """Of each."""
    passes: Sequence[Sequence[Seat]]
    """Of all processes together."""

    def rows_of(self, part: Sequence[Seat]) -> list[list[Example]]:
        """Of each present, those that have a text in the pass."""
        texts = {id(seat.example) for seat in part}
        return [[row for row in rows if any(id(text) in texts for text in row.sequences)] for rows in self.rows]


def _windows(trainees: Sequence[Trainee], machine: Machine, halving: Halving | None) -> tuple[list[_Window], float]:
    """Some of all that come, evenly chosen, and how many each of them stands for."""
    longest = max(map(_left, trainees))
    count = min(longest, _LAID_OUT)
    chosen = (longest * (2 * i + 1) // (2 * count) for i in range(count))
    return [_laid_out(_present(trainees, window, halving), machine) for window in chosen], longest / count


def _present(trainees: Sequence[Trainee], window: int, halving: Halving | None) -> list[Trainee]:
    there = [replace(each, step=each.step + window) for each in trainees if window < _left(each)]
    return there if halving is None else there[: halving.field_at(there[0])]


def _laid_out(present: Sequence[Trainee], machine: Machine) -> _Window:
    rows = [each.next_rows() for each in present]
    seats = [seat for index, each in enumerate(present) for seat in each.seats(index, rows[index])]
    most = {index: each.task.micro_batch for index, each in enumerate(present)}
    return _Window(present, rows, pack(seats, _of_all(machine), most))


def _of_all(machine: Machine) -> Packing:
    """What goes through one pass of every process at a time, taken together."""
    return replace(machine.packing, tokens=machine.packing.tokens * machine.group.size)


def _passes(trainees: Sequence[Trainee], machine: Machine, halving: Halving | None) -> float:
    """Forward and backward passes of all windows: so much for each pass, and so much for each of its places."""
    windows, stands_for = _windows(trainees, machine, halving)
    parts = [(window, part) for window in windows for part in window.passes]
    tried = _samples(parts, len(parts) * stands_for)
    rounds = min(_ROUNDS, int(len(parts) * stands_for / (_PASSES_OF_ONE * len(tried))) + 1)
    trials = [partial(rehearse, machine, window.present, window.rows_of(part)) for window, part in tried]
    fills = any(trainee.cut is not None for trainee in trainees)
    sizes = [places(part) for _, part in tried]
    took = _trials(_Timer(machine), trials, sizes, rounds=rounds, warm=len(trials) if fills else 1)
    seen = [(size, least) for size, least in zip(sizes, took, strict=True) if least is not None]
    each, of_place = _line(*zip(*seen, strict=True))
    whole = sum(each * count + of_place * size for count, size in map(_work, windows))
    return whole * stands_for


def _trials(
    timed: "_Timer", trials: Sequence[Callable[[], None]], sizes: Sequence[float], *, rounds: int, warm: int
) -> list[float | None]:
    """The least seconds of each; None of those that patience did not reach.

    What else the machine did meanwhile (or a laptop that was shut) does not last as long as a training. The first of a
    size is slower, and so is one that computes states of frozen layers: ``warm`` of them are tried once more before.
    That is no less than they take, so beside another it counts too.
    """
    before = [[timed(trial)] for trial in trials[:warm]] + [[] for _ in trials[warm:]]
    took: list[list[float]] = [[] for _ in trials]
    for trial, times in [pair for _ in range(rounds) for pair in zip(trials, took, strict=True)]:
        if timed.tired and took[0]:
            break
        times.append(timed(trial))
    found = [[*times, *early] if times else [] for times, early in zip(took, before, strict=True)]
    usual = min(min(times) / size for times, size in zip(found, sizes, strict=True) if times)
    for trial, times, size in zip(trials, found, sizes, strict=True):
        if timed.agreed(len(times) == 1 and times[0] > _ODD * usual * size):
            times.append(timed(trial))
    return [min(times, default=None) for times in found]


Part = tuple[_Window, Sequence[Seat]]


def _samples(parts: Sequence[Part], number: float) -> list[Part]:
    """Those in the midst of each third of all places; the largest comes first."""
    count = min(_SAMPLES, int(number / _PASSES_OF_ONE) + 1)
    ordered = sorted(parts, key=lambda each: places(each[1]), reverse=True)
    sums = list(accumulate(places(part) for _, part in ordered))
    return [ordered[bisect(sums, sums[-1] * (2 * i + 1) / (2 * count))] for i in range(count)]


def _work(window: _Window) -> tuple[float, float]:
    """(passes, places). Embedders in several passes go forwards once more before, without a gradient."""
    apart = scattered(window.passes)
    before = [[seat for seat in part if id(seat.contrast) in apart] for part in window.passes]
    again = [part for part in before if part]
    return (
        len(window.passes) + _FORWARD * len(again),
        sum(map(places, window.passes)) + _FORWARD * sum(map(places, again)),
    )


def _line(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """(intercept, slope), neither below 0."""
    if len(set(sizes)) < 2:
        return 0.0, fmean(times) / sizes[0]
    slope, intercept = linear_regression(sizes, times)
    if slope < 0:
        return fmean(times), 0.0
    return (intercept, slope) if intercept >= 0 else (0.0, sum(times) / sum(sizes))


def _computed(machine: Machine) -> int:
    return 0 if machine.trunk is None else machine.trunk.computed


def _filling(trainees: Sequence[Trainee], machine: Machine) -> tuple[float, float]:
    """(texts, seconds) of all that was not kept of the layers below an adapter. Kernels are made for each new length,
    so the first rows are slow: tried until it gets no faster. Of a sweep, whose candidates have the same rows, the
    first one pays for all."""
    texts, seconds, timed = 0.0, 0.0, _Timer(machine)
    for trainee in trainees:
        if trainee.cut is None or machine.trunk is None:
            continue
        trunk, looked, made, of_one = machine.trunk, 0, 0, math.inf
        step, end = trainee.step, trainee.step + min(trainee.batches.per_epoch, _left(trainee))
        while step < end:
            rows, before = replace(trainee, step=step).coming_rows(), trunk.computed
            took = timed(partial(trunk.fill, trainee.cut, rows))
            fresh = trunk.computed - before
            looked, made, step = looked + len(rows), made + fresh, step + max(1, len(rows) // trainee.task.batch_size)
            slower, of_one = of_one, took / max(1, fresh)
            if of_one > _NO_FASTER * slower or (timed.tired and slower < math.inf):
                break
        visited = min(len(trainee.batches.lengths), _left(trainee) * trainee.task.batch_size)
        missing = made / looked * (visited + len(trainee.prepared.validation.examples))
        texts, seconds = texts + missing, seconds + (slower if of_one > _ODD * slower else of_one) * missing
    return texts, seconds


def _looking(trainees: Sequence[Trainee], machine: Machine, halving: Halving | None) -> float:
    """All looks at the validation rows, tried on some of these."""
    seconds, timed = 0.0, _Timer(machine)
    for trainee in trainees:
        rows = trainee.prepared.validation.examples
        some = list(_up_to(rows, _of_all(machine).tokens))
        if not some:
            continue
        validation = replace(trainee.prepared.validation, examples=some)
        sample = replace(trainee, prepared=replace(trainee.prepared, validation=validation))
        took = min(timed(partial(look, machine, [sample])) for _ in range(2))
        more = 0 if halving is None else len(halving.rungs)
        seconds += (trainee.looks_left + more) * took * len(rows) / len(some)
    return seconds


def _up_to(rows: Sequence[Example], tokens: int) -> Iterator[Example]:
    for row in rows:
        yield row
        tokens -= row.tokens
        if tokens <= 0:
            return


def _moving(trainee: Trainee, machine: Machine) -> float:
    """The optimizer's step, with clipping, on copies of some of what is trained."""
    own = [own_rows(tensor)[0] for tensor in trainee.trained.values()]
    some, numbers = [], 0
    for tensor in own:
        if numbers < _MOVED:
            some.append(tensor.detach().clone().requires_grad_())
            numbers += tensor.numel()
    for tensor in some:
        tensor.grad = torch.zeros_like(tensor)
    optimizer = torch.optim.AdamW(some, fused=True)
    timed = _Timer(machine)

    def step() -> None:
        clip(some, 1.0)
        optimizer.step()

    took = min(timed(step) for _ in range(3))
    return took * sum(tensor.numel() for tensor in own) / max(1, numbers)


class _Timer:
    """Seconds of a call, until the device is done with it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._began = time.perf_counter()

    def __call__(self, call: Callable[[], object]) -> float:
        self._wait()
        began = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - began

    @property
    def tired(self) -> bool:
        """Whether all of this has taken long enough, for one process of several."""
        return self.agreed(time.perf_counter() - self._began > _PATIENCE)

    def agreed(self, mine: bool) -> bool:
        """Whether it is so for one process of several: they go on or stop together."""
        return self.machine.group.any(mine, self.machine.backbone.device)

    def _wait(self) -> None:
        if self.machine.backbone.device.type == "cuda":
            torch.cuda.synchronize(self.machine.backbone.device)
