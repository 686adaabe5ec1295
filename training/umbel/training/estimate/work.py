"""What is to be estimated: a backbone by its numbers, what is trained on it, and the rows of one pass."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from umbel.adapters.head import HeadConfig
from umbel.adapters.sites import SITES
from umbel.backbone.checkpointing import Checkpointing
from umbel.backbone.config import BackboneConfig
from umbel.backbone.loading import torch_dtype
from umbel.backbone.quantised import QUANTISED_SITES, bytes_per_weight, check_widths
from umbel.backbone.units import meta_decoder
from umbel.core.contract import OutputHead
from umbel.core.errors import ConfigError
from umbel.core.forms import Form, read_form
from umbel.core.shape import LINEARS, BackboneShape
from umbel.training.precision import precision_of
from umbel.training.taskfile import task_of
from umbel.training.tuning.own import chosen_parameters

_HEAD = 128
"""Width of an attention head, and hidden features per layer: Llama 2 and 3 are about that deep for their width."""
_VOCAB = 32_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One process's part of one step."""

    config: BackboneConfig
    trained: frozenset[str] = frozenset()
    """The decoder's own parameters that are trained, by their names there."""
    masters: torch.dtype = torch.float32
    """Of those, their gradients and the optimizer's state."""
    compute: torch.dtype = torch.float32
    """Of frozen weights and of activations."""
    method: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)
    output_head: OutputHead = OutputHead.GENERATE
    adapters: int = 1
    """All alike; each has its part of the rows."""
    rows: int = 1
    """Of one forward pass of one process."""
    length: int = 512
    """Tokens of each row."""
    head: HeadConfig = field(default_factory=HeadConfig)
    answer: int = 128
    """Of these, tokens with a loss, where the output head generates."""
    checkpointing: str = "none"
    quantised: Form | None = None
    """Form of the frozen linears."""

    @property
    def saved_by_form(self) -> int:
        """Bytes that the layers' linears take less than they would in the compute dtype."""
        if self.quantised is None:
            return 0
        per_weight = self.compute.itemsize - bytes_per_weight(self.quantised)
        scales = 2 * sum(d_out for _, d_out in self._linears) if self.quantised == "int8" else 0
        one = sum(d_in * d_out for d_in, d_out in self._linears)
        return int(self.config.shape.layers * (one * per_weight - scales))

    @property
    def _linears(self) -> list[tuple[int, int]]:
        return [self.config.shape.linear(name) for name in LINEARS]


def unpacked(config: BackboneConfig, dtype: torch.dtype, form: Form | None) -> int:
    """Bytes of the largest fused linear while its weight is made for a product: wide, and in the compute dtype."""
    if form is None:
        return 0
    fused = [sum(math.prod(config.shape.linear(name)) for name in SITES[site]) for site in QUANTISED_SITES]
    return max(fused) * (4 + dtype.itemsize)


def work_of(
    config: BackboneConfig, options: Mapping[str, Any], *, dtype: str, rows: int, length: int, checkpointing: str
) -> Work:
    """From options as ``umbel train`` has them; raises ConfigError for one that is not known."""
    task = task_of({"name": "estimate", "data": "none"}, flags=options)
    Checkpointing.parse(checkpointing)
    held = torch_dtype(dtype, config.dtype)
    tunes = task.selection.tunes
    form = read_form(task.quantise)
    if form is not None:
        check_widths(form, {config.shape.linear(name)[0] for name in LINEARS})
    chosen = precision_of(task.precision, backbone=held, device=torch.device("cpu"))
    return Work(
        config=config,
        trained=chosen_parameters(meta_decoder(config), task.selection) if tunes else frozenset(),
        masters=chosen.masters if tunes else torch.promote_types(held, torch.float32),
        compute=chosen.compute if tunes else held,
        method=task.method,
        options=task.options,
        output_head=task.output_head,
        head=HeadConfig(depth=task.head_depth, width=task.head_width, pooling=task.pooling),
        rows=rows,
        length=length,
        answer=max(1, length // 4),
        checkpointing=checkpointing,
        quantised=form,
    )


def llama_of(parameters: float, *, multiple: int = 1) -> BackboneConfig:
    """A Llama of about so many parameters, as deep for its width as Llama 2 and 3 are; widths are such multiples.

    Raises ConfigError.
    """
    layers = max(1, round((parameters / (12 * _HEAD**2)) ** (1 / 3)))
    hidden = _HEAD * layers
    rest = parameters - _VOCAB * hidden - layers * (4 * hidden**2 + 2 * hidden) - hidden
    intermediate = int(rest / (3 * hidden * layers))
    intermediate -= intermediate % multiple
    if intermediate < 1:
        raise ConfigError(
            f"there is no Llama with {parameters:.3g} parameters: its embeddings alone would have more.",
            param="parameters",
            hint="give at least 20e6, or a folder with a config.json",
        )
    shape = BackboneShape(
        hidden=hidden,
        layers=layers,
        heads=layers,
        kv_heads=layers,
        head_dim=_HEAD,
        intermediate=intermediate,
        vocab=_VOCAB,
    )
    return BackboneConfig(family="llama", shape=shape, norm_eps=1e-5, rope_theta=10_000.0, max_positions=1 << 20)
