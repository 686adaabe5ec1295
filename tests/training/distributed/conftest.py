"""Real processes that talk over gloo: forked from a server that has torch, so a group of four starts in a second."""

import multiprocessing
import runpy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

_PATIENCE = 250.0
"""Seconds: below pytest's own limit, so that a deadlock is told as one."""
_HEAVY = ("torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict", "umbel.training.distributed.load",
          "umbel.training.fitting")  # fmt: skip


@pytest.fixture(scope="session")
def server() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_HEAVY))
    return context


@pytest.fixture
def launch(server, tmp_path) -> Callable[..., list[Any]]:
    """launch(4, "train", ...): runs jobs.py's function of that name in four processes; what each returned."""

    def run(size: int, job: str, **given: Any) -> list[Any]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        out = tmp_path / f"{job}-{port}"
        out.mkdir()
        mates = [
            server.Process(
                target=runpy.run_path,
                args=(str(Path(__file__).with_name("jobs.py")),),
                kwargs={"init_globals": {"ORDER": (rank, size, port, job, given, str(out))}, "run_name": "jobs"},
            )
            for rank in range(size)
        ]
        for mate in mates:
            mate.start()
        for mate in mates:
            mate.join(_PATIENCE)
        stuck = [mate for mate in mates if mate.is_alive()]
        for mate in stuck:
            mate.kill()
        assert not stuck, f"{job}: {len(stuck)} of {size} processes wait for each other for ever"
        assert [mate.exitcode for mate in mates] == [0] * size
        return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(size)]

    return run
