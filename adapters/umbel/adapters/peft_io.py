"""An adapter as a PEFT folder plus ``umbel.json``: read, written, and loaded back from the store.

adapter_config.json          PEFT's own, with a minimal key set that older readers accept
adapter_model.safetensors    PEFT's names
umbel.json                   contract, labels, fingerprint, and the exact config
umbel_extra.safetensors      tensors that PEFT's format cannot carry, where there are any
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from umbel.adapters import catalog
from umbel.adapters.adapter import Adapter
from umbel.adapters.as_lora import CONVERTIBLE, WHY_NOT
from umbel.adapters.head import NAME_LABELS, HeadConfig
from umbel.adapters.method import Method, check_tensors
from umbel.adapters.peft_config import PeftConfig, read_peft_config
from umbel.adapters.tensorfile import read_tensors, write_tensors
from umbel.core.contract import Contract, OutputHead
from umbel.core.errors import AdapterRefused
from umbel.core.manifest import CONFIG_FILE, EXTRA_FILE, UMBEL_FILE, WEIGHTS_FILE, Digest
from umbel.core.protocols import StoredAdapter
from umbel.core.shape import BackboneShape

_TASK_TYPES = {
    "CAUSAL_LM": OutputHead.GENERATE,
    "SEQ_CLS": OutputHead.CLASSIFY,
    "TOKEN_CLS": OutputHead.TAG,
    "FEATURE_EXTRACTION": OutputHead.EMBED,
}
_HEAD_MODULES = {"classifier", "score"}
_BODY = "model."
"""What stands before the decoder's layers in a model with an lm_head or a classifier."""
_COPIES = {
    f"{path}.{what}": name
    for name, path in (("embed_tokens", "model.embed_tokens"), ("lm_head", "lm_head"))
    for what in ("weight", "base_layer.weight")
}
"""Where PEFT's ``save_embedding_layers`` writes the backbone's own matrices; it does so unasked beside LoRA on them."""

Frozen = Callable[[str], Tensor]
"""``embed_tokens`` or ``lm_head`` -> the backbone's matrix [V, H]."""


def export_files(adapter: Adapter, *, backbone_name: str) -> dict[str, bytes]:
    """The folder's files by name; equal adapters give equal bytes."""
    adapter.weights.bake()
    extra = {name: tensor for name, tensor in adapter.tensors.items() if beyond_peft(adapter, name)}
    carried = {name: tensor for name, tensor in adapter.tensors.items() if name not in extra}
    files = {
        WEIGHTS_FILE: write_tensors({_on_disk(adapter, name): tensor for name, tensor in carried.items()}),
        UMBEL_FILE: _json(umbel_json(adapter)),
    }
    if extra:
        files[EXTRA_FILE] = write_tensors(extra)
    if adapter.method.peft_type is not None:
        files[CONFIG_FILE] = _json(_peft_json(adapter, backbone_name))
    return files


def umbel_json(adapter: Adapter) -> dict[str, Any]:
    return {
        "schema": 1,
        "method": adapter.method.name,
        "config": adapter.config,
        "contract": adapter.contract.model_dump(mode="json"),
        "backbone": adapter.backbone,
    }


def _peft_json(adapter: Adapter, backbone_name: str) -> dict[str, Any]:
    assert adapter.method.write_peft is not None
    task_types = {head: task for task, head in _TASK_TYPES.items()} | {OutputHead.REGRESS: "SEQ_CLS"}
    own = adapter.method.write_peft(adapter.weights.config, adapter.weights.shape)
    carries_head = any(not beyond_peft(adapter, name) for name in adapter.head.tensors)
    return {
        "peft_type": adapter.method.peft_type,
        "task_type": task_types[adapter.contract.output_head],
        "base_model_name_or_path": backbone_name,
        "inference_mode": True,
        **own,
        **({"modules_to_save": [*sorted(_HEAD_MODULES), *own.get("modules_to_save", ())]} if carries_head else {}),
    }


def beyond_peft(adapter: Adapter, name: str) -> bool:
    """Whether PEFT's format has no place for this tensor."""
    if name in adapter.head.tensors:
        return adapter.head.config.depth > 0 or not adapter.method.peft_saves_head
    return adapter.method.extra_tensors(adapter.weights.config)(name)


def _on_disk(adapter: Adapter, name: str) -> str:
    if name in adapter.head.tensors:
        return adapter.method.head_prefix + name
    if adapter.contract.output_head is OutputHead.EMBED:  # PEFT wraps the body alone for FEATURE_EXTRACTION
        name = name.removeprefix(_BODY)
    return adapter.method.prefix + name


