"""The golden set of bad adapters: each is refused with its own code, says what is wrong, and touches nothing."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from umbel.adapters.adapter import fresh_adapter
from umbel.adapters.peft_io import check_effect, export_files, import_folder
from umbel.core.contract import Contract
from umbel.core.errors import UmbelError
from umbel.core.manifest import check_path

WEIGHTS, CONFIG, OWN = "adapter_model.safetensors", "adapter_config.json", "umbel.json"
Break = Callable[[Path], object]


def config(**changes: object) -> Break:
    """A folder without umbel.json whose adapter_config.json has other values."""

    def change(folder: Path) -> None:
        raw = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**raw, **changes}))
        (folder / OWN).unlink()

    return change


def own(change: Callable[[dict], object]) -> Break:
    def rewrite(folder: Path) -> None:
        raw = json.loads((folder / OWN).read_text())
        change(raw)
        (folder / OWN).write_text(json.dumps(raw))

    return rewrite


def both(theirs: dict[str, object], ours: dict[str, object]) -> Break:
    """adapter_config.json and umbel.json changed alike, so that only the weights disagree."""

    def change(folder: Path) -> None:
        raw = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**raw, **theirs}))
        own(lambda umbel: umbel["config"]["method"].update(ours))(folder)

    return change


def as_ia3(raw: dict) -> None:
    raw["method"], raw["config"]["method"] = "ia3", {}


def one_more(found: dict[str, torch.Tensor]) -> None:
    found[first(found).replace("q_proj", "r_proj")] = found[first(found)].clone()


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Break:
    def rewrite(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / WEIGHTS)

    return rewrite


def header(change: Callable[[dict], object]) -> Break:
    """The weights file with another header before the same bytes."""

    def rewrite(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        raw = json.loads(data[8 : 8 + length])
        change(raw)
        text = json.dumps(raw).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return rewrite


def weights(data: Callable[[bytes], bytes]) -> Break:
    return lambda folder: (folder / WEIGHTS).write_bytes(data((folder / WEIGHTS).read_bytes()))


def text(name: str, content: str) -> Break:
    return lambda folder: (folder / name).write_text(content)


def first(found: dict) -> str:
    return min(name for name in found if name != "__metadata__" and "q_proj.lora_A" in name)


def set_first(value: float) -> Break:
    return tensors(lambda found: found[first(found)].view(-1).__setitem__(0, value))


def replace_first(make: Callable[[torch.Tensor], torch.Tensor]) -> Break:
    return tensors(lambda found: found.__setitem__(first(found), make(found[first(found)])))


def only_pickle(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")


def rename_prefix(found: dict[str, torch.Tensor]) -> None:
    for name in list(found):
        found[name.removeprefix("base_model.")] = found.pop(name)


def named_twice(data: bytes) -> bytes:
    entry = (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    )
    return struct.pack("<Q", len(entry)) + entry + b"\0" * 8


def bomb(data: bytes) -> bytes:
    return struct.pack("<Q", 2 << 20) + b"{" + b" " * (2 << 20) + data


def first_entry(**changes: object) -> Break:
    return header(lambda raw: raw[first(raw)].update(changes))


BAD: dict[str, tuple[str, Break]] = {
    "no adapter_config": ("missing_file", lambda f: ((f / CONFIG).unlink(), (f / OWN).unlink())),
    "no weights": ("missing_file", lambda f: (f / WEIGHTS).unlink()),
    "pickle only": ("missing_file", only_pickle),
    "config is not JSON": ("invalid_adapter_config", lambda f: ((f / CONFIG).write_text("{"), (f / OWN).unlink())),
    "config is a list": ("invalid_adapter_config", lambda f: ((f / CONFIG).write_text("[]"), (f / OWN).unlink())),
    "no peft_type": ("invalid_adapter_config", config(peft_type=None)),
    "rank is text": ("invalid_adapter_config", config(r="8")),
    "targets are a broken pattern": ("invalid_adapter_config", config(target_modules="(_proj")),
    "a pattern meets more": ("missing_tensors", config(task_type="CAUSAL_LM", target_modules=".*(_proj|lm_head)")),
    "pattern is a list": ("invalid_adapter_config", config(rank_pattern=["q_proj"])),
    "another method": ("unsupported_method", config(peft_type="LOHA")),
    "another task": ("unsupported_task_type", config(task_type="SEQ_2_SEQ_LM")),
    "an unknown kind of biases": ("unsupported_config_key", config(bias="some")),
    "changed base by its init": ("unsupported_config_key", config(init_lora_weights="pissa")),
    "repeated layers": ("unsupported_config_key", config(layer_replication=[[0, 1]])),
    "parameters as targets": ("unsupported_config_key", config(target_parameters=["experts"])),
    "activated LoRA": ("unsupported_config_key", config(alora_invocation_tokens=[1, 2])),
    "transposed weights": ("unsupported_config_key", config(fan_in_fan_out=True)),
    "a key of the future": ("unsupported_config_key", config(use_new_maths=True)),
    "a copy of a norm": ("unsupported_saved_module", config(modules_to_save=["norm"])),
    "unknown target": ("unknown_target", config(target_modules=["qkv_proj"])),
    "layer beyond the model": ("unknown_layer", both({"layers_to_transform": [7]}, {"layers": [7]})),
    "rank zero": ("invalid_config", config(r=0)),
    "dropout two": ("invalid_config", config(lora_dropout=2.0)),
    "no labels": ("missing_labels", config()),
    "other rank than config": ("shape_mismatch", both({"r": 4}, {"rank": 4})),
    "truncated weights": ("corrupt_safetensors", weights(lambda data: data[: len(data) // 2])),
    "empty weights": ("corrupt_safetensors", weights(lambda data: b"")),
    "weights are text": ("corrupt_safetensors", weights(lambda data: b"hello, I am no tensor file")),
    "one byte more": ("corrupt_safetensors", weights(lambda data: data + b"\0")),
    "header is no JSON": ("corrupt_safetensors", weights(lambda data: data[:8] + b"x" + data[9:])),
    "header bomb": ("header_too_large", weights(bomb)),
    "tensor named twice": ("duplicate_tensors", weights(named_twice)),
    "overlapping tensors": ("corrupt_safetensors", first_entry(data_offsets=[4, 4 + 8 * 32 * 4])),
    "bytes that fit no shape": ("corrupt_safetensors", first_entry(shape=[8, 31])),
    "negative shape": ("corrupt_safetensors", first_entry(shape=[-8, -32])),
    "offsets are text": ("corrupt_safetensors", first_entry(data_offsets=["0", "4"])),
    "five dimensions": ("shape_mismatch", first_entry(shape=[8, 32, 1, 1, 1])),
    "whole numbers": ("dtype_not_allowed", first_entry(dtype="I32")),
    "NaN": ("non_finite_weights", set_first(float("nan"))),
    "infinity": ("non_finite_weights", set_first(float("inf"))),
    "a tensor missing": ("missing_tensors", tensors(lambda found: found.pop(first(found)))),
    "a tensor too many": ("unexpected_tensors", tensors(one_more)),
    "keys without prefix": ("unexpected_tensors", tensors(rename_prefix)),
    "another hidden size": ("shape_mismatch", replace_first(lambda t: torch.zeros(8, 48))),
    "another backbone": ("wrong_backbone", own(lambda raw: raw.update(backbone="sha256:" + "0" * 64))),
    "configs disagree": ("config_mismatch", own(lambda raw: raw["config"]["method"].update(alpha=3.0))),
    "methods disagree": ("config_mismatch", own(as_ia3)),
    "umbel.json is not JSON": ("invalid_umbel_json", text(OWN, "{")),
    "umbel.json of the future": ("invalid_umbel_json", own(lambda raw: raw.update(schema=2))),
    "umbel.json with more": ("invalid_umbel_json", own(lambda raw: raw.update(hook="os.system"))),
    "head of other fields": ("invalid_umbel_json", own(lambda raw: raw["config"]["head"].update(magic=1))),
    "template without a slot": ("invalid_umbel_json", own(lambda raw: raw["contract"].update(template="hi"))),
    "a label too few": ("label_count_mismatch", own(lambda raw: raw["contract"].update(labels=["a", "b"]))),
    "a label twice": ("invalid_umbel_json", own(lambda raw: raw["contract"].update(labels=["a", "a", "b"]))),
    "unknown method option": ("unknown_option", own(lambda raw: raw["config"]["method"].update(gamma=1))),
    "unknown method": ("unknown_method", own(lambda raw: raw.update(method="loha"))),
    "mistyped option": ("invalid_option", own(lambda raw: raw["config"]["method"].update(rank="eight"))),
}  # fmt: skip


@pytest.fixture
def good(backbone, tmp_path) -> Path:
    contract = Contract(output_head="classify", labels=("a", "b", "c"))
    adapter = fresh_adapter("lora", {"rank": 8}, contract, backbone.shape, backbone=backbone.fingerprint, seed=1)
    for name, data in export_files(adapter, backbone_name="tiny").items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_the_good_one_is_accepted(good, backbone):
    assert import_folder(good, backbone.shape, backbone=backbone.fingerprint).contract.labels == ("a", "b", "c")


@pytest.mark.parametrize("name", BAD, ids=str)
def test_a_bad_adapter_is_refused_with_its_code(name, good, backbone):
    code, spoil = BAD[name]
    spoil(good)
    with pytest.raises(UmbelError) as refused:
        import_folder(good, backbone.shape, backbone=backbone.fingerprint)
    assert refused.value.code == code, refused.value
    assert len(refused.value.message) > 20
    assert refused.value.status == 400


def test_the_golden_set_is_large_and_its_codes_tell_apart():
    assert len(BAD) >= 40
    assert len({code for code, _ in BAD.values()}) >= 15


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a//b", "a/../b", "a\\b", ".ssh", "a\0b", "C:x", "", "x" * 300]
)
def test_a_path_trick_is_refused(path):
    with pytest.raises(UmbelError) as refused:
        check_path(path)
    assert refused.value.code == "unsafe_path"


def test_an_adapter_without_effect_is_refused(backbone, made):
    generate = Contract(output_head="generate")
    untrained = fresh_adapter("lora", {}, generate, backbone.shape, backbone=backbone.fingerprint, seed=1)
    with pytest.raises(UmbelError) as refused:
        check_effect(untrained)
    assert refused.value.code == "no_effect"
    check_effect(made("lora"))
    for method in ("llama_adapter", "ia3", "bottleneck"):
        check_effect(made(method))
        with pytest.raises(UmbelError):
            check_effect(made(method, noise=0.0))
