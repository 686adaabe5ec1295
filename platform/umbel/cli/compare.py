"""``umbel compare``: which of two versions is better on the same rows, and how sure that is."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umbel.cli.choosing import choose_for, root_of
from umbel.cli.console import Json, Quiet, examples, print_facts, print_json
from umbel.cli.eval import (
    BackboneName,
    Data,
    LabelColumn,
    Limit,
    Metric,
    TextColumn,
    Unseen,
    judge,
    keep,
    known_of_all,
    left_out,
    need_different,
    warn_of_trained,
)
from umbel.cli.opened import open_registry
from umbel.core.contract import shown
from umbel.core.errors import AdapterRefused, UsageError
from umbel.core.names import CHAMPION
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.backbone.installed import InstalledBackbone
    from umbel.core.contract import Contract
    from umbel.evaluation.questions import Questions
    from umbel.evaluation.scoring import Report
    from umbel.experiments.comparison import Comparison
    from umbel.registry.registry import Registry

app = typer.Typer(help="Tell which of two versions is better, and how sure that is.")

_VERSION = "name:3, name@alias, or the backbone's name."


@app.command(
    epilog=examples(
        "umbel compare sentiment:1 sentiment:2 --data tweets-sentiment",
        "umbel compare pronounce smollm2-135m-instruct --data pronounce --limit 200",
        "umbel compare sentiment@champion sentiment@canary --data held-out.jsonl --json",
        "umbel compare mood:1 mood:2 --data tweets.csv --unseen   (only rows that neither was trained on)",
    )
)
def compare(
    a: Annotated[str, typer.Argument(help=_VERSION, metavar="VERSION")],
    b: Annotated[str, typer.Argument(help=_VERSION, metavar="OTHER")],
    data: Data,
    metric: Metric = None,
    limit: Limit = None,
    unseen: Unseen = False,
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
    from umbel.training.data.records import Columns

    settings, columns = Settings.load(), Columns(text_column, label_column)
    with open_registry() as registry:
        places = [choose_for(settings, backbone, [version]) for version in (a, b)]
        names = [_pinned(registry, version, place.name) for version, place in zip((a, b), places, strict=True)]
        need_different(*names)
        _same_question(registry, names, {place.name for place in places})
        root = _common_root(registry, names, places)
        known = known_of_all(registry, settings, names, {place.name for place in places}, data, columns)
        asking: dict[str, Any] = {"metric": metric, "limit": limit, "columns": columns, "quiet": quiet}
        asking["without"] = left_out(known) if unseen else ()
        judged = _judge_each(registry, settings, names, places, data, **asking)
        kept = [
            None if name == place.name else keep(registry, name, questions, report, settings.quantise)
            for name, place, (report, questions, _) in zip(names, places, judged, strict=True)
        ]
        of_adapters = [name for name, place in zip(names, places, strict=True) if name != place.name]
        crowned = [name for name in of_adapters if CHAMPION in registry.versions.get(name).aliases]
    found = paired(judged[0][0], judged[1][0], judged[0][1], confidence=confidence)
    warn_of_trained(known, judged[0][1])
    on = [place.name for place in places]
    if as_json:
        told = _as_json(names, judged[0][1], judged[0][0].primary, found, kept) | {"backbones": on}
        trained = [None if each is None else each.count(judged[0][1]) for each in known]
        return print_json(told | {"trained_on_a": trained[0], "trained_on_b": trained[1]})
    facts = [("backbones", _told_apart(on, root))] if root is not None else []
    return _print(names, judged, found, kept, facts, crowned)


def _common_root(registry: "Registry", names: list[str], places: "list[InstalledBackbone]") -> str | None:
    """None where both have one backbone; raises AdapterRefused where theirs have nothing in common."""
    if places[0].name == places[1].name:
        return None
    known = {one.name: one.fingerprint for one in registry.backbones.list()}
    roots = [root_of(registry, known[place.name]) if place.name in known else place.name for place in places]
    if roots[0] != roots[1]:
        raise AdapterRefused(
            f"{names[0]} was made for backbone {places[0].name}, {names[1]} for {places[1].name}, and neither was "
            "trained from the other's root: they differ in more than their training.",
            code="wrong_backbone",
            hint="compare versions whose backbones descend from one (umbel backbones list)",
        )
    return roots[0]


def _told_apart(names: list[str], root: str) -> str:
    return f"{names[0]}, then {names[1]}: one after the other, both descend from {root}"


def _judge_each(
    registry: "Registry",
    settings: Settings,
    names: list[str],
    places: "list[InstalledBackbone]",
    data: str,
    **more: Any,
) -> list[tuple["Report", "Questions", str]]:
    """One backbone in memory at a time."""
    from umbel.cli.serve import load
    from umbel.evaluation.answering import Asker

    judged, asker = [], None
    for name, place in zip(names, places, strict=True):
        if asker is None or asker.backbone.name != place.name:
            if asker is not None:
                asker.close()
                asker = None
            asker = Asker(load(settings, place, "auto"), registry)
        judged.append(judge(registry, asker, name, data, settings, **more))
    assert asker is not None
    asker.close()
    return judged


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


def _same_question(registry: "Registry", names: list[str], backbones: set[str]) -> None:
    """Refuses pairs that would not be asked the same thing."""
    contracts = [
        registry.fetch(registry.resolve(name).digest).manifest.contract for name in names if name not in backbones
    ]
    if len(contracts) < 2:
        _only_generates(contracts, names)
        return
    first, second = contracts
    for what in ("output_head", "labels", "template", "input_form", "decoding"):
        one, other = getattr(first, what), getattr(second, what)
        if one != other:
            raise UsageError(
                f"{names[0]} and {names[1]} differ in {what}: {shown(one)} and {shown(other)}.",
                code="not_comparable",
                param=what,
                hint="compare versions that are asked the same question in the same way",
            )


def _only_generates(contracts: "list[Contract]", names: list[str]) -> None:
    head = next((contract.output_head for contract in contracts), "generate")
    if head != "generate":
        bare = next(name for name in names if ":" not in name)
        raise UsageError(
            f"the bare backbone {bare} has no {head} head to compare with.",
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
        "higher_is_better": found.higher_is_better,
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
    more: list[tuple[str, str]],
    crowned: Sequence[str],
) -> None:
    report, questions, _ = judged[0]
    metric = report.primary
    least = found.minimum_detectable
    print_facts(
        [
            ("data", f"{questions.name}, {found.n} rows, {found.discordant} scored differently"),
            ("judged by", None if found.higher_is_better else f"{metric}; less is better"),
            (names[0], f"{metric} {found.mean_a:.4f}"),
            (names[1], f"{metric} {found.mean_b:.4f}"),
            *more,
            ("method", found.method),
            ("could show", None if least is None else f"a true difference of {least:.3f} with 80 % power"),
            ("kept as", [each for each in kept if each]),
        ]
    )
    typer.echo(f"\n{found.sentence(names[0], names[1], metric)}")
    winner = {"a": names[0], "b": names[1], None: None}[found.winner]
    if winner and ":" in winner and winner not in crowned:
        typer.echo(f"  to use it: umbel promote {winner}")
