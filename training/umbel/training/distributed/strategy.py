"""How a model is spread over the processes: ``none``, ``ddp``, ``fsdp``, ``fsdp-grad-op``, ``hsdp=N``.

ddp            every process holds everything; gradients are summed           (FSDP's NO_SHARD)
fsdp           weights, gradients and optimizer in N parts; gathered by unit  (FULL_SHARD)
fsdp-grad-op   as fsdp, but weights stay gathered until the backward is over  (SHARD_GRAD_OP)
hsdp=N         fsdp inside groups of N processes, ddp between the groups      (HYBRID_SHARD)
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from umbel.backbone.decoder import Decoder
from umbel.backbone.units import Unit, plan_units
from umbel.core.errors import ConfigError
from umbel.core.forms import Form, told

NAMES = ("none", "ddp", "fsdp", "fsdp-grad-op")


@dataclass(frozen=True, slots=True)
class Strategy:
    """``shards`` is how many processes hold one whole set of weights between them."""

    name: str = "none"
    shards: int = 1
    regather: bool = True
    """Free a unit after its forward and gather it again in the backward."""
    wrap: str = "layer"
    offload: bool = False
    """Keep weights, gradients and optimizer in the CPU's memory (CUDA only)."""

    @property
    def sharded(self) -> bool:
        """Whether no process holds all weights."""
        return self.name.startswith(("fsdp", "hsdp"))

    @classmethod
    def read(cls, name: str | None, size: int, *, wrap: str = "layer", offload: bool = False) -> "Strategy":
        """For ``size`` processes; None is ddp, or none for one process. Raises ConfigError (``invalid_strategy``)."""
        name = name or ("ddp" if size > 1 else "none")
        kind, _, value = name.partition("=")
        if name == "none" and size > 1:
            raise _invalid(name, f"{size} processes need one of ddp, fsdp, fsdp-grad-op, hsdp=N")
        if size == 1 and name not in ("none", "ddp"):
            raise _invalid(name, "one process has nobody to share with: add --nproc 2")
        if name in NAMES:
            return cls(name, size if name.startswith("fsdp") else 1, name != "fsdp-grad-op", wrap, offload)
        if kind != "hsdp" or not value.isdigit():
            raise _invalid(name, f"use one of {', '.join(NAMES)}, hsdp=N")
        shards = int(value)
        if shards < 1 or size % shards:
            raise _invalid(name, f"{size} processes do not fall into groups of {shards}; N must divide {size}")
        return cls(name, shards, True, wrap, offload)


ONE = Strategy()
"""Of a single process."""


def quantised_shards(form: Form) -> ConfigError:
    """What to say of a quantised backbone under fsdp."""
    return ConfigError(
        f"fsdp cuts float weights into shards, and {told(form)} are codes with scales.",
        code="quantised_shards",
        param="strategy",
        hint="--strategy ddp: every process holds the quantised backbone whole",
    )


def mesh_of(strategy: Strategy, size: int, device: torch.device) -> DeviceMesh:
    """[shard], or [replicate, shard] where there are several groups."""
    if strategy.shards == size:
        return init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    shape = (size // strategy.shards, strategy.shards)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def shard(
    decoder: Decoder, strategy: Strategy, mesh: DeviceMesh, precision: MixedPrecisionPolicy | None = None
) -> list[Unit]:
    """Wraps the decoder's units, then the root, by FSDP2, and returns the units. Nothing is allocated on meta."""
    units = plan_units(decoder, strategy.wrap)
    settings: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": strategy.regather,
        "mp_policy": precision or MixedPrecisionPolicy(),
        "offload_policy": _offload(strategy, mesh),
    }
    for unit in units:
        modules = [decoder.get_submodule(name) for name in unit.modules]
        if modules:
            fully_shard(modules if len(modules) > 1 else modules[0], **settings)
    fully_shard(decoder, **settings)
    # the logits are a view, which nobody writes into; a copy would cost as many bytes again
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return units


def add_up(decoder: Decoder) -> None:
    """Gradients of sharded parameters are summed: each loss is divided by what the whole group's rows weigh."""
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def travel(decoder: nn.Module, *, last: bool) -> None:
    """Between groups (ddp, hsdp) gradients travel in a step's last pass only.

    Inside a group each pass cuts them into parts: later would mean that every process keeps the whole of them.
    """
    if isinstance(decoder, FSDPModule):
        decoder.set_requires_all_reduce(last)


def reach_every_layer(decoder: Decoder) -> None:
    """For a frozen decoder: the backward pass goes down to the embeddings on every process.

    Processes may wear adapters on different layers, and each layer's weights are gathered by all at once or by none.
    """

    def forward(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled() or output.requires_grad:
            return None
        return output.requires_grad_().clone()  # a method may write into it, which a leaf does not allow

    decoder.embedding.register_forward_hook(forward)


def _offload(strategy: Strategy, mesh: DeviceMesh) -> OffloadPolicy:
    if not strategy.offload:
        return OffloadPolicy()
    if mesh.device_type != "cuda":
        raise ConfigError(
            "--cpu-offload moves weights from a GPU to the CPU's memory, and this training is on the CPU.",
            code="offload_needs_cuda",
            param="cpu_offload",
            hint="leave it out",
        )
    return CPUOffloadPolicy()


def _invalid(name: str, hint: str) -> ConfigError:
    return ConfigError(f"--strategy {name} cannot be used here.", code="invalid_strategy", param="strategy", hint=hint)
