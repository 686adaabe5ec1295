"""Where a training stands, on disk: safetensors and JSON in a folder that is there whole or not at all.

    <folder>/checkpoints/<windows>/tensors.safetensors    masters, best so far, both moments of AdamW
                                   state.json             tasks, steps, histories

Order, dropout and schedule are functions of seed and step, so no generator's state is needed to go on bit for bit.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from umbel.core.errors import Conflict, NotFound, UmbelError
from umbel.core.folders import building, folders_in
from umbel.training.task import Task
from umbel.training.taskfile import task_of
from umbel.training.trainee import Status, Trainee, Validation
from umbel.training.trunk.trunk import Cut

_KEPT = 2
"""Checkpoints kept: the newest, and the one before it."""
_SCHEMA = 1


def save(folder: Path, trainees: Sequence[Trainee], *, windows: int) -> Path:
    """Writes a checkpoint, removes old ones and returns the new one's folder."""
    target = folder / "checkpoints" / f"{windows:08d}"
    if not target.exists():
        with building(target) as new:
            save_file(dict(_tensors(trainees)), new / "tensors.safetensors")
            state = {"schema": _SCHEMA, "windows": windows, "trainees": [_state(trainee) for trainee in trainees]}
            (new / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    for old in folders_in(target.parent)[:-_KEPT]:
        shutil.rmtree(old)
    return target


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
            yield f"{place}/master/{name}", tensor.detach().cpu().contiguous()
            for key, value in trainee.optimizer.state.get(tensor, {}).items():
                yield f"{place}/{key}/{name}", value.cpu().contiguous()
        for name, tensor in trainee.best.items():
            yield f"{place}/best/{name}", tensor.cpu().contiguous()


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
            tensor.copy_(kinds["master"][name])
            moments = {kind: found[name] for kind, found in kinds.items() if name in found and kind not in _OWN}
            if moments:
                trainee.optimizer.state[tensor] = {
                    kind: value if kind == "step" else value.to(tensor.device) for kind, value in moments.items()
                }
    trainee.best = {name: tensor.to(_device(trainee)) for name, tensor in kinds.get("best", {}).items()}
    trainee.step, trainee.status, trainee.run = saved["step"], Status(saved["status"]), saved["run"]
    trainee.tokens, trainee.losses = saved["tokens"], list(saved["losses"])
    trainee.cut = Cut(**saved["cut"]) if saved.get("cut") else None
    trainee.history = [Validation(**each) for each in saved["history"]]
    trainee.rungs = [Validation(**each) for each in saved.get("rungs", [])]
    if trainee.scaler is not None and saved.get("scaler"):
        trainee.scaler.load_state_dict(saved["scaler"])
    trainee.error = UmbelError(**saved["error"]) if saved["error"] else None


_OWN = ("master", "best")


def _device(trainee: Trainee) -> torch.device:
    return next(iter(trainee.tensors.values())).device
