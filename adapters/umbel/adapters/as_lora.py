"""Turns what PEFT's other methods learned into LoRA: each adapted linear's change is measured, and cut to a low rank.

PEFT loads the folder on the backbone. Whatever its method's formula, an adapted linear that is affine is known by its
answers to zero and to the unit vectors. What it adds to the backbone's own W and b is what LoRA has to give:

    W' - W = U S V^T ~ B A,   A = V_R^T,   B = U_R S_R        b' - b  is PEFT's lora_bias

PEFT's own ``convert_to_lora`` asks the method for W' - W, which only the additive ones can tell; rotations (OFT, BOFT,
HRA, ROAD), changed biases and outputs are measured here like all others, and what is not affine is found out.

Shape letters here:  D features in   E features out   R rank
"""

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from umbel.adapters.lora_targets import modules, shortest
from umbel.adapters.peft_config import read_peft_config
from umbel.adapters.tensorfile import read_tensors, write_tensors
from umbel.core.bitsandbytes import own_kernels_only
from umbel.core.errors import AdapterRefused, Unavailable
from umbel.core.manifest import CONFIG_FILE, WEIGHTS_FILE
from umbel.core.shape import BackboneShape

CONVERTIBLE = (
    *(
        "ADALORA",
        "BEFT",
        "BOFT",
        "C3A",
        "DEFT",
        "DELORA",
        "FOURIERFT",
        "FROD",
        "GLORA",
        "GRALORA",
        "HIRA",
        "HRA",
        "LOHA",
    ),
    *("LOKR", "LORA", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING"),
    *("TINYLORA", "UNILORA", "VBLORA", "VERA", "WAVEFT"),
)
"""PEFT types whose adapted linears are affine; each is proved in ``tests/adapters/test_as_lora.py``."""
WHY_NOT = {
    "ADAMSS": "PEFT loads it only with scikit-learn, which umbel does not bring",
    "CARTRIDGE": "a trained cache of keys and values, no change of a linear layer",
    "CPT": "a trained context of tokens, no change of a linear layer",
    "LILY": "its change of a linear layer depends on the token",
    "LN_TUNING": "it changes norms, no linear layer",
    "MULTITASK_PROMPT_TUNING": "a prompt for each task, chosen while it runs",
    "POLY": "a mixture of adapters, chosen by task while it runs",
    "SHADOW": "a second network beside the backbone",
    "TRAINABLE_TOKENS": "token rows alone; train them as `lora` with `token_rows`, PEFT's trainable_token_indices",
    "XLORA": "a mixture of adapters, chosen by token while it runs",
}
"""PEFT types that stay outside, and the reason."""
PROBES = (
    "The capital of France is",
    "Write one sentence about the sea.\n",
    "def add(a, b):\n    return",
    "1, 2, 3, 4, 5,",
)
"""Texts on which the logits before and after are compared."""
DEFAULT_MAX_ERROR = 0.05

_MODELS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
}
_PREFIX = "base_model.model."
_HEADS = ("score", "classifier")
_AFFINE = 1e-3
"""How far an adapted linear may be from affine, relative to its change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """How near the LoRA is to what it was made from."""

    peft_type: str
    rank: int
    errors: dict[str, float]
    """Module path -> ||W' - W - B A|| / ||W' - W||, Frobenius."""
    logit_error: float
    """rms of (LoRA's logits - PEFT's) over rms of (PEFT's - the backbone's), on the probes."""
    logit_gap: float
    """The largest difference of one logit between LoRA and PEFT."""
    logit_change: float
    """The largest difference of one logit between PEFT and the bare backbone."""

    def within(self, bound: float) -> bool:
        return self.worst[1] <= bound and self.logit_error <= bound

    @property
    def worst(self) -> tuple[str, float]:
        return max(self.errors.items(), key=lambda item: item[1])


@dataclass(frozen=True, slots=True)
class _Change:
    """One linear's change: singular vectors U [E, k], values S [k], V^T [k, D]; and that of its bias [E]."""

    u: Tensor
    s: Tensor
    v: Tensor
    bias: Tensor

    def error(self, rank: int) -> float:
        whole = float(self.s.square().sum())
        return (float(self.s[rank:].square().sum()) / whole) ** 0.5 if whole else 0.0

    def rank_for(self, error: float) -> int:
        return next(rank for rank in range(1, len(self.s) + 1) if self.error(rank) <= error)