def load_adapter(stored: StoredAdapter, shape: BackboneShape) -> Adapter:
    """A version from the store: its manifest says what it is, its files were checked against their digests."""
    manifest = stored.manifest
    method = catalog.method(manifest.method)
    config = catalog.configure(method.name, manifest.config["method"])
    head = HeadConfig(**manifest.config["head"])
    return assemble(
        stored.folder, method, config, head, manifest.contract, shape, backbone=manifest.backbone,
        digest=stored.ref.digest, name=str(stored.ref),
    )  # fmt: skip


def import_folder(
    folder: Path,
    shape: BackboneShape,
    *,
    backbone: str,
    labels: Sequence[str] = (),
    contract: Contract | None = None,
    frozen: Frozen | None = None,
) -> Adapter:
    """Reads a folder that PEFT or umbel made. ``backbone`` is the fingerprint it is imported for.

    ``frozen`` is asked where the folder brings matrices of the backbone itself; without it those are refused.
    Raises AdapterRefused, each reason with its own code; nothing is guessed.
    """
    own = _read_umbel_json(folder)
    if own is not None:
        return _import_own(folder, own, shape, backbone)
    raw = read_peft_config(folder)
    method = _method_of(raw)
    assert method.read_peft is not None
    task = str(raw.take("task_type", "CAUSAL_LM"))
    _check_saved_modules(raw, method)
    config = method.read_peft(raw, shape)
    raw.finish()
    contract = contract or _contract_of(task, labels, folder, method)
    kind = catalog.head(contract.output_head)
    head = kind.configure(contract, HeadConfig(), shape.hidden)
    return assemble(folder, method, config, head, contract, shape, backbone=backbone, frozen=frozen)


def _import_own(folder: Path, own: dict[str, Any], shape: BackboneShape, backbone: str) -> Adapter:
    if own["backbone"] != backbone:
        raise AdapterRefused(
            f"the adapter is bound to backbone {own['backbone']}, this is {backbone}.",
            code="wrong_backbone",
            hint="import it for the backbone it was trained on, or train it again on this one",
        )
    method = catalog.method(own["method"])
    config = catalog.configure(method.name, own["options"])
    if method.read_peft is not None:
        raw = read_peft_config(folder)
        raw.take("task_type")
        _check_saved_modules(raw, method)
        if raw.peft_type != method.peft_type or not method.same_config(method.read_peft(raw, shape), config):
            raise AdapterRefused(
                "adapter_config.json and umbel.json disagree.",
                code="config_mismatch",
                hint="delete umbel.json and name the labels anew, or export the adapter again",
            )
        raw.finish()
    return assemble(folder, method, config, own["head"], own["contract"], shape, backbone=backbone)


def assemble(
    folder: Path, method: Method, config: Any, head: HeadConfig, contract: Contract, shape: BackboneShape,
    *, backbone: str, digest: str = "", name: str = "", frozen: Frozen | None = None,
) -> Adapter:  # fmt: skip
    """Puts tensors of a folder into their places; every tensor is used and every place is filled."""
    kind = catalog.head(contract.output_head)
    head = kind.configure(contract, head, shape.hidden)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    theirs, own = _split(tensors, method, kind.expected(head, shape.hidden))
    expected = method.weights.expected(config, shape)
    if frozen is not None:
        _drop_copies(theirs, expected, frozen)
    if (folder / EXTRA_FILE).is_file():
        extra = read_tensors(folder / EXTRA_FILE)
        own |= {key: extra.pop(key) for key in list(extra) if key in kind.expected(head, shape.hidden)}
        theirs |= extra
    check_tensors(expected, theirs)
    _check_rows(contract.labels, own.get("score.weight"))
    check_tensors(kind.expected(head, shape.hidden), own)
    return Adapter(
        method=method,
        weights=method.weights(config, shape, theirs),
        head=kind(head, shape.hidden, own),
        contract=contract,
        backbone=backbone,
        digest=digest,
        name=name,
    )


def _check_rows(labels: Sequence[str], score: Tensor | None) -> None:
    """Raises AdapterRefused (``label_count_mismatch``) where a head has other rows than there are labels for it."""
    if labels and score is not None and score.shape[0] != len(labels):
        raise AdapterRefused(
            f"score.weight has {score.shape[0]} rows, {len(labels)} labels are named: {', '.join(labels)}.",
            code="label_count_mismatch",
            param="labels",
            hint=NAME_LABELS,
        )


