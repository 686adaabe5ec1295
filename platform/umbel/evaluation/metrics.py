"""Every metric that a task can be judged by, as plain functions of references and answers.

Each takes the references first, refuses unequal lengths and empty data (DataError), and returns ``Scored``: the value
and the score of every row.

    classify   accuracy, macro_f1, log_loss, brier, calibration_error
    regress    rmse, mae, pearson
    generate   exact_match, phoneme_error_rate, word_error_rate
    embed      mrr, recall_at_1, recall_at_10

Shape letters here:  N rows   K labels
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from umbel.core.errors import DataError
from umbel.evaluation.distance import edits
from umbel.evaluation.scored import Floats, Scored, scored_mean

References = Sequence[str | Sequence[str]]
"""Per row one right answer, or several of which the best counts."""

_SMALLEST = float(np.finfo(np.float64).eps)


def accuracy(gold: Sequence[str], answers: Sequence[str]) -> Scored:
    _same_length(gold, answers)
    return scored_mean("accuracy", np.array([g == a for g, a in zip(gold, answers, strict=True)], dtype=np.float64))


def macro_f1(gold: Sequence[str], answers: Sequence[str]) -> Scored:
    """Mean over labels of F1. Labels neither asked for nor answered have no F1 and are left out of the mean.

    Row scores are right (1) or wrong (0); compare versions with ``umbel.experiments.bootstrap.macro_f1``.
    """
    right = accuracy(gold, answers).items
    labels = sorted({*gold, *answers})
    hits = dict.fromkeys(labels, 0)
    for label, answer in zip(gold, answers, strict=True):
        hits[label] += label == answer
    f1 = [2 * hits[label] / (_count(gold, label) + _count(answers, label)) for label in labels]
    return Scored(metric="macro_f1", value=float(np.mean(f1)), items=right, aggregate="other")


def log_loss(gold: Sequence[str], probabilities: ArrayLike, labels: Sequence[str]) -> Scored:
    """Mean of -ln p(right label), in nats. Probabilities below 2.2e-16 count as that: one row costs at most 36."""
    probs_NK, right_N = _probabilities(gold, probabilities, labels)
    chosen = probs_NK[np.arange(len(gold)), right_N]
    return scored_mean("log_loss", -np.log(np.maximum(chosen, _SMALLEST)), higher_is_better=False, points=False)


def brier(gold: Sequence[str], probabilities: ArrayLike, labels: Sequence[str]) -> Scored:
    """Sum over labels of (p - truth)^2, Brier's own form: 0 is perfect, 2 is certain and wrong."""
    probs_NK, right_N = _probabilities(gold, probabilities, labels)
    truth_NK = np.eye(len(labels))[right_N]
    return scored_mean("brier", np.square(probs_NK - truth_NK).sum(axis=1), higher_is_better=False, points=False)


@dataclass(frozen=True, slots=True)
class Bin:
    """The rows whose confidence lies in (low, high]."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability(gold: Sequence[str], probabilities: ArrayLike, labels: Sequence[str], *, bins: int = 15) -> list[Bin]:
    """The reliability diagram: bins of equal width over the top label's probability, empty ones left out."""
    confidence_N, right_N = _confidence(gold, probabilities, labels)
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.searchsorted(edges, confidence_N, side="left") - 1, 0, bins - 1)
    found = []
    for b in np.unique(which):
        inside = which == b
        mean_confidence, share_right = float(confidence_N[inside].mean()), float(right_N[inside].mean())
        found.append(Bin(float(edges[b]), float(edges[b + 1]), int(inside.sum()), mean_confidence, share_right))
    return found


def calibration_error(
    gold: Sequence[str], probabilities: ArrayLike, labels: Sequence[str], *, bins: int = 15
) -> Scored:
    """Expected calibration error (Guo 2017): mean |confidence - accuracy| over bins, weighted by rows.

    Row scores are confidence - right (1 or 0): positive where too sure. The value leans upwards with few rows per bin.
    """
    table = reliability(gold, probabilities, labels, bins=bins)
    value = sum(b.n * abs(b.confidence - b.accuracy) for b in table) / len(gold)
    confidence_N, right_N = _confidence(gold, probabilities, labels)
    items = confidence_N - right_N
    return Scored(metric="calibration_error", value=value, items=items, aggregate="other", higher_is_better=False)


