"""What a method is: three types in one file, and how it is found.

    XConfig    how one adapter is shaped; frozen, plain fields, stored as JSON
    XWeights   one adapter in memory; its tensors carry PEFT's names, which are the file format
    XBatch     many adapters ready for one batch: the maths at the sites, once, for training and serving

The tensors of one adapter are *fused* into the form that the sites multiply with; fused tensors of equal shapes are
stacked over slots. Adapters of other shapes (another rank, other targets) go to another stack, so nothing is ever
padded to the largest and every adapter costs what it is.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from umbel.adapters.peft_config import PeftConfig
from umbel.adapters.rows import Rows
from umbel.adapters.sites import Ends, Frozen, Sites
from umbel.core.errors import AdapterRefused
from umbel.core.shape import BackboneShape

Key = tuple[int, str]
"""(layer, what) of a fused tensor."""
Fused = dict[Key, Tensor]


Run = Callable[[Sites, int, str], None]
"""run(sites, n, text): the backbone over the first n tokens of ``text`` (repeated if short) with ``sites``."""


class Config(Protocol):
    """A frozen dataclass; its fields are the command line's options of the method, too."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Dropout:
    """A row's own, stateless source of dropout masks (correctness rule 3).

    A mask depends on the adapter's seed, the step, the example's own index, layer, site, token and feature, and on
    nothing else: neighbours, padding and recomputation cannot move it.
    """

    p: float
    keys: Tensor
    """[B] int64, one per row, mixing adapter seed, step and example index; or [B,T], one per token (packed rows)."""


class Weights(ABC):
    """One adapter's tensors, by the names they have on disk (without the method's prefix)."""

    wide: ClassVar[frozenset[str]] = frozenset()
    """Fused tensors (the ``what`` of their key) that stay in at least fp32 in a bf16 bank: scales and gates."""

    def __init__(self, config: Any, shape: BackboneShape, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self.shape = shape
        self.tensors = dict(tensors)

    @classmethod
    @abstractmethod
    def expected(cls, config: Any, shape: BackboneShape) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors; raises ConfigError where the backbone has no such place."""

    @classmethod
    @abstractmethod
    def fresh(cls, config: Any, shape: BackboneShape, generator: torch.Generator) -> Self:
        """An untrained adapter, fp32 on CPU."""

    @abstractmethod
    def fuse(self, layers: Sequence[Frozen] | None) -> Fused:
        """The tensors that the sites multiply with; differentiable.

        ``layers`` is given in serving: what the method derives from frozen weights is then computed once, here.
        In training it is derived inside each layer's own forward, where FSDP has gathered the weights.
        """

    @property
    def num_virtual(self) -> int:
        """Places that the batch builder reserves before the text; ``embed`` fills them (prompt methods)."""
        return 0

    @property
    def num_past(self) -> int:
        """Virtual keys before the text; its first token stands at this position (prefix)."""
        return 0

    @property
    def lowest_layer(self) -> int:
        """Layers below it are a fixed function of the tokens, whatever this adapter's weights; 0: none is.

        The number of layers says that the adapter acts on the last hidden states alone.
        """
        return 0

    @property
    def trainable(self) -> list[str]:
        """Names of the tensors that training moves."""
        return list(self.tensors)

    def initialise(  # noqa: B027 (most methods need none)
        self, layers: Sequence[Frozen], run: Run, ends: Ends | None = None
    ) -> None:
        """Once before training: starts from the backbone's own weights or from a text, where the method does so."""

    def bake(self) -> None:  # noqa: B027 (most methods need none)
        """Brings the tensors that are served up to date with those that are trained (encoders)."""

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.tensors.values())


