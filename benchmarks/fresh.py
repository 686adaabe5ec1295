"""How much an adapter that was not trained a step changes the logits of SmolLM2: ``make fresh`` prints the table.

Methods that start from zero must leave every bit; those that put something before the text cannot. `docs/methods.md`
shows the table; `tests/engine/test_fresh_adapters.py` holds the zeros, served, on a tiny backbone.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.parity import whole
from torch import Tensor

from umbel.adapters import catalog
from umbel.adapters.adapter import Adapter, fresh_adapter
from umbel.backbone.backbone import Backbone
from umbel.backbone.installed import find
from umbel.backbone.loading import load_backbone
from umbel.core.contract import Contract, OutputHead
from umbel.core.settings import Settings
from umbel.training.trainee import runner

KEPT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "fresh.json"
INIT = "Answer the question below."
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "lora": [{}, {"dora": True}],
    "llama_adapter": [{}, {"per_head_gate": True}],
    "prefix": [{}, {"projection": True}, {"init_text": INIT}],
    "prompt": [{}, {"init_text": INIT}],
}
TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "I waited two hours for my bag and nobody could tell me where it was.",
    "def add(a, b):\n    return a + b\n",
    "Once upon a time there was a fox who lived at the edge of a large forest.",
    "Water boils at 100 degrees Celsius at sea level.",
    "Thank you so much for the quick help, you made my day!",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Fresh against bare, over every place of every text. Logits are told about their own place's mean: a shift of
    all of them changes no probability."""

    method: str
    options: str
    zero_start: bool
    equal: bool
    """In every bit."""
    largest: float
    rms: float
    spread: float
    """Root mean square of the bare logits, to hold ``rms`` against."""
    same_token: float
    """Share of places whose likeliest next token stays."""


def main() -> None:
    torch.set_num_threads(1)
    backbone = load_backbone(find(Settings.load(), "smollm2-135m-instruct").folder)
    found = list(changes(backbone))
    print("\n".join(rows([asdict(change) for change in found])))
    if moved := [change for change in found if change.zero_start and not change.equal]:
        sys.exit("\n".join(f"NOT ZERO {change}" for change in moved))
    KEPT.write_text(json.dumps([_rounded(change) for change in found], indent=1) + "\n", encoding="utf-8")
    print(f"\nkept in {KEPT.name}, which `make docs` shows")


def changes(backbone: Backbone) -> list[Change]:
    texts = [torch.tensor(backbone.tokenizer.encode(text)) for text in TEXTS]
    bare = None
    found = []
    for method in sorted(catalog.methods()):
        for options in OPTIONS.get(method, [{}]):
            adapter = fresh(backbone, method, options)
            if bare is None:
                bare = torch.cat([whole(backbone, adapter, text, bare=True) for text in texts]).float()
            worn = torch.cat([whole(backbone, adapter, text) for text in texts]).float()
            found.append(change(adapter, options, worn, bare))
    return found


def fresh(backbone: Backbone, method: str, options: dict[str, Any]) -> Adapter:
    """As training starts."""
    contract = Contract(output_head=OutputHead.GENERATE)
    made = fresh_adapter(method, options, contract, backbone.shape, backbone=backbone.fingerprint, seed=1)
    made.weights.initialise(list(backbone.decoder.layers), runner(backbone), backbone.decoder)
    made.weights.bake()
    return made


def change(adapter: Adapter, options: dict[str, Any], worn: Tensor, bare: Tensor) -> Change:
    own, base = (logits - logits.mean(-1, keepdim=True) for logits in (worn, bare))
    return Change(
        method=adapter.method.name,
        options=", ".join(options),
        zero_start=adapter.method.zero_start,
        equal=torch.equal(worn, bare),
        largest=float((own - base).abs().max()),
        rms=float((own - base).square().mean().sqrt()),
        spread=float(base.square().mean().sqrt()),
        same_token=float((worn.argmax(-1) == bare.argmax(-1)).float().mean()),
    )


def rows(found: list[dict[str, Any]]) -> list[str]:
    """A Markdown table."""
    lines = [
        "| fresh adapter | largest change of a logit | root mean square | likeliest token stays |",
        "| --- | --- | --- | --- |",
    ]
    for one in found:
        name = f"`{one['method']}`" + (f" ({one['options']})" if one["options"] else "")
        size = "0, bit-equal" if one["equal"] else f"{one['largest']:.1f}"
        mean = "0" if one["equal"] else f"{one['rms']:.2f} of {one['spread']:.2f}"
        lines.append(f"| {name} | {size} | {mean} | {one['same_token']:.0%} |")
    return lines


def _rounded(change: Change) -> dict[str, Any]:
    told = asdict(change)
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in told.items()}


if __name__ == "__main__":
    main()
