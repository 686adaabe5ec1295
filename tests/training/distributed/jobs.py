"""What the processes of the tests do; ``launch`` runs this file in each of them with ORDER set."""

import os
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from umbel.backbone.backbone import Backbone
from umbel.backbone.checkpointing import Checkpointing
from umbel.backbone.loading import checkpoint_views
from umbel.backbone.shards import own_rows
from umbel.core.errors import Interrupted
from umbel.core.folders import folders_in
from umbel.core.settings import Settings
from umbel.training import Task, checkpoint, fit, tune
from umbel.training.distributed.group import Group, joined
from umbel.training.distributed.load import load_frozen
from umbel.training.distributed.strategy import Strategy
from umbel.training.estimate.peak import written_bytes
from umbel.training.passes import Packing
from umbel.training.prepared import prepare
from umbel.training.trainee import Trainee, trainee_of
from umbel.training.tuning.tune import resume_tuning, start
from umbel.training.window import Machine, look, take_window


def train(group: Group, folder: str, home: str, tasks: list[Task], strategy: str, **more: Any) -> list[dict[str, Any]]:
    """``fit`` on a backbone that is spread over the group: tensors, losses and validations of each task."""
    wrap, dtype, form = more.pop("wrap", "layer"), more.pop("dtype", "fp64"), more.pop("quantise", None)
    spread = Strategy.read(strategy, group.size, wrap=wrap)
    backbone = load_frozen(Path(folder), spread, group, dtype=dtype, quantise=form)
    found = fit(backbone, tasks, settings=Settings.load(Path(home)), group=group, **more)
    return [
        {
            "tensors": {} if each.adapter is None else each.adapter.tensors,
            "losses": each.losses,
            "history": [(seen.step, seen.loss, seen.accuracy) for seen in each.history],
            "error": each.error and each.error.code,
        }
        for each in found
    ]


def own(group: Group, folder: str, home: str, task: Task, strategy: str, **more: Any) -> dict[str, Any]:
    """``tune`` over the group: what came out."""
    wrap, dtype, reads = more.pop("wrap", "layer"), more.pop("dtype", "fp64"), more.pop("resumes", None)
    if "folder_of_checkpoints" in more:
        more["folder"] = Path(more.pop("folder_of_checkpoints"))
    stop = StopAfter(more.pop("windows")) if "windows" in more else None
    spread = Strategy.read(strategy, group.size, wrap=wrap)
    backbone = load_frozen(Path(folder), spread, group, dtype=dtype)
    given = {"settings": Settings.load(Path(home)), "group": group, "strategy": spread, "stop": stop, **more}
    try:
        found = tune(backbone, task, **given) if reads is None else resume_tuning(backbone, Path(reads), **given)
    except Interrupted:
        return {"losses": None}
    return {
        "backbone": checkpoint_views(found.backbone.decoder) if group.leads else {},
        "fingerprint": found.backbone.fingerprint,
        "head": {} if found.trained.adapter is None else found.trained.adapter.tensors,
        "losses": found.trained.losses,
    }


class StopAfter:
    """Asks to stop once so many windows were taken."""

    def __init__(self, windows: int) -> None:
        self.left = windows

    def __call__(self) -> str | None:
        self.left -= 1
        return "Ctrl-C" if self.left < 0 else None


def saves_while_it_trains(group: Group, folder: str, home: str, task: Task, into: str) -> dict[str, Any]:
    """A checkpoint is begun, a step taken, the checkpoint finished and read; and one is begun and left alone."""
    spread, settings = Strategy.read("fsdp", group.size), Settings.load(Path(home))
    backbone = load_frozen(Path(folder), spread, group)
    machine, trainee = start(backbone, task, settings, group=group, strategy=spread)
    take_window(machine, [trainee])
    then = {name: own_rows(tensor)[0].detach().clone() for name, tensor in trainee.tensors.items()}
    trainee.validated(look(machine, [trainee])[0][1])  # there is a best so far
    parts = [own_rows(each)[0] for _, each in checkpoint._tensors([trainee]) if isinstance(each, DTensor)]
    coming = checkpoint.begin(Path(into), [trainee], windows=1, group=group)
    group.wait()
    early = [each.name for each in folders_in(Path(into) / "checkpoints")]
    take_window(machine, [trainee])
    saved = coming.finish()
    _, fresh = start(backbone, task, settings, group=group, strategy=spread)
    checkpoint.load(saved, [fresh])
    left = checkpoint.begin(Path(into), [trainee], windows=2, group=group)
    while not left.done():
        time.sleep(0.01)
    group.wait()
    return {
        "early": early,
        "copied": sum(part.nbytes for part in parts),
        "told": written_bytes(trainee),
        "late": [each.name for each in folders_in(Path(into) / "checkpoints")],
        "as_then": all(own_rows(fresh.tensors[name])[0].equal(tensor) for name, tensor in then.items()),
        "moved_on": any(not own_rows(trainee.tensors[name])[0].equal(tensor) for name, tensor in then.items()),
    }


