"""Which backbone of the home a command is about: the one that is named, the one of an adapter, or the only root.

smollm2-135m-instruct   by its name
mood:2, mood@canary     the one that this version was made for: of one that was trained here, the way to name it
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from umbel.core.errors import Conflict, NotFound, UmbelError, UsageError
from umbel.core.names import AdapterRef
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.backbone.installed import InstalledBackbone
    from umbel.registry.registry import Registry

_NAMED = 4
"""Backbones that an error proposes at most."""


def choose_backbone(settings: Settings, name: str | None) -> "InstalledBackbone":
    """The named one, the only one there is, or the only one that was not trained here."""
    from umbel.backbone.installed import installed

    if name is not None:
        return named_backbone(settings, name)
    there = installed(settings)
    if not there:
        raise NotFound(
            f"there is no backbone in {settings.backbones}.",
            code="backbone_not_found",
            hint=settings.nearby
            or "umbel pull backbone smollm2-135m-instruct; where another home has one: export UMBEL_HOME=FOLDER",
        )
    roots = [one for one in there if one.source.parent is None] or there
    if len(roots) > 1:
        names = ", ".join(one.name for one in there)
        ways = " or ".join(f"--backbone {one.name}" for one in roots[:_NAMED])
        raise UsageError(f"there are several backbones: {names}.", param="backbone", hint=f"name one of them: {ways}")
    return roots[0]


def check_form_of(url: str | None, **given: str | None) -> None:
    """Raises UsageError where a flag says which backbone is loaded, or how, and a server has loaded its own already."""
    for name, value in given.items():
        if value is not None and url is not None:
            raise UsageError(
                f"--{name} says what is loaded here; {url} has its own backbone in memory.",
                param=name,
                hint=f"leave it out; umbel ps --url {url} tells the server's",
            )


def choose_for(settings: Settings, name: str | None, models: Sequence[str]) -> "InstalledBackbone":
    """Where none is named: the one that these models (versions, experiments, or a backbone by its name) need.

    Before anything is loaded it raises NotFound for a model that is none of these, with what it is like, and Conflict
    (``backbone_mismatch``) for one that was made for another backbone than the one that is named, or the others need.
    """
    from umbel.backbone.installed import find, installed

    there = {one.name for one in installed(settings)}
    if there:
        _check_known(settings, [model for model in models if model not in there])
    if name is not None:
        chosen = named_backbone(settings, name)
    else:
        bare = next((model for model in models if model in there), None)
        found = backbone_of(settings, models) or (None if bare is None else find(settings, bare))
        chosen = found or choose_backbone(settings, None)
    _check_made_for(settings, chosen.name, models, named=name is not None)
    return chosen


def named_backbone(settings: Settings, name: str) -> "InstalledBackbone":
    """By its own name, or as the one that an adapter's version was made for."""
    from umbel.backbone.installed import find, installed
    from umbel.registry.registry import Registry

    if name in {one.name for one in installed(settings)}:
        return find(settings, name)
    found = backbone_of(settings, [name])
    if found is not None:
        return found
    with Registry.open(settings) as registry:
        fingerprint = made_for(registry, name)
        if fingerprint is not None:
            raise NotFound(
                f"{name} was made for a backbone that never was here ({fingerprint}).",
                code="backbone_not_found",
                hint="pull that one first: umbel pull backbone --help",
            )
        with suppress(UsageError):
            if name != AdapterRef.parse(name).name:
                registry.versions.get(name)  # says of mood:99 that mood has no version 99
        return find(settings, name, also=registry.adapters.names())


def backbone_of(settings: Settings, names: Sequence[str]) -> "InstalledBackbone | None":
    """The one that the first of these versions was made for that is a version; None where none is."""
    from umbel.registry.registry import Registry

    if not names:
        return None
    with Registry.open(settings) as registry:
        for name in names:
            fingerprint = made_for(registry, name)
            if fingerprint is not None:
                return with_fingerprint(settings, registry, fingerprint)
    return None


def _check_known(settings: Settings, models: Sequence[str]) -> None:
    from umbel.registry.registry import Registry

    with Registry.open(settings) as registry:
        for model in models:
            try:
                registry.resolve(model)
            except NotFound as error:
                if error.code != "adapter_not_found" or not _is_experiment(registry, model):
                    raise error from None


def _check_made_for(settings: Settings, chosen: str, models: Sequence[str], *, named: bool) -> None:
    from umbel.registry.registry import Registry

    if not models:
        return
    with Registry.open(settings) as registry:
        names = {one.fingerprint: one.name for one in registry.backbones.list()}
        for model in models:
            fingerprint = made_for(registry, model)
            needed = model if model in names.values() else names.get(fingerprint or "")
            if needed not in (chosen, None):
                raise Conflict(
                    f"{model} needs the backbone {needed}, not {chosen}: one process holds one backbone.",
                    code="backbone_mismatch",
                    param="backbone",
                    hint="leave --backbone out"
                    if named and len(models) == 1
                    else f"name models of one backbone; {model} apart, with --backbone {model}",
                )


def _is_experiment(registry: "Registry", name: str) -> bool:
    try:
        return registry.experiments.get(name).name == name
    except NotFound:
        return False


def made_for(registry: "Registry", model: str) -> str | None:
    """Fingerprint of the backbone of a version, or of an experiment's arms; None for another name's."""
    try:
        if _is_experiment(registry, model):
            ref = registry.experiments.get(model).arms[0].version
            return registry.versions.get(f"{ref.name}@{ref.digest}").backbone
        return registry.versions.get(model).backbone
    except UmbelError:
        return None


def root_of(registry: "Registry", fingerprint: str) -> str:
    """Name of the backbone that this one goes back to by training after training; its own where it is a root."""
    known = registry.backbones.get(fingerprint)
    while known.parent is not None:
        known = registry.backbones.get(known.parent)
    return known.name


def with_fingerprint(settings: Settings, registry: "Registry", fingerprint: str) -> "InstalledBackbone | None":
    """None where it was never here; raises NotFound where its files are gone."""
    from umbel.backbone.installed import find

    known = next((one for one in registry.backbones.list() if one.fingerprint == fingerprint), None)
    return None if known is None else find(settings, known.name)
