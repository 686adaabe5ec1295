"""One adapter in memory: a method's weights, an output head and the task's contract."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from umbel.adapters import catalog
from umbel.adapters.head import Head, HeadConfig
from umbel.adapters.method import Method, Weights
from umbel.core.contract import Contract
from umbel.core.shape import BackboneShape


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Everything one task adds to the backbone."""

    method: Method
    weights: Weights
    head: Head
    contract: Contract
    backbone: str
    """Fingerprint of the backbone it is bound to."""
    digest: str = ""
    """Identity of the version; empty while it is being trained."""
    name: str = ""
    """``name:3``, for logs and headers only."""

    @property
    def nbytes(self) -> int:
        return self.weights.nbytes + self.head.nbytes

    @property
    def num_parameters(self) -> int:
        return self.weights.num_parameters + self.head.num_parameters

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by their own names, method's first."""
        return {**self.weights.tensors, **self.head.tensors}

    @property
    def config(self) -> dict[str, Any]:
        """Method and head settings as plain JSON: the manifest's ``config``."""
        return {"method": asdict(self.weights.config), "head": self.head.config.as_json()}


def fresh_adapter(
    method: str,
    options: dict[str, Any],
    contract: Contract,
    shape: BackboneShape,
    *,
    backbone: str,
    seed: int,
    head: HeadConfig | None = None,
) -> Adapter:
    """An untrained adapter, fp32 on CPU; the same seed gives the same bytes."""
    entry, kind = catalog.method(method), catalog.head(contract.output_head)
    generator = torch.Generator().manual_seed(seed)
    config = kind.configure(contract, head or HeadConfig(), shape.hidden)
    return Adapter(
        method=entry,
        weights=entry.weights.fresh(catalog.configure(method, options), shape, generator),
        head=kind.fresh(config, shape.hidden, generator),
        contract=contract,
        backbone=backbone,
    )