def many(group: Group, jobs: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Several jobs one after the other: starting processes takes longer than most of them."""
    return [globals()[name](group, **given) for name, given in jobs]


def held(group: Group, folder: str, home: str, task: Task, strategy: str) -> dict[str, Any]:
    """Bytes of this process's own parts while it steps, of trained and of frozen parameters."""
    spread = Strategy.read(strategy, group.size)
    backbone = load_frozen(Path(folder), spread, group)
    machine, trainee = start(backbone, task, Settings.load(Path(home)), group=group, strategy=spread)
    found: dict[str, Any] = {}

    def measure(*_: Any) -> None:
        tuned = [each for each in machine.backbone.decoder.parameters() if each.requires_grad]
        frozen = [each for each in machine.backbone.decoder.parameters() if not each.requires_grad]
        states = trainee.optimizer.state
        found["parameters"], found["frozen"] = _local(tuned), _local(frozen)
        found["gradients"] = _local([each.grad for each in tuned])
        found["frozen_gradients"] = len([each for each in frozen if each.grad is not None])
        found["optimizer"] = _local([states[each][key] for each in tuned for key in ("exp_avg", "exp_avg_sq")])
        found["states"] = len(states)
        found["tuned"] = len(tuned)

    take_window(machine, [trainee])  # the optimizer has its states afterwards
    trainee.optimizer.register_step_pre_hook(measure)
    take_window(machine, [trainee])
    return found


def peak(
    group: Group, folder: str, home: str, task: Task, strategy: str, checkpointing: str = "none", wrap: str = "layer"
) -> dict[str, Any]:
    """What the allocator gave at most in a step, and what was held before it; with what the estimate is to be told."""
    spread = Strategy.read(strategy, group.size, wrap=wrap)
    settings, backbone = Settings.load(Path(home)), load_frozen(Path(folder), spread, group)
    if task.selection.tunes:
        machine, trainee = start(backbone, task, settings, None, checkpointing, group=group, strategy=spread)
    else:
        trainee = trainee_of(prepare(task, backbone, settings), backbone)
        machine = Machine(backbone, Packing(), Checkpointing.parse(checkpointing), group)
    trainee.validated(look(machine, [trainee])[0][1])  # keeps the best so far; the next step is then like any other
    take_window(machine, [trainee])
    while len(trainee.next_rows()) < task.batch_size:  # the last batch of an epoch may be smaller
        take_window(machine, [trainee])
    rows = trainee.next_rows()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        take_window(machine, [trainee])
    return {
        "held": _held(machine.backbone, trainee),
        "step": _most(seen),
        "rows": len(rows),
        "length": len(rows[0].ids),
    }


def _held(backbone: Backbone, trainee: Trainee) -> int:
    states = [state[key] for state in trainee.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    own = [*trainee.adapter.tensors.values(), *trainee.best.values(), *states]
    return _local([*backbone.decoder.parameters(), *own])


def _most(seen: Any) -> int:
    """The largest sum of all that was allocated and not freed yet."""
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    ordered = sorted(events, key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in ordered))


def _local(tensors: Any) -> int:
    """Bytes; a unit's gradients lie in one storage, which counts once."""
    storages = [own_rows(tensor)[0].untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


if __name__ == "jobs":
    rank, size, port, job, given, out = ORDER  # type: ignore[name-defined] # noqa: F821 (launch sets it)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with joined() as group:
        torch.save(globals()[job](group, **given), Path(out) / f"{rank}.pt")
