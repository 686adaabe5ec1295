"""The identity of a backbone's maths: sha256 over config fields that bear on it and every tensor's bytes.

Independent of sharding and file order. Tokenizer and chat template are kept apart, each with its own digest, since a
new template changes texts but not what an adapter's weights mean.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel.backbone.config import BackboneConfig, read_config
from umbel.backbone.installed import CHANGED_FILE
from umbel.core.digests import digest_bytes, digest_json
from umbel.core.errors import NotFound

if TYPE_CHECKING:
    from torch import Tensor

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class Identity:
    """Three digests that are compared apart, each with its own error."""

    fingerprint: str
    tokenizer_sha: str
    chat_template_sha: str


def fingerprint(folder: Path) -> str:
    """``sha256:...`` of a Hugging Face folder with safetensors weights, or of one that holds changed tensors only."""
    if (folder / CHANGED_FILE).is_file():
        from umbel.backbone.loading import tensors_of

        return fingerprint_of(read_config(folder), tensors_of(folder))
    tensors = sorted(entry for file in weight_files(folder) for entry in _hashed(file))
    return digest_json({"config": read_config(folder).maths, "tensors": tensors})


def fingerprint_of(config: BackboneConfig, tensors: Iterable[tuple[str, "Tensor"]]) -> str:
    """The fingerprint that a folder with these tensors would have."""
    hashed = sorted(
        (name, _CODES[str(tensor.dtype)], list(tensor.shape), hashlib.sha256(raw_bytes(tensor)).hexdigest())
        for name, tensor in tensors
    )
    return digest_json({"config": config.maths, "tensors": hashed})


_CODES = {"torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
"""Dtypes as safetensors' headers name them."""


def raw_bytes(tensor: "Tensor") -> memoryview:
    """As safetensors stores them: row by row, little-endian."""
    import torch

    flat = tensor.detach().contiguous().cpu().view(torch.uint8).flatten()
    return flat.numpy().data


def identity(folder: Path) -> Identity:
    return Identity(fingerprint(folder), tokenizer_sha(folder), chat_template_sha(folder))


def tokenizer_sha(folder: Path) -> str:
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            return digest_bytes((folder / name).read_bytes())
    raise NotFound(f"{folder} holds no tokenizer.json.", code="tokenizer_not_found")


def chat_template_sha(folder: Path) -> str:
    """Digest of the template's text wherever it stands; of the empty text where there is none."""
    if (folder / "chat_template.jinja").is_file():
        return digest_bytes((folder / "chat_template.jinja").read_bytes())
    config = folder / "tokenizer_config.json"
    raw = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return digest_bytes(str(raw.get("chat_template") or "").encode())


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, sharded or not; raises NotFound where there are none."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [folder / name for name in sorted(names)]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise NotFound(
                f"{folder} lacks {file.name}.",
                code="weights_not_found",
                hint="umbel reads safetensors only; convert other formats first",
            )
    return files


def _hashed(file: Path) -> Iterator[tuple[str, str, list[int], str]]:
    """(name, dtype, shape, sha256) of each tensor, read straight from the file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            stream.seek(8 + length + begin)
            yield name, entry["dtype"], entry["shape"], hashlib.sha256(stream.read(end - begin)).hexdigest()
