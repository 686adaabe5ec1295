"""What a training of the backbone's own tensors holds in memory, and what freezing the others saves of that.

Per trained parameter: a master, a gradient and AdamW's two moments in the masters' dtype, the best so far in the
compute dtype, and under mixed precision a cast for the pass. Per frozen parameter: itself. Activations are kept from
the lowest trained layer upwards.
"""

from collections.abc import Collection
from dataclasses import dataclass

from umbel.backbone.backbone import Backbone
from umbel.core.shape import LINEARS
from umbel.training.precision import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Bytes, by what they are."""

    weights: int
    gradients: int
    optimizer: int
    best: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.best + self.activations

    def minus(self, other: "Held") -> "Held":
        return Held(
            weights=self.weights - other.weights,
            gradients=self.gradients - other.gradients,
            optimizer=self.optimizer - other.optimizer,
            best=self.best - other.best,
            activations=self.activations - other.activations,
        )


def held(backbone: Backbone, trained: Collection[str], precision: Precision, places: int) -> Held:
    """Of a training of these of the decoder's parameters, with so many places (rows times tokens) in one pass."""
    sizes = {name: parameter.numel() for name, parameter in backbone.decoder.named_parameters()}
    own = sum(sizes[name] for name in trained)
    master, compute = precision.masters.itemsize, precision.compute.itemsize
    cast = compute if precision.mixed else 0
    return Held(
        weights=own * (master + cast) + (sum(sizes.values()) - own) * compute,
        gradients=own * master,
        optimizer=2 * own * master,
        best=own * compute,
        activations=places * per_place(backbone) * (backbone.shape.layers - lowest(trained)) * compute,
    )


def saved_by_freezing(backbone: Backbone, trained: Collection[str], precision: Precision, places: int) -> Held:
    """What a training of everything would hold beyond that."""
    everything = [name for name, _ in backbone.decoder.named_parameters()]
    return held(backbone, everything, precision, places).minus(held(backbone, trained, precision, places))


def lowest(trained: Collection[str]) -> int:
    """The first layer whose activations a backward pass needs: 0 where the embeddings are trained."""
    layers = [int(name.split(".")[1]) if name.startswith("layers.") else 0 for name in trained if name not in _TOP]
    return min(layers, default=0)


_TOP = ("norm.weight", "lm_head.weight")


def per_place(backbone: Backbone) -> int:
    """Numbers that one layer keeps for one place."""
    return sum(sum(backbone.shape.linear(name)) for name in LINEARS) + 4 * backbone.shape.hidden
