"""After the last step: judge on held-out rows, publish, and say how to try it."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from umbel.cli.console import human_bytes, print_facts
from umbel.cli.promote import moved
from umbel.cli.train.sweep import tell_sweep
from umbel.core.digests import digest_bytes
from umbel.core.errors import GateFailed, NotFound, UmbelError, Unavailable
from umbel.core.protocols import VersionRef
from umbel.core.wheels import Say

if TYPE_CHECKING:
    from umbel.backbone.backbone import Backbone
    from umbel.backbone.installed import InstalledBackbone
    from umbel.backbone.native import Kernels
    from umbel.core.gate import Gate
    from umbel.evaluation.answering import Asker
    from umbel.evaluation.forgetting import Forgetting, Probe
    from umbel.evaluation.held import HeldAdapters
    from umbel.evaluation.judge import Judged, Rival
    from umbel.evaluation.serving_cost import ServingCost
    from umbel.registry.records import AliasEvent, Version
    from umbel.registry.registry import Registry
    from umbel.training.card import Effects, Finding
    from umbel.training.fitting import TrainedAdapter
    from umbel.training.task import Task


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one task."""

    trained: "TrainedAdapter"
    version: "Version | None" = None
    """None where it failed, or was not to be published."""
    finding: "Finding | None" = None
    effects: "Effects | None" = None
    cost: "ServingCost | None" = None
    failures: tuple[str, ...] = ()
    """Clauses of its gate that do not hold."""
    champion: VersionRef | None = None
    """What the bare name answers with now."""
    moved: "AliasEvent | None" = None
    """What its gate moved."""
    derived: "InstalledBackbone | None" = None
    """The backbone that was trained with it, where it was kept."""

    def as_json(self) -> dict[str, Any]:
        trained, best = self.trained, self.trained.best
        return {
            "name": trained.task.name,
            "status": trained.status.value,
            "error": None if trained.error is None else {"message": str(trained.error), "code": trained.error.code},
            "run": trained.run or None,
            "version": None if self.version is None else self.version.ref,
            "steps": trained.steps,
            "tokens": trained.tokens,
            "best": None if best is None else asdict(best),
            "result": None if self.finding is None else {**asdict(self.finding), "sentences": self.finding.sentences},
            "effects": None if self.effects is None else {**asdict(self.effects), "backbone_sha256": trained.frozen},
            "serving": None if self.cost is None else asdict(self.cost),
            "gate": self.gate,
            "sweep": None if trained.sweep is None else asdict(trained.sweep),
            "backbone": None if self.derived is None else self.derived.name,
        }

    @property
    def known(self) -> bool:
        """Whether another run published the same bytes before: there is no new version."""
        return self.version is not None and self.version.run not in (None, self.trained.run)

    @property
    def gate(self) -> dict[str, Any] | None:
        wanted = self.trained.task.gate
        return None if wanted is None else {"wanted": wanted, "passed": not self.failures, "failures": self.failures}


def finish(
    registry: "Registry",
    backbone: "Backbone",
    trained: "list[TrainedAdapter]",
    *,
    publish: bool,
    allow_noop: bool,
    say: Say,
) -> list[Outcome]:
    """Judges and publishes every task that trained, on the backbone as a server has it: nothing trains on it
    afterwards."""
    from umbel.backbone.loading import make_servable
    from umbel.evaluation.answering import Asker
    from umbel.evaluation.forgetting import Probe
    from umbel.evaluation.held import holding

    make_servable(backbone, _kernels(backbone))
    with holding(registry) as held:
        asker = Asker(backbone, held)
        finisher = Finisher(registry, backbone, asker, held, Probe(backbone), publish, allow_noop, say)
        try:
            if len(trained) == 1:
                return [finisher.outcome(trained[0])]
            return [finisher.outcome_beside_others(each) for each in trained]
        finally:
            asker.close()


def _kernels(backbone: "Backbone") -> "Kernels | None":
    """A server's. Where they are demanded and cannot be had, torch judges: what was trained is worth more."""
    from umbel.backbone.native import Kernels
    from umbel.core.settings import Settings

    settings = Settings.load()
    if not Kernels.fit(backbone.dtype, backbone.device):
        return None
    return Kernels.wanted(replace(settings, kernels="auto") if settings.kernels == "on" else settings)


