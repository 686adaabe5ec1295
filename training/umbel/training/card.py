"""The card of a version: a README with front matter that says what it is, what it was trained on and how good it is."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from umbel.core.contract import OutputHead
from umbel.core.forms import Form, told
from umbel.core.sizes import human_bytes
from umbel.training.data.rows import ChatRow, PromptRow, text_of
from umbel.training.fitting import TrainedAdapter
from umbel.training.plan import TaskPlan
from umbel.training.sweep import report


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """This version and another, or a baseline, on the same rows; every difference is this one minus the other."""

    name: str
    value: float
    """The other's."""
    difference: float
    low: float | None
    high: float | None
    """Of the difference's 95 % interval, paired row by row."""
    p_value: float
    winner: str | None
    """None where the rows cannot tell."""
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """What a version does beside its task."""

    forgetting: float
    """How much the perplexity of the probe text rises while it is on, as a share."""
    perplexity: float
    perplexity_off: float
    general: float
    """Share of the probe's small general task answered right while it is on."""
    general_off: float
    bytes: int
    """Memory it takes while it is served."""
    gate: str = ""
    """The gate it was held to, and what became of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the held-out rows said, in plain values."""

    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    """Of the 95 % interval; None where the metric has none."""
    rows: int = 0
    less_is_better: bool = False
    """Whether the metric is an error or a loss."""
    baselines: Mapping[str, float] = field(default_factory=dict)
    """The same metric without this adapter."""
    against: Sequence[Against] = ()
    """The baselines, the parent and the champion."""
    notes: Sequence[str] = ()
    """What could not be compared, and why."""
    others: Mapping[str, float] = field(default_factory=dict)
    """Further metrics."""
    calibration: Sequence[tuple[float, float, int, float, float]] = ()
    """Classifiers: (low, high, rows, mean confidence, share right) of each bin of confidence that has rows."""

    @property
    def sentences(self) -> list[str]:
        return [*(each.sentence for each in self.against), *self.notes]


