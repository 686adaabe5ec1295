"""What the processes of the tests do; ``launch`` runs this file in each of them with ORDER set."""

import os
from pathlib import Path
from typing import Any

import torch

from umbel.core.settings import Settings
from umbel.training import Task, fit
from umbel.training.distributed.group import Group, joined
from umbel.training.distributed.load import load_frozen
from umbel.training.distributed.strategy import Strategy


def train(group: Group, folder: str, home: str, tasks: list[Task], strategy: str, **more: Any) -> list[dict[str, Any]]:
    """``fit`` on a backbone that is spread over the group: tensors, losses and validations of each task."""
    wrap, dtype = more.pop("wrap", "layer"), more.pop("dtype", "fp64")
    backbone = load_frozen(Path(folder), Strategy.read(strategy, group.size, wrap=wrap), group, dtype=dtype)
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


if __name__ == "jobs":
    rank, size, port, job, given, out = ORDER  # type: ignore[name-defined] # noqa: F821 (launch sets it)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with joined() as group:
        torch.save(globals()[job](group, **given), Path(out) / f"{rank}.pt")
