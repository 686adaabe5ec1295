"""`make bench-memory`: what kept beginnings of prompts save, and what admitting rows early wins.

Both ways take turns within one run on SmolLM2, bf16; docs/benchmarks/memory.md is written. About three minutes.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.run import BACKBONE, OUT, facts
from benchmarks.systems import InMemory

from umbel.backbone.backbone import Backbone
from umbel.backbone.installed import find
from umbel.backbone.loading import load_backbone
from umbel.backbone.native import Kernels
from umbel.core.anew import spinning, start_anew
from umbel.core.settings import Settings
from umbel.engine import Engine, GenerateRequest, Handle, Token

SHARED, OWN = 256, 16
"""Tokens that all prompts begin with, and each prompt's own."""
PROMPT, LONGEST, PLACES = 64, 448, 2048
"""Of the second table: tokens of a prompt, ``max_tokens``, and tokens whose keys and values there is room for."""


@dataclass(frozen=True, slots=True)
class Case:
    """Requests whose answers end early, or only at ``max_tokens``."""

    name: str
    requests: list[GenerateRequest]


def main() -> None:
    start_anew(spinning)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT / "memory.md")
    args = parser.parse_args()
    backbone = load_backbone(
        find(Settings.load(), BACKBONE).folder, packed=True, kernels=Kernels.wanted(Settings.load())
    )
    lines = [*first_tokens(backbone, 4 * args.rounds), "", *admission(backbone, args.rounds)]
    told = ", ".join(f"{key} {value}" for key, value in facts().items())
    text = "\n".join(["# Memory for keys and values, measured", "", *lines, "", f"Machine: {told}.", ""])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)


def engine_of(backbone: Backbone, tokens: int, **options: Any) -> Engine:
    return Engine(backbone, InMemory(), kv_bytes=tokens * backbone.kv_bytes_per_token, adapter_bytes=0, **options)


def prompts(count: int, own: int, seed: int) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(ids) for ids in torch.randint(10, 40_000, (count, own), generator=generator).tolist()]


def until_first(engine: Engine, requests: Sequence[GenerateRequest]) -> list[float]:
    """Seconds to each request's first token, all submitted at once."""
    start = time.perf_counter()
    handles = [engine.submit(request) for request in requests]
    found: dict[Handle, float] = {}
    while len(found) < len(handles):
        engine.step()
        now = time.perf_counter() - start
        found |= {handle: now for handle in handles if handle not in found and handle.done}
    return [found[handle] for handle in handles]


def first_tokens(backbone: Backbone, rounds: int) -> list[str]:
    """One request at a time on a beginning that is known, and eight at once on one that nobody has read yet."""
    with_cache, without = engine_of(backbone, 8192), engine_of(backbone, 8192, prefix_bytes=0)
    (system,) = prompts(1, SHARED, seed=0)
    seconds: dict[tuple[str, Engine], list[float]] = {}
    for number in range(rounds + 1):
        single = [ask(system + own) for own in prompts(1, OWN, seed=100 + number)]
        fresh = prompts(1, SHARED, seed=200 + number)[0]
        burst = [ask(fresh + own) for own in prompts(8, OWN, seed=300 + number)]
        for engine in (with_cache, without):
            for name, requests in (("1 request, beginning known", single), ("8 at once, beginning new", burst)):
                times = until_first(engine, requests)
                if number:
                    seconds.setdefault((name, engine), []).extend(times)
    lines = [
        f"Milliseconds to the first token; {SHARED} tokens that all prompts begin with, {OWN} of their own; medians.",
        "",
        "| work | kept beginnings | none kept | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(name for name, _ in seconds):
        ours, plain = (1e3 * statistics.median(seconds[name, engine]) for engine in (with_cache, without))
        lines.append(f"| {name} | {ours:.0f} | {plain:.0f} | {plain / ours:.1f}x |")
    return lines


def ask(tokens: tuple[int, ...]) -> GenerateRequest:
    return GenerateRequest(tokens=tokens, max_tokens=1, ignore_eos=True)


def admission(backbone: Backbone, rounds: int) -> list[str]:
    stops = tuple(range(0, backbone.shape.vocab, 25))
    settings = {"max_tokens": LONGEST, "temperature": 1.0, "ignore_eos": True}
    asked = [GenerateRequest(tokens=ids, seed=i, **settings) for i, ids in enumerate(prompts(32, PROMPT, seed=1))]
    cases = [
        Case("32 requests, short answers", [replace(request, stop_token_ids=stops) for request in asked]),
        Case("8 requests, longest answers", asked[:8]),
    ]
    lines = [
        f"Generated tokens per second; prompts of {PROMPT} tokens, max_tokens {LONGEST}, keys and values of {PLACES:,}",
        "tokens; medians. *Longest answer reserved* admits a row only where its longest answer fits (`saved_bytes` 0).",
        "",
        "| work | tokens per answer | admitted early | rows that made room | longest answer reserved | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        early, reserved = engine_of(backbone, PLACES), engine_of(backbone, PLACES, saved_bytes=0)
        rates: dict[Engine, list[float]] = {early: [], reserved: []}
        for _ in range(rounds):
            for engine, found in rates.items():
                rate, tokens = generate(engine, case.requests)
                found.append(rate)
        ours, theirs = (statistics.median(found) for found in rates.values())
        each, made_room = tokens / len(case.requests), early.stats().preemptions / rounds
        lines.append(
            f"| {case.name} | {each:.0f} | {ours:.0f} | {made_room:.0f} | {theirs:.0f} | {ours / theirs:.1f}x |"
        )
    return lines


def generate(engine: Engine, requests: Sequence[GenerateRequest]) -> tuple[float, int]:
    """Generated tokens per second, and how many there were."""
    start = time.perf_counter()
    handles = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    tokens = sum(isinstance(event, Token) for handle in handles for event in handle)
    return tokens / (time.perf_counter() - start), tokens


if __name__ == "__main__":
    main()
