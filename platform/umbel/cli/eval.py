"""``umbel eval``: score one version, or the bare backbone, on a dataset."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.console import Json, Quantise, Quiet, examples, print_facts, print_json, say_to_stderr
from umbel.cli.opened import open_registry
from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import AdapterRefused, GateFailed, UsageError
from umbel.core.forms import Form, other_form, told
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.backbone.backbone import Backbone
    from umbel.core.gate import Gate
    from umbel.evaluation.answering import Asker
    from umbel.evaluation.questions import Questions
    from umbel.evaluation.scoring import Report
    from umbel.evaluation.seen import Known
    from umbel.registry.registry import Registry
    from umbel.training.data.records import Columns

app = typer.Typer(help="Score one version on a dataset.")

Data = Annotated[str, typer.Option("--data", help="JSONL or CSV file, or a dataset of the home (its test split).")]
TextColumn = Annotated[str | None, typer.Option("--text-column", help="The file's name for the text.", metavar="NAME")]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", help="The file's name for the answer.", metavar="NAME")
]
Metric = Annotated[str | None, typer.Option(help="Decides; default is the dataset's own.")]
Limit = Annotated[int | None, typer.Option(help="Only the first rows.", min=1)]
Unseen = Annotated[bool, typer.Option("--unseen", help="Leave out rows that a version was trained on.")]
BackboneName = Annotated[str | None, typer.Option("--backbone", help="Default: the one that it was made for.")]


@app.command(
    epilog=examples(
        "umbel eval sentiment --data tweets-sentiment",
        "umbel eval pronounce:2 --data pronounce --limit 500",
        "umbel eval pronounce:2 --data pronounce --gate 'phoneme_error_rate<=0.25, forgetting<=0.1'",
        "umbel eval sentiment --data reviews.csv --text-column review --label-column stars",
        "umbel eval mood --data tweets.csv --unseen   (only the rows that its training left out)",
        "umbel eval sentiment --data tweets-sentiment --quantise int8",
        "umbel eval smollm2-135m-instruct --data pronounce --limit 100   (the bare backbone)",
    )
)
def evaluate(
    version: Annotated[str, typer.Argument(help="name, name:3, name@alias, or the backbone's name.", metavar="NAME")],
    data: Data,
    metric: Metric = None,
    limit: Limit = None,
    unseen: Unseen = False,
    gate: Annotated[
        str | None,
        typer.Option(help="Exit with 5 unless 'accuracy>=0.8, forgetting<=0.1' holds.", metavar="CONDITIONS"),
    ] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    backbone: BackboneName = None,
    quantise: Quantise = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score one version on a dataset. The score of every row is kept, so that versions can be compared later.

    With --gate it exits with 5 where a condition does not hold. It moves no alias: umbel promote does.
    """
    from umbel.core.gate import parse_gate
    from umbel.evaluation.answering import Asker
    from umbel.training.data.records import Columns

    settings, columns = Settings.load(), Columns(text_column, label_column)
    wanted = None if gate is None else parse_gate(gate)
    loaded = open_backbone(settings, backbone, version, quantise)
    with open_registry() as registry:
        asker = Asker(loaded, registry)
        [known] = known_of_all(registry, settings, [version], {loaded.name}, data, columns)
        report, questions, name = judge(
            registry, asker, version, data, settings, metric=metric, limit=limit, columns=columns,
            without=left_out([known]) if unseen else (), gate=wanted, quiet=quiet,
        )  # fmt: skip
        values = report.summary | (_probed(registry, loaded, name) if wanted and _probes(wanted) else {})
        kept = None if name == loaded.name else keep(registry, name, questions, report, loaded.quantised)
        asker.close()
    if as_json:
        facts = {"version": name, "suite": questions.suite, "evaluation": kept, "rows": len(questions.rows)}
        facts |= {"quantised": loaded.quantised, "trained_on": None if known is None else known.count(questions)}
        print_json(facts | values)
    else:
        _print(name, questions, report, kept, loaded)
    warn_of_trained([known], questions)
    if wanted is not None and (failures := wanted.failures(values)):
        raise GateFailed(f"{name} did not pass the gate: {'; '.join(failures)}.", hint="keep the version you have")


def _probes(gate: "Gate") -> bool:
    from umbel.evaluation.gates import PROBES

    return any(metric in PROBES for metric in gate.metrics)


def _probed(registry: "Registry", backbone: "Backbone", name: str) -> dict[str, float]:
    """Forgetting of a version; the bare backbone has nothing to forget."""
    from umbel.adapters.peft_io import load_adapter
    from umbel.evaluation.forgetting import Probe

    adapter = None
    if name != backbone.name:
        adapter = load_adapter(registry.fetch(registry.resolve(name).digest), backbone.shape)
    return Probe(backbone).of(adapter).values


