"""The systems that are measured, each behind the same two calls: ``wear`` once per work, ``run`` once per round."""

import itertools
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from benchmarks.work import Work, make_adapters, write_peft_folder

from umbel.adapters.adapter import Adapter
from umbel.backbone.loading import load_backbone
from umbel.backbone.native import Kernels
from umbel.core.forms import Form
from umbel.core.manifest import Manifest
from umbel.core.protocols import StoredAdapter, VersionRef
from umbel.core.settings import Settings
from umbel.engine import Engine, GenerateRequest, Token


@dataclass(slots=True)
class Round:
    """One round of one work."""

    seconds: float
    tokens: int
    first: list[float] = field(default_factory=list)
    """Seconds to each request's first token; empty where the system does not tell."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between tokens of one request."""

    @property
    def rate(self) -> float:
        """Generated tokens per second, end to end, prefill included."""
        return self.tokens / self.seconds


class System(Protocol):
    name: str

    def can(self, work: Work) -> bool: ...
    def wear(self, work: Work) -> None: ...
    def run(self, work: Work, prompts: list[list[int]]) -> Round: ...


class InMemory:
    """An adapter source for adapters that were just made."""

    def __init__(self) -> None:
        self.adapters: dict[str, Adapter] = {}

    def resolve(self, model: str) -> VersionRef:
        raise LookupError(model)

    def fetch(self, digest: str) -> StoredAdapter:
        adapter = self.adapters[digest]
        manifest = Manifest(
            method=adapter.method.name,
            config=adapter.config,
            contract=adapter.contract,
            backbone=adapter.backbone,
            files=(),
        )
        return StoredAdapter(VersionRef(adapter.name, 1, digest), manifest, Path("unused"))


class Umbel:
    """The engine itself, driven by one thread."""

    name = "umbel"

    def __init__(self, folder: Path, quantise: Form | None = None) -> None:
        kernels = Kernels.wanted(Settings.load())
        self.backbone = load_backbone(folder, packed=True, quantise=quantise, kernels=kernels)
        self.source = InMemory()
        self.digests: list[str] = []
        if quantise is not None:
            self.name = f"umbel {quantise}"

    def can(self, work: Work) -> bool:
        """Quantised, the works that a peer runs quantised."""
        return self.backbone.quantised is None or not work.kinds

    def wear(self, work: Work) -> None:
        made = make_adapters(work, self.backbone.shape, self.backbone.fingerprint)
        self.digests = [f"sha256:{i:064x}" for i in range(len(made))]
        self.source.adapters = dict(zip(self.digests, made, strict=True))
        self.engine = Engine(
            self.backbone,
            self.source,
            kv_bytes=1 << 30,
            adapter_bytes=2 << 30,
            max_length=512,
            load=lambda stored: self.source.adapters[stored.ref.digest],
        )

    def run(self, work: Work, prompts: list[list[int]]) -> Round:
        start = time.perf_counter()
        handles = [
            self.engine.submit(
                GenerateRequest(
                    tokens=tuple(prompt),
                    adapter=None if worn is None else self.digests[worn],
                    max_tokens=work.new_tokens,
                    ignore_eos=True,
                )
            )
            for worn, prompt in zip(work.worn, prompts, strict=True)
        ]
        seen: list[list[float]] = [[] for _ in handles]
        more = True
        while more:
            more = self.engine.step()
            now = time.perf_counter()
            for times, handle in zip(seen, handles, strict=True):
                arrived = sum(isinstance(event, Token) for event in handle._events) - len(times)
                times += [now] * arrived
        seconds = time.perf_counter() - start
        gaps = [later - earlier for times in seen for earlier, later in itertools.pairwise(times)]
        tokens = sum(len(times) for times in seen)
        return Round(seconds, tokens, [times[0] - start for times in seen], gaps)


class HuggingFace:
    """transformers' ``generate`` with PEFT's mixed batches (``adapter_names``): bf16, all requests in one batch."""

    name = "HF + PEFT"

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.folder = folder
        self.load = lambda: AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16).eval()
        self.model = self.load()
        self.names: list[str] = []

    def can(self, work: Work) -> bool:
        return work.only_lora

    def wear(self, work: Work) -> None:
        import peft

        from umbel.backbone.config import read_config

        self.model, self.names = self.load(), []
        if not work.kinds:
            return
        with tempfile.TemporaryDirectory() as scratch:
            for i, adapter in enumerate(make_adapters(work, read_config(self.folder).shape, "")):
                folder = write_peft_folder(adapter, Path(scratch) / f"a{i}")
                if i == 0:
                    self.model = peft.PeftModel.from_pretrained(self.model, str(folder), adapter_name="a0").eval()
                else:
                    self.model.load_adapter(str(folder), adapter_name=f"a{i}")
                self.names.append(f"a{i}")

    @torch.inference_mode()
    def run(self, work: Work, prompts: list[list[int]]) -> Round:
        tokens = torch.tensor(prompts)
        names = ["__base__" if worn is None else self.names[worn] for worn in work.worn]
        mixed = {"adapter_names": names} if self.names else {}
        start = time.perf_counter()
        out = self.model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=work.new_tokens,
            min_new_tokens=work.new_tokens,
            do_sample=False,
            pad_token_id=0,
            **mixed,
        )
        return Round(time.perf_counter() - start, (out.shape[1] - tokens.shape[1]) * len(prompts))
