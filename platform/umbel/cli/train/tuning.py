"""A training of the backbone's own tensors, from its first step to a backbone of the home and a version on it."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from umbel.cli.train.finish import Finisher, Outcome
from umbel.core.errors import AdapterRefused
from umbel.core.folders import building, only_one
from umbel.core.settings import Settings
from umbel.core.wheels import Say

if TYPE_CHECKING:
    from umbel.backbone.backbone import Backbone
    from umbel.backbone.installed import InstalledBackbone, Source
    from umbel.cli.train.begin import Begun
    from umbel.core.protocols import RunLog
    from umbel.registry.registry import Registry
    from umbel.training import Tuned


def tunes(begun: "Begun") -> bool:
    """Whether a run trains the backbone's own tensors."""
    from umbel.core.folders import folders_in
    from umbel.training import checkpoint

    if begun.goes_on and not folders_in(begun.folder / "checkpoints"):
        return False  # a sweep, or nothing yet
    tasks = checkpoint.read_tasks(checkpoint.newest(begun.folder)) if begun.goes_on else begun.tasks
    return len(tasks) == 1 and tasks[0].selection.tunes


def tune_begun(
    registry: "Registry", backbone: "Backbone", begun: "Begun", *, run_log: "RunLog | None", **more: Any
) -> "Tuned":
    """Trains, or goes on from the folder's newest checkpoint."""
    from umbel.cli.train.flags import load_parents
    from umbel.training import tune
    from umbel.training.tuning.tune import resume_tuning

    if begun.goes_on:
        return resume_tuning(backbone, begun.folder, run_log=run_log, **more)
    (task,) = begun.tasks
    parents = load_parents(registry, begun.tasks, backbone)
    return tune(backbone, task, run_log=run_log, parent=parents.get(task.name), folder=begun.folder, **more)


def finish_tuned(
    registry: "Registry",
    settings: Settings,
    parent: "Backbone",
    tuned: "Tuned",
    *,
    publish: bool,
    allow_noop: bool,
    say: Say,
) -> Outcome:
    """Puts the derived backbone into the home (bytes before rows), judges on it, and publishes the version."""
    from umbel.backbone.loading import pack
    from umbel.evaluation.answering import Asker
    from umbel.evaluation.forgetting import Probe
    from umbel.evaluation.held import holding

    derived = tuned.backbone
    if derived.fingerprint == parent.fingerprint and not allow_noop:
        raise AdapterRefused("training left every weight as it was.", code="no_effect", hint="train longer, or --lr")
    place = None
    if publish:
        place = keep_backbone(settings, parent, tuned)
        say(f"{tuned.trained.task.name}: kept as backbone {place.name}")
    pack(derived.decoder)
    with holding(registry) as held:
        asker = Asker(derived, held)
        finisher = Finisher(registry, derived, asker, held, Probe(derived, parent), publish, True, say)
        try:
            outcome = finisher.outcome(tuned.trained)
        finally:
            asker.close()
    if place is None or outcome.version is None:
        return outcome
    if place.name == derived.name:  # another's weights have its card
        _write_card(registry, place, str(outcome.version.ref))
    return replace(outcome, derived=place)


def keep_backbone(settings: Settings, parent: "Backbone", tuned: "Tuned") -> "InstalledBackbone":
    """The derived backbone as a folder of the home and a row of the registry; one that is there already stays, also
    under another's name: who trains the same once more has the same weights."""
    from umbel.backbone.installed import find, installed
    from umbel.backbone.saving import save_backbone
    from umbel.cli.known import register_backbone

    derived = tuned.backbone
    same = next((one for one in installed(settings) if one.source.fingerprint == derived.fingerprint), None)
    if same is not None:
        return same
    target = settings.backbones / derived.name
    with only_one(target):
        if derived.name not in {one.name for one in installed(settings)}:
            source = _source(parent, tuned)
            with building(target) as folder:
                save_backbone(derived, folder, source, changed=tuned.changed)
                register_backbone(settings, derived.name, folder, source)
    return find(settings, derived.name)


def _source(parent: "Backbone", tuned: "Tuned") -> "Source":
    from umbel.backbone.installed import SOURCE_FILE, Parent, Source

    known = parent.folder / SOURCE_FILE
    return Source(
        source=f"trained:{tuned.trained.run or tuned.trained.task.name}",
        revision=None,
        sha256=None,
        licence=Source.read(parent.folder).licence if known.is_file() else None,
        pulled_at=datetime.now(UTC).isoformat(timespec="seconds"),
        parent=Parent(name=parent.name, fingerprint=parent.fingerprint, folder=str(parent.folder)),
        fingerprint=tuned.backbone.fingerprint,
    )


def _write_card(registry: "Registry", place: "InstalledBackbone", version: str) -> None:
    """The version's card is the backbone's too: what it was trained on and from, and how good it is."""
    parent = place.source.parent
    card = registry.versions.get(version).card
    if card and parent is not None:
        lineage = f"\n## Backbone\n\n`{place.name}`, trained from `{parent.name}` ({parent.fingerprint}).\n"
        (place.folder / "README.md").write_text(card + lineage, encoding="utf-8")
