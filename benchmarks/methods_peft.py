"""The other side of `make bench-methods`: HF transformers + PEFT in a plain training loop, one adapter at a time.

Same token ids, rows, order, steps, learning rates and clipping as umbel's side; PEFT's own initial weights. The
backbone is bf16 as in umbel, what is trained is fp32, and the passes run under autocast, as HF's Trainer does with
``bf16=True``.

PEFT's faults are stepped around rather than counted against it (each makes its result better): sequence classifiers
are pooled here, at the text's last token, since prompt methods would pool padding; an AdaptionPrompt's ``score`` is
set to train, since PEFT leaves it random and frozen; and prompts are generated from in batches of equal length, since
left padding shifts prompt methods.

Shape letters here:  B rows   T tokens   H hidden   K labels
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from benchmarks.methods_work import METHODS, NEW_TOKENS, Budget, Cell, questions_for, task_for
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from umbel.adapters import catalog
from umbel.backbone.backbone import Backbone
from umbel.core.settings import Settings
from umbel.evaluation.answering import Answers
from umbel.evaluation.scoring import score
from umbel.training.batches import Batches
from umbel.training.data.encode import Example, encode_rows, end_token
from umbel.training.prepared import Prepared, prepare
from umbel.training.schedule import Schedule, default_learning_rate

_JUDGED = 25
"""Rows of one batch while judging."""


def can(method: str) -> bool:
    return method != "bottleneck"


def cell(backbone: Backbone, data: str, method: str, seed: int, budget: Budget, settings: Settings) -> Cell:
    """``backbone`` gives tokenizer and fingerprints only."""
    prepared = prepare(task_for(data, method, seed, budget), backbone, settings)
    learner = Learner(backbone, prepared, method, seed)
    began, began_cpu = time.perf_counter(), time.process_time()
    learner.train(prepared)
    wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    questions = questions_for(prepared, budget)
    found = score(questions, learner.answer(encode_rows(questions.rows, prepared.contract, backbone).examples)).main
    return Cell(
        data=data,
        system="HF + PEFT",
        method=method,
        seed=seed,
        metric=questions.metric,
        value=found.value,
        rows=len(questions.rows),
        parameters=sum(parameter.numel() for parameter in learner.trained),
        bytes=learner.saved_bytes(),
        cpu_seconds=cpu,
        seconds=wall,
    )


class Learner:
    """One model with one PEFT method on it."""

    def __init__(self, backbone: Backbone, prepared: Prepared, method: str, seed: int) -> None:
        self.contract = prepared.contract
        self.tokenizer, self.end = backbone.tokenizer, end_token(backbone)
        self.classifies = bool(self.contract.labels)
        torch.manual_seed(seed)
        model = _load(backbone.folder, labels=len(self.contract.labels), pad=self.end)
        config = _config(method, "SEQ_CLS" if self.classifies else "CAUSAL_LM", backbone)
        self.model = peft.get_peft_model(model, config) if config is not None else _frozen(model)
        for name, parameter in self.model.named_parameters():
            if self.classifies and "score" in name.split(".") and "original_module" not in name:
                parameter.requires_grad_()
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.virtual = METHODS[method]["length"] if method in ("prompt", "p_tuning") else 0
        self.hidden: Tensor | None = None
        if self.classifies:
            self._listen()

    def _listen(self) -> None:
        """Keeps what enters ``score``, [B,T,H], and finds the weight that is trained."""
        name = next(name for name, _ in self.model.named_modules() if name.split(".")[-1] == "score")
        self.model.get_submodule(name).register_forward_pre_hook(self._keep)
        weights = [p for n, p in self.model.named_parameters() if n.startswith(name) and p.requires_grad]
        assert len(weights) == 1, "score has one trained weight and no bias"
        self.score_KH = weights[0]

    def _keep(self, module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.hidden = inputs[0]

    def train(self, prepared: Prepared) -> None:
        """A plain loop: AdamW, linear decay after a warm-up, clipping at 1."""
        task, examples = prepared.task, prepared.train.examples
        peak = default_learning_rate(catalog.method(task.method), self.model.config.hidden_size)
        lengths = [self.virtual + len(example.ids) for example in examples]
        batches = Batches(lengths, batch_size=task.batch_size, seed=task.seed)
        assert task.steps is not None
        schedule = Schedule.of(task, peak, task.steps)
        optimizer = torch.optim.AdamW(self.trained, lr=peak, weight_decay=0.0, fused=True)
        self.model.train()
        for step in range(task.steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.at(step)
            self.loss([examples[place] for place in batches.at(step)]).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.trained, task.clip)
            optimizer.step()
            optimizer.zero_grad()

    def loss(self, examples: Sequence[Example]) -> Tensor:
        """Mean over rows, or over supervised tokens."""
        if self.classifies:
            targets = torch.tensor([int(example.target[0]) for example in examples])
            return F.cross_entropy(self.logits(examples), targets)
        ids, mask = _padded(examples, self.end)
        labels = torch.full_like(ids, -100)
        for row, example in enumerate(examples):
            assert example.spoken is not None
            spoken = torch.from_numpy(example.spoken)
            labels[row, : len(spoken)] = torch.where(spoken, ids[row, : len(spoken)], -100)
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        assert isinstance(loss, Tensor)
        return loss

    def logits(self, examples: Sequence[Example]) -> Tensor:
        """[B,K], read at each text's last token, in fp32."""
        ids, mask = _padded(examples, self.end)
        with torch.autocast("cpu", torch.bfloat16):
            self.model(input_ids=ids, attention_mask=mask)
        assert self.hidden is not None
        last = self.virtual + mask.sum(1) - 1
        return F.linear(self.hidden[torch.arange(len(ids)), last].float(), self.score_KH)

    @torch.no_grad()
    def answer(self, examples: Sequence[Example]) -> Answers:
        self.model.eval()
        if not self.classifies:
            return Answers(self._generate([example.ids[~example.spoken].tolist() for example in examples]))  # type: ignore[operator]
        order = sorted(range(len(examples)), key=lambda place: len(examples[place].ids))
        logits = torch.zeros(len(examples), len(self.contract.labels))
        for start in range(0, len(order), _JUDGED):
            places = order[start : start + _JUDGED]
            logits[places] = self.logits([examples[place] for place in places])
        shares = torch.softmax(logits.double(), -1).numpy()
        return Answers([self.contract.labels[best] for best in shares.argmax(1)], shares, self.contract.labels)

    def _generate(self, prompts: Sequence[list[int]]) -> list[str]:
        """Greedy, in batches of prompts of one length: nothing is padded."""
        alike: dict[int, list[int]] = defaultdict(list)
        for place, prompt in enumerate(prompts):
            alike[len(prompt)].append(place)
        said = [""] * len(prompts)
        for length, places in alike.items():
            ids = torch.tensor([prompts[place] for place in places])
            with torch.autocast("cpu", torch.bfloat16):
                out = self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                    eos_token_id=self.end,
                    pad_token_id=self.end,
                )
            for place, row in zip(places, out[:, length:].tolist(), strict=True):
                said[place] = self.tokenizer.decode(row[: row.index(self.end)] if self.end in row else row)
        return said

    def saved_bytes(self) -> int:
        """Of what ``save_pretrained`` writes, without its empty card; for a bare output head, of its weight."""
        if not isinstance(self.model, peft.PeftModel):
            return sum(parameter.numel() * parameter.element_size() for parameter in self.trained)
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            return sum(path.stat().st_size for path in Path(folder).iterdir() if path.name != "README.md")


