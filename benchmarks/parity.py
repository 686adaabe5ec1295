"""Every method under every output head, against somebody else's code: ``make parity`` prints the matrix.

peft -> umbel    a folder that PEFT made, imported here, gives PEFT's answer
umbel -> peft    a folder that umbel wrote, loaded with ``PeftModel.from_pretrained``, gives our answer
served           the engine (keys and values kept, chunked prompts, slots, company) gives the answer of one whole pass

fp32: the largest difference. bf16: the root mean square distance from our own float64, beside PEFT's.
float64: the engine against one whole pass. `tests/adapters/test_parity_matrix.py` runs the same cells, more random
backbones, and SmolLM2, where fp32 is judged by the distance from float64 too.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
import transformers
from benchmarks.oracles import LABELS, Oracle, noise_of
from torch import Tensor

from umbel.adapters.adapter import Adapter, fresh_adapter
from umbel.adapters.head import pool
from umbel.adapters.peft_io import export_files, import_folder
from umbel.adapters.wear import fuse_all, wear
from umbel.backbone.backbone import Backbone
from umbel.backbone.decoder import whole_step
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.core.contract import Contract, OutputHead
from umbel.core.manifest import Manifest
from umbel.core.protocols import StoredAdapter, VersionRef
from umbel.engine import Engine, GenerateRequest, PoolRequest
from umbel.training.trainee import runner

KEPT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "parity.json"
METHODS: dict[str, dict[str, object]] = {
    "lora": {"rank": 4},
    "llama_adapter": {"length": 5},
    "prefix": {"length": 5},
    "prompt": {"length": 7},
    "p_tuning": {"length": 4},
    "ia3": {},
    "bottleneck": {"width": 6},
    "none": {},
}
NOT_OURS = ("bottleneck", "none")
"""PEFT has no such method: our folder is judged by HF's modules with the formula as a hook."""
TEXTS = [torch.randint(0, 256, (20 + i,), generator=torch.Generator().manual_seed(i)) for i in range(12)]
"""Several, since one classifier's three bf16 numbers are too few for a root mean square."""
SENTENCES = (
    "The river rose overnight and took the old bridge with it.",
    "She counts the days until the harvest begins.",
    "A second cup of coffee never hurt anybody, he said.",
    "Nobody had opened the letter that came from the north.",
    "Three of the five lamps along the street were broken.",
    "It takes about an hour to walk around the lake.",
    "The baker closes early when the flour runs out.",
    "They painted the door green, and later blue again.",
    "Most of the birds had left before the first snow.",
    "My brother keeps his bicycle under the stairs.",
    "The train was late, so we talked about the weather.",
    "An old map of the city hangs behind the counter.",
)
ATOL = 2e-5
VIRTUAL = ("prefix", "prompt", "p_tuning")
"""On a real backbone PEFT's starts from ours, and ours from a text where it can: virtual tokens that look like none
take the backbone where small errors grow, PEFT's as ours."""
REAL_ATOL = 2e-4
"""On a real backbone, whose logits reach 34; or twice PEFT's own distance from float64, if that is more."""
REAL_HALF = 1.6
"""In bf16 on a real backbone. Twelve pooled texts are a small sample: over methods and directions ours is 0.97 of
PEFT's distance in the mean, and one ratio strays from it by a fifth."""
FLOAT64 = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One comparison. ``effect`` is how far the adapter moves the answer: below ten bounds nothing would be shown."""

    method: str
    head: str
    direction: str
    dtype: str
    figure: float
    bound: float
    effect: float

    @property
    def passes(self) -> bool:
        return self.figure <= self.bound and (self.dtype == "bfloat16" or self.effect > 10 * self.bound)


@dataclass(frozen=True, slots=True)
class Bed:
    """One backbone in three dtypes."""

    folder: Path
    backbones: dict[str, Backbone]
    real: bool = False

    @property
    def texts(self) -> list[Tensor]:
        """Sentences for a backbone that was trained on some: random tokens would drive it where nothing is exact."""
        encode = self.backbones["float32"].tokenizer.encode
        return [torch.tensor(encode(sentence)) for sentence in SENTENCES] if self.real else TEXTS


def make_bed(folder: Path, **changes: object) -> Bed:
    """A random tiny backbone: grouped heads, tied embeddings and an o_proj without a bias, unless changed."""
    return bed_of(tiny_backbone(folder / "tiny", **{"num_hidden_layers": 3, **changes}))


def bed_of(folder: Path, *, real: bool = False) -> Bed:
    dtypes = ("float32", "bfloat16", "float64")
    return Bed(folder, {name: load_backbone(folder, dtype=name) for name in dtypes}, real)


def cells(bed: Bed, method: str, head: OutputHead, scratch: Path) -> Iterator[Cell]:
    """Every direction and dtype of one method under one output head."""
    yield from exchanged(bed, method, head, scratch)
    yield from _served(bed, noisy_adapter(bed.backbones["float32"], method, head))


def exchanged(bed: Bed, method: str, head: OutputHead, scratch: Path) -> Iterator[Cell]:
    """Both directions between PEFT and here, as far as PEFT has them."""
    ours = noisy_adapter(bed.backbones["float32"], method, head, real=bed.real)
    write(scratch / "ours", ours)
    yield from _exchange(bed, ours, Oracles(bed, method, head, scratch / "ours"), "umbel -> peft")
    if method not in NOT_OURS and not (method == "llama_adapter" and head is not OutputHead.GENERATE):
        start = scratch / "ours" if bed.real and method in VIRTUAL else None
        theirs = Oracle(bed.folder, method, head, torch.float32).noisy(scratch / "theirs", start)
        adapter = _imported(bed, scratch / "theirs", head)
        yield from _exchange(bed, adapter, Oracles(bed, method, head, scratch / "theirs", theirs), "peft -> umbel")


class Oracles:
    """The same folder in HF and PEFT by dtype."""

    def __init__(self, bed: Bed, method: str, head: OutputHead, folder: Path, fp32: Oracle | None = None) -> None:
        self._made, self._texts = (bed.folder, method, head), bed.texts
        self._folder, self._fp32 = folder, fp32

    def answer(self, dtype: torch.dtype) -> Tensor:
        if self._fp32 is not None and dtype is torch.float32:
            return _joined(self._fp32.answer, self._texts)
        return _joined(Oracle(*self._made, dtype).loaded(self._folder).answer, self._texts)


def _exchange(bed: Bed, adapter: Adapter, oracles: Oracles, direction: str) -> Iterator[Cell]:
    told = {"method": adapter.method.name, "head": str(adapter.contract.output_head), "direction": direction}
    fp32, half, truth = (
        _joined(partial(whole, bed.backbones[name], adapter), bed.texts) for name in ("float32", "bfloat16", "float64")
    )
    effect = _effect(adapter, fp32, partial(whole, bed.backbones["float32"], adapter, bare=True), bed.texts)
    peft_fp32 = oracles.answer(torch.float32)
    if bed.real:
        figure, bound = _far(fp32, truth), max(REAL_ATOL, 2 * _far(peft_fp32, truth))
    else:
        figure, bound = _far(fp32, peft_fp32), ATOL
    yield Cell(**told, dtype="float32", figure=figure, bound=bound, effect=effect)
    theirs = rms(oracles.answer(torch.bfloat16), truth)
    bound = (REAL_HALF if bed.real else 1.25) * theirs + 0.01
    yield Cell(**told, dtype="bfloat16", figure=rms(half, truth), bound=bound, effect=effect)


def _served(bed: Bed, adapter: Adapter) -> Iterator[Cell]:
    """The engine's answer beside one whole pass in the same dtype; in bf16 both beside float64."""
    told = {"method": adapter.method.name, "head": str(adapter.contract.output_head), "direction": "served"}
    whole_passes = {
        name: _joined(partial(by_whole_pass, backbone, adapter), bed.texts) for name, backbone in bed.backbones.items()
    }
    truth = whole_passes["float64"]
    effect = _effect(adapter, truth, partial(by_whole_pass, bed.backbones["float64"], adapter, bare=True), bed.texts)
    for dtype, bound in (("float32", ATOL), ("float64", FLOAT64)):
        figure = _far(by_engine(bed.backbones[dtype], adapter), whole_passes[dtype])
        yield Cell(**told, dtype=dtype, figure=figure, bound=bound, effect=effect)
    half = bed.backbones["bfloat16"]
    bound = 1.25 * rms(whole_passes["bfloat16"], truth) + 0.01
    yield Cell(**told, dtype="bfloat16", figure=rms(by_engine(half, adapter), truth), bound=bound, effect=effect)


