"""The table of targets: what is measured, its floor, where we want to be, and what bounds a row that is not there."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.run import BACKBONE, OUT

KEPT = OUT / "targets.json"
NOT_YET = "not measured"


@dataclass(frozen=True, slots=True)
class Target:
    """One row. Ratios of ``x`` and milliseconds are to be at most, ``%`` at least, what is written; ``at_least`` turns
    a ratio round."""

    key: str
    part: str
    """The letter of ``--only``."""
    name: str
    floor: float
    want: float
    unit: Literal["x", "%", "ms"]
    at_least: bool = False
    bound: str = ""
    """What keeps it from ``want``, as far as that is known."""

    def reaches(self, value: float, goal: float) -> bool:
        return value >= goal if self.at_least else value <= goal

    def met(self, value: float) -> str:
        if self.reaches(value, self.want):
            return "want"
        return "floor" if self.reaches(value, self.floor) else "missed"

    def told(self, value: float) -> str:
        digits = 2 if self.unit == "x" and value < 10 else 0
        return f"{value:.{digits}f}{'' if self.unit == 'x' else ' '}{self.unit}"


_PRODUCTS = (
    "weights that lie in a cache already would take more than half as long: each number of B is widened to fp32 and "
    "used by the few rows that wear its adapter. Those that do not come in pieces of 2 to 50 KB, which a core reads at "
    "half the pace of the one long stretch that the bandwidth is measured on."
)
_CALLS = (
    "there is little to read, and it lies in pieces of 20 to 100 KB at 240 places of a step: at each of them threads "
    "meet before and after a few microseconds of work; and keys of a prefix are read beside the adapters. The 2 ms are "
    "the difference of two steps of 16, and what they are divided by is read at 42 or at 65 GB/s, by where the host "
    "laid the pages of this very process: six runs within three hours said 2.97x to 5.68x, whole ones 2.8x to 3.2x."
)
_LOADS = (
    "a load is some 25 ms of one core (hashing 10 MB, reading and checking, scaling and fusing 420 tensors), the "
    "disk's own time, and the copy into a slot; where the one before was kept meanwhile, that comes first."
)
_PAUSES = (
    "a step after which the loader has its turn is 1.4 times as long (`engine/turns.py`). Longer is the one that reads "
    "the newcomer's prompt: 24 rows where eight decode, and a copy into a slot; and before it, where the form is kept, "
    "some 4 ms in which the step waits for it to be read."
)
_KEPT = (
    "a form that was kept is read back in some 4 ms and copied into its slot in 2, before the step that begins the "
    "row, and that takes some 45; other rows' prompts are read meanwhile."
)
_MEMORY = (
    "beside weights, adapters, keys and values lie the tokenizer (17 MB), pages of keys that are written in part (16), "
    "kernels, and heap that is free in pieces too small to give back."
)
_FLOOD = (
    "all rows are taken when a quiet adapter asks: it waits for the step that runs and for one row to end, in steps "
    "of 32 rows and the flood's prompts where without the flood they have 16 rows."
)
_HTTP = (
    "each token is a line that is written to a socket of its own, on the cores that decode: most of that is the "
    "system's way through a socket, which is as long for a line as for an answer. What it takes of the cores the step "
    "has not, and the shorter the step is, the more that weighs."
)
TARGETS = (
    Target(
        "step-8",
        "a",
        "adapters' part of a decode step over reading their bytes once: 8 LoRAs",
        3,
        1.5,
        "x",
        bound=_PRODUCTS,
    ),
    Target("step-32", "a", "the same, 32 LoRAs", 3, 1.5, "x", bound=_PRODUCTS),
    Target("step-mixed", "a", "the same, 8 methods mixed", 3, 1.5, "x", bound=_CALLS),
    Target("limit-bare", "b", "share of the machine's limit, 32 requests, bare", 35, 60, "%", at_least=True),
    Target("limit-8", "b", "the same, 8 LoRAs", 35, 60, "%", at_least=True),
    Target(
        "slots-uniform",
        "c",
        "p50 to first token, 4x more adapters than slots over all resident: uniform",
        1.5,
        1.1,
        "x",
        bound=_KEPT,
    ),
    Target("slots-zipf", "c", "the same, Zipf", 1.5, 1.1, "x", bound=_KEPT),
    Target(
        "cold", "d", "store to first token, 10 MB nobody has touched, p95 above resident", 150, 50, "ms", bound=_LOADS
    ),
    Target("gap", "e", "longest pause of steady rows while adapters load, over the median", 3, 1.5, "x", bound=_PAUSES),
    Target(
        "flood",
        "f",
        "p95 to first token of 16 steady rows beside a flood of 100x, over without",
        2,
        1.3,
        "x",
        bound=_FLOOD,
    ),
    Target("memory", "g", "memory over backbone, adapters' own bytes, keys and values", 1.15, 1.05, "x", bound=_MEMORY),
    Target("crowd", "h", "throughput over 2,000 adapters (Zipf) over 8 of them", 0.8, 0.9, "x", at_least=True),
    Target(
        "http-stream",
        "i",
        "throughput over HTTP, streaming, of the engine's own",
        95,
        95,
        "%",
        at_least=True,
        bound=_HTTP,
    ),
    Target("http-plain", "i", "the same, plain", 95, 95, "%", at_least=True),
)


def kept(file: Path) -> dict[str, Any]:
    """What was measured last, by row."""
    if not file.is_file():
        return {"machine": {}, "rows": {}}
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return report


def lines(report: dict[str, Any]) -> list[str]:
    """The table alone."""
    return [
        "| | | floor | want | measured | spread | met | what was seen |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_line(target, report["rows"].get(target.key)) for target in TARGETS),
    ]


def _line(target: Target, found: dict[str, Any] | None) -> str:
    sign = "≥ " if target.at_least else "≤ "
    head = f"| {target.part} | {target.name} | {sign}{target.told(target.floor)} | {sign}{target.told(target.want)} |"
    if found is None:
        return f"{head} {NOT_YET} | | | |"
    spread = f"{target.told(found['low'])} - {target.told(found['high'])}"
    short = " (short form)" if found["short"] else ""
    return (
        f"{head} {target.told(found['value'])} | {spread} | {target.met(found['value'])} | {found['detail']}{short} |"
    )


def page(report: dict[str, Any]) -> str:
    rows = report["rows"]
    short_of = [t for t in TARGETS if t.bound and t.key in rows and t.met(rows[t.key]["value"]) != "want"]
    told = [f"- **{target.part}, {target.name}**: {target.bound}" for target in short_of]
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items()) or NOT_YET
    return "\n".join(
        [
            "# Targets of the engine, measured",
            "",
            f"Printed by `make bench-targets`: {BACKBONE}, bf16. Both sides of a ratio take turns in one run; medians,",
            "with the least and the most of the rounds (of a: the quartiles of all steps). How a row is measured is",
            "told at the head of its file in `benchmarks/targets/`. *met* is `want`, `floor` or `missed`. Throughput",
            "beside other systems is in [serving.md](serving.md), by `make bench` and `make bench-peers`.",
            "",
            *lines(report),
            *(["", "What bounds the rows that are not where we want them:", "", *told] if told else []),
            "",
            f"Machine: {machine}.",
            "",
        ]
    )
