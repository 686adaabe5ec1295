"""A row's weight is how much it counts in the loss: exact, whatever the micro-batches and neighbours."""

import pytest

from umbel.core.errors import DataError
from umbel.training.data.rows import read_rows

EXACT = 1e-10
FORMS = {
    "classify": lambda i: {"text": f"thing {i}", "label": "ab"[i % 2]},
    "regress": lambda i: {"text": f"thing {i}", "value": i % 3},
    "tag": lambda i: {"tokens": ["see", f"Ann{i}", "run"][i % 2 :], "tags": ["O", "N", "O"][i % 2 :]},
    "generate": lambda i: {"prompt": f"{i} ->", "completion": f" {'x' * (i % 3)}{i}"},
}
ONE_BATCH = {"steps": 3, "lr": 0.02, "validation_fraction": 0, "test_fraction": 0, "batch_size": 64}


@pytest.fixture
def weighted(task, train):
    """Trains a form's rows, of which every third has the weight; ``twice`` writes these rows twice instead."""

    def run(form, weight=None, *, twice=False, **more):
        rows = []
        for i in range(12):
            row = FORMS[form](i)
            heavy = i % 3 == 0
            rows += [{**row, "weight": weight}] if heavy and weight else [row] * (2 if heavy and twice else 1)
        return train(task(rows, name="w", task=form, **ONE_BATCH, **more))[0]

    return run


@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_weight_two_is_the_row_twice(weighted, furthest, form):
    heavy, double, plain = weighted(form, 2), weighted(form, twice=True), weighted(form)
    assert furthest(heavy, double) < EXACT
    assert heavy.losses == pytest.approx(double.losses, abs=EXACT)
    assert furthest(heavy, plain) > 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_exact_under_micro_batches(weighted, furthest, form):
    assert furthest(weighted(form, 0.3), weighted(form, 0.3, micro_batch=1)) < EXACT


def test_only_the_proportions_of_weights_matter(task, train, furthest):
    rows = [{**FORMS["classify"](i), "weight": 1 + i % 2} for i in range(12)]
    tenfold = [{**row, "weight": 10 * row["weight"]} for row in rows]
    one, other = (train(task(each, name="w", task="classify", **ONE_BATCH))[0] for each in (rows, tenfold))
    assert furthest(one, other) < EXACT


def test_validation_is_weighted_as_training_is(task, train, write):
    rows = [FORMS["regress"](i) for i in range(6)]

    def held(weights):
        return write("held", [{**FORMS["regress"](i), "weight": w} for i, w in enumerate(weights)])

    def last(path):
        given = {**ONE_BATCH, "steps": 1, "lr": 1e-12}
        return train(task(rows, name="w", task="regress", validation=path, **given))[0].history[-1].loss

    first, second = last(held([1])), last(held([1, 1])) * 2 - last(held([1]))
    assert last(held([3, 1])) == pytest.approx((3 * first + second) / 4, abs=EXACT)
    assert abs(first - second) > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_stands_in_any_form_and_in_csv(write, tmp_path, form):
    from pathlib import Path

    rows = read_rows(Path(write("rows", [{**FORMS[form](0), "weight": 2}, FORMS[form](1)])))
    assert [row.weight for row in rows] == [2.0, 1.0]
    path = tmp_path / "rows.csv"
    path.write_text("text,label,weight\na,x,0.5\nb,y,\n")
    assert [row.weight for row in read_rows(path)] == [0.5, 1.0]


@pytest.mark.parametrize("weight", [0, -1, "heavy", True, None, float("nan"), float("inf")])
def test_a_weight_that_is_no_number_above_0_is_refused_with_its_line(write, weight):
    from pathlib import Path

    rows = [FORMS["classify"](0), {**FORMS["classify"](1), "weight": weight}]
    with pytest.raises(DataError, match="line 2: 'weight' is "):
        read_rows(Path(write("rows", rows)))
