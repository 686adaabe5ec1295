"""What a version's answers are worth: its metrics, each with the score of every row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from umbel.core.contract import OutputHead
from umbel.core.errors import UsageError
from umbel.evaluation.answering import Answers
from umbel.evaluation.metrics import LABEL_METRICS, NUMBER_METRICS, PROBABILITY_METRICS, RANK_METRICS, TEXT_METRICS
from umbel.evaluation.questions import Questions, answers
from umbel.evaluation.scored import Scored, scored_mean
from umbel.experiments.intervals import mean_interval
from umbel.experiments.paired import RESAMPLES
from umbel.training.data.rows import LabelledRow, ValuedRow

_ALSO = {
    OutputHead.CLASSIFY: ("accuracy", "macro_f1", "log_loss", "brier", "calibration_error"),
    OutputHead.REGRESS: ("rmse", "mae"),
    OutputHead.GENERATE: ("exact_match",),
    OutputHead.EMBED: (*RANK_METRICS,),
}


_SUITING = {
    OutputHead.CLASSIFY: (*LABEL_METRICS, *PROBABILITY_METRICS),
    OutputHead.REGRESS: (*NUMBER_METRICS,),
    OutputHead.GENERATE: (*TEXT_METRICS,),
    OutputHead.TAG: ("accuracy",),
    OutputHead.EMBED: (*RANK_METRICS,),
}


def metrics_of(head: OutputHead) -> tuple[str, ...]:
    """Every metric that suits an output head."""
    return _SUITING.get(head, ())


@dataclass(frozen=True, slots=True)
class Report:
    """All metrics of one version on one suite; ``primary`` is the one that decides."""

    primary: str
    scores: dict[str, Scored]
    outputs: list[str]

    @property
    def main(self) -> Scored:
        return self.scores[self.primary]

    @property
    def summary(self) -> dict[str, float]:
        return {name: scored.value for name, scored in self.scores.items()}


def score(questions: Questions, given: Answers, *, metric: str | None = None, also: Sequence[str] = ()) -> Report:
    """The deciding metric, the head's usual ones and ``also``.

    Raises UsageError for a metric that does not suit the output head.
    """
    primary = metric or questions.metric
    wanted = dict.fromkeys((primary, *_ALSO.get(questions.head, ()), *also))
    if given.probabilities is None:  # several labels a row: nothing sums to 1
        wanted = {name: None for name in wanted if name not in PROBABILITY_METRICS or name == primary}
    scores = {name: _scored(name, questions, given) for name in wanted}
    return Report(primary, scores, given.outputs)


def _scored(metric: str, questions: Questions, given: Answers) -> Scored:
    right = [answers(row) for row in questions.rows]
    if questions.head is OutputHead.TAG:
        return _tag_accuracy(metric, [one[0] for one in right], given.outputs)
    if isinstance(questions.rows[0], LabelledRow) and metric in LABEL_METRICS:
        return LABEL_METRICS[metric]([one[0] for one in right], given.outputs)
    if isinstance(questions.rows[0], LabelledRow) and metric in PROBABILITY_METRICS and given.probabilities is not None:
        return PROBABILITY_METRICS[metric]([one[0] for one in right], given.probabilities, given.labels)
    if isinstance(questions.rows[0], ValuedRow) and metric in NUMBER_METRICS:
        return NUMBER_METRICS[metric]([float(one[0]) for one in right], [float(o) for o in given.outputs])
    if questions.head is OutputHead.GENERATE and metric in TEXT_METRICS:
        return TEXT_METRICS[metric](right, given.outputs)
    if given.ranks is not None and metric in RANK_METRICS:
        return RANK_METRICS[metric](given.ranks)
    raise UsageError(
        f"{metric!r} does not score a {questions.head} head.",
        code="unknown_metric",
        hint=f"choose from {', '.join(metrics_of(questions.head))}",
    )


def _tag_accuracy(metric: str, right: list[str], given: list[str]) -> Scored:
    """Share of a row's words with the right tag; rows weigh alike."""
    if metric != "accuracy":
        raise UsageError(f"{metric!r} does not score tags.", code="unknown_metric", hint="use accuracy")
    rows = zip((one.split() for one in right), (one.split() for one in given), strict=True)
    shares = [sum(a == b for a, b in zip(gold, said, strict=True)) / len(gold) for gold, said in rows]
    return scored_mean("accuracy", np.array(shares, dtype=np.float64))


def interval(scored: Scored, *, confidence: float = 0.95) -> tuple[float, float] | None:
    """Of the metric's own value, where it is a mean of rows: Wilson's for right or wrong, else by resampling rows."""
    if scored.aggregate != "mean" or scored.n < 2:
        return None
    if bool(np.isin(scored.items, (0.0, 1.0)).all()):
        low, high = proportion_confint(int(scored.items.sum()), scored.n, alpha=1 - confidence, method="wilson")
        return float(low), float(high)
    if float(np.ptp(scored.items)) == 0.0:
        return None
    found = mean_interval(scored.items, confidence=confidence, resamples=RESAMPLES, seed=0)
    # Student's t of few rows knows no bounds; no such mean is below 0, and a share is at most 1.
    return max(found.low, 0.0), min(found.high, 1.0) if scored.points else found.high
