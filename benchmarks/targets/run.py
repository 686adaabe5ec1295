"""`make bench-targets`: the engine's targets that need no other system, measured in one run.

Writes docs/benchmarks/targets.md and targets.json after every row, so that an interrupted run keeps what it has.
`--short` takes under ten minutes, the full form under half an hour; `--only c,d` measures some rows and leaves the
others as they were.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.run import BACKBONE, facts
from benchmarks.targets import cold, crowd, flood, gaps, limit, memory, server, slots, step_cost, table
from benchmarks.targets.bench import Bench
from benchmarks.targets.found import Found

from umbel.backbone.installed import find
from umbel.backbone.loading import load_backbone
from umbel.backbone.native import Kernels
from umbel.core.anew import spinning, start_anew
from umbel.core.settings import Settings

Measure = Callable[[Bench], dict[str, Found]]
PARTS: dict[str, Measure] = {
    "a": step_cost.measure,
    "b": limit.measure,
    "c": slots.measure,
    "d": cold.measure,
    "e": gaps.measure,
    "f": flood.measure,
    "g": memory.measure,
    "h": crowd.measure,
    "i": server.measure,
}


def main() -> None:
    start_anew(spinning)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer rounds")
    parser.add_argument("--only", type=_parts, default=list(PARTS), metavar="LETTERS", help="such as c,d")
    parser.add_argument("--out", type=Path, default=table.KEPT, help="the JSON file; the page lies beside it")
    args = parser.parse_args()
    folder = find(Settings.load(), BACKBONE).folder
    bench = Bench(load_backbone(folder, packed=True, kernels=Kernels.wanted(Settings.load())), folder, short=args.short)
    try:
        for letter in args.only:
            start = time.perf_counter()
            keep(args.out, PARTS[letter](bench), short=args.short)
            print(f"{letter} took {time.perf_counter() - start:.0f} s", flush=True)
    finally:
        bench.close()
    print("\n".join(table.lines(table.kept(args.out))))


def _parts(text: str) -> list[str]:
    letters = [letter for letter in text.replace(",", " ").split() if letter]
    if not letters or not set(letters) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text!r} is not some of {','.join(PARTS)}")
    return letters


def keep(file: Path, found: dict[str, Found], *, short: bool) -> None:
    """Puts rows into the page beside those that were measured before."""
    report = table.kept(file)
    report["machine"] = facts()
    today = datetime.now(UTC).date().isoformat()
    for key, one in found.items():
        report["rows"][key] = asdict(one) | {"short": short, "day": today}
        print(f"{key:14} {one.value:8.2f}  ({one.low:.2f} - {one.high:.2f})  {one.detail}", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(table.page(report), encoding="utf-8")


if __name__ == "__main__":
    main()