def noisy_adapter(backbone: Backbone, method: str, head: OutputHead, *, real: bool = False) -> Adapter:
    """A fresh adapter with noise on every tensor, so that it changes every answer."""
    options = METHODS[method] | ({"init_text": SENTENCES[0]} if real and method in ("prefix", "prompt") else {})
    labels = LABELS if head in (OutputHead.CLASSIFY, OutputHead.TAG) else ()
    contract = Contract(output_head=head, labels=labels)
    adapter = fresh_adapter(method, options, contract, backbone.shape, backbone=backbone.fingerprint, seed=1)
    adapter.weights.initialise(list(backbone.decoder.layers), runner(backbone))
    generator = torch.Generator().manual_seed(1001)
    for name, tensor in adapter.tensors.items():
        tensor += torch.randn(tensor.shape, generator=generator) * noise_of(name)
    adapter.weights.bake()
    return replace(adapter, digest="sha256:" + "1" * 64, name=f"{method}:1")


def write(folder: Path, adapter: Adapter) -> None:
    folder.mkdir(parents=True)
    for name, data in export_files(adapter, backbone_name="tiny").items():
        (folder / name).write_bytes(data)


def _imported(bed: Bed, folder: Path, head: OutputHead) -> Adapter:
    labels = LABELS if head in (OutputHead.CLASSIFY, OutputHead.TAG) else ()
    backbone = bed.backbones["float32"]
    contract = Contract(output_head=head) if head is OutputHead.REGRESS else None
    return import_folder(folder, backbone.shape, backbone=backbone.fingerprint, labels=labels, contract=contract)


