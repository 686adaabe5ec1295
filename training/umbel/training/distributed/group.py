"""The processes of one training. ``ALONE`` is the usual one: every call is then free and changes nothing."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from umbel.core.errors import Unavailable

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=30)
"""Longest wait for a mate: rank 0 reads and hashes a backbone in the meantime."""


@dataclass(frozen=True, slots=True)
class Group:
    """This process's place among those that torchrun started."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Rank 0 alone logs, publishes and writes what all have alike."""
        return self.rank == 0

    def add(self, tensor: Tensor) -> Tensor:
        """Becomes the sum over all processes, the same bits on each."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, mine: bool, device: torch.device) -> bool:
        """Whether it holds on some process."""
        if self.size == 1:
            return mine
        return bool(self.add(torch.tensor([float(mine)], device=device)) > 0)

    def from_first(self, value: T) -> T:
        """What rank 0 holds, on every process. Plain values only."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


ALONE = Group()


def under_torchrun(environ: Mapping[str, str] = os.environ) -> bool:
    return "RANK" in environ and "WORLD_SIZE" in environ


def restarts(environ: Mapping[str, str] = os.environ) -> int:
    """How often torchrun has started the processes again after one of them died."""
    return int(environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def own_device(device: str, environ: Mapping[str, str] = os.environ) -> str:
    """``cuda`` means each process's own card: ``cuda:1`` for the second one on a machine."""
    if device == "cuda" and under_torchrun(environ):
        return f"cuda:{environ.get('LOCAL_RANK', '0')}"
    return device


def mate_gone(error: BaseException) -> bool:
    """Whether an error says that another process can no longer be reached; gloo has no class of its own for it."""
    several = dist.is_initialized() and dist.get_world_size() > 1
    words = ("gloo", "NCCL", "Connection closed", "Connection reset")
    return several and isinstance(error, RuntimeError) and any(word in str(error) for word in words)


@contextmanager
def joined(device: str = "cpu") -> Iterator[Group]:
    """The group that torchrun's variables name, left at the end; ALONE where there are none.

    gloo on CPU, nccl on CUDA. Raises Unavailable (``no_mates``) where the others cannot be reached.
    """
    if not under_torchrun() or dist.is_initialized():
        yield Group(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE
        return
    _join(own_device(device))
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _join(device: str) -> None:
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    try:
        store, rank, size = next(rendezvous("env://", timeout=_TIMEOUT))
        # a restarted group meets in the store of the one that died, where the addresses of the dead still stand
        fresh = dist.PrefixStore(f"attempt-{restarts()}", store)  # type: ignore[attr-defined]
        backend = "nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=size, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise Unavailable(
            f"this process cannot join its mates: {str(error).splitlines()[0]}",
            code="no_mates",
            hint="start all of them with torchrun; where there are several networks, name one: GLOO_SOCKET_IFNAME=eth0",
        ) from None
