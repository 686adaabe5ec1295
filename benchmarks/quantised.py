"""`make bench-quantised`: what int8, int4 and nf4 linears lose, save and cost, beside the checkpoint's bf16.

Writes docs/benchmarks/quantised.json and quantised.md, in less than four minutes on two cores. Speeds take turns in one
run; quality is measured on the weights and kernels that serve.
"""

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from benchmarks.run import BACKBONE, OUT, facts
from benchmarks.systems import InMemory
from benchmarks.training_systems import LORA, Umbel, classifier, rows_of
from torch import Tensor

from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import whole_step
from umbel.backbone.installed import find
from umbel.backbone.linears import DenseLinear
from umbel.backbone.loading import load_backbone, pack
from umbel.backbone.native import Kernels
from umbel.backbone.quantised import QUANTISED_SITES, quantised
from umbel.core.forms import FORMS, Form
from umbel.core.settings import Settings
from umbel.engine import Engine, GenerateRequest
from umbel.evaluation.forgetting import Probe

KEPT = OUT / "quantised.json"
ROWS = (1, 8, 32)
PROMPT, NEW, PREFILL = 4, 32, 512
TRAIN_ROWS, TRAIN_TOKENS = 16, 32
_QUIET = 1.0
"""Load below which nobody else works."""
APART = "int4, other groups"
"""Inputs are put into another order before they are grouped: SmolLM2's weights come from a file of 4 bits in groups of
32, and int4 would find the very same groups again."""


