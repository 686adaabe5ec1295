"""Reads a safetensors file that a stranger may have made: its header is checked before any tensor is built.

The format itself allows a header of 100 MB and says nothing about what an adapter needs; each limit here has its own
error code.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from umbel.core.courtesy import give_way, pieces
from umbel.core.errors import AdapterRefused

MAX_HEADER = 1 << 20
MAX_TENSORS = 20_000
MAX_METADATA = 64 << 10
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INTEGERS = {
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool
}  # fmt: skip
Header = dict[str, Any]
"""A tensor's name to its dtype, shape and place, as the format has them."""


def read_tensors(path: Path, *, integers: bool = False) -> dict[str, Tensor]:
    """Names to finite float tensors (``integers``: or whole numbers); raises AdapterRefused for anything else.

    All are views of what was read: whoever keeps one of them for long keeps a copy.
    """
    if not path.is_file():
        raise AdapterRefused(
            f"{path.name} is missing.", code="missing_file", hint="save the adapter with safe_serialization=True"
        )
    data = _read(path)
    header = check_header(data, path.name, _DTYPES | _INTEGERS if integers else _DTYPES)
    give_way()
    start = len(data) - max((entry["data_offsets"][1] for entry in header.values()), default=0)
    tensors = {name: _view(data, start, [name], header).view(entry["shape"]) for name, entry in header.items()}
    give_way()
    if not all_finite([_view(data, start, names, header) for names in _runs(header)]):
        name = next(name for name, tensor in tensors.items() if not torch.isfinite(tensor).all())
        raise AdapterRefused(
            f"{path.name}: {name} holds NaN or infinity.",
            code="non_finite_weights",
            hint="the training diverged; train again with a lower learning rate",
        )
    return tensors


def _read(path: Path) -> bytearray:
    with path.open("rb", buffering=0) as file:
        data = bytearray(os.fstat(file.fileno()).st_size)
        if not all(file.readinto(piece) == len(piece) for piece in pieces(memoryview(data))):
            raise _corrupt(path.name, "it became shorter meanwhile")
    return data


def _view(data: bytearray, start: int, names: Sequence[str], header: Header) -> Tensor:
    """The numbers [N] of tensors of one dtype that lie side by side in the file, whose tensors begin at ``start``."""
    dtype = (_DTYPES | _INTEGERS)[header[names[0]]["dtype"]]
    begin, end = header[names[0]]["data_offsets"][0], header[names[-1]]["data_offsets"][1]
    if begin == end:
        return torch.empty(0, dtype=dtype)
    count = (end - begin) // dtype.itemsize
    if (start + begin) % dtype.itemsize:
        return torch.frombuffer(data[start + begin : start + end], dtype=dtype, count=count)
    return torch.frombuffer(data, dtype=dtype, count=count, offset=start + begin)


def _runs(header: Header) -> Iterator[list[str]]:
    """Names of tensors of one dtype that lie side by side."""
    order = sorted(header, key=lambda name: tuple(header[name]["data_offsets"]))
    for _, names in groupby(order, key=lambda name: header[name]["dtype"]):
        yield list(names)


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Sums, 40 times faster than ``isfinite``, are finite only where every number is; where one is not, large numbers
    may have overflown, and each is looked at."""
    sums = [tensor.sum() for tensor in tensors if tensor.is_floating_point()]
    if not sums or bool(torch.stack([total.double() for total in sums]).isfinite().all()):
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def write_tensors(tensors: dict[str, Tensor]) -> bytes:
    """The same tensors give the same bytes."""
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    return bytes(save(ready, metadata={"format": "pt"}))


def check_header(data: bytes | bytearray, name: str, dtypes: Mapping[str, torch.dtype] = _DTYPES) -> Header:
    """Refuses truncated, oversized, overlapping or odd files by their first bytes."""
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 2 <= length <= len(data) - 8:
        raise _corrupt(name, "it is truncated or no safetensors file")
    if length > MAX_HEADER:
        raise AdapterRefused(
            f"{name}: its header of {length} bytes is over the limit of {MAX_HEADER}.", code="header_too_large"
        )
    header = _parse(bytes(data[8 : 8 + length]), name)
    metadata = header.pop("__metadata__", {})
    if len(json.dumps(metadata)) > MAX_METADATA or len(header) > MAX_TENSORS:
        raise AdapterRefused(f"{name}: too many tensors or too much metadata.", code="header_too_large")
    _check_layout(header, len(data) - 8 - length, name, dtypes)
    return header


def _parse(raw: bytes, name: str) -> Header:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            raise AdapterRefused(f"{name}: a tensor is named twice.", code="duplicate_tensors")
        return dict(pairs)

    try:
        header = json.loads(raw.decode(), object_pairs_hook=once)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise _corrupt(name, "its header is not JSON") from None
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise _corrupt(name, "its header is not a table of tensors")
    return header


def _check_layout(header: Header, size: int, name: str, dtypes: Mapping[str, torch.dtype]) -> None:
    end = 0
    for key, entry in sorted(header.items(), key=lambda item: str(item[1].get("data_offsets"))):
        _check_entry(key, entry, name, dtypes)
    for begin, stop in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
        if begin != end:
            raise _corrupt(name, "its tensors overlap or leave gaps")
        end = stop
    if end != size:
        raise _corrupt(name, f"it holds {size} bytes of tensors, its header speaks of {end}")


def _check_entry(key: str, entry: dict[str, Any], name: str, dtypes: Mapping[str, torch.dtype]) -> None:
    shape, offsets, dtype = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise AdapterRefused(
            f"{name}: {key} has dtype {dtype}; adapters hold {', '.join(dtypes)}.", code="dtype_not_allowed"
        )
    whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    spans = isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int and n >= 0 for n in offsets)
    if not whole or not spans or not isinstance(shape, list) or not isinstance(offsets, list):
        raise _corrupt(name, f"{key} has no valid shape or offsets")
    if len(shape) > 4:
        raise AdapterRefused(f"{name}: {key} has {len(shape)} dimensions.", code="shape_mismatch")
    count = 1
    for n in shape:
        count *= n
    if offsets[1] - offsets[0] != count * dtypes[dtype].itemsize:
        raise _corrupt(name, f"{key} has {offsets[1] - offsets[0]} bytes, its shape {shape} needs another number")


def _corrupt(name: str, why: str) -> AdapterRefused:
    return AdapterRefused(
        f"{name} cannot be read: {why}.", code="corrupt_safetensors", hint="copy or download the file again"
    )
