"""Writes a backbone as a folder: whole, as any program of the Hugging Face family reads it, or what differs alone."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor

from umbel.backbone.backbone import Backbone
from umbel.backbone.config import read_config
from umbel.backbone.fingerprint import fingerprint
from umbel.backbone.installed import CHANGED_FILE, Source
from umbel.backbone.layout import CONFIG, TEXTS
from umbel.backbone.loading import checkpoint_views, tensors_of, unused
from umbel.core.errors import Conflict

_SHARD = "5GB"
"""Largest weights file, as transformers has it."""


def save_backbone(backbone: Backbone, folder: Path, source: Source, *, changed: Iterable[str]) -> None:
    """Fills an empty folder with a backbone that was trained; ``backbone.folder`` is its parent's, for the texts.

    ``changed`` are the checkpoint's names that differ from the parent; all of them makes a whole folder. Raises
    Conflict (``not_read_back``) where what was written has another fingerprint than what is in memory.
    """
    # copies: parts of a fused weight share its memory, which safetensors refuses
    views = {name: view.detach().to("cpu", copy=True) for name, view in checkpoint_views(backbone.decoder).items()}
    part = {name: views[name] for name in changed}
    _write_texts(backbone.folder, folder, backbone.config.dtype)
    source.write(folder)
    if len(part) == len(views):
        _write_whole(views, folder)
    else:
        save_file(part, folder / CHANGED_FILE, metadata={"format": "pt"})
    if fingerprint(folder) != backbone.fingerprint:
        raise Conflict(f"{backbone.name} does not read back as it was written.", code="not_read_back")


def export_backbone(source: Path, folder: Path) -> None:
    """Fills an empty folder with a whole backbone, whatever form it has in the home."""
    config = read_config(source)
    _write_texts(source, folder, config.dtype)
    if (source / "README.md").is_file():
        shutil.copyfile(source / "README.md", folder / "README.md")
    _write_whole({name: tensor for name, tensor in tensors_of(source) if not unused(name, config)}, folder)


def _write_whole(tensors: Mapping[str, Tensor], folder: Path) -> None:
    save_torch_state_dict(dict(tensors), folder, max_shard_size=_SHARD)


def _write_texts(parent: Path, folder: Path, dtype: str) -> None:
    for name in TEXTS:
        if (parent / name).is_file():
            shutil.copyfile(parent / name, folder / name)
    raw = json.loads((parent / CONFIG).read_text(encoding="utf-8"))
    raw.pop("torch_dtype", None)
    (folder / CONFIG).write_text(json.dumps({**raw, "dtype": dtype}, indent=2) + "\n", encoding="utf-8")
