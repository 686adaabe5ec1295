"""Conditions of what the registry holds: backbones, aliases, runs."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from umbel.cli.alive import interrupted, last_heard
from umbel.cli.console import human_age, human_bytes, human_number
from umbel.cli.doctor.condition import Condition, Finding, failed, fine, warning
from umbel.cli.doctor.patient import Patient, Skip
from umbel.core.clock import now_ms
from umbel.core.errors import UmbelError

if TYPE_CHECKING:
    from umbel.registry.records import Adapter

_PAGE = 500


def backbones(patient: Patient) -> Finding:
    """Folders and rows must agree, and each config must be one that the decoder can do."""
    from umbel.backbone.config import read_config

    if not patient.installed:
        return warning("none in the home", "umbel pull backbone smollm2-135m-instruct")
    for found in patient.installed:
        read_config(found.folder)  # raises what it refuses, by name
    names = [found.name for found in patient.installed]
    known = {backbone.name for backbone in patient.registry.backbones.list()}
    if unknown := sorted(set(names) - known):
        fix = f"umbel doctor --fix, or umbel pull backbone {unknown[0]}"
        return warning(f"{', '.join(unknown)} is not registered", fix)
    if gone := sorted(known - set(names)):
        fix = f"umbel pull backbone {gone[0]}"
        return warning(f"the files of {', '.join(gone)} are gone: its adapters cannot answer", fix)
    return fine(", ".join(f"{found.name} ({human_bytes(found.bytes)})" for found in patient.installed))


def register_backbones(patient: Patient) -> None:
    from umbel.cli.known import ensure_backbone

    for found in patient.installed:
        ensure_backbone(patient.settings, found)


def fingerprints(patient: Patient) -> Finding:
    """Every byte of every backbone: adapters are bound to them."""
    from umbel.backbone.fingerprint import identity

    known = {backbone.name: backbone for backbone in patient.registry.backbones.list()}
    checked = [found for found in patient.installed if found.name in known]
    if not checked:
        raise Skip("needs a backbone")
    for found in checked:
        mine, row = identity(found.folder), known[found.name]
        if mine.fingerprint != row.fingerprint:
            fix = f"umbel backbones rm {found.name} --force, then umbel pull backbone {found.name}"
            return failed(f"{found.name} does not have the weights that were registered", fix)
        if (mine.tokenizer_sha, mine.chat_template_sha) != (row.tokenizer_sha, row.chat_template_sha):
            fix = f"umbel backbones rm {found.name} --force, then umbel pull backbone {found.name}"
            return failed(f"{found.name} has another tokenizer or chat template than was registered", fix)
    return fine(f"{', '.join(found.name for found in checked)}: weights and tokenizer as registered")


def aliases(patient: Patient) -> Finding:
    count = 0
    for adapter in _adapters(patient):
        for alias in adapter.aliases:
            count += 1
            try:
                patient.registry.resolve(f"{adapter.name}@{alias}")
            except UmbelError as error:
                return failed(error.message, error.hint or f"umbel alias history {adapter.name}")
    return fine(f"{human_number(count, 'alias name')}, each of a version that may answer")


def artifacts(patient: Patient) -> Finding:
    """Every byte behind an alias, since these are what people ask for. ``umbel verify --deep`` reads all the others."""
    store, seen = patient.registry.store, set[str]()
    for adapter in _adapters(patient):
        for number in sorted(set(adapter.aliases.values())):
            version = patient.registry.versions.get(f"{adapter.name}:{number}")
            for file in version.files:
                if file.digest not in seen and not store.sound(file.digest):
                    return failed(
                        f"{file.path} of {version.ref} is gone or changed",
                        f"umbel rollback {adapter.name}, or publish the same files again, which heals it",
                    )
                seen.add(file.digest)
    return fine(f"{human_number(len(seen), 'file')} behind aliases as published")


def runs(patient: Patient) -> Finding:
    from umbel.registry.records import RunStatus

    running = patient.registry.runs.list(status=RunStatus.RUNNING, limit=_PAGE).items
    stopped = [run for run in running if interrupted(run, patient.settings)]
    if stopped:
        oldest = stopped[-1]
        said = human_age(last_heard(oldest), now_ms())
        fix = f"umbel runs resume {oldest.id} goes on with it, umbel runs cancel {oldest.id} ends it"
        return warning(f"{human_number(len(stopped), 'run')} interrupted, such as {oldest.id}, last heard {said}", fix)
    return fine(f"{len(running)} running, none of them interrupted")


def _adapters(patient: Patient) -> "Iterator[Adapter]":
    cursor: str | None = None
    while True:
        page = patient.registry.adapters.list(limit=_PAGE, cursor=cursor)
        yield from page.items
        cursor = page.next
        if cursor is None:
            return


CONDITIONS = (
    Condition("backbones", backbones, register_backbones),
    Condition("aliases", aliases),
    Condition("runs", runs),
)
HEAVY = (
    Condition("artifacts", artifacts, heavy=True),
    Condition("fingerprints", fingerprints, heavy=True),
)