def convert(
    folder: Path,
    backbone: Path,
    into: Path,
    *,
    shape: BackboneShape,
    probes: Sequence[Sequence[int]],
    rank: int | None = None,
    max_error: float = DEFAULT_MAX_ERROR,
) -> Conversion:
    """Writes the PEFT folder ``folder`` as LoRA into ``into``; without ``rank`` the smallest that keeps ``max_error``.

    ``max_error`` bounds the error of each linear and that of the logits of ``probes``. Raises AdapterRefused:
    ``conversion_too_far`` with the rank that would do, or by name what cannot be LoRA; Unavailable without peft.
    """
    kind, task = _checked(folder)
    with _quiet():
        bare, worn = _load(backbone, folder, task)
        changes = _changes(bare, worn, shape, kind)
        wanted, own = _logits(worn, probes), _logits(bare, probes)
        needed = max(change.rank_for(max_error) for change in changes.values())
        full = max(len(change.s) for change in changes.values())

        def at(rank: int) -> Conversion:
            _write(into, folder, task, changes, rank, shape)
            return _compare(kind, rank, changes, _logits(_worn(copy.deepcopy(bare), into), probes), wanted, own)

        if rank is None:
            return _smallest(at, needed, full, max_error)
        found = at(rank)
        if not found.within(max_error):
            raise _too_far(found, _smallest(at, max(needed, rank), full, max_error), max_error)
        return found


