"""Mixed precision as FSDP2 has it: in which dtype parameters are held, computed with, reduced and handed out.

On one device a ``Caster`` does what ``fully_shard(mp_policy=...)`` does around each unit (a layer, or what the root
holds itself): the unit's parameters are cast before its forward and the casts are forgotten after it, so gradients
come back in the compute dtype and are added up in the masters'. ``tests/training/tuning/test_precision.py`` proves the
two equal to the last bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from umbel.backbone.decoder import Decoder, Output
from umbel.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Dtypes of a training of the backbone's own tensors. RoPE's buffer stays in at least fp32 under every one."""

    name: str
    masters: torch.dtype
    """Of trained parameters, their gradients and the optimizer's state."""
    compute: torch.dtype
    """Of parameters and activations inside a unit: FSDP2's ``param_dtype``. Frozen tensors are held in it."""
    reduce: torch.dtype
    """Of gradients while ranks add theirs up: FSDP2's ``reduce_dtype``. One device has nothing to reduce."""
    output: torch.dtype | None = None
    """Of hidden states and logits that leave the decoder; None leaves the compute dtype (losses widen them anyway)."""

    @property
    def scaled(self) -> bool:
        """Whether losses are scaled up, so that small gradients do not vanish in fp16's narrow range."""
        return self.compute == torch.float16

    @property
    def mixed(self) -> bool:
        return self.masters != self.compute


_FP32, _BF16, _FP16, _FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
PRECISIONS = {
    "fp32": Precision(name="fp32", masters=_FP32, compute=_FP32, reduce=_FP32),
    "bf16-mixed": Precision(name="bf16-mixed", masters=_FP32, compute=_BF16, reduce=_FP32),
    "bf16": Precision(name="bf16", masters=_BF16, compute=_BF16, reduce=_BF16),
    "fp16-mixed": Precision(name="fp16-mixed", masters=_FP32, compute=_FP16, reduce=_FP32),
    "fp64": Precision(name="fp64", masters=_FP64, compute=_FP64, reduce=_FP64),
}
"""By name. ``fp64`` is for proofs: it is the truth that the others are measured against."""

_REDUCE = {"fp32": _FP32, "bf16": _BF16}


def precision_of(name: str | None, *, backbone: torch.dtype, device: torch.device) -> Precision:
    """``name``, or where None the backbone's own dtype over fp32 masters; ``bf16-mixed,reduce=bf16,output=fp32`` sets
    the reduction's and the output's dtype apart.

    Raises ConfigError for one that is not known, or cannot be had on this device.
    """
    if name is None:
        return PRECISIONS[{_BF16: "bf16-mixed", _FP16: "bf16-mixed", _FP64: "fp64"}.get(backbone, "fp32")]
    first, *more = name.split(",")
    if first not in PRECISIONS:
        raise ConfigError(
            f"there is no precision {first!r}.", param="precision", hint=f"choose from {', '.join(PRECISIONS)}"
        )
    found = replace(PRECISIONS[first], name=name, **dict(_setting(each) for each in more))
    if found.scaled and device.type != "cuda":
        raise ConfigError(
            "fp16-mixed needs CUDA: fp16's smallest step is 6e-8, so gradients vanish without a scaled loss, and "
            f"{device.type} has neither fast fp16 products nor a reason to bear that.",
            code="precision_refused",
            param="precision",
            hint="use bf16-mixed: as few bytes, and fp32's range",
        )
    return found


def _setting(text: str) -> tuple[str, torch.dtype]:
    key, _, value = text.strip().partition("=")
    if key not in ("reduce", "output") or value not in _REDUCE:
        raise ConfigError(
            f"precision setting {text!r} is not understood.",
            param="precision",
            hint="reduce=fp32|bf16, output=fp32|bf16",
        )
    return key, _REDUCE[value]


class Caster:
    """Casts each unit's parameters to ``compute`` around its forward; also in a recomputed one.

    Parameters stay where they are for optimizers, checkpoints and ``named_parameters`` between passes.
    """

    def __init__(self, decoder: Decoder, precision: Precision) -> None:
        self._hooks: list[Any] = []
        if precision.mixed:
            for unit, places in _units(decoder):
                self._wrap(unit, places, precision.compute)
        if precision.output is not None:
            self._hooks.append(decoder.register_forward_hook(_output_in(precision.output)))

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _wrap(self, unit: nn.Module, places: list[tuple[nn.Module, str]], dtype: torch.dtype) -> None:
        held: list[nn.Parameter] = []

        def before(module: nn.Module, args: Any) -> None:
            assert not held, "a unit was entered twice"
            for owner, name in places:
                parameter = owner._parameters[name]
                assert parameter is not None
                held.append(parameter)
                owner._parameters[name] = parameter.to(dtype)  # type: ignore[assignment]

        def after(module: nn.Module, args: Any, output: Any) -> None:
            for (owner, name), parameter in zip(places, held, strict=True):
                owner._parameters[name] = parameter
            held.clear()

        self._hooks.append(unit.register_forward_pre_hook(before))
        self._hooks.append(unit.register_forward_hook(after, always_call=True))


def _units(decoder: Decoder) -> Iterator[tuple[nn.Module, list[tuple[nn.Module, str]]]]:
    """The units of ``fully_shard(layer) for each layer; fully_shard(root)``, with the places of their parameters."""
    for layer in decoder.layers:
        yield layer, _places([layer])
    yield decoder, _places([module for name, module in decoder.named_children() if name != "layers"])


def _places(modules: list[nn.Module]) -> list[tuple[nn.Module, str]]:
    inner = [module for root in modules for module in root.modules()]
    return [(module, name) for module in inner for name, found in module._parameters.items() if found is not None]


def _output_in(dtype: torch.dtype) -> Any:
    def cast(module: nn.Module, args: Any, output: Output) -> Output:
        return Output(output.hidden.to(dtype), None if output.logits is None else output.logits.to(dtype))

    return cast