def rmse(gold: ArrayLike, answers: ArrayLike) -> Scored:
    """Row scores are squared errors."""
    truth, guess = _numbers(gold, answers)
    items = np.square(guess - truth)
    value = float(np.sqrt(items.mean()))
    return Scored(metric="rmse", value=value, items=items, aggregate="root_mean", higher_is_better=False, points=False)


def mae(gold: ArrayLike, answers: ArrayLike) -> Scored:
    truth, guess = _numbers(gold, answers)
    return scored_mean("mae", np.abs(guess - truth), higher_is_better=False, points=False)


def pearson(gold: ArrayLike, answers: ArrayLike) -> Scored:
    """Correlation; row scores are products of z-scores, whose mean it is, but z-scores lean on the whole set.

    Answers that are all the same follow nothing: 0. References that are all the same cannot be followed: DataError.
    """
    truth, guess = _numbers(gold, answers)
    z_truth, z_guess = _standardised(truth), _standardised(guess)
    if z_truth is None:
        raise DataError("all reference values are the same: no correlation exists.", hint="use rmse or mae")
    items = z_truth * z_guess if z_guess is not None else np.zeros(truth.size)
    return Scored(metric="pearson", value=float(items.mean()), items=items, aggregate="other", points=False)


def exact_match(references: References, answers: Sequence[str]) -> Scored:
    """Equal to a reference, up to spaces: runs count as one, those at the ends as none. Case and marks matter."""
    _same_length(references, answers)
    rows = zip(references, answers, strict=True)
    items = [" ".join(answer.split()) in {" ".join(r.split()) for r in _several(wanted)} for wanted, answer in rows]
    return scored_mean("exact_match", np.array(items, dtype=np.float64))


def phoneme_error_rate(references: References, answers: Sequence[str]) -> Scored:
    """Mean over words of edits / phonemes in the reference, at most 1 per word: babble is no worse than silence.

    Phonemes stand apart by spaces. Of several pronunciations the one that scores best counts.
    """
    _same_length(references, answers)
    rates = [_best(wanted, answer)[0] for wanted, answer in zip(references, answers, strict=True)]
    return scored_mean("phoneme_error_rate", np.minimum(rates, 1.0), higher_is_better=False)


def word_error_rate(references: References, answers: Sequence[str]) -> Scored:
    """All edits over all reference words, the speech field's own form: long rows weigh more, and it can pass 1.

    Row scores are each row's own rate, uncapped; ``weights`` are its reference's words.
    """
    _same_length(references, answers)
    rows = np.array([_best(wanted, answer) for wanted, answer in zip(references, answers, strict=True)])
    items, weights = rows[:, 0], rows[:, 1]
    return Scored(
        metric="word_error_rate",
        value=float((items * weights).sum() / weights.sum()),
        items=items,
        weights=weights,
        aggregate="ratio",
        higher_is_better=False,
    )


def mrr(ranks: ArrayLike) -> Scored:
    """Mean reciprocal rank: of each row 1 / the place of its right answer, from 1."""
    return scored_mean("mrr", 1.0 / _ranks(ranks))


def recall_at_1(ranks: ArrayLike) -> Scored:
    """Share of rows whose right answer is the nearest of all."""
    return scored_mean("recall_at_1", (_ranks(ranks) <= 1).astype(np.float64))


def recall_at_10(ranks: ArrayLike) -> Scored:
    """Share of rows whose right answer is among the ten nearest."""
    return scored_mean("recall_at_10", (_ranks(ranks) <= 10).astype(np.float64))


LABEL_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], Scored]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
}
PROBABILITY_METRICS: dict[str, Callable[[Sequence[str], ArrayLike, Sequence[str]], Scored]] = {
    "log_loss": log_loss,
    "brier": brier,
    "calibration_error": calibration_error,
}
NUMBER_METRICS: dict[str, Callable[[ArrayLike, ArrayLike], Scored]] = {"rmse": rmse, "mae": mae, "pearson": pearson}
TEXT_METRICS: dict[str, Callable[[References, Sequence[str]], Scored]] = {
    "exact_match": exact_match,
    "phoneme_error_rate": phoneme_error_rate,
    "word_error_rate": word_error_rate,
}