@dataclass(frozen=True)
class Finisher:
    """Takes one trained adapter after the other through judging, its gate and publishing."""

    registry: "Registry"
    backbone: "Backbone"
    asker: "Asker"
    held: "HeldAdapters"
    probe: "Probe"
    publish: bool
    allow_noop: bool
    say: Say

    def outcome_beside_others(self, trained: "TrainedAdapter") -> Outcome:
        """One that failed, while it trained or here, leaves alone: its run says why, and the others are published."""
        from umbel.training.trainee import Status

        try:
            if trained.error is not None:
                raise trained.error
            return self.outcome(trained)
        except UmbelError as error:
            if trained.run and self.registry.runs.get(trained.run).finished_at is None:
                self.registry.finish(trained.run, status="failed", error=str(error))
            return Outcome(replace(trained, error=error, status=Status.FAILED))

    def outcome(self, trained: "TrainedAdapter") -> Outcome:
        from umbel.core.gate import parse_gate
        from umbel.evaluation.serving_cost import serving_cost

        assert trained.adapter is not None
        gate = None if trained.task.gate is None else parse_gate(trained.task.gate)
        judged, notes = self._judge(trained, gate.metrics if gate else ())
        forgetting = self.probe.of(trained.adapter)
        values = forgetting.values | (judged.report.summary if judged is not None else {})
        failures = tuple(gate.failures(values)) if gate else ()
        cost = serving_cost(trained.adapter, self.backbone)
        finding = None if judged is None else replace(judged.finding(trained.task.name), notes=notes)
        effects = _effects(forgetting, cost, gate, failures)
        # With a gate it is the gate that makes a champion, of a first version too, and the history says so.
        version = self._publish(trained, finding, effects, crown=gate is None) if self.publish else None
        kept = self._keep(version, judged) if version is not None and judged is not None else None
        moved = None
        if version is not None and gate is not None and not failures:
            moved = self.registry.aliases.promote(str(version.ref), reason=f"passed its gate: {gate}", evidence=kept)
            version = self.registry.versions.get(str(version.ref))
        if trained.run:
            self._note(trained.run, version, finding, values, None if gate is None else failures)
        champion = self._resolve(f"{trained.task.name}@champion")
        return Outcome(trained, version, finding, effects, cost, failures, champion, moved)

    def _judge(self, trained: "TrainedAdapter", also: "Sequence[str]") -> "tuple[Judged | None, list[str]]":
        from umbel.evaluation.judge import judge
        from umbel.evaluation.questions import questions_of
        from umbel.evaluation.scoring import metrics_of

        prepared, adapter = trained.prepared, trained.adapter
        assert prepared is not None
        assert adapter is not None
        if not prepared.test:
            return None, []
        head, digest = adapter.contract.output_head, self.held.hold(adapter)
        questions = questions_of(prepared.test, head, prepared.metric, f"{prepared.splits.name}/test")
        rivals, notes = self._rivals(trained)
        began, name = time.monotonic(), trained.task.name
        self.say(f"{name}: judging on {len(questions.rows)} held-out rows")
        scored = [metric for metric in also if metric in metrics_of(head)]
        train = prepared.splits.train
        found = judge(self.asker, digest, adapter.contract, questions, train, rivals=rivals, also=scored)
        self.say(f"{name}: judged in {time.monotonic() - began:.0f} s")
        return found, notes

    def _rivals(self, trained: "TrainedAdapter") -> "tuple[list[Rival], list[str]]":
        """The parent and the champion that can be asked the same rows, and why the others cannot."""
        from umbel.adapters.peft_io import export_files
        from umbel.evaluation.judge import Rival, why_not

        assert trained.adapter is not None
        files = export_files(trained.adapter, backbone_name=self.backbone.name)
        own = {path: digest_bytes(content) for path, content in files.items()}
        rivals, notes = [], []
        for ref, roles in self._before(trained).items():
            name, manifest = f"{ref} ({' and '.join(roles)})", self.registry.fetch(ref.digest).manifest
            why = why_not(trained.adapter.contract, manifest.contract)
            if manifest.backbone != self.backbone.fingerprint:
                why = "it was made for another backbone"
            elif {file.path: file.digest for file in manifest.files} == own:
                why = "it has the same bytes"
            if why is not None:
                notes.append(f"not compared with {name}: {why}")
            else:
                rivals.append(Rival(name, ref.digest, manifest.contract))
        return rivals, notes

    def _before(self, trained: "TrainedAdapter") -> "dict[VersionRef, list[str]]":
        """The versions that this one would follow, and what they are to it."""
        wanted = {"parent": trained.task.parent, "champion": f"{trained.task.name}@champion"}
        found: dict[VersionRef, list[str]] = {}
        for role, name in wanted.items():
            ref = self._resolve(name) if name is not None else None
            if ref is not None:
                found.setdefault(ref, []).append(role)
        return found

    def _resolve(self, name: str) -> VersionRef | None:
        """None where there is none: a first version has no champion, a yanked one answers nobody."""
        try:
            return self.registry.resolve(name)
        except (NotFound, Unavailable):
            return None

    def _publish(
        self, trained: "TrainedAdapter", finding: "Finding | None", effects: "Effects", *, crown: bool
    ) -> "Version":
        from umbel.training.publish import publish

        backbones = self.registry.backbones.list()
        licence = next((known.licence for known in backbones if known.name == self.backbone.name), None)
        return publish(
            self.registry,
            trained,
            self.backbone,
            finding=finding,
            effects=effects,
            licence=licence,
            allow_noop=self.allow_noop,
            crown=crown,
        )

    def _note(
        self,
        run: str,
        version: "Version | None",
        finding: "Finding | None",
        values: "Mapping[str, float]",
        failures: "Sequence[str] | None",
    ) -> None:
        from umbel.cli.train.became import note_end

        ref, metrics = (None, values) if version is None else (str(version.ref), version.metrics)
        note_end(self.registry, run, ref, metrics, finding, failures)

    def _keep(self, version: "Version", judged: "Judged") -> str:
        from umbel.cli.eval import keep

        return keep(self.registry, str(version.ref), judged.questions, judged.report, self.backbone.quantised)


