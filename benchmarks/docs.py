"""`make docs`: the pages that are made from the code, so that they cannot say anything else.

docs/methods.md    methods, output heads, and every method of PEFT
docs/training.md   every key of a task file, which is every flag of `umbel train`
docs/benchmarks/targets.md   what `make bench-targets` measured last
docs/benchmarks/peers.md   the same of `make bench-peers`
docs/benchmarks/without-bf16/peers.md   the same on a processor that does not multiply bf16
docs/benchmarks/quantised.md   as `make bench-quantised` measured it last
"""

import ast
import inspect
import json
import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from benchmarks import fresh, parity, quantised
from benchmarks.peers import page as peers
from benchmarks.run import OUT
from benchmarks.targets import table as targets
from peft import PeftType

from umbel.adapters import catalog
from umbel.adapters.as_lora import CONVERTIBLE, WHY_NOT
from umbel.core.shape import BackboneShape
from umbel.training.data.rows import FORMS
from umbel.training.task import Task

DOCS = Path(__file__).resolve().parents[1] / "docs"
SMOL = BackboneShape(hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, intermediate=1536, vocab=49152)


def main() -> None:
    check = "--check" in sys.argv
    stale = [name for name, text in pages().items() if not keep(DOCS / name, text, check=check)]
    if stale:
        sys.exit(f"stale: {', '.join(stale)}; run make docs")


def pages() -> dict[str, str]:
    return {
        "methods.md": methods_page(),
        "training.md": training_page(),
        "benchmarks/targets.md": targets.page(targets.kept(targets.KEPT)),
        **{f"benchmarks/{folder}peers.md": peers_page(OUT / folder) for folder in ("", "without-bf16/")},
        "benchmarks/quantised.md": quantised.page(json.loads(quantised.KEPT.read_text(encoding="utf-8"))),
    }


def peers_page(folder: Path) -> str:
    return peers.page(json.loads((folder / "peers.json").read_text(encoding="utf-8")))


def keep(path: Path, text: str, *, check: bool) -> bool:
    if check:
        return path.is_file() and path.read_text(encoding="utf-8") == text
    path.write_text(text, encoding="utf-8")
    return True


def methods_page() -> str:
    return "\n".join(
        [
            "# Methods and output heads",
            "",
            "Made by `make docs` from the catalog. Every method is served under every output head, and any of them",
            "share one batch (`tests/adapters`, `tests/engine`). `umbel train` trains every method under the heads",
            "`generate`, `classify` (several labels a row too), `regress`, `tag` and `embed`.",
            "",
            "| method | what it learns | parameters on SmolLM2-135M | a fresh one changes nothing | PEFT's name "
            "| output head in PEFT's file |",
            "| --- | --- | --- | --- | --- | --- |",
            *(method_row(name) for name in sorted(catalog.methods())),
            "",
            "## Output heads",
            "",
            "| head | what it reads | what it is |",
            "| --- | --- | --- |",
            *(head_row(head) for head in catalog.heads().values()),
            "",
            "A classifier or regressor may have a few connected layers (`--head-depth`, `--head-width`); PEFT's format",
            "cannot carry those, so they are kept in `umbel_extra.safetensors`.",
            "",
            "## Every method of PEFT",
            "",
            "`umbel adapters import DIR --name N --as-lora` measures what a method does to each linear layer, writes",
            "that as LoRA, tells what was lost and refuses above a bound ([peft.md](peft.md)).",
            "",
            "| PEFT type | here |",
            "| --- | --- |",
            *(peft_row(kind.value) for kind in sorted(PeftType, key=lambda kind: kind.value)),
            "",
            *fresh_lines(),
            *parity_lines(),
        ]
    )


def fresh_lines() -> list[str]:
    """What `make fresh` measured last on SmolLM2."""
    return [
        "## What a fresh adapter changes",
        "",
        "Printed by `make fresh`: SmolLM2-135M in bf16, six texts, every place, before the first step of training.",
        "Methods that start from zero leave every bit; `tests/engine/test_fresh_adapters.py` holds them to it, served,",
        "in fp32 and bf16. LoRA's `token_rows` and `full_copies` stand in place of the backbone's rows and multiply",
        "equal numbers anew, so fp32 differs by rounding. Keys or tokens before a text are something to attend to,",
        "whatever they hold: a fresh `prefix`, `prompt` or `p_tuning` changes the answers until it is trained. Logits",
        "are taken about their place's mean, since a shift of all changes no probability; `of` is the bare logits' own",
        "root mean square.",
        "",
        *fresh.rows(json.loads(fresh.KEPT.read_text(encoding="utf-8"))),
        "",
    ]


