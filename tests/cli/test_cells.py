"""What a table's cell shows of a version's figures."""

import pytest

from umbel.cli.cells import metrics


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (
            {"mrr": 0.959, "recall_at_1": 0.93, "forgetting": 12.5, "probe_accuracy": 0.7, "validation_loss": 0.1},
            "mrr 0.959",
        ),
        ({"phoneme_error_rate": 0.21, "exact_match": 0.4, "forgetting": 0.1}, "phoneme_error_rate 0.21"),
        ({"accuracy": 0.75, "validation_loss": 0.5}, "accuracy 0.75"),
    ],
)
def test_one_figure_is_how_good_a_version_is_not_what_it_costs(values, shown):
    assert metrics(values, most=1) == shown
