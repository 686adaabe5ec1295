"""Who trains in `make bench-training`: umbel by its own loop, and Hugging Face's model under PEFT in a plain one."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from umbel.backbone.backbone import Backbone
from umbel.core.contract import Contract
from umbel.core.settings import Settings
from umbel.training.data.encode import EncodedRows, Example
from umbel.training.data.source import Splits
from umbel.training.passes import Packing
from umbel.training.prepared import Prepared
from umbel.training.task import Task
from umbel.training.trainee import Trainee, trainee_of
from umbel.training.trunk.choice import choose_cut, open_trunk
from umbel.training.window import Machine, take_window

LABELS = ("a", "b", "c")
LORA: dict[str, Any] = {"rank": 8, "alpha": 16.0}


def rows_of(lengths: Sequence[int], vocabulary: int, *, seed: int = 0) -> list[Example]:
    """Random tokens and labels: what they say changes no time."""
    generator = np.random.default_rng(seed)
    return [
        Example(i, generator.integers(10, vocabulary, length).astype(np.int32), None, (float(i % len(LABELS)),))
        for i, length in enumerate(lengths)
    ]


def mixed_lengths(count: int) -> list[int]:
    """Like short messages: 8 to 40 tokens, most of them about 20."""
    found = np.random.default_rng(1).gamma(6.0, 3.5, count).clip(8, 40)
    return [int(length) for length in found]


def classifier(backbone: Backbone, rows: list[Example], *, steps: int, **options: Any) -> Trainee:
    """One adapter in training on given rows, without a file."""
    name = str(options.pop("name", "bench"))
    task = Task(name=name, data="none", task="classify", labels=LABELS, steps=steps, lr=1e-4, **options)
    prepared = Prepared(
        task=task,
        contract=Contract(output_head="classify", labels=LABELS),
        splits=Splits(train=[], validation=[], test=[], digest="", name="random"),
        train=EncodedRows(rows, truncated=0, left_out=0),
        validation=EncodedRows([], truncated=0, left_out=0),
        metric="accuracy",
    )
    return trainee_of(prepared, backbone)


class Umbel:
    """Windows of the training loop, timed one by one."""

    name = "umbel"

    def __init__(self, backbone: Backbone, trainees: Sequence[Trainee], *, keep: bool = False) -> None:
        self.trainees = list(trainees)
        self.scratch = tempfile.TemporaryDirectory()
        settings = Settings.load(Path(self.scratch.name))
        self.machine = Machine(backbone, Packing(), trunk=open_trunk(backbone, settings))
        for trainee in self.trainees if keep else ():
            trainee.cut = choose_cut(trainee, backbone, settings)
            assert trainee.cut is not None, "nothing is kept, so there is nothing to measure"

    def step(self) -> float:
        """Seconds of one optimizer step of every adapter, in shared passes."""
        start = time.perf_counter()
        take_window(self.machine, self.trainees)
        return time.perf_counter() - start

    def serial_step(self) -> float:
        """The same, each adapter in passes of its own."""
        start = time.perf_counter()
        for trainee in self.trainees:
            take_window(self.machine, [trainee])
        return time.perf_counter() - start


@dataclass(slots=True)
class HuggingFace:
    """``AutoModelForSequenceClassification`` with PEFT's LoRA, right padding, AdamW; fed umbel's own batches."""

    model: Any
    optimizer: Any
    name: str = "HF + PEFT"

    @classmethod
    def load(cls, backbone: Backbone, lr: float = 1e-4) -> "HuggingFace":
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForSequenceClassification

        bare = AutoModelForSequenceClassification.from_pretrained(
            str(backbone.folder), num_labels=len(LABELS), dtype=backbone.dtype
        )
        bare.config.pad_token_id = 0
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = LoraConfig(task_type="SEQ_CLS", r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules=targets)
        model = get_peft_model(bare, config).train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return cls(model, torch.optim.AdamW(trained, lr=lr))

    def step(self, rows: Sequence[Example]) -> float:
        start = time.perf_counter()
        longest = max(len(row.ids) for row in rows)
        tokens, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest).long()
        for place, row in enumerate(rows):
            tokens[place, : len(row.ids)] = torch.from_numpy(row.ids)
            mask[place, : len(row.ids)] = 1
        labels = torch.tensor([int(row.target[0]) for row in rows])
        self.model(input_ids=tokens, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_((p for p in self.model.parameters() if p.requires_grad), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start