def _smallest(at: Callable[[int], Conversion], first: int, full: int, max_error: float) -> Conversion:
    """From the rank that the layers need upwards, since their errors add up in the logits; full rank has none."""
    rank = first
    while not (found := at(rank)).within(max_error):
        if rank >= full:
            raise _acts_beyond(found, max_error)
        rank = min(rank + max(1, rank // 4), full)
    return found


def _checked(folder: Path) -> tuple[str, str]:
    """(PEFT type, task type); nothing is loaded for what is refused here."""
    raw = read_peft_config(folder)
    if raw.peft_type not in CONVERTIBLE:
        why = WHY_NOT.get(raw.peft_type, "umbel reads it without --as-lora, or does not know it")
        raise AdapterRefused(
            f"PEFT's method {raw.peft_type} cannot be written as LoRA: {why}.",
            code="unsupported_method",
            hint=f"umbel converts {', '.join(CONVERTIBLE)} (docs/methods.md)",
        )
    task = str(raw.take("task_type", "CAUSAL_LM"))
    if task not in _MODELS:
        raise AdapterRefused(
            f"task_type {task} is not converted.",
            code="unsupported_task_type",
            hint=f"umbel converts {', '.join(_MODELS)}",
        )
    read_tensors(folder / WEIGHTS_FILE, integers=True)  # a broken or unsafe file is refused before PEFT sees it
    return raw.peft_type, task


@contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars and advice of transformers and PEFT are not for the person who imports."""
    try:
        with own_kernels_only():
            import peft  # noqa: F401
        from transformers.utils import logging
    except ImportError:
        raise Unavailable(
            "converting to LoRA needs peft.", code="missing_extra", hint="pip install 'umbel[train]'"
        ) from None
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load(backbone: Path, folder: Path, task: str) -> tuple[Any, Any]:
    """(the bare model, PEFT's on another copy of it), fp32; a tensor that PEFT would ignore or lack is refused."""
    import transformers
    from peft import get_peft_model_state_dict

    saved = read_tensors(folder / WEIGHTS_FILE, integers=True)
    score = next((t for key, t in saved.items() if key.removeprefix(_PREFIX).split(".")[0] in _HEADS), None)
    labels = {} if task == "CAUSAL_LM" or score is None else {"num_labels": score.shape[0]}
    loader = getattr(transformers, _MODELS[task])
    bare = loader.from_pretrained(str(backbone), dtype=torch.float32, **labels).eval()
    worn = _worn(copy.deepcopy(bare), folder)
    used = get_peft_model_state_dict(worn, save_embedding_layers=False)
    if odd := sorted(used.keys() ^ saved.keys()):
        raise AdapterRefused(
            f"{odd[0]} is {'missing' if odd[0] in used else 'of no use'} to PEFT on this backbone.",
            code="missing_tensors" if odd[0] in used else "unexpected_tensors",
            hint="save the adapter again with PEFT's save_pretrained, save_embedding_layers=False",
        )
    return bare, worn


def _worn(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except Exception as error:  # whatever a stranger's config makes PEFT raise
        raise AdapterRefused(
            f"PEFT cannot load it on this backbone: {type(error).__name__}: {str(error)[:200]}",
            code="peft_refused",
            hint="check that it was trained on this backbone, with this version of PEFT",
        ) from None


def _changes(bare: Any, worn: Any, shape: BackboneShape, kind: str) -> dict[str, _Change]:
    """Of every adapted linear, by module path; raises AdapterRefused for a change of anything else."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found = {}
    paths = set(modules(shape).values())
    for path, module in worn.base_model.model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper) and path.rsplit(".", 1)[-1] not in _HEADS:
            raise _beyond(kind, path, "a full copy or trained token rows")
        if isinstance(module, BaseTunerLayer):
            if path not in paths or not isinstance(bare.get_submodule(path), nn.Linear):
                raise _beyond(kind, path, "no linear layer")
            found[path] = _measure(bare.get_submodule(path), module, path, kind)
    if not found:
        raise _beyond(kind, "the whole model", "no linear layer")
    return found


def _beyond(kind: str, path: str, what: str) -> AdapterRefused:
    return AdapterRefused(
        f"this {kind} changes {path}: {what}, so it cannot be written as low-rank LoRA.",
        code="not_convertible",
        param=path,
        hint="train it again on linear layers only, or as LoRA",
    )


def _measure(linear: nn.Module, adapted: Any, path: str, kind: str) -> _Change:
    """float64, so that a small change is not lost beside W."""
    own, other = copy.deepcopy(linear).double(), copy.deepcopy(adapted).double()
    width = int(own.in_features)  # type: ignore[arg-type]
    still = torch.zeros(1, 1, width, dtype=torch.float64)
    units = torch.eye(width, dtype=torch.float64)[None]
    bias = other(still)[0, 0] - own(still)[0, 0]
    delta_ED = (other(units)[0] - own(units)[0] - bias).double().t()
    x = torch.randn(1, 16, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    change = (other(x) - own(x)).double()
    if float((change - (x @ delta_ED.t() + bias)).norm()) > _AFFINE * float(change.norm()):
        raise _beyond(kind, path, "a function that is not affine")
    u, s, v = torch.linalg.svd(delta_ED, full_matrices=False)
    return _Change(u, s, v, bias)


def _write(
    into: Path, folder: Path, task: str, changes: Mapping[str, _Change], rank: int, shape: BackboneShape
) -> None:
    """The LoRA as PEFT would save it; an output head is taken over as it is."""
    saved = read_tensors(folder / WEIGHTS_FILE, integers=True)
    tensors = {key: t for key, t in saved.items() if key.removeprefix(_PREFIX).split(".")[0] in _HEADS}
    shift = any(bool(change.bias.abs().max() > 1e-9) for change in changes.values())
    ranks = {path: min(rank, len(change.s)) for path, change in changes.items()}
    for path, change in changes.items():
        kept = slice(0, ranks[path])
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = change.v[kept].float()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = (change.u[:, kept] * change.s[kept]).float()
        if shift:
            tensors[f"{_PREFIX}{path}.lora_B.bias"] = change.bias.float()
    lower = {path: own for path, own in ranks.items() if own < rank}
    met = {place: path for place, path in modules(shape).items() if path in changes}
    config = {
        "peft_type": "LORA",
        "task_type": task,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": list(shortest(met, None, shape)),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        **({"rank_pattern": lower, "alpha_pattern": lower} if lower else {}),
        **({"lora_bias": True} if shift else {}),
        **({"modules_to_save": list(_HEADS)} if task != "CAUSAL_LM" else {}),
    }
    (into / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (into / WEIGHTS_FILE).write_bytes(write_tensors(tensors))


def _logits(model: Any, probes: Sequence[Sequence[int]]) -> Tensor:
    """Of every token of every probe, side by side; one unpadded row at a time."""
    return torch.cat([model(torch.tensor([list(probe)])).logits.flatten() for probe in probes])


def _compare(
    kind: str, rank: int, changes: Mapping[str, _Change], ours: Tensor, theirs: Tensor, bare: Tensor
) -> Conversion:
    gap, change = ours - theirs, theirs - bare
    size = float(change.norm())
    return Conversion(
        peft_type=kind,
        rank=rank,
        errors={path: found.error(rank) for path, found in changes.items()},
        logit_error=float(gap.norm()) / size if size else float(gap.norm()),
        logit_gap=float(gap.abs().max()),
        logit_change=float(change.abs().max()),
    )


def _too_far(found: Conversion, enough: Conversion, bound: float) -> AdapterRefused:
    path, worst = found.worst
    return AdapterRefused(
        f"at rank {found.rank} this {found.peft_type} loses up to {worst:.1%} of a layer's change ({path}) and "
        f"{found.logit_error:.1%} of the logits' change, more than {bound:.1%}.",
        code="conversion_too_far",
        param="rank",
        hint=f"--rank {enough.rank} keeps the bound; --max-error {max(worst, found.logit_error):.2g} accepts this",
    )


def _acts_beyond(found: Conversion, bound: float) -> AdapterRefused:
    return AdapterRefused(
        f"even at full rank the logits of the probe texts are off by {found.logit_error:.1%} of their change "
        f"(up to {found.logit_gap:.2g}), more than {bound:.1%}: this {found.peft_type} acts beyond its linear layers.",
        code="conversion_too_far",
        hint="train it again as LoRA",
    )