class Batch(Sites):
    """Adapters of one stack in one batch. Subclasses override sites."""

    in_answers: ClassVar[bool] = True
    """Whether it does anything to tokens of answers; one that only fills places before the text does not."""

    def __init__(self, stack: Mapping[Key, Tensor], rows: Rows, shape: BackboneShape, dropout: Dropout | None) -> None:
        self.stack = stack
        self.rows = rows
        self.shape = shape
        self.dropout = dropout

    @classmethod
    def kind_for(cls, stack: Mapping[Key, Tensor]) -> "type[Batch]":
        """The class that acts for this stack: one with more sites where some of its adapters need more."""
        return cls


def _none_extra(config: Any) -> Callable[[str], bool]:
    return lambda name: False


def _never(weights: Weights) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method's entry in the catalog; the file that defines it holds one as ``METHOD``."""

    name: str
    config: type[Any]
    weights: type[Weights]
    batch: type[Batch]
    peft_type: str | None
    """PEFT's name on disk; None where PEFT has no such method and the format is ours."""
    zero_start: bool
    """Whether a fresh adapter leaves the backbone's logits bit-equal."""
    learning_rate: float
    """Default for a hidden size of 2,000; see training's rule for other widths."""
    prefix: str = "base_model.model."
    """What PEFT puts before the tensors' names."""
    head_prefix: str = "base_model.model."
    """What PEFT puts before the output head's names."""
    saved_modules: frozenset[str] = frozenset()
    """Backbone modules of which it can carry a full copy (PEFT's ``modules_to_save``)."""
    peft_saves_head: bool = True
    """Whether PEFT's format has a place for an output head beside this method."""
    read_peft: Callable[[PeftConfig, BackboneShape], Any] | None = None
    """``adapter_config.json`` -> config; takes every key it understands, refuses values it does not."""
    write_peft: Callable[[Any, BackboneShape], dict[str, Any]] | None = None
    """config -> the method's own keys of ``adapter_config.json``, no more than old readers know."""
    extra_tensors: Callable[[Any], Callable[[str], bool]] = _none_extra
    """config -> whether PEFT cannot carry the tensor of this name."""
    same_config: Callable[[Any, Any], bool] = operator.eq
    """Whether a config read from PEFT's keys is the one in ``umbel.json``, as far as PEFT's keys can tell."""
    noop: Callable[[Weights], bool] = _never
    """Whether these weights leave every answer of the backbone as it is."""
    summary: str = ""
    """One line for tables and help."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or not self.name.islower():
            raise ValueError(f"method name {self.name!r} must be a lower-case identifier")


def cast(weights: Weights, fused: Fused, dtype: torch.dtype | None) -> Fused:
    """Fused tensors in the dtype of a bank or of the backbone's activations; master weights stay fp32, ids integers."""
    if dtype is None:
        return fused
    at_least = torch.promote_types(dtype, torch.float32)
    return {
        key: t.to(at_least if key[1] in weights.wide else dtype) if t.is_floating_point() else t
        for key, t in fused.items()
    }


def signature(method: str, fused: Mapping[Key, Tensor]) -> Hashable:
    """Adapters with equal signatures share a stack."""
    return method, tuple(sorted((key, tuple(tensor.shape)) for key, tensor in fused.items()))


def check_tensors(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    """Raises AdapterRefused unless ``tensors`` are exactly the expected ones, by name and shape."""
    if missing := sorted(expected.keys() - tensors.keys()):
        raise AdapterRefused(
            f"{len(missing)} tensors are missing, the first is {missing[0]}.",
            code="missing_tensors",
            hint="check that adapter_config.json belongs to these weights",
        )
    if extra := sorted(tensors.keys() - expected.keys()):
        raise AdapterRefused(
            f"{len(extra)} tensors match nothing in the backbone, the first is {extra[0]}.",
            code="unexpected_tensors",
            hint="rename the keys to PEFT's form, or import it for the backbone it was made for",
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise AdapterRefused(
                f"{name} has shape {list(tensor.shape)}, this backbone and config need {list(expected[name])}.",
                code="shape_mismatch",
                hint="the adapter was made for another backbone or its rank differs from adapter_config.json",
            )