RANK_METRICS: dict[str, Callable[[ArrayLike], Scored]] = {
    "mrr": mrr,
    "recall_at_1": recall_at_1,
    "recall_at_10": recall_at_10,
}


def _best(wanted: str | Sequence[str], answer: str) -> tuple[float, int]:
    """(edits / length, length) of the reference that is nearest to the answer by that rate."""
    said = answer.split()
    return min((edits(said, right) / len(right), len(right)) for right in _tokens(wanted))


def _tokens(wanted: str | Sequence[str]) -> list[list[str]]:
    found = [reference.split() for reference in _several(wanted)]
    if not found or not all(found):
        raise DataError(
            f"a reference is empty: {wanted!r}. An error rate divides by its length.", hint="drop or fix that row"
        )
    return found


def _several(wanted: str | Sequence[str]) -> Sequence[str]:
    return [wanted] if isinstance(wanted, str) else wanted


def _same_length(references: Sequence[object], answers: Sequence[object]) -> None:
    if len(references) != len(answers):
        raise DataError(
            f"{len(references)} references but {len(answers)} answers.",
            code="unpaired_scores",
            hint="give one answer per row, in the order of the file; a failed answer is an empty text",
        )
    if not references:
        raise DataError("there are no rows to score.", code="no_rows", hint="give a file with at least one row")


def _count(labels: Sequence[str], label: str) -> int:
    return sum(each == label for each in labels)


def _ranks(ranks: ArrayLike) -> Floats:
    found = np.asarray(ranks, dtype=np.float64)
    _same_length(found.tolist(), found.tolist())
    if not (found >= 1).all():
        raise DataError("a rank is below 1: places count from 1.")
    return found


def _probabilities(
    gold: Sequence[str], probabilities: ArrayLike, labels: Sequence[str]
) -> tuple[Floats, NDArray[np.intp]]:
    """(N, K) probabilities and each row's index of the right label, both checked."""
    probs_NK = np.asarray(probabilities, dtype=np.float64)
    if probs_NK.shape != (len(gold), len(labels)) or not gold:
        raise DataError(
            f"probabilities have shape {probs_NK.shape}; {len(gold)} rows and {len(labels)} labels need "
            f"({len(gold)}, {len(labels)}), with at least one row."
        )
    wrong = np.flatnonzero(~((probs_NK >= 0).all(axis=1) & (np.abs(probs_NK.sum(axis=1) - 1) < 1e-3)))
    if wrong.size:
        raise DataError(f"row {wrong[0] + 1}: probabilities must be at least 0 and sum to 1.", hint="apply softmax")
    place = {label: k for k, label in enumerate(labels)}
    if unknown := [label for label in gold if label not in place]:
        raise DataError(f"the data hold the label {unknown[0]!r}, which is not one of {list(labels)}.")
    return probs_NK, np.array([place[label] for label in gold], dtype=np.intp)


def _confidence(gold: Sequence[str], probabilities: ArrayLike, labels: Sequence[str]) -> tuple[Floats, Floats]:
    probs_NK, right_N = _probabilities(gold, probabilities, labels)
    return probs_NK.max(axis=1), (probs_NK.argmax(axis=1) == right_N).astype(np.float64)


def _numbers(gold: ArrayLike, answers: ArrayLike) -> tuple[Floats, Floats]:
    truth, guess = np.asarray(gold, dtype=np.float64), np.asarray(answers, dtype=np.float64)
    _same_length(truth.ravel().tolist(), guess.ravel().tolist())
    bad = np.flatnonzero(~(np.isfinite(truth) & np.isfinite(guess)))
    if bad.size:
        raise DataError(f"row {bad[0] + 1} is not a finite number.", code="score_not_finite")
    return truth, guess


def _standardised(values: Floats) -> Floats | None:
    spread = float(values.std())
    if spread <= 1e-12 * float(np.abs(values).max()):
        return None
    return np.asarray((values - values.mean()) / spread, dtype=np.float64)