def card_of(
    trained: TrainedAdapter,
    *,
    backbone: str,
    licence: str | None,
    finding: Finding | None,
    effects: Effects | None = None,
) -> str:
    """Markdown. Equal trainings give equal cards: no time and no host in it, and no row of the data.

    ``licence`` is the backbone's; the version's own is what its task says, or none.
    """
    assert trained.adapter is not None
    assert trained.plan is not None
    assert trained.prepared is not None
    task, plan = trained.task, trained.plan
    parts = [
        _front_matter(trained, backbone),
        f"# {task.name}",
        task.description or f"A {plan.method} adapter with a {plan.output_head} head on {backbone}.",
        _results(finding),
        _calibration(finding),
        _effects(effects, trained),
        "## Data\n\n" + _table([*_data(trained, plan), ("licence of the backbone", licence or "not stated")]),
        "## Training\n\n" + _table(_training(trained, plan)),
        _curve(trained),
        _sweep(trained),
        "## Use\n\n" + _use(trained),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(trained: TrainedAdapter, backbone: str) -> str:
    licence = trained.task.licence
    assert trained.plan is not None
    tags = ["umbel", trained.plan.method, str(trained.plan.output_head)]
    lines = [
        f"base_model: {backbone}",
        "library_name: peft",
        f"pipeline_tag: {_PIPELINES.get(trained.plan.output_head, 'feature-extraction')}",
        *([f"license: {licence.lower()}"] if licence else []),
        f"datasets: [{trained.plan.data}]",
        f"tags: [{', '.join(tags)}]",
    ]
    return "---\n" + "\n".join(lines) + "\n---"


_PIPELINES = {
    OutputHead.GENERATE: "text-generation",
    OutputHead.CLASSIFY: "text-classification",
    OutputHead.REGRESS: "text-classification",
    OutputHead.TAG: "token-classification",
}


def _results(finding: Finding | None) -> str:
    if finding is None:
        return "## Results\n\nNo rows were held out, so nothing is known about how good it is."
    interval = "" if finding.low is None else f" (95 % CI {finding.low:.3g} to {finding.high:.3g})"
    value = f"{finding.value:.4g}{interval}"
    metric = f"{finding.metric} (less is better)" if finding.less_is_better else finding.metric
    rows = [("this version", value)]
    rows += [(name, f"{baseline:.4g}") for name, baseline in finding.baselines.items()]
    found = f"## Results\n\nOn {finding.rows:,} held-out rows:\n\n" + _table(rows, head=("", metric))
    others = ", ".join(f"{name} {value:.4g}" for name, value in finding.others.items())
    said = [f"- {sentence}" for sentence in finding.sentences]
    return "\n\n".join(part for part in (found, f"Also: {others}." if others else "", "\n".join(said)) if part)


def _calibration(finding: Finding | None) -> str:
    """How often it is right where it is so sure: a calibrated classifier has equal columns."""
    if finding is None or not finding.calibration:
        return ""
    scores = {**finding.others, finding.metric: finding.value}
    named = [("calibration_error", "expected calibration error"), ("brier", "Brier score"), ("log_loss", "log loss")]
    told = ", ".join(f"{words} {scores[name]:.4g}" for name, words in named if name in scores)
    rows = [
        (f"{low:.2f} to {high:.2f}", str(n), f"{confidence:.3f}", f"{right:.3f}")
        for low, high, n, confidence, right in finding.calibration
    ]
    return f"## Calibration\n\n{told[:1].upper()}{told[1:]}.\n\n" + _table(
        rows, head=("confidence", "rows", "mean confidence", "share right")
    )


def _effects(effects: Effects | None, trained: TrainedAdapter) -> str:
    if effects is None:
        return ""
    rows = [
        ("perplexity of the probe text", f"{effects.perplexity_off:.4g}", f"{effects.perplexity:.4g}"),
        ("general questions right", f"{effects.general_off:.1%}", f"{effects.general:.1%}"),
    ]
    own = trained.plan is not None and trained.plan.precision is not None
    off = (
        '"Off" is the backbone that this one was trained from.'
        if own
        else "While it is off: none, the backbone's bytes are the same before and after training "
        f"(sha256 {trained.frozen})."
    )
    said = [
        "## Beside its task",
        f"Forgetting while it is on: {effects.forgetting:+.1%} perplexity. {off}",
        _table(rows, head=("", "off", "on")),
        f"Memory while it is served: {human_bytes(effects.bytes)}.",
        effects.gate,
    ]
    return "\n\n".join(part for part in said if part)


def _data(trained: TrainedAdapter, plan: TaskPlan) -> list[tuple[str, str]]:
    assert trained.prepared is not None
    found = [
        ("dataset", plan.data),
        ("digest", trained.prepared.splits.digest),
        ("licence of the data", trained.prepared.splits.licence or "not stated"),
        ("rows", f"{plan.train_rows:,} train, {plan.validation_rows:,} validation, {plan.test_rows:,} test"),
        ("tokens", f"{plan.tokens:,} in the training rows, longest {plan.longest}"),
    ]
    if plan.balance:
        found.append(("labels", ", ".join(f"{label} {count:,}" for label, count in plan.balance.items())))
    if plan.truncated or plan.left_out:
        found.append(("too long", f"{plan.truncated:,} cut, {plan.left_out:,} left out"))
    return found


def _training(trained: TrainedAdapter, plan: TaskPlan) -> list[tuple[str, str]]:
    task, best = trained.task, trained.best
    options = {**trained.adapter.config["method"]} if trained.adapter is not None else {}
    found = [
        ("method", plan.method),
        *((key, _plain(value)) for key, value in options.items() if value not in (None, {}, (), [], False, "")),
        ("trained parameters", f"{plan.parameters:,}"),
        *_of_form(trained),
        *_of_backbone(plan),
        ("steps", f"{trained.steps:,} of {plan.steps:,} ({trained.status})"),
        ("batch size", str(plan.batch_size)),
        ("learning rate", f"{plan.lr:g} ({plan.lr_why}), {task.decay} decay, warm-up {task.warmup:g}"),
        ("weight decay, clip", f"{task.weight_decay:g}, {task.clip:g}"),
        ("seed", str(task.seed)),
        ("tokens seen", f"{trained.tokens:,}"),
    ]
    if best is not None:
        loss = f"loss {best.loss:.4g} (the lowest: its weights are kept)"
        found.append(("best validation", f"{loss}, accuracy {best.accuracy:.3g}, at step {best.step:,}"))
    return found


def _of_form(trained: TrainedAdapter) -> list[tuple[str, str]]:
    form = _form(trained)
    return [] if form is None else [("backbone held as", f"{told(form)} (answers on another form may differ a little)")]


def _form(trained: TrainedAdapter) -> Form | None:
    return trained.prepared.contract.quantised if trained.prepared is not None else None


def _of_backbone(plan: TaskPlan) -> list[tuple[str, str]]:
    if plan.precision is None:
        return []
    return [("of the backbone", f"{plan.trains}: {plan.backbone_parameters:,}"), ("precision", plan.precision)]


def _curve(trained: TrainedAdapter) -> str:
    """Validation over the steps; the training loss is in the run log."""
    rows = [(f"{each.step:,}", f"{each.loss:.4g}", f"{each.accuracy:.3g}") for each in trained.history]
    return "## Validation\n\n" + _table(rows, head=("step", "loss", "accuracy")) if rows else ""


def _sweep(trained: TrainedAdapter) -> str:
    """Which other configurations it was chosen from."""
    if trained.sweep is None:
        return ""
    table = _table(report.rows(trained.sweep), head=report.columns(trained.sweep))
    return f"## Sweep\n\nTrained together; {trained.sweep.rule}.\n\n{table}"


def _use(trained: TrainedAdapter) -> str:
    assert trained.plan is not None
    own = trained.plan.backbone_parameters > 0
    commands = try_commands(
        trained.task.name, trained.plan.output_head, _ANY_TEXT, own_backbone=own, form=_form(trained)
    )
    return "\n\n".join(f"```{language}\n{text}\n```" for language, text in commands.items())


_ANY_TEXT = "a text of yours"
"""In a card, which travels: a row of the data may be nobody else's business."""


def sample(trained: TrainedAdapter) -> str:
    """A text to try it with, for whoever trained it: the first held-out one, or the first of training."""
    assert trained.prepared is not None
    row = (trained.prepared.test or trained.prepared.splits.train)[0]
    if isinstance(row, ChatRow):
        return next(message["content"] for message in row.messages if message["role"] == "user")
    return row.prompt if isinstance(row, PromptRow) else text_of(row)


def try_commands(
    model: str, head: OutputHead, text: str, *, own_backbone: bool = False, form: Form | None = None
) -> dict[str, str]:
    """Ways to ask it, by language: shell and Python. One with a backbone of its own is served on that, one that was
    trained on quantised linears on such ones."""
    route, field = _ROUTES.get(head, ("/v1/embeddings", "input"))
    body = json.dumps({"model": model, field: text}, ensure_ascii=False)
    server, held = "http://127.0.0.1:8000", "" if form is None else f" --quantise {form}"
    shell = [
        f"umbel run {model} {shlex.quote(text)}{held}",
        f"umbel serve --backbone {model} &" if own_backbone else f"umbel serve{held} &",
        f"curl {server}{route} -H 'Content-Type: application/json' -d {shlex.quote(body)}",
    ]
    return {"sh": "\n".join(shell), "python": _python(model, head, json.dumps(text, ensure_ascii=False), server)}


def _python(model: str, head: OutputHead, text: str, server: str) -> str:
    if head is OutputHead.GENERATE:
        lines = [
            "from openai import OpenAI",
            f'client = OpenAI(base_url="{server}/v1", api_key="none")',
            f'print(client.completions.create(model="{model}", prompt={text}).choices[0].text)',
        ]
    else:
        verb = {OutputHead.REGRESS: "score", OutputHead.TAG: "tag", OutputHead.EMBED: "embed"}.get(head, "classify")
        lines = ["from umbel.client import Client", f'print(Client("{server}").{verb}("{model}", {text}))']
    return "\n".join(lines)


_ROUTES = {
    OutputHead.GENERATE: ("/v1/completions", "prompt"),
    OutputHead.CLASSIFY: ("/v1/classify", "input"),
    OutputHead.REGRESS: ("/v1/score", "input"),
    OutputHead.TAG: ("/v1/tag", "input"),
}


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(rows: Iterable[tuple[str, ...]], head: tuple[str, ...] = ("", "")) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