@torch.no_grad()
def whole(backbone: Backbone, adapter: Adapter, text: Tensor, *, bare: bool = False) -> Tensor:
    """Logits or embedding of a text by one uncached pass; ``bare`` keeps the output head and drops the method."""
    virtual, past = (0, 0) if bare else (adapter.weights.num_virtual, adapter.weights.num_past)
    ids = torch.cat([torch.zeros(virtual, dtype=torch.long), text])[None]
    length = ids.shape[1]
    fused = [] if bare else fuse_all([adapter], dtype=backbone.dtype)
    step = whole_step(
        wear(fused, [0]),
        rows=1,
        tokens=length,
        offsets=torch.tensor([past]),
        want=torch.arange(length),
        want_sites=wear(fused, [0] * length),
    )
    output = backbone.decoder(ids, step)
    if adapter.contract.output_head is OutputHead.GENERATE:
        assert output.logits is not None
        return output.logits[virtual:]
    if adapter.head.pooling == "tokens":
        return adapter.head.logits(output.hidden[0, virtual:])
    pooled = pool(output.hidden, torch.tensor([length]), torch.tensor([virtual]), adapter.head.pooling)
    return adapter.head.logits(pooled)[0]


def by_whole_pass(backbone: Backbone, adapter: Adapter, text: Tensor, *, bare: bool = False) -> Tensor:
    """As the engine tells it: for ``generate`` the log-probability of each token of the text after the first."""
    answer = whole(backbone, adapter, text, bare=bare)
    if adapter.contract.output_head is not OutputHead.GENERATE:
        return answer
    wide = answer.to(torch.promote_types(answer.dtype, torch.float32)).log_softmax(-1)
    return wide[:-1].gather(1, text[1:, None])[:, 0]


