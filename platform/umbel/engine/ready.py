"""Adapters as a slot takes them, kept on disk: fused, cast and checked once, then read back in a fifth of the time.

A kept form stands for one version (by its digest) on one backbone in one dtype and form, made by this very code; any
other is not found. It is never sent anywhere and can be made again from the version's own files.
"""

import hashlib
import json
import math
import weakref
from collections.abc import Iterator
from functools import cache
from mmap import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import umbel.adapters
from umbel.adapters import catalog
from umbel.adapters.adapter import Adapter
from umbel.adapters.head import HeadConfig
from umbel.adapters.method import Fused, Key
from umbel.backbone.backbone import Backbone
from umbel.backbone.pages import can_reserve, reserve_once
from umbel.core.contract import Contract
from umbel.core.kept import KeptFiles, Part
from umbel.engine import resident
from umbel.engine.resident import Resident, resident_of

CPU = torch.device("cpu")
_LENGTH = 8
"""Bytes that say how long the header is."""
_ALIGNED = 64
"""Bytes that every tensor begins at a multiple of."""


class ReadyForms:
    """``read`` and ``write`` are called by the loader's thread alone."""

    def __init__(self, files: KeptFiles, backbone: Backbone) -> None:
        self._files, self._backbone = files, backbone
        self._rooms: list[mmap | bytearray] = []
        made_for = (backbone.fingerprint, backbone.dtype, backbone.quantised, _code(), torch.__version__)
        self._suffix = hashlib.sha256(repr(tuple(map(str, made_for))).encode()).hexdigest()[:16]

    def read(self, digest: str) -> Resident | None:
        """None where it is not kept, or not whole."""
        data = self._files.get(self._key(digest), self._room)
        if data is None:
            return None
        assert isinstance(data.obj, mmap | bytearray)
        weakref.finalize(data, self._rooms.append, data.obj).atexit = False  # its tensors hold it
        end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
        told = json.loads(bytes(data[_LENGTH:end]))
        if told["digest"] != digest:
            return None
        device = self._backbone.device
        found = {name: view.to(device) for name, view in _views(told["tensors"], data, _aligned(end)).items()}
        fused = {name: tensor for name, tensor in found.items() if isinstance(name, tuple)}
        adapter = _adapter(told, {name: each for name, each in found.items() if isinstance(name, str)}, self._backbone)
        return resident_of(digest, adapter, fused, past_length=told["past"], num_virtual=told["virtual"])

    def has(self, digest: str) -> bool:
        """Whether ``read`` is likely to find it; from any thread."""
        return self._files.path(self._key(digest)).is_file()

    def write(self, resident: Resident, fused: Fused) -> None:
        """``fused`` is apart, since a slot may have taken the resident's own by now. A full disk is no error."""
        adapter = resident.adapter
        named: dict[_Name, Tensor] = dict(fused)  # type: ignore[arg-type]
        named.update(resident.head.tensors)
        told = {
            "digest": resident.digest,
            "name": adapter.name,
            "method": adapter.method.name,
            "config": adapter.config,
            "contract": adapter.contract.model_dump(mode="json"),
            "past": resident.past_length,
            "virtual": resident.num_virtual,
            "tensors": [[name, _told(tensor.dtype), list(tensor.shape)] for name, tensor in named.items()],
        }
        header = json.dumps(told, separators=(",", ":")).encode()
        parts = [len(header).to_bytes(_LENGTH, "little") + header, *map(_bytes, named.values())]
        self._files.put(self._key(resident.digest), *(piece for part in parts for piece in _padded(part)))

    def give_back(self) -> None:
        """The memory that forms were read into and that nobody holds any more."""
        self._rooms.clear()

    def _room(self, nbytes: int) -> memoryview:
        """Memory that an earlier form was read into, once nothing of that is held: new pages take as long to come as
        the bytes do."""
        try:
            pages: mmap | bytearray = self._rooms.pop()
        except IndexError:
            pages = bytearray()
        if len(pages) < nbytes:
            pages = reserve_once(nbytes) if can_reserve(CPU) else bytearray(nbytes)
        return memoryview(pages)[:nbytes]

    def _key(self, digest: str) -> str:
        return f"{digest.removeprefix('sha256:')}-{self._suffix}"


_Name = Key | str
"""Of a fused tensor, or of one of the output head's."""


def _views(told: Any, data: memoryview | bytearray, start: int) -> dict[_Name, Tensor]:
    """Tensors one after the other in a buffer, from ``start`` on."""
    found: dict[_Name, Tensor] = {}
    for name, kind, shape in told:
        dtype, count = getattr(torch, kind), math.prod(shape)
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=start) if count else torch.empty(0, dtype=dtype)
        found[name if isinstance(name, str) else (name[0], name[1])] = flat.view(shape)
        start += _aligned(flat.nbytes)
    return found


def _told(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes(tensor: Tensor) -> Part:
    return memoryview(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _padded(part: Part) -> Iterator[Part]:
    yield part
    yield bytes(_aligned(len(part)) - len(part))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNED) * _ALIGNED


def _adapter(told: Any, tensors: dict[str, Tensor], backbone: Backbone) -> Adapter:
    """Its weights hold no tensors, like those of any that is served."""
    method, contract = catalog.method(told["method"]), Contract.model_validate(told["contract"])
    hidden, kind = backbone.shape.hidden, catalog.head(contract.output_head)
    return Adapter(
        method=method,
        weights=method.weights(catalog.configure(method.name, told["config"]["method"]), backbone.shape, {}),
        head=kind(HeadConfig(**told["config"]["head"]), hidden, tensors),
        contract=contract,
        backbone=backbone.fingerprint,
        digest=told["digest"],
        name=told["name"],
    )


@cache
def _code() -> str:
    """sha256 of the code that makes a kept form and that reads it."""
    digest = hashlib.sha256()
    sources = [Path(__file__), Path(resident.__file__), *Path(umbel.adapters.__file__).parent.rglob("*.py")]
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()