def parity_lines() -> list[str]:
    """The matrix as `make parity` measured it last; the tests hold every cell to its bound anew."""
    return [
        "## Parity",
        "",
        "Printed by `make parity`, and run by `make test` (`tests/adapters/test_parity_matrix.py`): figure of",
        "bound, on a random tiny backbone and 12 texts, by adapters with noise on every tensor that move the answer",
        "by more than ten bounds. `float32` is the largest difference from PEFT (for `bottleneck` and `none`, which",
        "PEFT does not have, from Hugging Face's modules with the formula as a hook). `bfloat16` is the root mean",
        "square distance from our own float64; its bound is 1.25 times PEFT's distance + 0.01. `served` is the",
        "engine, in company and with the prompt cut into chunks, beside one whole pass. Empty: PEFT has no such",
        "folder. The same test takes every method, under `generate` and `classify`, both ways over two more random",
        "backbones (untied with a key head for each query head and llama3's RoPE; one key head, biases and wide",
        "heads) and over SmolLM2-135M, where float32 is judged by its distance from float64 beside PEFT's own.",
        "",
        *parity.rows(json.loads(parity.KEPT.read_text(encoding="utf-8"))),
        "",
    ]


def method_row(name: str) -> str:
    method = catalog.method(name)
    config = catalog.configure(name, {})
    count = sum(_numel(size) for size in method.weights.expected(config, SMOL).values())
    saved = "yes" if method.peft_type and method.peft_saves_head else "no, beside it" if method.peft_type else ""
    zero = "yes" if method.zero_start else "no"
    return (
        f"| `{name}` | {method.summary} | {count:,} | {zero} | {method.peft_type or 'none; our own format'} | {saved} |"
    )


def head_row(head: type[Any]) -> str:
    first = (inspect.getdoc(inspect.getmodule(head)) or "").split("\n")[0]
    own = {"generate": "nothing"}.get(head.kind, "the last token, or the mean")
    reads = {"tag": "each token", "embed": "the mean, or the last token"}.get(head.kind, own)
    return f"| `{head.kind}` | {reads} | {first} |"


def peft_row(kind: str) -> str:
    served = {method.peft_type: name for name, method in catalog.methods().items() if method.peft_type}
    told = [f"`{served[kind]}`: trained, served, read and written"] if kind in served else []
    if kind in CONVERTIBLE:
        told.append("other forms of it by `--as-lora`" if told else "converted to `lora` by `--as-lora`")
    return f"| {kind} | {'; '.join(told) or f'refused by name: {WHY_NOT[kind]}'} |"


