"""What differs between two versions, key by key."""

from collections.abc import Iterator, Mapping
from typing import Any

from umbel.registry.records import Change, Run, Version, VersionDiff

_DATA = ("dataset", "run", "seed", "code_version", "method", "backbone", "parent")


def diff(before: Version, after: Version, run_before: Run | None, run_after: Run | None) -> VersionDiff:
    """``run_...`` trained the version; None where it came in another way."""
    return VersionDiff(
        before=before.ref,
        after=after.ref,
        config=changes(before.config, after.config),
        contract=changes(before.contract.model_dump(mode="json"), after.contract.model_dump(mode="json")),
        data=changes(_data(before), _data(after)),
        training=_training(before, after, run_before, run_after),
        metrics=changes(before.metrics, after.metrics),
        files=changes(_files(before), _files(after)),
    )


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    """Nested maps are compared leaf by leaf under dotted keys; lists as a whole."""
    old, new = dict(_flat(before)), dict(_flat(after))
    return tuple(
        Change(key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    )


def _training(before: Version, after: Version, ran: Run | None, reran: Run | None) -> tuple[Change, ...]:
    """What the runs were asked, without what a version says itself; nothing where one of them has no run."""
    if ran is None or reran is None:
        return ()
    told = {"name", "description", *_DATA, *_said(before), *_said(after)}
    return tuple(change for change in changes(_asked(ran), _asked(reran)) if change.key not in told)


def _asked(run: Run) -> dict[str, Any]:
    """Where the run was left to choose, such as the learning rate: what it found."""
    found = run.summary or {}
    return {key: found.get(key) if value is None else value for key, value in run.params.items()}


def _said(version: Version) -> Iterator[str]:
    """A config's keys as tasks write them: ``rank`` of method.rank, ``head_depth`` of head.depth."""
    for key, _ in _flat(version.config):
        yield from (key.rpartition(".")[2], key.replace(".", "_"))
    yield from version.contract.model_dump()


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _data(version: Version) -> dict[str, Any]:
    return {key: getattr(version, key) and str(getattr(version, key)) for key in _DATA}


def _files(version: Version) -> dict[str, Any]:
    return {file.path: file.digest for file in version.files}
