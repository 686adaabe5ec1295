"""Where a training stands, on disk: safetensors and JSON in a folder that is there whole or not at all.

    <folder>/checkpoints/<windows>/tensors.safetensors    masters, best so far, both moments of AdamW
                                   state.json             tasks, steps, histories
                                   shards/                of tensors that several processes hold in parts, by
                                                          torch.distributed.checkpoint; any number of processes reads it

Order, dropout and schedule are functions of seed and step, so no generator's state is needed to go on bit for bit.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from umbel.core.errors import Conflict, NotFound, UmbelError
from umbel.core.folders import building, folders_in
from umbel.training.distributed import shards
from umbel.training.distributed.group import ALONE, Group
from umbel.training.task import Task
from umbel.training.taskfile import task_of
from umbel.training.trainee import Status, Trainee, Validation
from umbel.training.trunk.trunk import Cut

_KEPT = 2
"""Checkpoints kept: the newest, and the one before it."""
_SCHEMA = 1
SHARDS = "shards"


def save(folder: Path, trainees: Sequence[Trainee], *, windows: int, group: Group = ALONE) -> Path:
    """Writes a checkpoint, removes old ones and returns the new one's folder."""
    return begin(folder, trainees, windows=windows, group=group).finish()


def begin(folder: Path, trainees: Sequence[Trainee], *, windows: int, group: Group = ALONE) -> "Coming":
    """Starts a checkpoint of how things stand now; what is held in shards is written while training goes on.

    Every process of a group calls this alike: each writes its shards, the first all else.
    """
    target = folder / "checkpoints" / f"{windows:08d}"
    coming = Coming(target, group)
    if not group.from_first(target.exists()):
        coming.start(trainees, windows)
    return coming


