"""umbel's side of `make bench-methods`: all methods and seeds of one dataset train in shared passes."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.methods_work import Budget, Cell, questions_for, task_for

from umbel.adapters.peft_io import export_files
from umbel.backbone.backbone import Backbone
from umbel.backbone.linears import can_pack
from umbel.backbone.loading import load_backbone, pack
from umbel.core.settings import Settings
from umbel.evaluation.answering import Asker
from umbel.evaluation.held import HeldAdapters, holding
from umbel.evaluation.scoring import score
from umbel.training import TrainedAdapter, fit
from umbel.training.observer import Observer
from umbel.training.plan import FitPlan
from umbel.training.trainee import Trainee
from umbel.training.window import Stepped

Wanted = Sequence[tuple[str, int]]
"""Methods and seeds."""


def cells(folder: Path, data: str, wanted: Wanted, budget: Budget, settings: Settings) -> Iterator[Cell]:
    """One cell per method and seed. Seconds are the shared passes' time, divided by the number of adapters in them."""
    backbone = load_backbone(folder)
    tasks = [task_for(data, method, seed, budget) for method, seed in wanted]
    clock = Clock()
    trained = fit(backbone, tasks, settings=settings, observer=clock)
    if can_pack(backbone.dtype, backbone.device):
        pack(backbone.decoder)
    with holding() as held:
        asker = Asker(backbone, held)
        for (method, seed), found in zip(wanted, trained, strict=True):
            value = _judge(asker, held, found, budget)
            yield Cell(
                data=data,
                system="umbel",
                method=method,
                seed=seed,
                metric=value[0],
                value=value[1],
                rows=value[2],
                parameters=_parameters(found),
                bytes=_bytes(found, backbone),
                cpu_seconds=clock.cpu / len(tasks),
                seconds=clock.wall / len(tasks),
                shared=len(tasks),
            )
        asker.close()


class Clock(Observer):
    """From the first step's rows to the last step: reading the data and hashing the backbone are not training."""

    wall = cpu = 0.0

    def planned(self, plan: FitPlan) -> None:
        self._began, self._began_cpu = time.perf_counter(), time.process_time()

    def stepped(self, trainee: Trainee, done: Stepped) -> None:
        self.wall, self.cpu = time.perf_counter() - self._began, time.process_time() - self._began_cpu


def _judge(asker: Asker, held: HeldAdapters, found: TrainedAdapter, budget: Budget) -> tuple[str, float, int]:
    assert found.adapter is not None, found.error
    assert found.prepared is not None
    questions = questions_for(found.prepared, budget)
    answers = asker.ask(held.hold(found.adapter), found.adapter.contract, questions)
    return questions.metric, score(questions, answers).main.value, len(questions.rows)


def _parameters(found: TrainedAdapter) -> int:
    assert found.plan is not None
    return found.plan.parameters


def _bytes(found: TrainedAdapter, backbone: Backbone) -> int:
    assert found.adapter is not None
    return sum(len(data) for data in export_files(found.adapter, backbone_name=backbone.name).values())
