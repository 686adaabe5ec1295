import itertools

import numpy as np
import pytest

from umbel.core.errors import DataError
from umbel.evaluation.baselines import best_constant, constant_phoneme_error_rate, majority_accuracy, majority_label
from umbel.evaluation.metrics import phoneme_error_rate


def test_the_majority_label_is_the_most_frequent_and_never_depends_on_order():
    assert majority_label(["b", "a", "b"]) == "b"
    assert majority_label(["b", "a"]) == majority_label(["a", "b"]) == "a"


def test_majority_accuracy_is_chosen_on_training_rows_and_scored_on_others():
    assert majority_accuracy(["a", "b", "b"]).value == pytest.approx(2 / 3)
    found = majority_accuracy(["a", "b", "b"], chosen_on=["a", "a", "b"])
    assert found.value == pytest.approx(1 / 3)
    assert found.items.tolist() == [1, 0, 0]


@pytest.mark.parametrize("seed", range(6))
def test_the_best_constant_is_the_best_of_all_answers_there_are(seed):
    rng = np.random.default_rng(seed)
    words = [[" ".join(rng.choice(["A", "B", "C"], rng.integers(1, 5))) for _ in range(1 + i % 2)] for i in range(9)]
    every = (" ".join(said) for length in range(6) for said in itertools.product("ABC", repeat=length))
    lowest = min(phoneme_error_rate(words, [said] * len(words)).value for said in every)
    assert phoneme_error_rate(words, [best_constant(words)] * len(words)).value == pytest.approx(lowest)


def test_the_best_constant_beats_saying_nothing():
    words = ["K AE T", "B AE T", "R AE T", "D AO G"]
    assert best_constant(words).endswith("AE T")
    assert constant_phoneme_error_rate(words).value < 0.5


def test_its_rate_is_scored_on_the_rows_given():
    found = constant_phoneme_error_rate(["D AO G"], chosen_on=["K AE T", "K AE T"])
    assert found.items.tolist() == [1]


def test_nothing_to_choose_from_is_refused():
    for choose in (majority_label, best_constant):
        with pytest.raises(DataError):
            choose([])
    with pytest.raises(DataError, match="none of them empty"):
        best_constant(["K", ""])