def _effects(
    forgetting: "Forgetting", cost: "ServingCost", gate: "Gate | None", failures: "Sequence[str]"
) -> "Effects":
    from umbel.training.card import Effects

    verdict = "" if gate is None else f"Gate `{gate}`: {'; '.join(failures) if failures else 'passed'}."
    return Effects(
        forgetting=forgetting.rise,
        perplexity=forgetting.on.perplexity,
        perplexity_off=forgetting.off.perplexity,
        general=forgetting.on.accuracy,
        general_off=forgetting.off.accuracy,
        bytes=cost.bytes,
        gate=verdict,
    )


def tell(outcome: Outcome, backbone: str) -> None:
    """The result, and the exact commands to try it."""
    trained, version, finding = outcome.trained, outcome.version, outcome.finding
    if trained.error is not None:
        typer.echo(f"{trained.task.name} failed: {trained.error}", err=True)
        return
    named = trained.task.name if version is None else str(version.ref)
    known = f"{named}, published before: training gave the same bytes, there is no new version"
    facts: list[tuple[str, object]] = [("adapter", known if outcome.known else named)]
    if finding is not None:
        ends = "" if finding.low is None else f" (95 % CI {finding.low:.3f} to {finding.high:.3f})"
        less = "; less is better" if finding.less_is_better else ""
        facts.append((finding.metric, f"{finding.value:.3f}{ends} on {finding.rows} held-out rows{less}"))
        facts += [("", f"{value:.3f} {name}") for name, value in finding.baselines.items()]
    facts += _beside(outcome)
    if version is not None:
        facts.append(("size", human_bytes(version.bytes)))
        facts += _own_backbone(outcome)
        facts.append(("answers as", ", ".join([*version.aliases, str(version.number)])))
    print_facts(facts)
    for sentence in finding.sentences if finding is not None else ():
        typer.echo(sentence)
    _warn(outcome)
    if outcome.gate is not None:
        typer.echo(f"gate {outcome.gate['wanted']}: {'passed' if outcome.gate['passed'] else 'not passed'}")
    if outcome.moved is not None:
        typer.echo(moved(outcome.moved))
    tell_sweep(trained.sweep)
    if version is not None:
        _tell_how(outcome, version, backbone)


