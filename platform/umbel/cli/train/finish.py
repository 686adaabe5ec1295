"""After the last step: judge on held-out rows, publish, and say how to try it."""

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from umbel.core.wheels import Say

if TYPE_CHECKING:
    from umbel.backbone.backbone import Backbone
    from umbel.evaluation.answering import Asker
    from umbel.registry.records import Version
    from umbel.registry.registry import Registry
    from umbel.training.card import Finding
    from umbel.training.fitting import TrainedAdapter


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one task."""

    trained: "TrainedAdapter"
    version: "Version | None"
    """None where it failed, or was not to be published."""
    finding: "Finding | None"

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
            "result": None if self.finding is None else asdict(self.finding),
        }


def finish(
    registry: "Registry",
    backbone: "Backbone",
    trained: "list[TrainedAdapter]",
    *,
    publish: bool,
    allow_noop: bool,
    say: Say,
) -> list[Outcome]:
    """Judges and publishes every task that trained. Packs the backbone's weights: nothing trains on it afterwards."""
    from umbel.backbone.linears import can_pack
    from umbel.backbone.loading import pack
    from umbel.evaluation.answering import Asker
    from umbel.evaluation.held import holding

    if can_pack(backbone.dtype, backbone.device):
        pack(backbone.decoder)
    with holding() as held:
        asker = Asker(backbone, held)
        try:
            return [
                _finish_one(registry, backbone, each, asker, held.hold(each.adapter), publish, allow_noop, say)
                if each.adapter is not None
                else Outcome(each, None, None)
                for each in trained
            ]
        finally:
            asker.close()


def _finish_one(
    registry: "Registry",
    backbone: "Backbone",
    trained: "TrainedAdapter",
    asker: "Asker",
    digest: str,
    publish: bool,
    allow_noop: bool,
    say: Say,
) -> Outcome:
    from umbel.training.publish import publish as publish_version

    judged = _judge(trained, asker, digest, say)
    finding = judged.finding(trained.task.name) if judged is not None else None
    if not publish:
        return Outcome(trained, None, finding)
    licence = next((known.licence for known in registry.backbones.list() if known.name == backbone.name), None)
    version = publish_version(registry, trained, backbone, finding=finding, licence=licence, allow_noop=allow_noop)
    if judged is not None:
        from umbel.cli.eval import keep

        keep(registry, str(version.ref), judged.questions, judged.report)
    if trained.run:
        registry.event(trained.run, f"published {version.ref}", data={"version": str(version.ref), **version.metrics})
    return Outcome(trained, version, finding)


def _judge(trained: "TrainedAdapter", asker: "Asker", digest: str, say: Say) -> Any:
    from umbel.evaluation.judge import judge
    from umbel.evaluation.questions import questions_of

    prepared, adapter = trained.prepared, trained.adapter
    assert prepared is not None
    assert adapter is not None
    if not prepared.test:
        return None
    name = f"{prepared.splits.name}/test"
    questions = questions_of(prepared.test, adapter.contract.output_head, prepared.metric, name)
    began = time.monotonic()
    say(f"{trained.task.name}: judging on {len(questions.rows)} held-out rows")
    found = judge(asker, digest, adapter.contract, questions, prepared.splits.train)
    say(f"{trained.task.name}: judged in {time.monotonic() - began:.0f} s")
    return found


def tell(outcome: Outcome, backbone: str) -> None:
    """The result, and the exact commands to try it."""
    from umbel.cli.console import human_bytes, print_facts

    trained, version, finding = outcome.trained, outcome.version, outcome.finding
    if trained.adapter is None:
        typer.echo(f"{trained.task.name} failed: {trained.error}", err=True)
        return
    facts: list[tuple[str, object]] = [("adapter", trained.task.name if version is None else str(version.ref))]
    if finding is not None:
        ends = "" if finding.low is None else f" (95 % CI {finding.low:.3f} to {finding.high:.3f})"
        facts.append((finding.metric, f"{finding.value:.3f}{ends} on {finding.rows} held-out rows"))
        facts += [("", f"{value:.3f} {name}") for name, value in finding.baselines.items()]
    if version is not None:
        facts.append(("size", human_bytes(version.bytes)))
        facts.append(("answers as", ", ".join([*version.aliases, str(version.number)])))
    print_facts(facts)
    for sentence in finding.sentences if finding is not None else ():
        typer.echo(sentence)
    if version is not None:
        _tell_how(outcome, version, backbone)


def _tell_how(outcome: Outcome, version: "Version", backbone: str) -> None:
    """Commands that work as they stand."""
    from umbel.core.contract import OutputHead
    from umbel.training.card import sample, try_commands

    task, champion = outcome.trained.task, "champion" in version.aliases
    model = version.name if champion else str(version.ref)
    commands = try_commands(model, version.output_head, sample(outcome.trained))
    typer.echo("\ntry it:")
    for line in [line for text in commands.values() for line in text.splitlines()]:
        typer.echo(f"  {line}")
    if not champion:
        typer.echo(f"  umbel compare {version.ref} {version.name} --data {task.data}")
        typer.echo(f"  umbel promote {version.ref}")
    elif version.output_head is OutputHead.GENERATE:
        typer.echo(f"  umbel compare {model} {backbone} --data {task.data}")
