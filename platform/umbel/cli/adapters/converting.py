"""``umbel adapters import --as-lora``: another method of PEFT becomes LoRA, and how much of it was lost is told."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from umbel.cli.console import print_table
from umbel.core.errors import UsageError
from umbel.core.manifest import CARD_FILE, UMBEL_FILE
from umbel.core.settings import Settings

if TYPE_CHECKING:
    from umbel.adapters.as_lora import Conversion


def converted(
    folder: Path, backbone: str, into: Path, *, rank: int | None, max_error: float | None, quiet: bool
) -> None:
    """Writes the LoRA into ``into``; what was lost is told, unless ``quiet``, and added to the folder's card."""
    from umbel.adapters.as_lora import DEFAULT_MAX_ERROR, PROBES, convert
    from umbel.backbone.config import read_config
    from umbel.backbone.installed import find
    from umbel.backbone.saving import export_backbone
    from umbel.backbone.tokenizer import load_tokenizer

    if (folder / UMBEL_FILE).is_file():
        raise UsageError(f"{folder} was written by umbel, which reads it as it is.", hint="leave --as-lora out")
    base = find(Settings.load(), backbone)
    tokenizer, whole = load_tokenizer(base.folder), base.folder
    if base.partial:  # a tuned backbone kept as its changes, which transformers cannot load
        whole = into / "backbone"
        whole.mkdir()
        export_backbone(base.folder, whole)
    found = convert(
        folder,
        whole,
        into,
        shape=read_config(base.folder).shape,
        probes=[tokenizer.encode(text) for text in PROBES],
        rank=rank,
        max_error=DEFAULT_MAX_ERROR if max_error is None else max_error,
    )
    if not quiet:
        _tell(found)
    _extend_card(folder / CARD_FILE, into / CARD_FILE, found)


def _extend_card(old: Path, new: Path, found: "Conversion") -> None:
    """The card is the version's own, where an adapter's tags and description are of its name."""
    words = old.read_text(encoding="utf-8", errors="replace").rstrip() + "\n\n" if old.is_file() else ""
    new.write_text(
        f"{words}## Conversion\n\nLoRA of rank {found.rank} made from PEFT's {found.peft_type} by umbel. At most "
        f"{found.worst[1]:.2%} of a layer's change and {found.logit_error:.2%} of the logits' change were lost; the "
        f"largest difference of a logit on the probe texts is {found.logit_gap:.2g}.\n",
        encoding="utf-8",
    )


def _tell(found: "Conversion") -> None:
    """The worst module of each layer, then the logits."""
    worst: dict[str, tuple[str, float]] = {}
    for path, error in found.errors.items():
        place, _, module = path.removeprefix("model.layers.").partition(".")
        worst[place] = max(worst.get(place, ("", -1.0)), (module or path, error), key=lambda each: each[1])
    typer.echo(f"{found.peft_type} as LoRA of rank {found.rank}. Lost of each layer's change (Frobenius norm):")
    rows = [(place, module, f"{error:.3%}") for place, (module, error) in worst.items()]
    print_table(("layer", "worst module", "lost"), rows, empty="")
    typer.echo(
        f"Logits of the probe texts: {found.logit_error:.3%} of the change lost; largest difference "
        f"{found.logit_gap:.2g}, where the adapter changes a logit by up to {found.logit_change:.2g}.\n"
    )
