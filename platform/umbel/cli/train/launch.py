"""``umbel train --nproc N``: torchrun's own agent on this machine, with this very command line in each process."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from uuid import uuid4

import typer

from umbel.core.cores import cores
from umbel.core.errors import Interrupted, UmbelError, UsageError


def launch(args: Sequence[str], nproc: int, *, max_restarts: int) -> None:
    """Runs ``umbel ARGS`` in ``nproc`` processes that meet on the loopback device; returns when all are done.

    Ends with the code of the first process that failed, which has told its error itself. Raises Interrupted, and
    UmbelError (``process_killed``) where a signal ended it.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _check(nproc, max_restarts)
    _prepare(nproc)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=max_restarts,
        monitor_interval=0.5,
        local_addr="127.0.0.1",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "umbel.cli", *args)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        raise _ended(rank, failure.exitcode) from None
    except SignalException:
        raise Interrupted("interrupted; the processes have saved what there was.", hint="umbel runs list") from None


def _check(nproc: int, max_restarts: int) -> None:
    if nproc < 1:
        raise UsageError(f"--nproc must be at least 1, got {nproc}.", param="nproc")
    if max_restarts < 0:
        raise UsageError(f"--max-restarts must be at least 0, got {max_restarts}.", param="max_restarts")


def _prepare(nproc: int) -> None:
    """Each process its share of the cores; gloo on the loopback device, whatever the host's name resolves to."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // nproc)))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes tell their errors


def _ended(rank: int, code: int) -> Exception:
    if code > 0:
        return typer.Exit(code)
    name = signal.Signals(-code).name if code < 0 else "an unknown cause"
    return UmbelError(
        f"process {rank} was ended by {name}.",
        code="process_killed",
        hint="out of memory? umbel estimate tells what each process needs; umbel runs list names the run to --resume",
    )
