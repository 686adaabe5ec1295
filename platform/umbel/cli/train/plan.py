"""The plan as a person reads it before the first step."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from umbel.cli.console import human_bytes, human_count, human_number, human_seconds
from umbel.core.forms import told

if TYPE_CHECKING:
    from umbel.training.plan import FitPlan, TaskPlan
    from umbel.training.sweep.halving import Halving

Facts = list[tuple[str, str]]


def plan_lines(plan: "FitPlan") -> Iterator[str]:
    """One block per task, and one for the machine."""
    for task in plan.tasks if plan.sweep is None else plan.tasks[:1]:
        yield from _aligned(_task_facts(task))
        yield ""
    if plan.sweep is not None:
        yield from _aligned(_sweep_facts(plan, plan.sweep))
        yield ""
    yield from _aligned(_machine_facts(plan))


def _task_facts(task: "TaskPlan") -> Facts:
    facts = [
        ("adapter", f"{task.name}: {task.method}, {task.output_head} head, {human_count(task.parameters)} parameters"),
        ("data", f"{task.data}: {_rows(task)}"),
        ("tokens", _tokens(task)),
        ("steps", f"{human_count(task.steps)} of {task.batch_size} rows, {task.epochs:.2g} epochs"),
        ("learning rate", f"{task.lr:g} ({task.lr_why})"),
        ("judged by", f"{task.metric} on {human_count(task.test_rows)} held-out rows"),
    ]
    if task.freezing_saves is not None:
        facts[0:1] = list(_backbone_facts(task))
    if task.kept_layers:
        kept = f"what the first {task.kept_layers} layers make of a row, {human_bytes(task.kept_bytes)} (trunk_cache)"
        facts.insert([name for name, _ in facts].index("tokens") + 1, ("computed once", kept))
    if task.balance:
        facts.insert([name for name, _ in facts].index("data") + 1, ("labels", _balance(task)))
    if task.leaks:
        facts.append(("beware", f"{human_count(task.leaks)} test rows have a text that is in train, too"))
    return facts


def _backbone_facts(task: "TaskPlan") -> Iterator[tuple[str, str]]:
    """Of a task that trains the backbone's own tensors."""
    assert task.freezing_saves is not None
    saved = task.freezing_saves
    yield (
        "trains",
        f"{task.name}: {task.trains}, {human_count(task.backbone_parameters)} of the backbone's parameters "
        f"and a {task.output_head} head, {task.precision}",
    )
    if saved.total > 0:
        parts = {
            "optimizer": saved.optimizer,
            "gradients": saved.gradients,
            "weights": saved.weights + saved.best,
            "activations": saved.activations,
        }
        told = ", ".join(f"{human_bytes(size)} {what}" for what, size in parts.items() if size > 0)
        yield ("freezing saves", f"{human_bytes(saved.total)} beside training all: {told}")


def _rows(task: "TaskPlan") -> str:
    return f"{human_count(task.train_rows)} rows, {human_count(task.validation_rows)} for validation"


def _tokens(task: "TaskPlan") -> str:
    share = task.truncated / task.train_rows
    parts = [
        f"{human_count(task.tokens)} per epoch, {human_count(task.total_tokens)} in all, longest row {task.longest}",
        f"{share:.1%} of the rows cut" if task.truncated else "no row cut",
    ]
    if task.left_out:
        parts.append(f"{human_count(task.left_out)} too long and left out")
    return ", ".join(parts)


def _balance(task: "TaskPlan") -> str:
    total = max(1, sum(task.balance.values()))
    return ", ".join(f"{label} {count / total:.0%}" for label, count in task.balance.items())


def _sweep_facts(plan: "FitPlan", sweep: "Halving") -> Facts:
    from umbel.training.sweep.report import choice_text

    tried = [(task.name, choice_text(choice)) for task, choice in zip(plan.tasks, sweep.choices, strict=True)]
    return [("sweep", f"{sweep.field} configurations of the above; {sweep.rule}"), *tried]


def _machine_facts(plan: "FitPlan") -> Facts:
    threads = human_number(plan.threads, "thread")
    memory = f"{human_bytes(plan.memory)} of memory" + ("" if plan.processes == 1 else " in each process")
    return [
        ("backbone", f"{plan.backbone}, {plan.dtype}{_form(plan)} on {plan.device}, {threads}"),
        ("needs about", f"{memory} and {human_seconds(plan.seconds)} to train"),
        ("beyond that", "judging: held-out rows, forgetting and what it adds to serving"),
    ]


def _form(plan: "FitPlan") -> str:
    return "" if plan.quantised is None else f" with {told(plan.quantised)}"


def _aligned(facts: Facts) -> Iterator[str]:
    width = max(len(name) for name, _ in facts) + 2
    return (f"{name:<{width}}{fact}" for name, fact in facts)