def by_engine(backbone: Backbone, adapter: Adapter) -> Tensor:
    """All texts at once, in chunks of 16 tokens, between rows of the bare backbone."""
    engine = Engine(
        backbone, OneAdapter(adapter), kv_bytes=1 << 24, adapter_bytes=1 << 24, max_length=128, step_tokens=16,
        load=lambda stored: adapter,
    )  # fmt: skip
    try:
        mates = [engine.submit(GenerateRequest(tokens=tuple(text.tolist()), max_tokens=3)) for text in TEXTS[:3]]
        asked = [engine.submit(_request(adapter, tuple(text.tolist()))) for text in TEXTS]
        while engine.step():
            pass
        for mate in mates:
            mate.result()
        answers = [handle.result() for handle in asked]
    finally:
        engine.close()
    if adapter.contract.output_head is OutputHead.GENERATE:
        told = [entry.logprob for answer in answers for entry in answer.prompt[1:]]
        return torch.tensor(told, dtype=torch.float64)
    return torch.cat([answer.logits.flatten() for answer in answers if answer.logits is not None])


def _request(adapter: Adapter, tokens: tuple[int, ...]) -> GenerateRequest | PoolRequest:
    if adapter.contract.output_head is not OutputHead.GENERATE:
        return PoolRequest(tokens=tokens, adapter=adapter.digest)
    return GenerateRequest(tokens=tokens, adapter=adapter.digest, echo=True, logprobs=0, max_tokens=0)


@dataclass(frozen=True, slots=True)
class OneAdapter:
    """An ``AdapterSource`` of one adapter in memory."""

    adapter: Adapter

    def resolve(self, model: str) -> VersionRef:
        return VersionRef("one", 1, self.adapter.digest)

    def fetch(self, digest: str) -> StoredAdapter:
        manifest = Manifest(
            method=self.adapter.method.name, config={}, contract=self.adapter.contract,
            backbone="sha256:" + "0" * 64, files=(),
        )  # fmt: skip
        return StoredAdapter(VersionRef("one", 1, digest), manifest, Path())


def _joined(answer: Callable[[Tensor], Tensor], texts: Sequence[Tensor]) -> Tensor:
    return torch.cat([answer(text).flatten() for text in texts])


def _effect(adapter: Adapter, answers: Tensor, bare: Callable[[Tensor], Tensor], texts: Sequence[Tensor]) -> float:
    """Largest change by the method; ``none`` has none, there the answers themselves must not be near zero."""
    return float(answers.abs().max()) if adapter.method.name == "none" else _far(answers, _joined(bare, texts))


def _far(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


def rms(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().mean().sqrt())


def all_cells() -> list[Cell]:
    with tempfile.TemporaryDirectory() as folder:
        bed = make_bed(Path(folder))
        return [
            cell
            for method in METHODS
            for head in OutputHead
            for cell in cells(bed, method, head, Path(folder) / method / head)
        ]


def rows(found: list[dict[str, object]]) -> list[str]:
    """The matrix as a Markdown table: method and output head by direction and dtype."""
    columns = list(dict.fromkeys((str(cell["direction"]), str(cell["dtype"])) for cell in found))
    by_place = {(c["method"], c["head"], c["direction"], c["dtype"]): c for c in found}
    lines = [
        "| method | output head | " + " | ".join(f"{direction}, {dtype}" for direction, dtype in columns) + " |",
        "| --- | --- |" + " --- |" * len(columns),
    ]
    for method, head in dict.fromkeys((str(c["method"]), str(c["head"])) for c in found):
        told = [_told(by_place.get((method, head, *column))) for column in columns]
        lines.append(f"| `{method}` | `{head}` | " + " | ".join(told) + " |")
    return lines


def _told(cell: dict[str, object] | None) -> str:
    return "" if cell is None else f"{cell['figure']:.0e} of {cell['bound']:.0e}"


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = all_cells()
    print("\n".join(rows([asdict(cell) for cell in found])))
    if failed := [cell for cell in found if not cell.passes]:
        sys.exit("\n".join(f"FAILED {cell}" for cell in failed))
    KEPT.write_text(json.dumps([_rounded(cell) for cell in found], indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(found)} cells, all within their bounds; kept in {KEPT.name}, which `make docs` shows")


def _rounded(cell: Cell) -> dict[str, object]:
    told = asdict(cell)
    return {**told, **{name: float(f"{told[name]:.1e}") for name in ("figure", "bound", "effect")}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
