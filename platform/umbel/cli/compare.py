"""``umbel compare``: which of two versions is better on the same rows, and how sure that is."""

from typing import TYPE_CHECKING, Annotated

import typer

from umbel.cli.console import Json, Quiet, examples, print_facts, print_json
from umbel.cli.eval import (
    BackboneName,
    Data,
    LabelColumn,
    Limit,
    Metric,
    TextColumn,
    judge,
    keep,
    need_different,
    open_backbone,
)
from umbel.cli.opened import open_registry
from umbel.core.errors import UsageError
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.core.contract import Contract
    from umbel.evaluation.questions import Questions
    from umbel.evaluation.scoring import Report
    from umbel.experiments.comparison import Comparison
    from umbel.registry.registry import Registry

app = typer.Typer(help="Tell which of two versions is better, and how sure that is.")

Version = Annotated[str, typer.Argument(help="name:3, name@alias, or the backbone's name.", metavar="VERSION")]


@app.command(
    epilog=examples(
        "umbel compare sentiment:1 sentiment:2 --data tweets-sentiment",
        "umbel compare pronounce smollm2-135m-instruct --data pronounce --limit 200",
        "umbel compare sentiment@champion sentiment@canary --data held-out.jsonl --json",
    )
)
def compare(
    a: Version,
    b: Version,
    data: Data,
    metric: Metric = None,
    limit: Limit = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    confidence: Annotated[float, typer.Option(help="Of the interval.", min=0.5, max=0.999)] = 0.95,
    backbone: BackboneName = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tell which of two versions is better on the same rows.

    The difference is paired row by row: exact McNemar for right-or-wrong scores, sign-flip permutation for graded
    ones, each with an interval. Where it cannot tell, it says how many rows would.
    """
    from umbel.evaluation.answering import Asker
    from umbel.training.data.records import Columns

    settings, columns = Settings.load(), Columns(text_column, label_column)
    loaded = open_backbone(settings, backbone)
    with open_registry() as registry:
        names = [_pinned(registry, version, loaded.name) for version in (a, b)]
        need_different(*names)
        _same_question(registry, names, loaded.name)
        asker = Asker(loaded, registry)
        judged = [
            judge(registry, asker, name, data, settings, metric=metric, limit=limit, columns=columns, quiet=quiet)
            for name in names
        ]
        asker.close()
        kept = [
            None if name == loaded.name else keep(registry, name, questions, report)
            for name, (report, questions, _) in zip(names, judged, strict=True)
        ]
    found = paired(judged[0][0], judged[1][0], judged[0][1], confidence=confidence)
    if as_json:
        return print_json(_as_json(names, judged[0][1], judged[0][0].primary, found, kept))
    return _print(names, judged, found, kept)


def paired(a: "Report", b: "Report", questions: "Questions", *, confidence: float) -> "Comparison":
    """Row by row on the primary metric; raises UsageError for one that no paired test fits."""
    from umbel.evaluation.pairing import paired as pair

    found = pair(a, b, questions, confidence=confidence)
    if found is None:
        raise UsageError(
            f"versions cannot be paired by {a.primary}.",
            code="unpaired_metric",
            hint="compare by accuracy, macro_f1, mae, rmse, exact_match or phoneme_error_rate",
        )
    return found


def _pinned(registry: "Registry", version: str, backbone: str) -> str:
    """``name:3``, so that an alias that moves meanwhile changes nothing."""
    return version if version == backbone else str(registry.resolve(version))


def _same_question(registry: "Registry", names: list[str], backbone: str) -> None:
    """Refuses pairs that would not be asked the same thing."""
    contracts = [registry.fetch(registry.resolve(name).digest).manifest.contract for name in names if name != backbone]
    if len(contracts) < 2:
        _only_generates(contracts[0], backbone)
        return
    first, second = contracts
    for what in ("output_head", "labels", "template", "input_form", "decoding"):
        one, other = getattr(first, what), getattr(second, what)
        if one != other:
            raise UsageError(
                f"{names[0]} and {names[1]} differ in {what}: {one!r} and {other!r}.",
                code="not_comparable",
                param=what,
                hint="compare versions that are asked the same question in the same way",
            )


def _only_generates(contract: "Contract", backbone: str) -> None:
    if contract.output_head != "generate":
        raise UsageError(
            f"the bare backbone {backbone} has no {contract.output_head} head to compare with.",
            code="not_comparable",
            hint="compare with another version; the plan and card of a run tell the majority answer's score",
        )


def _as_json(
    names: list[str], questions: "Questions", metric: str, found: "Comparison", kept: list[str | None]
) -> dict[str, object]:
    winner = {"a": names[0], "b": names[1], None: None}[found.winner]
    return {
        "a": names[0],
        "b": names[1],
        "metric": metric,
        "rows": found.n,
        "suite": questions.suite,
        "mean_a": found.mean_a,
        "mean_b": found.mean_b,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p_value": found.p_value,
        "discordant": found.discordant,
        "minimum_detectable": found.minimum_detectable,
        "rows_to_add": found.rows_to_add,
        "winner": winner,
        "sentence": found.sentence(names[0], names[1], metric),
        "method": found.method,
        "evaluations": kept,
    }


def _print(
    names: list[str],
    judged: list[tuple["Report", "Questions", str]],
    found: "Comparison",
    kept: list[str | None],
) -> None:
    report, questions, _ = judged[0]
    metric = report.primary
    least = found.minimum_detectable
    print_facts(
        [
            ("data", f"{questions.name}, {found.n} rows, {found.discordant} scored differently"),
            (names[0], f"{metric} {found.mean_a:.4f}"),
            (names[1], f"{metric} {found.mean_b:.4f}"),
            ("method", found.method),
            ("could show", None if least is None else f"a true difference of {least:.3f} with 80 % power"),
            ("kept as", [each for each in kept if each]),
        ]
    )
    typer.echo(f"\n{found.sentence(names[0], names[1], metric)}")
    winner = {"a": names[0], "b": names[1], None: None}[found.winner]
    if winner and ":" in winner:
        typer.echo(f"  to use it: umbel promote {winner}")
