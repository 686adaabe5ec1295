"""An embedder that was trained here answers over HTTP exactly as training saw it."""

import json

import pytest
import torch

from umbel.training import Task, fit
from umbel.training.publish import publish


@pytest.fixture(
    scope="module",
    params=[("lora", {"rank": 2}, None), ("prompt", {"length": 3}, 12), ("prefix", {"length": 3}, None)],
    ids=lambda given: given[0],
)
def trained(request, home, tmp_path_factory):
    method, options, size = request.param
    rows = [{"text": f"{a}{b} so", "positive": f"{b}{a}!"} for a in "abcdef" for b in "uvwxyz"]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(
        name=f"near-{method}",
        data=str(path),
        task="embed",
        method=method,
        options=options,
        embedding_size=size,
        template="say: {text}",
        steps=4,
        lr=0.05,
    )
    (found,) = fit(home.backbone, [task], settings=home.settings)
    publish(home.registry, found, home.backbone)
    return found


@torch.no_grad()
def as_trained(home, trained, text):
    """The vector of one row alone, by the pass that training runs."""
    from umbel.adapters.wear import fuse_all
    from umbel.training.contrast import Contrast
    from umbel.training.data.encode import encode_rows
    from umbel.training.data.rows import PairRow
    from umbel.training.forward import run_pass
    from umbel.training.passes import Seat

    adapter = trained.adapter
    (pair,) = encode_rows([PairRow(1, text, "x", None)], adapter.contract, home.backbone).examples
    width = adapter.head.config.outputs or adapter.head.hidden
    contrast = Contrast([pair], temperature=1.0, group=1, width=width)
    seat = Seat(0, pair, adapter.weights.num_virtual, contrast=contrast)
    run_pass(home.backbone, [adapter], fuse_all([adapter]), [seat])
    return contrast.vectors[pair.index]


def test_embeddings_are_the_vectors_that_training_made(client, home, trained):
    texts = ["au so", "a much longer text than the others", "zz"]
    answer = client.post("/v1/embeddings", json={"model": trained.task.name, "input": texts})
    assert answer.status_code == 200, answer.text
    for text, row in zip(texts, answer.json()["data"], strict=True):
        wanted = as_trained(home, trained, text)
        assert len(row["embedding"]) == (trained.task.embedding_size or home.backbone.shape.hidden)
        assert row["embedding"] == pytest.approx(wanted.tolist(), abs=1e-5), text


def test_the_trained_embedder_is_not_the_bare_backbone(client, home, trained):
    from umbel.evaluation.nearest import bare_vectors

    (row,) = client.post("/v1/embeddings", json={"model": trained.task.name, "input": "au so"}).json()["data"]
    bare = bare_vectors(home.backbone, [home.backbone.tokenizer.encode("say: au so")], "mean")[0]
    assert (
        len(row["embedding"]) != len(bare)
        or max(abs(one - other) for one, other in zip(row["embedding"], bare.tolist(), strict=True)) > 1e-3
    )