def _load(folder: Path, *, labels: int, pad: int) -> Any:
    if not labels:
        return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16)
    return AutoModelForSequenceClassification.from_pretrained(
        str(folder), dtype=torch.bfloat16, num_labels=labels, pad_token_id=pad
    )


def _frozen(model: Any) -> Any:
    """Only the output head is left to train; the caller sets it to."""
    return model.requires_grad_(False)


def _config(method: str, task_type: str, backbone: Backbone) -> Any:
    """PEFT's config of a method, with umbel's sizes; None where only the output head is trained."""
    options = METHODS[method]
    if method == "none":
        return None
    if method == "lora":
        targets = list(catalog.configure("lora", {}).targets)
        return peft.LoraConfig(
            task_type=task_type, r=options["rank"], lora_alpha=options["alpha"], target_modules=targets
        )
    if method == "llama_adapter":
        return peft.AdaptionPromptConfig(
            task_type=task_type, adapter_len=options["length"], adapter_layers=backbone.shape.layers
        )
    if method == "ia3":
        return peft.IA3Config(task_type=task_type)
    if method == "prefix":
        return peft.PrefixTuningConfig(task_type=task_type, num_virtual_tokens=options["length"])
    if method == "prompt":
        return peft.PromptTuningConfig(task_type=task_type, num_virtual_tokens=options["length"])
    return peft.PromptEncoderConfig(
        task_type=task_type, num_virtual_tokens=options["length"], encoder_hidden_size=backbone.shape.hidden
    )


def _padded(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, [B,T], padded on the right."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), pad)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.from_numpy(example.ids)
        mask[row, : len(example.ids)] = 1
    return ids, mask
