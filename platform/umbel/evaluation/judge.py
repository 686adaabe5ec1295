"""Judging what was trained on rows it has never seen, beside what can be had without it.

A baseline that is not beaten says that nothing was learnt: the best constant answer, chosen on the training rows, and
for generation the bare backbone's own answers to the same prompts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from umbel.core.contract import Contract, OutputHead
from umbel.core.wheels import Say, silent
from umbel.evaluation.answering import Answers, Asker
from umbel.evaluation.baselines import best_constant, majority_label
from umbel.evaluation.questions import Questions, answers
from umbel.evaluation.scored import Scored
from umbel.evaluation.scoring import Report, interval, score
from umbel.experiments import Comparison, compare
from umbel.training.card import Finding
from umbel.training.data.rows import Row


@dataclass(frozen=True, slots=True)
class Baseline:
    name: str
    """Such as ``always "neutral"``."""
    scored: Scored
    comparison: Comparison | None
    """The version against it, paired row by row; None where the metric is no mean over rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What one version scored on held-out rows."""

    questions: Questions
    report: Report
    baselines: tuple[Baseline, ...]

    def finding(self, name: str) -> Finding:
        """In plain values, for a card."""
        ends = interval(self.report.main)
        summary = self.report.summary
        value = summary.pop(self.report.primary)
        metric = self.report.primary
        told = [(b.name, b.comparison.sentence(name, b.name, metric)) for b in self.baselines if b.comparison]
        return Finding(
            metric=metric,
            value=value,
            low=ends[0] if ends else None,
            high=ends[1] if ends else None,
            rows=len(self.questions.rows),
            baselines={baseline.name: baseline.scored.value for baseline in self.baselines},
            sentences=[f"against {other}: {sentence}" for other, sentence in told],
            others=summary,
        )


def judge(
    asker: Asker, digest: str, contract: Contract, questions: Questions, train: Sequence[Row], *, say: Say = silent
) -> Judged:
    """Asks the version, and the bare backbone where it can answer; ``train`` are the rows a constant is chosen on."""
    report = score(questions, asker.ask(digest, contract, questions, say=say))
    constant = constant_answer(questions, contract, train)
    others = [(f'always "{constant.strip()}"', _always(constant, questions, contract))]
    if contract.output_head is OutputHead.GENERATE:
        others.append(("the bare backbone", asker.ask(None, contract, questions, say=lambda s: say(f"backbone: {s}"))))
    baselines = [_against(report, name, score(questions, given).main) for name, given in others]
    return Judged(questions=questions, report=report, baselines=tuple(baselines))


def constant_answer(questions: Questions, contract: Contract, train: Sequence[Row]) -> str:
    """The one answer that scores best on the training rows by the metric that decides (about, where that is hard)."""
    right = [answers(row) for row in train]
    if contract.output_head is OutputHead.CLASSIFY:
        return majority_label([one[0] for one in right])
    if contract.output_head is OutputHead.REGRESS:
        values = [float(one[0]) for one in right]
        return repr(median(values) if questions.metric == "mae" else fmean(values))
    if questions.metric == "phoneme_error_rate":
        return best_constant(right)
    if contract.output_head is OutputHead.TAG:
        return Counter(tag for one in right for tag in one[0].split()).most_common(1)[0][0]
    return Counter(one[0] for one in right).most_common(1)[0][0]


def _always(constant: str, questions: Questions, contract: Contract) -> Answers:
    rows = len(questions.rows)
    if contract.output_head is OutputHead.CLASSIFY and not contract.multi_label:
        sure = np.array([[float(label == constant) for label in contract.labels]] * rows)
        return Answers([constant] * rows, sure, contract.labels)
    if contract.output_head is OutputHead.TAG:
        return Answers([" ".join([constant] * len(answers(row)[0].split())) for row in questions.rows])
    return Answers([constant] * rows)


def _against(report: Report, name: str, baseline: Scored) -> Baseline:
    main = report.main
    if main.aggregate != "mean":
        return Baseline(name, baseline, None)
    found = compare(main.items, baseline.items, higher_is_better=main.higher_is_better, points=main.points)
    return Baseline(name, baseline, found)
