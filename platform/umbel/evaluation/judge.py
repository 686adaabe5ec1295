"""Judging what was trained on rows it has never seen, beside what can be had without it.

A baseline that is not beaten says that nothing was learnt: the best constant answer, chosen on the training rows, and
for generation the bare backbone's own answers to the same prompts. An embedder stands beside the bare backbone's own
pooled states. Rivals are the versions that it would follow: the parent and the champion, each asked the same rows by
its own contract.
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
from umbel.evaluation.metrics import Bin, reliability
from umbel.evaluation.pairing import paired
from umbel.evaluation.questions import Questions, answers
from umbel.evaluation.scored import Scored
from umbel.evaluation.scoring import Report, interval, score
from umbel.experiments import Comparison
from umbel.training.card import Against, Finding
from umbel.training.data.rows import Row


@dataclass(frozen=True, slots=True)
class Baseline:
    name: str
    """Such as ``always "neutral"`` or ``mood:3 (champion)``."""
    scored: Scored
    comparison: Comparison | None
    """The version against it, paired row by row; None where no paired test fits the metric."""


@dataclass(frozen=True, slots=True)
class Rival:
    """Another version to be judged on the same rows."""

    name: str
    digest: str
    contract: Contract


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What one version scored on held-out rows."""

    questions: Questions
    report: Report
    baselines: tuple[Baseline, ...]
    calibration: tuple[Bin, ...] = ()
    """Of a classifier: how often it is right where it is so sure."""

    def finding(self, name: str) -> Finding:
        """In plain values, for a card."""
        ends = interval(self.report.main)
        summary = self.report.summary
        value = summary.pop(self.report.primary)
        told = [_told(name, b.name, b.comparison, self.report.primary) for b in self.baselines if b.comparison]
        return Finding(
            metric=self.report.primary,
            value=value,
            low=ends[0] if ends else None,
            high=ends[1] if ends else None,
            rows=len(self.questions.rows),
            less_is_better=not self.report.main.higher_is_better,
            baselines={baseline.name: baseline.scored.value for baseline in self.baselines},
            against=told,
            others=summary,
            calibration=[(b.low, b.high, b.n, b.confidence, b.accuracy) for b in self.calibration],
        )


def _told(name: str, other: str, found: Comparison, metric: str) -> Against:
    return Against(
        name=other,
        value=found.mean_b,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p_value=found.p_value,
        winner={"a": name, "b": other, None: None}[found.winner],
        sentence=f"against {other}: {found.sentence(name, other, metric)}",
    )


def judge(
    asker: Asker,
    digest: str,
    contract: Contract,
    questions: Questions,
    train: Sequence[Row],
    *,
    rivals: Sequence[Rival] = (),
    also: Sequence[str] = (),
    say: Say = silent,
) -> Judged:
    """Asks the version, its rivals, and the bare backbone where it can answer.

    ``train`` are the rows a constant is chosen on, ``also`` further metrics.
    """
    given = asker.ask(digest, contract, questions, say=say)
    report = score(questions, given, also=also)
    if contract.output_head is OutputHead.EMBED:
        others = [("the bare backbone", asker.find_bare(digest, contract, questions))]
    else:
        constant = constant_answer(questions, contract, train)
        others = [(f'always "{constant.strip()}"', _always(constant, questions, contract))]
    if contract.output_head is OutputHead.GENERATE:
        others.append(("the bare backbone", asker.ask(None, contract, questions, say=lambda s: say(f"backbone: {s}"))))
    others += [(rival.name, _ask(asker, rival, questions, say)) for rival in rivals]
    scored = [(name, score(questions, answered)) for name, answered in others]
    return Judged(
        questions=questions,
        report=report,
        baselines=tuple(Baseline(name, other.main, paired(report, other, questions)) for name, other in scored),
        calibration=_calibration(questions, given),
    )


def _ask(asker: Asker, rival: Rival, questions: Questions, say: Say) -> Answers:
    return asker.ask(rival.digest, rival.contract, questions, say=lambda line: say(f"{rival.name}: {line}"))


def why_not(own: Contract, rival: Contract) -> str | None:
    """Why two versions cannot be asked the same rows; None where they can."""
    for what in ("output_head", "multi_label", "input_form"):
        if getattr(own, what) != getattr(rival, what):
            return f"its {what} is {getattr(rival, what)}"
    if set(own.labels) != set(rival.labels):
        return f"its labels are {', '.join(rival.labels)}"
    return None


def _calibration(questions: Questions, given: Answers) -> tuple[Bin, ...]:
    if given.probabilities is None:
        return ()
    return tuple(reliability([answers(row)[0] for row in questions.rows], given.probabilities, given.labels))


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
