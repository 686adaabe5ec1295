"""The work that every system is given: prompts, new tokens, and which adapter each request wears."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from umbel.adapters.adapter import Adapter, fresh_adapter
from umbel.adapters.peft_io import export_files
from umbel.core.contract import Contract
from umbel.core.shape import BackboneShape

PROMPT_TOKENS = 128
NEW_TOKENS = 64
LORA = {"rank": 16, "alpha": 32.0}
MIXED: list[tuple[str, dict[str, object]]] = [
    ("lora", LORA),
    ("lora", {"rank": 8, "rslora": True}),
    ("lora", {"rank": 16, "dora": True}),
    ("llama_adapter", {"length": 10}),
    ("prefix", {"length": 20}),
    ("prompt", {"length": 10}),
    ("ia3", {}),
    ("bottleneck", {"width": 32}),
]


@dataclass(frozen=True, slots=True)
class Work:
    """``worn[i]`` is the index of request i's adapter, None for the bare backbone."""

    name: str
    worn: list[int | None]
    kinds: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    new_tokens: int = NEW_TOKENS

    @property
    def concurrent(self) -> int:
        return len(self.worn)

    def prompts(self, vocabulary: int, seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(10, vocabulary, (self.concurrent, PROMPT_TOKENS), generator=generator).tolist()

    @property
    def only_lora(self) -> bool:
        return all(method == "lora" and not options.get("dora") for method, options in self.kinds)


def works(*, short: bool) -> list[Work]:
    eight, many = [("lora", LORA)] * 8, [("lora", LORA)] * 32
    everything = [
        Work("1 request, bare backbone", [None]),
        Work("1 request, 1 LoRA", [0], eight[:1]),
        Work("8 requests, bare backbone", [None] * 8),
        Work("8 requests, 8 LoRAs", list(range(8)), eight),
        Work("32 requests, bare backbone", [None] * 32),
        Work("32 requests, 8 LoRAs", [i % 8 for i in range(32)], eight),
        Work("32 requests, 32 LoRAs", list(range(32)), many),
        Work("32 requests, 8 methods mixed", [i % 8 for i in range(32)], MIXED),
    ]
    return [work for work in everything if not short or work.concurrent == 32]


def make_adapters(work: Work, shape: BackboneShape, fingerprint: str) -> list[Adapter]:
    """Random weights of a moderate size, so that every product is real work."""
    contract = Contract(output_head="generate")
    made = []
    for seed, (method, options) in enumerate(work.kinds):
        adapter = fresh_adapter(method, dict(options), contract, shape, backbone=fingerprint, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for tensor in adapter.tensors.values():
            tensor += torch.randn(tensor.shape, generator=generator) * 0.01
        made.append(adapter)
    return made


def write_peft_folder(adapter: Adapter, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, data in export_files(adapter, backbone_name="backbone").items():
        (folder / name).write_bytes(data)
    return folder