def training_page() -> str:
    lines = [
        "# Every key of a task file",
        "",
        "Made by `make docs` from the code. A task is a TOML file, or flags of `umbel train`: `max_length = 128` in a",
        "file is `--max-length 128`. An unknown key is an error that names the nearest known one.",
        "",
        *table(Task, skip=("options",)),
        "",
        "## Rows",
        "",
        "JSONL, one object per line; keys beyond these are left alone. A row of another form is refused with its line.",
        "",
        *(f"- `{form}`" for form in FORMS.values()),
        "",
        "Any row may have a `weight` above 0 (1 where it has none): each of its supervised tokens, words, or the row",
        "itself counts so much in the loss, which is divided by the sum of the weights of the whole step, so",
        "micro-batches change nothing. Metrics on held-out rows are not weighted.",
        "",
        "CSV (`.csv`, or `.tsv` with tabs) is read wherever JSONL is: the header's names are the keys above, or are",
        "mapped to them by `--text-column` and `--label-column`. `tokens` and `tags` are words with spaces between; a",
        "list (several labels, `messages`) is JSON in its cell.",
        "",
        "## Files larger than memory",
        "",
        "Rows of a file of more than 64 MB (`UMBEL_SPOOL_GB=0.064`) are not held in memory. They and their tokens",
        "lie in nameless files in the home's cache, which are gone with the process, and each is read when its step",
        "comes; what is held is about a hundred bytes a row. Checks, splits, shuffling, buckets and resuming are",
        "the same, and so is every byte of the adapter (`tests/training/test_spool.py`).",
        "",
        "## How rows lie in a pass",
        "",
        "Rows of like length share a batch and a pass, so little is padded (`python -m benchmarks.packing` prints how",
        "much). With `umbel train --pack` several short rows of one task share one sequence: positions start anew with",
        "each, attention stays inside it, virtual tokens and a prefix are each row's own. Loss and gradients are those",
        "of padded rows for every method and output head (`tests/training/test_packing.py`, float64, dropout on).",
        "",
        "It is off by default, because on CPU it does not pay: with tweets, 16 rows a step, batches by length pad",
        "5.1 % of the places and packed lines 3.0 %, but longer attention costs more: 0.75 times the tokens a second",
        "(SmolLM2-135M in bf16, one core, three steps of each in turn; two equal layouts differed by 7 % in that run).",
        "",
        "## How long it takes, and what it holds in memory",
        "",
        "The time that the plan tells comes from a few passes of this very training, tried before its first step",
        "([decisions/0013](decisions/0013-the-time-a-training-takes.md)); `make bench-training` compares it with what",
        "nine kinds of training then took. Patience may end one sooner; judging comes on top.",
        "",
        "The plan's memory is what the process holds when it is told, the optimizers' states that come, and",
        "the largest pass of the training, found by running that one on tensors that have a shape but no bytes;",
        "of a backbone in shards also the copy that a checkpoint is written from. To these it adds what oneDNN keeps",
        "of the pass's products and what glibc cannot use again. No estimate is below what loading the backbone held;",
        "with several processes it is of each. `make bench-training` measures its error for fifteen trainings of",
        "SmolLM2, each in a process of its own (its page: [benchmarks/training.md](benchmarks/training.md)).",
        "",
        "So that a process holds little more than its tensors take, however ragged its rows: oneDNN's caches of",
        "kernels, one for every shape, are bounded (`ONEDNN_PRIMITIVE_CACHE_CAPACITY` and `LRU_CACHE_CAPACITY`,",
        "where you set none); blocks of 8 MB and more are mapped by themselves; and `umbel train`, `worker` and",
        "`runs resume` start anew with `GLIBC_TUNABLES=glibc.malloc.tcache_count=0`, since the edges of torch's",
        "aligned blocks would else lie between them for good. A program that calls `fit` itself sets that one",
        "before it starts; without it the plan counts a third more.",
        "",
        "## Options of each method",
    ]
    for name in sorted(catalog.methods()):
        lines += ["", f"### `{name}`", "", *table(catalog.method(name).config)]
    return "\n".join(lines) + "\n"


def table(config: type[Any], skip: tuple[str, ...] = ()) -> list[str]:
    found = [field for field in fields(config) if field.name not in skip]
    if not found:
        return ["No options."]
    said = docstrings(config)
    return ["| key | default | meaning |", "| --- | --- | --- |"] + [
        f"| `{field.name}` | {default(field)} | {said.get(field.name, '')} |" for field in found
    ]


def default(field: "Field[Any]") -> str:
    if field.default is not MISSING:
        value = list(field.default) if isinstance(field.default, tuple) else field.default
        return f"`{value}`" if value != "" else "empty"
    return "`{}`" if field.default_factory is not MISSING else "required"


def docstrings(config: type[Any]) -> dict[str, str]:
    """The sentence under each field."""
    tree = ast.parse(inspect.getsource(config)).body[0]
    assert isinstance(tree, ast.ClassDef)
    said: dict[str, str] = {}
    for entry, following in zip(tree.body, tree.body[1:], strict=False):
        named = isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)
        if named and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            said[entry.target.id] = " ".join(str(following.value.value).split()).replace("|", "\\|")
    return said


def _numel(size: tuple[int, ...]) -> int:
    count = 1
    for n in size:
        count *= n
    return count


if __name__ == "__main__":
    main()
