"""How a peer talks to the benchmark: one JSON object a line on stdin, one a line back. Standard library only.

A peer blocks on stdin while others have their turn, so it costs them nothing. Its libraries print to stdout as they
like: file descriptor 1 is pointed at stderr first, and answers go to a copy of what it was.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any]


def serve(load: Callable[[dict[str, Any]], tuple[Callable[[dict[str, Any]], Answer], Answer]]) -> None:
    """``load(first line)`` gives what runs one job, and facts about itself; each later line is a job."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    run, facts = load(json.loads(sys.stdin.readline()))
    _send(answers, facts)
    for line in sys.stdin:
        _send(answers, run(json.loads(line)))
    os._exit(0)  # engines may hang in their own threads' shutdown, and nothing here is worth keeping


def _send(answers: Any, message: Answer) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def cores() -> list[int]:
    """The processors that this process may run on."""
    return sorted(os.sched_getaffinity(0))