@dataclass(frozen=True, slots=True)
class Quality:
    """On the probe's eight texts, each predicted place counted once."""

    perplexity: float
    kl: float
    """Mean divergence of the next token's distribution from that of bf16, in nats."""
    agreement: float
    """Share of the places whose likeliest token is that of bf16."""
    facts: float
    """Share of the probe's general questions answered right."""
    bytes: int
    """Of all weights in memory; embeddings, norms and head are bf16 in every form."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=KEPT)
    asked = parser.parse_args()
    folder, load_before = find(Settings.load(), BACKBONE).folder, os.getloadavg()[0]
    served = {name: load(folder, form, packed=True) for name, form in forms().items()}
    quality = measure_quality(folder, served)
    report = {
        "facts": facts() | {"bitsandbytes": version("bitsandbytes")},
        "load": round(load_before, 2),
        "quality": {name: asdict(found) for name, found in quality.items()},
        "decode": {str(rows): decode(served, rows, asked.rounds) for rows in ROWS},
        "prefill": prefill(served, asked.rounds),
        "train": train({name: load(folder, form, packed=False) for name, form in forms().items()}, asked.rounds),
    }
    asked.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = page(report)
    asked.out.with_suffix(".md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)


def forms() -> dict[str, Form | None]:
    return {"bf16": None, **{form: form for form in FORMS}}


def load(folder: Path, form: Form | None, *, packed: bool) -> Backbone:
    """Packed as a server has it, kernels included."""
    kernels = Kernels.wanted(Settings.load()) if packed else None
    return load_backbone(folder, dtype="bf16", packed=packed, kernels=kernels, quantise=form)


def measure_quality(folder: Path, served: dict[str, Backbone]) -> dict[str, Quality]:
    texts = files("umbel.evaluation").joinpath("probe", "text.txt").read_text("utf-8").strip().split("\n\n")
    wanted = predictions(served["bf16"], texts)
    found = {name: judge(backbone, texts, wanted) for name, backbone in served.items()}
    return found | {APART: judge(in_other_groups(folder), texts, wanted)}


@torch.inference_mode()
def predictions(backbone: Backbone, texts: list[str]) -> Tensor:
    """Log-probabilities [places, V] of what follows each token but the last of each text."""
    found = []
    for text in texts:
        ids = torch.tensor([backbone.tokenizer.encode(text)])
        want = torch.arange(ids.shape[1] - 1)
        logits = backbone.decoder(ids, whole_step(rows=1, tokens=ids.shape[1], want=want)).logits
        assert logits is not None
        found.append(logits.float().log_softmax(-1))
    return torch.cat(found)


def judge(backbone: Backbone, texts: list[str], wanted: Tensor) -> Quality:
    found = predictions(backbone, texts)
    said = torch.cat([torch.tensor(backbone.tokenizer.encode(text)[1:]) for text in texts])
    return Quality(
        perplexity=math.exp(-float(found.gather(1, said[:, None]).mean())),
        kl=float((wanted.exp() * (wanted - found)).sum(1).mean()),
        agreement=float((wanted.argmax(1) == found.argmax(1)).float().mean()),
        facts=Probe(backbone).of(None).on.accuracy,
        bytes=backbone.bytes,
    )


@torch.no_grad()
def in_other_groups(folder: Path) -> Backbone:
    """int4 on inputs in a random order, back in their own; held in bf16, which changes no quality."""
    backbone = load_backbone(folder, dtype="bf16")
    generator = torch.Generator().manual_seed(0)
    for layer in backbone.decoder.layers:
        for site in QUANTISED_SITES:
            linear: DenseLinear = getattr(layer, site)
            order = torch.randperm(linear.weight.shape[1], generator=generator)
            linear.weight.copy_(linear.weight[:, order])
            linear.weight.copy_(quantised(linear, "int4").weight[:, order.argsort()])
    pack(backbone.decoder)
    return backbone


def engine_of(backbone: Backbone) -> Engine:
    return Engine(backbone, InMemory(), kv_bytes=300_000_000, adapter_bytes=0, prefix_bytes=0)


def requests(backbone: Backbone, rows: int, tokens: int, new: int) -> list[GenerateRequest]:
    ids = torch.randint(10, backbone.shape.vocab, (rows, tokens), generator=torch.Generator().manual_seed(1))
    return [GenerateRequest(tokens=tuple(row), max_tokens=new, ignore_eos=True) for row in ids.tolist()]


def decode(served: dict[str, Backbone], rows: int, rounds: int) -> dict[str, float]:
    """Generated tokens per second after the step that reads all prompts and gives every row its first one."""

    def once(engine: Engine, backbone: Backbone) -> float:
        handles = [engine.submit(request) for request in requests(backbone, rows, PROMPT, NEW)]
        engine.step()
        start = time.perf_counter()
        while engine.step():
            pass
        seconds = time.perf_counter() - start
        assert all(len(handle.result().ids) == NEW for handle in handles)
        return rows * (NEW - 1) / seconds

    return in_turns(served, once, rounds)


def prefill(served: dict[str, Backbone], rounds: int) -> dict[str, float]:
    """Tokens per second of one prompt."""

    def once(engine: Engine, backbone: Backbone) -> float:
        start = time.perf_counter()
        engine.submit(requests(backbone, 1, PREFILL, 1)[0])
        while engine.step():
            pass
        return PREFILL / (time.perf_counter() - start)

    return in_turns(served, once, rounds)


def in_turns(served: dict[str, Backbone], once: Any, rounds: int) -> dict[str, float]:
    """The fastest of the rounds, as other work only ever slows; the first one warms up."""
    engines = {name: engine_of(backbone) for name, backbone in served.items()}
    found: dict[str, list[float]] = {name: [] for name in served}
    for _ in range(rounds + 1):
        for name, engine in engines.items():
            found[name].append(once(engine, served[name]))
    for engine in engines.values():
        engine.close()
    return {name: max(rates[1:]) for name, rates in found.items()}


def train(backbones: dict[str, Backbone], rounds: int) -> dict[str, float]:
    """Tokens per second of optimizer steps of LoRA on all linears."""
    systems = {}
    for name, backbone in backbones.items():
        rows = rows_of([TRAIN_TOKENS] * TRAIN_ROWS * (rounds + 1), backbone.shape.vocab)
        systems[name] = Umbel(backbone, [classifier(backbone, rows, steps=rounds + 1, options=LORA)])
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds + 1):
        for name, system in systems.items():
            seconds[name].append(system.step())
    return {name: TRAIN_ROWS * TRAIN_TOKENS / min(times[1:]) for name, times in seconds.items()}


def page(report: dict[str, Any]) -> str:
    told = ", ".join(f"{key} {value}" for key, value in report["facts"].items())
    return "\n".join(
        [
            "# Quantised backbones, measured",
            "",
            f"Made by `make bench-quantised` from quantised.json: {BACKBONE}, bf16 activations, embeddings and head;",
            "[quantised.md](../quantised.md) says what the forms are.",
            "",
            "## What is lost",
            "",
            "On the eight short texts and forty questions that ship with umbel (`platform/umbel/evaluation/probe`). KL",
            "divergence and agreement are of the next token, from bf16. SmolLM2's weights come from a file of 4 bits",
            f"in groups of 32, and int4 finds those groups again, almost unharmed: *{APART}* takes them apart, and",
            "is what to expect of int4 on a checkpoint that was never quantised before.",
            "",
            "| linears | weights in memory | perplexity | rise | KL divergence | same next token | questions right |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *quality_rows(report["quality"]),
            "",
            "## Speed",
            "",
            "Tokens per second, the best of several rounds, in turns within one run; beside each its share of bf16's.",
            f"Decoding: {NEW} tokens after prompts of {PROMPT}. Prompt: one of {PREFILL} tokens. Training: LoRA rank 8",
            f"on all linears, steps of {TRAIN_ROWS} rows of {TRAIN_TOKENS} tokens.",
            *busy(report["load"]),
            "",
            "| work | " + " | ".join(forms()) + " |",
            "| --- |" + " --- |" * len(forms()),
            *(speed_row(f"decoding, {rows} at once", found) for rows, found in report["decode"].items()),
            speed_row("prompt", report["prefill"]),
            speed_row("training", report["train"]),
            "",
            f"Machine: {told}.",
            "",
        ]
    )


def busy(load: float) -> list[str]:
    """Said where other work took time from some of the rounds."""
    if load < _QUIET:
        return []
    return [f"**Other work ran on the machine (a load of {load:.1f} before the start): not to be relied on.**"]


def quality_rows(found: dict[str, Any]) -> list[str]:
    plain = found["bf16"]
    lines = []
    for name, one in found.items():
        rise = one["perplexity"] / plain["perplexity"] - 1
        size = "as int4" if name == APART else f"{one['bytes'] / 1e6:.0f} MB"
        lines.append(
            f"| {name} | {size} | {one['perplexity']:.2f} | {rise:+.1%} | {one['kl']:.4f} | {one['agreement']:.1%} | "
            f"{one['facts']:.1%} |"
        )
    return lines


def speed_row(what: str, found: dict[str, float]) -> str:
    plain = found["bf16"]
    cells = [f"{rate:,.0f}" + ("" if name == "bf16" else f" ({rate / plain:.2f}x)") for name, rate in found.items()]
    return f"| {what} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
