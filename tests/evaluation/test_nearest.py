"""Finding each text's own positive: ranks by hand, and the bare backbone's vectors against one row alone."""

import numpy as np
import pytest
import torch

from umbel.adapters.head import pool
from umbel.backbone.decoder import whole_step
from umbel.backbone.loading import load_backbone
from umbel.backbone.tiny import tiny_backbone
from umbel.evaluation.metrics import mrr, recall_at_1, recall_at_10
from umbel.evaluation.nearest import bare_vectors, candidates_of, ranks
from umbel.training.data.rows import PairRow


def vectors(**angles):
    """Unit vectors in the plane, by degrees."""
    return {text: torch.tensor([np.cos(np.radians(a)), np.sin(np.radians(a))]) for text, a in angles.items()}


def test_ranks_count_every_candidate_that_is_as_near():
    rows = [PairRow(1, "a", "p", None), PairRow(2, "b", "q", "n")]
    found, nearest = ranks(rows, vectors(a=0, b=50, p=10, q=90, n=45))
    assert candidates_of(rows) == ["p", "q", "n"]
    assert found.tolist() == [1, 3]  # b is 40 degrees from q, as from p, and 5 from n: the tie counts against it
    assert nearest == ["p", "n"]


def test_a_row_s_own_text_is_no_answer():
    rows = [PairRow(1, "a", "b", None), PairRow(2, "b", "a", None)]
    found, nearest = ranks(rows, vectors(a=0, b=170))
    assert found.tolist() == [1, 1]
    assert nearest == ["b", "a"]


def test_metrics_of_ranks():
    places = [1, 2, 20, 1]
    assert mrr(places).value == pytest.approx((1 + 0.5 + 0.05 + 1) / 4)
    assert recall_at_1(places).value == 0.5
    assert recall_at_10(places).value == 0.75


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_bare_backbone_reads_a_row_in_a_batch_as_alone(tmp_path, pooling):
    backbone = load_backbone(tiny_backbone(tmp_path / "tiny"), dtype="fp64")
    inputs = [[5, 6, 7], [8], list(range(3, 40)), [9, 9]] * 6
    for ids, vector in zip(inputs, bare_vectors(backbone, inputs, pooling), strict=True):
        hidden = backbone.decoder(torch.tensor([ids]), whole_step(rows=1, tokens=len(ids))).hidden
        alone = pool(hidden, torch.tensor([len(ids)]), torch.tensor([0]), pooling)[0]
        torch.testing.assert_close(vector, alone / alone.norm(), atol=1e-12, rtol=0)
