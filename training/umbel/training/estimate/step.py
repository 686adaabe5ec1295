"""One step of the real code on tensors without bytes: what lives when."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from umbel.adapters.adapter import Adapter, fresh_adapter
from umbel.adapters.wear import fuse_all
from umbel.backbone.backbone import Backbone
from umbel.backbone.checkpointing import Checkpointing
from umbel.backbone.decoder import Decoder
from umbel.backbone.fingerprint import Identity
from umbel.core.contract import Contract, OutputHead
from umbel.training.data.encode import Example
from umbel.training.estimate.ledger import Ledger, nbytes
from umbel.training.estimate.work import Work
from umbel.training.forward import run_pass
from umbel.training.passes import Seat
from umbel.training.trainee import trained_tensors

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class StepBytes:
    """Beside weights, which are there before and after."""

    activations: int
    """When the forward pass is over."""
    peak: int
    """Most of activations and gradients together."""
    adapter: int
    """Of the adapters' own tensors, output heads included."""
    trained: int
    """Of those of them that are trained."""
    products: int
    """Different sizes of matrix products."""
    operations: int
    """Multiplications and additions of these, forward and backward."""


def fake_step(work: Work, *, gradient_weight: float = 1.0) -> StepBytes:
    """Runs on fake tensors that say they are on the CPU, so the operations are the CPU's.

    ``gradient_weight`` is what a byte of the decoder's gradients weighs; an adapter's weigh 1.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        decoder = Decoder(work.config, work.compute, CPU)
        adapters = [_adapter(work) for _ in range(work.adapters)]
        return measure(work, decoder, adapters, gradient_weight=gradient_weight)


def measure(work: Work, decoder: Decoder, adapters: Sequence[Adapter], *, gradient_weight: float = 1.0) -> StepBytes:
    """The same on any decoder and adapters, real ones too."""
    own = [tensor for adapter in adapters for tensor in trained_tensors(adapter).values()]
    all_own = [tensor for adapter in adapters for tensor in adapter.tensors.values()]
    theirs = [parameter for name, parameter in decoder.named_parameters() if name in work.trained]
    for tensor in [*own, *theirs]:
        tensor.requires_grad_()
    known = [*decoder.parameters(), *decoder.buffers(), *all_own]
    ledger = Ledger(known, {**dict.fromkeys(own, 1.0), **dict.fromkeys(theirs, gradient_weight)})
    with ledger:
        loss = _loss(work, decoder, adapters)
        activations = ledger.activations
        loss.backward()  # type: ignore[no-untyped-call]
    ledger.close()
    return StepBytes(
        activations, int(ledger.peak), nbytes(all_own), nbytes(own), len(ledger.products), ledger.operations
    )


def _loss(work: Work, decoder: Decoder, adapters: Sequence[Adapter]) -> Tensor:
    nobody = Identity("", "", "")
    backbone = Backbone("", Path(), work.config, decoder, None, nobody)  # type: ignore[arg-type] # no text is read
    virtual = adapters[0].weights.num_virtual
    seats = [Seat(row * len(adapters) // work.rows, _example(work, row), virtual) for row in range(work.rows)]
    worn = fuse_all(adapters, dtype=work.compute)
    scores = run_pass(backbone, adapters, worn, seats, checkpointing=Checkpointing.parse(work.checkpointing))
    return torch.stack([score.loss for score in scores.values()]).sum()


def _example(work: Work, index: int) -> Example:
    ids = np.ones(work.length, dtype=np.int32)
    spoken = None
    if work.output_head is OutputHead.GENERATE:
        spoken = np.arange(work.length) >= work.length - min(work.answer, work.length - 1)
    words = (0,) if work.output_head is OutputHead.TAG else ()
    return Example(index, ids, spoken, (0.0,), words)


def _adapter(work: Work) -> Adapter:
    labels = ("a", "b") if work.output_head in (OutputHead.CLASSIFY, OutputHead.TAG) else ()
    pooled = OutputHead.REGRESS if work.output_head is OutputHead.EMBED else work.output_head  # its loss needs pairs
    contract = Contract(output_head=pooled, labels=labels)
    return fresh_adapter(
        work.method, dict(work.options), contract, work.config.shape, backbone="", seed=0, head=work.head
    )
