"""The parent's side of a peer: starts it in its own environment, gives it work, and waits."""

import contextlib
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks.systems import Round
from benchmarks.work import LORA, Work, make_adapters, write_peft_folder

from umbel.backbone.config import read_config
from umbel.core.anew import SPINS

OURS = {"PYTHONPATH", *SPINS}
"""Of the environment, what is for this process alone: a peer keeps its own way of waiting."""
ROOT = Path(__file__).resolve().parents[2]
ROWS = 32
"""Most requests at once of any work."""
LENGTH = 512
"""Most tokens of a request, as the benchmark gives umbel's engine."""


class PeerFailed(Exception):
    """A peer ended, or answered something that is no answer; its log tells why."""


class Process:
    """A program that answers one JSON line for each it is given; its stderr goes into ``log``."""

    def __init__(
        self, command: list[str], first: dict[str, Any], log: Path, variables: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                # the peer's own packages only
                env={key: value for key, value in os.environ.items() if key not in OURS} | dict(variables or {}),
            )
        self.facts = self.ask(first)

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """Raises PeerFailed."""
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):  # then no answer comes either
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise PeerFailed(f"it ended with code {self.process.wait()}; see {self.log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def cpu_seconds(self) -> float:
        """All its threads, since it started; Linux only."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


class Peer:
    """What vLLM and llama.cpp share: one process at a time, started anew where ``wear`` asks for other adapters."""

    name: str
    environment: str
    module: str

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: Process | None = None
        self.facts: dict[str, Any] = {}
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._worn: list[Any] | None = None

    @classmethod
    def installed(cls) -> bool:
        return (ROOT / ".peers" / cls.environment / "ready").is_file()

    def can(self, work: Work) -> bool:
        raise NotImplementedError

    def job(self, folders: list[Path]) -> dict[str, Any]:
        """The first line that the peer is given."""
        raise NotImplementedError

    def variables(self) -> dict[str, str]:
        """Of its environment, beside the benchmark's own."""
        return {}

    def wear(self, work: Work) -> None:
        if self._worn == work.kinds:
            return
        self.close()
        self._scratch = tempfile.TemporaryDirectory()
        self.process = Process(self._command(), self.job(self._folders(work)), self.log, self.variables())
        self.facts = self.process.facts
        self._worn = work.kinds

    def run(self, work: Work, prompts: list[list[int]]) -> Round:
        assert self.process, "wear comes first"
        answer = self.process.ask({"prompts": prompts, "worn": work.worn, "new_tokens": work.new_tokens})
        times: list[list[float]] = answer["times"]
        if any(len(one) != work.new_tokens for one in times):
            raise PeerFailed(f"it made {[len(one) for one in times]} tokens where {work.new_tokens} were asked")
        gaps = [later - earlier for one in times for earlier, later in itertools.pairwise(one)]
        return Round(answer["seconds"], sum(map(len, times)), [one[0] for one in times], gaps)

    def cpu_seconds(self) -> float:
        return self.process.cpu_seconds() if self.process else 0.0

    def close(self) -> None:
        if self.process:
            self.process.close()
        if self._scratch:
            self._scratch.cleanup()
        self.process, self._scratch, self._worn = None, None, None

    def _command(self) -> list[str]:
        return [str(ROOT / ".peers" / self.environment / "bin" / "python"), "-m", f"benchmarks.peers.{self.module}"]

    def _folders(self, work: Work) -> list[Path]:
        """The adapters of ``work`` in PEFT's format."""
        raise NotImplementedError


class Vllm(Peer):
    """vLLM on CPU, eager or compiled; without ``enable_lora`` where nothing is worn, which is its faster setting."""

    environment, module = "vllm", "vllm_cpu"

    def __init__(self, folder: Path, log: Path, *, eager: bool) -> None:
        super().__init__(log)
        self.name = "vLLM eager" if eager else "vLLM compiled"
        self.folder, self.eager = folder, eager

    def can(self, work: Work) -> bool:
        return not work.kinds or (self.eager and work.only_lora)  # it compiles nothing where LoRA is enabled

    def job(self, folders: list[Path]) -> dict[str, Any]:
        return {
            "backbone": str(self.folder),
            "adapters": [str(folder) for folder in folders],
            "rank": LORA["rank"],
            "eager": self.eager,
            "threads": torch.get_num_threads(),
            "rows": ROWS,
            "length": LENGTH,
        }

    def variables(self) -> dict[str, str]:
        # as vLLM's guide to CPUs has it; beside it vLLM sets how long its threads spin, 1 ms instead of 200
        openmp = ROOT / ".peers" / self.environment / "lib" / "libiomp5.so"
        return {"LD_PRELOAD": str(openmp)} if openmp.is_file() else {}

    def _folders(self, work: Work) -> list[Path]:
        assert self._scratch
        into = Path(self._scratch.name)
        adapters = make_adapters(work, read_config(self.folder).shape, "")
        return [write_peft_folder(adapter, into / f"a{i}") for i, adapter in enumerate(adapters)]


class LlamaCpp(Peer):
    """llama.cpp with the 4-bit file: fewer bytes for each weight than anyone else here reads."""

    name, environment, module = "llama.cpp Q4_1", "llamacpp", "llamacpp"

    def __init__(self, gguf: Path, log: Path) -> None:
        super().__init__(log)
        self.gguf = gguf

    def can(self, work: Work) -> bool:
        return not work.kinds

    def job(self, folders: list[Path]) -> dict[str, Any]:
        return {"gguf": str(self.gguf), "threads": torch.get_num_threads(), "rows": ROWS, "length": LENGTH}

    def _folders(self, work: Work) -> list[Path]:
        return []
