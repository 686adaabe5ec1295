"""Runs `umbel` in forked children that are killed with signal 9 at a chosen moment. A program of its own: it imports
everything once and has used no thread yet, so a fork is as good as a fresh process, and much quicker.

stdin: one JSON list of jobs; stdout: one JSON line per job. A job is
    {"home": ..., "words": [...], "kill": null | [phase, n]}
and its line {"status": exit status or -9, "calls": {phase: calls of functions in it}}.
"""

import json
import os
import signal
import sys
import tempfile
from types import FrameType
from typing import Any

import torch

from umbel.cli import main
from umbel.cli.train import finish, flags  # noqa: F401  imported here, once for all children
from umbel.evaluation import judge  # noqa: F401
from umbel.registry.registry import Registry
from umbel.training import checkpoint, fitting, publish, window  # noqa: F401
from umbel.training.sweep import sweeping  # noqa: F401

PHASES = {
    "step": window.take_window.__code__,
    "save": checkpoint.save.__code__,
    "evaluation": window.look.__code__,
    "publish": Registry.publish.__code__,
}


class Killer:
    """Counts calls inside each phase, and ends the process at the chosen one as a power cut would."""

    def __init__(self, kill: list[Any] | None) -> None:
        self.kill = kill
        self.calls = dict.fromkeys(PHASES, 0)
        self.inside: list[str] = []
        self.names = {code: name for name, code in PHASES.items()}

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code in self.names:
            self.inside.append(self.names[frame.f_code])
        elif event == "return" and frame.f_code in self.names:
            self.inside.pop()
        if self.inside and event in ("call", "c_call"):
            phase = self.inside[-1]
            self.calls[phase] += 1
            if self.kill == [phase, self.calls[phase]]:
                os.kill(os.getpid(), signal.SIGKILL)


def run(job: dict[str, Any], told: str) -> None:
    """In the child: never returns."""
    os.environ["UMBEL_HOME"] = job["home"]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(told + ".err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    killer = Killer(job["kill"])
    sys.setprofile(killer)
    code = main.main(job["words"])
    sys.setprofile(None)
    with open(told, "w", encoding="utf-8") as file:
        json.dump(killer.calls, file)
    os._exit(code)


def work(jobs: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        told = os.path.join(scratch, "told")
        for job in jobs:
            if (child := os.fork()) == 0:
                run(job, told)
            _, status = os.waitpid(child, 0)
            found: dict[str, Any] = {"status": os.waitstatus_to_exitcode(status), "calls": {}}
            if found["status"] == 0:
                with open(told, encoding="utf-8") as file:
                    found["calls"] = json.load(file)
            with open(told + ".err", encoding="utf-8") as file:
                found["said"] = file.read()[-2000:]
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    for line in sys.stdin:
        work(json.loads(line))