def open_backbone(settings: Settings, name: str | None, model: str, quantise: str | None) -> "Backbone":
    """The named one, or the one that this version was made for."""
    from umbel.cli.choosing import choose_for
    from umbel.cli.serve import load

    return load(settings, choose_for(settings, name, [model]), "auto", quantise)


def judge(
    registry: "Registry", asker: "Asker", version: str, data: str, settings: Settings,
    *, metric: str | None, limit: int | None, columns: "Columns", without: Collection[str] = (),
    gate: "Gate | None" = None, quiet: bool,
) -> tuple["Report", "Questions", str]:  # fmt: skip
    """(report, questions, name as ``name:3``) of a version or of the bare backbone."""
    from umbel.evaluation.gates import check_metrics
    from umbel.evaluation.questions import check_labels, load_questions
    from umbel.evaluation.scoring import metrics_of, score

    say = say_to_stderr(quiet)
    if version == asker.backbone.name:
        contract, digest, name = Contract(output_head=OutputHead.GENERATE), None, version
    else:
        ref = registry.resolve(version)
        manifest = registry.fetch(ref.digest).manifest
        check_backbone(manifest.backbone, asker.backbone, str(ref))
        contract, digest, name = manifest.contract, ref.digest, str(ref)
        if note := other_form(name, contract.quantised, asker.backbone.quantised):
            say(note)
    if gate is not None:
        check_metrics(gate, contract.output_head)
    also = [each for each in gate.metrics if each in metrics_of(contract.output_head)] if gate else []
    questions = load_questions(data, contract.output_head, settings, limit=limit, columns=columns, without=without)
    check_labels(questions, contract, name)
    answers = asker.ask(digest, contract, questions, say=lambda line: say(f"{name}: {line}"))
    return score(questions, answers, metric=metric, also=also), questions, name


def known_of_all(
    registry: "Registry", settings: Settings, names: Sequence[str], bare: Collection[str], data: str, columns: "Columns"
) -> "list[Known | None]":
    """What each version was trained on, among the texts of ``data``; None for the ``bare`` backbones."""
    from umbel.evaluation.questions import keys_of, load_questions
    from umbel.evaluation.seen import known_of

    refs = [None if name in bare else registry.resolve(name) for name in names]
    first = next((ref for ref in refs if ref is not None), None)
    if first is None:
        return [None for _ in names]
    head = registry.fetch(first.digest).manifest.contract.output_head
    among = frozenset(keys_of(load_questions(data, head, settings, columns=columns).rows))
    return [None if ref is None else known_of(registry, str(ref), data, settings, among=among) for ref in refs]


def left_out(known: "Sequence[Known | None]") -> frozenset[str]:
    """What --unseen leaves out; the bare backbone has no training that is known of."""
    from umbel.evaluation.seen import unseen_by

    return unseen_by([each for each in known if each is not None])


def warn_of_trained(known: "Sequence[Known | None]", questions: "Questions") -> None:
    for each in known:
        if each is not None and (warning := each.warning(questions)):
            typer.echo(warning, err=True)


def check_backbone(fingerprint: str, loaded: "Backbone", name: str) -> None:
    if fingerprint != loaded.fingerprint:
        raise AdapterRefused(
            f"{name} was made for backbone {fingerprint}, {loaded.name} is {loaded.fingerprint}.",
            code="wrong_backbone",
            hint="name the right one with --backbone (umbel backbones list)",
        )


def keep(registry: "Registry", name: str, questions: "Questions", report: "Report", form: Form | None = None) -> str:
    """Saves summary and items, and the form of the backbone's linears; returns the evaluation's id."""
    from umbel.registry.records import EvalItem

    ids = questions.ids()
    items = [
        EvalItem(item=item, metric=metric, score=float(value), output=output if metric == report.primary else None)
        for metric, scored in report.scores.items()
        if scored.aggregate == "mean"
        for item, value, output in zip(ids, scored.items, report.outputs, strict=True)
    ]
    params = {"data": questions.name, "decoding": "greedy", "metric": report.primary}
    params |= {} if form is None else {"quantised": form}
    return registry.evaluations.save(name, suite=questions.suite, summary=report.summary, items=items, params=params).id


def _print(name: str, questions: "Questions", report: "Report", kept: str | None, backbone: "Backbone") -> None:
    from umbel.evaluation.scoring import interval

    facts: list[tuple[str, object]] = [("version", name), ("data", f"{questions.name}, {len(questions.rows)} rows")]
    facts += [("backbone", told(backbone.quantised))] if backbone.quantised else []
    for metric, scored in report.scores.items():
        ends = interval(scored)
        within = "" if ends is None else f"  (95 % CI {ends[0]:.3f} to {ends[1]:.3f})"
        less = "" if scored.higher_is_better else "  less is better"
        facts.append((metric, f"{scored.value:.3f}{within}{less}"))
    facts.append(("kept as", kept))
    print_facts(facts)


def need_different(a: str, b: str) -> None:
    if a == b:
        raise UsageError(f"both names mean {a}.", code="same_version", hint="name two versions, such as x:1 x:2")
