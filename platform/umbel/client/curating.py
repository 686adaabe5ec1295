"""Calls that change what a server holds: versions uploaded, files taken out, tags, adapters loaded ahead."""

from umbel.client.calls import Call, adapter_path, part
from umbel.core.wire.adapters import FileView, ListReply
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
    where = "/".join(part(one) for one in path.split("/"))
    return Call("GET", f"{adapter_path(name)}/versions/{part(str(which))}/files/{where}", bytes)
