"""What the home holds as files, told to the registry: rows for backbones and datasets that are pulled or removed."""

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from umbel.core.errors import Conflict, NotFound
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.backbone.installed import InstalledBackbone, Source
    from umbel.training.data.installed import InstalledDataset


def register_backbone(settings: Settings, name: str, folder: Path, source: "Source") -> None:
    """Raises Conflict where an adapter or experiment has the name, or these weights have another."""
    from umbel.backbone.fingerprint import identity
    from umbel.registry.registry import Registry

    same = identity(folder)
    with Registry.open(settings) as registry:
        registry.backbones.register(
            name=name,
            fingerprint=same.fingerprint,
            tokenizer_sha=same.tokenizer_sha,
            chat_template_sha=same.chat_template_sha,
            source=source.source,
            licence=source.licence,
            config=json.loads((folder / "config.json").read_text()),
            parent=None if source.parent is None else source.parent.fingerprint,
        )


def ensure_backbone(settings: Settings, found: "InstalledBackbone") -> None:
    """Registers a backbone whose files are older than the registry, such as after a lost database."""
    from umbel.registry.registry import Registry

    with Registry.open(settings) as registry:
        names = {backbone.name for backbone in registry.backbones.list()}
    if found.name not in names:
        register_backbone(settings, found.name, found.folder, found.source)


def forget_backbone(settings: Settings, name: str, *, force: bool) -> None:
    """Raises Conflict (``backbone_in_use``) while adapters are bound to it; ``force`` then keeps its row."""
    from umbel.registry.registry import Registry

    with Registry.open(settings) as registry:
        try:
            registry.backbones.remove(name)
        except NotFound:  # pulled into a home whose registry is another one
            pass
        except Conflict as conflict:
            if not force:
                conflict.hint = f"add --force: they stay, and answer again once {name} is pulled again"
                raise


def register_dataset(settings: Settings, found: "InstalledDataset") -> None:
    from umbel.registry.registry import Registry

    with Registry.open(settings) as registry:
        registry.datasets.register(
            name=found.name,
            digest=found.info.digest,
            form=found.info.output_head.value,
            rows=sum(found.info.rows.values()),
            bytes=found.bytes,
            splits=found.info.rows,
            source=found.info.source,
            licence=found.info.licence,
        )


def forget_dataset(settings: Settings, name: str) -> None:
    """Versions keep the digest that they were trained on."""
    from umbel.registry.registry import Registry

    with Registry.open(settings) as registry, suppress(NotFound):
        registry.datasets.remove(name)
