"""Two reports on the same rows, compared row by row in the way that the metric allows."""

import numpy as np

from umbel.evaluation.questions import Questions, answers
from umbel.evaluation.scoring import Report
from umbel.experiments import Comparison, compare, compare_statistic
from umbel.experiments.bootstrap import Statistic, macro_f1, ratio, root_mean


def paired(a: Report, b: Report, questions: Questions, *, confidence: float = 0.95) -> Comparison | None:
    """On the deciding metric of ``a``; None where no paired test fits it (correlation, calibration error)."""
    one, other = a.main, b.scores[a.primary]
    options = {"higher_is_better": one.higher_is_better, "points": one.points, "confidence": confidence}
    if one.aggregate == "mean":
        return compare(one.items, other.items, **options)  # type: ignore[arg-type]
    statistic = _statistic(a, b, questions)
    return None if statistic is None else compare_statistic(one.n, statistic, **options)  # type: ignore[arg-type]


def _statistic(a: Report, b: Report, questions: Questions) -> Statistic | None:
    one, other = a.main, b.scores[a.primary]
    if one.aggregate == "root_mean":
        return root_mean(np.concatenate([one.items, other.items]))
    if one.aggregate == "ratio" and one.weights is not None and other.weights is not None:
        weights = np.concatenate([one.weights, other.weights])
        return ratio(np.concatenate([one.items, other.items]) * weights, weights)
    if a.primary == "macro_f1":
        return macro_f1([answers(row)[0] for row in questions.rows], a.outputs, b.outputs)
    return None
