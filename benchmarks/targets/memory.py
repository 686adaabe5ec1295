"""g. Memory of a serving process, less what imports take, over what must lie in it.

A process of its own imports all that serving needs (a process before it told which modules loading a tokenizer brings)
and looks at its resident set (VmRSS), loads the backbone packed, makes 32 adapters of the stock resident (10 MB each,
from the registry) and runs 32 rows over them, 128 prompt tokens and 64 new ones; half way through the answers it looks
again. The difference, divided by the checkpoint's bytes, the adapters' own and those of keys and values that rows have
written or that are kept of prompts.
"""

import importlib
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.targets.bench import KV_BYTES, PLENTY, Bench
from benchmarks.targets.drive import Driver, ask, prompts
from benchmarks.targets.found import Found

from umbel.backbone.fingerprint import weight_files
from umbel.backbone.loading import load_backbone
from umbel.backbone.native import Kernels
from umbel.backbone.tokenizer import load_tokenizer
from umbel.core.settings import Settings
from umbel.engine import Engine
from umbel.registry import Registry

ROWS = 32


def measure(bench: Bench) -> dict[str, Found]:
    seen = [_process(bench) for _ in bench.rounds(full=3, short=1)]
    parts = ", ".join(f"{name} {seen[-1][name] / 1e6:.0f}" for name in ("backbone", "adapters", "keys_values"))
    detail = f"{seen[-1]['grown'] / 1e6:.0f} MB for {parts}; after imports {seen[-1]['imports'] / 1e6:.0f} MB"
    return {"memory": Found.of([one["grown"] / one["needed"] for one in seen], detail)}


def _process(bench: Bench) -> dict[str, int]:
    job = {
        "folder": str(bench.folder),
        "home": str(bench.stock.registry.settings.home),
        "digests": bench.stock.digests[:ROWS],
    }
    seen: dict[str, int] = _ask(job | {"modules": _ask(job)})
    return seen


def _ask(job: dict[str, Any]) -> Any:
    command = [sys.executable, "-m", "benchmarks.targets.memory"]
    ended = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    """The process that is looked at, or without ``modules`` the one before it."""
    job = json.load(sys.stdin)
    print(json.dumps(_served(job) if "modules" in job else _imported(Path(job["folder"]))))


def _imported(folder: Path) -> list[str]:
    load_tokenizer(folder)
    return [name for name in sys.modules if name != "__main__"]


def _served(job: dict[str, Any]) -> dict[str, int]:
    for name in job["modules"]:
        with suppress(ImportError):  # some are made by others and cannot be imported by their names
            importlib.import_module(name)
    imports, home = _resident_set(), Path(job["home"])
    backbone = load_backbone(Path(job["folder"]), packed=True, kernels=Kernels.wanted(Settings.load()))
    with Registry.open(Settings(home, f"sqlite:///{home / 'registry.db'}", str(home / "store"))) as registry:
        driver = Driver(Engine(backbone, registry, kv_bytes=KV_BYTES, adapter_bytes=PLENTY, max_length=512))
        driver.warm(job["digests"])
        texts = prompts(ROWS, 128, seed=1)
        driver.decode_only([ask(t, d, new_tokens=64) for t, d in zip(texts, job["digests"], strict=True)])
        for _ in range(32):
            driver.step()
        return _parts(driver.engine) | {"imports": imports, "grown": _resident_set() - imports}


def _parts(engine: Engine) -> dict[str, int]:
    """Bytes that must be there."""
    stats, per_token = engine.stats(), engine.backbone.kv_bytes_per_token
    written = sum(row.used for row in engine.scheduler.running.rows) * per_token
    parts = {
        "backbone": sum(file.stat().st_size for file in weight_files(engine.backbone.folder)),
        "adapters": stats.adapter_bytes,
        "keys_values": written + stats.kv_bytes_kept,
    }
    return parts | {"needed": sum(parts.values())}


def _resident_set() -> int:
    """Bytes."""
    line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
