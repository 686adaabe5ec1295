"""Calls that change what a server holds: versions uploaded, files taken out, tags, adapters loaded ahead."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from umbel.client.calls import Call, adapter_path, given, part
from umbel.core.digests import digest_bytes
from umbel.core.errors import Conflict, NotFound, UmbelError
from umbel.core.manifest import ADAPTER_FILES, METRICS_FILE, UPLOADED_FILES, check_path, metrics_file
from umbel.core.wire.adapters import FileView, ListReply, VersionView
from umbel.core.wire.residency import Residency


def warm(name: str, which: str | int, timeout: float) -> Call[Residency]:
    return Call("POST", f"{adapter_path(name)}/warm", Residency, {"version": which, "timeout": timeout})


def unload(name: str, which: str | int) -> Call[Residency]:
    return Call("POST", f"{adapter_path(name)}/unload", Residency, {"version": which})


def set_tag(name: str, key: str, value: str) -> Call[dict[str, str]]:
    return Call("PUT", f"{adapter_path(name)}/tags/{part(key)}", dict[str, str], {"value": value})


def remove_tag(name: str, key: str) -> Call[dict[str, str]]:
    return Call("DELETE", f"{adapter_path(name)}/tags/{part(key)}", dict[str, str])


def files(name: str, which: str | int) -> Call[ListReply[FileView]]:
    return Call("GET", f"{adapter_path(name)}/versions/{part(str(which))}/files", ListReply[FileView])


def download(name: str, which: str | int, path: str) -> Call[bytes]:
    where = "/".join(part(one) for one in check_path(path).split("/"))
    return Call("GET", f"{adapter_path(name)}/versions/{part(str(which))}/files/{where}", bytes)


def upload(
    name: str,
    folder: str | Path,
    labels: Sequence[str],
    template: str | None,
    max_length: int | None,
    description: str | None,
    allow_noop: bool,
    backbone: str | None,
) -> Call[VersionView]:
    """The folder's files that an adapter consists of; others, such as a trainer's own, stay where they are."""
    found = tuple((one, (Path(folder) / one).read_bytes()) for one in UPLOADED_FILES if (Path(folder) / one).is_file())
    if not any(one in ADAPTER_FILES for one, _ in found):
        raise NotFound(
            f"there is no adapter in {folder}.", code="file_not_found", hint="give the folder that PEFT or umbel wrote"
        )
    words = {"template": template, "max_length": max_length, "description": description, "backbone": backbone}
    form = given({**words, "labels": list(labels) or None, "allow_noop": True if allow_noop else None})
    return Call("POST", f"{adapter_path(name)}/versions", VersionView, form, files=found)


def checked(file: FileView, content: bytes) -> bytes:
    """What was downloaded, if it is what the list promised."""
    if digest_bytes(content) != file.digest:
        raise UmbelError(
            f"{file.path} did not arrive as it was published.", code="digest_mismatch", hint="download it again"
        )
    return content


def check_folder(folder: str | Path) -> Path:
    """A place for an export. Raises Conflict where something is."""
    target = Path(folder)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise Conflict(f"{target} is not empty.", code="folder_exists", hint="choose another folder")
    return target


def keep(folder: Path, contents: Mapping[str, bytes], version: VersionView) -> Path:
    """Writes files by the names that a server gave, which are not believed, and the version's metrics beside them."""
    for path, content in contents.items():
        place = folder / check_path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    if version.metrics:
        (folder / METRICS_FILE).write_bytes(metrics_file(version.digest, version.metrics))
    return folder