class Coming:
    """A checkpoint that is being written; it counts once ``finish`` has given its folder the name."""

    def __init__(self, target: Path, group: Group) -> None:
        self.target, self.group = target, group
        self._building = ExitStack()
        self._writing: Future[Any] | None = None

    def start(self, trainees: Sequence[Trainee], windows: int) -> None:
        new = self.group.from_first(self._building.enter_context(building(self.target)) if self.group.leads else None)
        assert new is not None
        with self._undone_if_it_fails():
            tensors = dict(_tensors(trainees))
            parts = {key: each for key, each in tensors.items() if isinstance(each, DTensor)}
            self._writing = shards.begin_writing(new / SHARDS, parts)
            if self.group.leads:
                whole = {key: each.cpu().contiguous() for key, each in tensors.items() if key not in parts}
                save_file(whole, new / "tensors.safetensors")
                state = {"schema": _SCHEMA, "windows": windows, "trainees": [_state(trainee) for trainee in trainees]}
                (new / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")

    def done(self) -> bool:
        """Whether this process has written its part."""
        return self._writing is None or self._writing.done()

    def finish(self) -> Path:
        """Waits for all processes' parts; nobody leaves before the folder has its name."""
        with self._undone_if_it_fails():
            if self._writing is not None:
                self._writing.result()
        self.group.wait()
        self._building.close()
        if self.group.leads:
            unfinished = self.target.parent.glob(".*.building-*")  # of processes that died
            for old in (*folders_in(self.target.parent)[:-_KEPT], *unfinished):
                shutil.rmtree(old)
        self.group.wait()
        return self.target

    @contextmanager
    def _undone_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if not self._building.__exit__(*sys.exc_info()):
                raise


def newest(folder: Path) -> Path:
    """The newest checkpoint of a run; raises NotFound."""
    found = folders_in(folder / "checkpoints")
    if not found:
        raise NotFound(
            f"{folder} holds no checkpoint, so there is nothing to resume.",
            code="checkpoint_not_found",
            hint="start it again with umbel train; umbel runs list shows every run",
        )
    return found[-1]


def read_tasks(checkpoint: Path) -> list[Task]:
    return [task_of(state["task"], where=str(checkpoint)) for state in _read(checkpoint)["trainees"]]


def read_runs(checkpoint: Path) -> list[str]:
    """Ids in the run log, in the order of the tasks."""
    return [state["run"] for state in _read(checkpoint)["trainees"]]


def load(checkpoint: Path, trainees: Sequence[Trainee]) -> int:
    """Puts fresh trainees where the checkpoint stands; returns the number of windows done.

    Raises Conflict (``data_changed``, ``backbone_changed``) where going on would mix two trainings.
    """
    state = _read(checkpoint)
    tensors = load_file(checkpoint / "tensors.safetensors")
    shards.read(checkpoint / SHARDS, dict(_parts(trainees)), tensors)
    for place, (trainee, saved) in enumerate(zip(trainees, state["trainees"], strict=True)):
        _check(trainee, saved)
        _restore(trainee, saved, {k: t for k, t in tensors.items() if k.startswith(f"{place}/")}, place)
    return int(state["windows"])


def _read(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state


def _tensors(trainees: Sequence[Trainee]) -> Iterator[tuple[str, Tensor]]:
    for place, trainee in enumerate(trainees):
        for name, tensor in trainee.tensors.items():
            yield f"{place}/master/{name}", tensor.detach()
            for key, value in trainee.optimizer.state.get(tensor, {}).items():
                yield f"{place}/{key}/{name}", value
        for name, part in trainee.best.items():
            yield f"{place}/best/{name}", shards.like(trainee.tensors[name], part)


def _parts(trainees: Sequence[Trainee]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that may have been saved in shards, by its master: like it are its moments and its best."""
    for place, trainee in enumerate(trainees):
        for name, tensor in trainee.tensors.items():
            for kind in ("master", "exp_avg", "exp_avg_sq", "best"):
                yield f"{place}/{kind}/{name}", tensor.detach()


def _state(trainee: Trainee) -> dict[str, Any]:
    error = trainee.error
    return {
        "task": _rooted(trainee.task),
        "run": trainee.run,
        "data": trainee.prepared.splits.digest,
        "backbone": trainee.adapter.backbone,
        "step": trainee.step,
        "status": trainee.status.value,
        "error": None if error is None else {"message": error.message, "code": error.code, "hint": error.hint},
        "tokens": trainee.tokens,
        "cut": None if trainee.cut is None else asdict(trainee.cut),
        "scaler": None if trainee.scaler is None else trainee.scaler.state_dict(),
        "losses": trainee.losses,
        "history": [asdict(each) for each in trainee.history],
        "rungs": [asdict(each) for each in trainee.rungs],
    }


def _rooted(task: Task) -> dict[str, Any]:
    """Relative paths are of the folder that training was started in; resuming may happen in another."""
    found = {key: value for key, value in task.as_json().items() if value is not None}
    for key in ("data", "validation", "test"):
        if key in found and Path(found[key]).exists():
            found[key] = str(Path(found[key]).resolve())
    return found


def _check(trainee: Trainee, saved: dict[str, Any]) -> None:
    name = trainee.task.name
    if trainee.prepared.splits.digest != saved["data"]:
        raise Conflict(
            f"the data of {name} have changed since its training began.",
            code="data_changed",
            hint="put the old files back, or start a new training",
        )
    if trainee.adapter.backbone != saved["backbone"]:
        raise Conflict(
            f"{name} was being trained on another backbone ({saved['backbone']}).",
            code="backbone_changed",
            hint="resume with that backbone: --backbone NAME",
        )


def _restore(trainee: Trainee, saved: dict[str, Any], tensors: dict[str, Tensor], place: int) -> None:
    kinds: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        _, kind, name = key.split("/", 2)
        kinds.setdefault(kind, {})[name] = tensor
    with torch.no_grad():
        for name, tensor in trainee.tensors.items():
            shards.put(tensor, kinds["master"][name])
            moments = {kind: found[name] for kind, found in kinds.items() if name in found and kind not in _OWN}
            if moments:
                trainee.optimizer.state[tensor] = {
                    kind: value if kind == "step" else shards.put(torch.zeros_like(tensor), value)
                    for kind, value in moments.items()
                }
    for name, found in kinds.get("best", {}).items():
        trainee.best[name] = shards.part(trainee.tensors[name], found).cpu()
    trainee.step, trainee.status, trainee.run = saved["step"], Status(saved["status"]), saved["run"]
    trainee.tokens, trainee.losses = saved["tokens"], list(saved["losses"])
    trainee.cut = Cut(**saved["cut"]) if saved.get("cut") else None
    trainee.history = [Validation(**each) for each in saved["history"]]
    trainee.rungs = [Validation(**each) for each in saved.get("rungs", [])]
    if trainee.scaler is not None and saved.get("scaler"):
        trainee.scaler.load_state_dict(saved["scaler"])
    trainee.error = UmbelError(**saved["error"]) if saved["error"] else None


_OWN = ("master", "best")
