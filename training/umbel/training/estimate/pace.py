"""How long a training is going to take, told before its first step: a few of its own windows are tried and timed.

A trial is the real code on the real rows, so every method, output head, layout and device is told as it is. It leaves
nothing behind but states of frozen layers that would be kept anyway: no step is taken and gradients go. What of a
training hangs on its text (a window's tokens) is then a straight line through the windows tried.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, linear_regression, median

import torch

from umbel.backbone.shards import own_rows
from umbel.training.data.encode import Example
from umbel.training.distributed.clip import clip
from umbel.training.sweep.halving import Halving
from umbel.training.trainee import Trainee
from umbel.training.window import Machine, look, rehearse

_WINDOWS_OF_ONE = 40
"""Windows of a training for each that is tried; and most that are, for each time that they are."""
_SAMPLES, _ROUNDS = 3, 3
_PATIENCE = 10.0
"""Seconds after which no further window is tried."""
_PASSES = 2
"""Full passes of a window that are tried; a window of more is told by its first ones."""
_MOVED = 4_000_000
"""Numbers that the optimizer's step is tried on."""
_NOTES = 0.002
"""Seconds in which one adapter's step is written into the run log; measured."""


@dataclass(frozen=True, slots=True)
class _Window:
    present: Sequence[Trainee]
    """Those that take it, standing at their step of it."""
    tokens: int

    def rows(self, most: int) -> list[list[Example]]:
        """Of each present, no more of them than make about ``most`` tokens in all."""
        share = min(1.0, most / self.tokens)
        return [rows[: max(1, round(len(rows) * share))] for rows in (each.next_rows() for each in self.present)]


def seconds_to_train(trainees: Sequence[Trainee], machine: Machine, halving: Halving | None = None) -> float:
    """From here to the end, validation and the run log included, judging not. At most: patience may end it before.

    In a group every process calls this alike.
    """
    windows = _Course(trainees, halving)
    if not windows.sizes:
        return 0.0
    filling = _filling(trainees, machine)
    passes = _passes(windows, machine)
    share = 1.0 if halving is None else halving.runs / halving.field
    steps = sum(_left(each) * (_moving(each, machine) + _NOTES) for each in trainees)
    return filling + passes + share * (steps + _looking(trainees, machine, halving))


def _left(trainee: Trainee) -> int:
    return trainee.schedule.steps - trainee.step


class _Course:
    """All windows that come, by their tokens."""

    def __init__(self, trainees: Sequence[Trainee], halving: Halving | None) -> None:
        self.trainees, self.halving = trainees, halving
        longest = max(map(_left, trainees))
        self.sizes = [sum(map(_tokens, self.present(window))) for window in range(longest)]

    def present(self, window: int) -> list[Trainee]:
        there = [replace(each, step=each.step + window) for each in self.trainees if window < _left(each)]
        return there if self.halving is None else there[: self.halving.field_at(there[0])]

    def samples(self) -> list[_Window]:
        """The largest comes first."""
        count = min(_SAMPLES, len(self.sizes) // _WINDOWS_OF_ONE + 1)
        ordered = sorted(range(len(self.sizes)), key=self.sizes.__getitem__, reverse=True)
        chosen = [ordered[len(ordered) * (2 * i + 1) // (2 * count)] for i in range(count)]
        return [_Window(self.present(window), self.sizes[window]) for window in chosen]


def _tokens(trainee: Trainee) -> int:
    return int(trainee.batches.lengths[trainee.batches.at(trainee.step)].sum())


def _passes(course: _Course, machine: Machine) -> float:
    """Forward and backward passes of all windows."""
    samples, most = course.samples(), _PASSES * machine.packing.tokens
    rounds = min(_ROUNDS, len(course.sizes) // (_WINDOWS_OF_ONE * len(samples)) + 1)
    tried = [(window, window.rows(most)) for window in samples]
    timed = _Timer(machine)
    timed(partial(rehearse, machine, samples[0].present, tried[0][1]))  # the first of a size is slower
    took: list[list[float]] = [[] for _ in tried]
    for (window, rows), times in [pair for _ in range(rounds) for pair in zip(tried, took, strict=True)]:
        if timed.tired and took[0]:
            break
        times.append(timed(partial(rehearse, machine, window.present, rows)))
    points = [(min(window.tokens, most), median(times)) for window, times in zip(samples, took, strict=True) if times]
    fixed, each = _line(points)
    whole = [size / most if size > most else 1.0 for size in course.sizes]
    return sum(part * (fixed + each * min(size, most)) for part, size in zip(whole, course.sizes, strict=True))


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(intercept, slope), neither below 0."""
    sizes, times = zip(*points, strict=True)
    through_zero = (0.0, sum(times) / sum(sizes))
    if len(set(sizes)) < 2:
        return through_zero
    slope, intercept = linear_regression(sizes, times)
    if slope < 0:
        return fmean(times), 0.0
    return (intercept, slope) if intercept >= 0 else through_zero


def _filling(trainees: Sequence[Trainee], machine: Machine) -> float:
    """What is not kept yet of the layers below an adapter. Tried in the middle of the first epoch; of a sweep, whose
    candidates have the same rows, the first one pays for all."""
    seconds, timed = 0.0, _Timer(machine)
    for trainee in trainees:
        if trainee.cut is None or machine.trunk is None:
            continue
        trunk, cut = machine.trunk, trainee.cut
        ahead = min(trainee.batches.per_epoch, _left(trainee)) // 2
        trunk.fill(cut, trainee.next_rows())
        rows, before = replace(trainee, step=trainee.step + ahead).coming_rows(), trunk.computed
        took = timed(partial(trunk.fill, cut, rows))
        if trunk.computed > before:
            visited = min(len(trainee.batches.lengths), _left(trainee) * trainee.batches.batch_size)
            seconds += took * max(0, visited / len(rows) - 1)
            seconds += took * len(trainee.prepared.validation.examples) / len(rows)
    return seconds


def _looking(trainees: Sequence[Trainee], machine: Machine, halving: Halving | None) -> float:
    """All looks at the validation rows, tried on some of these."""
    seconds, timed = 0.0, _Timer(machine)
    for trainee in trainees:
        rows = trainee.prepared.validation.examples
        some = list(_up_to(rows, machine.packing.tokens))
        if not some:
            continue
        validation = replace(trainee.prepared.validation, examples=some)
        sample = replace(trainee, prepared=replace(trainee.prepared, validation=validation))
        took = [timed(partial(look, machine, [sample])) for _ in range(2)][-1]
        times = sum(step % trainee.eval_every == 0 for step in range(trainee.step + 1, trainee.schedule.steps))
        more = 0 if halving is None else len(halving.rungs)
        seconds += (times + 1 + more) * took * len(rows) / len(some)
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

    took = [timed(step) for _ in range(3)][-1]
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
        """Whether all of this has taken long enough, for one process of several: they go on or stop together."""
        late = time.perf_counter() - self._began > _PATIENCE
        return self.machine.group.any(late, self.machine.backbone.device)

    def _wait(self) -> None:
        if self.machine.backbone.device.type == "cuda":
            torch.cuda.synchronize(self.machine.backbone.device)