def _drop_copies(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]], frozen: Frozen) -> None:
    """Forgets copies of the backbone's matrices that say nothing new; refuses any other (PEFT would replace those)."""
    for key in _COPIES.keys() & tensors.keys() - expected.keys():
        copy, own = tensors.pop(key), frozen(_COPIES[key])
        if copy.shape == own.shape and _equal(copy, own):
            continue
        end = _COPIES[key]
        raise AdapterRefused(
            f"{key} {list(copy.shape)} is not the backbone's own {end} {list(own.shape)}: it belongs to another model.",
            code="other_embeddings",
            param=key,
            hint=f"pull that model as a backbone; or, where {end} was trained on purpose, save the adapter again with "
            f'modules_to_save=["{end}"], and with save_embedding_layers=False where it was not',
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    """In the narrower of the two dtypes: a copy of a matrix that was loaded in another one is still that matrix."""
    dtype = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    return bool((a.to(dtype) == b.to(a.device, dtype)).all())


def _split(
    tensors: dict[str, Tensor], method: Method, head: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(method's tensors, head's tensors) by their own names."""
    theirs: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(method.head_prefix)
        if key.startswith(method.head_prefix) and (name in head or name.split(".")[0] in _HEAD_MODULES):
            own[name] = tensor
        elif key.startswith(method.prefix):
            theirs[_from_body(key.removeprefix(method.prefix))] = tensor
        else:
            raise AdapterRefused(
                f"tensor {key} does not start with {method.prefix!r}, so it would match nothing.",
                code="unexpected_tensors",
                hint="save the adapter with PEFT's save_pretrained, which writes the full names",
            )
    return theirs, own


def _from_body(name: str) -> str:
    """Names of an adapter on the body alone (PEFT's FEATURE_EXTRACTION), as on the whole model."""
    return _BODY + name if name.split(".")[0] in ("layers", "embed_tokens") else name


def _method_of(raw: PeftConfig) -> Method:
    by_type = {method.peft_type: method for method in catalog.methods().values() if method.peft_type}
    if raw.peft_type not in by_type:
        why = WHY_NOT.get(raw.peft_type)
        converts = f"umbel adapters import DIR --name N --as-lora converts {raw.peft_type} to LoRA"
        raise AdapterRefused(
            f"PEFT's method {raw.peft_type} is not served by umbel" + (f": {why}." if why else "."),
            code="unsupported_method",
            hint=converts if raw.peft_type in CONVERTIBLE else f"umbel reads {', '.join(sorted(by_type))}",
        )
    return by_type[raw.peft_type]


def _check_saved_modules(raw: PeftConfig, method: Method) -> None:
    saved = {name.rsplit(".", 1)[-1] for name in raw.names("modules_to_save")}
    if beyond := sorted(saved - _HEAD_MODULES - method.saved_modules):
        known = sorted(_HEAD_MODULES | method.saved_modules)
        raise AdapterRefused(
            f"modules_to_save names {beyond[0]!r}, a full copy of a backbone module.",
            code="unsupported_saved_module",
            hint=f"train with modules_to_save of {', '.join(known)} only",
        )


def _contract_of(task: str, labels: Sequence[str], folder: Path, method: Method) -> Contract:
    if task not in _TASK_TYPES:
        raise AdapterRefused(f"task_type {task} has no output head here.", code="unsupported_task_type")
    head = _TASK_TYPES[task]
    if head in (OutputHead.CLASSIFY, OutputHead.TAG) and not labels:
        weight = read_tensors(folder / WEIGHTS_FILE).get(f"{method.head_prefix}score.weight")
        if weight is not None and head is OutputHead.CLASSIFY and weight.shape[0] == 1:
            return Contract(output_head=OutputHead.REGRESS)
        rows = "some" if weight is None else weight.shape[0]
        raise AdapterRefused(
            f"PEFT's folder names no labels, and score.weight has {rows} rows.",
            code="missing_labels",
            hint=NAME_LABELS,
        )
    return Contract(output_head=head, labels=tuple(labels))


class _OwnFile(BaseModel):
    """``umbel.json``, field by field; nothing unknown is let through."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = Field(alias="schema")
    method: str
    config: dict[Literal["method", "head"], dict[str, Any]]
    contract: Contract
    backbone: Digest


def _read_umbel_json(folder: Path) -> dict[str, Any] | None:
    path = folder / UMBEL_FILE
    if not path.is_file():
        return None
    try:
        own = _OwnFile.model_validate_json(path.read_bytes())
        head = TypeAdapter(HeadConfig).validate_python(own.config["head"], extra="forbid")
    except (ValidationError, KeyError) as error:
        raise AdapterRefused(
            f"umbel.json is not one this version reads: {_first(error)}.",
            code="invalid_umbel_json",
            hint="export the adapter again",
        ) from None
    return {**vars(own), "options": own.config.get("method", {}), "head": head}


def _first(error: ValidationError | KeyError) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error.args[0]!r}"
    entry = error.errors()[0]
    return f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}"


def check_effect(adapter: Adapter) -> None:
    """Raises AdapterRefused where the adapter would answer exactly as the backbone does."""
    silent_head = all(not tensor.any() for tensor in adapter.head.tensors.values())
    if adapter.method.noop(adapter.weights) and silent_head:
        raise AdapterRefused(
            "this adapter changes nothing: its answers would be the backbone's own.",
            code="no_effect",
            hint="train it first, or for a test allow it: --allow-noop, or the field allow_noop of an upload",
        )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
