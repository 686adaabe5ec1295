"""What differs between two versions, key by key."""

from collections.abc import Iterator, Mapping
from typing import Any

from umbel.registry.records import Change, Version, VersionDiff

_DATA = ("dataset", "run", "seed", "code_version", "method", "backbone", "parent")


def diff(before: Version, after: Version) -> VersionDiff:
    return VersionDiff(
        before=before.ref,
        after=after.ref,
        config=changes(before.config, after.config),
        contract=changes(before.contract.model_dump(mode="json"), after.contract.model_dump(mode="json")),
        data=changes(_data(before), _data(after)),
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
