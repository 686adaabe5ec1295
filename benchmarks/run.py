"""`make bench`: the same work given to each system in one run, alternating, medians of several rounds.

Writes docs/benchmarks/serving.md and serving.json. `--short` measures the 32-request works only, in about ten minutes.
"""

import argparse
import json
import os
import platform as machine
import statistics
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from benchmarks.systems import HuggingFace, Round, System, Umbel
from benchmarks.work import NEW_TOKENS, PROMPT_TOKENS, Work, works

from umbel.core.anew import spinning, start_anew
from umbel.core.settings import Settings

BACKBONE = "smollm2-135m-instruct"
OUT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


def main() -> None:
    start_anew(spinning)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="only the works of 32 requests")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds of each work, after one to warm up")
    args = parser.parse_args()
    folder = Settings.load().backbones / BACKBONE
    systems: list[System] = [Umbel(folder), HuggingFace(folder)]
    rows = [measure(work, systems, args.rounds) for work in works(short=args.short)]
    OUT.mkdir(parents=True, exist_ok=True)
    report = {"machine": facts(), "works": rows}
    (OUT / "serving.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = page(report)
    (OUT / "serving.md").write_text(text, encoding="utf-8")
    print(text)


def measure(work: Work, systems: list[System], rounds: int) -> dict[str, Any]:
    """Systems take turns within each round, so that a slow minute of the machine hits all of them."""
    taking_part = [system for system in systems if system.can(work)]
    for system in taking_part:
        system.wear(work)
    kept: dict[str, list[Round]] = {system.name: [] for system in taking_part}
    for number in range(rounds + 1):
        prompts = work.prompts(40_000, seed=number)
        for system in taking_part:
            measured = system.run(work, prompts)
            if number:
                kept[system.name].append(measured)
            print(f"{work.name:32} {system.name:10} {measured.rate:8.1f} tokens/s", flush=True)
    return {"work": work.name, "requests": work.concurrent, **{name: summary(found) for name, found in kept.items()}}


def summary(rounds: list[Round]) -> dict[str, float]:
    found = {"tokens_per_s": statistics.median(r.rate for r in rounds)}
    first = [seconds for r in rounds for seconds in r.first]
    gaps = [seconds for r in rounds for seconds in r.gaps]
    if first:
        found |= {f"ttft_p{p}_ms": 1e3 * quantile(first, p) for p in (50, 95)}
        found |= {f"gap_p{p}_ms": 1e3 * quantile(gaps, p) for p in (50, 95, 99)}
    return {key: round(value, 1) for key, value in found.items()}


def quantile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


def facts() -> dict[str, Any]:
    packages = ("torch", "transformers", "peft", "umbel")
    return {
        "processor": machine.processor() or machine.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": machine.python_version(),
        **{name: version(name) for name in packages},
    }


def page(report: dict[str, Any]) -> str:
    lines = [
        "# Serving, measured",
        "",
        f"{PROMPT_TOKENS} random prompt tokens and {NEW_TOKENS} greedy tokens per request, all requests at once, bf16,",
        f"{BACKBONE}; generated tokens per second end to end, prefill included. LoRA: rank 16 on all seven linears.",
        "Medians; the systems take turns in one run. `make bench` prints this page again.",
        "",
        "| work | umbel | HF + PEFT | ratio | umbel: first token p50 / p95 | gap p50 / p99 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["works"]:
        ours, theirs = row["umbel"], row.get("HF + PEFT")
        other = f"{theirs['tokens_per_s']:.0f}" if theirs else "cannot"
        ratio = f"{ours['tokens_per_s'] / theirs['tokens_per_s']:.1f}x" if theirs else ""
        lines.append(
            f"| {row['work']} | {ours['tokens_per_s']:.0f} | {other} | {ratio} "
            f"| {ours['ttft_p50_ms']:.0f} / {ours['ttft_p95_ms']:.0f} ms "
            f"| {ours['gap_p50_ms']:.0f} / {ours['gap_p99_ms']:.0f} ms |"
        )
    lines += ["", "Machine: " + ", ".join(f"{key} {value}" for key, value in report["machine"].items()) + "."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