def _warn(outcome: Outcome) -> None:
    """Where the bare name answers with a version that nothing, no gate either, holds to have learnt something, or that
    its gate put in the place of one that it is not shown to beat."""
    version, finding, event = outcome.version, outcome.finding, outcome.moved
    if version is None or finding is None or "champion" not in version.aliases:
        return
    unbeaten = [each.name for each in finding.against if each.winner != outcome.trained.task.name]
    if event is not None and event.origin not in (None, event.target):
        before = f"{event.name}:{event.origin}"
        if any(name.startswith(f"{before} ") for name in unbeaten):
            typer.echo(
                f"beware: its gate holds, but it is not shown to be better than {before}, whose place it took", err=True
            )
    elif unbeaten and outcome.gate is None:
        typer.echo(
            f"beware: {version.name} answers with it, but it is not shown to be better than {', '.join(unbeaten)}\n"
            f"  train it longer or on more rows; until then: umbel alias rm {version.name} champion",
            err=True,
        )


def _own_backbone(outcome: Outcome) -> list[tuple[str, object]]:
    found = outcome.derived
    if found is None or found.source.parent is None:
        return []
    form = "changes to" if found.partial else "whole, trained from"
    return [("backbone", f"{found.name}: {human_bytes(found.bytes)}, {form} {found.source.parent.name}")]


def _beside(outcome: Outcome) -> list[tuple[str, object]]:
    """What it does beside its task, and to serving."""
    effects, cost = outcome.effects, outcome.cost
    if effects is None or cost is None:
        return []
    skills = f"general questions {effects.general_off:.0%} to {effects.general:.0%} right"
    own = outcome.trained.plan is not None and outcome.trained.plan.precision is not None
    off = "beside the backbone that it was trained from" if own else "none with it off"
    return [
        ("forgetting", f"{effects.forgetting:+.1%} perplexity, {skills}; {off}"),
        ("serving", [f"adds {each}" for each in (f"{human_bytes(cost.bytes)} of memory", *cost.sentences)]),
    ]


def _tell_how(outcome: Outcome, version: "Version", backbone: str) -> None:
    """Commands that work as they stand."""
    from umbel.core.contract import OutputHead
    from umbel.training.card import sample, try_commands

    task, champion = outcome.trained.task, "champion" in version.aliases
    model = version.name if champion else str(version.ref)
    own = outcome.derived is not None
    commands = try_commands(
        model, version.output_head, sample(outcome.trained), own_backbone=own, form=version.contract.quantised
    )
    typer.echo("\ntry it:")
    for line in [line for text in commands.values() for line in text.splitlines()]:
        typer.echo(f"  {line}")
    if not champion:
        if outcome.champion is not None:
            typer.echo(f"  umbel compare {version.ref} {version.name} {_data_flags(task)}")
        typer.echo(f"  umbel promote {version.ref}")
    elif version.output_head is OutputHead.GENERATE:
        typer.echo(f"  umbel compare {model} {backbone} {_data_flags(task)}")


def _data_flags(task: "Task") -> str:
    """As a shell takes them: rows kept from training, with the file's own names for its columns."""
    data = task.test or task.data
    given = {"--data": data, "--text-column": task.text_column, "--label-column": task.label_column}
    told = [f"{flag} {shlex.quote(value)}" for flag, value in given.items() if value is not None]
    one_file = task.test is None and Path(task.data).is_file()
    return " ".join([*told, "--unseen"] if one_file else told)


def fail_at_gates(outcomes: Sequence[Outcome]) -> None:
    """Raises GateFailed naming each clause that does not hold, with the figure."""
    failed = [outcome for outcome in outcomes if outcome.failures]
    if not failed:
        return
    told = [f"{_name(outcome)} did not pass its gate: {'; '.join(outcome.failures)}" for outcome in failed]
    version = failed[0].version
    raise GateFailed(
        ". ".join(told) + ".",
        hint=f"it is published all the same: umbel promote {version.ref}" if version else "train it better",
    )


def _name(outcome: Outcome) -> str:
    return outcome.trained.task.name if outcome.version is None else str(outcome.version.ref)
