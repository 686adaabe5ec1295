"""The examples run as they stand, against a real server."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


ASKED = ["models: tiny", "mood says", "writer writes:", "registry: mood", "adapter_not_found"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ask.py", "mood", "writer"), ASKED),
        (("ask_many.py", "mood"), ["what a lovely day", "32 requests in"]),
        (("openai_sdk.py", "writer"), ["writer:1 writes:", "streamed:", "NotFoundError: adapter_not_found"]),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)  # fmt: skip
def test_an_example_runs_and_says_what_it_should(words, told, live):
    script, *models = words
    command = [sys.executable, str(EXAMPLES / script), live.url, *models]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for part in told:
        assert part in done.stdout


def test_every_example_is_run_here_or_by_make_demo():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"ask.py", "ask_many.py", "demo.py", "openai_sdk.py"}
