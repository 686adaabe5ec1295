"""A server guesses as many tokens as it was told, and counts them."""

import re

import pytest
from fastapi.testclient import TestClient

from umbel.backbone.loading import load_backbone
from umbel.server.app import create_app
from umbel.server.assembly import running
from umbel.server.service import Capacity, ServerConfig

LOOP = "one two three, one two three, one two three, one two"


@pytest.fixture(autouse=True)
def skip_where_onednn_is_better(kernels):
    if not kernels.multiplies:
        pytest.skip("this processor's linears are oneDNN's")


def asked(home, kernels, guesses):
    """A repeating prompt's text, and how many tokens were guessed for it and how many of them rightly."""
    backbone = load_backbone(home.backbone.folder, dtype="bfloat16", packed=True, name="tiny", kernels=kernels)
    with (
        running(backbone, home.registry, Capacity(4, 10_000_000, 10_000_000, guesses), ServerConfig()) as parts,
        TestClient(create_app(parts.service), base_url="http://localhost") as client,
    ):
        body = {"model": "tiny", "prompt": LOOP, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
        answer = client.post("/v1/completions", json=body)
        metrics = client.get("/metrics").text
    counts = [float(re.search(rf"^umbel_{name}_total (\S+)", metrics, re.M)[1])
              for name in ("tokens_guessed", "tokens_guessed_right")]  # fmt: skip
    return answer.json()["choices"][0]["text"], counts


def test_guesses_are_counted_and_change_no_answer(home, kernels):
    text, (guessed, right) = asked(home, kernels, 5)
    plain, none = asked(home, kernels, 0)
    assert text == plain
    assert 0 < right <= guessed
    assert none == [0, 0]
